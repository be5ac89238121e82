"""What a program can read of a run."""

from __future__ import annotations

import pickle
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
import xarray
import zarr
from scipy import sparse

import dumap
from dumap.errors import ConfigError, StorageError


@pytest.fixture(scope="module")
def done(embed, digits_300):
    """Return a finished run in many cells: some rows are equal, one has no neighbours, one is left out."""
    x = np.concatenate([digits_300, digits_300[:5]])
    x[7, 3] = np.nan
    settings = {"cells.max_rows": 100, "input.unique": True, "input.nonfinite": "drop", "quality.queries": 50}
    return embed(x, {**settings, "audit.queries": 50})


@pytest.fixture
def result(done) -> dumap.Result:
    """The finished run, opened."""
    return dumap.open_run(done.output)


def test_arrays_are_those_of_the_run(done, result):
    assert isinstance(result.embedding, zarr.Array)
    assert np.array_equal(result.embedding[:], done.y, equal_nan=True)
    assert np.array_equal(result.status[:], done.flags)
    assert result.facts["quality"] == done.facts("quality")


def test_nothing_is_read_before_it_is_asked_for(done, monkeypatch):
    monkeypatch.setattr("dumap.show.result.status", lambda path: pytest.fail("was read"))
    assert dumap.open_run(done.output).path == done.output


def test_a_result_travels_as_its_path(result):
    assert len(pickle.dumps(result)) < 500
    assert pickle.loads(pickle.dumps(result))["stages"] == result["stages"]
    assert repr(result) == f"<dumap.Result {result.path}: done>"


def test_dask_and_xarray_read_the_same(done, result):
    array = result.to_dask()
    assert (array.shape, array.dtype, array.chunks[0][0]) == (done.y.shape, "float32", result.embedding.chunks[0])
    assert np.array_equal(pickle.loads(pickle.dumps(array)).compute(scheduler="sync"), done.y, equal_nan=True)
    data = result.to_xarray()
    assert isinstance(data, xarray.Dataset)
    assert dict(data.sizes) == {"row": len(done.y), "component": 2}
    assert np.array_equal(data["embedding"].values, done.y, equal_nan=True)
    assert np.array_equal(data["status"].values, done.flags)
    assert data["status"].attrs["flag_meanings"]


def test_a_data_frame_has_what_the_exports_have(done, result):
    frame = result.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    read = pandas.read_csv(done.export("embedding", ".csv"), index_col="row", dtype={"status": np.uint8})
    pandas.testing.assert_frame_equal(frame, read.astype({"component_0": "f4", "component_1": "f4"}))


@pytest.mark.parametrize(("library", "call"), [("xarray", "to_xarray"), ("pandas", "to_dataframe")])
def test_a_library_that_is_not_there_is_named(result, monkeypatch, library, call):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=f"{call} needs .*pip install {library}"):
        getattr(result, call)()


def test_the_graph_is_the_exported_one_by_blocks(done, result, monkeypatch):
    monkeypatch.setattr("dumap.show.rows.BLOCK_ROWS", 100)
    whole = sparse.load_npz(done.export("graph", ".npz"))
    assert result.blocks == [(0, 100), (100, 200), (200, 300), (300, 305)]
    stacked = sparse.vstack([result.graph(block) for block in range(4)])
    assert result.graph(np.int64(-1)).shape == (5, 305)
    for graph in (stacked, result.graph()):
        assert graph.format == "csr"
        assert (graph != whole).nnz == 0
    assert (result.graph(slice(7, 9)) != whole[7:9]).nnz == 0
    assert result.graph(slice(9, 3)).shape == (0, 305)
    with pytest.raises(ConfigError, match="leave out the step"):
        result.graph(slice(0, 9, 2))


def test_neighbors_are_the_exported_ones(done, result):
    indices, distances = done.neighbors()
    assert (len(result.neighbors), result.neighbors.shape) == (305, indices.shape)
    for rows in (slice(None), slice(5, 9), slice(-5, None), slice(9, 5)):
        assert np.array_equal(result.neighbors[rows][0], indices[rows])
        assert np.array_equal(result.neighbors[rows][1], distances[rows])
    with pytest.raises(IndexError, match="leave out the step"):
        result.neighbors[::2]
    one, how_far = result.neighbors[-1]
    assert np.array_equal(one, indices[-1])
    assert np.array_equal(how_far, distances[-1])
    with pytest.raises(IndexError, match="out of range"):
        result.neighbors[len(indices)]
    with pytest.raises(TypeError, match="integer"):
        result.neighbors["a"]


def test_a_result_says_that_parts_were_dropped(embed, digits_300):
    result = dumap.open_run(embed(digits_300, {"keep": "results"}).output)
    for read in (result.graph, lambda: result.neighbors[:3]):
        with pytest.raises(StorageError, match="were dropped once the map was done, as keep = results says"):
            read()


def test_a_result_says_that_a_stage_is_not_done(configure, digits_300):
    from helpers import ActAtStageStart

    from dumap.recipe.pipeline import run

    def stop():
        raise KeyboardInterrupt

    config = configure(digits_300, {"cluster.engine": "local"})
    with pytest.raises(KeyboardInterrupt):
        run(config, observer=ActAtStageStart("layout", stop))
    result = dumap.open_run(config.output)
    assert result["state"] == "partial"
    assert result.graph().shape == (300, 300)
    with pytest.raises(StorageError, match="stage embedding is not done yet"):
        result.embedding  # noqa: B018
    assert "no picture: " in result._repr_html_()


# pictures ----------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Holds a page to what it may contain."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.opened += [tag] if tag not in ("br", "img") else []
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


def test_a_notebook_shows_map_quality_time_and_memory(result):
    page = result._repr_html_()
    tags = Tags()
    tags.feed(page)
    assert tags.opened == []
    assert [source.split(",")[0] for source in tags.sources] == ["data:image/png;base64"]
    for figure in ("trustworthiness", "recall", "peak memory", "305 rows x 64 dims", "seconds"):
        assert figure in page
    assert len(re.findall("<td>done</td>", page)) == len(result["stages"])


def test_a_page_does_without_a_picture(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "datashader", None)
    assert "no picture: a picture needs what is not installed here: pip install" in result._repr_html_()


def test_a_large_maps_page_shows_chunks_from_all_over_it(result, monkeypatch):
    shown = []
    large = zarr.create_array({}, data=np.repeat(np.arange(1000, dtype=np.float32), 2).reshape(-1, 2), chunks=(10, 2))
    monkeypatch.setattr(dumap.Result, "embedding", large)
    monkeypatch.setattr("dumap.show.result.MAX_SHOWN_ROWS", 100)
    monkeypatch.setattr("dumap.show.picture.draw_map", lambda y: shown.append(y[:, 0]))
    monkeypatch.setattr("dumap.show.picture.to_png", lambda figure: b"")
    result._repr_html_()
    assert shown[0].tolist() == [at + row for at in range(0, 1000, 100) for row in range(10)]


def test_a_map_is_drawn(result, digits):
    from matplotlib import get_backend, pyplot

    before = get_backend(auto_select=False)
    labels = np.concatenate([digits[1][:300], digits[1][:5]])
    plain, coloured = result.plot(), result.plot(labels=labels.tolist())
    assert plain._repr_png_()[:4] == coloured._repr_png_()[:4] == b"\x89PNG"
    assert len(coloured.axes[0].get_legend().texts) == 10
    assert (pyplot.get_fignums(), get_backend(auto_select=False)) == ([], before)

"""Several stores as one input: their rows one after another."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dumap.config import InputConfig, build_config
from dumap.errors import ConfigError, InputError, RunMismatchError
from dumap.recipe import pipeline
from dumap.sources.opening import locate, open_source
from dumap.sources.stores import ConcatenatedInput
from dumap.sources.zarr_array import ArrayInput
from dumap.store import patterns
from dumap.store.objects import Objects


def make(path: Path, values: np.ndarray, chunk_rows: int = 4, **options) -> str:
    """Write an array to a new Zarr group; return its path."""
    group = zarr.open_group(path, mode="w")
    group.create_array("vectors", data=values, chunks=(chunk_rows, values.shape[1]), **options)
    return str(path)


@pytest.fixture
def stores_of_three(tmp_path):
    """Rows 0 to 9, 10 to 12 and 13 to 19 of three stores, of three dtypes."""
    x = np.arange(60).reshape(20, 3)
    cuts = [(0, 10, "f4"), (10, 13, "i2"), (13, 20, "f4")]
    return [make(tmp_path / f"part-{at}.zarr", x[at:to].astype(dtype)) for at, to, dtype in cuts]


def test_rows_follow_one_another(stores_of_three):
    source = open_source(InputConfig(path=stores_of_three))
    assert isinstance(source, ConcatenatedInput)
    assert (source.rows, source.dims, source.dtype, source.chunk_rows) == (20, 3, np.float32, 4)
    x = np.arange(60).reshape(20, 3)
    for start, stop in ((0, 20), (9, 14), (10, 13), (11, 12), (19, 20), (7, 7)):
        assert source.read(start, stop).tolist() == x[start:stop].tolist()
    assert source.describe()["stores"] == [
        {"path": path, "rows": rows} for path, rows in zip(stores_of_three, (10, 3, 7), strict=True)
    ]


@pytest.mark.parametrize(
    ("dtypes", "common"), [(("f4", "f2"), "f4"), (("u1", "i1"), "i2"), (("?", "u1"), "u1"), (("i8", "f4"), "f8")]
)
def test_the_dtype_is_what_numpy_makes_of_all(tmp_path, dtypes, common):
    paths = [make(tmp_path / f"{dtype}.zarr", np.ones((4, 2), dtype)) for dtype in dtypes]
    source = ConcatenatedInput(paths, "vectors")
    assert source.dtype == common
    assert source.read(2, 6).dtype == common
    assert source.read(2, 6).tolist() == np.ones((4, 2)).tolist()


def test_a_pattern_names_stores_by_name(stores_of_three, tmp_path, monkeypatch):
    make(tmp_path / "other.zarr", np.ones((4, 3)))
    by_pattern = open_source(InputConfig(path=str(tmp_path / "part-*.zarr")))
    by_list = open_source(InputConfig(path=[stores_of_three[0], stores_of_three[1], stores_of_three[2]]))
    assert by_pattern.describe() == by_list.describe(), "part-0, part-10, part-13"
    monkeypatch.chdir(tmp_path)
    assert locate(InputConfig(path="part-1?.zarr")) == tuple(stores_of_three[1:])
    assert locate(InputConfig(path=["part-1?.zarr", "part-0.zarr"])) == (*stores_of_three[1:], stores_of_three[0])
    with pytest.raises(InputError, match=r"nothing is there by the pattern .*no-\*\.zarr"):
        locate(InputConfig(path="no-*.zarr"))


def test_a_pattern_of_a_bucket_is_listed_step_by_step(tmp_path, monkeypatch):
    for name in ("a/x-1.zarr", "a/x-0.zarr", "b/x-0.zarr", "b/y-0.zarr", "c/z/x-0.zarr"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(patterns, "Objects", lambda at, read_only: Objects(at.replace("s3://bucket", str(tmp_path))))
    names = ["a/x-0.zarr", "a/x-1.zarr", "b/x-0.zarr"]
    assert patterns.expand_pattern("s3://bucket/[ab]/x-*.zarr") == [f"s3://bucket/{name}" for name in names]
    assert patterns.expand_pattern("s3://bucket/*/z/x-?.zarr/") == [f"s3://bucket/{at}/z/x-0.zarr" for at in "c"]
    with pytest.raises(InputError, match=r"nothing is there by the pattern s3://bucket/d\*"):
        patterns.expand_pattern("s3://bucket/d*")


def test_a_path_that_is_there_is_no_pattern(tmp_path):
    path = make(tmp_path / "a[1].zarr", np.ones((4, 2)))
    make(tmp_path / "a1.zarr", np.ones((5, 2)))
    assert open_source(InputConfig(path=path)).rows == 4


def test_one_store_is_read_as_by_its_path(stores_of_three, tmp_path):
    alone = ArrayInput(stores_of_three[1], "vectors").describe()
    for path in ([stores_of_three[1]], str(tmp_path / "part-10*.zarr")):
        assert open_source(InputConfig(path=path)).describe() == alone


def test_the_store_that_does_not_fit_is_named(stores_of_three, tmp_path):
    wide = make(tmp_path / "wide.zarr", np.ones((4, 5)))
    with pytest.raises(InputError, match=r"wide\.zarr has 5 dims, .*part-0\.zarr has 3"):
        ConcatenatedInput([stores_of_three[0], wide], "vectors")
    with pytest.raises(InputError, match=r"no array 'x' in .*part-0\.zarr"):
        ConcatenatedInput(stores_of_three, "x")
    with pytest.raises(InputError, match=r"part-99\.zarr does not exist"):
        ConcatenatedInput([stores_of_three[0], str(tmp_path / "part-99.zarr")], "vectors")
    next(Path(stores_of_three[2]).rglob("c/1/0")).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"part-13\.zarr: rows 0 to 7 cannot be read"):
        ConcatenatedInput(stores_of_three, "vectors").read(0, 20)


def test_chunks_that_are_not_there_are_named_by_store_and_row(stores_of_three):
    shutil.rmtree(Path(stores_of_three[2], "vectors", "c", "1"))
    missing_chunks = ConcatenatedInput(stores_of_three, "vectors").missing_chunks
    assert (missing_chunks.chunks, missing_chunks.of, missing_chunks.rows, missing_chunks.spans) == (
        1,
        6,
        3,
        [(17, 20)],
    )
    assert missing_chunks.keys == [f"{stores_of_three[2]}: c/1/0"]
    with pytest.raises(InputError, match=r"part-13\.zarr, array 'vectors': 1 of 2 chunks are not there"):
        ConcatenatedInput(stores_of_three, "vectors").require_chunks()


def test_the_signature_sees_what_each_store_holds(stores_of_three):
    before = ConcatenatedInput(stores_of_three, "vectors").signature()
    assert ConcatenatedInput(stores_of_three, "vectors").signature() == before
    assert (
        ConcatenatedInput([stores_of_three[1], stores_of_three[0], stores_of_three[2]], "vectors").signature() != before
    )
    zarr.open_group(stores_of_three[1])["vectors"][0, 0] = 99
    assert ConcatenatedInput(stores_of_three, "vectors").signature() != before


@pytest.mark.parametrize("path", [[], [1], ["a", 2], 7, {"a": 1}, [""]])
def test_patterns_that_match_no_store_are_refused(path):
    with pytest.raises(ConfigError, match=r"input\.path"):
        build_config({"input": {"path": path}, "output": "out.zarr"})


@pytest.fixture
def three_stores(save, digits_300):
    """Three hundred digits in stores of 130, 1 and 169."""
    return [save(digits_300[start:stop]) for start, stop in ((0, 130), (130, 131), (131, 300))]


def test_stores_come_to_the_bytes_of_one(three_stores, digits_300, embed, save):
    whole, parts = embed(digits_300), embed(digits_300, {"input.path": three_stores})
    assert parts.y.tobytes() == whole.y.tobytes()
    assert parts.status["fingerprint"] == whole.status["fingerprint"]
    assert [store["path"] for store in parts.status["input"]["stores"]] == three_stores


def test_a_run_goes_on_with_the_same_rows_however_they_are_stored(three_stores, digits_300, configure, save):
    config = configure(digits_300, {"cluster.engine": "local", "input.path": three_stores})
    pipeline.run(config)

    def of(path):
        return config.model_copy(update={"input": InputConfig(path=path)})

    assert pipeline.run(of(save(digits_300)))["state"] == "done"
    with pytest.raises(RunMismatchError, match=r"3 stores, .* holds other data"):
        pipeline.run(of([three_stores[1], three_stores[0], three_stores[2]]))


def test_a_pattern_is_given_as_an_option(cli, digits_300, tmp_path):
    for number in range(3):
        make(tmp_path / f"in-{number}.zarr", digits_300[100 * number : 100 * (number + 1)], 50)
    outcome = cli("plan", "--input", tmp_path / "in-*.zarr", "--output", tmp_path / "run.zarr")
    assert outcome.code == 0
    assert "300 rows x 64 dims" in outcome.out
    inside = cli("plan", "--input", tmp_path / "in-*.zarr", "--output", tmp_path / "in-1.zarr" / "run")
    assert inside.code == 0, "a plan touches nothing"
    refused = cli("run", "--input", tmp_path / "in-*.zarr", "--output", tmp_path / "in-1.zarr" / "run")
    assert refused.code == 6
    assert "lies in the input" in refused.err

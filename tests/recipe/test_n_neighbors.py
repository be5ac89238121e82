"""n_neighbors counts the row itself, as umap-learn's does; lists may be wider than the graph."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import zarr
from scipy import sparse
from scipy.spatial.distance import cdist
from umap_learn import umap_in_python

from dumap.artifacts.neighbors import NeighborLists
from dumap.config import build_config
from dumap.errors import ConfigError, InputError
from dumap.planning.geometry import make_geometry
from dumap.show.export import export
from dumap.store import Run, run


@pytest.fixture(scope="module")
def digits_600(digits):
    """Return the first 600 digits."""
    return digits[0][:600]


def write_given(new_path, indices, distances) -> str:
    """Write lists to a new Zarr group; return its path."""
    path = new_path("knn.zarr")
    group = zarr.create_group(path)
    group.create_array("indices", data=indices)
    group.create_array("distances", data=distances)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_neighbors", "connectivity", "mix"),
    [(15, 1.0, 1.0), (5, 1.0, 1.0), (30, 1.0, 1.0), (15, 2.0, 1.0), (15, 1.0, 0.5), (2, 1.0, 1.0)],
)
def test_the_graph_of_umap_learns_lists_is_umap_learns(
    embed, new_path, save, digits_600, n_neighbors, connectivity, mix
):
    x = np.concatenate([digits_600, np.repeat(digits_600[:1], 40, axis=0)])  # some rows have nothing but copies near
    known = cdist(x, x).astype(np.float32)
    known[np.random.default_rng(0).random(known.shape) < 0.1] += 1000  # as if a search had missed a tenth
    np.fill_diagonal(known, -1)  # first, before copies
    with umap_in_python() as umap_:
        indices, distances, _ = umap_.nearest_neighbors(known, n_neighbors, "precomputed", {}, False, None)
        distances[:, 0] = 0
        expected, *_ = umap_.fuzzy_simplicial_set(
            x,
            n_neighbors,
            None,
            "euclidean",
            knn_indices=indices,
            knn_dists=distances,
            set_op_mix_ratio=mix,
            local_connectivity=connectivity,
        )
    settings = {"graph.local_connectivity": connectivity, "graph.set_op_mix_ratio": mix, "layout.n_epochs": 1}
    settings |= {
        "neighbors.precomputed": write_given(new_path, indices, distances),
        "neighbors.n_neighbors": n_neighbors,
    }
    done = embed(save(x), settings)
    exported = sparse.load_npz(done.export("graph", ".npz"))
    assert exported.nnz == expected.nnz
    assert abs(exported - expected).max() <= 1e-5


@pytest.fixture(scope="module")
def run_of_width_20(embed, digits_600):
    """Return a finished run of 6 neighbours whose lists hold 20."""
    return embed(digits_600, {"neighbors.n_neighbors": 6, "neighbors.width": 20, "audit.queries": 100})


@pytest.fixture(scope="module")
def run_of_width_6(embed, digits_600):
    """Return a finished run of 6 neighbours."""
    return embed(digits_600, {"neighbors.n_neighbors": 6})


def test_a_graph_takes_the_nearest_of_wider_lists(run_of_width_20, run_of_width_6):
    """Of so few rows all lists are exact, so that those of both runs begin alike."""
    for one, other in zip(run_of_width_20.neighbors(), run_of_width_6.neighbors(), strict=True):
        assert one.shape == (600, 5)
        np.testing.assert_array_equal(one, other)
    graphs = [sparse.load_npz(done.export("graph", ".npz")) for done in (run_of_width_20, run_of_width_6)]
    assert abs(graphs[0] - graphs[1]).max() == 0
    assert run_of_width_20.y.tobytes() == run_of_width_6.y.tobytes()
    assert NeighborLists(Run(run_of_width_20.output, read_only=True)).read("indices", 0, 600).shape == (600, 19)
    assert zarr.open_group(run_of_width_20.output, mode="r").attrs["dumap"]["parameters"]["neighbors"]["width"] == 20
    assert "width" not in zarr.open_group(run_of_width_6.output, mode="r").attrs["dumap"]["parameters"]["neighbors"]


def test_a_width_below_n_neighbors_is_refused():
    with pytest.raises(ConfigError, match=r"width \(10\) must not be below n_neighbors \(15\): raise width"):
        build_config({"input": {"path": "in"}, "output": "out", "neighbors": {"width": 10}})


def test_errors_name_the_setting_width_where_it_is_given(embed, new_path, digits_600):
    config = build_config({"input": {"path": "in"}, "output": "out", "neighbors": {"width": 30}})
    with pytest.raises(InputError, match=r"30 rows .* neighbors.width = 30; give at least 31 .* width to at most 29"):
        make_geometry(config, 30, 4, 4, 10)
    make_geometry(config, 31, 4, 4, 10)
    lists = np.zeros((600, 20), int), np.ones((600, 20))
    settings = {"neighbors.precomputed": write_given(new_path, *lists), "neighbors.width": 30}
    with pytest.raises(InputError, match=r"20 columns, too few for neighbors.width = 30.*: set width to at most 21"):
        embed(digits_600, settings)


# the row itself in front -------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npz", ".zarr"])
def test_umap_learn_takes_exported_neighbors(run_of_width_20, digits_600, new_path, cli, ending):
    out = new_path(f"knn{ending}")
    outcome = cli("export", run_of_width_20.output, "neighbors", out, "--with-self")
    assert outcome.code == 0
    assert "600 rows x 6 neighbors, each row itself first" in outcome.out
    exported = np.load(out) if ending == ".npz" else zarr.open_group(out, mode="r")
    indices, distances = np.asarray(exported["indices"][:]), np.asarray(exported["distances"][:])
    others = run_of_width_20.neighbors()
    np.testing.assert_array_equal(indices, np.column_stack([np.arange(600), others[0]]))
    np.testing.assert_array_equal(distances, np.column_stack([np.zeros(600), others[1]]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn\\[2\\]|n_jobs value")
        with umap_in_python() as umap_:
            given = (indices, distances, None)
            model = umap_.UMAP(n_neighbors=6, precomputed_knn=given, transform_mode="graph", random_state=1)
            model.fit(digits_600)
    np.testing.assert_array_equal(model._knn_indices, indices)
    graph = sparse.load_npz(run_of_width_20.export("graph", ".npz"))
    assert abs(model.graph_ - graph).max() <= 1e-5


def test_with_self_is_of_neighbors_alone(run_of_width_20, new_path):
    with pytest.raises(ConfigError, match="--with-self goes with neighbors, not with graph: leave it out"):
        export(run_of_width_20.output, "graph", new_path("g.npz"), with_self=True)


def test_exported_neighbors_come_back_with_the_row_itself_or_without(run_of_width_20, embed, digits_600, new_path):
    y = []
    for with_self in (False, True):
        out = new_path("knn.zarr")
        export(run_of_width_20.output, "neighbors", out, with_self=with_self)
        settings = {"neighbors.precomputed": out, "neighbors.n_neighbors": 6}
        y.append(embed(digits_600, settings).y.tobytes())
    assert y[0] == y[1]


def test_a_run_of_the_format_before_is_refused(run_of_width_20, cli, new_path, monkeypatch):
    before, now = run.FORMAT, run.FORMAT + 1
    monkeypatch.setattr(run, "FORMAT", now)
    outcome = cli("status", run_of_width_20.output, "--json")
    assert outcome.code != 0
    assert len(outcome.err.strip().splitlines()) == 1
    assert f"has format {before}; this version of dumap reads format {now}: name another output" in outcome.err
    assert outcome.out == ""

"""Coarsening: labels spread over connected rows, and the coarse graph is the graph added up by labels."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import SHARDED, local_context, stack_edges
from scipy import sparse

from dumap.artifacts.coarsen import EDGES, LABEL_SOURCES, label_checkpoints
from dumap.artifacts.graph import SHARDS, Graph
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import COARSEN, GRAPH
from dumap.kernels.coarse import UNITS_PER_WEIGHT
from dumap.kernels.start import UNLABELLED
from dumap.recipe.pipeline import plan, run
from dumap.stages import coarsen
from dumap.stages.passes import GraphPass
from dumap.store import Checkpoints, Run


@pytest.fixture(scope="module")
def graph(host_run) -> sparse.csr_matrix:
    """Return the graph of the run as one matrix."""
    return stack_edges(Graph(Run(host_run.output, read_only=True)))


@pytest.fixture(scope="module")
def labels(host_run) -> np.ndarray:
    """Return the label of each row after the last pass."""
    checkpoints = label_checkpoints(Run(host_run.output, read_only=True))
    return checkpoints.read(checkpoints.latest(), "labels", 0, 5020)


def test_labels_spread_from_their_sources_over_connected_rows(host_run, graph, labels):
    sources = Run(host_run.output, read_only=True).read(COARSEN, LABEL_SOURCES, "rows")
    assert (np.diff(sources) > 0).all()
    np.testing.assert_array_equal(labels[sources], np.arange(len(sources)))
    heads, tails = graph.nonzero()
    inside = labels[heads] == labels[tails]
    same = sparse.csr_matrix((np.ones(inside.sum()), (heads[inside], tails[inside])), shape=graph.shape)
    count, _ = sparse.csgraph.connected_components(same, directed=False)
    assert count == len(np.unique(labels)), "rows of one label are connected among themselves"
    assert host_run.facts("coarsen")["unseeded"] == (labels < 0).sum()


def test_the_coarse_graph_is_the_graph_added_up_by_labels(host_run, graph, labels):
    store = Run(host_run.output, read_only=True)
    pairs, sums, sizes = (store.read(COARSEN, EDGES, name) for name in ("pairs", "sums", "sizes"))
    np.testing.assert_array_equal(sizes, np.bincount(labels[labels >= 0], minlength=len(sizes)))
    assert host_run.facts("coarsen")["coarse_rows"] == np.count_nonzero(sizes)
    rows = np.flatnonzero(labels >= 0)
    members = sparse.csr_matrix((np.ones(len(rows)), (labels[rows], rows)), shape=(len(sizes), len(labels)))
    expected = (members @ graph.astype(np.float64) @ members.T).tocoo()
    coarse = sparse.coo_matrix((sums / UNITS_PER_WEIGHT, (pairs // len(sizes), pairs % len(sizes))), expected.shape)
    assert coarse.nnz == expected.nnz
    assert abs(coarse - expected).max() < 1e-3


def test_other_starts_need_no_coarse_graph(embed, digits_300):
    done = embed(digits_300, {"start.init": "random"})
    assert done.facts("coarsen") == {}
    assert [*Run(done.output, read_only=True).committed_parts(COARSEN)] == []


CURVE_ROWS, SOURCES = 8400, 200
"""Rows of a curve in three shards, and from how many of them labels spread: in dozens of passes."""


@pytest.fixture(scope="module")
def curve_graph(configure, save):
    """Return the configuration of a run up to the graph of rows along a curve, in random order."""
    at = np.random.default_rng(5).permutation(np.linspace(0, 40, CURVE_ROWS))
    curve = np.stack([np.cos(at), np.sin(at), at], axis=1).astype(np.float32)
    config = configure(save(curve), {**SHARDED, "cluster.engine": "local"})
    run(config, last=GRAPH)
    return config


@pytest.fixture
def curve_job(curve_graph, new_path, monkeypatch) -> Job:
    """Return a job of a copy of that run; labels spread from few rows."""
    monkeypatch.setattr(coarsen, "coarse_rows", lambda rows: SOURCES)
    config = curve_graph.model_copy(update={"output": new_path("run.zarr")})
    shutil.copytree(curve_graph.output, config.output)
    return Job(config, plan(config).geometry)


def spread_over(graph: sparse.csr_matrix, sources: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of each row of a connected graph, and the pass in which it gets it."""
    labels, passes = np.full(graph.shape[0], UNLABELLED), np.zeros(graph.shape[0], int)
    labels[sources] = np.arange(len(sources))
    while (left := np.flatnonzero(labels == UNLABELLED)).size:
        passes[left] += 1
        before = labels.copy()
        for row in left:
            tails, weights = (array[graph.indptr[row] : graph.indptr[row + 1]] for array in (graph.indices, graph.data))
            weights = np.where(before[tails] == UNLABELLED, 0, weights)
            if weights.any():
                labels[row] = before[tails[weights.argmax()]]
    return labels, passes


def labels_after(job: Job) -> bytes:
    """Return the labels and the edges of the coarse graph."""
    checkpoints = label_checkpoints(job.run)
    arrays = [job.run.read(COARSEN, EDGES, name) for name in ("pairs", "sums", "sizes")]
    return checkpoints.read(checkpoints.latest(), "labels", 0, CURVE_ROWS).tobytes() + b"".join(map(bytes, arrays))


def test_passes_read_only_the_edges_of_rows_without_a_label(curve_job, monkeypatch):
    read, edges_read = Run.read, []

    def counted(self, stage, name, array, *rest):
        values = read(self, stage, name, array, *rest)
        edges_read.append(len(values) if array.startswith("tails") else 0)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(Run, "read", counted)
        facts = coarsen.run(local_context(curve_job))
    graph, checkpoints = stack_edges(Graph(curve_job.run)), label_checkpoints(curve_job.run)
    labels, passes = spread_over(graph, curve_job.run.read(COARSEN, LABEL_SOURCES, "rows"))
    np.testing.assert_array_equal(checkpoints.read(facts["label_passes"], "labels", 0, CURVE_ROWS), labels)
    assert facts["label_passes"] == passes.max() > 20
    needed = (np.diff(graph.indptr) * passes).sum()
    assert needed <= sum(edges_read) - graph.nnz <= 2 * needed, "the edges are read once more to be added up"
    assert facts["label_passes"] * graph.nnz > 4 * needed


def test_shards_whose_rows_all_have_labels_are_not_written_again(curve_job):
    coarsen.run(local_context(curve_job))
    checkpoints = label_checkpoints(curve_job.run)
    numbers = [Checkpoints.parse_piece_name(piece)[0] for piece in checkpoints.pieces(checkpoints.latest())]
    assert len(numbers) == 3
    assert min(numbers) < max(numbers) == checkpoints.latest()


@pytest.mark.parametrize("passes", [1, 15])
@pytest.mark.parametrize("ranges", [[(0, 3)], [(0, 1), (1, 3)]])
def test_labels_go_on_after_a_kill_with_other_ranges(curve_job, monkeypatch, new_path, passes, ranges):
    whole = Job(curve_job.config.model_copy(update={"output": new_path("whole.zarr")}), curve_job.geometry)
    shutil.copytree(curve_job.config.output, whole.config.output)
    context = local_context(curve_job)
    compute = context.compute

    def killed(stage, task, parts, **options):
        if task is coarsen.spread_labels and Checkpoints.parse_piece_name(parts[0])[0] > passes:
            compute(stage, task, parts[:1], **options)
            raise KeyboardInterrupt
        compute(stage, task, parts, **options)

    context.compute = killed
    with pytest.raises(KeyboardInterrupt):
        coarsen.run(context)
    assert label_checkpoints(curve_job.run).latest() == passes
    monkeypatch.setattr(coarsen, "pass_ranges", lambda *rest: ranges)
    coarsen.run(local_context(curve_job))
    monkeypatch.undo()
    monkeypatch.setattr(coarsen, "coarse_rows", lambda rows: SOURCES)
    coarsen.run(local_context(whole))
    assert labels_after(curve_job) == labels_after(whole)


@pytest.mark.parametrize("offsets", [[0, 4096, 5120, 6144, 9000], [0, 1024, 5120, 9000]])
def test_labels_at_the_ends_of_edges_however_long_shards_are(new_path, offsets):
    store = Run(new_path("run.zarr"))
    with store.part(GRAPH, SHARDS) as out:
        out.write("offsets", np.array(offsets))
    tails = np.sort(np.random.default_rng(0).choice(9000, (50, 20)), axis=1)
    job = SimpleNamespace(
        run=store,
        config=SimpleNamespace(task_memory=2**20, layout=SimpleNamespace(n_components=2)),
        geometry=SimpleNamespace(shard_rows=4096, index_dtype=np.dtype("int32")),
    )
    graph_pass = GraphPass(job, lambda shard: np.arange(*offsets[shard : shard + 2], dtype=np.int32))
    np.testing.assert_array_equal(graph_pass.read_tail_labels(np.arange(0, 1001, 20), tails.ravel()), tails.ravel())

"""The audit: its figures are true, repairs improve the lists, and neither depends on how the run is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import K, NoteRecorder, mark_slow_except, uncommit_stages
from scipy.spatial.distance import cdist

from dumap.artifacts.cells import CellTable
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import kind_of
from dumap.artifacts.vectors import is_query
from dumap.kernels import hashing
from dumap.planning.audits import repair_row_bytes
from dumap.recipe import pipeline
from dumap.recipe.damage import verify
from dumap.recipe.pipeline import run
from dumap.recipe.stage_names import RUN_KEYS, STAGES
from dumap.stages.repair import choose_halo, read_home_rows
from dumap.store import MANIFESTS, Run

SEAMED = {"cells.max_rows": 300, "cells.max_cells_per_row": 2, "audit.queries": 600}
"""Small cells that hardly spill: their seams lose a tenth of the neighbours."""
REPAIRED = {**SEAMED, "neighbors.recall_target": 1.0, "neighbors.max_repairs": 2}


@pytest.fixture(scope="module")
def unrepaired_run(embed, digits):
    """Return a finished run whose lists miss neighbours and are not repaired; tests only read it."""
    return embed(digits[0], {**SEAMED, "neighbors.recall_target": 0.0})


@pytest.fixture(scope="module")
def repaired_run(embed, digits):
    """Return a finished run whose lists were repaired twice. It takes 2 to 4 s; tests only read it."""
    return embed(digits[0], REPAIRED)


def recall_of(done, x: np.ndarray, metric: str = "euclidean") -> np.ndarray:
    """Return each row's recall: the share of its list that is no farther than its k-th nearest row."""
    indices, _ = done.neighbors()
    d = cdist(x.astype(np.float64), x.astype(np.float64), metric)
    np.fill_diagonal(d, np.inf)
    limits = np.sort(d, axis=1)[:, K - 1 : K] * (1 + 1e-6) + 1e-9
    return (np.take_along_axis(d, indices, axis=1) <= limits).mean(axis=1)


def lists_of(output: str) -> list[str]:
    """Return the digests of the lists' objects, round by round and cell by cell."""
    store, lists = Run(output, read_only=True), []
    for name in store.committed_parts("audit"):
        if name.startswith("lists-"):
            lists += [name, *sorted(digest for _, digest in store.manifest("audit", name)["objects"].values())]
    return lists


@pytest.fixture
def repaired_copy_job(configure, repaired_run) -> Job:
    """Return the job of a copy of a run that was repaired."""
    config = configure(repaired_run.status["input"]["path"], REPAIRED)
    shutil.copytree(repaired_run.output, config.output)
    return Job(config, pipeline.plan(config).geometry)


# what it says ------------------------------------------------------------------------------------


def test_the_recall_is_that_of_the_exports(unrepaired_run, digits):
    facts, recall = unrepaired_run.facts("audit"), recall_of(unrepaired_run, digits[0])
    assert facts["repairs"] == 0
    assert 0.8 < facts["recall"] < 0.97
    assert facts["recall_low"] <= recall.mean() <= facts["recall_high"]
    assert facts["recall_high"] - facts["recall_low"] < 0.03
    assert facts["recall_across_cells"] < facts["recall"] < facts["recall_within_cells"]
    store = Run(unrepaired_run.output, read_only=True)
    rows = store.read("audit", "report-0", "rows")
    np.testing.assert_allclose(store.read("audit", "report-0", "recall"), recall[rows], atol=1e-6)
    assert facts["recall_p5"] == pytest.approx(np.percentile(recall[rows], 5))
    assert facts["rows_under_half"] == pytest.approx((recall[rows] < 0.5).mean())
    assert not facts["every_row"]


@pytest.mark.parametrize("metric", ["cosine", pytest.param("manhattan", marks=pytest.mark.slow)])
def test_recall_has_no_interval_if_every_row_is_a_query(embed, digits, metric):
    x = digits[0][:600]
    settings = {**SEAMED, "neighbors.metric": metric, "neighbors.recall_target": 0.0}
    done = embed(x, {**settings, "audit.queries": 5000})
    facts, recall = done.facts("audit"), recall_of(done, x, {"manhattan": "cityblock"}.get(metric, metric))
    assert facts["every_row"]
    assert facts["queries"] == 600
    assert facts["recall_low"] == facts["recall_high"] == facts["recall"]
    assert facts["recall"] == pytest.approx(recall.mean(), abs=1e-3)


@pytest.mark.slow
def test_any_of_several_equal_rows_counts_as_found(embed, digits):
    """Cells and pieces tell copies apart, and no list can hold them all."""
    x = np.repeat(digits[0][:12], 60, axis=0) * 37 + 1000
    done = embed(x, {**SEAMED, "cells.max_rows": 100})
    assert done.facts("audit")["recall"] == 1.0
    assert done.facts("audit")["repairs"] == 0


def test_no_queries_mean_no_audit_and_no_repair(embed, digits):
    done = embed(digits[0], {**REPAIRED, "audit.queries": 0})
    assert done.facts("audit") == {"queries": 0, "repairs": 0}
    assert done.facts("quality") == {"queries": 0}
    assert Run(done.output, read_only=True).committed_parts("audit") == []


# queries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "rounds_apart"), [(100, 10), (400, 2), (900, 1), (2000, 0)])
def test_each_audit_draws_rows_of_its_own_while_there_are_others(configure, digits, queries, rounds_apart):
    config = configure(digits[0][:1000], {"audit.queries": queries})
    job, rows = Job(config, pipeline.plan(config).geometry), np.arange(1000)
    drawn = [is_query(job, rows, number, len(rows)) for number in range(4)]
    assert all(abs(d.sum() - min(queries, 1000)) < 5 * np.sqrt(queries) for d in drawn)
    for number in range(1, min(4, rounds_apart)):
        assert not (drawn[number] & drawn[number - 1]).any()
    pieces = [is_query(job, rows[part], 1, len(rows)) for part in (slice(0, 333), slice(333, 1000))]
    assert np.array_equal(np.concatenate(pieces), drawn[1]), "whatever the blocks"
    if queries == 100:
        assert not np.array_equal(drawn[0], hashing.draw_words(1, hashing.QUERIES, rows) < 2**64 // 10), "by the seed"


# repairs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_repairs_raise_recall_and_say_how_far(unrepaired_run, repaired_run, digits):
    facts = repaired_run.facts("audit")
    before, after = recall_of(unrepaired_run, digits[0]).mean(), recall_of(repaired_run, digits[0]).mean()
    assert facts["repairs"] == 2
    assert after > before + 0.35 * (1 - before), (before, facts)
    assert facts["recall_low"] <= after <= facts["recall_high"]
    assert len(facts["recall_by_repair"]) == 3
    assert facts["recall_by_repair"][0] == round(unrepaired_run.facts("audit")["recall"], 4)
    assert facts["recall_by_repair"][2] == round(facts["recall"], 4)
    assert facts["gained"][0] > facts["gained"][1] > 0
    assert facts["left_out"] == [0, 0]


def test_repaired_lists_are_sound_and_what_the_graph_is_of(repaired_run, digits):
    indices, distances = repaired_run.neighbors()
    rows = np.arange(len(indices))[:, None]
    d = cdist(digits[0], digits[0])
    assert ((indices >= 0) & (indices != rows)).all()
    assert all(len(set(row)) == K for row in indices.tolist())
    np.testing.assert_allclose(distances, d[rows, indices], rtol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()
    sums = Run(repaired_run.output, read_only=True).part_facts("graph", "summed-00000")["distance_sums"]
    assert sum(sums) == pytest.approx(distances.sum(dtype=np.float64))
    edges = np.unique(np.sort(np.stack([np.broadcast_to(rows, indices.shape), indices]).reshape(2, -1), axis=0), axis=1)
    assert repaired_run.facts("graph")["edges"] == 2 * edges.shape[1]


def test_rows_that_cells_sent_one_another_are_removed_after_a_repair(repaired_run):
    left = {kind_of(name) for name in Run(repaired_run.output, read_only=True).committed_parts("audit")}
    assert left == {"queries", "search", "exact", "report", "lists", "repair"}
    assert verify(repaired_run.output) == []
    assert Run(repaired_run.output, read_only=True).find_unnamed_keys(RUN_KEYS) == ([], [])


@pytest.mark.slow
def test_repairs_end_where_the_target_is_reached(embed, digits):
    facts = embed(digits[0], {**REPAIRED, "neighbors.recall_target": 0.97, "neighbors.max_repairs": 3}).facts("audit")
    *before, last = facts["recall_by_repair"]
    assert last == pytest.approx(facts["recall"], abs=1e-4)
    assert facts["repairs"] == len(before) in (1, 2)
    assert max(before) < 0.97 <= last


@pytest.mark.slow
def test_a_target_out_of_reach_is_noted(configure, digits):
    """Cells that no row spills from have no list that leads across, so there is nothing to go by."""
    notes = NoteRecorder()
    config = configure(digits[0], {**REPAIRED, "cells.max_cells_per_row": 1, "neighbors.max_repairs": 5})
    status = run(config, observer=notes)
    facts = next(stage["facts"] for stage in status["stages"] if stage["name"] == "audit")
    assert facts["gained"] == [0]
    (message,) = [note for note in notes.notes if note.startswith("audit: ")]
    assert f"recall {facts['recall']:.3f}" in message
    assert "neighbors.recall_target = 1.0 after 1 repairs, the last of which found nothing" in message
    assert "cells.max_cells_per_row or neighbors.max_repairs" in message


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "manhattan"])
def test_repairs_serve_other_metrics(embed, digits, metric):
    done = embed(digits[0][:1000], {**REPAIRED, "neighbors.metric": metric, "neighbors.max_repairs": 1})
    first, last = done.facts("audit")["recall_by_repair"]
    assert last > first
    assert recall_of(done, digits[0][:1000], {"manhattan": "cityblock"}.get(metric, metric)).mean() > first


def test_a_halo_that_is_too_large_is_reduced_and_counted(repaired_copy_job):
    """A cell holds no more rows than its memory does."""
    job, part = repaired_copy_job, "halo-1-00001"
    home_rows = int(np.diff(CellTable(job.run).offsets)[1])
    choose_halo(job, part, 1)
    whole = job.run.read("audit", part, "positions")
    assert job.run.part_facts("audit", part)["left_out"] == 0
    job.run.delete_part("audit", part)
    room = {"task_memory": (home_rows + 10) * repair_row_bytes(64, K, "euclidean")}
    choose_halo(Job(job.config.model_copy(update=room), job.geometry), part, 1)
    facts, cut = job.run.part_facts("audit", part), job.run.read("audit", part, "positions")
    assert len(cut) == 10 < len(whole)
    assert facts["left_out"] == len(whole) - 10
    assert np.isin(cut, whole).all()


# the same bytes ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_inputs_chunks_change_no_list(embed, save, digits, repaired_run):
    done = embed(save(digits[0], 100), {**REPAIRED, "task_memory": 512 * 2**20})
    assert lists_of(done.output) == lists_of(repaired_run.output)
    assert done.y.tobytes() == repaired_run.y.tobytes()


LOST = {
    "the repairs' marks": ["repair-*", "report-1*"],
    "some lists": ["lists-1-00001", "lists-2-00000"],
    "all of the second": ["*-2", "*-2-*"],
}


@pytest.mark.parametrize("what", mark_slow_except(LOST, "some lists"))
def test_lost_parts_of_repairs_are_made_again(repaired_copy_job, repaired_run, what):
    config = repaired_copy_job.config
    manifests = Path(config.output, MANIFESTS)
    for pattern in LOST[what]:
        for path in manifests.glob(f"audit/{pattern}.json"):
            path.unlink()
    uncommit_stages(config.output, STAGES[STAGES.index("audit") :])
    assert run(config)["state"] == "done"
    assert lists_of(config.output) == lists_of(repaired_run.output)
    left = {kind_of(name) for name in Run(config.output, read_only=True).committed_parts("audit")}
    assert left == {"queries", "search", "exact", "report", "lists", "repair"}


def test_home_rows_are_read_by_position(repaired_copy_job, digits):
    job = repaired_copy_job
    table = CellTable(job.run)
    order = np.concatenate([table.positions(job.run, block) for block in range(job.geometry.blocks)])
    by_position = digits[0][np.argsort(order)]
    for cell in range(table.cells):
        first, last = table.offsets[cell : cell + 2]
        x = np.empty((last - first, 64), np.float32)
        read_home_rows(job, cell, table, x)
        np.testing.assert_array_equal(x, by_position[first:last])

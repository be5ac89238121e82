"""The facts of the stage graph: components, degrees, and empty slots of lists."""

from __future__ import annotations

import numpy as np
from helpers import K, NoteRecorder
from scipy import sparse

from dumap.recipe.stage_names import STAGES
from dumap.store import Run


def test_the_graphs_facts_are_those_of_the_exports(embed, digits):
    done = embed(digits[0][:600], {"cells.max_rows": 200})
    facts, (indices, _) = done.facts("graph"), done.neighbors()
    degrees = np.bincount(indices.ravel(), minlength=len(indices))
    graph = sparse.load_npz(done.export("graph", ".npz"))
    count, member = sparse.csgraph.connected_components(graph, directed=False)
    assert facts["components"] == count
    assert facts["largest_component"] == np.bincount(member).max() / len(indices)
    assert facts["greatest_in_degree"] == degrees.max() / K
    assert facts["in_degree_zero"] == (degrees == 0).sum()
    assert facts["missing"] == 0


def test_components_are_counted_over_shards(embed, save):
    rng = np.random.default_rng(0)
    parts = [rng.normal(100 * i, 1, (rows, 4)).astype(np.float32) for i, rows in enumerate((5000, 20, 30))]
    done = embed(save(np.concatenate(parts)), {"neighbors.n_neighbors": 5, "graph.shard_rows": 4096})
    assert done.facts("graph")["components"] == 3
    assert done.facts("graph")["largest_component"] == 5000 / 5050


def test_empty_slots_are_reported(configure, inspect, digits_300):
    """The search leaves none: some lists are cut short by hand."""
    from dumap.recipe import pipeline

    config, listening = configure(digits_300), NoteRecorder()
    pipeline.run(config, observer=listening)
    assert not any("slots" in note for note in listening.notes)
    store = Run(config.output)
    lists = {name: store.read("neighbors", "lists-00000", name) for name in ("indices", "distances")}
    facts = store.part_facts("neighbors", "lists-00000")
    lists["indices"][[5, 8], 3:], lists["distances"][[5, 8], 3:] = -1, np.inf
    store.uncommit("neighbors", "lists-00000")
    with store.part("neighbors", "lists-00000") as out:
        for name, values in lists.items():
            out.write(name, values)
        out.attributes |= {**facts, "missing": 22}
    for stage in STAGES[STAGES.index("graph") :]:
        for part in [*store.committed_parts(stage)]:
            store.uncommit(stage, part)
        store.uncommit("done", stage)
    pipeline.run(config, observer=listening)
    done = inspect(config.output)
    assert done.facts("graph")["missing"] == 22
    assert any("22 slots of the neighbors' lists are empty; 0 of 1 components" in note for note in listening.notes)
    assert np.isfinite(done.y).all()

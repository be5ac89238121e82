"""Digests of stages: a setting changes those of the stages that depend on it, and of what reads them; nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dumap.config import Config, load_config
from dumap.recipe.digests import chain_digests, changed_settings, stage_digest
from dumap.recipe.recipes import SEARCH_RECIPE
from dumap.recipe.stage_names import STAGES
from dumap.stages import settings_of

LOOKS = {"input": {"shape": [1000, 9], "dtype": "float32", "signature": "a"}, "block_rows": 1000}
HOLDS = {"input": {"shape": [1000, 9], "dtype": "float32", "fingerprint": "0"}, "block_rows": 1000}
OTHER: dict[str, Any] = {
    "seed": 1,
    "task_memory": 2**30,
    "input.unique": True,
    "neighbors.metric": "cosine",
    "neighbors.metric_kwds": {"p": 3},
    "neighbors.n_neighbors": 10,
    "neighbors.width": 30,
    "neighbors.recall_target": 0.5,
    "neighbors.max_repairs": 1,
    "cells.max_cells_per_row": 3,
    "cells.max_rows": 5000,
    "graph.local_connectivity": 2.0,
    "graph.set_op_mix_ratio": 0.5,
    "graph.disconnection_distance": 9.0,
    "graph.shard_rows": 4096,
    "start.init": "pca",
    "start.coarse_epochs": 7,
    "layout.seed": 1,
    "layout.n_components": 3,
    "layout.n_epochs": 11,
    "layout.learning_rate": 0.5,
    "layout.min_dist": 0.3,
    "layout.spread": 2.0,
    "layout.a": 1.0,
    "layout.b": 0.9,
    "layout.negative_sample_rate": 7,
    "layout.repulsion_strength": 2.0,
    "layout.exchange_every": 2,
    "layout.least_fall": 0.1,
    "audit.queries": 7,
    "quality.queries": 5,
}
"""Another value of each setting on which a stage depends."""
NO_PART = {"layout.checkpoint_every": 7, "layout.mode": "rounds", "cluster.workers": 3, "cluster.engine": "dask"}


def configured(**settings: Any) -> Config:
    """Build a configuration."""
    return load_config(None, (), {"input.path": "a", "output": "b", **settings})


def digests(config: Config, looks: Any = LOOKS, holds: Any = HOLDS) -> dict[str, str]:
    """Digest the stages of the recipe that searches neighbours."""
    return chain_digests(SEARCH_RECIPE, config, looks, holds)


def downstream(stages: set[str]) -> set[str]:
    """Return stages and all that read them, at once or by way of others."""
    affected = set(stages)
    for stage in SEARCH_RECIPE:
        if affected & set(stage.reads):
            affected.add(stage.name)
    return affected


def changed(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """Name the stages whose digests differ."""
    return {stage for stage in STAGES if one[stage] != other[stage]}


def test_each_setting_of_a_stage_has_another_value_here():
    assert {key for stage in SEARCH_RECIPE for key in stage.setting_keys} == set(OTHER)


@pytest.mark.parametrize("key", OTHER)
def test_a_setting_changes_the_stages_that_depend_on_it_and_what_reads_them(key):
    values = {"layout.b": 0.9, "layout.a": 1.0} if key in ("layout.a", "layout.b") else {key: OTHER[key]}
    if key == "neighbors.metric_kwds":
        values["neighbors.metric"] = "minkowski"
    plain = configured(**{"neighbors.metric": "minkowski"} if key == "neighbors.metric_kwds" else {})
    other = configured(**values)
    keys = {stage_key for stage in SEARCH_RECIPE for stage_key in stage.setting_keys}
    differs = {stage_key for stage_key in keys if settings_of(plain, [stage_key]) != settings_of(other, [stage_key])}
    depend = {stage.name for stage in SEARCH_RECIPE if differs & set(stage.setting_keys)}
    assert key in differs
    assert changed(digests(plain), digests(other)) == downstream(depend)


def test_the_coordinates_follow_min_dist_and_the_graph_does_not():
    stages = changed(digests(configured()), digests(configured(**{"layout.min_dist": 0.5})))
    assert stages == set(STAGES[STAGES.index("start") :])


def test_the_seed_of_the_layout_is_of_the_start_and_the_layout_alone():
    stages = changed(digests(configured()), digests(configured(**{"layout.seed": 5})))
    assert stages == set(STAGES[STAGES.index("start") :])
    assert digests(configured(seed=5)) == digests(configured(**{"seed": 5, "layout.seed": 5}))


def test_fewer_neighbors_of_as_wide_lists_change_the_graph_and_what_follows():
    wide, few = (configured(**{"neighbors.width": 30, "neighbors.n_neighbors": number}) for number in (30, 10))
    assert changed(digests(wide), digests(few)) == set(STAGES[STAGES.index("graph") :])


@pytest.mark.parametrize("key", NO_PART)
def test_engines_and_locations_change_no_digest(key):
    assert digests(configured(**{key: NO_PART[key]})) == digests(configured())


def test_a_setting_at_its_default_is_no_part():
    """So that one that is new changes no digest of runs that were before it."""
    before, stage = digests(configured()), SEARCH_RECIPE[4]
    longer = replace(stage, setting_keys=(*stage.setting_keys, "layout.least_fall"))
    assert changed_settings(longer, configured()) == {}
    assert stage_digest(longer, configured(), {}) == stage_digest(stage, configured(), {})
    assert digests(configured(**{"layout.min_dist": 0.1})) == before


def test_another_version_of_a_stage_changes_what_reads_it():
    newer = tuple(replace(stage, version=2) if stage.name == "audit" else stage for stage in SEARCH_RECIPE)
    assert changed(digests(configured()), chain_digests(newer, configured(), LOOKS, HOLDS)) == downstream({"audit"})


def test_a_copy_of_the_input_comes_to_the_same_but_for_the_first_stage():
    looks = {**LOOKS, "input": {**LOOKS["input"], "signature": "b"}}
    assert changed(digests(configured()), digests(configured(), looks)) == {"vectors"}


def test_other_data_changes_all_that_follows():
    holds = {**HOLDS, "input": {**HOLDS["input"], "fingerprint": "1"}}
    assert changed(digests(configured()), digests(configured(), holds=holds)) == set(STAGES) - {"vectors"}


def test_before_the_input_is_read_only_the_first_stage_has_a_digest():
    assert digests(configured(), holds=None) == {"vectors": digests(configured())["vectors"]}

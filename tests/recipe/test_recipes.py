"""What stages declare is true: the settings they depend on, the stages they read, the parts they write."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zarr
from helpers import mark_slow_except
from sklearn.neighbors import NearestNeighbors

from dumap.artifacts.part_names import kind_of
from dumap.config import Config, InputConfig, build_config
from dumap.recipe import lineage, recipes
from dumap.recipe.pipeline import run
from dumap.recipe.recipes import GIVEN_NEIGHBORS_RECIPE, SEARCH_RECIPE, recipe_of
from dumap.recipe.stage_names import STAGES
from dumap.stages import settings_of
from dumap.store import IDENTITY, Run

MINIMAL = {"input": {"path": "a"}, "output": "b"}
BOTH = {"searched": SEARCH_RECIPE, "given": GIVEN_NEIGHBORS_RECIPE}
SECTION = InputConfig.__mro__[1]
"""The class of which all sections of a configuration are."""
FIGURES_ONLY = {"quality.queries"}
"""Settings that decide only figures: no other stage reads what they change."""


def identity(config: Config) -> dict[str, Any]:
    """Return what a run's answer depends on, by key."""
    settings: dict[str, Any] = {}
    for name, value in config.parameters().items():
        is_section = isinstance(value, dict)
        settings |= {f"{name}.{key}": inner for key, inner in value.items()} if is_section else {name: value}
    return settings


def test_every_setting_of_the_answer_is_declared():
    wide = build_config({**MINIMAL, "neighbors": {"width": 20}})
    assert {key for stage in SEARCH_RECIPE for key in stage.setting_keys} == set(identity(wide)) | FIGURES_ONLY


def test_stages_of_given_neighbors_declare_the_settings_that_decide_the_answer():
    given = build_config({**MINIMAL, "neighbors": {"width": 20, "precomputed": "c"}})
    declared = {key for stage in GIVEN_NEIGHBORS_RECIPE for key in stage.setting_keys}
    assert set(identity(given)) - declared == {"neighbors.max_repairs"}
    assert declared <= set(identity(given)) | FIGURES_ONLY


@pytest.mark.parametrize("recipe", BOTH.values(), ids=BOTH)
def test_stages_read_those_before_them(recipe):
    assert tuple(stage.name for stage in recipe) == STAGES
    for number, stage in enumerate(recipe):
        assert set(stage.reads) <= set(STAGES[:number])
        assert len(set(stage.setting_keys)) == len(stage.setting_keys)


def test_an_unknown_setting_is_an_error():
    with pytest.raises(KeyError, match="n_neighbours"):
        settings_of(build_config(MINIMAL), ["neighbors.n_neighbours"])


@pytest.mark.parametrize(
    ("key", "settings", "same"),
    [
        ("neighbors.width", {"neighbors": {"n_neighbors": 20}}, {"neighbors": {"n_neighbors": 10, "width": 20}}),
        ("graph.shard_rows", {"task_memory": "512MiB"}, {"task_memory": "1GiB"}),
        ("neighbors.precomputed", {"neighbors": {"precomputed": "x"}}, {"neighbors": {"precomputed": "y"}}),
        ("layout.min_dist", {}, {"layout": {"min_dist": 0.1}}),
    ],
)
def test_settings_that_come_to_the_same_are_equal(key, settings, same):
    first, second = (settings_of(build_config({**MINIMAL, **given}), [key]) for given in (settings, same))
    assert first == second


def test_other_settings_differ():
    low, high = (build_config({**MINIMAL, "neighbors": {"n_neighbors": number}}) for number in (10, 20))
    for key in ("neighbors.n_neighbors", "neighbors.width"):
        assert settings_of(low, [key]) != settings_of(high, [key])


def test_a_configuration_chooses_its_recipe():
    assert recipe_of(build_config(MINIMAL)) is SEARCH_RECIPE
    assert recipe_of(build_config({**MINIMAL, "neighbors": {"precomputed": "c"}})) is GIVEN_NEIGHBORS_RECIPE


# what stages do, beside what they declare ----------------------------------------------------------

COUNTED_AS = {
    "graph_k": "neighbors.n_neighbors",
    "search_k": "neighbors.width",
    "width_setting": "neighbors.width",
    "layout_seed": "layout.seed",
}
"""Properties of settings, and the setting that each counts as."""
ONLY_HOW_WORK_IS_CUT = {
    "graph": {"task_memory"},
    "coarsen": {"task_memory", "layout.n_components"},
    "layout": {"task_memory", "neighbors.n_neighbors", "graph.shard_rows"},
    "quality": {"task_memory"},
}
"""Settings that decide how work is cut, and no bytes."""


class Watching:
    """Notes which settings and which stages' parts a stage reads, in whatever thread."""

    def __init__(self) -> None:
        self.stage: str | None = None
        self.settings: dict[str, set[str]] = {}
        self.stages: dict[str, set[str]] = {}
        self.lock = threading.Lock()

    def note(self, into: dict[str, set[str]], what: str) -> None:
        with self.lock:
            if self.stage is not None:
                into.setdefault(self.stage, set()).add(what)

    def watched(self, stage: Any) -> Any:
        def go(context: Any) -> dict:
            self.stage = stage.name
            try:
                return stage.run(context)
            finally:
                self.stage = None

        return replace(stage, run=go)


def section_names() -> dict[type, str]:
    """Return what keys of a section begin with."""
    prefixes = {type(value): f"{name}." for name, value in build_config(MINIMAL)}
    return {kind: prefix for kind, prefix in prefixes.items() if issubclass(kind, SECTION)}


@pytest.fixture
def write_lists(new_path) -> Callable[[np.ndarray, int], str]:
    """Write the nearest others of each row to a new Zarr group."""

    def write(x: np.ndarray, columns: int) -> str:
        distances, indices = NearestNeighbors(n_neighbors=columns + 1).fit(x).kneighbors(x)
        group = zarr.create_group(path := new_path("lists.zarr"))
        group.create_array("indices", data=indices[:, 1:].astype(np.int32))
        group.create_array("distances", data=distances[:, 1:].astype(np.float32))
        return path

    return write


@pytest.fixture
def watching(monkeypatch) -> Watching:
    """Record which settings each stage of a run uses, and which stages' parts it reads."""
    watcher, sections, plain = Watching(), section_names(), SECTION.__getattribute__

    inside = threading.local()

    def get(self: Any, name: str) -> Any:
        if name in COUNTED_AS and not getattr(inside, "it", False):
            watcher.note(watcher.settings, COUNTED_AS[name])
            inside.it = True
            try:
                return plain(self, name)
            finally:
                inside.it = False
        fields = type.__getattribute__(type(self), "__pydantic_fields__")
        if name in fields and name not in sections.values() and not getattr(inside, "it", False):
            watcher.note(watcher.settings, sections.get(type(self), "") + name)
        return plain(self, name)

    monkeypatch.setattr(SECTION, "__getattribute__", get)
    for name in ("read", "read_from_parts", "part_facts"):
        method = getattr(Run, name)

        def read(self: Run, stage: str, *rest: Any, method: Callable = method, **options: Any) -> Any:
            watcher.note(watcher.stages, stage)
            return method(self, stage, *rest, **options)

        monkeypatch.setattr(Run, name, read)
    watched: dict[str, Any] = {}

    def watched_recipe(config: Any) -> tuple:
        for stage in recipe_of(config):
            watched.setdefault(stage.name, watcher.watched(stage))
        return tuple(watched[stage.name] for stage in recipe_of(config))

    for module in (recipes, lineage):
        monkeypatch.setattr(module, "recipe_of", watched_recipe)
    return watcher


RUNS: dict[str, dict[str, Any]] = {
    "repaired": {"cells.max_rows": 150, "neighbors.recall_target": 1.0, "audit.queries": 50},
    "unique": {"input.unique": True, "start.init": "pca", "layout.mode": "rounds", "layout.least_fall": 0.5},
    "canberra": {"neighbors.metric": "canberra", "cells.max_rows": 300, "audit.queries": 20},
    "given": {"neighbors.precomputed": "", "start.init": "random", "layout.exchange_every": 2},
}


@pytest.mark.parametrize("name", mark_slow_except(RUNS, "repaired"))
def test_stages_read_and_write_what_they_declare(digits, configure, write_lists, watching, name):
    settings = {**RUNS[name], "neighbors.n_neighbors": 8, "layout.n_epochs": 5, "cluster.engine": "local"}
    if name == "given":
        settings["neighbors.precomputed"] = write_lists(digits[0][:400], 10)
    config = configure(np.concatenate([digits[0][:400], digits[0][:9]])[: 400 + 9 * (name == "unique")], settings)
    run(config)
    answer, store = {*identity(config), "neighbors.width"}, Run(config.output, read_only=True)
    for stage in recipe_of(config):
        declared = {*stage.setting_keys, *ONLY_HOW_WORK_IS_CUT.get(stage.name, ())}
        assert watching.settings.get(stage.name, set()) & answer <= declared, stage.name
        assert watching.stages.get(stage.name, set()) <= {IDENTITY, stage.name, *stage.reads}, stage.name
        assert {part for part in store.committed_parts(stage.name) if kind_of(part) not in stage.writes} == set()

"""The description of each setting, and whether what it says is true."""

from __future__ import annotations

import ast
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr

from dumap.config import Config, annotated_defaults, build_config, load_config
from dumap.config.keys import fields_by_key, section_of, similar_keys, umap_learn_name
from dumap.errors import ConfigError
from dumap.recipe.pipeline import run
from dumap.recipe.recipes import GIVEN_NEIGHBORS_RECIPE, SEARCH_RECIPE

SETTINGS = {key: field for key, field in fields_by_key().items() if section_of(field) is None}
SECTIONS = [key for key, field in fields_by_key().items() if section_of(field) is not None]
EXAMPLES = {"input": {"path": "DATA.zarr"}, "output": "RUN.zarr"}
CONFIGS = Path(__file__).parents[2] / "configs"


def test_settings_are_found_by_their_keys():
    assert {"seed", "output", "input.path", "layout.min_dist", "cluster.workers"} <= set(SETTINGS)
    assert {f"{key}.{name}" for key in SECTIONS for name in Config.model_fields[key].annotation.model_fields} | {
        "output",
        "seed",
        "task_memory",
        "keep",
        "work",
        "storage",
    } == set(SETTINGS)


@pytest.mark.parametrize("key", fields_by_key())
def test_everything_is_described(key):
    assert len(fields_by_key()[key].description or "") > 10


@pytest.mark.parametrize("key", SETTINGS)
def test_the_description_says_whether_a_setting_changes_the_embedding(key):
    changes = SETTINGS[key].json_schema_extra["changes_embedding"]
    endings = {True: "Changes the embedding.", False: "Does not change the embedding."}
    assert SETTINGS[key].description.endswith(endings.get(changes) or f"Changes the embedding only {changes}.")


NO_SIZE = {"seed", "layout.seed", "cluster.timeout", "cluster.worker_timeout", "cluster.priority"}
"""Numbers of which none is more of anything in the map."""


@pytest.mark.parametrize("key", [key for key in SETTINGS if key not in NO_SIZE])
def test_the_description_of_a_number_says_what_a_larger_one_does(key):
    value = SETTINGS[key].default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_number |= value is None and any(hasattr(limit, "ge") or hasattr(limit, "gt") for limit in SETTINGS[key].metadata)
    assert not is_number or "Larger: " in SETTINGS[key].description or "Smaller: " in SETTINGS[key].description


def test_names_of_umap_learn_are_its_own():
    tree = ast.parse((Path(find_spec("umap").submodule_search_locations[0]) / "umap_.py").read_text())
    umap = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "UMAP")
    init = next(node for node in umap.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    umap_parameters = {arg.arg for arg in init.args.args}
    named = {key: umap_learn_name(field) for key, field in SETTINGS.items()}
    assert {name for name in named.values() if name} <= umap_parameters
    for key, name in named.items():
        last = key.rpartition(".")[2]
        assert name == last or last not in umap_parameters, f"{key} is called as in umap-learn, and does not say so"


# defaults as YAML --------------------------------------------------------------------------------


def test_the_annotated_defaults_load_as_the_defaults(tmp_path):
    file = tmp_path / "defaults.yaml"
    file.write_text(annotated_defaults())
    assert load_config(str(file)) == build_config(EXAMPLES)
    values = yaml.safe_load(annotated_defaults())
    flat = {f"{key}.{name}" for key in SECTIONS for name in values[key]} | (set(values) - set(SECTIONS))
    assert flat == set(SETTINGS), "every setting is there"


@pytest.mark.parametrize("key", fields_by_key())
def test_one_key_is_written_as_in_the_whole(key):
    text, values, whole = (
        annotated_defaults(key),
        yaml.safe_load(annotated_defaults(key)),
        yaml.safe_load(annotated_defaults()),
    )
    for name in key.split("."):
        assert list(values) == [name]
        values, whole = values[name], whole[name]
    assert values == whole
    description = " ".join(line.strip("# ") for line in text.splitlines() if line.strip().startswith("#"))
    assert fields_by_key()[key].description.partition("\n")[0] in description


def test_comments_tell_what_is_allowed_and_fit_a_line():
    assert max(map(len, annotated_defaults().splitlines())) <= 100
    expected = """\
        # The scale of the map. Larger: a wider map, in which min_dist matters less. Ignored if a and b
        # are given.
        # Allowed: above 0. In umap-learn: spread. Changes the embedding.
        spread: 1.0
    """
    assert annotated_defaults("layout.spread") == "layout:\n" + textwrap.indent(textwrap.dedent(expected), "  ")
    assert "# Allowed: 4096 or more, multiples of 4096. " in annotated_defaults("graph.shard_rows")
    assert "# Allowed: auto | host | rounds. " in annotated_defaults("layout.mode")
    assert annotated_defaults("task_memory").endswith("task_memory: 512MiB\n")


# names that are not there ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("neighbours.n_neighbors", "neighbors.n_neighbors"),
        ("layout.n_epoch", "layout.n_epochs"),
        ("layout.min-dist", "layout.min_dist"),
        ("layout.metric", "neighbors.metric"),
        ("min_dist", "layout.min_dist"),
        ("Metric", "neighbors.metric"),
        ("metrc", "neighbors.metric"),
        ("neighbours", "neighbors"),
        ("random_state", "seed"),
        ("precomputed_knn", "neighbors.precomputed"),
        ("cluster.worker", "cluster.workers"),
        ("inptu.path", "input.path"),
        ("cells.max_copies", "cells.max_cells_per_row"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(key, meant):
    assert similar_keys(key)[0] == meant
    with pytest.raises(ConfigError, match=rf"{key}: unknown key; allowed keys: .*; did you mean {meant}\b"):
        annotated_defaults(key)
    with pytest.raises(ConfigError, match=rf"unknown key; .*; did you mean {meant.partition('.')[0]}\b|{meant}"):
        load_config(None, ["input.path=a", "output=b", f"{key}=1"])


@pytest.mark.parametrize("key", ["xyzzy", "layout.xyzzy", ""])
def test_no_key_is_suggested_for_one_unlike_all(key):
    assert similar_keys(key) == []
    with pytest.raises(ConfigError, match=r"unknown key; allowed keys: .*[a-z]$"):
        annotated_defaults(key)


def test_an_unknown_metric_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"no such metric; allowed are: .*; did you mean euclidean\?"):
        build_config({**EXAMPLES, "neighbors": {"metric": "euclidian"}})


# what changes the embedding ----------------------------------------------------------------------

OTHERS = {
    "input.path": "OTHER.zarr",
    "input.array": "pixels",
    "input.missing": "fill",
    "input.nonfinite": "drop",
    "input.unique": True,
    "output": "OTHER.zarr",
    "seed": 1,
    "layout.seed": 1,
    "task_memory": "1GiB",
    "keep": "all",
    "neighbors.n_neighbors": 10,
    "neighbors.metric": "cosine",
    "neighbors.metric_kwds": {"p": 3},
    "neighbors.width": 30,
    "neighbors.recall_target": 0.9,
    "neighbors.max_repairs": 1,
    "neighbors.precomputed": "KNN.zarr",
    "cells.max_cells_per_row": 2,
    "cells.max_rows": 1000,
    "graph.local_connectivity": 2.0,
    "graph.set_op_mix_ratio": 0.5,
    "graph.disconnection_distance": 9.0,
    "graph.shard_rows": 4096,
    "start.init": "pca",
    "start.coarse_epochs": 0,
    "layout.n_components": 3,
    "layout.n_epochs": 10,
    "layout.learning_rate": 0.5,
    "layout.min_dist": 0.2,
    "layout.spread": 2.0,
    "layout.a": 1.5,
    "layout.b": 0.8,
    "layout.negative_sample_rate": 3.0,
    "layout.repulsion_strength": 2.0,
    "layout.exchange_every": 2,
    "layout.least_fall": 0.1,
    "layout.checkpoint_every": 3,
    "layout.mode": "rounds",
    "audit.queries": 10,
    "quality.queries": 3,
    "cluster.engine": "dask",
    "cluster.workers": 2,
    "cluster.memory_limit": "2GiB",
    "cluster.scheduler": "tcp://a:1",
    "cluster.scheduler_file": "s.json",
    "cluster.timeout": 1.0,
    "cluster.worker_timeout": 1.0,
    "cluster.report": "report.html",
    "work": "work.zarr",
    "storage": {"endpoint": "http://localhost:9000"},
    "cluster.resources": {"GPU": 1},
    "cluster.allow_workers": ["node1"],
    "cluster.priority": 5,
    "cluster.task_timeout": 9.0,
}
"""Another value of each setting."""
BESIDE = {
    "neighbors.metric_kwds": {"neighbors.metric": "minkowski"},
    **{key: {"layout.a": 1.0, "layout.b": 1.0} for key in ("layout.a", "layout.b")},
}
"""What has to be set for a value to be allowed."""
DATA = {"input.path", "input.array", "input.dtype"}
"""Settings that name the data, which a run knows by its content."""


def with_settings(key: str, settings: dict) -> Config:
    """Return the defaults with some settings, and what the key needs beside it."""
    return load_config(None, (), {"input.path": "DATA.zarr", "output": "RUN.zarr", **BESIDE.get(key, {}), **settings})


@pytest.mark.parametrize("key", [key for key in SETTINGS if key not in DATA])
def test_a_run_is_of_the_settings_that_are_said_to_change_the_embedding(key):
    same = with_settings(key, {}).digest() == with_settings(key, {key: OTHERS[key]}).digest()
    assert same == (SETTINGS[key].json_schema_extra["changes_embedding"] is False)


@pytest.fixture
def embed_locally(save, new_path, tmp_path, monkeypatch):
    """Run in threads of this process, in an empty folder, where relative locations lie; return the embedding."""
    monkeypatch.chdir(tmp_path)
    quick = {"cluster.engine": "local", "layout.n_epochs": 4, "audit.queries": 0}

    def go(x: np.ndarray, settings: dict) -> np.ndarray:
        output = new_path("run.zarr")
        run(load_config(None, (), {"input.path": save(x), "output": output, **quick, **settings}))
        return zarr.open_array(output, path="embedding", mode="r")[:]

    return go


def test_stages_depend_on_the_settings_that_are_said_to_change_the_embedding():
    declared = {key for stage in (*SEARCH_RECIPE, *GIVEN_NEIGHBORS_RECIPE) for key in stage.setting_keys}
    changing = {key for key in SETTINGS if SETTINGS[key].json_schema_extra["changes_embedding"] is not False}
    assert declared == (changing - DATA) | {"quality.queries"}


def test_settings_that_are_said_not_to_change_the_embedding_do_not(embed_locally):
    """Of shards, where they exchange every epoch."""
    x = np.random.default_rng(0).random((4200, 4), np.float32)
    unchanging = [key for key in SETTINGS if SETTINGS[key].json_schema_extra["changes_embedding"] is False]
    settings = {key: OTHERS[key] for key in unchanging if not key.startswith(("cluster", "output"))}
    assert len(settings) >= 4
    expected = embed_locally(x, {})
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(embed_locally(x, {**settings, "graph.shard_rows": 4096}), expected)


# the files that come with the project ------------------------------------------------------------

CHOSEN = {
    "cluster": {"cluster.scheduler"},
    "one_machine": set(),
    "quickstart": set(),
    "scheduled": {
        "cluster.scheduler_file",
        "cluster.timeout",
        "input.nonfinite",
        "layout.checkpoint_every",
    },
}
"""What the examples set to another value than the default, beside input and output."""


@pytest.mark.parametrize("path", [CONFIGS / f"{name}.yaml" for name in CHOSEN], ids=lambda path: path.stem)
def test_examples_hold_the_defaults_but_for_what_they_are_about(path):
    example = yaml.safe_load(path.read_text())
    keys = {f"{key}.{name}" for key in SECTIONS for name in example.get(key, {})} | (set(example) - set(SECTIONS))
    config, defaults = load_config(str(path)), build_config(EXAMPLES)

    def value(of: Config, key: str) -> object:
        for name in key.split("."):
            of = getattr(of, name)
        return of

    differing = {key for key in keys if value(config, key) != value(defaults, key)}
    assert differing - {"input.path", "output"} == CHOSEN[path.stem]

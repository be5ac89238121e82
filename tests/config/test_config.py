"""The configuration: defaults, what each setting allows, and errors that name the setting."""

from pathlib import Path

import pydantic
import pytest

from dumap.config import METRICS, Config, build_config, describe_differences, load_config, parse_bytes
from dumap.config.annotated import EXAMPLE_CONFIGS as NAMES
from dumap.errors import ConfigError

CONFIGS = [Path(__file__).parents[2] / "configs" / f"{name}.yaml" for name in NAMES]
BASE = {"input": {"path": "in.zarr"}, "output": "out.zarr"}
SET = ("input.path=in.zarr", "output=out.zarr")


def with_value(key: str, value: object) -> dict:
    """Return the least configuration with one key more."""
    *sections, last = key.split(".")
    nested: object = {last: value}
    if sections:
        nested = {sections[0]: {**BASE.get(sections[0], {}), last: value}}
    return {**BASE, **nested}


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("neighbours", "input, output, seed, task_memory, storage, work, keep, neighbors, cells"),
        ("neighbors.neighbours", "n_neighbors, metric, metric_kwds"),
        ("layout.epochs", "n_components, n_epochs, learning_rate"),
        ("input.file", "path, array, dtype, missing, nonfinite"),
        ("cluster.nodes", "workers, memory_limit, scheduler, scheduler_file, timeout, worker_timeout"),
    ],
)
def test_an_unknown_key_is_named_beside_those_allowed(key, allowed):
    with pytest.raises(ConfigError, match=rf"{key}: unknown key; allowed keys: .*{allowed}"):
        build_config(with_value(key, 1))


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("neighbors.n_neighbors", "15"),
        ("neighbors.n_neighbors", 15.5),
        ("neighbors.n_neighbors", True),
        ("neighbors.n_neighbors", 1),
        ("neighbors.n_neighbors", 513),
        ("neighbors.width", 1),
        ("neighbors.width", 513),
        ("neighbors.metric", "euklid"),
        ("neighbors.metric", 2),
        ("neighbors", 15),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "x"),
        ("task_memory", 0),
        ("task_memory", "many"),
        ("task_memory", "1.5 gallons"),
        ("task_memory", None),
        ("input.nonfinite", "ignore"),
        ("input.path", 7),
        ("cells.max_cells_per_row", 0),
        ("graph.set_op_mix_ratio", 1.1),
        ("graph.local_connectivity", -0.1),
        ("graph.disconnection_distance", 0),
        ("graph.shard_rows", 5000),
        ("start.init", "spektral"),
        ("layout.n_components", 0),
        ("layout.n_epochs", 0),
        ("layout.learning_rate", 0.0),
        ("layout.learning_rate", float("nan")),
        ("layout.spread", float("inf")),
        ("layout.min_dist", "0.1"),
        ("layout.mode", "fast"),
        ("audit.queries", -1),
        ("neighbors.recall_target", 1.01),
        ("neighbors.recall_target", -0.1),
        ("neighbors.max_repairs", -1),
        ("neighbors.max_repairs", 10),
        ("cluster.timeout", 0),
        ("output", None),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_key(key, value):
    with pytest.raises(ConfigError) as error:
        build_config(with_value(key, value))
    assert f"\n  {key} = {value!r}: " in str(error.value)
    assert str(error.value).count("\n") == 1
    assert error.value.exit_code == 2


@pytest.mark.fault(37)
def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        build_config({"seed": "x", "input": {"path": "a", "b": 1}, "layout": {"min_dist": -1.0}})
    for fault in ("output: required, and not given", "seed = 'x'", "input.b: unknown key", "layout.min_dist = -1.0"):
        assert fault in str(error.value)


def test_values_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"min_dist \(2.0\) must not exceed spread \(1.0\)"):
        build_config(with_value("layout.min_dist", 2.0))
    with pytest.raises(ConfigError, match="give both a and b, or neither"):
        build_config(with_value("layout.a", 1.0))
    assert build_config({**BASE, "layout": {"a": 1.5, "b": 0.9}}).layout.b == 0.9


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_allowed_is_taken(metric):
    assert build_config(with_value("neighbors.metric", metric)).neighbors.metric == metric


@pytest.mark.parametrize("init", ["spectral", "pca", "random", "start.npy", "start.zarr", "folder/group"])
def test_every_start_allowed_is_taken(init):
    assert build_config(with_value("start.init", init)).start.init == init


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("10B", 10),
        ("2GiB", 2**31),
        ("2 gib", 2**31),
        ("1.5KiB", 1536),
        ("500 MB", 500 * 10**6),
        ("3k", 3000),
        ("1Ti", 2**40),
        (" 7 mib ", 7 * 2**20),
        (4096, 4096),
    ],
)
def test_sizes_are_read_with_their_units(text, size):
    assert parse_bytes(text) == size
    assert build_config(with_value("task_memory", text)).task_memory == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1 GiB 2", "1e9", "1.GiB", "1PiB", "0x10"])
def test_texts_that_are_no_sizes_are_refused(text):
    with pytest.raises(ConfigError, match=r"task_memory = .*not a size"):
        build_config(with_value("task_memory", text))


# files and settings ----------------------------------------------------------------------------


def test_options_win_over_settings_and_settings_over_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("input: {path: file.zarr, array: x}\noutput: out.zarr\nseed: 1\nlayout: {spread: 1, min_dist: 0.5}")
    settings = ("seed=2", "layout.min_dist=0.25", "seed=3", "neighbors.metric=cosine", "layout.n_epochs=7")
    config = load_config(
        str(file), settings, {"seed": 4, "input.path": "option.zarr", "output": None, "layout.n_epochs": 9}
    )
    assert (config.seed, config.layout.min_dist, config.layout.n_epochs) == (4, 0.25, 9)
    assert (config.input.path, config.input.array, config.output) == ("option.zarr", "x", "out.zarr")
    assert config.neighbors.metric == "cosine"
    assert load_config(str(file), settings).seed == 3
    assert load_config(str(file)).seed == 1


def test_settings_are_read_as_yaml():
    more = (
        "neighbors.metric=wminkowski",
        "neighbors.metric_kwds={p: 3, w: [1.0, 2.5]}",
        "layout.n_epochs=null",
        "layout.learning_rate=1.0e-3",
    )
    config = load_config(None, (*SET, *more))
    assert config.neighbors.metric_kwds == {"p": 3, "w": (1.0, 2.5)}
    assert config.layout.n_epochs is None
    assert config.layout.learning_rate == 1e-3


def test_numbers_are_written_as_people_write_them():
    assert load_config(None, (*SET, "layout.learning_rate=1e-3")).layout.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "--set seed: write it as section.key=value"),
        ("seed.x=1", "seed.x: 'seed' is a value, not a section"),
        ("layout={", "--set layout={: the value is not YAML"),
        ("layout.x.y=1", "layout.x: unknown key"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, (*SET, "seed=1", setting))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"input: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"- a\n- b", "must hold keys and values; allowed keys: input, output"),
        (b"just text", "must hold keys and values"),
        (b"", "input: required, and not given"),
        (b"input:\noutput: x", "input.path: required, and not given"),
        (b"input: {path: x}\noutput:", "output = None"),
        (b"1: 2", "1"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        load_config(str(tmp_path / "c.yaml"))


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"cannot read nowhere.yaml: No such file"):
        load_config("nowhere.yaml")


def test_a_section_left_empty_is_its_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("input: {path: in.zarr}\noutput: out.zarr\nlayout:\n")
    assert load_config(str(tmp_path / "c.yaml")) == build_config(BASE)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_files_that_come_with_the_project_load(path):
    config = load_config(str(path))
    assert config.input.path
    assert config.parameters().keys() == build_config(BASE).parameters().keys()


def test_there_are_files_that_come_with_the_project():
    assert len(CONFIGS) >= 4


# the object ------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", [None, *(name for name in Config.model_fields if name not in BASE)])
def test_nothing_can_be_changed(section):
    config = build_config(BASE)
    section_config = getattr(config, section) if section else config
    if not isinstance(section_config, pydantic.BaseModel):
        section_config, field = config, section
    else:
        field = next(iter(type(section_config).model_fields))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(section_config, field, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 43),
        ("task_memory", "1GiB"),
        ("input.unique", True),
        ("neighbors.n_neighbors", 16),
        ("neighbors.width", 16),
        ("neighbors.metric", "minkowski"),
        ("cells.max_cells_per_row", 4),
        ("graph.shard_rows", 4096),
        ("start.init", "pca"),
        ("layout.min_dist", 0.2),
        ("neighbors.recall_target", 0.9),
        ("neighbors.max_repairs", 0),
        ("audit.queries", 5),
        ("neighbors.precomputed", "knn.zarr"),
    ],
)
def test_the_digest_names_what_the_answer_depends_on(key, value):
    assert build_config(with_value(key, value)).digest() != build_config(BASE).digest()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output", "other.zarr"),
        ("input.path", "moved.zarr"),
        ("input.array", "x"),
        ("cluster.workers", 7),
        ("cluster.scheduler", "tcp://a:1"),
        ("layout.mode", "rounds"),
        ("layout.checkpoint_every", 3),
        ("neighbors.width", 15),
        ("seed", 42),
    ],
)
def test_the_digest_does_not_name_what_the_answer_does_not_depend_on(key, value):
    assert build_config(with_value(key, value)).digest() == build_config(BASE).digest()


def test_the_digest_says_that_neighbors_are_given_but_not_where_they_lie():
    """Neither where they lie, nor how cells would have been cut."""
    precomputed = with_value("neighbors.precomputed", "knn.zarr")
    for other in ({"neighbors": {"precomputed": "s3://b/knn.zarr"}}, {"cells": {"max_cells_per_row": 2}}):
        assert build_config({**precomputed, **other}).digest() == build_config(precomputed).digest()
    assert describe_differences(
        build_config(BASE).parameters()["neighbors"], build_config(precomputed).parameters()["neighbors"]
    ) == ["precomputed: None -> True"]


def test_given_neighbors_are_not_of_distinct_rows_alone():
    both = {**with_value("neighbors.precomputed", "knn.zarr"), "input": {"path": "in.zarr", "unique": True}}
    with pytest.raises(ConfigError, match=r"input.unique = true does not go with neighbors.precomputed.*: set input.u"):
        build_config(both)
    assert build_config({**both, "neighbors": {"precomputed": None}}).input.unique
    assert not build_config({**both, "input": BASE["input"]}).input.unique


def test_differences_are_told_key_by_key():
    old, new = (
        build_config(BASE),
        build_config({**BASE, "seed": 1, "layout": {"min_dist": 0.2}, "neighbors": {"n_neighbors": 5}}),
    )
    assert describe_differences(old.parameters(), old.parameters()) == []
    assert describe_differences(old.parameters(), new.parameters()) == [
        "layout.min_dist: 0.1 -> 0.2",
        "neighbors.n_neighbors: 15 -> 5",
        "seed: 42 -> 1",
    ]
    assert describe_differences({"a": {"b": 1}}, {"a": {"c": 2}}) == ["a.b: 1 -> None", "a.c: None -> 2"]

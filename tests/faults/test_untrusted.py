"""Stores and configurations made to do harm: nothing in them is run, nothing outside the output is touched."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path

import cloudpickle
import numcodecs.pickles
import numpy as np
import pytest
import zarr
from helpers import mark_slow_except

from dumap import store
from dumap.config import FrozenDict, build_config, load_config
from dumap.config.metrics import ARGUMENT_AXES, METRICS, ordered_arguments
from dumap.errors import ConfigError, DumapError, InputError, StorageError
from dumap.recipe import damage
from dumap.recipe.pipeline import plan
from dumap.sources.zarr_array import ArrayInput
from dumap.store import IDENTITY, MANIFESTS, PARTS, Run, manifest_key
from dumap.store.objects import digest, seal
from dumap.store.stored_array import StoredArray

MINIMAL = {"input": {"path": "in.zarr"}, "output": "out.zarr"}
LONGEST_MESSAGE = 10_000


class Bomb:
    """What makes a folder once it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path) -> Path:
    """Return the path of a folder that only a program hidden in data would make."""
    return tmp_path / "harmed"


# chunks that are programs ------------------------------------------------------------------------


@pytest.fixture
def trusting(monkeypatch) -> None:
    """Switch off the guard of numcodecs against pickles, as in its earlier versions."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)


PICKLE, TEXT = {"id": "pickle", "protocol": 5}, {"id": "vlen-utf8"}
FORMS = {
    "numbers, filter": {"dtype": "<f4", "filters": [PICKLE], "compressor": None},
    "numbers, compressor": {"dtype": "<f4", "filters": None, "compressor": PICKLE},
    "text, filter": {"dtype": "|O", "filters": [TEXT, PICKLE], "compressor": None},
    "text, compressor": {"dtype": "|O", "filters": [TEXT], "compressor": PICKLE},
}


def pickled(path: Path, mark: Path, form: str, name: str = "vectors", rows: int = 40) -> str:
    """Write a version 2 array whose chunks are unpickled by whom reads them."""
    (path / name).mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    shape = {"shape": [rows, 3], "chunks": [rows, 3], "fill_value": 0 if "numbers" in form else "", "order": "C"}
    (path / name / ".zarray").write_text(json.dumps({"zarr_format": 2, **shape, **FORMS[form]}))
    (path / name / "0.0").write_bytes(pickle.dumps(Bomb(mark)))
    return str(path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [False, True], ids=["group", "array"])
def test_no_chunk_is_unpickled(trusting, tmp_path, mark, cli, form, whole):
    path = pickled(tmp_path / "in.zarr", mark, form) + ("/vectors" if whole else "")
    with pytest.raises(InputError, match="pickle"):
        ArrayInput(path, "vectors")
    with pytest.raises(InputError, match="pickle"):
        store.read_array(str(tmp_path / "in.zarr" / "vectors"))
    assert cli("run", "--input", path, "--output", tmp_path / "run.zarr").code == 3
    assert not mark.exists()
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("form", ["text, filter", "text, compressor"])
def test_a_pickled_chunk_would_harm(trusting, tmp_path, mark, form):
    """Else the tests around it would tell nothing."""
    path = pickled(tmp_path / "in.zarr", mark, form) + "/vectors"
    with pytest.raises(Exception, match=r".*"):
        zarr.open_array(path, mode="r")[...]
    assert mark.exists()


@pytest.mark.parametrize("kind", ["embedding", "status"])
def test_no_chunk_of_a_runs_result_is_unpickled(trusting, run, mark, kind):
    pickled(Path(run.location), mark, "text, compressor", kind)
    with pytest.raises(StorageError):
        run.read_final(kind, "embedding")
    with run.part(IDENTITY, "results") as out:
        out.objects[f"{kind}/.zarray"] = [0, "0"]
    with pytest.raises(StorageError):
        run.read_final(kind, "embedding")
    assert not mark.exists()


def test_an_array_beside_that_no_one_can_read_hides_no_other(tmp_path, mark):
    path = pickled(tmp_path / "in.zarr", mark, "numbers, filter", "odd")
    zarr.open_group(path, zarr_format=2).create_array("vectors", data=np.ones((40, 3)), chunks=(40, 3))
    assert ArrayInput(path, "vectors").rows == 40
    with pytest.raises(InputError, match=r"no array 'pixels' in .*in\.zarr"):
        ArrayInput(path, "pixels")


@pytest.mark.parametrize("codec", ["pickle", "numcodecs.pickle"])
def test_no_codec_of_that_name_is_taken_in_version_3(tmp_path, mark, codec):
    path = tmp_path / "in.zarr"
    zarr.create_array(path, shape=(40, 3), chunks=(40, 3), dtype="f4")
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["codecs"].append({"name": codec, "configuration": {}})
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(DumapError):
        ArrayInput(str(path), "vectors")


def test_no_object_in_a_file_of_numbers_is_unpickled(tmp_path, mark):
    file = tmp_path / "labels.npy"
    np.save(file, np.array([Bomb(mark)], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"labels\.npy"):
        store.read_array(str(file))
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\x80\x04.", b"\x93NUMPY\x01\x00\x02\x00{}", b"text"], ids=repr
)
def test_a_file_that_holds_no_numbers_is_named(tmp_path, content):
    file = tmp_path / "labels.npy"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"labels\.npy"):
        store.read_array(str(file))


def test_a_file_that_claims_to_be_vast_takes_no_memory(tmp_path):
    file = tmp_path / "labels.npy"
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10**5)})
    with pytest.raises(InputError, match=r"labels\.npy"):
        store.read_array(str(file))


# YAML --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:builtins.open [{mark}, w]",
        "!!python/object/new:builtins.open [{mark}, w]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
        "!open {mark}",
    ],
)
def test_no_tag_of_yaml_makes_an_object(tmp_path, mark, tag):
    text = tag.format(mark=mark)
    file = tmp_path / "c.yaml"
    file.write_text(f"input: {{path: in.zarr}}\noutput: out.zarr\nseed: {text}\n")
    with pytest.raises(ConfigError, match="is not YAML: could not determine a constructor"):
        load_config(str(file))
    with pytest.raises(ConfigError, match="the value is not YAML: could not determine a constructor"):
        load_config(None, ("input.path=in.zarr", "output=out.zarr", f"seed={text}"))
    assert not mark.exists()


def bomb(levels: int = 12, width: int = 9) -> str:
    """Write YAML of a few hundred bytes that stands for 9^12 values."""
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines) + f"\nseed: *a{levels - 1}\n"


KEYS = (
    *("seed", "output", "task_memory", "layout", "input", "neighbors.metric", "neighbors.metric_kwds"),
    *("layout.n_epochs", "start.init", "cluster.scheduler", "cells.max_rows", "input.nonfinite"),
)


@pytest.mark.timeout(60)  # it would take hours, and all memory
@pytest.mark.parametrize("key", KEYS)
def test_values_that_YAML_aliases_multiply_are_not_written_out(tmp_path, key):
    *section, last = key.split(".")
    levels = 12
    place = f"{section[0]}:\n  {last}: *a{levels - 1}\n" if section else f"{last}: *a{levels - 1}\n"
    lines = bomb(levels).splitlines()[:-1]
    file = tmp_path / "c.yaml"
    file.write_text("\n".join(lines) + "\n" + place)
    with pytest.raises(ConfigError) as error:
        load_config(str(file))
    assert len(str(error.value)) < LONGEST_MESSAGE


def test_a_value_that_holds_itself_is_refused(tmp_path):
    file = tmp_path / "c.yaml"
    for key in ("seed", "neighbors", "output", "input"):
        file.write_text(f"{key}: &a [*a]\n")
        with pytest.raises(ConfigError):
            load_config(str(file))
    file.write_text("neighbors:\n  metric_kwds: &a {p: *a}\n")
    with pytest.raises(ConfigError, match="metric_kwds"):
        load_config(str(file))


@pytest.mark.parametrize(
    "value",
    [
        *("9" * 5000, "0x" + "f" * 5000, "-" + "9" * 5000, "1e999", "[" * 500, "2020-13-45", "!!int x", "!!bool x"),
        *("!!float x", "!!timestamp x", "!!binary x", "{[1]: 2}", "? {a: 1}", '"\\ud800"', "<<: 1", "{<<: 1}", "&a"),
    ],
    ids=lambda value: value[:12],
)
def test_odd_yaml_is_a_sentence(tmp_path, value):
    file = tmp_path / "c.yaml"
    for key in ("seed", "output", "task_memory"):
        file.write_text(f"input: {{path: in.zarr}}\n{key}: {value}\n")
        with pytest.raises(ConfigError) as error:
            load_config(str(file))
        assert len(str(error.value)) < LONGEST_MESSAGE
    with pytest.raises(ConfigError) as error:
        load_config(None, ("input.path=in.zarr", f"seed={value}"))
    assert len(str(error.value)) < LONGEST_MESSAGE


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "values",
    [
        {"seed": LONG},
        {"seed": {LONG: LONG}},
        {LONG: 1},
        {f"{n}{LONG}": 1 for n in range(100)},
        {"neighbors": {"metric": LONG}},
        {"neighbors": {"metric_kwds": {LONG: 1.0}}},
        {"neighbors": {"metric": "minkowski", "metric_kwds": {"p": [1.0] * 100_000}}},
        {"start": {"init": LONG}},
        {"start": {"init": f"/{LONG}.npy"}},
        {"output": LONG},
        {"input": {"path": LONG}},
        {"input": {"path": "x", "array": LONG}},
        {"task_memory": "9" * 5000},
        {"task_memory": 16**5000},
        {"layout": [LONG] * 1000},
        {"cluster": {"scheduler": LONG}},
    ],
    ids=lambda values: "-".join(map(str, values))[:30],
)
def test_a_long_value_makes_no_long_message(values):
    with pytest.raises(ConfigError) as error:
        build_config({**MINIMAL, **values})
    assert len(str(error.value)) < LONGEST_MESSAGE


def test_long_settings_make_no_long_message(tmp_path):
    for setting in (LONG, f"{LONG}=[", f"seed.{LONG}=1", f"seed={LONG}", f"seed=[{LONG}"):
        with pytest.raises(ConfigError) as error:
            load_config(None, ("input.path=in.zarr", "output=x", "seed=1", setting))
        assert len(str(error.value)) < LONGEST_MESSAGE
    with pytest.raises(ConfigError) as error:
        load_config(LONG)
    assert len(str(error.value)) < LONGEST_MESSAGE


# paths -------------------------------------------------------------------------------------------

PATHS = {
    "input.path": lambda value: {"input": {"path": value}},
    "input.array": lambda value: {"input": {"path": "x", "array": value}},
    "output": lambda value: {"output": value},
    "start.init": lambda value: {"start": {"init": value}},
    "neighbors.precomputed": lambda value: {"neighbors": {"precomputed": value}},
    "cluster.scheduler": lambda value: {"cluster": {"scheduler": value}},
    "cluster.scheduler_file": lambda value: {"cluster": {"scheduler_file": value}},
}


@pytest.mark.parametrize(
    "value", ["", "a/\0", "a/b\nc", "/\x1b[2J", "a/\x7f", "/" * 5000, "a/\ud800", 7, ["a", 7], True, {}]
)
@pytest.mark.parametrize("key", PATHS)
def test_impossible_paths_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"{key} = ") as error:
        build_config({**MINIMAL, **PATHS[key](value)})
    message = str(error.value)
    assert not any(ord(c) < 32 and c != "\n" for c in message)
    assert message.count("\n") == 1


@pytest.mark.parametrize("value", ["ä/ö.zarr", "with blank/x.npy", "a'b/c", "~/x", "s3://b/c.zarr", "/a/\udcff"])
def test_odd_paths_that_can_be_are_taken(value):
    assert build_config({**MINIMAL, "output": value, "input": {"path": value}}).output == value


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + "/b.zarr", "~nobody/" + "b" * 300])
def test_paths_that_the_disk_refuses_are_named(cli, save, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = save(np.ones((40, 3), np.float32))
    for options in (("--input", data, "--output", name), ("--input", name, "--output", "out.zarr")):
        outcome = cli("run", *options)
        assert outcome.code in (2, 3, 6), outcome
    for command in (("status", name), ("verify", name), ("export", name, "embedding", "x.npy")):
        assert cli(*command).code in (2, 6), command
    assert not Path("out.zarr").exists()


@pytest.mark.parametrize("array", ["..", "../other", "/../other", "a/../../other", "/", ".", "//"])
def test_the_arrays_name_leads_nowhere_else(tmp_path, array):
    for name in ("in.zarr", "other"):
        zarr.create_group(tmp_path / name)
    zarr.create_array(tmp_path / "other" / "vectors", data=np.ones((40, 3)))
    for name in (array, f"{array}/vectors"):
        with pytest.raises(InputError, match=r"input\.array: "):
            ArrayInput(str(tmp_path / "in.zarr"), name)


@pytest.mark.parametrize("kind", mark_slow_except(["object", "text", "complex", "huge", "flat"], "object", "text"))
def test_a_start_that_is_no_coordinates_is_refused(embed, new_path, mark, kind):
    values = {
        "object": np.array([[Bomb(mark), 1]] * 40, object),
        "text": np.full((40, 2), "a"),
        "complex": np.ones((40, 2), complex),
        "huge": np.tile([[1.7e308, 0], [-1.7e308, 1]], (20, 1)),
        "flat": np.ones(80),
    }[kind]
    file = new_path("start.npy")
    np.save(file, values, allow_pickle=True)
    with pytest.raises(DumapError) as error:
        embed(np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), {"start.init": file})
    assert error.value.exit_code in (2, 3)
    assert "start.npy" in str(error.value)
    assert not mark.exists()


# runs --------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Run:
    """Return a run that has been created and holds nothing yet."""
    run = Run(str(tmp_path / "run.zarr"))
    run.create({"seed": 42, "parameters": {}, "input": {}, "versions": {}})
    return run


@pytest.fixture
def victim(tmp_path) -> Path:
    """Make a folder beside the run that nothing may change."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("years of work")
    shard = StoredArray.of(np.arange(4), 4)
    (folder / "a").write_bytes(b"".join(map(bytes, shard.pieces(np.arange(4)))))
    return folder


OBJECT = f"{PARTS}/layout/p-00000000"


def forge(run: Run, stage: str, part: str, **fields) -> None:
    """Commit a manifest that says what is wanted, its digest right."""
    manifest = {"attempt": "00000000", "arrays": {}, "objects": {}, "attributes": {}, "time": 0.0, **fields}
    run.put(manifest_key(stage, part), seal(manifest))


OUTSIDE = [
    "../victim/file",
    "{victim}/file",
    f"{PARTS}/layout/../../../../victim/file",
    f"{PARTS}/layout/p-00000000/../../../../../victim/file",
    "../victim",
]


def mend(run: Run) -> None:
    """Do all that removes anything: uncommit what is damaged, and clean."""
    with contextlib.suppress(DumapError):
        damage.uncommit_damage(run.location, damage.verify(run.location), print)
    with contextlib.suppress(DumapError):
        damage.clean(run.location, print)


@pytest.mark.parametrize("key", OUTSIDE)
def test_nothing_outside_is_removed(run, victim, contents, key):
    before = contents(str(victim))
    run.put(f"{PARTS}/layout/p-00000000/a", b"x")  # so that the folders on the way are there
    forge(run, "layout", "p", objects={key.format(victim=victim): [1, "0"]})
    mend(run)
    assert contents(str(victim)) == before
    assert damage.verify(run.location) == []


@pytest.mark.parametrize("attempt", ["00000000/../../../victim", "/../../../victim", "00000000/../../../victim/"])
def test_no_discarded_part_lies_outside(run, victim, contents, attempt):
    before = contents(str(victim))
    for part in ("p-00000000", "p-"):
        run.put(f"{PARTS}/layout/{part}/a", b"x")
    forge(run, "layout", "p", attempt=attempt, objects={f"{PARTS}/layout/p-{attempt}": [1, "0"]})
    with pytest.raises(StorageError):
        run.delete_part("layout", "p")
    assert contents(str(victim)) == before


@pytest.mark.parametrize(
    "path", ["../victim/a", "{victim}/a", "layout/../../victim/a", f"{PARTS}/layout/../../../../victim/a"]
)
def test_no_array_is_read_outside(run, victim, path):
    run.put(f"{PARTS}/layout/p-00000000/a", b"x")
    path = path.format(victim=victim)
    data = (victim / "a").read_bytes()
    forge(run, "layout", "p", arrays={"a": [[path, 0, [4], "<i8"]]}, objects={path: [len(data), digest(data)]})
    with pytest.raises(StorageError):
        run.read("layout", "p", "a")


@pytest.mark.parametrize(
    "fields",
    [
        {"attempt": 7},
        {"attempt": None},
        {"arrays": []},
        {"arrays": {"a": OBJECT}},
        {"arrays": {"a": []}},
        *({"arrays": {"a": [[path, 0, [0], "<i8"]]}} for path in ("../victim/a", "/victim/a", "", "a/../../victim/a")),
        {"arrays": {"a": [7]}},
        {"arrays": {"a": [OBJECT]}},
        {"arrays": {"a": [[OBJECT, 0, [0]]]}},
        {"arrays": {"a": [[7, 0, [0], "<i8"]]}},
        *({"arrays": {"a": [[OBJECT, at, [0], "<i8"]]}} for at in (-1, 37, 0.0, None, True, "0", [])),
        *({"arrays": {"a": [[OBJECT, 0, [0], dtype]]}} for dtype in ("|O", ">i8", "", None, 8, [], {})),
        *({"arrays": {"a": [[OBJECT, 0, shape, "<i8"]]}} for shape in ([-1], [0.0], [], 0, None, [0, 0])),
        {"arrays": {"a": [[OBJECT, 0, [0], "<i8"], [OBJECT, 0, [0], "<f8"]]}},
        {"arrays": {"a": [[OBJECT, 0, [0], "<i8"], [OBJECT, 0, [0, 2], "<i8"]]}},
        {"arrays": {"a": [[OBJECT, 1, [4], "<i8"]]}},
        {"arrays": {"a": [[OBJECT, 0, [5], "<i8"]]}},
        {"arrays": {"a": [[OBJECT, 0, [2**62], "<i8"]]}},
        {"arrays": {"a": [[f"{OBJECT}.1", 0, [0], "<i8"]]}},
        {"objects": []},
        {"objects": {OBJECT: 7}},
        {"objects": {OBJECT: ["x", 7]}},
        {"objects": {"": [1, "0"]}},
        {"attributes": []},
    ],
    ids=str,
)
def test_a_manifest_of_another_shape_is_damage(run, cli, fields):
    data = bytes(36)
    run.put(OBJECT, data)
    forge(run, "layout", "p", **{"objects": {OBJECT: [len(data), digest(data)]}, **fields})
    assert cli("verify", run.location).code == 1
    assert cli("clean", run.location).code in (0, 6)
    mend(run)
    assert cli("verify", run.location).code == 0


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b"7", b"{", b"\xff", b'{"manifest": [], "digest": 0}', b"[" * 100_000]
)
def test_a_manifest_that_is_none_is_damage(run, cli, content):
    run.put(f"{MANIFESTS}/layout/p.json", content)
    assert cli("verify", run.location).code == 1
    assert cli("clean", run.location).code in (0, 6)
    mend(run)
    assert cli("verify", run.location).code == 0


def refused_by_all(cli, data: str, location: str) -> None:
    """Assert that every command refuses a run."""
    for command in (
        ("status", location),
        ("run", "--input", data, "--output", location),
        ("export", location, "embedding", "x.npy"),
        ("clean", location),
    ):
        outcome = cli(*command)
        assert outcome.code in (2, 6, 7), (command, outcome)


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"{}", b"7", b"{", b"\xff", b'{"attributes": []}', b'{"attributes": 7}', b'{"attributes": {}}'),
        b"[" * 100_000,
        b'{"attributes": {"format": 2, "parameters": 7, "input": 7, "versions": 7}}',
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_group_that_is_no_run_is_refused(tmp_path, save, cli, content):
    file = tmp_path / "run.zarr" / "zarr.json"
    file.parent.mkdir()
    file.write_bytes(content)
    refused_by_all(cli, save(np.ones((40, 3), np.float32)), str(file.parent))
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "attributes",
    [{}, {"format": [2]}, {"format": 2}, {"format": 2, "parameters": 7, "input": 7, "versions": 7}],
    ids=str,
)
def test_a_run_of_another_shape_is_refused(run, save, cli, attributes):
    forge(run, IDENTITY, "run", attributes=attributes)
    refused_by_all(cli, save(np.ones((40, 3), np.float32)), run.location)


# the configuration is one thing, for good --------------------------------------------------------


def test_a_metrics_arguments_cannot_be_changed():
    given = {"p": 3, "w": [1.0, 2.0]}
    config = build_config({**MINIMAL, "neighbors": {"metric": "wminkowski", "metric_kwds": given}})
    kwds, digest = config.neighbors.metric_kwds, config.digest()
    given["w"].append(3.0)
    for change in (
        lambda: kwds.__setitem__("p", 1.0),
        lambda: kwds.__delitem__("p"),
        lambda: kwds.update(p=1.0),
        lambda: kwds.pop("p"),
        lambda: kwds.popitem(),
        lambda: kwds.setdefault("q", 1.0),
        lambda: kwds.clear(),
        lambda: kwds.__ior__({"p": 1.0}),
        lambda: kwds["w"].__setitem__(0, 9.0),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change()
    assert config.digest() == digest
    assert kwds == {"p": 3.0, "w": (1.0, 2.0)}
    assert build_config(MINIMAL).neighbors.metric_kwds == {}
    with pytest.raises(TypeError, match="cannot be changed"):
        build_config(MINIMAL).neighbors.metric_kwds["p"] = 1.0


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_a_configuration_travels_as_it_is(dumps):
    values = {"metric": "wminkowski", "metric_kwds": {"p": 3, "w": [1.0, 2.0]}}
    config = build_config({**MINIMAL, "neighbors": values})
    there = pickle.loads(dumps(config))
    assert there == config
    assert there.digest() == config.digest()
    assert isinstance(there.neighbors.metric_kwds, FrozenDict)
    written = json.loads(json.dumps(config.parameters()))
    assert written == config.parameters()
    assert written["neighbors"] == {**build_config(MINIMAL).parameters()["neighbors"], **values}


# a metric's arguments ----------------------------------------------------------------------------

SQUARE = [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
VALUES = {"p": 3.0, "w": [1.0, 2.0, 3.0], "sigma": [1.0, 2.0, 3.0], "vinv": SQUARE, "cost": SQUARE}


@pytest.mark.parametrize(
    ("metric", "given", "message"),
    [
        ("euclidean", {"p": 3}, "metric euclidean has no argument 'p'; it takes none"),
        ("minkowski", {"q": 3}, "metric minkowski has no argument 'q'; its arguments are p"),
        ("minkowski", {"p": [3]}, "metric_kwds.p: metric minkowski takes a number"),
        ("minkowski", {"p": 0}, "metric_kwds.p must be above 0"),
        ("minkowski", {"p": "3"}, "write a finite number"),
        ("minkowski", {"p": float("nan")}, "write a finite number"),
        ("minkowski", {"p": float("inf")}, "write a finite number"),
        ("minkowski", {"p": 10**400}, "write a finite number"),
        ("minkowski", {"p": True}, "write a finite number"),
        ("minkowski", [3], "write the metric's arguments as keys and values"),
        ("minkowski", None, "write the metric's arguments as keys and values"),
        ("seuclidean", {"sigma": 1}, "metric seuclidean takes a list of numbers, one a dim"),
        ("seuclidean", {"sigma": [1, 0]}, "metric_kwds.sigma must be above 0"),
        ("wminkowski", {"w": [1, -1]}, "metric_kwds.w must be 0 or more"),
        ("wminkowski", {"w": [[1, 1]]}, "metric wminkowski takes a list of numbers"),
        ("mahalanobis", {"vinv": [1, 2]}, "metric mahalanobis takes a matrix of numbers, dims x dims"),
        ("mahalanobis", {"vinv": [[1, 2], [3]]}, "metric mahalanobis takes a matrix"),
        ("mahalanobis", {"vinv": [[[1]]]}, "write a finite number"),
        ("mahalanobis", {"vinv": []}, "write a finite number"),
        ("circular_wasserstein", {"p": 1.5}, "takes 1, or 2 and more"),
    ],
)
def test_an_argument_that_the_metric_does_not_take_is_refused(metric, given, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build_config({**MINIMAL, "neighbors": {"metric": metric, "metric_kwds": given}})


@pytest.mark.parametrize("metric", ARGUMENT_AXES)
def test_no_metric_reads_beyond_its_arguments(save, configure, metric):
    """Compiled distances check no bounds: one of the wrong size would read what lies behind it."""
    x = np.abs(np.random.default_rng(0).normal(size=(40, 3))).astype(np.float32)
    for name, axes in ARGUMENT_AXES[metric].items():
        if axes:
            short = {"w": [1.0], "sigma": [1.0], "vinv": [[1.0]], "cost": [[1.0]]}[name]
            for kwds in ({}, {name: short}):
                with pytest.raises(ConfigError, match=f"metric_kwds.{name}: metric {metric} needs 3.* numbers"):
                    plan(configure(x, {"neighbors.metric": metric, "neighbors.metric_kwds": kwds}))
    kwds = {name: VALUES[name] for name in reversed(ARGUMENT_AXES[metric])}
    plan(configure(x, {"neighbors.metric": metric, "neighbors.metric_kwds": kwds}))
    ordered = ordered_arguments(
        metric, build_config({**MINIMAL, "neighbors": {"metric": metric, "metric_kwds": kwds}}).neighbors.metric_kwds, 3
    )
    assert list(ordered) == list(ARGUMENT_AXES[metric])


def test_every_argument_that_a_metric_takes_is_known():
    """pynndescent's own signatures, so that a new argument of it is not read from nowhere."""
    import inspect

    from pynndescent.distances import named_distances

    for metric in METRICS:
        names = list(inspect.signature(named_distances[metric].py_func).parameters)[2:]
        assert list(ARGUMENT_AXES.get(metric, {})) == [name for name in names if name != "max_iter"], metric

"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr

import dumap
from dumap.config import parse_bytes
from dumap.errors import missing_packages
from dumap.planning.budget import PAUSE_FRACTION


@pytest.fixture(scope="module")
def data(digits, save):
    """Save 300 digits; return their path."""
    return save(digits[0][:300])


@pytest.fixture
def places(data, new_path):
    """Return the options of a short run: input, output and settings."""
    quick = ["--set", "layout.n_epochs=20", "--set", "audit.queries=30"]
    return ["--input", data, "--output", new_path("run.zarr"), *quick]


@pytest.fixture
def refused(cli):
    """Return a function that calls a command that must fail: with an exit code and a message, and no traceback."""

    def call(code: int, *arguments: str) -> str:
        output = Path(arguments[arguments.index("--output") + 1]) if "--output" in arguments else None
        before = output is not None and output.exists()
        outcome = cli(*arguments)
        assert (outcome.code, outcome.out) == (code, ""), outcome
        assert "Traceback" not in outcome.err
        assert "unexpected" not in outcome.err
        assert output is None or output.exists() == before, "the output was touched"
        return outcome.err

    return call


# what the commands do ----------------------------------------------------------------------------


def test_help_names_commands_and_codes(cli):
    outcome = cli("--help")
    assert outcome.code == 0
    for text in ("plan", "run", "status", "export", "verify", "Exit codes", "--debug"):
        assert text in outcome.out


def test_plan_prints_numbers_and_starts_nothing(cli, places):
    text, machine = cli("plan", *places), cli("plan", *places, "--json")
    assert text.code == machine.code == 0
    plan = json.loads(machine.out)
    assert (plan["rows"], plan["dims"], plan["n_epochs"]) == (300, 64, 20)
    assert plan["peak_bytes"] == max(stage["peak_bytes"] for stage in plan["stages"])
    assert "300 rows x 64 dims" in text.out
    assert all(stage["name"] in text.out for stage in plan["stages"])
    assert not Path(places[3]).exists()


@pytest.mark.slow
def test_run_status_export_verify(cli, client, places, new_path):
    address = ["--scheduler", client.scheduler.address]
    ran = cli("run", *places, *address)
    assert ran.code == 0
    assert places[3] in ran.out
    again = cli("run", *places, *address, "--json")
    status = cli("status", places[3], "--json")
    assert json.loads(again.out) == json.loads(status.out)
    stages = json.loads(status.out)["stages"]
    assert [s["name"] for s in stages][-1] == "quality"
    for stage in stages:
        assert {"name", "state", "seconds", "projected_bytes", "peak_bytes"} <= set(stage)
        assert stage["state"] == "done"
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"]
    text = cli("status", places[3])
    assert "recall:" in text.out
    assert "components: 1\n" in text.out
    verified = cli("verify", places[3])
    assert (verified.code, verified.out) == (0, "all objects are as they were written\n")
    out = new_path("map.npy")
    assert cli("export", places[3], "embedding", out).code == 0
    np.testing.assert_array_equal(np.load(out), zarr.open_array(places[3], path="embedding", mode="r")[:])
    picture = new_path("map.png")
    assert cli("export", places[3], "picture", picture).code == 0
    assert Path(picture).read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def written(data, new_path):
    """Write a file of values for a run of three components; return its path and the output's."""

    def write(n_epochs: int, **more) -> tuple[str, str]:
        file, output = new_path("run.yaml"), new_path("run.zarr")
        layout = {"n_epochs": n_epochs, "n_components": 3}
        values = {"input": {"path": data}, "output": output, "seed": 1, "layout": layout, **more}
        Path(file).write_text(yaml.safe_dump(values))
        return file, output

    return write


def test_options_win_over_settings_and_those_over_the_file(cli, written):
    file, _ = written(7, cells=None)
    planned = json.loads(cli("plan", file, "--set", "layout.n_epochs=9", "--json").out)
    assert (planned["n_epochs"], planned["rows"]) == (9, 300)
    assert "no_such" in cli("plan", file, "--input", "no_such.zarr").err


def test_run_with_a_file(cli, client, written):
    file, output = written(20, audit={"queries": 0}, cluster={"scheduler": client.scheduler.address})
    outcome = cli("run", file, "--seed", "5", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["parameters"]["seed"] == 5
    assert zarr.open_array(output, path="embedding", mode="r").shape == (300, 3)


def test_debug_shows_where(cli, places):
    with pytest.raises(Exception, match="no_such"):
        cli("--debug", "plan", *places, "--input", "no_such.zarr")


# how they refuse ---------------------------------------------------------------------------------


@pytest.mark.fault(37)
@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("layout.n_epoch=20", "layout.n_epoch: unknown key; allowed keys: seed, n_components, n_epochs"),
        ("neighbours.n_neighbors=5", "neighbours: unknown key; allowed keys: input, output"),
        ("neighbors.n_neighbors=many", "neighbors.n_neighbors = 'many'"),
        ("neighbors.n_neighbors=1", "neighbors.n_neighbors = 1: Input should be greater than or equal to 2"),
        ("neighbors.metric=euclidian", "euclidean"),
        ("layout.min_dist=3", "min_dist (3.0) must not exceed spread (1.0)"),
        ("layout.spread=1e30", "layout.spread = 1e+30 and layout.min_dist = 0.1: the curve"),
        ("task_memory=plenty", "2GiB"),
        ("graph.shard_rows=5000", "4096"),
        ("seed=[", "--set seed=[: the value is not YAML"),
        ("seed", "write it as section.key=value"),
        ("seed.low=x", "seed = {'low': 'x'}: Input should be a valid integer"),
    ],
)
def test_bad_configuration(refused, places, command, setting, message):
    assert message in refused(2, command, *places, "--set", setting)


@pytest.mark.fault(37)
def test_bad_options(refused, places, new_path, data):
    assert "no_such.yaml" in refused(2, "run", "no_such.yaml")
    assert "output: required" in refused(2, "run", "--input", data)
    assert "--sed" in refused(2, "run", *places, "--sed", "1")
    file = new_path("list.yaml")
    Path(file).write_text("- input\n- output\n")
    assert "must hold keys and values" in refused(2, "run", file)
    Path(file).write_text("input: [")
    assert "is not YAML" in refused(2, "run", file)


def _array(new_path, values, name="vectors"):
    """Write an array to a new Zarr group; return its path."""
    path = new_path("input.zarr")
    zarr.open_group(path, mode="w").create_array(name, data=values)
    return path


BAD_INPUTS = {
    "no store": (33, lambda new_path: new_path("nothing.zarr"), "does not exist"),
    "no Zarr": (33, lambda new_path: str(Path(new_path("x")).parent), "is not a Zarr group or array"),
    "other arrays": (
        33,
        lambda new_path: _array(new_path, np.ones((20, 3)), "pixels"),
        "its arrays are: pixels (20, 3)",
    ),
    "1-D": (32, lambda new_path: _array(new_path, np.ones(20)), "(rows, dims)"),
    "3-D": (32, lambda new_path: _array(new_path, np.ones((20, 3, 2))), "(rows, dims)"),
    "complex": (31, lambda new_path: _array(new_path, np.ones((20, 3), complex)), "complex128"),
    "strings": (31, lambda new_path: _array(new_path, np.full((20, 3), "a", "U4")), "U4"),
    "no rows": (28, lambda new_path: _array(new_path, np.ones((0, 3))), "is empty"),
    "one row": (28, lambda new_path: _array(new_path, np.ones((1, 3))), "1 rows are too few"),
    "few rows": (
        28,
        lambda new_path: _array(new_path, np.ones((15, 3))),
        "at least 16 rows, or set n_neighbors to at most 14",
    ),
}


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.fault(number)) for kind, (number, *_) in BAD_INPUTS.items()]
)
def test_bad_input(refused, places, new_path, kind):
    _, make, message = BAD_INPUTS[kind]
    assert message in refused(3, "run", *places, "--input", make(new_path))


@pytest.mark.fault(27)
def test_not_finite(cli, places, new_path):
    x = np.ones((300, 4), np.float32)
    x[[3, 8]] = np.nan
    outcome = cli("run", *places, "--input", _array(new_path, x))
    assert outcome.code == 3
    assert "2 of 300 rows" in outcome.err
    assert "rows 3, 8" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.fault(32)
def test_a_chunk_over_the_budget_says_how_to_rechunk(refused, places):
    assert "rechunk the array to at most" in refused(3, "plan", *places, "--set", "task_memory=100kB")


@pytest.mark.fault(20)
def test_over_budget_names_what_is_needed(cli, refused, places):
    needed = json.loads(cli("plan", *places, "--json").out)["peak_bytes"] / PAUSE_FRACTION
    message = refused(4, "run", *places, "--workers", "1", "--memory-limit", "700MiB")
    named = parse_bytes(message.split("--memory-limit ")[1].split(" or more")[0])
    assert 0 <= named - needed < 2**20


@pytest.mark.timeout(30)
@pytest.mark.fault(38)
def test_a_scheduler_file_that_is_not_there_or_not_whole(refused, places, new_path):
    timeout, file = ("--set", "cluster.timeout=1"), new_path("scheduler.json")
    assert f"no {file} within 1 s" in refused(5, "run", *places, "--scheduler-file", file, *timeout)
    Path(file).write_text('{"address": ')
    assert file in refused(5, "run", *places, "--scheduler-file", file, *timeout)


def test_outputs_that_are_something_else(refused, places, data, new_path, contents):
    folder, file = Path(new_path("kept")), Path(new_path("file"))
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file.write_text("years of work")
    group = new_path("group.zarr")
    zarr.open_group(group, mode="w").create_array("vectors", data=np.ones(3))
    before = contents(data), contents(group)
    for output, message in (
        (str(folder), "exists and is not a dumap run"),
        (str(file), "is a file"),
        (group, "is not a dumap run"),
        (data, "is, holds or lies in the input"),
        (f"{data}/run.zarr", "is, holds or lies in the input"),
        (str(Path(data).parent), "is, holds or lies in the input"),
    ):
        assert message in refused(6, "run", *places, "--output", output)
    assert (contents(data), contents(group)) == before
    assert (folder / "thesis.txt").read_text() == file.read_text() == "years of work"


def test_an_output_that_cannot_be_made(refused, places):
    assert "cannot be made" in refused(6, "run", *places, "--output", "/proc/run.zarr")


@pytest.mark.parametrize("command", [("status",), ("verify",), ("export", "embedding", "map.npy")])
def test_commands_on_what_is_no_run(refused, data, new_path, command):
    name, *rest = command
    assert "holds no run" in refused(6, name, new_path("run.zarr"), *rest)
    assert "is not a dumap run" in refused(6, name, data, *rest)


def test_exports_refuse(cli, refused, embed, digits, new_path):
    done = embed(digits[0][:300], {"layout.n_components": 3})
    assert "must be one of .npy, .csv, .parquet" in refused(2, "export", done.output, "embedding", new_path("map.xyz"))
    assert "n_components = 2" in refused(2, "export", done.output, "picture", new_path("map.png"))
    taken = new_path("map.npy")
    Path(taken).write_text("years of work")
    for what, ending in (("embedding", ".npy"), ("neighbors", ".npz"), ("graph", ".npz"), ("picture", ".png")):
        taken = new_path(f"taken{ending}")
        Path(taken).write_text("years of work")
        assert f"{taken} exists" in refused(6, "export", done.output, what, taken)
        assert Path(taken).read_text() == "years of work"
    folder, link = new_path("folder.npy"), new_path("link.npy")
    Path(folder).mkdir()
    Path(link).symlink_to("nowhere.npy")
    for place in (folder, link):
        assert f"{place} exists" in refused(6, "export", done.output, "embedding", place, "--force")
    assert "name a path" in refused(2, "export", done.output, "embedding", "s3://data/map.npy")
    taken = new_path("again.npy")
    Path(taken).write_text("of an earlier run")
    assert cli("export", done.output, "embedding", taken, "--force").code == 0
    assert np.load(taken).shape == (300, 3)
    assert "Invalid value" in refused(2, "export", done.output, "everything", new_path("map.npy"))


def test_no_word_names_another_projects_package():
    """On the public registry, 'dumap' is somebody else's."""
    root = Path(dumap.__file__).parents[1]
    texts = [*root.glob("dumap/**/*.py"), *root.glob("*.md"), *root.glob("dumap/**/*.md"), *root.glob("configs/*.yaml")]
    assert len(texts) > 50
    paths = [path.name for path in texts if re.search(r"""pip install ['"]?dumap|dumap\[""", path.read_text())]
    assert paths == []
    assert str(missing_packages("a picture", "matplotlib", "datashader")).endswith(
        ": pip install matplotlib datashader"
    )

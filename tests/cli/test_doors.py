"""The command line behind both of its doors, 'dumap' and 'dask dumap': the same words, and the same exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import sys
import tomllib
from pathlib import Path

import click
import dask.cli
import pytest
from click.testing import CliRunner

from dumap import errors
from dumap.cli import cli as command
from dumap.recipe import pipeline
from dumap.version import __version__

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PLAN = ("plan", "--input", "DATA.zarr", "--output", "RUN.zarr")


@pytest.fixture
def dask_cli(monkeypatch, capsys):
    """Call 'dask dumap' in this process, as the entry points of pyproject.toml have it."""
    group = "dask_cli"
    named = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][group]
    points = [importlib.metadata.EntryPoint(name, value, group) for name, value in named.items()]

    def call(*arguments: str):
        monkeypatch.setattr("dask.cli.importlib_metadata.entry_points", lambda group: points)
        monkeypatch.setattr(sys, "argv", ["dask", "dumap", *arguments])
        dask.cli.cli.commands.pop("dumap", None)  # of the call before
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            dask.cli.run_cli()
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture(params=["dumap", "dask dumap"])
def door(request):
    """Return a function that calls the command line, as `dumap` or as `dask dumap`."""
    return request.getfixturevalue("cli" if request.param == "dumap" else "dask_cli")


@pytest.fixture(autouse=True)
def handlers():
    """Restore the signal handler that the command line sets."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_command_is_a_group_of_dask_by_its_own_name():
    assert isinstance(command, click.Group)
    assert command.name == "dumap"


def test_the_version_is_dumaps(door):
    assert door("--version") == (0, f"dumap, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (0, ["--help"]),
        (0, ["run", "--help"]),
        (0, ["config", "seed"]),
        (2, ["config", "min_dist"]),
        (2, ["--no-such-option"]),
        (2, ["run", "--no-such-option"]),
        (2, ["plan", "--n-neighbors", "many"]),
        (2, ["no-such-command"]),
        (2, ["plan", "no_such.yaml"]),
        (3, ["plan", "--input", "no_such.zarr", "--output", "out.zarr"]),
        (6, ["status", "no_such.zarr"]),
    ],
)
def test_exit_codes(door, code, arguments):
    exit_code, out, err = door(*arguments)
    assert exit_code == code, err
    assert bool(out) == (code == 0)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("code", "error"),
    [
        *((kind.exit_code, kind("a sentence")) for kind in (errors.BudgetError, errors.ClusterError, errors.LockError)),
        (6, errors.DamageError("a sentence", "graph", "united-00001")),
        (9, errors.TaskError("a sentence")),
        (70, ZeroDivisionError("a sentence")),
        (70, RuntimeError("a sentence")),
        (130, KeyboardInterrupt()),
        (143, errors.Terminated()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_a_line_and_a_code(door, monkeypatch, code, error):
    def fail(config):
        raise error

    monkeypatch.setattr(pipeline, "plan", fail)
    exit_code, out, err = door(*PLAN)
    assert (exit_code, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("dumap: ")
    assert ("a sentence" in err) == bool(error.args)


def test_notes_follow_the_error(door, monkeypatch):
    def fail(config):
        error = errors.StorageError("a sentence")
        error.add_note("what is kept")
        raise error

    monkeypatch.setattr(pipeline, "plan", fail)
    assert door(*PLAN) == (6, "", "dumap: a sentence\ndumap: what is kept\n")
    code, _, err = door("--log-json", *PLAN)
    assert (code, json.loads(err)["notes"]) == (6, ["what is kept"])


def test_sigterm_ends_with_its_code(door, monkeypatch):
    monkeypatch.setattr(pipeline, "plan", lambda config: os.kill(os.getpid(), signal.SIGTERM))
    assert door(*PLAN)[0] == 143


@pytest.mark.parametrize("arguments", [("--debug", *PLAN), (*PLAN, "--debug")])
def test_debug_shows_where_wherever_it_is_given(monkeypatch, arguments):
    def fail(config):
        raise errors.InputError("a sentence")

    monkeypatch.setattr(pipeline, "plan", fail)
    assert isinstance(CliRunner().invoke(command, arguments).exception, errors.InputError)


def test_a_value_may_look_like_a_flag(cli):
    """As of --array, which takes any name."""
    outcome = cli(*PLAN, "--array", "--debug")
    assert (outcome.code, "Traceback" in outcome.err) == (3, False)


# settings as options -----------------------------------------------------------------------------

COMMON = {
    "neighbors.n_neighbors": ("--n-neighbors", 7),
    "neighbors.metric": ("--metric", "manhattan"),
    "layout.min_dist": ("--min-dist", 0.25),
    "layout.n_components": ("--n-components", 3),
    "layout.n_epochs": ("--n-epochs", 9),
    "seed": ("--seed", 5),
}


@pytest.fixture
def planned(cli, monkeypatch):
    """Return a function that returns the configuration that arguments of a command make."""
    configs = []

    def keep(config, **more):
        configs.append(config)
        raise errors.InputError("seen")

    monkeypatch.setattr(pipeline, "plan", keep)
    monkeypatch.setattr(pipeline, "run", keep)

    def call(name: str, *arguments):
        outcome = cli(name, "--input", "DATA.zarr", "--output", "RUN.zarr", *arguments)
        assert (outcome.code, outcome.err) == (3, "dumap: seen\n")
        return configs.pop()

    return call


@pytest.mark.parametrize("name", ["plan", "run"])
def test_an_option_is_its_setting(planned, name):
    options = [argument for pair in COMMON.values() for argument in pair]
    settings = [argument for key, (_, value) in COMMON.items() for argument in ("--set", f"{key}={value}")]
    config = planned(name, *options)
    assert config == planned(name, *settings)
    assert config == planned(name, *options, *settings), "the same said twice is no contradiction"
    assert (config.neighbors.n_neighbors, config.layout.min_dist, config.neighbors.metric) == (7, 0.25, "manhattan")
    assert config != planned(name)


def test_equal_values_may_be_written_in_other_ways(planned):
    config = planned("plan", "--memory-limit", "2GiB", "--set", "cluster.memory_limit=2048 MiB", "--min-dist", "0.50")
    assert config == planned("plan", "--memory-limit", "2GiB", "--min-dist", "0.5", "--set", "layout={min_dist: 0.5}")


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-dist", "0.2", "--set", "layout.min_dist=0.3"), "layout.min_dist: 0.3 by --set, 0.2 by its option"),
        (("--set", "layout={min_dist: 0.3}", "--min-dist", "0.2"), "layout.min_dist: 0.3 by --set, 0.2 by its option"),
        (("--n-epochs", "5", "--set", "layout.n_epochs=null"), "layout.n_epochs: None by --set, 5 by its option"),
        (("--metric", "cosine", "--set", "neighbors.metric=l2"), "neighbors.metric: 'l2' by --set, 'cosine' by its"),
        (("--seed", "1", "--set", "seed=2"), "seed: 2 by --set, 1 by its option"),
    ],
)
def test_an_option_and_a_setting_that_differ_are_refused(cli, command, arguments, message):
    outcome = cli(command, "--input", "DATA.zarr", "--output", "RUN.zarr", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_a_file_may_say_something_else_than_an_option(planned, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("layout: {min_dist: 0.3}")
    assert planned("plan", str(file), "--min-dist", "0.2").layout.min_dist == 0.2


def test_help_tells_the_defaults(cli):
    from dumap.config import LayoutConfig, NeighborsConfig

    text = " ".join(cli("run", "--help").out.split())
    assert f"including itself. [{NeighborsConfig().n_neighbors}]" in text
    assert f"packed on the map. [{LayoutConfig().min_dist}]" in text
    assert f"Dimensions of the map. [{LayoutConfig().n_components}]" in text
    assert f"distance between rows. [{NeighborsConfig().metric}]" in text


# defaults and examples ---------------------------------------------------------------------------


def test_config_prints_what_can_be_run(door, tmp_path):
    code, out, err = door("config")
    assert (code, err) == (0, "")
    (tmp_path / "defaults.yaml").write_text(out)
    code, _, err = door("plan", str(tmp_path / "defaults.yaml"))
    assert (code, "DATA.zarr" in err) == (3, True), "but for the input, which is not there"


def test_config_prints_one_key(cli):
    assert cli("config", "layout.min_dist").out.splitlines()[-1] == "  min_dist: 0.1"
    assert cli("config", "quality").out.splitlines()[-1] == "  queries: null"
    assert "did you mean layout.min_dist?" in cli("config", "min_dist").err


def test_examples_are_at_hand(cli):
    files = [path for path in (PYPROJECT.parent / "configs").rglob("*") if path.is_file() and path.suffix != ".png"]
    assert len(files) > 10
    for path in files:
        assert cli("config", "--example", path.name).out == path.read_text()
    for name, end in {"slurm": "slurm.sbatch", "cluster": "cluster.yaml", "daskjob": "daskjob.yaml"}.items():
        assert cli("config", "--example", name).out == (PYPROJECT.parent / "configs" / end).read_text()
    outcome = cli("config", "--example", "no_such")
    assert (outcome.code, "cluster, one_machine, quickstart, scheduled, and" in outcome.err) == (2, True)
    assert cli("config", "seed", "--example", "cluster").code == 2

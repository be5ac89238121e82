"""Runs that are finished or given other parameters: the same bytes, or a refusal that touches nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from faults.harness import SETTING_OPTIONS, SETTINGS, results
from helpers import uncommit_stages

from dumap.engine import connect, worker
from dumap.recipe.pipeline import run
from dumap.store import MANIFESTS

# finished ----------------------------------------------------------------------------------------


def test_a_finished_run_starts_no_cluster(configure, damageable, monkeypatch, contents):
    def never(*_):
        raise AssertionError("a cluster was started")

    before = contents(damageable.output)
    monkeypatch.setattr(connect, "connect", never)
    assert run(damageable)["state"] == "done"
    assert contents(damageable.output) == before


def test_results_are_those_of_another_run(embed, data, finished_run):
    assert results(embed(data, SETTINGS).output) == results(finished_run.output)


# other parameters, other input -------------------------------------------------------------------


@pytest.mark.fault(22)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("neighbors.n_neighbors=10", "neighbors.n_neighbors: 15 -> 10"),
        ("seed=7", "seed: 42 -> 7"),
        ("layout.n_epochs=21", "layout.n_epochs: 12 -> 21"),
    ],
)
def test_other_parameters_are_refused(cli, finished_run, data, contents, setting, message):
    before = contents(finished_run.output)
    outcome = cli("run", "--input", data, "--output", finished_run.output, *SETTING_OPTIONS, "--set", setting)
    assert outcome.code == 7
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert contents(finished_run.output) == before


def test_settings_without_effect_on_the_answer_may_change(cli, finished_run, data, contents):
    before = contents(finished_run.output)
    more = ["--workers", "7", "--set", "layout.checkpoint_every=3", "--set", "layout.mode=rounds"]
    assert cli("run", "--input", data, "--output", finished_run.output, *SETTING_OPTIONS, *more).code == 0
    assert contents(finished_run.output) == before


@pytest.mark.fault(22)
@pytest.mark.parametrize("change", ["a value", "more rows", "another dtype"])
def test_other_input_is_refused(cli, configure, digits, save, contents, change):
    x = digits[0][:100].copy()
    config = configure(save(x))
    run(config)
    path, before = config.input.path, contents(config.output)
    if change == "a value":
        zarr.open_array(path, path="vectors")[3, 3] = 99
    else:
        x = np.vstack([x, x[:1]]) if change == "more rows" else x.astype(np.float64)
        zarr.open_group(path).create_array("vectors", data=x, overwrite=True)
    settings = ("layout.n_epochs=20", "start.coarse_epochs=20", "audit.queries=0")
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    outcome = cli("run", "--input", path, "--output", config.output, *arguments)
    assert outcome.code == 7
    assert path in outcome.err
    assert contents(config.output) == before


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("what", "other", "message"),
    [
        ("versions", {"numpy": "1.0"}, r"numpy: .* -> '1.0'"),
        ("cpus", ["z80/ROMAN"], "processors: .* -> z80/ROMAN"),
    ],
)
def test_workers_of_other_kinds_are_refused_unless_forced(
    configure, client, data, finished_run, monkeypatch, what, other, message
):
    """A run half done with others; what is finished needs none."""
    from dumap.engine.cluster import DaskEngine
    from dumap.errors import RunMismatchError

    config = configure(data, SETTINGS)
    shutil.copytree(finished_run.output, config.output)
    uncommit_stages(config.output, ("embedding", "quality"))
    before = {p: p.read_bytes() for p in Path(config.output, MANIFESTS).rglob("*.json")}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(DaskEngine, what, {**worker.versions(), **other} if isinstance(other, dict) else other)
        with pytest.raises(RunMismatchError, match=rf"{message}\nUse the old ones.*--force"):
            run(config, client=client)
        assert {p: p.read_bytes() for p in Path(config.output, MANIFESTS).rglob("*.json")} == before
        assert run(config, client=client, force=True)["state"] == "done"
    assert results(config.output) == results(finished_run.output)


@pytest.mark.fault(23, 47)
def test_a_client_of_another_kind_goes_on_with_a_run(client, configure, data, finished_run, monkeypatch):
    """It computes nothing: what counts is what the workers are; a Mac with another Python drives them."""
    config = configure(data, SETTINGS)
    shutil.copytree(finished_run.output, config.output)
    Path(config.output, MANIFESTS, "done", "quality.json").unlink()
    Path(config.output, MANIFESTS, "quality", "report.json").unlink()
    versions = worker.versions()
    monkeypatch.setattr(
        worker, "versions", lambda: {**versions, "python": "3.11.0", "machine": "arm64", "numpy": "1.0"}
    )
    assert run(config, client=client)["state"] == "done"
    other = configure(data, {"layout.n_epochs": 1})
    assert run(other, client=client)["versions"] == versions

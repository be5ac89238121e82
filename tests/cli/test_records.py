"""What a scheduled run leaves: exit codes, metrics and a summary, however it ends; and Dask's performance report."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from dumap import errors
from dumap.cli.prometheus import format_metrics, read_last_success
from dumap.recipe import pipeline
from dumap.recipe.stage_names import STAGES

QUICK = ("layout.n_epochs=5", "cluster.engine=local")
LABEL = r'[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"([a-z_]+)(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)")


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Read metrics in Prometheus' text format: value by name and labels; each must be told what it is before."""
    samples, described = {}, {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("#"):
            _, kind, name, description = line.split(" ", 3)
            described.setdefault(name, []).append(kind)
            assert kind == "HELP" or description == "gauge"
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert described[name] == ["HELP", "TYPE"]
            assert (name, labels or "") not in samples
            samples[name, labels or ""] = float(value)
    if find_spec("prometheus_client"):
        from prometheus_client.parser import text_string_to_metric_families

        of_the_library = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        assert len(of_the_library) == len(samples)
    return samples


@pytest.fixture(scope="module")
def data(digits_300, save):
    """Save 300 digits; return their path."""
    return save(digits_300)


@pytest.fixture
def arguments(data, new_path):
    """Return the command line of a short run with an audit."""
    settings = [
        argument for setting in (*QUICK, "audit.queries=30", "quality.queries=30") for argument in ("--set", setting)
    ]
    return ["run", "--input", data, "--output", new_path("run.zarr"), *settings]


@pytest.fixture
def record(new_path):
    """Return the options that ask for a record, and what reads it."""

    class Files:
        metrics, summary = new_path("dumap.prom"), new_path("dumap.json")
        options = ("--metrics", metrics, "--summary", summary)

        def read(self):
            return parsed(Path(self.metrics).read_text()), json.loads(Path(self.summary).read_text())

    return Files()


# a finished run ----------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is_and_says_so(cli, arguments, record, contents):
    began = time.time()
    first = cli(*arguments, *record.options, "--exit-code-unchanged", "99")
    assert (first.code, first.out.startswith("done: ")) == (0, True)
    metrics, summary = record.read()
    assert (summary["exit_code"], summary["state"], summary["unchanged"]) == (0, "done", False)
    success = metrics["dumap_last_success_timestamp_seconds", ""]
    assert began < success < time.time()
    before = contents(arguments[4])
    for more, code in (((), 0), (("--exit-code-unchanged", "99"), 99)):
        again = cli(*arguments, *record.options, *more)
        assert (again.code, again.out.startswith("finished before, nothing to do: ")) == (code, True)
        metrics, summary = record.read()
        assert (summary["exit_code"], summary["unchanged"], summary["message"]) == (code, True, None)
        assert metrics["dumap_exit_code", ""] == code
        assert metrics["dumap_last_success_timestamp_seconds", ""] > success
    assert contents(arguments[4]) == before


def test_a_run_that_is_gone_on_with_is_no_unchanged_one(cli, arguments):
    from helpers import uncommit_stages

    assert cli(*arguments).code == 0
    uncommit_stages(arguments[4], ["quality"])
    assert cli(*arguments, "--exit-code-unchanged", "99").code == 0


def test_an_exit_code_is_one(cli, arguments):
    assert cli(*arguments, "--exit-code-unchanged", "256").code == 2


# metrics and summary -----------------------------------------------------------------------------


def test_metrics_are_those_of_the_status(cli, arguments, record):
    assert cli(*arguments, *record.options).code == 0
    metrics, summary = record.read()
    status = json.loads(cli("status", arguments[4], "--json").out)
    assert summary["stages"] == status["stages"]
    assert summary["output"] == status["output"]
    for stage in status["stages"]:
        of = f'stage="{stage["name"]}"'
        assert metrics["dumap_stage_seconds", of] == stage["seconds"]
        assert metrics["dumap_stage_peak_bytes", of] == stage["peak_bytes"]
        assert metrics["dumap_stage_projected_bytes", of] == stage["projected_bytes"]
        assert metrics["dumap_parts_done", of] == metrics["dumap_parts_total", of] == stage["parts"]
    facts = {stage["name"]: stage["facts"] for stage in status["stages"]}
    assert metrics["dumap_recall", ""] == facts["audit"]["recall"] == summary["quality"]["recall"]
    assert metrics["dumap_recall_low", ""] == facts["audit"]["recall_low"]
    assert summary["quality"]["trustworthiness"] == facts["quality"]["trustworthiness"]


def test_unknown_figures_are_left_out_of_the_metrics(cli, arguments, record):
    assert cli(*arguments, "--set", "audit.queries=0", *record.options).code == 0
    assert "dumap_recall" not in Path(record.metrics).read_text()


def test_labels_are_of_every_sample_and_escaped(cli, arguments, record):
    assert (
        cli(*arguments, *record.options, "--metrics-label", 'job=a "b"\\c\nd', "--metrics-label", "run=x=y").code == 0
    )
    metrics, _ = record.read()
    mine = 'job="a \\"b\\"\\\\c\\nd",run="x=y"'
    assert metrics["dumap_exit_code", mine] == 0
    assert metrics["dumap_stage_seconds", f'{mine},stage="graph"'] > 0
    assert all(labels.startswith(mine) for _, labels in metrics)


def test_the_last_success_is_read_whatever_its_labels():
    for labels in ({}, {"job": "} 7"}):
        assert read_last_success(format_metrics(3, 1764268000.25, [], labels)) == 1764268000.25
    assert read_last_success(format_metrics(3, None, [], {})) is None
    assert read_last_success("dumap_last_success_timestamp_seconds x\n") is None


def test_a_failed_run_keeps_the_last_success(cli, arguments, record):
    assert cli(*arguments, *record.options).code == 0
    before, _ = record.read()
    failed = cli(*arguments, *record.options, "--min-dist", "0.5")
    metrics, summary = record.read()
    assert failed.code == metrics["dumap_exit_code", ""] == summary["exit_code"] == 7
    last = ("dumap_last_success_timestamp_seconds", "")
    assert metrics[last] == before[last]
    assert "layout.min_dist" in summary["message"]
    assert (summary["state"], len(summary["stages"])) == ("done", len(STAGES))


@pytest.mark.parametrize(
    ("code", "more", "message"),
    [
        (3, ["--input", "no_such.zarr"], "no_such"),
        (2, ["--min-dist", "9"], "min_dist"),
        (2, ["--n-epochs", "x"], "x"),
        (2, ["--no-such-option"], "--no-such-option"),
        (2, ["no_such.yaml"], "no_such.yaml"),
        (2, ["--seed", "1", "--set", "seed=2"], "seed"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_cannot_begin_is_recorded(cli, arguments, record, code, more, message, first):
    outcome = (
        cli(*arguments, *more, *record.options)
        if not first
        else cli(arguments[0], *record.options, *arguments[1:], *more)
    )
    metrics, summary = record.read()
    assert outcome.code == code
    assert metrics == {("dumap_exit_code", ""): code}
    assert (summary["exit_code"], summary["state"], summary["stages"], summary["quality"]) == (code, None, [], {})
    assert message in summary["message"]


@pytest.mark.parametrize("debug", [(), ("--debug",)])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.TaskError, 9),
        (errors.StorageError, 6),
        (ZeroDivisionError, 70),
        (KeyboardInterrupt, 130),
    ],
)
def test_a_run_that_fails_on_the_way_is_recorded(cli, arguments, record, monkeypatch, error, code, debug):
    def fail(config, observer, **more):
        raised = error("a sentence")
        observer.started("vectors", 7)
        observer.advanced("vectors", 3, 8)
        raised.add_note("what is kept")
        raise raised

    monkeypatch.setattr(pipeline, "run", fail)
    if debug and code != 130:
        with pytest.raises(error):
            cli(*debug, *arguments, *record.options)
    else:
        assert cli(*debug, *arguments, *record.options).code == code
    metrics, summary = record.read()
    of = 'stage="vectors"'
    assert metrics["dumap_exit_code", ""] == summary["exit_code"] == code
    assert (metrics["dumap_parts_done", of], metrics["dumap_parts_total", of]) == (3, 8)
    assert metrics["dumap_stage_projected_bytes", of] == 7
    assert ("dumap_stage_seconds", of) not in metrics
    if code in (6, 9):
        assert (summary["message"], summary["notes"]) == ("a sentence", ["what is kept"])


def test_sigterm_is_recorded(cli, arguments, record, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pipeline, "run", lambda *args, **more: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert cli(*arguments, *record.options).code == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert record.read()[0]["dumap_exit_code", ""] == 143


def test_another_driver_is_recorded(cli, arguments, record, monkeypatch):
    assert cli(*arguments).code == 0

    def fail(*args, **more):
        raise errors.LockError("driven by another")

    monkeypatch.setattr(pipeline, "run", fail)
    assert cli(*arguments, *record.options).code == 8
    assert record.read()[1]["state"] == "done"


# the files ---------------------------------------------------------------------------------------


def test_files_are_whole_readable_by_others_and_alone(cli, arguments, record):
    mask = os.umask(0o022)
    try:
        assert cli(*arguments, *record.options).code == 0
    finally:
        os.umask(mask)
    for path in (Path(record.metrics), Path(record.summary)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("option", ["--metrics", "--summary"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_begins(cli, arguments, new_path, option):
    folder = Path(new_path("folder"))
    folder.mkdir()
    for place, message in ((f"{folder}/no_such/file", "there is no folder"), (str(folder), "is no file")):
        outcome = cli(*arguments, option, place)
        assert (outcome.code, message in outcome.err) == (2, True), outcome
    assert not Path(arguments[4]).exists()


@pytest.mark.parametrize("label", ["job", "=x", "1a=x", "__a=x", "stage=x", "a-b=x"])
def test_a_label_that_is_none_is_refused(cli, arguments, record, label):
    outcome = cli(*arguments, *record.options, "--metrics-label", label)
    assert (outcome.code, "NAME=VALUE" in outcome.err) == (2, True)
    assert record.read()[0] == {("dumap_exit_code", ""): 2}


def test_a_file_that_cannot_be_written_in_the_end_is_told(cli, arguments, record, monkeypatch):
    def run(config, **more):
        Path(record.summary).mkdir()
        return {"output": config.output}

    monkeypatch.setattr(pipeline, "run", run)
    outcome = cli(*arguments, *record.options)
    assert (outcome.code, f"--summary {record.summary} cannot be written" in outcome.err) == (6, True)
    assert parsed(Path(record.metrics).read_text())["dumap_exit_code", ""] == 6


# Dask's performance report -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_is_written(cli, arguments, client, new_path):
    report = new_path("report.html")
    cluster = ("--scheduler", client.scheduler.address, "--set", "cluster.engine=dask")
    outcome = cli(*arguments, *cluster, "--report", report)
    assert outcome.code == 0, outcome.err
    text = Path(report).read_text()
    assert "Dask Performance Report" in text
    assert "dumap-neighbors" in text
    assert os.listdir(Path(report).parent) == ["report.html"]


def test_a_finished_run_has_no_report_and_says_so(cli, arguments, new_path):
    assert cli(*arguments).code == 0
    report = new_path("report.html")
    again = [argument for argument in arguments if argument not in ("--set", "cluster.engine=local")]
    again = [*arguments[:5], *(w for s in again[5:] for w in ("--set", s)), "--report", report]
    outcome = cli(*again)
    assert (outcome.code, f"no performance report in {report}: nothing was run" in outcome.err) == (0, True), (
        outcome.err
    )


def test_a_report_is_not_of_the_local_engine(cli, arguments, new_path):
    outcome = cli(*arguments, "--report", new_path("report.html"))
    assert (outcome.code, "set engine to dask" in outcome.err) == (2, True)


def test_a_report_asks_for_a_cluster(configure, digits_300):
    from dumap.engine.engine_choice import choose_engine

    config = configure(digits_300, {"cluster.report": "report.html"})
    assert (choose_engine(config.cluster, pipeline.plan(config)).name, config.cluster.engine) == ("dask", "auto")


@pytest.mark.parametrize("missing", ["bokeh", "folder"])
def test_a_report_that_could_not_be_written_is_refused(cli, arguments, client, new_path, monkeypatch, missing):
    report = new_path("report.html") if missing == "bokeh" else new_path("no_such/report.html")
    if missing == "bokeh":
        monkeypatch.setattr("dumap.engine.performance_report.find_spec", lambda name: None)
    cluster = ("--scheduler", client.scheduler.address, "--set", "cluster.engine=dask")
    outcome = cli(*arguments, *cluster, "--report", report)
    assert (outcome.code, {"bokeh": "pip install bokeh", "folder": "there is no folder"}[missing] in outcome.err) == (
        2,
        True,
    )
    assert not Path(arguments[4]).exists()


def test_a_scheduler_that_gives_no_report_is_told(client, new_path, monkeypatch):
    from dumap.engine.performance_report import write_performance_report

    notes, report = [], new_path("report.html")

    def run() -> None:
        with write_performance_report(client, report, 30.0, notes.append):
            monkeypatch.setattr(client.scheduler, "performance_report", None, raising=False)
            raise ZeroDivisionError("of the run")

    with pytest.raises(ZeroDivisionError, match="of the run"):
        run()
    assert notes[0].startswith(f"no performance report in {report}: TypeError")
    assert os.listdir(Path(report).parent) == []

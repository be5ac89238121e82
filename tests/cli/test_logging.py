"""What is logged: to the logger 'dumap' by programs, to standard error by the command, as lines or JSON."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from datetime import datetime

import pytest

from dumap.recipe.observers import LogObserver
from dumap.recipe.pipeline import run
from dumap.recipe.stage_names import STAGES

QUICK = {"layout.n_epochs": 5, "audit.queries": 0, "cluster.engine": "local"}


@pytest.fixture
def config(configure, digits):
    """Configure a short run of 200 digits."""
    return configure(digits[0][:200], QUICK)


def events(records: list[dict], kind: str) -> list[str]:
    """Name the stages of one kind of event, in order."""
    return [record["stage"] for record in records if record["event"] == kind]


def test_a_program_is_silent_until_it_listens(config, capsys, caplog):
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("dumap").handlers)
    run(config)
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []


def test_a_program_that_listens_is_told_of_stages(config, caplog):
    with caplog.at_level(logging.INFO, "dumap"):
        run(config)
    assert {(record.name, record.levelname) for record in caplog.records} == {("dumap", "INFO")}
    records = [record.dumap for record in caplog.records]
    assert events(records, "started") == events(records, "finished") == list(STAGES)
    first, last = (next(record for record in records if record["event"] == kind) for kind in ("started", "finished"))
    assert set(first) == {"event", "stage", "projected_bytes"}
    assert set(last) == {"event", "stage", "seconds", "projected_bytes", "peak_bytes", "facts"}
    assert re.search(r"vectors: begins, .* projected", caplog.text)


def test_an_observer_is_told_instead(config, caplog):
    from helpers import NoteRecorder

    with caplog.at_level(logging.INFO, "dumap"):
        run(config, observer=NoteRecorder())
    assert caplog.records == []


def test_progress_is_logged_now_and_then(caplog, monkeypatch):
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr("dumap.recipe.observers.time.monotonic", lambda: float(next(clock)))
    logged = LogObserver()
    with caplog.at_level(logging.INFO, "dumap"):
        logged.started("graph", 1)
        for done in range(1, 7):
            logged.advanced("graph", done, 8)
    records = [record.dumap for record in caplog.records if record.dumap["event"] == "advanced"]
    assert records == [
        {"event": "advanced", "stage": "graph", "done": 3, "total": 8, "seconds_left": 20.0},
        {"event": "advanced", "stage": "graph", "done": 6, "total": 8, "seconds_left": 8.0},
    ]


# the command -------------------------------------------------------------------------------------


def arguments(config) -> list[str]:
    """Return the command line of the same run."""
    settings = [argument for key, value in QUICK.items() for argument in ("--set", f"{key}={value}")]
    return ["run", "--input", config.input.path, "--output", config.output, *settings]


def test_the_command_logs_lines(cli, config):
    outcome = cli(*arguments(config))
    assert outcome.code == 0
    for line in outcome.err.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d dumap \S", line)
    assert re.search(r"dumap graph: done in [\d.]+ s, peak ", outcome.err)


@pytest.mark.parametrize("first", [True, False])
def test_the_command_logs_json(cli, config, first):
    outcome = cli(*(["--log-json", *arguments(config)] if first else [*arguments(config), "--log-json"]), "--json")
    records = [json.loads(line) for line in outcome.err.splitlines()]
    assert events(records, "started") == events(records, "finished") == list(STAGES)
    for record in records:
        assert datetime.fromisoformat(record["time"]).utcoffset().total_seconds() == 0
        assert (record["level"], type(record["message"])) == ("INFO", str)
    assert json.loads(outcome.out)["state"] == "done", "what was asked for is on standard output"


@pytest.mark.parametrize(
    ("code", "more"),
    [(3, ["--input", "no_such.zarr"]), (2, ["--min-dist", "9"]), (2, ["--n-epochs", "x"])],
    ids=["input", "setting", "word"],
)
def test_an_error_is_a_line_of_json(cli, config, code, more):
    outcome = cli("--log-json", *arguments(config), *more)
    record = json.loads(outcome.err)
    assert outcome.code == record["exit_code"] == code
    assert (record["level"], record["event"], outcome.out) == ("ERROR", "error", "")


def test_the_logger_is_as_before_once_the_command_has_ended(cli, config):
    logger = logging.getLogger("dumap")
    before = logger.level, list(logger.handlers)
    cli("--log-json", "status", config.output)
    assert (logger.level, logger.handlers) == before


@pytest.mark.parametrize("imported", [True, False], ids=["before", "within"])
def test_dask_is_quiet_where_the_command_asks_for_it(imported):
    """Dask sets its loggers' levels as it is imported; what is told of a lost scheduler is told by dumap."""
    lines = ["import logging, os", "from dumap.cli.logs import dask_log_level"]
    within = "    print([logging.getLogger(n).getEffectiveLevel() for n in ('distributed.client', 'distributed.core')])"
    lines += ["import distributed"] if imported else []
    lines += ["with dask_log_level('critical'):", "    import distributed", within]
    lines += ["print('DASK_LOGGING' in os.environ)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[50, 50]", "False"]

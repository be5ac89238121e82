"""What `dumap run` leaves for a scheduler of jobs, however it ends: metrics for Prometheus, and a summary in JSON."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dumap.cli.group import RECORD, Command
from dumap.cli.logs import say
from dumap.cli.prometheus import LABEL_NAME, exposition, last_success
from dumap.errors import ConfigError, DumapError, StorageError
from dumap.json_values import to_json

if TYPE_CHECKING:
    from dumap.engine import Observer

QUALITY = ("audit", "quality")
"""Stages whose facts are a run's quality."""


def record_of(context: click.Context) -> Record:
    """Return the record of the command under way."""
    record: Record = context.meta.setdefault(RECORD, Record())
    return record


def _keep(context: click.Context, option: click.Parameter, given: Any) -> None:
    setattr(record_of(context), str(option.name), given)


def record_options(command: Any) -> Any:
    """Give a command the options of its record, which are read before all others."""
    kept: dict[str, Any] = {"expose_value": False, "is_eager": True, "callback": _keep, "metavar": "FILE"}
    for option in (
        click.option("--summary", **kept, help="Write how it ended, as one JSON object, however it ends."),
        click.option(
            "--metrics-label",
            "labels",
            multiple=True,
            **{**kept, "metavar": "NAME=VALUE"},
            help="A label of every metric, where files of several runs are collected.",
        ),
        click.option("--metrics", **kept, help="Write metrics for Prometheus' textfile collector, however it ends."),
    ):
        command = option(command)
    return command


class Recorded(Command):
    """A command with a record, which is kept of words that it does not know too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse words; where they are refused, find out all the same where the record is to go."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            ctx.ignore_unknown_options = True
            with contextlib.suppress(click.UsageError):  # the first is told
                given, _, _ = self.make_parser(ctx).parse_args(words)
                for name in ("metrics", "labels", "summary"):
                    if name in given:
                        setattr(record_of(ctx), name, given[name])
            raise


class Watcher:
    """An observer that keeps how far stages have come, and tells another."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self.note = observer, observer.note
        self.stages: dict[str, dict[str, Any]] = {}

    def started(self, stage: str, projected_bytes: int) -> None:
        """Keep that a stage has begun."""
        entry = {"name": stage, "state": "partial", "parts": 0, "progress": None, "seconds": None}
        self.stages[stage] = {**entry, "projected_bytes": projected_bytes, "peak_bytes": None, "facts": {}}
        self._observer.started(stage, projected_bytes)

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Keep how far it is."""
        self.stages[stage]["progress"] = [done, total]
        self._observer.advanced(stage, done, total)

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Keep what it took and found."""
        took = {"seconds": round(seconds, 3), "projected_bytes": projected_bytes, "peak_bytes": peak_bytes}
        self.stages[stage] |= {"state": "done", **took, "facts": facts}
        self._observer.finished(stage, seconds, projected_bytes, peak_bytes, facts)


class Record:
    """How one call of a command went, and where that is to be written.

    Attributes
    ----------
    metrics, summary : str, optional
        Files to write.
    labels : sequence of str
        NAME=VALUE each.
    output : str, optional
        The run, once it is known.
    watcher : Watcher, optional
        What was heard of the run, once it began.
    """

    def __init__(self) -> None:
        self.metrics: str | None = None
        self.summary: str | None = None
        self.labels: Sequence[str] = ()
        self.output: str | None = None
        self.watcher: Watcher | None = None
        self.began = time.time()

    def check(self) -> None:
        """Refuse files that cannot be written, and labels that are none, before anything begins.

        Raises
        ------
        ConfigError
        """
        for option, path in (("--metrics", self.metrics), ("--summary", self.summary)):
            if path is not None:
                folder = Path(path).absolute().parent
                if not folder.is_dir():
                    raise ConfigError(f"{option} {path}: there is no folder {folder}; make it, or name another file")
                if not os.access(folder, os.W_OK):
                    raise ConfigError(f"{option} {path}: {folder} cannot be written to; name another file")
                if os.path.lexists(path) and not os.path.isfile(path):
                    raise ConfigError(f"{option} {path}: is no file, and could not be replaced; name another")
        for label in self.labels:
            if _label(label) is None:
                raise ConfigError(
                    f"--metrics-label {label}: write it as NAME=VALUE; a name has letters, digits and _, does not "
                    f"begin with a digit or __, and is not stage"
                )

    def watch(self, output: str, observer: Observer) -> Observer:
        """Return an observer of the run that begins, which tells another."""
        self.output, self.watcher = output, Watcher(observer)
        return self.watcher

    @property
    def unchanged(self) -> bool:
        """Whether a run was looked at in which no stage had to be made."""
        return self.watcher is not None and not self.watcher.stages

    def write(self, exit_code: int, message: str | None = None, notes: Sequence[str] = ()) -> int:
        """Write the files that were asked for.

        Parameters
        ----------
        exit_code : int
        message : str, optional
            Why it failed.
        notes : sequence of str

        Returns
        -------
        int
            The exit code; another where all went well but this.
        """
        if self.metrics is None and self.summary is None:
            return exit_code
        state, stages = self._found(exit_code)
        if self.summary is not None:
            facts = {key: fact for stage in stages if stage["name"] in QUALITY for key, fact in stage["facts"].items()}
            document = {
                "exit_code": exit_code,
                "state": state,
                "unchanged": message is None and self.unchanged,
                "output": self.output,
                "message": message,
                "notes": list(notes),
                "time": time.time(),
                "seconds": round(time.time() - self.began, 3),
                "quality": facts,
                "stages": stages,
            }
            exit_code = _put("--summary", self.summary, f"{to_json(document)}\n", exit_code)
        if self.metrics is not None:
            success = time.time() if message is None else _success_before(self.metrics)
            labels = dict(pair for label in self.labels if (pair := _label(label)) is not None)
            exit_code = _put("--metrics", self.metrics, exposition(exit_code, success, stages, labels), exit_code)
        return exit_code

    def _found(self, exit_code: int) -> tuple[str | None, list[dict[str, Any]]]:
        """Return the run's state and stages, as it says itself; as they were heard of where it does not answer."""
        heard = list(self.watcher.stages.values()) if self.watcher else []
        if self.output is None or exit_code == StorageError.exit_code:  # a store that failed may take minutes again
            return None, heard
        from dumap.recipe.status import status

        try:
            found = status(self.output)
        except DumapError:
            return None, heard
        return found["state"], found["stages"]


def _label(text: str) -> tuple[str, str] | None:
    """Read NAME=VALUE; None where it is no label."""
    name, equals, value = text.partition("=")
    return (name, value) if equals and LABEL_NAME.fullmatch(name) and name != "stage" else None


def _success_before(path: str) -> float | None:
    """Return when the last success was that the file of metrics tells of."""
    try:
        return last_success(Path(path).read_text())
    except (OSError, ValueError):  # there is none, or it is something else
        return None


def _put(option: str, path: str, text: str, exit_code: int) -> int:
    """Write a file whole; where it cannot be, say so, and return an exit code that does."""
    from dumap.store.disk import write

    whole = Path(path).absolute()
    try:
        write(str(whole.parent), whole.name, text.encode())
    except (OSError, DumapError) as error:
        say(f"{option} {path} cannot be written ({error})")
        return exit_code or StorageError.exit_code
    return exit_code

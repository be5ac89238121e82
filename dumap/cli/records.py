"""The files that `dumap run` writes for job schedulers, however it ends: metrics for Prometheus, and a JSON summary."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dumap.cli.group import RECORD_KEY, Command
from dumap.cli.logs import log_message
from dumap.cli.prometheus import LABEL_NAME, format_metrics, read_last_success
from dumap.errors import ConfigError, DumapError, StorageError
from dumap.json_values import to_json

if TYPE_CHECKING:
    from dumap.engine import Observer

QUALITY_STAGES = ("audit", "quality")
"""The stages whose facts are the quality in the summary."""


def record_of(context: click.Context) -> Record:
    """Return the record of the running command."""
    record: Record = context.meta.setdefault(RECORD_KEY, Record())
    return record


def _set_record_option(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Set an option's value in the command's record."""
    setattr(record_of(context), str(option.name), value)


def record_options(command: Any) -> Any:
    """Add the options of the record to a command; they are read before all other options."""
    option_settings: dict[str, Any] = {
        "expose_value": False,
        "is_eager": True,
        "callback": _set_record_option,
        "metavar": "FILE",
    }
    for option in (
        click.option("--summary", **option_settings, help="Write how it ended, as one JSON object, however it ends."),
        click.option(
            "--metrics-label",
            "labels",
            multiple=True,
            **{**option_settings, "metavar": "NAME=VALUE"},
            help="A label of every metric, to tell apart the files of several runs.",
        ),
        click.option(
            "--metrics", **option_settings, help="Write metrics for Prometheus' textfile collector, however it ends."
        ),
    ):
        command = option(command)
    return command


class RecordedCommand(Command):
    """A command with a record, which is also written if the command's arguments are not valid."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; if they are not valid, still read the options of the record."""
        arguments = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            ctx.ignore_unknown_options = True
            with contextlib.suppress(click.UsageError):  # the first error is raised below
                values, _, _ = self.make_parser(ctx).parse_args(arguments)
                for name in ("metrics", "labels", "summary"):
                    if name in values:
                        setattr(record_of(ctx), name, values[name])
            raise


class RecordingObserver:
    """An observer that records the state of the stages, and calls another observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self.note = observer, observer.note
        self.stages: dict[str, dict[str, Any]] = {}

    def started(self, stage: str, projected_bytes: int) -> None:
        """Record that a stage has begun."""
        entry = {"name": stage, "state": "partial", "parts": 0, "progress": None, "seconds": None}
        self.stages[stage] = {**entry, "projected_bytes": projected_bytes, "peak_bytes": None, "facts": {}}
        self._observer.started(stage, projected_bytes)

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Record a stage's progress."""
        self.stages[stage]["progress"] = [done, total]
        self._observer.advanced(stage, done, total)

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Record a finished stage's time, memory and facts."""
        usage = {"seconds": round(seconds, 3), "projected_bytes": projected_bytes, "peak_bytes": peak_bytes}
        self.stages[stage] |= {"state": "done", **usage, "facts": facts}
        self._observer.finished(stage, seconds, projected_bytes, peak_bytes, facts)


class Record:
    """The outcome of one call of a command, and the files to write it to.

    Attributes
    ----------
    metrics, summary : str, optional
        The files to write.
    labels : sequence of str
        Labels of the metrics, each as NAME=VALUE.
    output : str, optional
        The run; None until the configuration is read.
    observer : RecordingObserver, optional
        The observer of the run; None until the configuration is read.
    """

    def __init__(self) -> None:
        self.metrics: str | None = None
        self.summary: str | None = None
        self.labels: Sequence[str] = ()
        self.output: str | None = None
        self.observer: RecordingObserver | None = None
        self.start_time = time.time()

    def check(self) -> None:
        """Refuse files that cannot be written and labels that are not valid, before the run begins.

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
            if _parse_label(label) is None:
                raise ConfigError(
                    f"--metrics-label {label}: write it as NAME=VALUE; a name has letters, digits and _, does not "
                    f"begin with a digit or __, and is not stage"
                )

    def observe(self, output: str, observer: Observer) -> Observer:
        """Return an observer that records the run and calls another observer."""
        self.output, self.observer = output, RecordingObserver(observer)
        return self.observer

    @property
    def unchanged(self) -> bool:
        """Whether the run was called and no stage had to be made."""
        return self.observer is not None and not self.observer.stages

    def write(self, exit_code: int, message: str | None = None, notes: Sequence[str] = ()) -> int:
        """Write the files that the options name.

        Parameters
        ----------
        exit_code : int
        message : str, optional
            The error that ended the command.
        notes : sequence of str

        Returns
        -------
        int
            The exit code; if it was 0 and a file cannot be written, that of a `StorageError`.
        """
        if self.metrics is None and self.summary is None:
            return exit_code
        state, stages = self._state_and_stages(exit_code)
        if self.summary is not None:
            facts = {
                key: fact for stage in stages if stage["name"] in QUALITY_STAGES for key, fact in stage["facts"].items()
            }
            document = {
                "exit_code": exit_code,
                "state": state,
                "unchanged": message is None and self.unchanged,
                "output": self.output,
                "message": message,
                "notes": list(notes),
                "time": time.time(),
                "seconds": round(time.time() - self.start_time, 3),
                "quality": facts,
                "stages": stages,
            }
            exit_code = _write_file("--summary", self.summary, f"{to_json(document)}\n", exit_code)
        if self.metrics is not None:
            last_success_time = time.time() if message is None else _read_last_success(self.metrics)
            labels = dict(pair for label in self.labels if (pair := _parse_label(label)) is not None)
            exit_code = _write_file(
                "--metrics", self.metrics, format_metrics(exit_code, last_success_time, stages, labels), exit_code
            )
        return exit_code

    def _state_and_stages(self, exit_code: int) -> tuple[str | None, list[dict[str, Any]]]:
        """Return the run's state and stages from its status; None and the observer's stages if it cannot be read."""
        observed_stages = list(self.observer.stages.values()) if self.observer else []
        if self.output is None or exit_code == StorageError.exit_code:  # reading a failed store may take minutes
            return None, observed_stages
        from dumap.recipe.status import status

        try:
            run_status = status(self.output)
        except DumapError:
            return None, observed_stages
        return run_status["state"], run_status["stages"]


def _parse_label(text: str) -> tuple[str, str] | None:
    """Return the name and the value of a label NAME=VALUE; None if it is not valid."""
    name, separator, value = text.partition("=")
    return (name, value) if separator and LABEL_NAME.fullmatch(name) and name != "stage" else None


def _read_last_success(path: str) -> float | None:
    """Return the time of the last success in a file of metrics; None if there is none."""
    try:
        return read_last_success(Path(path).read_text())
    except (OSError, ValueError):  # the file does not exist or is not text
        return None


def _write_file(option: str, path: str, text: str, exit_code: int) -> int:
    """Write a whole file; if that fails, print the error. Return the exit code, see `Record.write`."""
    from dumap.store.disk import write

    absolute_path = Path(path).absolute()
    try:
        write(str(absolute_path.parent), absolute_path.name, text.encode())
    except (OSError, DumapError) as error:
        log_message(f"{option} {path} cannot be written ({error})")
        return exit_code or StorageError.exit_code
    return exit_code

"""What all commands share, by whichever door: two options, signals, and errors as a line and an exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Any

import click

from dumap.cli.logs import LOG_JSON, asks_for_json, dask_logs, say_error, to_stderr
from dumap.errors import DumapError, Terminated

DEBUG = "debug"
"""Name of the option, and key of the click context's `meta`, that asks for tracebacks."""
MISUSED = 2
"""Exit code of words that are no command, as of a bad configuration."""
UNEXPECTED = 70
"""Exit code of an error that dumap did not foresee."""
RECORD = "record"
"""Key of the click context's `meta` for what is written of a command's end: see `dumap.cli.records`."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def _remember(context: click.Context, option: click.Parameter, given: bool) -> None:
    """Keep that a flag was given, before the command's name or after it."""
    if given:
        context.meta[str(option.name)] = True


def _with_shared(params: list[click.Parameter] | None) -> list[click.Parameter]:
    """Add the options that may come before or after a command's name."""
    shared = {DEBUG: "Show tracebacks.", LOG_JSON: "Log as JSON, an object a line, on standard error."}
    flags = [
        click.Option(
            [f"--{name.replace('_', '-')}", name], is_flag=True, expose_value=False, callback=_remember, help=said
        )
        for name, said in shared.items()
    ]
    return [*(params or []), *flags]


def _terminate(number: int, frame: object) -> None:
    """End as Ctrl-C does: what is held is released, once."""
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


class Command(click.Command):
    """A command that takes the shared options too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "params": _with_shared(options.get("params"))})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, once it is known what Dask may say meanwhile."""
        with dask_logs("debug" if DEBUG in ctx.meta else "critical"):
            return super().invoke(ctx)


class Group(click.Group):
    """Commands whose errors are a line and an exit code: those of `dumap`, and of `dask dumap` too."""

    command_class = Command

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "params": _with_shared(options.get("params"))})

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what goes wrong has no traceback unless --debug is given."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        with to_stderr(ctx.meta):
            try:
                result, code = super().invoke(ctx), 0
            except click.exceptions.Exit as ended:
                result, code = None, ended.exit_code
            except (Exception, KeyboardInterrupt) as error:
                ctx.exit(_fail(ctx, error))
            if recorded := _record(ctx, code):
                ctx.exit(recorded)
            return result


def _record(ctx: click.Context, code: int, message: str | None = None, notes: Sequence[str] = ()) -> int:
    """Have the command's record written, where it has one; return the exit code."""
    record = ctx.meta.get(RECORD)
    return code if record is None else int(record.write(code, message, notes))


def _fail(ctx: click.Context, error: BaseException) -> int:
    """Tell why a command failed; return its exit code. An error that is to be shown with a traceback is raised."""
    (code, message), foreseen = _outcome(error), isinstance(error, DumapError)
    notes = getattr(error, "__notes__", []) if foreseen else []
    code = _record(ctx, code, message, notes)
    misused = isinstance(error, click.ClickException)
    if DEBUG in ctx.meta and not misused and not isinstance(error, click.Abort | KeyboardInterrupt):
        raise error
    if isinstance(error, click.ClickException) and not asks_for_json():
        error.show()
    else:
        say_error(code, message, notes)
    return code


def _outcome(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and what is said of it."""
    if isinstance(error, click.Abort | KeyboardInterrupt):
        asked = isinstance(error.__cause__ or error, Terminated)
        code = Terminated.exit_code if asked else INTERRUPTED
        return code, "interrupted; what is committed is kept, the same command goes on from there"
    if isinstance(error, click.ClickException):
        return MISUSED, error.format_message()
    if isinstance(error, DumapError):
        return error.exit_code, str(error)
    return UNEXPECTED, f"unexpected {type(error).__name__}: {error} (--debug shows where)"

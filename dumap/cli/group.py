"""What all commands share: two options, the handling of signals, and the conversion of errors to exit codes."""

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
"""Exit code for arguments that are not valid, the same as for a bad configuration."""
UNEXPECTED = 70
"""Exit code for an error that is not a `DumapError`."""
RECORD = "record"
"""Key of the click context's `meta` for the record of a command: see `dumap.cli.records`."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def _remember(context: click.Context, option: click.Parameter, is_set: bool) -> None:
    """Record in the context that a flag was given, before or after the command's name."""
    if is_set:
        context.meta[str(option.name)] = True


def _with_shared(params: list[click.Parameter] | None) -> list[click.Parameter]:
    """Return parameters with the options that may come before or after a command's name."""
    shared = {DEBUG: "Show tracebacks.", LOG_JSON: "Log as JSON, an object a line, on standard error."}
    flags = [
        click.Option(
            [f"--{name.replace('_', '-')}", name], is_flag=True, expose_value=False, callback=_remember, help=text
        )
        for name, text in shared.items()
    ]
    return [*(params or []), *flags]


def _terminate(number: int, frame: object) -> None:
    """Raise Terminated, which ends the command as Ctrl-C does; ignore further signals."""
    signal.signal(number, signal.SIG_IGN)
    raise Terminated


class Command(click.Command):
    """A command that also takes the shared options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "params": _with_shared(options.get("params"))})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, after setting the level of Dask's logs."""
        with dask_logs("debug" if DEBUG in ctx.meta else "critical"):
            return super().invoke(ctx)


class Group(click.Group):
    """The group of commands of `dumap` and `dask dumap`, whose errors are printed as a line and give an exit code."""

    command_class = Command

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "params": _with_shared(options.get("params"))})

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error has a traceback only if --debug is given."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        with to_stderr(ctx.meta):
            try:
                result, code = super().invoke(ctx), 0
            except click.exceptions.Exit as error:
                result, code = None, error.exit_code
            except (Exception, KeyboardInterrupt) as error:
                ctx.exit(_fail(ctx, error))
            if code := _record(ctx, code):
                ctx.exit(code)
            return result


def _record(ctx: click.Context, code: int, message: str | None = None, notes: Sequence[str] = ()) -> int:
    """Write the command's record, if it has one; return the exit code."""
    record = ctx.meta.get(RECORD)
    return code if record is None else int(record.write(code, message, notes))


def _fail(ctx: click.Context, error: BaseException) -> int:
    """Print why a command failed, and return its exit code. With --debug, raise the error instead."""
    code, message = _outcome(error)
    notes = getattr(error, "__notes__", []) if isinstance(error, DumapError) else []
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
    """Return the exit code and the message of an error."""
    if isinstance(error, click.Abort | KeyboardInterrupt):
        terminated = isinstance(error.__cause__ or error, Terminated)
        code = Terminated.exit_code if terminated else INTERRUPTED
        return code, "interrupted; what is committed is kept, the same command goes on from there"
    if isinstance(error, click.ClickException):
        return MISUSED, error.format_message()
    if isinstance(error, DumapError):
        return error.exit_code, str(error)
    return UNEXPECTED, f"unexpected {type(error).__name__}: {error} (--debug shows where)"

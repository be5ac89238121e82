"""What all commands share: two options, the handling of signals, and the conversion of errors to exit codes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Any

import click

from dumap.cli.logs import LOG_JSON_OPTION, dask_log_level, log_error, log_to_stderr, should_log_json
from dumap.errors import DumapError, Terminated

DEBUG_OPTION = "debug"
"""Name of the option, and key of the click context's `meta`, that asks for tracebacks."""
USAGE_EXIT_CODE = 2
"""Exit code for arguments that are not valid, the same as for a bad configuration."""
UNEXPECTED_EXIT_CODE = 70
"""Exit code for an error that is not a `DumapError`."""
RECORD_KEY = "record"
"""Key of the click context's `meta` for the record of a command: see `dumap.cli.records`."""
INTERRUPTED_EXIT_CODE = 130
"""Exit code after Ctrl-C."""


def _store_flag(context: click.Context, option: click.Parameter, is_set: bool) -> None:
    """Record in the context that a flag was given, before or after the command's name."""
    if is_set:
        context.meta[str(option.name)] = True


def _add_shared_options(params: list[click.Parameter] | None) -> list[click.Parameter]:
    """Return parameters with the options that may come before or after a command's name."""
    help_by_option = {
        DEBUG_OPTION: "Show tracebacks.",
        LOG_JSON_OPTION: "Log as JSON, an object a line, on standard error.",
    }
    flags = [
        click.Option(
            [f"--{name.replace('_', '-')}", name],
            is_flag=True,
            expose_value=False,
            callback=_store_flag,
            help=help_text,
        )
        for name, help_text in help_by_option.items()
    ]
    return [*(params or []), *flags]


def _raise_terminated(signal_number: int, frame: object) -> None:
    """Raise Terminated, which ends the command as Ctrl-C does; ignore further signals."""
    signal.signal(signal_number, signal.SIG_IGN)
    raise Terminated


class Command(click.Command):
    """A command that also takes the shared options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "params": _add_shared_options(options.get("params"))})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, after setting the level of Dask's logs."""
        with dask_log_level("debug" if DEBUG_OPTION in ctx.meta else "critical"):
            return super().invoke(ctx)


class Group(click.Group):
    """The group of commands of `dumap` and `dask dumap`, whose errors are printed as a line and give an exit code."""

    command_class = Command

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "params": _add_shared_options(options.get("params"))})

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error has a traceback only if --debug is given."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _raise_terminated)
        with log_to_stderr(ctx.meta):
            try:
                result, exit_code = super().invoke(ctx), 0
            except click.exceptions.Exit as error:
                result, exit_code = None, error.exit_code
            except (Exception, KeyboardInterrupt) as error:
                ctx.exit(_report_error(ctx, error))
            if exit_code := _write_record(ctx, exit_code):
                ctx.exit(exit_code)
            return result


def _write_record(ctx: click.Context, exit_code: int, message: str | None = None, notes: Sequence[str] = ()) -> int:
    """Write the command's record, if it has one; return the exit code."""
    record = ctx.meta.get(RECORD_KEY)
    return exit_code if record is None else int(record.write(exit_code, message, notes))


def _report_error(ctx: click.Context, error: BaseException) -> int:
    """Print why a command failed, and return its exit code. With --debug, raise the error instead."""
    exit_code, message = _exit_code_and_message(error)
    notes = getattr(error, "__notes__", []) if isinstance(error, DumapError) else []
    exit_code = _write_record(ctx, exit_code, message, notes)
    is_usage_error = isinstance(error, click.ClickException)
    if DEBUG_OPTION in ctx.meta and not is_usage_error and not isinstance(error, click.Abort | KeyboardInterrupt):
        raise error
    if isinstance(error, click.ClickException) and not should_log_json():
        error.show()
    else:
        log_error(exit_code, message, notes)
    return exit_code


def _exit_code_and_message(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the message of an error."""
    if isinstance(error, click.Abort | KeyboardInterrupt):
        is_terminated = isinstance(error.__cause__ or error, Terminated)
        exit_code = Terminated.exit_code if is_terminated else INTERRUPTED_EXIT_CODE
        return exit_code, "interrupted; what is committed is kept, the same command goes on from there"
    if isinstance(error, click.ClickException):
        return USAGE_EXIT_CODE, error.format_message()
    if isinstance(error, DumapError):
        return error.exit_code, str(error)
    return UNEXPECTED_EXIT_CODE, f"unexpected {type(error).__name__}: {error} (--debug shows where)"

"""The options of commands that open a run for the service behind its URL. Their values appear in no output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from dumap.errors import ConfigError

LOCATION_PARAMETERS = ("run", "out", "output", "labels")
"""Parameters of commands that may be URLs."""


def storage_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --storage to a command."""
    help_text = (
        "An option of the service behind URLs: see 'dumap config storage'. For secrets use a file or the environment."
    )
    return click.option("--storage", multiple=True, metavar="KEY=VALUE", help=help_text)(command)


def with_storage(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options --storage and --config to a command, which opens its locations with them."""

    @functools.wraps(command)
    def command_with_storage(storage: tuple[str, ...], config_file: str | None, **arguments: Any) -> Any:
        if options := _read_storage_options(config_file, storage):
            from dumap.store import set_options

            locations = [arguments[name] for name in LOCATION_PARAMETERS if arguments.get(name) is not None]
            set_options([*locations, *arguments.get("sources", ())], options)
        return command(**arguments)

    help_text = "A configuration, of which only the section storage is used."
    config_option = click.option(
        "--config", "config_file", metavar="FILE", type=click.Path(dir_okay=False), help=help_text
    )
    return storage_option(config_option(command_with_storage))


def storage_settings(storage: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values of --storage in the form of --set."""
    invalid_numbers = [
        number for number, text in enumerate(storage, 1) if not text.partition("=")[0].strip() or "=" not in text
    ]
    if invalid_numbers:  # the message does not show the text, which may be a secret
        raise ConfigError(f"--storage, number {invalid_numbers[0]} of {len(storage)}: write it as KEY=VALUE")
    return tuple(f"storage.{text}" for text in storage)


def _read_storage_options(config_file: str | None, storage: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of a configuration's file and of --storage; those of --storage replace others."""
    if config_file is None and not storage:
        return {}
    from dumap.config import load_config, read_file

    section = {} if config_file is None else read_file(config_file).get("storage")
    required_settings = {
        "input.path": "-",
        "output": "-",
        "storage": dict(section) if isinstance(section, dict) else section,
    }
    options: dict[str, Any] = dict(load_config(None, (), required_settings).storage)
    return options | dict(load_config(None, storage_settings(storage), {"input.path": "-", "output": "-"}).storage)

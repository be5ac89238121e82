"""The options of commands that open a run: those of the service behind its URL, which are shown to nobody."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from dumap.errors import ConfigError

PLACES = ("run", "out", "output", "labels")
"""Parameters of commands that may be URLs."""


def storage_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option --storage."""
    said = (
        "An option of the service behind URLs: see 'dumap config storage'. For secrets take a file or the environment."
    )
    return click.option("--storage", multiple=True, metavar="KEY=VALUE", help=said)(command)


def with_storage(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command options by which the places are opened that its words name."""

    @functools.wraps(command)
    def opened(storage: tuple[str, ...], config_file: str | None, **words: Any) -> Any:
        if options := _options(config_file, storage):
            from dumap.store import use_options

            places = [words[name] for name in PLACES if words.get(name) is not None]
            use_options([*places, *words.get("sources", ())], options)
        return command(**words)

    said = "A configuration, of which the section storage is used."
    named = click.option("--config", "config_file", metavar="FILE", type=click.Path(dir_okay=False), help=said)
    return storage_option(named(opened))


def storage_settings(storage: tuple[str, ...]) -> tuple[str, ...]:
    """Return --storage as --set would have it."""
    odd = [number for number, one in enumerate(storage, 1) if not one.partition("=")[0].strip() or "=" not in one]
    if odd:  # what is no key may be a secret
        raise ConfigError(f"--storage, number {odd[0]} of {len(storage)}: write it as KEY=VALUE")
    return tuple(f"storage.{one}" for one in storage)


def _options(config_file: str | None, storage: tuple[str, ...]) -> dict[str, Any]:
    """Return what a file and words say; words win."""
    if config_file is None and not storage:
        return {}
    from dumap.config import load, read_file

    given = {} if config_file is None else read_file(config_file).get("storage")
    required = {"input.path": "-", "output": "-", "storage": dict(given) if isinstance(given, dict) else given}
    found: dict[str, Any] = dict(load(None, (), required).storage)
    return found | dict(load(None, storage_settings(storage), {"input.path": "-", "output": "-"}).storage)

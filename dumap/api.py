"""Embed from a program: with the client it has, or with a cluster of dumap's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dumap.config import Config, build
from dumap.recipe import pipeline

if TYPE_CHECKING:
    from distributed import Client

    from dumap.engine import Observer


def run(
    config: Config | Mapping[str, Any],
    client: Client | None = None,
    observer: Observer | None = None,
    force: bool = False,
    parent: str | None = None,
) -> dict[str, Any]:
    """Embed a data set, going on where an earlier call stopped.

    Parameters
    ----------
    config : Config or mapping
        A mapping has the keys of the YAML files.
    client : distributed.Client, optional
        Where to run; by default what the configuration names, or an embedded cluster.
    observer : Observer, optional
        Told of stages and progress; by default the logger `dumap` is, at the level INFO.
    force : bool
        Go on with stages that were begun with other versions of the libraries, or on other processors.
    parent : str, optional
        Another run, of whose finished stages those are read that this one would make alike.

    Returns
    -------
    dict
        The run's status: 'output', 'state' and 'stages', each with seconds, peak memory and facts.

    Raises
    ------
    DumapError
        With an `exit_code`, and a message that says what to do.
    """
    return pipeline.run(config if isinstance(config, Config) else build(config), client, observer, force, parent)

"""The commands for runs that a cluster drives by itself: submit, attach, cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from dumap.cli.commands import cli, config_options, load_settings
from dumap.cli.logs import should_log_json
from dumap.cli.storage import with_storage
from dumap.cluster_runs import attach as attach_handle
from dumap.cluster_runs import submit as submit_run
from dumap.json_values import to_json

if TYPE_CHECKING:
    from distributed import Client

    from dumap.config import ClusterConfig


def _scheduler_options(command: Callable[..., Any]) -> Any:
    """Add the options that name a scheduler to a command."""
    for option in (
        click.option("--scheduler-file", metavar="FILE", help="A Dask scheduler's file."),
        click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler. [DASK_SCHEDULER_ADDRESS]"),
    ):
        command = option(command)
    return command


@contextmanager
def _open_client(cluster: ClusterConfig) -> Iterator[Client]:
    """Open a client of the named cluster, as a context."""
    from dumap.engine.connect import open_client

    with open_client(cluster) as client:
        yield client


def _cluster_config(scheduler: str | None, scheduler_file: str | None) -> ClusterConfig:
    """Return the section `cluster` that names a scheduler."""
    from dumap.config import build_config

    settings = {"scheduler": scheduler, "scheduler_file": scheduler_file}
    return build_config({"input": {"path": "-"}, "output": "-", "cluster": settings}).cluster


@cli.command()
@config_options
@click.option("--force", is_flag=True, help="Continue stages that other versions began.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def submit(as_json: bool, force: bool, parent: str | None, **options: Any) -> None:
    """Send a run to a Dask cluster, which then drives it by itself."""
    config = load_settings(**options)
    with _open_client(config.cluster) as client:
        handle = submit_run(config=config, client=client, parent=parent, force=force)
        if as_json:
            click.echo(to_json({"output": handle.output, "task": handle.status()["task"]}))
        else:
            click.echo(f"submitted: {handle.output}; 'dumap attach {handle.output}' follows it")


@cli.command()
@click.argument("run")
@_scheduler_options
@click.option("--json", "as_json", is_flag=True, help="Print the run's status for machines at the end.")
@with_storage
def attach(run: str, scheduler: str | None, scheduler_file: str | None, as_json: bool) -> None:
    """Follow a run that a cluster drives until it ends; Ctrl-C does not end the run."""
    from dumap.cli.progress import open_observer

    with (
        _open_client(_cluster_config(scheduler, scheduler_file)) as client,
        open_observer(should_log_json()) as progress_observer,
    ):
        result = attach_handle(run, client).result(on_progress=progress_observer)
    click.echo(to_json(dict(result)) if as_json else f"done: {result.path}, arrays 'embedding' and 'status'")


@cli.command()
@click.argument("run")
@_scheduler_options
@with_storage
def cancel(run: str, scheduler: str | None, scheduler_file: str | None) -> None:
    """End a run that a cluster drives; committed parts are kept."""
    with _open_client(_cluster_config(scheduler, scheduler_file)) as client:
        handle = attach_handle(run, client)
        handle.cancel()
        click.echo(f"cancelled: {handle.output}; 'dumap submit' or 'dumap run' goes on from there")

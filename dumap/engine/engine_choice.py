"""Chooses the engine that runs the tasks: threads of this process, or a Dask cluster."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dumap.config import ClusterConfig, format_bytes
from dumap.engine.checks import single_thread_memory_limit
from dumap.engine.resources import cpu_count, free_memory, process_memory_limit
from dumap.errors import BudgetError, ConfigError
from dumap.planning.budget import PAUSE_FRACTION, process_bytes
from dumap.planning.plan import Plan

if TYPE_CHECKING:
    from distributed import Client

    from dumap.engine import Engine, Observer

MAX_LOCAL_SECONDS = 60.0
"""The local engine is chosen for at most this many seconds of work on one core: a cluster takes about ten to start."""
CLUSTER_SETTINGS = ("workers", "memory_limit", "scheduler", "scheduler_file", "report", "resources", "allow_workers")
"""Settings that need a cluster."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine that runs the tasks.

    Attributes
    ----------
    name : str
        'local' or 'dask'.
    reason : str
    threads : int
        The threads of the local engine; 0 with Dask.
    worker_memory : int
        The memory of one task and the interpreter in the local engine; 0 with Dask.
    """

    name: Literal["local", "dask"]
    reason: str
    threads: int = 0
    worker_memory: int = 0


def _may_files_name_scheduler() -> bool:
    """Return whether a file of Dask's configuration may name a scheduler; does not import Dask."""
    config_paths = [os.environ.get("DASK_ROOT_CONFIG", "/etc/dask"), f"{sys.prefix}/etc/dask", "~/.config/dask"]
    config_paths += [folder for folder in [os.environ.get("DASK_CONFIG")] if folder]
    for config_path in (Path(config_path).expanduser() for config_path in config_paths):
        with contextlib.suppress(OSError):
            for file in (
                [config_path]
                if config_path.is_file()
                else [*config_path.glob("*.yaml"), *config_path.glob("*.yml"), *config_path.glob("*.json")]
            ):
                lines = (line.strip() for line in file.read_text(errors="replace").splitlines())
                if any("scheduler" in line and "address" in line and not line.startswith("#") for line in lines):
                    return True
    return False


def scheduler_address() -> str | None:
    """Return the scheduler that Dask's configuration names, or None. Dask is imported only if a scheduler is likely."""
    if "dask" not in sys.modules and not os.environ.get("DASK_SCHEDULER_ADDRESS") and not _may_files_name_scheduler():
        return None
    import dask

    address: Any = dask.config.get("scheduler-address", None)
    return address


def choose_engine(cluster: ClusterConfig, plan: Plan, client: Client | None = None) -> EngineChoice:
    """Choose the engine by the settings, the amount of work and the free memory.

    Parameters
    ----------
    cluster : ClusterConfig
    plan : Plan
    client : distributed.Client, optional

    Raises
    ------
    ConfigError
        The setting names the local engine, and a client is given.
    BudgetError
        The setting names the local engine, and memory does not suffice.
    """
    if cluster.engine == "dask":
        return EngineChoice("dask", "cluster.engine is dask")
    if cluster.engine == "local":
        if client is not None:
            raise ConfigError("cluster.engine = 'local' does not go with a client: leave out the one or the other")
        return _choose_local(cluster, plan)
    if client is not None:
        return EngineChoice("dask", "a client is given")
    given_settings = [name for name in CLUSTER_SETTINGS if getattr(cluster, name)]
    if given_settings:
        return EngineChoice("dask", f"cluster.{given_settings[0]} is given")
    if address := scheduler_address():
        return EngineChoice("dask", f"Dask's configuration names the scheduler {address}")
    if plan.core_seconds > MAX_LOCAL_SECONDS:
        return EngineChoice("dask", f"about {plan.core_seconds:.0f} s of work for one core")
    threads, available_bytes = cpu_count(), _available_memory()
    needed_bytes = process_bytes(plan.peak_bytes, threads)
    if needed_bytes > available_bytes * PAUSE_FRACTION:
        return EngineChoice(
            "dask", f"{threads} threads take {format_bytes(needed_bytes)}, {format_bytes(available_bytes)} are free"
        )
    reason = f"about {plan.core_seconds:.0f} s of work for one core"
    return EngineChoice("local", reason, threads, single_thread_memory_limit(available_bytes, threads))


def _available_memory() -> int:
    """Return the bytes of memory that this process may still take."""
    return min(free_memory(), process_memory_limit() or sys.maxsize)


def _choose_local(cluster: ClusterConfig, plan: Plan) -> EngineChoice:
    """Choose as many threads as processors, or as many as memory suffices for."""
    available_bytes, threads, needed_bytes = _available_memory(), cpu_count(), int(plan.peak_bytes / PAUSE_FRACTION)
    while threads > 1 and process_bytes(plan.peak_bytes, threads) > available_bytes * PAUSE_FRACTION:
        threads -= 1
    worker_memory = cluster.memory_limit or single_thread_memory_limit(available_bytes, threads)
    if needed_bytes > worker_memory:
        stage = max(plan.stages, key=lambda stage: stage.peak_bytes)
        raise BudgetError(
            f"cluster.engine = 'local': stage {stage.name} is projected to peak at {format_bytes(stage.peak_bytes)} in "
            f"one thread, but {format_bytes(cluster.memory_limit or available_bytes)} may be had, of which "
            f"{PAUSE_FRACTION:.0%} may be used: free memory until there are {format_bytes(needed_bytes)}, lower "
            f"task_memory, or run on a cluster"
        )
    return EngineChoice("local", "cluster.engine is local", threads, worker_memory)


@contextlib.contextmanager
def open_engine(
    choice: EngineChoice, cluster: ClusterConfig, client: Client | None, observer: Observer, worker_bytes: int
) -> Iterator[Engine]:
    """Open the chosen engine, as a context. `dumap.engine.connect` opens clusters.

    Raises
    ------
    DumapError
    """
    if choice.name == "local":
        from dumap.engine.local import LocalEngine

        observer.note(f"local engine: {choice.threads} threads of this process ({choice.reason})")
        yield LocalEngine(choice.threads, choice.worker_memory, cluster.task_timeout)
        return
    from dumap.engine.connect import connect

    with connect(cluster, client, observer, worker_bytes) as engine:
        yield engine

"""Connects to a cluster: through the given client, at the named scheduler, or by starting an embedded cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import dask
from distributed import Client, Security, get_worker, worker_client
from distributed import comm as comms

from dumap.config import ClusterConfig, format_bytes
from dumap.engine.cluster import DaskEngine, Observer
from dumap.engine.embedded import CannotStart, embedded
from dumap.engine.performance_report import check_report, reported
from dumap.engine.resources import cpu_count, free_memory, process_memory
from dumap.engine.scheduling import Sharing
from dumap.errors import ClusterError, ConfigError

WORKERS_SHARE = 0.9
"""Share of the free memory that an embedded cluster's workers may use; the driver and the scheduler use the rest."""
STARTING_SECONDS = 600.0
"""Seconds that an embedded cluster may take to start."""
FIRST_TRY_SECONDS = 5.0
"""Seconds to try an address before the scheduler file is read again; doubled after each timeout."""
READ_AGAIN_SECONDS = 0.2
"""Seconds between reads of the scheduler file."""
UNREACHED = (OSError, TimeoutError, ValueError, KeyError, TypeError, RuntimeError)
"""Errors raised if a scheduler file is incomplete, or if no scheduler answers at the address."""


@contextlib.contextmanager
def connect(
    cluster: ClusterConfig, client: Client | None, observer: Observer, need_bytes: int = 0
) -> Iterator[DaskEngine]:
    """Connect to a cluster: through the client, at the named scheduler, or by starting an embedded cluster.

    Parameters
    ----------
    cluster : ClusterConfig
    client : distributed.Client, optional
    observer : Observer
    need_bytes : int
        Memory that a worker needs. An embedded cluster has at most as many workers as fit the free memory.

    Raises
    ------
    ConfigError
        The settings contradict one another or the client, or the client cannot be used.
    ClusterError
        No scheduler answers within `cluster.timeout` seconds, or an embedded cluster cannot start.
    """
    check_report(cluster.report)
    address = None if cluster.scheduler_file else cluster.scheduler or dask.config.get("scheduler-address", None)
    _check_alone(cluster, client, address, observer)
    with ExitStack() as stack:
        if client is not None:
            reached = _usable(stack, client, cluster.timeout)
        elif address or cluster.scheduler_file:
            reached = stack.enter_context(_find(cluster, address))
        else:
            _check_choosing(cluster)
            reached = _embedded(stack, cluster, observer, need_bytes)
        stack.enter_context(reported(reached, cluster.report, cluster.timeout, observer.note))
        if client is not None or address or cluster.scheduler_file:
            stack.enter_context(secede_while_waiting())
        yield DaskEngine(reached, cluster.timeout, cluster.worker_timeout, observer.note, Sharing.of(cluster))


def _check_alone(cluster: ClusterConfig, client: Client | None, address: str | None, observer: Observer) -> None:
    """Refuse settings of an embedded cluster if a scheduler is named; with a client, note that they are ignored."""
    settings = [
        f"cluster.{name} = {getattr(cluster, name)}" for name in ("workers", "memory_limit") if getattr(cluster, name)
    ]
    if settings and client is not None:
        observer.note(f"{' and '.join(settings)}: left aside, the client that is given has workers of its own")
    elif settings and address:
        raise ConfigError(
            f"{' and '.join(settings)}: of an embedded cluster, but Dask's configuration names the scheduler "
            f"{address}, whose workers are as they are: leave out {' and '.join(settings)}, or unset "
            f"DASK_SCHEDULER_ADDRESS (Dask's scheduler-address)"
        )


def _check_choosing(cluster: ClusterConfig) -> None:
    """Refuse settings that choose workers, since the workers of an embedded cluster are alike."""
    if described := Sharing.of(cluster).described():
        raise ConfigError(
            f"{described}: the workers of an embedded cluster are alike and have neither resources nor names to choose "
            f"by: name a scheduler, give a client, or leave it out"
        )


# an embedded cluster -----------------------------------------------------------------------------


def size_embedded(cluster: ClusterConfig, need_bytes: int) -> tuple[int, int, str]:
    """Return the number of an embedded cluster's workers, the memory limit of each, and why there are fewer than CPUs.

    Parameters
    ----------
    cluster : ClusterConfig
    need_bytes : int
        Memory that a worker needs.
    """
    cpus, room = cpu_count(), int(free_memory() * WORKERS_SHARE)
    most = process_memory() or room
    each = cluster.memory_limit or need_bytes
    fitting = max(1, room // each) if each else cpus
    workers = cluster.workers or min(cpus, fitting)
    limit = cluster.memory_limit or min(room // workers, most)
    why = ""
    if not cluster.workers and workers < cpus:
        why = (
            f" ({cpus} CPUs, but room for {workers}: {format_bytes(room)} may be used, each takes {format_bytes(each)})"
        )
    return workers, limit, why


def _embedded(stack: ExitStack, cluster: ClusterConfig, observer: Observer, need_bytes: int) -> Client:
    """Start an embedded cluster, and return a client of it."""
    workers, limit, why = size_embedded(cluster, need_bytes)
    try:
        local = stack.enter_context(embedded(workers, limit, STARTING_SECONDS))
        observer.note(f"embedded cluster: {local.workers} worker processes of {format_bytes(local.memory_limit)}{why}")
        return stack.enter_context(Client(local.address, timeout=cluster.timeout, set_as_default=False))
    except (CannotStart, OSError, TimeoutError) as error:
        raise ClusterError(
            f"the embedded cluster cannot start ({error}): look at memory, and at the room in Dask's "
            f"temporary-directory"
        ) from error


# a scheduler that is named -----------------------------------------------------------------------


def _find(cluster: ClusterConfig, address: str | None) -> Client:
    """Connect to the named scheduler. A scheduler file is read again until the scheduler answers at its address."""
    file, deadline, try_seconds = cluster.scheduler_file, time.monotonic() + cluster.timeout, FIRST_TRY_SECONDS
    while True:
        remaining = max(1.0, deadline - time.monotonic())
        try:
            where = address or str(json.loads(Path(str(file)).read_text())["address"])
            _check_answers(where, min(remaining, try_seconds) if file else remaining)
            return Client(where, timeout=remaining, set_as_default=False)
        except UNREACHED as error:
            try_seconds *= 2 if isinstance(error, TimeoutError) else 1
            if not file or time.monotonic() + READ_AGAIN_SECONDS > deadline:
                raise _unreached(cluster, address, error) from error
            time.sleep(READ_AGAIN_SECONDS)


def _unreached(cluster: ClusterConfig, address: str | None, error: Exception) -> ClusterError:
    """Return the error to raise if no scheduler answers."""
    within = f"within {cluster.timeout:.0f} s"
    if isinstance(error, FileNotFoundError):
        return ClusterError(
            f"cluster.scheduler_file: no {cluster.scheduler_file} {within}; start a scheduler with --scheduler-file, "
            f"or raise cluster.timeout"
        )
    where, tls = cluster.scheduler_file or address, ""
    if str(address).startswith("tls://") or "ssl" in str(error).lower():
        tls = "; a scheduler with TLS needs distributed.comm.tls in Dask's configuration here"
    return ClusterError(f"no scheduler answers at {where} {within} ({type(error).__name__}: {error}){tls}")


def _check_answers(address: str, seconds: float, security: Security | None = None) -> None:
    """Raise TimeoutError unless the scheduler accepts a connection in time; `Client` itself could wait forever."""

    async def open_and_close() -> None:
        arguments = (security or Security()).get_connection_args("client")
        comm = await asyncio.wait_for(comms.connect(address, timeout=seconds, **arguments), seconds)
        await comm.close()

    _call_in_thread(lambda: asyncio.run(open_and_close()))


def _call_in_thread(call: Callable[[], None]) -> None:
    """Call a function in another thread, since the caller may run inside an event loop."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()


def open_client(cluster: ClusterConfig) -> Client:
    """Connect to the scheduler that this configuration or Dask's configuration names.

    Raises
    ------
    ConfigError
        Neither configuration names a scheduler.
    ClusterError
        No scheduler answers within `cluster.timeout` seconds.
    """
    address = None if cluster.scheduler_file else cluster.scheduler or dask.config.get("scheduler-address", None)
    if not address and not cluster.scheduler_file:
        raise ConfigError(
            "no cluster is named: give a client, cluster.scheduler (--scheduler), cluster.scheduler_file "
            "(--scheduler-file), or set DASK_SCHEDULER_ADDRESS"
        )
    return _find(cluster, address)


# a client that is given --------------------------------------------------------------------------


def _usable(stack: ExitStack, client: Client, seconds: float) -> Client:
    """Return a client on which this thread may block.

    The given client is returned if it is synchronous. For an asynchronous client, which runs in the event loop of this
    thread, a second client is opened.
    """
    if client.status != "running" or client.scheduler is None:
        raise ConfigError(
            f"the client is {client.status}, not connected: open it (an asynchronous one: await it) first"
        )
    if not client.asynchronous:
        return client
    todo = "call dumap.run in a thread of its own: await asyncio.to_thread(dumap.run, ...)"
    if _in_a_worker():
        raise ConfigError(f"a task that is a coroutine keeps its worker from all else while dumap runs: {todo}")
    address = str(client.scheduler.address)
    try:
        _check_answers(address, seconds, client.security)
        return stack.enter_context(
            Client(address, timeout=seconds, security=client.security, asynchronous=False, set_as_default=False)
        )
    except UNREACHED as error:
        raise ClusterError(
            f"the client is asynchronous, and no scheduler answers at {address} within {seconds:.0f} s while its event "
            f"loop is kept by this call ({type(error).__name__}: {error}): {todo}"
        ) from error


def _in_a_worker() -> bool:
    """Return whether this code runs in a task on a Dask worker."""
    try:
        get_worker()
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def secede_while_waiting() -> Iterator[None]:
    """If this code runs in a task, let the worker use the task's thread for other tasks in this context."""
    if not _in_a_worker():
        yield
        return
    with worker_client():
        yield

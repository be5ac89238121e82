"""Reaches a cluster: the client that is given, the scheduler that is named, or an embedded one."""

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
from dumap.engine.report import check_report, reported
from dumap.engine.resources import cpu_count, free_memory, process_memory
from dumap.engine.sharing import Sharing
from dumap.errors import ClusterError, ConfigError

SHARE = 0.9
"""Of the memory that is free, what an embedded cluster's workers may have: the rest is for driver and scheduler."""
STARTING_SECONDS = 600.0
"""How long an embedded cluster may take to start."""
KNOCK_SECONDS = 5.0
"""How long one address of a scheduler's file is tried at first before the file is read again; later for longer."""
READ_AGAIN_SECONDS = 0.2
UNREACHED = (OSError, TimeoutError, ValueError, KeyError, TypeError, RuntimeError)
"""What is raised where a scheduler's file is not whole, or nobody answers as a scheduler does."""


@contextlib.contextmanager
def connect(
    cluster: ClusterConfig, client: Client | None, observer: Observer, need_bytes: int = 0
) -> Iterator[DaskEngine]:
    """Reach a cluster: the client given, the scheduler named, or an embedded one.

    Parameters
    ----------
    cluster : ClusterConfig
    client : distributed.Client, optional
    observer : Observer
    need_bytes : int
        Memory that a worker has to have: an embedded cluster has no more workers than that leaves room for.

    Raises
    ------
    ConfigError
        What is given contradicts itself, or the client cannot be used.
    ClusterError
        Nothing answers within `cluster.timeout` seconds, or an embedded cluster cannot start.
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
            stack.enter_context(_secede_while_waiting())
        yield DaskEngine(reached, cluster.timeout, cluster.worker_timeout, observer.note, Sharing.of(cluster))


def _check_alone(cluster: ClusterConfig, client: Client | None, address: str | None, observer: Observer) -> None:
    """Refuse settings of an embedded cluster if another is named; with a client, say that they are ignored."""
    given = [
        f"cluster.{name} = {getattr(cluster, name)}" for name in ("workers", "memory_limit") if getattr(cluster, name)
    ]
    if given and client is not None:
        observer.note(f"{' and '.join(given)}: left aside, the client that is given has workers of its own")
    elif given and address:
        raise ConfigError(
            f"{' and '.join(given)}: of an embedded cluster, but Dask's configuration names the scheduler {address}, "
            f"whose workers are as they are: leave out {' and '.join(given)}, or unset DASK_SCHEDULER_ADDRESS (Dask's "
            f"scheduler-address)"
        )


def _check_choosing(cluster: ClusterConfig) -> None:
    """Refuse to choose among the workers of an embedded cluster, which are alike."""
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
        Memory that a worker has to have.
    """
    cpus, room = cpu_count(), int(free_memory() * SHARE)
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
    """Reach the scheduler that is named, reading a file of its address again until somebody answers there."""
    file, deadline, patience = cluster.scheduler_file, time.monotonic() + cluster.timeout, KNOCK_SECONDS
    while True:
        remaining = max(1.0, deadline - time.monotonic())
        try:
            place = address or str(json.loads(Path(str(file)).read_text())["address"])
            _knock(place, min(remaining, patience) if file else remaining)
            return Client(place, timeout=remaining, set_as_default=False)
        except UNREACHED as error:
            patience *= 2 if isinstance(error, TimeoutError) else 1
            if not file or time.monotonic() + READ_AGAIN_SECONDS > deadline:
                raise _unreached(cluster, address, error) from error
            time.sleep(READ_AGAIN_SECONDS)


def _unreached(cluster: ClusterConfig, address: str | None, error: Exception) -> ClusterError:
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


def _knock(address: str, seconds: float, security: Security | None = None) -> None:
    """Fail with TimeoutError unless the scheduler shakes hands in time: a client would wait without a bound."""

    async def shake() -> None:
        arguments = (security or Security()).get_connection_args("client")
        comm = await asyncio.wait_for(comms.connect(address, timeout=seconds, **arguments), seconds)
        await comm.close()

    _apart(lambda: asyncio.run(shake()))


def _apart(call: Callable[[], None]) -> None:
    """Call in another thread, since the caller may be inside an event loop."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()


def open_client(cluster: ClusterConfig) -> Client:
    """Reach the scheduler that the configuration, or Dask's, names.

    Raises
    ------
    ConfigError
        Neither names one.
    ClusterError
        Nothing answers within `cluster.timeout` seconds.
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
    """Return a client that this thread can wait for: the given one, or another if the given one runs in this thread's
    loop.
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
        _knock(address, seconds, client.security)
        return stack.enter_context(
            Client(address, timeout=seconds, security=client.security, asynchronous=False, set_as_default=False)
        )
    except UNREACHED as error:
        raise ClusterError(
            f"the client is asynchronous, and no scheduler answers at {address} within {seconds:.0f} s while its event "
            f"loop is kept by this call ({type(error).__name__}: {error}): {todo}"
        ) from error


def _in_a_worker() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _secede_while_waiting() -> Iterator[None]:
    """Leave a worker's thread to other tasks while this one waits for them, where this is a task."""
    if not _in_a_worker():
        yield
        return
    with worker_client():
        yield

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
from dumap.engine.embedded import ClusterStartError, embedded_cluster
from dumap.engine.performance_report import check_report, write_performance_report
from dumap.engine.resources import cpu_count, free_memory, process_memory_limit
from dumap.engine.scheduling import SchedulingOptions
from dumap.errors import ClusterError, ConfigError

WORKERS_MEMORY_SHARE = 0.9
"""Share of the free memory that an embedded cluster's workers may use; the driver and the scheduler use the rest."""
START_TIMEOUT = 600.0
"""Seconds that an embedded cluster may take to start."""
FIRST_TRY_TIMEOUT = 5.0
"""Seconds to try an address before the scheduler file is read again; doubled after each timeout."""
FILE_RETRY_SECONDS = 0.2
"""Seconds between reads of the scheduler file."""
NO_ANSWER_ERRORS = (OSError, TimeoutError, ValueError, KeyError, TypeError, RuntimeError)
"""Errors raised if a scheduler file is incomplete, or if no scheduler answers at the address."""


@contextlib.contextmanager
def connect(
    cluster: ClusterConfig, client: Client | None, observer: Observer, worker_bytes: int = 0
) -> Iterator[DaskEngine]:
    """Connect to a cluster: through the client, at the named scheduler, or by starting an embedded cluster.

    Parameters
    ----------
    cluster : ClusterConfig
    client : distributed.Client, optional
    observer : Observer
    worker_bytes : int
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
    _check_embedded_settings(cluster, client, address, observer)
    with ExitStack() as stack:
        if client is not None:
            dask_client = _blocking_client(stack, client, cluster.timeout)
        elif address or cluster.scheduler_file:
            dask_client = stack.enter_context(_connect_to_scheduler(cluster, address))
        else:
            _check_worker_selection(cluster)
            dask_client = _start_embedded_cluster(stack, cluster, observer, worker_bytes)
        stack.enter_context(write_performance_report(dask_client, cluster.report, cluster.timeout, observer.note))
        if client is not None or address or cluster.scheduler_file:
            stack.enter_context(secede_while_waiting())
        yield DaskEngine(
            dask_client, cluster.timeout, cluster.worker_timeout, observer.note, SchedulingOptions.from_config(cluster)
        )


def _check_embedded_settings(
    cluster: ClusterConfig, client: Client | None, address: str | None, observer: Observer
) -> None:
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


def _check_worker_selection(cluster: ClusterConfig) -> None:
    """Refuse settings that choose workers, since the workers of an embedded cluster are alike."""
    if selection := SchedulingOptions.from_config(cluster).describe():
        raise ConfigError(
            f"{selection}: the workers of an embedded cluster are alike and have neither resources nor names to choose "
            f"by: name a scheduler, give a client, or leave it out"
        )


# an embedded cluster -----------------------------------------------------------------------------


def plan_embedded_cluster(cluster: ClusterConfig, worker_bytes: int) -> tuple[int, int, str]:
    """Return the number of an embedded cluster's workers, the memory limit of each, and why there are fewer than CPUs.

    Parameters
    ----------
    cluster : ClusterConfig
    worker_bytes : int
        Memory that a worker needs.
    """
    cpus, usable_bytes = cpu_count(), int(free_memory() * WORKERS_MEMORY_SHARE)
    process_limit = process_memory_limit() or usable_bytes
    bytes_each = cluster.memory_limit or worker_bytes
    max_workers = max(1, usable_bytes // bytes_each) if bytes_each else cpus
    workers = cluster.workers or min(cpus, max_workers)
    memory_limit = cluster.memory_limit or min(usable_bytes // workers, process_limit)
    reason = ""
    if not cluster.workers and workers < cpus:
        reason = (
            f" ({cpus} CPUs, but room for {workers}: {format_bytes(usable_bytes)} may be used, "
            f"each takes {format_bytes(bytes_each)})"
        )
    return workers, memory_limit, reason


def _start_embedded_cluster(stack: ExitStack, cluster: ClusterConfig, observer: Observer, worker_bytes: int) -> Client:
    """Start an embedded cluster, and return a client of it."""
    workers, memory_limit, reason = plan_embedded_cluster(cluster, worker_bytes)
    try:
        embedded = stack.enter_context(embedded_cluster(workers, memory_limit, START_TIMEOUT))
        observer.note(
            f"embedded cluster: {embedded.workers} worker processes of {format_bytes(embedded.memory_limit)}{reason}"
        )
        return stack.enter_context(Client(embedded.address, timeout=cluster.timeout, set_as_default=False))
    except (ClusterStartError, OSError, TimeoutError) as error:
        raise ClusterError(
            f"the embedded cluster cannot start ({error}): look at memory, and at the room in Dask's "
            f"temporary-directory"
        ) from error


# a scheduler that is named -----------------------------------------------------------------------


def _connect_to_scheduler(cluster: ClusterConfig, address: str | None) -> Client:
    """Connect to the named scheduler. A scheduler file is read again until the scheduler answers at its address."""
    scheduler_file, deadline, try_timeout = (
        cluster.scheduler_file,
        time.monotonic() + cluster.timeout,
        FIRST_TRY_TIMEOUT,
    )
    while True:
        remaining = max(1.0, deadline - time.monotonic())
        try:
            scheduler = address or str(json.loads(Path(str(scheduler_file)).read_text())["address"])
            _check_scheduler_answers(scheduler, min(remaining, try_timeout) if scheduler_file else remaining)
            return Client(scheduler, timeout=remaining, set_as_default=False)
        except NO_ANSWER_ERRORS as error:
            try_timeout *= 2 if isinstance(error, TimeoutError) else 1
            if not scheduler_file or time.monotonic() + FILE_RETRY_SECONDS > deadline:
                raise _no_answer_error(cluster, address, error) from error
            time.sleep(FILE_RETRY_SECONDS)


def _no_answer_error(cluster: ClusterConfig, address: str | None, error: Exception) -> ClusterError:
    """Return the error to raise if no scheduler answers."""
    time_limit = f"within {cluster.timeout:.0f} s"
    if isinstance(error, FileNotFoundError):
        return ClusterError(
            f"cluster.scheduler_file: no {cluster.scheduler_file} {time_limit}; start a scheduler with "
            f"--scheduler-file, or raise cluster.timeout"
        )
    scheduler, tls_hint = cluster.scheduler_file or address, ""
    if str(address).startswith("tls://") or "ssl" in str(error).lower():
        tls_hint = "; a scheduler with TLS needs distributed.comm.tls in Dask's configuration here"
    return ClusterError(f"no scheduler answers at {scheduler} {time_limit} ({type(error).__name__}: {error}){tls_hint}")


def _check_scheduler_answers(address: str, timeout: float, security: Security | None = None) -> None:
    """Raise TimeoutError unless the scheduler accepts a connection in time; `Client` itself could wait forever."""

    async def try_connection() -> None:
        arguments = (security or Security()).get_connection_args("client")
        connection = await asyncio.wait_for(comms.connect(address, timeout=timeout, **arguments), timeout)
        await connection.close()

    _run_in_thread(lambda: asyncio.run(try_connection()))


def _run_in_thread(function: Callable[[], None]) -> None:
    """Call a function in another thread, since the caller may run inside an event loop."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(function).result()


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
    return _connect_to_scheduler(cluster, address)


# a client that is given --------------------------------------------------------------------------


def _blocking_client(stack: ExitStack, client: Client, timeout: float) -> Client:
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
    remedy = "call dumap.run in a thread of its own: await asyncio.to_thread(dumap.run, ...)"
    if _is_in_worker():
        raise ConfigError(f"a task that is a coroutine keeps its worker from all else while dumap runs: {remedy}")
    address = str(client.scheduler.address)
    try:
        _check_scheduler_answers(address, timeout, client.security)
        return stack.enter_context(
            Client(address, timeout=timeout, security=client.security, asynchronous=False, set_as_default=False)
        )
    except NO_ANSWER_ERRORS as error:
        raise ClusterError(
            f"the client is asynchronous, and no scheduler answers at {address} within {timeout:.0f} s while its event "
            f"loop is kept by this call ({type(error).__name__}: {error}): {remedy}"
        ) from error


def _is_in_worker() -> bool:
    """Return whether this code runs in a task on a Dask worker."""
    try:
        get_worker()
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def secede_while_waiting() -> Iterator[None]:
    """If this code runs in a task, let the worker use the task's thread for other tasks in this context."""
    if not _is_in_worker():
        yield
        return
    with worker_client():
        yield

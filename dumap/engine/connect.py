"""Reaches a cluster: the client that is given, the scheduler that is named, or an embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
from distributed import Client, LocalCluster, Security
from distributed import comm as comms

from dumap.config import ClusterConfig, format_bytes
from dumap.engine.cluster import Executor, Observer
from dumap.engine.resources import cpu_count, free_memory
from dumap.errors import ClusterError, ConfigError


def _embedded(cluster: ClusterConfig) -> LocalCluster:
    workers = cluster.workers or cpu_count()
    limit = cluster.memory_limit or int(free_memory() * 0.9 / workers)
    pinned = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):  # every death comes back, to be judged
        try:
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=limit,
                dashboard_address=":0",
                silence_logs=50,
                env=pinned,
            )
        except (RuntimeError, OSError) as error:
            raise ClusterError(
                f"the embedded cluster cannot start ({type(error).__name__}: {error}): look at memory, and at the room "
                f"in Dask's temporary-directory"
            ) from error


def _knock(address: str, seconds: float) -> None:
    """Fail with TimeoutError unless the scheduler shakes hands in time: a client would wait without a bound."""

    async def shake() -> None:
        arguments = Security().get_connection_args("client")
        comm = await asyncio.wait_for(comms.connect(address, timeout=seconds, **arguments), seconds)
        await comm.close()

    with ThreadPoolExecutor(1) as apart:  # the caller may be inside an event loop of its own
        apart.submit(asyncio.run, shake()).result()


@contextlib.contextmanager
def connect(cluster: ClusterConfig, client: Client | None, observer: Observer) -> Iterator[Executor]:
    """Reach a cluster: the client given, the scheduler named, or an embedded one.

    Raises
    ------
    ClusterError
        Nothing answers within `cluster.timeout` seconds.
    """
    if client is not None:
        if client.asynchronous:
            raise ConfigError("the client is asynchronous: hand over a client made with asynchronous=False")
        yield Executor(client, cluster.timeout)
        return
    address = cluster.scheduler or (None if cluster.scheduler_file else dask.config.get("scheduler-address", None))
    with contextlib.ExitStack() as stack:
        if address is None and cluster.scheduler_file is None:
            local = stack.enter_context(_embedded(cluster))
            observer.note(
                f"embedded cluster: {len(local.workers)} worker processes of "
                f"{format_bytes(next(iter(local.workers.values())).memory_manager.memory_limit or 0)}"
            )
            yield Executor(stack.enter_context(Client(local)), cluster.timeout)
            return
        deadline = time.monotonic() + cluster.timeout
        if cluster.scheduler_file is not None:
            while not os.path.exists(cluster.scheduler_file):
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"cluster.scheduler_file: no {cluster.scheduler_file} within {cluster.timeout:.0f} s"
                    )
                time.sleep(0.2)
        try:
            if address is None:
                address = str(json.loads(Path(str(cluster.scheduler_file)).read_text())["address"])
            remaining = max(1.0, deadline - time.monotonic())
            _knock(address, remaining)
            reached = Client(address, timeout=remaining)
        except (OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"no scheduler answers at {cluster.scheduler_file or address} within {cluster.timeout:.0f} s "
                f"({type(error).__name__}: {error})"
            ) from error
        yield Executor(stack.enter_context(reached), cluster.timeout)

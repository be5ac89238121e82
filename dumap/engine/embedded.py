"""An embedded cluster: Dask's LocalCluster in a separate process, the host, which ends when the driver ends.

A separate host can be started from any program. If the driver started the workers itself, they would import its main
module again and run the code there that no `__main__` guard protects, and a daemonic process could not start them at
all. The scheduler would also share the driver's event loop, logging and Dask configuration.

The host runs this file by its path, so it does not import dumap. The workers do.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

END_TIMEOUT = 20.0
"""Seconds that a host may take to end its workers before all are killed."""
SINGLE_THREAD_ENV = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class EmbeddedCluster:
    """The address of an embedded cluster, the number of its workers, and the memory limit of each in bytes."""

    address: str
    workers: int
    memory_limit: int


class ClusterStartError(Exception):
    """An embedded cluster did not start; the message says why."""


@contextlib.contextmanager
def embedded_cluster(workers: int, memory_limit: int, timeout: float) -> Iterator[EmbeddedCluster]:
    """Start a cluster of worker processes with one thread each, as a context that ends them.

    Parameters
    ----------
    workers, memory_limit : int
        The number of workers, and the memory limit of each in bytes.
    timeout : float
        How long the start may take.

    Raises
    ------
    ClusterStartError
    """
    import dask

    settings = {"n_workers": workers, "memory_limit": memory_limit}
    start_message = pickle.dumps((dask.config.config, [path or os.getcwd() for path in sys.path], settings))
    read_descriptor, write_descriptor = os.pipe()
    with open(read_descriptor) as answer_file:
        try:
            host_process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(write_descriptor)],
                stdin=subprocess.PIPE,
                stdout=2,  # the driver writes only results to standard output
                pass_fds=[write_descriptor],
                process_group=0,  # Ctrl-C reaches only the driver, which ends the host
            )
        except OSError as error:
            raise ClusterStartError(f"{type(error).__name__}: {error}") from error
        finally:
            os.close(write_descriptor)
        try:
            yield _await_start(host_process, answer_file, start_message, timeout)
        finally:
            _end_host(host_process)


def _await_start(host_process: subprocess.Popen, answer_file, start_message: bytes, timeout: float) -> EmbeddedCluster:  # type: ignore[no-untyped-def]
    """Send the host its settings, and return its answer."""
    assert host_process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the host has ended, so its answer is empty
        host_process.stdin.write(start_message)
        host_process.stdin.flush()
    if not select.select([answer_file], [], [], timeout)[0]:
        raise ClusterStartError(f"its workers have not started within {timeout:.0f} s")
    answer = json.loads(answer_file.read() or "{}")
    if "address" in answer:
        return EmbeddedCluster(**answer)
    raise ClusterStartError(answer.get("error") or f"its process ended with exit code {host_process.wait()}")


def _end_host(host_process: subprocess.Popen) -> None:
    """Ask the host to end, and kill it and its workers if it does not."""
    assert host_process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        host_process.stdin.close()
    try:
        host_process.wait(END_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(host_process.pid, 9)
        host_process.wait()


# in the host -------------------------------------------------------------------------------------


def _run_host(answer_descriptor: int) -> None:
    """Start a cluster, write its address to the descriptor, and end the cluster when the driver ends."""
    driver_pid = os.getppid()
    with contextlib.ExitStack() as stack:
        with open(answer_descriptor, "w") as answer_file:
            try:
                config, path, settings = pickle.load(sys.stdin.buffer)
                sys.path[:] = path
                answer = _start_workers(stack, config, settings)
            except Exception as error:
                answer = {"error": _describe_with_cause(error)}
            json.dump(answer, answer_file)
        while "address" in answer and os.getppid() == driver_pid:
            if select.select([sys.stdin], [], [], 1.0)[0]:  # the driver has closed it, since it writes nothing more
                return


def _start_workers(stack: contextlib.ExitStack, config: dict, settings: dict) -> dict:
    """Start the cluster, and return the fields of `EmbeddedCluster`."""
    import dask

    dask.config.update(dask.config.config, config, priority="new")
    dask.config.set({"distributed.scheduler.allowed-failures": 0})  # dumap itself decides which parts are sent again
    from distributed import LocalCluster

    cluster = stack.enter_context(
        LocalCluster(threads_per_worker=1, dashboard_address=":0", silence_logs=50, env=SINGLE_THREAD_ENV, **settings)
    )
    limits = [nanny.memory_manager.memory_limit or 0 for nanny in cluster.workers.values()]
    return {"address": cluster.scheduler_address, "workers": len(limits), "memory_limit": min(limits, default=0)}


def _describe_with_cause(error: BaseException) -> str:
    """Return the text of an error and of its first cause."""
    root_cause: BaseException = error
    while (cause := root_cause.__cause__ or root_cause.__context__) is not None:
        root_cause = cause
    text = f"{type(error).__name__}: {error}"
    return text if root_cause is error else f"{text}, from {type(root_cause).__name__}: {root_cause}"


if __name__ == "__main__":
    _run_host(int(sys.argv[1]))

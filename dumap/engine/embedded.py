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

ENDING_SECONDS = 20.0
"""Seconds that a host may take to end its workers before all are killed."""
PINNED = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Embedded:
    """The address of an embedded cluster, the number of its workers, and the memory limit of each in bytes."""

    address: str
    workers: int
    memory_limit: int


class CannotStart(Exception):
    """An embedded cluster did not start; the message says why."""


@contextlib.contextmanager
def embedded(workers: int, memory_limit: int, seconds: float) -> Iterator[Embedded]:
    """Start a cluster of worker processes with one thread each, as a context that ends them.

    Parameters
    ----------
    workers, memory_limit : int
        The number of workers, and the memory limit of each in bytes.
    seconds : float
        How long the start may take.

    Raises
    ------
    CannotStart
    """
    import dask

    settings = {"n_workers": workers, "memory_limit": memory_limit}
    start_up = pickle.dumps((dask.config.config, [path or os.getcwd() for path in sys.path], settings))
    reading, writing = os.pipe()
    with open(reading) as answer:
        try:
            host = subprocess.Popen(
                [sys.executable, "-P", __file__, str(writing)],
                stdin=subprocess.PIPE,
                stdout=2,  # the driver writes only results to standard output
                pass_fds=[writing],
                process_group=0,  # Ctrl-C reaches only the driver, which ends the host
            )
        except OSError as error:
            raise CannotStart(f"{type(error).__name__}: {error}") from error
        finally:
            os.close(writing)
        try:
            yield _started(host, answer, start_up, seconds)
        finally:
            _end(host)


def _started(host: subprocess.Popen, answer, start_up: bytes, seconds: float) -> Embedded:  # type: ignore[no-untyped-def]
    """Send the host its settings, and return its answer."""
    assert host.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the host has ended, so its answer is empty
        host.stdin.write(start_up)
        host.stdin.flush()
    if not select.select([answer], [], [], seconds)[0]:
        raise CannotStart(f"its workers have not started within {seconds:.0f} s")
    facts = json.loads(answer.read() or "{}")
    if "address" in facts:
        return Embedded(**facts)
    raise CannotStart(facts.get("error") or f"its process ended with exit code {host.wait()}")


def _end(host: subprocess.Popen) -> None:
    """Ask the host to end, and kill it and its workers if it does not."""
    assert host.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        host.stdin.close()
    try:
        host.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(host.pid, 9)
        host.wait()


# in the host -------------------------------------------------------------------------------------


def _serve(answer_descriptor: int) -> None:
    """Start a cluster, write its address to the descriptor, and end the cluster when the driver ends."""
    driver = os.getppid()
    with contextlib.ExitStack() as stack:
        with open(answer_descriptor, "w") as answer:
            try:
                config, path, settings = pickle.load(sys.stdin.buffer)
                sys.path[:] = path
                facts = _start(stack, config, settings)
            except Exception as error:
                facts = {"error": _why(error)}
            json.dump(facts, answer)
        while "address" in facts and os.getppid() == driver:
            if select.select([sys.stdin], [], [], 1.0)[0]:  # the driver has closed it, since it writes nothing more
                return


def _start(stack: contextlib.ExitStack, config: dict, settings: dict) -> dict:
    """Start the cluster, and return the fields of `Embedded`."""
    import dask

    dask.config.update(dask.config.config, config, priority="new")
    dask.config.set({"distributed.scheduler.allowed-failures": 0})  # dumap itself decides which parts are sent again
    from distributed import LocalCluster

    cluster = stack.enter_context(
        LocalCluster(threads_per_worker=1, dashboard_address=":0", silence_logs=50, env=PINNED, **settings)
    )
    limits = [nanny.memory_manager.memory_limit or 0 for nanny in cluster.workers.values()]
    return {"address": cluster.scheduler_address, "workers": len(limits), "memory_limit": min(limits, default=0)}


def _why(error: BaseException) -> str:
    """Return the text of an error and of its first cause."""
    first: BaseException = error
    while (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    text = f"{type(error).__name__}: {error}"
    return text if first is error else f"{text}, from {type(first).__name__}: {first}"


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

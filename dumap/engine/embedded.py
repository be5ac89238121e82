"""An embedded cluster: Dask's LocalCluster in a process of its own, its host, which ends when the driver does.

The host is a process of its own so that it can be started from anywhere. Workers that the driver started itself would
import its main module again, run all that has no `__main__` guard there, and could not be children of a daemonic
process; the scheduler would share the driver's event loop, logging and Dask's configuration.

This file is run by its path: the host need not import dumap, its workers do.
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
"""How long a host may take to end its workers before all are killed."""
PINNED = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class Embedded:
    """Where an embedded cluster is, and what its workers may use."""

    address: str
    workers: int
    memory_limit: int


class CannotStart(Exception):
    """An embedded cluster did not start; the message is why."""


@contextlib.contextmanager
def embedded(workers: int, memory_limit: int, seconds: float) -> Iterator[Embedded]:
    """Start worker processes of one thread each, and end them.

    Parameters
    ----------
    workers, memory_limit : int
        How many, and the bytes of each.
    seconds : float
        How long their start may take.

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
                stdout=2,  # the driver's own is for results
                pass_fds=[writing],
                process_group=0,  # Ctrl-C is for the driver, which ends the host
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
    assert host.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended: its answer is empty
        host.stdin.write(start_up)
        host.stdin.flush()
    if not select.select([answer], [], [], seconds)[0]:
        raise CannotStart(f"its workers have not started within {seconds:.0f} s")
    said = json.loads(answer.read() or "{}")
    if "address" in said:
        return Embedded(**said)
    raise CannotStart(said.get("error") or f"its process ended with exit code {host.wait()}")


def _end(host: subprocess.Popen) -> None:
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
    """Start a cluster, say where it is, and end it with the driver."""
    driver = os.getppid()
    with contextlib.ExitStack() as stack:
        with open(answer_descriptor, "w") as answer:
            try:
                config, path, settings = pickle.load(sys.stdin.buffer)
                sys.path[:] = path
                said = _start(stack, config, settings)
            except Exception as error:
                said = {"error": _why(error)}
            json.dump(said, answer)
        while "address" in said and os.getppid() == driver:
            if select.select([sys.stdin], [], [], 1.0)[0]:  # closed: there is nothing more to read
                return


def _start(stack: contextlib.ExitStack, config: dict, settings: dict) -> dict:
    import dask

    dask.config.update(dask.config.config, config, priority="new")
    dask.config.set({"distributed.scheduler.allowed-failures": 0})  # every death comes back, to be judged
    from distributed import LocalCluster

    cluster = stack.enter_context(
        LocalCluster(threads_per_worker=1, dashboard_address=":0", silence_logs=50, env=PINNED, **settings)
    )
    limits = [nanny.memory_manager.memory_limit or 0 for nanny in cluster.workers.values()]
    return {"address": cluster.scheduler_address, "workers": len(limits), "memory_limit": min(limits, default=0)}


def _why(error: BaseException) -> str:
    """Write an error and its first cause."""
    first: BaseException = error
    while (cause := first.__cause__ or first.__context__) is not None:
        first = cause
    text = f"{type(error).__name__}: {error}"
    return text if first is error else f"{text}, from {type(first).__name__}: {first}"


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

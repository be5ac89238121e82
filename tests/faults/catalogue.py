"""What may go wrong, by number, and what is then right. Run it to see which tests show it.

Tests carry the numbers: `@pytest.mark.fault(7)`. "The same bytes" are those of a run that nothing disturbed.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest

FAULTS = {
    # while it runs
    1: "a worker is killed, crashes or closes within a task of any stage: the same bytes",
    2: "a worker dies when its object is written and its task has not returned: the same bytes",
    3: "all workers are gone: an error once none came for `cluster.worker_timeout`, that says how to go on",
    4: "one part kills every worker that takes it: the error names stage and part, commits are kept",
    5: "the cluster forgives no death ('allowed-failures: 0'): the run completes",
    6: "the driver is killed at an object, a manifest or a clean-up: the same bytes, no committed checkpoint is lost",
    7: "the scheduler is killed: the driver ends in bounded time, says how to go on, and a new cluster does",
    8: "the driver is told to end (SIGTERM): no lock is left, an exit code of its own, and it may go on",
    9: "a run goes on with other numbers of workers and threads: the same bytes",
    10: "workers are retired within a round, or their lifetime ends: the same bytes",
    11: "a worker is stopped until it is given up, then continued: its late writes change nothing",
    12: "two drivers have one output: the second is refused, a stale lock is taken over, its owner commits no more",
    13: "an object is truncated, emptied or has a bit flipped: the checksum tells; it is made again, or was input",
    14: "a committed chunk is deleted: an error, never zeros",
    15: "no space is left, for output or scratch: a clear error, the last commit whole, and room lets it go on",
    16: "one in twenty requests to an object store fails or times out: tried again, the same bytes",
    17: "the answer to the write of a manifest is lost: the manifest is known as one's own",
    18: "a straggler and its duplicate both finish: the same bytes",
    19: "ten times the rows on workers of the same memory: none is killed, peaks are as projected",
    20: "a worker is too small for the plan: refused before anything runs, with the memory it takes",
    21: "a kernel takes minutes: the worker is heard of meanwhile",
    22: "a run goes on with other parameters or other input: refused, with the difference",
    23: "a run goes on with other versions or on another kind of processor: refused, unless forced",
    24: "partial or uncommitted objects are left over: they never count, and a command removes them",
    25: "500 rounds: memory and tasks of scheduler, client and workers stay as they are",
    26: "several searches for neighbours on one worker at once: none aborts",
    # bad input
    27: "NaN or infinities: counted and the first rows named before any graph, or dropped and flagged where told so",
    28: "no row, one row, no more rows than neighbours: an error before anything runs, or fewer neighbours, said so",
    29: "more duplicates of a row than neighbours, or all rows the same: it ends, with finite coordinates",
    30: "zero vectors under cosine: a stated rule, and a count",
    31: "float16, integers, big-endian, Fortran order are cast; complex numbers, objects and strings refused",
    32: "1-D, 3-D, split columns, chunks of a row or of all rows: taken, or an error that says how to chunk",
    33: "Zarr v2 or v3, sharded, zipped, stale metadata, a group for an array: read, or an error that lists arrays",
    34: "the output exists, is the input, or lies where renames are not atomic: refused, nothing touched",
    35: "more than 2^31 edges: 64-bit offsets throughout",
    36: "a graph in pieces, isolated rows: finite, counted, flagged",
    37: "a misspelt key, a word for a number, a value out of range: refused at once, with what is allowed",
    38: "a scheduler's file or address that never answers: an error in bounded time",
    39: "workers without dumap, or with another version: left out and named; an error where there are no others",
    40: "credentials that may not write: a probe fails first",
    41: "a call from inside a task, or with an asynchronous client: works, or a clear error in bounded time",
    # beyond one machine and a fixed cluster
    42: "a worker comes late, or is unfit: used, or left out and named while the run goes on; it computes nothing",
    43: "a cluster scales from no worker, up and down: the run starts, makes it grow, ends, the same bytes",
    44: "a container's limits of memory and processors, many cores with little memory: fewer workers, that fit",
    45: "people keep files, arrays, attributes and links in a run: they survive run, verify, clean and repair",
    46: "chunks of the input that are not there: an error that names both causes, or filled when told",
    47: "a client unlike its workers, a Mac or another Python: it drives the run",
    48: "a run inside a task, in an event loop, in a daemonic process, without a __main__ guard: works, or says why",
    49: "a straggler gets a second copy, either is first, its inputs go meanwhile: the same bytes",
}


def skipped(item: pytest.Item) -> str:
    """Say why a test is skipped on this machine; nothing where it is not."""
    marks = [*item.iter_markers("skip"), *(mark for mark in item.iter_markers("skipif") if mark.args[0])]
    return marks[0].kwargs["reason"] if marks else ""


class Collector:
    """Takes down which test shows what of which fault, and which would if this machine let it."""

    def __init__(self) -> None:
        self.tests: dict[int, list[str]] = {number: [] for number in FAULTS}
        self.skipped: dict[int, dict[str, str]] = {number: {} for number in FAULTS}
        self.unknown: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            for number in (n for mark in item.iter_markers("fault") for n in mark.args):
                if number not in FAULTS:
                    self.unknown.append(item.nodeid)
                elif reason := skipped(item):
                    self.skipped[number][item.nodeid] = reason
                else:
                    self.tests[number].append(item.nodeid)


def collect() -> Collector:
    """Collect all tests of the project, and run none."""
    collector, here = Collector(), Path(__file__).parents[1]
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main([str(here), "--collect-only", "-qq", "-p", "no:cacheprovider"], [collector])
    assert code == 0, code
    return collector


if __name__ == "__main__":
    collected = collect()
    if "--json" in sys.argv:
        print(json.dumps(vars(collected)))
    else:
        for number, text in FAULTS.items():
            print(f"{number:>2} {text}")
            for test in dict.fromkeys(name.split("[")[0] for name in collected.tests[number]):
                print(f"     {test}")
            for test, reason in {
                name.split("[")[0]: reason for name, reason in collected.skipped[number].items()
            }.items():
                print(f"     {test} is skipped: {reason}")

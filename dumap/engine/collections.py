"""Dask collections: results as Dask arrays, and collections that are embedded.

The rows of a collection are copied to the run as parts. One task per part puts together the slices of the chunks that
hold its rows. All missing parts are one Dask graph, so that tasks that several parts need are computed once. This
module is imported only if a collection is given or asked for.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import dask
import dask.array
import numpy as np
from dask.callbacks import Callback

from dumap.artifacts.job import Job
from dumap.engine.checks import UnfitWorker
from dumap.engine.cluster_connection import Killed, Link, Lost, carrier, pickled_call
from dumap.engine.worker_pool import Members
from dumap.engine.process import run_task
from dumap.errors import ClusterError, DumapError, InputError, StorageError, TaskError
from dumap.sources.spooled import PART_BYTES, ObjectRows, check_rows

if TYPE_CHECKING:
    import zarr
    from distributed import Client

POLL_SECONDS = 0.5
"""Seconds between looks at the futures."""
CHUNKS = 6
"""Chunks that a worker holds at once, with the chunks that they are computed from."""
ATTEMPTS = 4
"""Times that a part is sent, if it is lost or its worker is unfit."""
Grid = list[list[Any]]
"""Blocks of an array: a list for each chunk of rows, which holds the blocks of its columns in order."""


def to_dask(array: zarr.Array) -> Any:
    """Return a Dask array that reads a Zarr array chunk by chunk."""
    return dask.array.from_zarr(array)


def is_collection(data: Any) -> bool:
    """Return whether data is a Dask array or a Dask data frame."""
    return dask.is_dask_collection(data) and (
        isinstance(data, dask.array.Array) or hasattr(type(data), "to_dask_array")
    )


class DaskRows:
    """Rows of a Dask array, or of a Dask data frame of numbers.

    Parameters
    ----------
    data : dask collection
        If it is a data frame, the lengths of its partitions are computed.

    Attributes
    ----------
    kind, rows, dims, dtype, names, token
        See `ObjectRows`. The token is a hash of the array's name, and Dask gives different arrays different names.

    Raises
    ------
    InputError
        The collection has no rows of numbers, or the number of rows in its chunks is unknown.
    """

    names: np.ndarray | None = None
    sparse, entries, densest = False, 0, 0

    def __init__(self, data: Any) -> None:
        self.kind = f"dask.{type(data).__name__}"
        array = data if isinstance(data, dask.array.Array) else _of_frame(data, self.kind)
        if any(np.isnan(length) for lengths in array.chunks for length in lengths):
            raise InputError(
                f"the {self.kind} does not know how many rows its chunks have: call compute_chunk_sizes() on it first "
                f"(x = x.compute_chunk_sizes())"
            )
        check_rows(self.kind, array.shape, array.dtype)
        if "sparse" in type(array._meta).__module__:
            raise InputError(
                f"the {self.kind} has sparse blocks, whose entries are not known before they are computed: give the "
                f"path of the store that holds them, a matrix of scipy.sparse, or dense blocks"
            )
        self.array, self.dtype = array, array.dtype.newbyteorder("=")
        self.rows, self.dims = (int(length) for length in array.shape)

    @property
    def token(self) -> str:
        """A hash of the array's name."""
        return str(dask.base.tokenize(self.array.name, self.array.shape, self.dtype.str))

    @property
    def _chunk_bytes(self) -> int:
        """Bytes of the largest chunks, all columns together."""
        return int(max(self.array.chunks[0])) * self.dims * int(self.dtype.itemsize)

    @property
    def task_bytes(self) -> int:
        """Memory of a worker that writes parts: several chunks, and a part twice (measured)."""
        return CHUNKS * self._chunk_bytes + 2 * PART_BYTES

    @property
    def least_bytes(self) -> int:
        """The least memory of a worker that writes parts: a chunk, its source chunk, and a part twice."""
        return 2 * self._chunk_bytes + 2 * PART_BYTES

    def grids(self, spans: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Grid]]:
        """Yield each part and the delayed slices of chunks that hold its rows [start, stop)."""
        blocks = self.array.to_delayed()
        offsets = np.array([0, *accumulate(self.array.chunks[0])])
        for part, (start, stop) in spans.items():
            first, last = np.searchsorted(offsets, [start, stop - 1], side="right") - 1
            grid = []
            for number in range(int(first), int(last) + 1):
                low, high = max(0, start - offsets[number]), min(stop, offsets[number + 1]) - offsets[number]
                whole = (low, high) == (0, offsets[number + 1] - offsets[number])
                if high > low:
                    grid.append([block if whole else block[int(low) : int(high)] for block in blocks[number]])
            yield part, grid


def _of_frame(data: Any, kind: str) -> dask.array.Array:
    """Return the array of a data frame; refuse columns that are not numbers."""
    if not hasattr(data, "columns"):
        raise InputError(f"the {kind} has one column; give a data frame of some")
    odd = [str(name) for name, dtype in data.dtypes.items() if getattr(dtype, "kind", "O") not in "fiub"]
    if odd:
        raise InputError(f"columns of the {kind} that hold no numbers: {', '.join(odd[:5])}; leave them out")
    return data.to_dask_array(lengths=True)


def default_client() -> Client | None:
    """Return Dask's default client, None if there is none."""
    import distributed

    try:
        client: Client = distributed.default_client()
    except ValueError:
        return None
    return client


def assemble(grid: Grid, dtype: np.dtype) -> np.ndarray:
    """Put the blocks of a grid together, (rows, dims), C order."""
    if len(grid) == 1 and len(grid[0]) == 1:
        return np.ascontiguousarray(np.asarray(grid[0][0]), dtype)
    columns = sum(np.shape(block)[1] for block in grid[0])
    out, row = np.empty((sum(len(blocks[0]) for blocks in grid), columns), dtype), 0
    for blocks in grid:
        column = 0
        for block in blocks:
            out[row : row + len(block), column : column + np.shape(block)[1]] = block
            column += np.shape(block)[1]
        row += len(blocks[0])
    return out


def failed(error: BaseException, object_rows: ObjectRows) -> BaseException:
    """Return the error to raise if the tasks of a collection fail: it names the collection."""
    if isinstance(error, DumapError) or not isinstance(error, Exception):
        return error
    if isinstance(error, OSError):
        named: DumapError = StorageError(f"the {object_rows.kind} cannot be computed: {error}")
    else:
        named = InputError(f"the {object_rows.kind} cannot be computed ({type(error).__name__}: {error})")
    named.__cause__ = error
    return named


# computing them ----------------------------------------------------------------------------------


def _tasks(object_rows: DaskRows, spans: Mapping[str, tuple[int, int]], call: Callable[[str], Any]) -> dict[str, Any]:
    """Return a delayed task for each part: `call(part)` returns a function, which is called with the part's grid."""
    group = f"dumap-spool-{uuid.uuid4().hex[:8]}"
    return {
        part: dask.delayed(call(part), pure=False, traverse=False)(grid, dask_key_name=f"{group}-{part}")
        for part, grid in object_rows.grids(spans)
    }


def compute_here(
    task: Callable[..., None],
    job: Job,
    spans: Mapping[str, tuple[int, int]],
    threads: int,
    advanced: Callable[[float, float], None],
) -> dict[str, int]:
    """Compute and write parts in threads of this process; return its peak memory, and its memory before the tasks."""
    object_rows = job.object_rows
    assert isinstance(object_rows, DaskRows)
    usages: list[dict[str, Any]] = []

    def write(part: str, grid: Grid) -> None:
        usages.append(run_task(task, job, part, {"rows": assemble(grid, object_rows.dtype)}, job.tick))

    tasks = _tasks(object_rows, spans, lambda part: partial(write, part))
    keys, done = {delayed.key for delayed in tasks.values()}, 0

    def count(key: Any, *rest: Any) -> None:
        nonlocal done
        if key in keys:
            done += 1
            advanced(done, len(keys))

    try:
        with Callback(posttask=count):
            dask.compute(*tasks.values(), scheduler="threads", num_workers=threads)
    except Exception as error:
        raise failed(error, object_rows) from error
    return {name: max(usage[name] for usage in usages) for name in ("peak_bytes", "held_bytes")}


def compute_on(
    link: Link,
    members: Members,
    call: Callable[[str], tuple],
    object_rows: DaskRows,
    spans: Mapping[str, tuple[int, int]],
    advanced: Callable[[float, float], None],
) -> None:
    """Compute and write parts on a cluster.

    Parameters
    ----------
    link, members
    call : callable
        `call(part)` returns a function and its first arguments; the last argument is the part's grid.
    object_rows : DaskRows
    spans : mapping
        The rows [start, stop) of each part.
    advanced : callable
        Called with the number of parts done and of all parts.

    Raises
    ------
    DumapError
    """
    left, count = dict(spans), len(spans)
    members.reset_timeouts()
    for _ in range(ATTEMPTS):
        tasks = _tasks(object_rows, left, lambda part: partial(carrier(), pickled_call(call(part))))
        left = {part: left[part] for part in _compute_once(link, members, tasks, object_rows, count, advanced)}
        if not left:
            return
    lost = f"{len(left)} parts of the {object_rows.kind} were lost {ATTEMPTS} times"
    raise ClusterError(f"{link.name}: {lost}; look at its logs")


def _compute_once(
    link: Link,
    members: Members,
    tasks: Mapping[str, Any],
    object_rows: DaskRows,
    count: int,
    advanced: Callable[[float, float], None],
) -> list[str]:
    """Compute tasks; list the parts to send again: the scheduler lost them, or their worker was unfit."""
    parts, again = list(tasks), []
    with warnings.catch_warnings():  # the user's collection decides how large the graph is
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        futures = link.compute([tasks[part] for part in parts], members.allowed)
    pending = dict(zip(futures, parts, strict=True))
    try:
        while pending:
            members.refresh(lambda: f"spool of {len(pending)} parts")
            for future in link.done(POLL_SECONDS):
                part, error = pending.pop(future), link.outcome(future)
                if isinstance(error, UnfitWorker):
                    members.leave_out(error.address, error.reasons)
                if isinstance(error, UnfitWorker | Lost):
                    again.append(part)
                elif isinstance(error, Killed):
                    raise TaskError(
                        f"spool {part}: {error.workers} workers died of it or of what the {object_rows.kind} computes "
                        f"for it; give it smaller chunks, or workers more memory"
                    )
                elif error is not None:
                    raise failed(error, object_rows) from error
                else:
                    advanced(count - len(pending) - len(again), count)
    finally:
        link.cancel(list(pending))
    return again

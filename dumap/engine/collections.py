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
from dumap.engine.checks import UnfitWorkerError
from dumap.engine.cluster_connection import (
    ClusterConnection,
    TaskLostError,
    WorkersDiedError,
    pickled_call,
    task_unpickler,
)
from dumap.engine.process import run_task
from dumap.engine.worker_pool import WorkerPool
from dumap.errors import ClusterError, DumapError, InputError, StorageError, TaskError
from dumap.sources.spooled import PART_BYTES, ObjectRows, check_rows

if TYPE_CHECKING:
    import zarr
    from distributed import Client

POLL_SECONDS = 0.5
"""Seconds between looks at the futures."""
CHUNKS_IN_MEMORY = 6
"""Chunks that a worker holds at once, with the chunks that they are computed from."""
MAX_ATTEMPTS = 4
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
    sparse, entries, max_window_entries = False, 0, 0

    def __init__(self, data: Any) -> None:
        self.kind = f"dask.{type(data).__name__}"
        array = data if isinstance(data, dask.array.Array) else _frame_to_array(data, self.kind)
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
        return CHUNKS_IN_MEMORY * self._chunk_bytes + 2 * PART_BYTES

    @property
    def min_task_bytes(self) -> int:
        """The least memory of a worker that writes parts: a chunk, its source chunk, and a part twice."""
        return 2 * self._chunk_bytes + 2 * PART_BYTES

    def part_grids(self, row_ranges: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Grid]]:
        """Yield each part and the delayed slices of chunks that hold its rows [start, stop)."""
        blocks = self.array.to_delayed()
        offsets = np.array([0, *accumulate(self.array.chunks[0])])
        for part, (start, stop) in row_ranges.items():
            first_chunk, last_chunk = np.searchsorted(offsets, [start, stop - 1], side="right") - 1
            grid = []
            for chunk_number in range(int(first_chunk), int(last_chunk) + 1):
                low, high = (
                    max(0, start - offsets[chunk_number]),
                    min(stop, offsets[chunk_number + 1]) - offsets[chunk_number],
                )
                is_whole_chunk = (low, high) == (0, offsets[chunk_number + 1] - offsets[chunk_number])
                if high > low:
                    grid.append(
                        [block if is_whole_chunk else block[int(low) : int(high)] for block in blocks[chunk_number]]
                    )
            yield part, grid


def _frame_to_array(data: Any, kind: str) -> dask.array.Array:
    """Return the array of a data frame; refuse columns that are not numbers."""
    if not hasattr(data, "columns"):
        raise InputError(f"the {kind} has one column; give a data frame of some")
    non_numeric = [str(name) for name, dtype in data.dtypes.items() if getattr(dtype, "kind", "O") not in "fiub"]
    if non_numeric:
        raise InputError(f"columns of the {kind} that hold no numbers: {', '.join(non_numeric[:5])}; leave them out")
    return data.to_dask_array(lengths=True)


def default_client() -> Client | None:
    """Return Dask's default client, None if there is none."""
    import distributed

    try:
        client: Client = distributed.default_client()
    except ValueError:
        return None
    return client


def assemble_blocks(grid: Grid, dtype: np.dtype) -> np.ndarray:
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


def computation_error(error: BaseException, object_rows: ObjectRows) -> BaseException:
    """Return the error to raise if the tasks of a collection fail: it names the collection."""
    if isinstance(error, DumapError) or not isinstance(error, Exception):
        return error
    if isinstance(error, OSError):
        named_error: DumapError = StorageError(f"the {object_rows.kind} cannot be computed: {error}")
    else:
        named_error = InputError(f"the {object_rows.kind} cannot be computed ({type(error).__name__}: {error})")
    named_error.__cause__ = error
    return named_error


# computing them ----------------------------------------------------------------------------------


def _delayed_tasks(
    object_rows: DaskRows, row_ranges: Mapping[str, tuple[int, int]], make_call: Callable[[str], Any]
) -> dict[str, Any]:
    """Return a delayed task for each part: `make_call(part)` returns a function, which is called with its grid."""
    group = f"dumap-spool-{uuid.uuid4().hex[:8]}"
    return {
        part: dask.delayed(make_call(part), pure=False, traverse=False)(grid, dask_key_name=f"{group}-{part}")
        for part, grid in object_rows.part_grids(row_ranges)
    }


def compute_in_threads(
    task: Callable[..., None],
    job: Job,
    row_ranges: Mapping[str, tuple[int, int]],
    threads: int,
    report_progress: Callable[[float, float], None],
) -> dict[str, int]:
    """Compute and write parts in threads of this process; return its peak memory, and its memory before the tasks."""
    object_rows = job.object_rows
    assert isinstance(object_rows, DaskRows)
    usages: list[dict[str, Any]] = []

    def write_part(part: str, grid: Grid) -> None:
        usages.append(
            run_task(task, job, part, {"rows": assemble_blocks(grid, object_rows.dtype)}, job.report_progress)
        )

    delayed_tasks = _delayed_tasks(object_rows, row_ranges, lambda part: partial(write_part, part))
    task_keys, done_count = {delayed.key for delayed in delayed_tasks.values()}, 0

    def count_part(key: Any, *unused: Any) -> None:
        nonlocal done_count
        if key in task_keys:
            done_count += 1
            report_progress(done_count, len(task_keys))

    try:
        with Callback(posttask=count_part):
            dask.compute(*delayed_tasks.values(), scheduler="threads", num_workers=threads)
    except Exception as error:
        raise computation_error(error, object_rows) from error
    return {name: max(usage[name] for usage in usages) for name in ("peak_bytes", "held_bytes")}


def compute_on_cluster(
    connection: ClusterConnection,
    worker_pool: WorkerPool,
    make_call: Callable[[str], tuple],
    object_rows: DaskRows,
    row_ranges: Mapping[str, tuple[int, int]],
    report_progress: Callable[[float, float], None],
) -> None:
    """Compute and write parts on a cluster.

    Parameters
    ----------
    connection, worker_pool
    make_call : callable
        `make_call(part)` returns a function and its first arguments; the last argument is the part's grid.
    object_rows : DaskRows
    row_ranges : mapping
        The rows [start, stop) of each part.
    report_progress : callable
        Called with the number of parts done and of all parts.

    Raises
    ------
    DumapError
    """
    missing_parts, part_count = dict(row_ranges), len(row_ranges)
    worker_pool.reset_timeouts()
    for _ in range(MAX_ATTEMPTS):
        delayed_tasks = _delayed_tasks(
            object_rows, missing_parts, lambda part: partial(task_unpickler(), pickled_call(make_call(part)))
        )
        missing_parts = {
            part: missing_parts[part]
            for part in _compute_parts(connection, worker_pool, delayed_tasks, object_rows, part_count, report_progress)
        }
        if not missing_parts:
            return
    message = f"{len(missing_parts)} parts of the {object_rows.kind} were lost {MAX_ATTEMPTS} times"
    raise ClusterError(f"{connection.name}: {message}; look at its logs")


def _compute_parts(
    connection: ClusterConnection,
    worker_pool: WorkerPool,
    delayed_tasks: Mapping[str, Any],
    object_rows: DaskRows,
    part_count: int,
    report_progress: Callable[[float, float], None],
) -> list[str]:
    """Compute tasks; list the parts to send again: the scheduler lost them, or their worker was unfit."""
    parts, lost_parts = list(delayed_tasks), []
    with warnings.catch_warnings():  # the user's collection decides how large the graph is
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        futures = connection.send_delayed([delayed_tasks[part] for part in parts], worker_pool.allowed_workers)
    pending = dict(zip(futures, parts, strict=True))
    try:
        while pending:
            worker_pool.refresh(lambda: f"spool of {len(pending)} parts")
            for future in connection.wait_for_done(POLL_SECONDS):
                part, error = pending.pop(future), connection.task_error(future)
                if isinstance(error, UnfitWorkerError):
                    worker_pool.exclude(error.address, error.reasons)
                if isinstance(error, UnfitWorkerError | TaskLostError):
                    lost_parts.append(part)
                elif isinstance(error, WorkersDiedError):
                    raise TaskError(
                        f"spool {part}: {error.workers} workers died of it or of what the {object_rows.kind} computes "
                        f"for it; give it smaller chunks, or workers more memory"
                    )
                elif error is not None:
                    raise computation_error(error, object_rows) from error
                else:
                    report_progress(part_count - len(pending) - len(lost_parts), part_count)
    finally:
        connection.cancel(list(pending))
    return lost_parts

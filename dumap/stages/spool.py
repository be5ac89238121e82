"""spool: copy the rows of an object into the run, where tasks can read the rows.

A run has this stage only if its input is an object. Each part holds the same number of rows, except the last. A run
that was killed copies only the parts that are not committed. The rows are deleted once no stage reads the input any
more. A later stage that needs them has the object given again.
"""

from __future__ import annotations

import numpy as np

from dumap.artifacts import rows as parts
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import AUDIT, CELLS, NEIGHBORS, QUALITY, START, VECTORS, number_of, part_names
from dumap.config import Config
from dumap.errors import InputError
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step
from dumap.sources.arrays import ArrayRows
from dumap.sources.spooled import PART_BYTES, SPOOL, SPOOLED, SpooledInput
from dumap.stages import Context, Stage


def write_spool_part(job: Job, part: str, rows: np.ndarray | None = None) -> None:
    """Write a part: the given rows, or, in the process that has the object, rows read from the object."""
    if rows is None:
        assert isinstance(job.object_rows, ArrayRows)
        rows = job.object_rows.read(*row_range_of(job, part))
    with job.run.part(SPOOL, part) as out:
        parts.write_rows(out, SPOOLED, rows)


def row_range_of(job: Job, part: str) -> tuple[int, int]:
    """Return the rows [start, stop) of a part."""
    return _spooled_source(job).span(number_of(part))


def _spooled_source(job: Job) -> SpooledInput:
    source = job.input
    assert isinstance(source, SpooledInput)
    return source


def run(context: Context) -> dict:
    """Copy the rows; return the facts.

    Raises
    ------
    InputError
        The run does not hold all rows, and the object is not given.
    """
    source, store = _spooled_source(context.job), context.run
    names = part_names(SPOOLED, source.parts)
    if context.job.object_rows is None and not set(names) <= set(store.committed_parts(SPOOL)):
        raise InputError(
            f"{store.location}: its input, a {source.what}, was given by a program, and the run does not hold all of "
            f"its rows: call dumap.run again with the same data and this output"
        )
    if context.job.object_rows is not None:
        chunk_bytes = context.job.object_rows.min_task_bytes
        context.require_memory(
            SPOOL, chunk_bytes, f"a chunk of the {source.kind} is large", "smaller chunks: rechunk it"
        )
    context.compute(SPOOL, write_spool_part, names)
    return {"rows": source.rows, "bytes": source.rows * context.geometry.source_row_bytes}


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    row_bytes = geometry.source_row_bytes
    size = geometry.rows * row_bytes
    return StageProjection(
        steps=(Step(max(1, -(-size // PART_BYTES))),),
        shuffled_bytes=0,
        disk_bytes=size,
        task_bytes=3 * min(size, max(row_bytes, PART_BYTES)),
        temporary_bytes={SPOOLED: size},
    )


STAGE = Stage(
    SPOOL,
    setting_keys=(),
    reads=(),
    writes=(SPOOLED,),
    run=run,
    project=project,
    temporary_kinds={SPOOLED: (VECTORS, CELLS, NEIGHBORS, AUDIT, START, QUALITY)},
)

"""vectors: read every row once, count rows that are not finite, zero rows and duplicates, and draw the samples.

Rows are compared by hashes of their bytes, since a comparison of the bytes would need a shuffle of the input. If
duplicates are left out (`input.unique`), two independent hashes of together 128 bits are compared. The chance that two
of a thousand million distinct rows agree in both is 1e-21, far less than the chance of an undetected hardware fault.

If values are wider than float32 and shifts do not change the metric, a centre is subtracted from all rows before the
cast. Rows that the cast still makes equal are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dumap.artifacts.job import CENTRE, Job
from dumap.artifacts.part_names import AUDIT, CELLS, START, VECTORS, number_of, part_name, part_names, sum_fact
from dumap.artifacts.rows import cast_rows, find_finite_and_zero, find_inexact, write_rows
from dumap.artifacts.vectors import DROPPED, ZERO, is_query
from dumap.config import Config
from dumap.errors import InputError
from dumap.kernels import hashing, vectors
from dumap.planning.audits import max_audits
from dumap.planning.budget import sparse_block_bytes, tally_buckets, tally_row_bytes
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step
from dumap.stages import Context, Stage
from dumap.stages.fingerprints import format_fingerprint, hash_rows
from dumap.store import Part

MAX_NAMED_ROWS = 10
"""Most rows that a message names."""
CENTRE_ROWS = 101
"""The centre is the median of this many rows, the first that are finite."""
ANGLE_TOLERANCE = 1e-3
"""An angle may exceed its range by this much, for rounding."""
MIN_TALLY_ROWS = 65_536
"""The least rows that a tally gathers before it merges them."""


def check_block(job: Job, part: str) -> None:
    """Check one block of the input."""
    start, stop = job.geometry.rows_of_block(number_of(part))
    block = job.input.read(start, stop)
    x = cast_rows(block)
    finite, zero = find_finite_and_zero(x)
    wide, metric = vectors.exceeds_float32(block.dtype), job.config.neighbors.metric
    hashes = hash_rows(block)
    rows = np.arange(start, stop)
    with job.run.part(VECTORS, part) as out:
        out.write("hashes", hashes)
        out.write("status", np.where(finite, 0, DROPPED).astype(np.uint8) | np.where(zero, ZERO, 0).astype(np.uint8))
        if job.config.input.unique:
            out.write("second_hashes", hash_rows(block, second=True))
        else:
            _write_samples(job, out, block if wide and job.may_be_centred else x, rows, finite, job.geometry.rows)
        if metric == vectors.SPHERICAL:
            out.attributes["angles"] = np.abs(x[finite]).max(axis=0, initial=0).astype(float).tolist()
        out.attributes |= {
            "inexact": int(find_inexact(block, x).sum()) if wide else 0,
            "fingerprint": int(hashing.sum_hashes(hashes, start)),
            "nonfinite": int((~finite).sum()),
            "nonfinite_rows": rows[~finite][:MAX_NAMED_ROWS].tolist(),
            "zero": int(zero.sum()),
        }


def _write_samples(job: Job, out: Part, x: Any, rows: np.ndarray, allowed: np.ndarray, population: int) -> None:
    """Write the rows of a block that are in the sample and among the queries. A hash of the row ids draws them from
    `population` rows.

    If a centre may be subtracted later, rows are written in the input's dtype. A sample of sparse rows is projected.
    """
    sample_rows, sampled, queries = job.geometry.sample_rows, allowed, np.zeros(len(rows), bool)
    if sample_rows < population:
        limit = np.uint64(min(2**64 - 1, int(sample_rows / population * 2**64)))
        sampled = allowed & (hashing.draw_words(job.config.seed, hashing.TREE_SAMPLE, rows) < limit)
    for number in range(max_audits(job.config)):
        queries |= is_query(job, rows, number, population)
    out.write("sample", job.prepare_rows(x[sampled]) if job.geometry.is_sparse else x[sampled])
    out.write("query_rows", rows[allowed & queries])
    write_rows(out, "query", x[allowed & queries])


# duplicates ------------------------------------------------------------------------------------------


def _read_keys(job: Job, block: int, prefix: str, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of a block's rows, (words, n), and which rows are finite."""
    status = job.run.read(VECTORS, part_name("block", block), "status")
    name = part_name(prefix, block)
    return np.stack([job.run.read(VECTORS, name, word) for word in words]), (status & DROPPED) == 0


def _hash_names(job: Job) -> list[str]:
    """Name the hashes by which rows are compared."""
    return ["hashes", "second_hashes"] if job.config.input.unique else ["hashes"]


def _tally_keys(
    job: Job, bucket: int, buckets: int, prefix: str, words: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct keys of the finite rows whose first hash falls in a bucket, and each key's first row and
    count.
    """
    index = job.geometry.index_dtype
    pieces: list[tuple[np.ndarray, ...]] = []

    def merge() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        merged = [np.concatenate(arrays, axis=-1) for arrays in zip(*pieces, strict=True)]
        pieces.clear()
        return vectors.count_keys(*merged)

    waiting = 0
    for block in range(job.geometry.blocks):
        keys, finite = _read_keys(job, block, prefix, words)
        in_bucket = np.flatnonzero(finite & (keys[0] % np.uint64(buckets) == np.uint64(bucket)))
        rows = (in_bucket + job.geometry.rows_of_block(block)[0]).astype(index)
        pieces.append((keys[:, in_bucket], rows, np.ones(len(in_bucket), index)))
        waiting += len(in_bucket)
        if waiting > max(MIN_TALLY_ROWS, len(pieces[0][1])):  # merging frees the memory of equal rows
            pieces, waiting = [merge()], 0
    return merge()


def count_duplicates(job: Job, part: str, buckets: int) -> None:
    """Count the finite rows of one bucket of hashes that equal an earlier row."""
    keys, rows, times = _tally_keys(job, number_of(part), buckets, "block", _hash_names(job))
    repeated = np.flatnonzero(times > 1)
    with job.run.part(VECTORS, part) as out:
        out.attributes |= {
            "distinct": len(rows),
            "duplicates": int(times.sum(dtype=np.int64)) - len(rows),
            "greatest": int(times.max(initial=0)),
        }
        if job.config.input.unique:
            out.write("keys", keys[:, repeated].T)
            out.write("rows", rows[repeated])
            out.write("times", times[repeated])


def find_duplicates(job: Job, part: str, buckets: int, population: int) -> None:
    """Find a block's duplicates, and draw the samples from the block's other rows."""
    block = number_of(part)
    start, stop = job.geometry.rows_of_block(block)
    keys, finite = _read_keys(job, block, "block", _hash_names(job))
    rows = np.arange(start, stop)
    first, times = rows.copy(), np.ones(len(rows), job.geometry.index_dtype)
    for bucket, name in enumerate(part_names("duplicates", buckets)):
        in_bucket = np.flatnonzero(finite & (keys[0] % np.uint64(buckets) == np.uint64(bucket)))
        indices = vectors.look_up_keys(keys[:, in_bucket], job.run.read(VECTORS, name, "keys").T)
        in_bucket, indices = in_bucket[indices >= 0], indices[indices >= 0]
        first[in_bucket], times[in_bucket] = (
            job.run.read(VECTORS, name, array)[indices] for array in ("rows", "times")
        )
    duplicates, repeated = np.flatnonzero(first != rows), np.flatnonzero((first == rows) & (times > 1))
    allowed = finite & (first == rows)
    with job.run.part(VECTORS, part) as out:
        out.write("duplicates", duplicates)
        out.write("firsts", first[duplicates])
        out.write("repeated", repeated)
        out.write("times", times[repeated])
        x = job.input.read(start, stop)
        keep = vectors.exceeds_float32(x.dtype) and job.may_be_centred
        _write_samples(job, out, x if keep else cast_rows(x), rows, allowed, population)
        out.attributes["duplicates"] = len(duplicates)


# the cast to float32 ------------------------------------------------------------------------------


def find_centre(job: Job, part: str, is_centred: bool) -> None:
    """Find the centre that is subtracted from all rows: the median of the first finite rows, which is no outlier."""
    samples: list[np.ndarray] = []
    for block in range(job.geometry.blocks if is_centred else 0):
        start, _ = job.geometry.rows_of_block(block)
        status = job.run.read(VECTORS, part_name("block", block), "status")
        finite = np.flatnonzero((status & DROPPED) == 0)[: CENTRE_ROWS - sum(map(len, samples))]
        if len(finite):
            block_rows = job.input.read(start + int(finite[0]), start + int(finite[-1]) + 1)[finite - finite[0]]
            spherical = job.config.neighbors.metric == vectors.SPHERICAL
            samples.append(vectors.to_sphere(block_rows) if spherical else block_rows)
        if sum(map(len, samples)) == CENTRE_ROWS:
            break
    with job.run.part(VECTORS, part) as out:
        out.attributes["applies"] = is_centred
        if is_centred:
            out.write("centre", vectors.lower_median(np.concatenate(samples)))


def hash_cast_rows(job: Job, part: str) -> None:
    """Hash a block's rows before and after the cast, with -0 as 0, to count rows that become equal."""
    x = job.input.read(*job.geometry.rows_of_block(number_of(part)))
    with job.run.part(VECTORS, part) as out:
        for name, values in (("hashes", x), ("cast_hashes", job.as_compared(x))):
            if not job.geometry.is_sparse and values.dtype.kind == "f":
                values += 0
            out.write(name, hash_rows(values))


def count_cast_distinct(job: Job, part: str, buckets: int) -> None:
    """Count the distinct rows in one bucket of hashes, before and after the cast."""
    with job.run.part(VECTORS, part) as out:
        for word in ("hashes", "cast_hashes"):
            out.attributes[word] = len(_tally_keys(job, number_of(part), buckets, "cast", [word])[1])


def _count_cast_changes(context: Context, inexact: int, buckets: int) -> dict:
    """Return how many rows the cast to float32 changes, and how many it makes equal to other rows."""
    config, store, dtype = context.config, context.run, context.job.input.dtype
    is_centred = config.neighbors.metric == vectors.SPHERICAL or inexact > 0
    may_be_centred = context.job.may_be_centred
    if may_be_centred:
        context.compute(VECTORS, find_centre, [CENTRE], is_centred=is_centred)
    equal_after_cast = 0
    if inexact:
        hashed, counted = part_names("cast", context.geometry.blocks), part_names("cast_counts", buckets)
        context.compute(VECTORS, hash_cast_rows, hashed)
        context.compute(VECTORS, count_cast_distinct, counted, buckets=buckets)
        equal_after_cast = sum_fact(store, VECTORS, counted, "hashes") - sum_fact(
            store, VECTORS, counted, "cast_hashes"
        )
    if equal_after_cast:
        reason = "they are sparse" if context.geometry.is_sparse else "the metric forbids it"
        done = "once a row in their middle is subtracted" if may_be_centred else f"without more ado, since {reason}"
        context.log(
            f"vectors: {equal_after_cast} rows of {dtype} differ from others by less than float32 can tell: rows are "
            f"cast to it {done}. They count as equal. Where that matters, take the columns' offsets off, or scale them"
        )
    return {"inexact": inexact, "centred": may_be_centred and is_centred, "equal_after_cast": equal_after_cast}


# the stage ---------------------------------------------------------------------------------------


def _check_finite(context: Context, blocks: list[str]) -> int:
    """Return how many rows are not finite."""
    config, store = context.config, context.run
    nonfinite = sum_fact(store, VECTORS, blocks, "nonfinite")
    if nonfinite and config.input.nonfinite == "error":
        first = [row for part in blocks for row in store.part_facts(VECTORS, part)["nonfinite_rows"]][:MAX_NAMED_ROWS]
        raise InputError(
            f"{config.input.name}: {nonfinite} of {context.geometry.rows} rows hold NaN or infinite values, first of "
            f"them rows {', '.join(map(str, first))}: mend them, or leave them out with --set input.nonfinite=drop"
        )
    left, settings = context.geometry.rows - nonfinite, config.neighbors
    if left < settings.search_k + 2:
        raise InputError(
            f"{config.input.name}: {left} rows are left without those that are not finite, too few for "
            f"neighbors.{settings.width_setting} = {settings.search_k + 1}: give at least {settings.search_k + 2}, or, "
            f"in another output, set {settings.width_setting} to at most {max(left - 1, 0)}"
        )
    return nonfinite


def _check_angles(context: Context, blocks: list[str]) -> None:
    """Refuse degrees where radians are meant."""
    latitude, longitude = np.max([context.run.part_facts(VECTORS, part)["angles"] for part in blocks], axis=0)
    if latitude > np.pi / 2 + ANGLE_TOLERANCE or longitude > 2 * np.pi + ANGLE_TOLERANCE:
        raise InputError(
            f"{context.config.input.name}: neighbors.metric = haversine takes latitude and longitude in radians, in "
            f"this order: at most pi/2 and 2 pi; the rows reach {latitude:.6g} and {longitude:.6g}. Turn degrees into "
            f"radians (numpy.radians), or put the columns in that order, and name another output"
        )


def run(context: Context) -> dict:
    """Check the input; return the facts.

    Raises
    ------
    InputError
        Rows are not finite and `input.nonfinite` is 'error', or too few rows are left.
    """
    config, store, rows = context.config, context.run, context.geometry.rows
    blocks = part_names("block", context.geometry.blocks)
    context.compute(VECTORS, check_block, blocks)
    nonfinite = _check_finite(context, blocks)
    if config.neighbors.metric == vectors.SPHERICAL:
        _check_angles(context, blocks)
    buckets = tally_buckets(config, rows)
    parts = part_names("duplicates", buckets)
    context.compute(VECTORS, count_duplicates, parts, buckets=buckets)
    distinct, duplicates = (sum_fact(store, VECTORS, parts, fact) for fact in ("distinct", "duplicates"))
    if config.input.unique:
        settings, least = config.neighbors, config.neighbors.search_k + 2
        if distinct < least:
            raise InputError(
                f"{config.input.name}: input.unique leaves {distinct} distinct rows, too few for "
                f"neighbors.{settings.width_setting} = {settings.search_k + 1}: give at least {least}, or, in another "
                f"output, set {settings.width_setting} to at most {max(distinct - 1, 0)} or input.unique=false"
            )
        names = part_names("distinct", context.geometry.blocks)
        context.compute(VECTORS, find_duplicates, names, buckets=buckets, population=rows - duplicates)
    return {
        "rows": rows,
        "dropped": nonfinite,
        **_count_cast_changes(context, sum_fact(store, VECTORS, blocks, "inexact"), buckets),
        "missing_chunks": context.job.input.missing_chunks.chunks,
        "zero": sum_fact(store, VECTORS, blocks, "zero"),
        "duplicates": duplicates,
        "distinct": distinct,
        "greatest_multiplicity": max(store.part_facts(VECTORS, part)["greatest"] for part in parts),
        "duplicates_left_out": duplicates if config.input.unique else 0,
        "fingerprint": format_fingerprint(sum_fact(store, VECTORS, blocks, "fingerprint")),
    }


def steps_of(geometry: Geometry, buckets: int, unique: bool, wide: bool) -> tuple[Step, ...]:
    """Return the steps of the stage; `wide` if rows are wider than float32."""
    blocks = geometry.blocks
    checked = Step(blocks, blocks=1), Step(buckets, blocks, blocks * (2 + unique))
    duplicate_steps = (Step(blocks, 1 + buckets, 3 + 3 * buckets, 1),) if unique else ()
    merged = (Step(1, 1, 1, 1), Step(blocks, 1, 1, 1), Step(buckets, 2 * blocks, 4 * blocks)) if wide else ()
    return checked + duplicate_steps + merged


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    rows, unique, wide = geometry.rows, config.input.unique, geometry.itemsize > 4
    block_values, index_bytes, buckets = (
        geometry.block_rows * geometry.dims,
        geometry.index_dtype.itemsize,
        tally_buckets(config, rows),
    )
    queries = max_audits(config) * min(config.audit.queries, rows)
    sample_bytes, drawn_bytes = (
        geometry.sample_rows * geometry.dims * 4,
        min(queries, rows) * geometry.values_per_row * 4,
    )
    duplicate_bytes = rows * unique * (16 + 3 * index_bytes)
    temporary = rows * (9 + 16 * wide) + (sample_bytes + drawn_bytes) * (1 + wide)
    hashed_bytes, read_times = (
        rows * (9 + 8 * unique) * (buckets + unique) + rows * wide * 18 * buckets,
        1 + unique + wide,
    )
    return StageProjection(
        steps=steps_of(geometry, buckets, unique, wide),
        shuffled_bytes=hashed_bytes + read_times * rows * geometry.source_row_bytes,
        disk_bytes=duplicate_bytes + temporary,
        task_bytes=max(
            sparse_block_bytes(geometry) + sample_bytes + drawn_bytes
            if geometry.is_sparse
            else block_values * (2 * geometry.itemsize + 8) + sample_bytes + min(drawn_bytes, 4 * block_values),
            -(-rows // buckets) * tally_row_bytes(config),
        ),
        temporary_bytes={"block": temporary},
    )


STAGE = Stage(
    VECTORS,
    setting_keys=(
        *("seed", "task_memory", "input.unique", "neighbors.metric", "neighbors.width", "cells.max_cells_per_row"),
        *("cells.max_rows", "neighbors.recall_target", "neighbors.max_repairs", "audit.queries"),
    ),
    reads=(),
    writes=("block", "duplicates", "distinct", CENTRE, "cast", "cast_counts"),
    run=run,
    project=project,
    temporary_kinds={"block": (CELLS, AUDIT, START), **dict.fromkeys(("duplicates", "cast", "cast_counts"), ())},
)

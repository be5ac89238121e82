"""vectors: read every row once; count what is not finite, zero or a copy; draw the samples."""

from __future__ import annotations

import math

import numpy as np

from dumap.errors import InputError
from dumap.kernels import hashing, vectors
from dumap.stages import Context, Job, number_of, numbered, total

STAGE = "vectors"
DROPPED, ISOLATED, ZERO = 1, 2, 4
"""Flags of a row's status."""

NAMED_ROWS = 10
"""How many of the rows that cannot be embedded a message names."""


def as_float32(values: np.ndarray) -> np.ndarray:
    """Cast to float32; what overflows becomes infinite, and is then counted as not finite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def _drawn(job: Job, purpose: int, rows: np.ndarray, wanted: int) -> np.ndarray:
    """Choose about `wanted` of all rows by the hash of their ids."""
    if wanted >= job.geometry.rows:
        return np.ones(len(rows), bool)
    limit = np.uint64(min(2**64 - 1, int(wanted / job.geometry.rows * 2**64)))
    return hashing.draws(job.config.seed, purpose, rows) < limit


def hash_rows(block: np.ndarray) -> np.ndarray:
    """Hash each row of a block, (rows,) uint64."""
    return hashing.row_hashes(block.view(f"u{block.dtype.itemsize}"))


def fingerprint(job: Job) -> str:
    """Fingerprint the input as it is now, block by block, without a cluster."""
    spans = (job.geometry.block(number) for number in range(job.geometry.blocks))
    return _written(sum(int(hashing.fold(hash_rows(job.input.read(*span)), span[0])) for span in spans))


def fold_lists(job: Job, cell: int) -> int:
    """Fold the hashes of the lists that are given for a cell's range of rows."""
    found = 0
    for start, stop in job.geometry.lists(cell):
        both = [hash_rows(block) for block in job.precomputed.read(start, stop)]
        found += int(hashing.fold(hashing.row_hashes(np.column_stack(both)), start))
    return found


def fingerprint_lists(job: Job) -> str:
    """Fingerprint the neighbours that are given, as they are now, without a cluster."""
    return _written(sum(fold_lists(job, cell) for cell in range(job.geometry.cells)))


def _written(total: int) -> str:
    return f"{total % 2**64:016x}"


def check_block(job: Job, part: str) -> None:
    """Check one block of the input."""
    start, stop = job.geometry.block(number_of(part))
    block = job.input.read(start, stop)
    x = as_float32(block)
    finite, zero = vectors.check(x)
    hashes = hash_rows(block)
    rows = np.arange(start, stop)
    with job.run.part(STAGE, part) as out:
        out.write("hashes", hashes)
        out.write("status", np.where(finite, 0, DROPPED).astype(np.uint8) | np.where(zero, ZERO, 0).astype(np.uint8))
        for name, purpose, wanted in (
            ("sample", hashing.SAMPLE, job.geometry.sample_rows),
            ("query", hashing.QUERIES, job.config.quality.queries),
        ):
            chosen = finite & _drawn(job, purpose, rows, wanted)
            out.write(f"{name}_rows", rows[chosen])
            out.write(name, x[chosen])
        out.attributes |= {
            "fingerprint": int(hashing.fold(hashes, start)),
            "nonfinite": int((~finite).sum()),
            "nonfinite_rows": rows[~finite][:NAMED_ROWS].tolist(),
            "zero": int(zero.sum()),
        }


def count_duplicates(job: Job, part: str, buckets: int) -> None:
    """Count the rows whose bytes equal an earlier row's, among those whose hash falls in one bucket."""
    bucket, found = number_of(part), []
    for block in numbered("block", job.geometry.blocks):
        hashes = job.run.read(STAGE, block, "hashes")
        found.append(hashes[hashes % np.uint64(buckets) == np.uint64(bucket)])
    ordered = np.sort(np.concatenate(found))
    with job.run.part(STAGE, part) as out:
        out.attributes["duplicates"] = int((ordered[1:] == ordered[:-1]).sum())


def read_lists(job: Job, part: str) -> None:
    """Fingerprint a range of the lists that are given."""
    with job.run.part(STAGE, part) as out:
        out.attributes["fingerprint"] = fold_lists(job, number_of(part))


def run(context: Context) -> dict:
    """Check the input; return what was counted.

    Raises
    ------
    InputError
        Where rows are not finite and `input.nonfinite` is 'error', or too few rows are left.
    """
    config, store = context.config, context.run
    blocks = numbered("block", context.geometry.blocks)
    context.compute(STAGE, check_block, blocks)
    nonfinite = total(store, STAGE, blocks, "nonfinite")
    if nonfinite and config.input.nonfinite == "error":
        first = [row for part in blocks for row in store.summary(STAGE, part)["nonfinite_rows"]][:NAMED_ROWS]
        raise InputError(
            f"{config.input.path}: {nonfinite} of {context.geometry.rows} rows hold NaN or infinite values, first of "
            f"them rows {', '.join(map(str, first))}: mend them, or leave them out with --set input.nonfinite=drop"
        )
    left = context.geometry.rows - nonfinite
    if left < config.neighbors.n_neighbors + 2:
        raise InputError(
            f"{config.input.path}: {left} rows are left without those that are not finite, too few for "
            f"neighbors.n_neighbors = {config.neighbors.n_neighbors}"
        )
    buckets = math.ceil(context.geometry.rows * 24 / config.task_memory)
    parts = numbered("duplicates", buckets)
    context.compute(STAGE, count_duplicates, parts, buckets=buckets)
    facts = {
        "rows": context.geometry.rows,
        "dropped": nonfinite,
        "zero": total(store, STAGE, blocks, "zero"),
        "duplicates": total(store, STAGE, parts, "duplicates"),
        "fingerprint": _written(total(store, STAGE, blocks, "fingerprint")),
    }
    if config.neighbors.precomputed is not None:
        lists = numbered("lists", context.geometry.cells)
        context.compute(STAGE, read_lists, lists)
        facts["precomputed_fingerprint"] = _written(total(store, STAGE, lists, "fingerprint"))
    return facts

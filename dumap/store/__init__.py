"""The format of runs, and all reading and writing of Zarr stores.

No other folder imports zarr or obstore. Readers rely on the format of a run on disk, so every change of the format
raises `FORMAT`. Other folders import from this package, not from its modules.

- Objects: `objects` (in any backend), `backends`, `disk`, `options` (of buckets), `concurrent_reads`, `patterns`.
- A run: `run`; `part` (writes), `manifests`, `committed` (reads), `stored_array`, `checkpoints`, `lock`, `run_keys`,
  `relative_paths` (locations of other runs), `published` (copies results out of a work place), `row_names`.
- Other Zarr stores: `arrays`, `new_store`, `annotated` (AnnData), `metadata`, `chunks`, `bfloat16`, `csr`
  (sparse matrices), `listing`.
"""

from dumap.store.annotated import AnnDataStore, Slots, delete_tree
from dumap.store.arrays import ExternalArray, array_location, open_named_array, read_array, write_arrays
from dumap.store.bfloat16 import bfloat16_to_float32, is_bfloat16
from dumap.store.checkpoints import CHECKPOINT, Checkpoints
from dumap.store.chunks import MissingChunks, decoded_rows, find_missing_chunks, require_chunks
from dumap.store.csr import CsrGroup, find_csr, read_csr, write_csr
from dumap.store.lock import Lock, driver_status, last_progress, wait_for_driver_end
from dumap.store.manifests import DONE, IDENTITY, INHERITED, INSIDE, LOCKS, MANIFESTS, PARTS, manifest_key
from dumap.store.new_store import NewStore
from dumap.store.objects import (
    bucket_errors,
    check_writable,
    describe_error,
    limit_zarr_requests,
    limit_zarr_threads,
    probe_key,
    stamps,
)
from dumap.store.options import add_options, known_options, set_options
from dumap.store.part import OBJECT_BYTES, Part
from dumap.store.patterns import expand_pattern, is_pattern
from dumap.store.published import find_damaged_copies, internal_location, publish, work_location, write_work_pointer
from dumap.store.relative_paths import absolute_location, relative_location
from dumap.store.run import FORMAT, Run
from dumap.store.run_keys import RunKeys
from dumap.store.stored_array import RANGE_BYTES, StoredArray

__all__ = [
    "CHECKPOINT",
    "DONE",
    "FORMAT",
    "IDENTITY",
    "INHERITED",
    "INSIDE",
    "LOCKS",
    "MANIFESTS",
    "OBJECT_BYTES",
    "PARTS",
    "RANGE_BYTES",
    "AnnDataStore",
    "Checkpoints",
    "CsrGroup",
    "ExternalArray",
    "Lock",
    "MissingChunks",
    "NewStore",
    "Part",
    "Run",
    "RunKeys",
    "Slots",
    "StoredArray",
    "absolute_location",
    "add_options",
    "array_location",
    "bfloat16_to_float32",
    "bucket_errors",
    "check_writable",
    "decoded_rows",
    "delete_tree",
    "describe_error",
    "driver_status",
    "expand_pattern",
    "find_csr",
    "find_damaged_copies",
    "find_missing_chunks",
    "internal_location",
    "is_bfloat16",
    "is_pattern",
    "known_options",
    "last_progress",
    "limit_zarr_requests",
    "limit_zarr_threads",
    "manifest_key",
    "open_named_array",
    "probe_key",
    "publish",
    "read_array",
    "read_csr",
    "relative_location",
    "require_chunks",
    "set_options",
    "stamps",
    "wait_for_driver_end",
    "work_location",
    "write_arrays",
    "write_csr",
    "write_work_pointer",
]

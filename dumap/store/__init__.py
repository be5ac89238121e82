"""The format of runs, and all reading and writing of Zarr stores.

No other folder imports zarr or obstore. Readers rely on the format of a run on disk, so every change of the format
raises `FORMAT`. Other folders import from this package, not from its modules.

- Objects: `objects` (in any backend), `backends`, `disk`, `options` (of buckets), `concurrent_reads`, `patterns`.
- A run: `run`; `part` (writes), `manifests`, `committed` (reads), `stored_array`, `checkpoints`, `lock`, `run_keys`,
  `relative_paths` (locations of other runs), `published` (copies results out of a work place), `row_names`.
- Other Zarr stores: `arrays`, `new_store`, `annotated` (AnnData), `metadata`, `chunks`, `bfloat16`, `csr`
  (sparse matrices), `listing`.
"""

from dumap.store.annotated import AnnDataStore, Slots, remove_tree
from dumap.store.arrays import Rows, find_array, place_of_array, read_array, write_arrays
from dumap.store.bfloat16 import holds_bfloat16, widen
from dumap.store.checkpoints import CHECKPOINT, Checkpoints
from dumap.store.chunks import Absent, decoded_rows, find_absent, require_chunks
from dumap.store.csr import CsrGroup, find_csr, read_csr, write_csr
from dumap.store.lock import Lock, await_end, driver_status, last_progress
from dumap.store.manifests import DONE, IDENTITY, INHERITED, INSIDE, LOCKS, MANIFESTS, PARTS, manifest_key
from dumap.store.new_store import NewStore
from dumap.store.objects import bucket_errors, describe_error, probe, probe_key, requests_at_once, set_threads, stamps
from dumap.store.options import known_options, learn_options, use_options
from dumap.store.part import OBJECT_BYTES, Part
from dumap.store.patterns import is_pattern, matching
from dumap.store.published import claim, damaged_copies, internal_location, publish, work_of
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
    "Absent",
    "AnnDataStore",
    "Checkpoints",
    "CsrGroup",
    "Lock",
    "NewStore",
    "Part",
    "Rows",
    "Run",
    "RunKeys",
    "Slots",
    "StoredArray",
    "absolute_location",
    "await_end",
    "bucket_errors",
    "claim",
    "damaged_copies",
    "decoded_rows",
    "describe_error",
    "driver_status",
    "find_absent",
    "find_array",
    "find_csr",
    "holds_bfloat16",
    "internal_location",
    "is_pattern",
    "known_options",
    "last_progress",
    "learn_options",
    "manifest_key",
    "matching",
    "place_of_array",
    "probe",
    "probe_key",
    "publish",
    "read_array",
    "read_csr",
    "relative_location",
    "remove_tree",
    "requests_at_once",
    "require_chunks",
    "set_threads",
    "stamps",
    "use_options",
    "widen",
    "work_of",
    "write_arrays",
    "write_csr",
]

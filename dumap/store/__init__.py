"""The format of runs, and all that is read from and written to Zarr."""

from dumap.store.arrays import Rows, find_array, read_array, write_arrays
from dumap.store.chunks import Absent, decoded_rows, find_absent, require_chunks
from dumap.store.lock import Lock
from dumap.store.objects import LOCKS, bucket_errors, probe, probe_key, requests_at_once, set_threads, stamps, told
from dumap.store.run import FORMAT, IDENTITY, MANIFESTS, OBJECT_BYTES, Part, Run, manifest_key
from dumap.store.series import Series

__all__ = [
    "FORMAT",
    "IDENTITY",
    "LOCKS",
    "MANIFESTS",
    "OBJECT_BYTES",
    "Absent",
    "Lock",
    "Part",
    "Rows",
    "Run",
    "Series",
    "bucket_errors",
    "decoded_rows",
    "find_absent",
    "find_array",
    "manifest_key",
    "probe",
    "probe_key",
    "read_array",
    "requests_at_once",
    "require_chunks",
    "set_threads",
    "stamps",
    "told",
    "write_arrays",
]

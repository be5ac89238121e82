"""Copies the results of a run whose internal folder lies in a work place to its output.

RUN.zarr/
  zarr.json, embedding, status    as in a run
  row                             as in a run, if the input has names of rows
  _dumap/work.json                the location of the work place
  _dumap/zarr.json                tells Zarr that _dumap holds no nodes
"""

from __future__ import annotations

from collections.abc import Iterator

from dumap.errors import RunMismatchError, StorageError
from dumap.store import metadata
from dumap.store.manifests import IDENTITY, INSIDE
from dumap.store.objects import Objects, seal, unseal
from dumap.store.part import WRITTEN_METADATA
from dumap.store.relative_paths import absolute_location, relative_location
from dumap.store.run import Run
from dumap.store.run_keys import FINAL_ARRAYS, ROW_NAMES, RunKeys

WORK_POINTER = f"{INSIDE}/work.json"
"""The object in the output that holds the location of its work place."""
MAX_POINTER_BYTES = 1 << 16
"""The most bytes of that object; a larger object counts as damaged."""


def work_location(output: str) -> str | None:
    """Return the work place that an output names; None if the output names none or does not exist.

    Raises
    ------
    StorageError
        The object that names the work place is damaged.
    """
    objects = Objects(output, read_only=True)
    data = objects.get(WORK_POINTER, MAX_POINTER_BYTES)
    if data is None:
        return None
    relative = (unseal(data) or {}).get("work")
    if not isinstance(relative, str):
        raise StorageError(
            f"{objects.location}, {WORK_POINTER}: damaged, so that it is not known where the rest of the run lies: "
            f"name that place instead of this one, or compute the run into another output"
        )
    return absolute_location(relative, objects.location)


def internal_location(location: str) -> str:
    """Return the location of a run's internal folder: the run's own location, or the work place that it names.

    Raises
    ------
    StorageError
        The work place holds no run.
    """
    work = work_location(location)
    if work is None:
        return location
    if not Run(work, read_only=True).exists():
        done = Objects(location, read_only=True).size("zarr.json") >= 0
        rest = "its arrays embedding and status are whole" if done else "its map is not made yet"
        raise StorageError(
            f"{location} keeps its internal folder in {work} (the setting work), and there is no run: make that place "
            f"reachable, or put it back; {rest}. To compute it anew, name another output"
        )
    return work


def write_work_pointer(output: str, work: str) -> None:
    """Write the location of the work place to an output.

    Raises
    ------
    RunMismatchError
        The output names another work place.
    """
    objects = Objects(output)
    document = seal({"work": relative_location(work, objects.location)})
    if not objects.put_new(WORK_POINTER, document):
        raise RunMismatchError(
            f"{output} keeps its internal folder in {work_location(output)}, not in {work}: leave work out, or name "
            f"another output"
        )
    objects.put(f"{INSIDE}/zarr.json", metadata.written(metadata.placeholder_array(INSIDE)))


def publish(work: str, output: str, run_keys: RunKeys) -> int:
    """Copy the results of a finished run to its output, except what is there already; return the bytes copied."""
    source, target, copied_bytes = Run(work, read_only=True), Run(output), 0
    for name in FINAL_ARRAYS:
        keys = [key for key in source.keys(name) if run_keys.is_permanent(key)]
        for key in sorted(keys, key=lambda key: key.endswith("zarr.json")):  # the metadata come after the chunks
            if key.endswith("zarr.json"):
                copied_bytes += _write_own_entries(target, key, _final_array_metadata(source, key))
            else:
                copied_bytes += _copy_object(source, target, key)
    for key in sorted(source.keys(ROW_NAMES), key=lambda key: key.endswith("zarr.json")):
        copied_bytes += _copy_object(source, target, key)
    required = {**_own_group_metadata(source), metadata.CONSOLIDATED: metadata.consolidate(target.read_nodes())}
    return copied_bytes + _write_own_entries(target, "zarr.json", required)


def find_damaged_copies(work: str, output: str) -> Iterator[str]:
    """Yield the keys of the results in an output that differ from those of the run; none if none were copied yet."""
    source, target = Run(work, read_only=True), Objects(output, read_only=True)
    if target.size("zarr.json") < 0:
        return
    for part in source.committed_parts("embedding"):
        for key, (size, known) in source.manifest("embedding", part)["objects"].items():
            if key.startswith(tuple(f"{name}/" for name in FINAL_ARRAYS)) and target.digest(key, size) != known:
                yield key
    written = {f"{name}/zarr.json": _final_array_metadata(source, f"{name}/zarr.json") for name in FINAL_ARRAYS}
    documents_by_array = {key.removesuffix("/zarr.json"): required for key, required in written.items()}
    for key, required in {**written, "zarr.json": _own_group_metadata(source)}.items():
        stored = metadata.parse(target.get(key))
        if not metadata.holds(stored, required) or (
            key == "zarr.json" and not metadata.consolidates(stored, documents_by_array)
        ):
            yield key


def _copy_object(source: Run, target: Run, key: str) -> int:
    """Copy an object unless the target has one of equal size; return the bytes copied."""
    size = source.size(key)
    if target.size(key) == size:
        return 0
    target.put(key, source.get(key) or b"")
    return size


def _own_group_metadata(source: Run) -> metadata.Document:
    """Return the metadata of a run's group, without the consolidated metadata."""
    return metadata.group_of({metadata.OWN: source.attributes})


def _final_array_metadata(source: Run, key: str) -> metadata.Document:
    """Return the metadata that dumap wrote for a final array."""
    document: metadata.Document = source.part_facts(IDENTITY, "results")[WRITTEN_METADATA][key]
    return document


def _write_own_entries(target: Objects, key: str, required: metadata.Document) -> int:
    """Add dumap's own entries to stored metadata unless they are there; return the bytes written."""
    stored = metadata.parse(target.get(key))
    merged = metadata.renewed(stored, required)
    if metadata.parse(merged) == stored:
        return 0
    target.put(key, merged)
    return len(merged)

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
from dumap.store.part import METADATA
from dumap.store.relative_paths import absolute_location, relative_location
from dumap.store.run import Run
from dumap.store.run_keys import FINALS, ROW, RunKeys

POINTER = f"{INSIDE}/work.json"
"""The object in the output that holds the location of its work place."""
MOST_POINTER_BYTES = 1 << 16
"""The most bytes of that object; a larger object counts as damaged."""


def work_of(output: str) -> str | None:
    """Return the work place that an output names; None if the output names none or does not exist.

    Raises
    ------
    StorageError
        The object that names the work place is damaged.
    """
    objects = Objects(output, read_only=True)
    data = objects.get(POINTER, MOST_POINTER_BYTES)
    if data is None:
        return None
    relative = (unseal(data) or {}).get("work")
    if not isinstance(relative, str):
        raise StorageError(
            f"{objects.location}, {POINTER}: damaged, so that it is not known where the rest of the run lies: name "
            f"that place instead of this one, or compute the run into another output"
        )
    return absolute_location(relative, objects.location)


def internal_location(location: str) -> str:
    """Return the location of a run's internal folder: the run's own location, or the work place that it names.

    Raises
    ------
    StorageError
        The work place holds no run.
    """
    work = work_of(location)
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


def claim(output: str, work: str) -> None:
    """Write the location of the work place to an output.

    Raises
    ------
    RunMismatchError
        The output names another work place.
    """
    objects = Objects(output)
    document = seal({"work": relative_location(work, objects.location)})
    if not objects.put_new(POINTER, document):
        raise RunMismatchError(
            f"{output} keeps its internal folder in {work_of(output)}, not in {work}: leave work out, or name another "
            f"output"
        )
    objects.put(f"{INSIDE}/zarr.json", metadata.written(metadata.placeholder_array(INSIDE)))


def publish(work: str, output: str, run_keys: RunKeys) -> int:
    """Copy the results of a finished run to its output, except what is there already; return the bytes copied."""
    source, target, copied = Run(work, read_only=True), Run(output), 0
    for name in FINALS:
        keys = [key for key in source.keys(name) if run_keys.is_lasting(key)]
        for key in sorted(keys, key=lambda key: key.endswith("zarr.json")):  # the metadata come after the chunks
            if key.endswith("zarr.json"):
                copied += _renew(target, key, _array(source, key))
            else:
                copied += _copy(source, target, key)
    for key in sorted(source.keys(ROW), key=lambda key: key.endswith("zarr.json")):
        copied += _copy(source, target, key)
    required = {**_group(source), metadata.CONSOLIDATED: metadata.consolidate(target.nodes())}
    return copied + _renew(target, "zarr.json", required)


def damaged_copies(work: str, output: str) -> Iterator[str]:
    """Yield the keys of the results in an output that differ from those of the run; none if none were copied yet."""
    source, target = Run(work, read_only=True), Objects(output, read_only=True)
    if target.size("zarr.json") < 0:
        return
    for part in source.committed("embedding"):
        for key, (size, known) in source.manifest("embedding", part)["objects"].items():
            if key.startswith(tuple(f"{name}/" for name in FINALS)) and target.digest(key, size) != known:
                yield key
    written = {f"{name}/zarr.json": _array(source, f"{name}/zarr.json") for name in FINALS}
    written_arrays = {key.removesuffix("/zarr.json"): required for key, required in written.items()}
    for key, required in {**written, "zarr.json": _group(source)}.items():
        stored = metadata.parse(target.get(key))
        if not metadata.holds(stored, required) or (
            key == "zarr.json" and not metadata.consolidates(stored, written_arrays)
        ):
            yield key


def _copy(source: Run, target: Run, key: str) -> int:
    """Copy an object unless the target has one of equal size; return the bytes copied."""
    size = source.size(key)
    if target.size(key) == size:
        return 0
    target.put(key, source.get(key) or b"")
    return size


def _group(source: Run) -> metadata.Document:
    """Return the metadata of a run's group, without the consolidated metadata."""
    return metadata.group_of({metadata.OWN: source.attributes})


def _array(source: Run, key: str) -> metadata.Document:
    """Return the metadata that dumap wrote for a final array."""
    document: metadata.Document = source.summary(IDENTITY, "results")[METADATA][key]
    return document


def _renew(target: Objects, key: str, required: metadata.Document) -> int:
    """Add dumap's own entries to stored metadata unless they are there; return the bytes written."""
    stored = metadata.parse(target.get(key))
    whole = metadata.renewed(stored, required)
    if metadata.parse(whole) == stored:
        return 0
    target.put(key, whole)
    return len(whole)

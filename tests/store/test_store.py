"""The store of a run: parts, manifests, commits and arrays, on disk and in buckets."""

import contextlib
import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from dumap.errors import DamageError, InputError, StorageError
from dumap.store import FORMAT, IDENTITY, MANIFESTS, PARTS, Run, check_writable, disk, read_array, stored_array
from dumap.store import backends as backends
from dumap.store import part as module
from dumap.store.run import MAPPING_ATTRIBUTES


@pytest.fixture
def run(tmp_path) -> Run:
    """Return a run that has been created and holds nothing yet."""
    run = Run(str(tmp_path / "run.zarr"))
    run.create({"seed": 42, **{key: {} for key in MAPPING_ATTRIBUTES}})
    return run


def commit(run: Run, name: str = "p", **arrays: np.ndarray) -> None:
    """Commit a part that holds some arrays and a fact."""
    with run.part("stage", name) as part:
        for array, values in arrays.items():
            part.write(array, values)
        part.attributes["facts"] = [1, "two"]


def again(run: Run) -> Run:
    """Open the run as another process does, which has read nothing yet."""
    return Run(run.location)


# parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (1,), (1000,), (0, 3), (5, 1), (300, 7), (2, 40, 3)])
@pytest.mark.parametrize("dtype", ["bool", "u1", "i8", "u8", "f2", "f4", "f8"])
def test_a_part_holds_what_was_written(run, dtype, shape):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    commit(run, a=values, zeros=np.zeros(shape, dtype))
    for reader in (run, again(run)):
        for name, expected in (("a", values), ("zeros", np.zeros(shape, dtype))):
            array = reader.read("stage", "p", name)
            assert (array.dtype, array.shape) == (expected.dtype, shape)
            assert array.tobytes() == expected.tobytes()
    assert again(run).part_facts("stage", "p") == {"facts": [1, "two"]}
    assert list(again(run).find_damaged()) == []


def test_objects_without_a_manifest_do_not_exist(run):
    with contextlib.suppress(ZeroDivisionError), run.part("stage", "p") as part:
        part.write("a", np.arange(5))
        _ = 1 / 0
    assert not run.is_committed("stage", "p")
    assert run.committed_parts("stage") == []
    with pytest.raises(StorageError, match=r"stage/p.json .* is missing"):
        run.read("stage", "p", "a")


def test_the_first_manifest_wins_and_the_losers_objects_do_not_count(run):
    with run.part("stage", "p") as slow:
        slow.write("a", np.array([1.0]))
        with again(run).part("stage", "p") as fast:
            fast.write("a", np.array([2.0]))
    for reader in (run, again(run)):
        assert reader.read("stage", "p", "a").tolist() == [2.0]
        assert reader.committed_parts("stage") == ["p"]
    for key in slow.objects:
        Path(run.location, key).unlink()
    assert list(again(run).find_damaged()) == []
    assert again(run).read("stage", "p", "a").tolist() == [2.0]


def test_a_discarded_part_can_be_made_anew(run):
    commit(run, a=np.arange(3))
    commit(run, "q", a=np.arange(9))
    assert len(run.read("stage", "p", "a")) == 3
    run.delete_part("stage", "p")
    assert again(run).committed_parts("stage") == ["q"]
    assert not list(Path(run.location).rglob("p-*"))
    commit(run, a=np.arange(4))
    assert len(run.read("stage", "p", "a")) == 4


@pytest.fixture
def bucket(monkeypatch) -> Run:
    """Return a run in a bucket that lies in memory."""
    obstore = pytest.importorskip("obstore.store", reason="buckets need the extra 'cloud'")
    held = obstore.MemoryStore()
    monkeypatch.setattr(backends, "open_bucket", lambda location: held)
    run = Run("memory://bucket/run.zarr")
    run.create({"seed": 42, **{key: {} for key in MAPPING_ATTRIBUTES}})
    return run


@pytest.mark.parametrize("place", ["run", "bucket"])
def test_ranges_are_read_alone(request, monkeypatch, place):
    run = request.getfixturevalue(place)
    monkeypatch.setattr(stored_array, "RANGE_BYTES", 16 * 12)
    monkeypatch.setattr(stored_array, "GATHER_BYTES", 16 * 12 * 3)
    values, rows = np.arange(900).reshape(300, 3).astype(np.float32), np.arange(300)[::-1].copy()
    monkeypatch.setattr(module, "OBJECT_BYTES", values.nbytes // 4)
    with run.part("stage", "p") as part:
        part.write("b", np.arange(7))
        part.write_gathered("a", values, rows)
        part.write("c", np.arange(8))
    assert len(run.manifest("stage", "p")["objects"]) == (1 if run.is_local else 5), "a bucket takes them from memory"
    assert (run.read("stage", "p", "b").tolist(), run.read("stage", "p", "c", 3).tolist()) == (
        [*range(7)],
        [*range(3, 8)],
    )
    for start, stop in [(0, 300), (0, 1), (299, 300), (74, 76), (15, 17), (10, 10), (20, 5), (100, 290)]:
        assert run.read("stage", "p", "a", start, stop).tolist() == values[rows][start:stop].tolist()
    assert run.read("stage", "p", "a", 250).tolist() == values[rows][250:].tolist()


def test_nothing_gathered_is_an_empty_array(run):
    with run.part("stage", "p") as part:
        part.write_gathered("a", np.ones((4, 3), np.uint8), np.empty(0, np.int64))
    array = run.read("stage", "p", "a")
    assert (array.shape, array.dtype) == ((0, 3), np.uint8)


def test_rows_out_of_range_commit_no_part(run):
    with pytest.raises(IndexError), run.part("stage", "p") as part:
        part.write_gathered("a", np.arange(5), np.array([4, 5]))
    assert run.committed_parts("stage") == []
    assert not any(key.startswith(f"{PARTS}/stage") for key in list(run.keys()))


def test_arrays_that_are_read_may_be_changed(run):
    commit(run, a=np.arange(5))
    for _ in range(2):
        array = run.read("stage", "p", "a", 1)
        assert array.tolist() == [1, 2, 3, 4]
        array[:] = 7


def test_rows_are_read_into_an_array(run, monkeypatch):
    monkeypatch.setattr(module, "OBJECT_BYTES", 80)
    with run.part("stage", "p") as part:
        part.write_gathered("a", np.arange(30), np.arange(30))
    out = np.full(20, -1)
    assert run.read("stage", "p", "a", 5, 17, out[4:16]).base is out
    assert out.tolist() == [-1] * 4 + list(range(5, 17)) + [-1] * 4
    with pytest.raises(DamageError):
        run.read("stage", "p", "a", 25, 35, out[:10])


def test_a_manifest_is_there_only_after_all_that_it_names(run, monkeypatch):
    """A power cut keeps what was flushed alone: files before the folders that name them, those before the manifest."""
    done, flush, link, replace = [], os.fsync, os.link, os.replace

    def flushed(descriptor):
        done.append(("flush", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), run.location)))
        flush(descriptor)

    def linked(source, target):
        done.append(("name", os.path.relpath(target, run.location)))
        link(source, target)

    def replaced(source, target):
        assert done[-1] == ("flush", os.path.relpath(source, run.location))
        done.append(("name", os.path.relpath(target, run.location)))
        replace(source, target)

    with monkeypatch.context() as patch:
        for name, stand_in in (("fsync", flushed), ("link", linked), ("replace", replaced)):
            patch.setattr(os, name, stand_in)
        commit(run, a=np.arange(5), b=np.ones((2, 3)))
    manifest = done.index(("name", f"{MANIFESTS}/stage/p.json"))
    for key in run.manifest("stage", "p")["objects"]:
        named = done.index(("name", key))
        assert named < done.index(("flush", os.path.dirname(key)), named) < manifest
    assert ("flush", f"{MANIFESTS}/stage") in done[manifest:]


@pytest.mark.faults
@pytest.mark.parametrize("call", ["fsync", "replace", "link"])
def test_a_write_that_fails_leaves_nothing_halfway(run, monkeypatch, call):
    before = run.keys()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError, match="no space is left: make room"):
            commit(run, a=np.arange(5))
    assert not any(key.endswith(".partial") for key in list(run.keys()))
    assert run.committed_parts("stage") == []
    if call != "link":
        assert run.keys() == before
    commit(run, a=np.arange(5))
    assert run.read("stage", "p", "a").tolist() == [0, 1, 2, 3, 4]


def test_a_span_crosses_parts(run):
    sizes = [3, 0, 5, 1]
    offsets, values = np.cumsum([0, *sizes]), np.arange(9)
    names = [f"p{number}" for number in range(4)]
    for name, low, high in zip(names, offsets[:-1], offsets[1:], strict=True):
        commit(run, name, a=values[low:high])
    for start in range(9):
        for stop in range(start + 1, 10):
            assert run.read_from_parts("stage", names, offsets, "a", start, stop).tolist() == list(range(start, stop))


# damage ----------------------------------------------------------------------------------------


def objects(run: Run) -> list[str]:
    """Name the objects of the part 'p', its manifest too."""
    return [*run.manifest("stage", "p")["objects"], f"{MANIFESTS}/stage/p.json"]


@pytest.mark.faults
def test_a_flipped_bit_is_found_wherever_it_is(run):
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    commit(run, a=values)
    assert len(objects(run)) == 2
    for key in objects(run):
        path = Path(run.location) / key
        good = path.read_bytes()
        for byte in range(0, len(good), 7):
            path.write_bytes(good[:byte] + bytes([good[byte] ^ 1 << byte % 8]) + good[byte + 1 :])
            assert list(again(run).find_damaged()) == [("stage", "p", key)], f"byte {byte}"
            with pytest.raises(DamageError, match="damaged"):
                again(run).read("stage", "p", "a")
        path.write_bytes(good)
    assert again(run).read("stage", "p", "a").tobytes() == values.tobytes()


@pytest.mark.faults
@pytest.mark.parametrize("opened", [False, True], ids=["unread", "read_before"])
@pytest.mark.parametrize("harm", ["delete", "truncate", "empty"])
def test_a_lost_object_is_an_error_and_never_zeros(run, harm, opened):
    commit(run, a=np.arange(1, 5000))
    key = objects(run)[0]
    path, reader = Path(run.location) / key, again(run)
    if opened:
        reader.read("stage", "p", "a")
    if harm == "delete":
        path.unlink()
    else:
        os.truncate(path, 0 if harm == "empty" else path.stat().st_size - 1)
    with pytest.raises(StorageError, match=r"missing or damaged.*dumap verify"):
        reader.read("stage", "p", "a")
    assert list(reader.find_damaged()) == [("stage", "p", key)]


@pytest.mark.faults
@pytest.mark.parametrize("harm", ["delete", "truncate", "lengthen", "empty", "folder"])
def test_rows_of_an_object_of_another_size_are_an_error(run, monkeypatch, harm):
    """Even where the rows asked for are all there."""
    monkeypatch.setattr(stored_array, "RANGE_BYTES", 16 * 8)
    commit(run, a=np.arange(64))
    key = objects(run)[0]
    path = Path(run.location) / key
    if harm in ("delete", "folder"):
        path.unlink()
    else:
        os.truncate(path, {"empty": 0, "truncate": path.stat().st_size - 1, "lengthen": path.stat().st_size + 1}[harm])
    if harm == "folder":
        path.mkdir()
    with pytest.raises(DamageError, match=rf"{key} \(stage p\) is missing or damaged") as caught:
        again(run).read("stage", "p", "a", 0, 16)
    assert (caught.value.stage, caught.value.part) == ("stage", "p")


@pytest.mark.faults
def test_a_lost_manifest_is_an_error(run):
    commit(run, a=np.arange(5))
    (Path(run.location) / MANIFESTS / "stage/p.json").unlink()
    with pytest.raises(StorageError, match="missing"):
        again(run).read("stage", "p", "a")


@pytest.mark.faults
def test_damage_to_rows_not_asked_for_spares_the_others(run, monkeypatch):
    monkeypatch.setattr(stored_array, "RANGE_BYTES", 16 * 8)
    commit(run, a=np.arange(64))
    path = Path(run.location) / objects(run)[0]
    data = bytearray(path.read_bytes())
    data[data.index(np.int64(40).tobytes())] ^= 1
    path.write_bytes(data)
    assert again(run).read("stage", "p", "a", 0, 16).tolist() == list(range(16))
    with pytest.raises(StorageError, match="damaged"):
        again(run).read("stage", "p", "a", 33, 48)


# the group -------------------------------------------------------------------------------------


def test_put_new_writes_once(run):
    assert run.put_new("folder/key", b"one")
    assert run.put_new("folder/key", b"one")
    assert not run.put_new("folder/key", b"two")
    assert run.get("folder/key") == b"one"
    assert run.list_names("folder") == ["key"]
    assert [path.name for path in Path(run.location, "folder").iterdir()] == ["key"]


def test_a_run_of_another_format_is_refused(run):
    assert run.attributes["format"] == FORMAT
    run.create({"seed": 7, **{key: {} for key in MAPPING_ATTRIBUTES}})
    assert run.attributes["seed"] == 42, "creating again changes nothing"
    run.uncommit(IDENTITY, "run")
    run.put("zarr.json", json.dumps({"attributes": {"format": FORMAT + 1}}).encode())
    with pytest.raises(StorageError, match=rf"has format {FORMAT + 1}; this version of dumap reads format {FORMAT}"):
        _ = again(run).attributes


def test_folders_that_are_no_runs_are_refused(tmp_path):
    with pytest.raises(StorageError, match="holds no run"):
        _ = Run(str(tmp_path)).attributes
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StorageError, match="is not a dumap run"):
        _ = Run(str(tmp_path / "other.zarr")).attributes


@pytest.fixture
def final(run) -> Run:
    """Return a run with a final array of 250 rows."""
    with run.part(IDENTITY, "results") as part:
        part.create_final_array("embedding", (250, 2), "float32", 100, np.nan, {"long_name": "coordinates"})
    run.update_metadata()
    return run


def test_rows_are_written_as_whole_chunks(final):
    values = np.random.default_rng(0).normal(size=(250, 2)).astype(np.float32)
    values[100:200] = np.nan
    for first, stop in [(0, 200), (200, 250)]:
        with final.part("stage", f"rows-{first}") as part:
            part.write_rows("embedding", first, values[first:stop])
    assert final.read_final("embedding", "stage").tobytes() == values.tobytes()
    assert final.open_final("embedding").metadata.dimension_names == ("row", "component")
    assert zarr.open_group(final.location, mode="r")["embedding"][...].tobytes() == values.tobytes()
    lost = Path(final.location, "embedding/c/1/0")
    lost.unlink()  # a chunk of fill values alone is an object too
    assert list(again(final).find_damaged()) == [("stage", "rows-0", "embedding/c/1/0")]


@pytest.mark.parametrize(("first", "rows"), [(50, 100), (0, 150), (100, 149), (200, 30), (1, 1)])
def test_rows_that_are_not_whole_chunks_are_refused(final, first, rows):
    with pytest.raises(ValueError, match="not whole chunks of 100"), final.part("stage", "rows") as part:
        part.write_rows("embedding", first, np.ones((rows, 2), np.float32))
    assert np.isnan(final.read_final("embedding", "stage")).all()


def test_a_location_that_cannot_be_written_to_is_named(tmp_path):
    check_writable(str(tmp_path / "new.zarr"))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"output: .* cannot be written to"):
        check_writable(str(tmp_path / "file" / "run.zarr"))


def test_labels_are_read_from_numpy_and_zarr(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(4))
    path = str(tmp_path / "labels.zarr")
    zarr.create_array(path, data=np.arange(4), chunks=(4,))
    assert read_array(str(tmp_path / "labels.npy")).tolist() == read_array(path).tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"neither a .npy file nor a Zarr array"):
        read_array(str(tmp_path / "nowhere"))


def test_a_file_that_a_full_disk_ended_is_discarded(tmp_path):
    writer = disk.FileWriter(str(tmp_path), "a/b")

    class Full(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer._file.close()
    writer._file = io.BufferedWriter(Full())
    writer.write(b"few bytes, which are buffered")
    writer.discard()
    assert list((tmp_path / "a").iterdir()) == []

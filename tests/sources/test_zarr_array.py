"""Zarr arrays as input: what is read without a copy, and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dumap.errors import InputError
from dumap.sources.zarr_array import ArrayInput
from dumap.store import listing

VALUES = np.arange(60).reshape(20, 3)


def make(path: Path, values: np.ndarray = VALUES, name: str | None = "vectors", **options) -> str:
    """Write an array: in a group by its name, or as the store itself."""
    target = zarr.open_group(path, mode="a", zarr_format=options.get("zarr_format", 3)).store if name else path
    options = {"chunks": (6, *values.shape[1:]), **options}
    array = zarr.create_array(target, name=name, shape=values.shape, dtype=values.dtype, **options)
    array[...] = values
    return str(path)


@pytest.mark.fault(33)
@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}, {"shards": (12, 3)}], ids=str)
@pytest.mark.parametrize("name", ["vectors", "deep/vectors", None])
def test_the_input_is_any_zarr_array(tmp_path, name, options):
    path = make(tmp_path / "in.zarr", VALUES.astype(np.float32), name, **options)
    array = ArrayInput(path, name or "vectors")
    assert (array.rows, array.dims, array.dtype) == (20, 3, np.float32)
    assert array.chunk_rows == 6, "a shard need not be decoded whole"
    assert array.read(4, 19).tolist() == VALUES[4:19].tolist()


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "values",
    [
        VALUES.astype(">f4"),
        VALUES.astype(">i2"),
        VALUES.astype("f2"),
        VALUES.astype("u1"),
        VALUES % 2 == 0,
        np.asfortranarray(VALUES.astype("f8")),
    ],
    ids=["big_endian_float", "big_endian_int", "float16", "uint8", "bool", "fortran"],
)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_rows_come_in_native_order(tmp_path, values, zarr_format):
    order = {"order": "F"} if zarr_format == 2 and values.flags.f_contiguous else {}
    rows = ArrayInput(make(tmp_path / "in.zarr", values, zarr_format=zarr_format, **order), "vectors").read(3, 9)
    assert rows.dtype == values.dtype.newbyteorder("=")
    assert rows.dtype.isnative
    assert rows.flags.c_contiguous
    assert rows.tolist() == values[3:9].tolist()


@pytest.mark.fault(33)
def test_a_zip_file_is_read_as_it_is(tmp_path):
    folder = make(tmp_path / "in.zarr", VALUES.astype(np.float32))
    file = shutil.make_archive(str(tmp_path / "in.zarr"), "zip", folder)
    assert ArrayInput(file, "vectors").read(0, 20).tolist() == VALUES.tolist()


@pytest.mark.fault(31)
@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(9), r"has shape \(9,\); dumap reads \(rows, dims\)"),
        (np.ones((9, 2, 2)), r"has shape \(9, 2, 2\); dumap reads \(rows, dims\)"),
        (np.ones((9, 2), complex), "has dtype complex128; allowed are"),
        (np.full((9, 2), "a"), "has dtype .*; allowed are real floats, integers and booleans"),
        (np.ones((0, 2)), r"is empty: its shape is \(0, 2\)"),
    ],
    ids=["1-D", "3-D", "complex", "string", "empty"],
)
def test_arrays_that_cannot_be_embedded_are_refused(tmp_path, values, message):
    path = make(tmp_path / "in.zarr", values, chunks=tuple(max(1, size) for size in values.shape), zarr_format=2)
    with pytest.raises(InputError, match=message):
        ArrayInput(path, "vectors")


@pytest.mark.fault(33)
def test_an_array_that_is_not_there_is_named_beside_those_that_are(tmp_path):
    path = make(tmp_path / "in.zarr", name="x")
    make(tmp_path / "in.zarr", np.ones(4), name="labels", chunks=(4,))
    with pytest.raises(
        InputError, match=r"no array 'vectors' in .*in.zarr; its arrays are: x \(20, 3\), labels \(4,\)"
    ):
        ArrayInput(path, "vectors")
    zarr.create_group(tmp_path / "none.zarr")
    with pytest.raises(InputError, match="its arrays are: none"):
        ArrayInput(str(tmp_path / "none.zarr"), "vectors")


@pytest.mark.fault(33)
def test_folders_that_are_not_zarr_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        ArrayInput(str(tmp_path / "nowhere"), "vectors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.npy").write_bytes(b"\x93NUMPY")
    for path in ("folder", "file.npy"):
        with pytest.raises(InputError, match="is not a Zarr group or array"):
            ArrayInput(str(tmp_path / path), "vectors")


@pytest.mark.fault(13)
def test_a_damaged_chunk_of_the_input_is_named_by_its_rows(tmp_path):
    path = make(tmp_path / "in.zarr")
    next(Path(path).rglob("c/1/0")).write_bytes(b"nonsense")
    array = ArrayInput(path, "vectors")
    assert len(array.read(0, 6)) == 6
    with pytest.raises(InputError, match="rows 6 to 12 cannot be read"):
        array.read(6, 12)


@pytest.mark.fault(22)
def test_the_signature_sees_that_data_was_replaced(tmp_path):
    path = make(tmp_path / "in.zarr")
    before = ArrayInput(path, "vectors").signature()
    assert ArrayInput(path, "vectors").signature() == before
    zarr.open_group(path)["vectors"][0, 0] = 99
    assert ArrayInput(path, "vectors").signature() != before


@pytest.mark.fault(33)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_consolidated_metadata_that_is_stale_is_not_believed(tmp_path, zarr_format):
    """An array added, another grown, a third removed since: what counts is what is there."""
    path = make(tmp_path / "in.zarr", name="vectors", zarr_format=zarr_format)
    make(tmp_path / "in.zarr", name="gone", zarr_format=zarr_format)
    with pytest.warns(UserWarning, match="Consolidated metadata") if zarr_format == 3 else contextlib.nullcontext():
        zarr.consolidate_metadata(path)
    shutil.rmtree(tmp_path / "in.zarr" / "gone")
    make(tmp_path / "in.zarr", np.ones((8, 2)), name="late", chunks=(8, 2), zarr_format=zarr_format)
    file = tmp_path / "in.zarr" / "vectors" / ("zarr.json" if zarr_format == 3 else ".zarray")
    file.write_text(json.dumps({**json.loads(file.read_text()), "shape": [18, 3]}))
    stale = zarr.open_group(path, mode="r", use_consolidated=True)
    assert stale["vectors"].shape == (20, 3)
    assert "late" not in stale
    assert ArrayInput(path, "vectors").read(0, 18).tolist() == VALUES[:18].tolist()
    assert ArrayInput(path, "vectors").rows == 18
    assert ArrayInput(path, "late").rows == 8
    with pytest.raises(InputError, match=r"no array 'gone' in .*its arrays are: late \(8, 2\), vectors \(18, 3\)"):
        ArrayInput(path, "gone")


@pytest.mark.fault(31)
@pytest.mark.parametrize("codec", ["vlen-utf8", "vlen-bytes", "json2", "msgpack2"])
def test_objects_are_refused(tmp_path, codec):
    path = tmp_path / "in.zarr"
    path.mkdir()
    shape = {"shape": [40, 3], "chunks": [40, 3], "fill_value": None, "order": "C"}
    kind = {"dtype": "|O", "filters": [{"id": codec}], "compressor": None}
    (path / ".zarray").write_text(json.dumps({"zarr_format": 2, **shape, **kind}))
    with pytest.raises(InputError, match=r"has dtype .*; allowed are|is not a Zarr group or array"):
        ArrayInput(str(path), "vectors")


@pytest.mark.fault(31)
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("dtype", ["M8[s]", "m8[s]", "S3", "U3", "c8"])
def test_arrays_without_numbers_are_refused(tmp_path, dtype):
    path = make(tmp_path / "in.zarr", np.zeros((9, 2), dtype), chunks=(9, 2))
    with pytest.raises(InputError, match=r"has dtype .*; allowed are real floats, integers and booleans"):
        ArrayInput(path, "vectors")


# stores of many arrays ---------------------------------------------------------------------------


def annotated(path: Path, zarr_format: int = 3, kind: str = "csr_matrix") -> str:
    """Write what AnnData writes: a sparse X, arrays in groups, and names as strings."""
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    root.attrs["encoding-type"] = "anndata"
    x = root.create_group("X")
    x.attrs.update({"encoding-type": kind, "shape": [20, 400]})
    for name, size in (("data", 9), ("indices", 9), ("indptr", 21)):
        x.create_array(name, data=np.arange(size))
    root.create_group("obsm").create_array("X_pca", data=VALUES.astype("f4"))
    root.create_group("varm").create_array("PCs", data=np.ones((400, 3)))
    root.create_group("obs").create_array("n_counts", data=np.ones(20))
    return str(path)


@pytest.mark.fault(33)
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_nested_arrays_are_listed_by_their_paths(tmp_path, zarr_format, form):
    path = annotated(tmp_path / "in.zarr", zarr_format)
    path = shutil.make_archive(path, "zip", path) if form == "zip" else path
    listed = (
        r"arrays are: obsm/X_pca \(20, 3\), varm/PCs \(400, 3\), X \(20, 400\) \(sparse, .*\), obs/n_counts \(20,\)"
    )
    with pytest.raises(InputError, match=rf"no array 'vectors' in .*; its {listed}"):
        ArrayInput(path, "vectors")
    with pytest.raises(InputError, match=rf"no array 'obsm' in .*, but a group; its {listed}"):
        ArrayInput(path, "obsm")
    assert ArrayInput(path, "obsm/X_pca").read(0, 20).tolist() == VALUES.tolist()


@pytest.mark.fault(33)
@pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix"])
def test_a_sparse_matrix_is_named_as_such_and_what_to_take_instead(tmp_path, kind):
    path = annotated(tmp_path / "in.zarr", kind=kind)
    with pytest.raises(InputError, match=rf"'X' in .* is a sparse matrix \({kind}, shape \(20, 400\)\)") as error:
        ArrayInput(path, "X")
    assert "such as obsm/X_pca (20, 3)" in str(error.value)
    assert "PCs" not in str(error.value), "of other rows"
    with pytest.raises(InputError, match=r"in.zarr/X is a sparse matrix .*write (it by rows|a dense copy)"):
        ArrayInput(f"{path}/X", "vectors")


@pytest.mark.fault(33)
def test_a_node_that_cannot_be_read_is_named_beside_the_others(tmp_path):
    path = annotated(tmp_path / "in.zarr")
    broken = tmp_path / "in.zarr" / "obsm" / "broken"
    broken.mkdir()
    (broken / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')
    (tmp_path / "in.zarr" / "folder").mkdir()
    with pytest.raises(InputError, match=r"obsm/X_pca \(20, 3\), .*obsm/broken \(not readable: ") as error:
        ArrayInput(path, "vectors")
    assert "folder" not in str(error.value)


@pytest.mark.fault(33)
def test_the_first_of_many_arrays_are_listed_and_the_others_counted(tmp_path, monkeypatch):
    root = zarr.open_group(tmp_path / "in.zarr", mode="w")
    for number in range(30):
        root.create_array(f"group/{number:02d}", shape=(4, 2), dtype="f4")
    with pytest.raises(InputError, match=r"are: group/00 \(4, 2\), .*, group/19 \(4, 2\), and 10 more$"):
        ArrayInput(str(tmp_path / "in.zarr"), "vectors")
    monkeypatch.setattr(listing, "MAX_NODES", 26)
    with pytest.raises(InputError, match=r"group/19 \(4, 2\), and at least 5 more$"):
        ArrayInput(str(tmp_path / "in.zarr"), "vectors")


@pytest.mark.fault(32)
def test_rows_of_a_shard_are_read_without_the_rest_of_it(tmp_path):
    """Damage elsewhere in the shard is not met."""
    path = make(tmp_path / "in.zarr", VALUES.astype("f8"), shards=(18, 3), compressors=None)
    file = next(Path(path).rglob("c/0/0"))
    whole = file.read_bytes()
    at = whole.index(np.float64(VALUES[6, 0]).tobytes())
    file.write_bytes(whole[: at - 5] + b"?" * 10 + whole[at + 5 :])
    assert ArrayInput(path, "vectors").read(12, 18).tolist() == VALUES[12:18].tolist()
    assert ArrayInput(path, "vectors").chunk_rows == 6


@pytest.mark.fault(32)
@pytest.mark.filterwarnings("ignore:Combining a .sharding_indexed. codec")
def test_a_shard_that_is_compressed_as_a_whole_is_decoded_as_a_whole(tmp_path):
    path = make(tmp_path / "in.zarr", shards=(18, 3))
    file = tmp_path / "in.zarr" / "vectors" / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["codecs"].append({"name": "crc32c"})
    file.write_text(json.dumps(metadata))
    assert ArrayInput(path, "vectors").chunk_rows == 18

"""Files that become Zarr stores: what is taken of each kind, what is refused, and that none is left half written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from scipy import sparse

from dumap.errors import ConfigError, InputError, StorageError
from dumap.sources import ingestion
from dumap.sources.files import FileSelection
from dumap.sources.ingestion import ingest
from dumap.store.lock import describe_this_process
from dumap.store.new_store import WRITER_FILE, NewStore

X = np.random.default_rng(0).normal(size=(250, 6)).astype(np.float32)
NAMES = [f"row {i} é" for i in range(len(X))]
FRAME = pd.DataFrame(X, index=NAMES, columns=list("abcdef"))


@pytest.fixture
def small(monkeypatch):
    """Make chunks of 64 rows."""
    monkeypatch.setattr(ingestion, "MOST_CHUNK_ROWS", 64)


def write_h5ad(path: str, matrix) -> None:
    """Write an .h5ad file whose X is the matrix, with names of rows and an obsm entry."""
    adata = anndata.AnnData(matrix, obs=pd.DataFrame(index=NAMES), obsm={"X_pca": X[:, :3]})
    adata.write_h5ad(path)


def write_hdf5(path: str) -> None:
    """Write the matrix and labels as datasets of a group of an HDF5 file."""
    with h5py.File(path, "w") as file:
        file["data/x"] = X
        file["data/labels"] = np.arange(len(X))


def write_lists(path: str, kind=None) -> None:
    """Write a Parquet file of names and of one column of lists."""
    kind = kind or pa.list_(pa.float32())
    pq.write_table(pa.table({"id": NAMES, "embedding": pa.array(list(X), kind)}), path, row_group_size=70)


def write_csv(path: str, **more) -> None:
    """Write the frame as a CSV file."""
    FRAME.astype(np.float64).to_csv(path, **more)


KINDS = {
    "npy": ("x.npy", lambda path: np.save(path, X), FileSelection(), None),
    "npy, Fortran": ("x.npy", lambda path: np.save(path, np.asfortranarray(X)), FileSelection(), None),
    "npz": ("x.npz", lambda path: np.savez(path, X), FileSelection(), None),
    "npz, compressed": ("x.npz", lambda path: np.savez_compressed(path, x=X, y=X[:3]), FileSelection(key="x"), None),
    "npz, names": ("x.npz", lambda path: np.savez(path, x=X, ids=np.array(NAMES)), FileSelection(names="ids"), NAMES),
    "parquet": ("x.parquet", lambda path: FRAME.to_parquet(path, row_group_size=70), FileSelection(), NAMES),
    "parquet, lists": ("x.parquet", write_lists, FileSelection(names="id"), NAMES),
    "parquet, fixed lists": ("x.pq", lambda path: write_lists(path, pa.list_(pa.float32(), 6)), FileSelection(), None),
    "hdf5": ("x.h5", write_hdf5, FileSelection(), None),
    "hdf5, key": ("x.hdf5", write_hdf5, FileSelection(key="data/x"), None),
    "h5ad": ("x.h5ad", lambda path: write_h5ad(path, X), FileSelection(), NAMES),
    "h5ad, CSR": (
        "x.h5ad",
        lambda path: write_h5ad(path, sparse.csr_matrix(np.where(X > 0, X, 0))),
        FileSelection(),
        NAMES,
    ),
    "csv": ("x.csv", write_csv, FileSelection(), NAMES),
    "csv, compressed": ("x.csv.gz", write_csv, FileSelection(), NAMES),
    "csv, no names": ("x.csv", lambda path: write_csv(path, index=False), FileSelection(), None),
    "csv, no header": (
        "x.csv",
        lambda path: write_csv(path, index=False, header=False),
        FileSelection(header=False),
        None,
    ),
    "tsv": ("x.tsv", lambda path: write_csv(path, sep="\t", index_label="id"), FileSelection(names="id"), NAMES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read(new_path, small, kind):
    ending, write, choice, names = KINDS[kind]
    path, output = new_path(ending), new_path("out.zarr")
    write(path)
    made = ingest([path], output, choice)
    group = zarr.open_group(output, mode="r")
    expected = np.where(X > 0, X, 0) if "CSR" in kind else X
    np.testing.assert_array_equal(group["vectors"][:], expected)
    assert group["vectors"].chunks == (64, 6)
    assert (made["rows"], made["dims"]) == X.shape
    assert group["vectors"].dtype.name == made["dtype"] == ("float64" if "sv" in ending else "float32")
    assert (made["names"] is None) == (names is None)
    if names is None:
        assert list(group) == ["vectors"]
    else:
        assert group["names"][:].tolist() == names


def test_an_ingested_store_is_an_input(new_path, cli, digits):
    file, output, run = new_path("x.npy"), new_path("data.zarr"), new_path("run.zarr")
    np.save(file, digits[0][:300])
    made = cli("ingest", file, output)
    assert (made.code, made.out) == (0, f"{output}: 300 rows x 64 columns of float32\n")
    words = ["--set", "layout.n_epochs=5", "--set", "cluster.engine=local"]
    assert cli("run", "--input", output, "--output", run, *words).code == 0
    assert zarr.open_array(run, path="embedding", mode="r").shape == (300, 2)


def test_chunks_are_of_a_good_size(new_path):
    for dims, rows in ((2, 65536), (784, 2674)):
        file, output = new_path("x.npy"), new_path("out.zarr")
        np.save(file, np.zeros((10, dims), np.float32))
        assert ingest([file], output)["chunk_rows"] == rows


# several files -----------------------------------------------------------------------------------


def test_files_come_in_order(new_path, small):
    folder = Path(new_path("x.npy")).parent
    for number, name in enumerate(("b", "a", "c")):
        np.save(folder / f"{name}.npy", X[100 * number : 100 * number + 70])
    b, a, c = X[:70], X[100:170], X[200:270]
    for sources, expected in (
        ([f"{folder}/b.npy", f"{folder}/a.npy"], [b, a]),
        ([f"{folder}/*.npy"], [a, b, c]),
        ([f"{folder}/c.npy", f"{folder}/[ab].npy"], [c, a, b]),
    ):
        output = new_path("out.zarr")
        ingest(sources, output)
        np.testing.assert_array_equal(zarr.open_array(output, path="vectors", mode="r")[:], np.concatenate(expected))


def test_a_folder_of_parquet_is_a_data_set(new_path):
    folder = Path(new_path("data.parquet"))
    for number in range(2):
        (folder / f"part={number}").mkdir(parents=True)
        FRAME[100 * number : 100 * number + 50].to_parquet(folder / f"part={number}" / "x.parquet")
    output = new_path("out.zarr")
    assert ingest([str(folder)], output)["rows"] == 100
    assert zarr.open_group(output, mode="r")["names"][50:52].tolist() == NAMES[100:102]


@pytest.mark.parametrize(
    ("first", "second", "made"),
    [
        ("float32", "float64", "float64"),
        ("uint8", "int8", "int16"),
        ("bool", "bool", "uint8"),
        (">f4", "<f4", "float32"),
    ],
)
def test_kinds_of_numbers_become_one_that_holds_all(new_path, first, second, made):
    files = [new_path("x.npy"), new_path("x.npy")]
    for file, dtype in zip(files, (first, second), strict=True):
        np.save(file, np.ones((20, 3), dtype))
    output = new_path("out.zarr")
    assert ingest(files, output)["dtype"] == made
    assert zarr.open_array(output, path="vectors", mode="r")[:].tolist() == [[1, 1, 1]] * 40


def test_the_dtype_may_be_chosen(new_path):
    file, output = new_path("x.csv"), new_path("out.zarr")
    write_csv(file)
    ingest([file], output, dtype="float32")
    np.testing.assert_array_equal(zarr.open_array(output, path="vectors", mode="r")[:], X)


# columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_are_chosen_by_name(new_path, kind):
    file, output = new_path(f"x.{kind}"), new_path("out.zarr")
    frame = FRAME.astype(np.float64)
    frame.to_csv(file) if kind == "csv" else frame.to_parquet(file)
    assert ingest([file], output, FileSelection(("e", "b")))["columns"] == ["e", "b"]
    np.testing.assert_array_equal(zarr.open_array(output, path="vectors", mode="r")[:], X[:, [4, 1]])


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "csv"])
def test_columns_are_chosen_by_number(new_path, kind):
    file, output = new_path(f"x.{kind}"), new_path("out.zarr")
    writers = {"npy": np.save, "npz": np.savez, "h5": lambda path, x: write_hdf5(path)}
    writers.get(kind, lambda path, x: np.savetxt(path, x, delimiter=",", fmt="%.17g"))(file, X)
    ingest([file], output, FileSelection(("5", "0:3"), header=kind != "csv"))
    np.testing.assert_array_equal(zarr.open_array(output, path="vectors", mode="r")[:], X[:, [5, 0, 1, 2]])


def test_columns_of_no_numbers_are_left_out_and_named(new_path, cli):
    file, output = new_path("x.csv"), new_path("out.zarr")
    frame = FRAME.assign(city="Ulm", when=pd.Timestamp("2026-01-01"))
    frame.to_csv(file)
    made = cli("ingest", file, output, "--json")
    assert json.loads(made.out)["columns"] == list("abcdef")
    assert "left out, since they hold no numbers: city, when" in made.err


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_values_become_nan(new_path, kind):
    file, output = new_path(f"x.{kind}"), new_path("out.zarr")
    frame = pd.DataFrame({"a": pd.array([1, None, 3], "Int32"), "b": [0.5, 1.5, None]})
    frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
    ingest([file], output)
    expected = [[1, 0.5], [np.nan, 1.5], [3, np.nan]]
    np.testing.assert_array_equal(zarr.open_array(output, path="vectors", mode="r")[:], expected)


def test_whole_numbers_that_become_fractions_later_are_read(new_path, monkeypatch):
    monkeypatch.setattr("dumap.sources.arrow_files.BLOCK_BYTES", 64)
    file, output = new_path("x.csv"), new_path("out.zarr")
    Path(file).write_text("a,b\n" + "1,2\n" * 50 + "1.5,2\n")
    ingest([file], output)
    assert zarr.open_array(output, path="vectors", mode="r")[-2:].tolist() == [[1, 2], [1.5, 2]]


# what is refused ---------------------------------------------------------------------------------


def bad(new_path, name: str, write) -> str:
    """Write an input that is to be refused, and return its path."""
    path = new_path(name)
    write(path)
    return path


REFUSED = {
    "none": (lambda new_path: new_path("x.npy"), FileSelection(), "there is no such file"),
    "URL": (lambda new_path: "s3://data/x.npy", FileSelection(), "copy them there first"),
    "ending": (
        lambda new_path: bad(new_path, "x.xlsx", lambda p: Path(p).touch()),
        FileSelection(),
        "of no known kind",
    ),
    "no npy": (
        lambda new_path: bad(new_path, "x.npy", lambda p: Path(p).write_text("a")),
        FileSelection(),
        "cannot be read",
    ),
    "no zip": (
        lambda new_path: bad(new_path, "x.npz", lambda p: Path(p).write_text("a")),
        FileSelection(),
        "cannot be read",
    ),
    "no parquet": (
        lambda new_path: bad(new_path, "x.pq", lambda p: Path(p).write_text("a")),
        FileSelection(),
        "cannot be read",
    ),
    "no hdf5": (
        lambda new_path: bad(new_path, "x.h5", lambda p: Path(p).write_text("a")),
        FileSelection(),
        "cannot be read",
    ),
    "empty csv": (
        lambda new_path: bad(new_path, "x.csv", lambda p: Path(p).touch()),
        FileSelection(),
        "cannot be read",
    ),
    "1-D": (lambda new_path: bad(new_path, "x.npy", lambda p: np.save(p, X[0])), FileSelection(), "(rows, columns)"),
    "objects": (
        lambda new_path: bad(new_path, "x.npy", lambda p: np.save(p, np.array([[None]]), allow_pickle=True)),
        FileSelection(),
        "cannot be read",
    ),
    "texts": (
        lambda new_path: bad(new_path, "x.npy", lambda p: np.save(p, np.array([["a"]]))),
        FileSelection(),
        "of numbers",
    ),
    "no rows": (lambda new_path: bad(new_path, "x.npy", lambda p: np.save(p, X[:0])), FileSelection(), "has no rows"),
    "no columns": (
        lambda new_path: bad(new_path, "x.npy", lambda p: np.save(p, X[:, :0])),
        FileSelection(),
        "has no columns",
    ),
    "which": (lambda new_path: bad(new_path, "x.npz", lambda p: np.savez(p, a=X, b=X)), FileSelection(), "--key: a, b"),
    "no key": (
        lambda new_path: bad(new_path, "x.npz", lambda p: np.savez(p, a=X)),
        FileSelection(key="b"),
        "its arrays are a",
    ),
    "Fortran": (
        lambda new_path: bad(new_path, "x.npz", lambda p: np.savez(p, np.asfortranarray(X))),
        FileSelection(),
        "column by column",
    ),
    "no column": (
        lambda new_path: bad(new_path, "x.csv", write_csv),
        FileSelection(("a", "z")),
        "has no column 'z'; its columns are",
    ),
    "no number": (
        lambda new_path: bad(new_path, "x.npy", lambda p: np.save(p, X)),
        FileSelection(("a",)),
        "write numbers from 0",
    ),
    "too far": (
        lambda new_path: bad(new_path, "x.npy", lambda p: np.save(p, X)),
        FileSelection(("0:7",)),
        "there is no 0:7",
    ),
    "header": (
        lambda new_path: bad(new_path, "x.csv", lambda p: write_csv(p, index=False, header=False)),
        FileSelection(),
        "give --no-header",
    ),
    "a word": (
        lambda new_path: bad(new_path, "x.csv", lambda p: Path(p).write_text("a,b\n" + "1,2\n" * 2**20 + "x,2\n")),
        FileSelection(),
        "cannot be read",
    ),
    "ragged": (
        lambda new_path: bad(new_path, "x.pq", lambda p: pq.write_table(pa.table({"v": [[1.0, 2.0], [3.0]]}), p)),
        FileSelection(),
        "not all of 2 numbers",
    ),
    "CSC": (
        lambda new_path: bad(new_path, "x.h5ad", lambda p: write_h5ad(p, sparse.csc_matrix(X))),
        FileSelection(),
        "obsm/X_pca",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning:anndata")
@pytest.mark.parametrize("kind", REFUSED)
def test_files_that_cannot_be_ingested_are_refused(new_path, kind):
    make, choice, message = REFUSED[kind]
    output = new_path("out.zarr")
    with pytest.raises(InputError) as caught:
        ingest([make(new_path)], output, choice)
    assert message in str(caught.value)
    assert os.listdir(Path(output).parent) == []


def test_files_that_do_not_go_together_are_refused(new_path):
    files = {
        name: bad(new_path, "x.parquet", lambda p, f=frame: f.to_parquet(p))
        for name, frame in {
            "first": FRAME,
            "fewer": FRAME[["a", "b"]],
            "others": FRAME.rename(columns={"c": "z"}),
            "nameless": FRAME.reset_index(drop=True),
        }.items()
    }
    for name, message in (
        ("fewer", "has 2 columns"),
        ("others", "'z' in the place of 'c'"),
        ("nameless", "has no names"),
    ):
        with pytest.raises(InputError, match=message):
            ingest([files["first"], files[name]], new_path("out.zarr"))


@pytest.mark.parametrize("dtype", ["text", "complex64", "float128", "nonsense"])
def test_a_dtype_that_is_none_is_refused(new_path, dtype):
    with pytest.raises(ConfigError, match="--dtype"):
        ingest([bad(new_path, "x.npy", lambda p: np.save(p, X))], new_path("out.zarr"), dtype=dtype)


def test_a_library_that_is_missing_is_named(new_path, cli, monkeypatch):
    file = bad(new_path, "x.h5", write_hdf5)
    monkeypatch.delitem(__import__("sys").modules, "dumap.sources.hdf5_files", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    outcome = cli("ingest", file, new_path("out.zarr"))
    assert (outcome.code, "pip install h5py" in outcome.err) == (2, True)


def test_an_output_that_is_there_is_left_alone(new_path):
    file, output = bad(new_path, "x.npy", lambda p: np.save(p, X)), new_path("out.zarr")
    ingest([file], output)
    with pytest.raises(StorageError, match="exists; remove it"):
        ingest([file], output)
    with pytest.raises(StorageError, match="there is no folder"):
        ingest([file], new_path("no/such/out.zarr"))


# half-written stores -----------------------------------------------------------------------------


def test_a_store_that_is_not_written_to_its_end_is_not_there(new_path, small, monkeypatch):
    file, output = bad(new_path, "x.npy", lambda p: np.save(p, X)), new_path("out.zarr")
    flush, listings = NewStore._write_chunk, []

    def stop(self):
        flush(self)
        listings.append(sorted(os.listdir(Path(output).parent)))
        if len(listings) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(NewStore, "_write_chunk", stop)
    with pytest.raises(KeyboardInterrupt):
        ingest([file], output)
    (partial,) = listings[-1]
    assert partial.startswith(".out.zarr.")
    assert os.listdir(Path(output).parent) == []


KILLED = """
import os, signal, sys
from dumap.store import NewStore
NewStore._write_chunk = lambda self: os.kill(os.getpid(), signal.SIGKILL)
from dumap.cli import main
main()
"""


def test_what_a_killed_process_left_is_removed_by_the_next(new_path):
    file, output = bad(new_path, "x.npy", lambda p: np.save(p, X)), Path(new_path("out.zarr"))
    words = [sys.executable, "-c", KILLED, "ingest", file, str(output)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    (left,) = output.parent.iterdir()
    others = [left.with_name(".out.zarr.0000000g.partial"), left.with_name(".out.zarr.12345678.partial")]
    shutil.copytree(left, others[0])
    others[1].mkdir()
    alive = left.with_name(".out.zarr.00000000.partial")
    shutil.copytree(left, alive)
    (alive / WRITER_FILE).write_text(json.dumps(describe_this_process()))
    ingest([file], str(output))
    assert sorted(output.parent.iterdir()) == sorted([*others, alive, output])
    assert not (output / WRITER_FILE).exists()
    np.testing.assert_array_equal(zarr.open_array(str(output), path="vectors", mode="r")[:], X)


def test_chunks_without_metadata_are_written_over_in_a_bucket(new_path, small, monkeypatch):
    """A folder stands for the bucket: what was left of a store that was not written to its end is no store."""
    monkeypatch.setattr("dumap.store.new_store.is_remote", lambda path: True)
    file, output = bad(new_path, "x.npy", lambda p: np.save(p, X)), Path(new_path("out.zarr"))
    flush = NewStore._write_chunk
    monkeypatch.setattr(NewStore, "_write_chunk", lambda self: flush(self) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest([file], str(output))
    left = [path for path in output.rglob("*") if path.is_file()]
    assert [path.relative_to(output).as_posix() for path in left] == ["vectors/c/0/0"]
    left[0].rename(left[0].with_name("9"))
    monkeypatch.setattr(NewStore, "_write_chunk", flush)
    ingest([file], str(output))
    np.testing.assert_array_equal(zarr.open_array(str(output), path="vectors", mode="r")[:], X)
    assert not left[0].with_name("9").exists()
    with pytest.raises(StorageError, match="exists"):
        ingest([file], str(output))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "h5", "csv"])
def test_memory_is_bounded(new_path, kind):
    """Of 100 MB, no more than some chunks are held at once."""
    rows, dims = (400_000, 64) if kind != "csv" else (100_000, 64)
    x = np.random.default_rng(1).integers(0, 255, (rows, dims)).astype(np.float32)
    file = new_path(f"x.{kind}")
    if kind == "parquet":
        pq.write_table(pa.table(list(x.T), [f"c{i}" for i in range(dims)]), file)
    elif kind == "csv":
        np.savetxt(file, x, delimiter=",", fmt="%d", header=",".join(f"c{i}" for i in range(dims)), comments="")
    elif kind == "h5":
        with h5py.File(file, "w") as opened:
            opened["x"] = x
    else:
        {"npy": np.save, "npz": np.savez}[kind](file, x)
    import subprocess
    import sys

    code = (
        "import resource, sys\n"
        "from dumap.sources.ingestion import ingest\n"
        "from dumap.sources import arrow_files, hdf5_files\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "ingest([sys.argv[1]], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, file, new_path("out.zarr")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < (160e6 if kind == "parquet" else 80e6), "of Parquet, two pages of each column too"

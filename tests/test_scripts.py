"""The data that scripts make."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def digits_script():
    """Import scripts/digits.py."""
    spec = importlib.util.spec_from_file_location("digits", SCRIPTS / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(digits_script, tmp_path_factory):
    """Have the script write digits: `made(rows, columns, dtype, chunk_rows)`."""
    folder = tmp_path_factory.mktemp("digits")

    def make(rows, columns, dtype="float32", chunk_rows=100):
        out = folder / f"{rows}-{columns}-{dtype}-{chunk_rows}.zarr"
        digits_script.write_digits(out, rows, 42, chunk_rows, dtype, columns)
        return zarr.open_group(out, mode="r")

    return make


@pytest.mark.parametrize("columns", [64, 784])
def test_a_smaller_set_of_digits_is_the_beginning_of_a_larger_one(made, columns):
    small, large = made(150, columns), made(400, columns, chunk_rows=70)
    assert small["vectors"].shape == (150, columns)
    assert np.array_equal(small["vectors"][:], large["vectors"][:150])
    assert np.array_equal(small["labels"][:], large["labels"][:150])


def test_digits_with_more_pixels_are_the_same_digits(made):
    small, large = made(300, 64), made(300, 784)
    assert np.array_equal(small["labels"][:], large["labels"][:])
    a, b = small["vectors"][:].reshape(-1, 8, 8), large["vectors"][:].reshape(-1, 28, 28)
    corners = np.ix_(range(300), [0, -1], [0, -1])
    np.testing.assert_allclose(a[corners], b[corners], atol=1e-5)  # the same places of the scan
    middles = (np.arange(1, 7) * 27 / 7).round().astype(int)  # pixels nearest to the scan's
    between = b[:, middles][:, :, middles]
    assert np.corrcoef(a[:, 1:7, 1:7].ravel(), between.ravel())[0, 1] > 0.97


def test_digits_of_bytes_are_rounded(made):
    whole, exact = made(200, 784, "uint8")["vectors"][:], made(200, 784)["vectors"][:]
    assert whole.dtype == np.uint8
    assert whole.max() == 16
    assert np.abs(whole - exact).max() <= 0.5


@pytest.mark.slow
def test_products_are_timed():
    words = ["--columns", "8", "--rounds", "1", "PLAIN"]
    done = subprocess.run(
        [sys.executable, SCRIPTS / "benchmark_products.py", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (speeds,) = json.loads(done.stdout).values()
    assert set(speeds) == {"PLAIN", "float32"}
    assert min(speeds.values()) > 0

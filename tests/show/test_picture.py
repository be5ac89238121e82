"""Pictures: how labels of any kind colour the rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from matplotlib import pyplot

from dumap.errors import InputError
from dumap.show import picture

ROWS = 400
"""Few enough to be quick, on a square."""


@pytest.fixture(scope="module")
def y() -> np.ndarray:
    """Return random coordinates in the unit square."""
    return np.random.default_rng(0).random((ROWS, 2)).astype(np.float32)


def colours(path) -> int:
    """Count the colours of a picture that are neither white nor black: those of rows, bars and legends."""
    pixels = pyplot.imread(path)[..., :3]
    return len(np.unique((pixels.reshape(-1, 3) * 255).astype(int) // 8, axis=0))


NUMBERS = np.arange(ROWS)
LABELS = {
    "kinds": (NUMBERS % 3, ["0", "1", "2"]),
    "bool": (NUMBERS % 2 == 0, ["False", "True"]),
    "whole floats": (NUMBERS % 3 * 1.0, ["0.0", "1.0", "2.0"]),
    "names": (np.array(["b", "a"])[NUMBERS % 2], ["a", "b"]),
    "bytes": (np.array([b"b", b"a"])[NUMBERS % 2], ["a", "b"]),
    "new strings": (np.array(["b", "a"], np.dtypes.StringDType())[NUMBERS % 2], ["a", "b"]),
    "objects": (np.array(["b", 1, None, np.nan], object)[NUMBERS % 4], ["1", "b"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_few_labels_are_kinds(kind):
    labels, names = LABELS[kind]
    kinds = picture.read_labels(labels)
    assert isinstance(kinds, picture.Categories)
    assert kinds.names == names
    read_back = [None if code < 0 else kinds.names[code] for code in kinds.codes]
    written = [label.decode() if isinstance(label, bytes) else label for label in labels.tolist()]
    assert read_back == [None if label is None or label != label else str(label) for label in written]


SCALES = {
    "scores": NUMBERS / 7,
    "float32": (NUMBERS / 7).astype("f4"),
    "ages": NUMBERS,
    "with gaps": np.where(NUMBERS % 5, NUMBERS / 7, np.nan),
    "with infinities": np.where(NUMBERS % 50, NUMBERS / 7, np.inf),
    "dates": np.datetime64("2020-01-01") + NUMBERS,
    "dates with gaps": np.where(NUMBERS % 5, np.datetime64("2020-01-01") + NUMBERS, np.datetime64("NaT")),
    "durations": NUMBERS.astype("m8[s]"),
}


@pytest.mark.parametrize("kind", SCALES)
def test_many_numbers_are_values(kind):
    values = picture.read_labels(SCALES[kind])
    assert isinstance(values, picture.ScaledValues)
    gaps = np.isnan(SCALES[kind].astype(float)) if SCALES[kind].dtype.kind == "f" else ~(NUMBERS % 5 > 0)
    assert np.isnan(values.numbers).sum() == (gaps.sum() if "gaps" in kind else 0)
    assert values.low < values.high < np.inf
    assert (values.date_dtype or "none")[:1] == {"dates": "M", "durat": "m"}.get(kind[:5], "n")


def test_a_few_far_values_leave_colours_to_the_others():
    values = picture.read_labels(np.append(NUMBERS / ROWS, [1e30, -1e30]))
    assert (values.low, values.high) == pytest.approx((0.01, 0.98), abs=0.02)
    assert (values.numbers.min(), values.numbers.max()) == (values.low, values.high)


@pytest.mark.parametrize("kind", ["scores", "with gaps", "dates with gaps", "kinds", "objects"])
def test_a_picture_is_drawn_of_them(y, tmp_path, kind):
    labels = SCALES[kind] if kind in SCALES else LABELS[kind][0]
    picture.draw_map(y, labels).savefig(str(tmp_path / "map.png"), bbox_inches="tight")
    assert colours(tmp_path / "map.png") > (40 if kind in SCALES else 3)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([f"name {number}" for number in NUMBERS]),
        np.full(ROWS, np.nan),
        np.full(ROWS, 7.5),
        np.full(ROWS, None, object),
        np.full(ROWS, np.datetime64("NaT", "s")),
    ],
    ids=["a name a row", "no value", "one value", "no name", "no date"],
)
def test_labels_that_tell_little_are_drawn_in_bounded_memory(y, tmp_path, labels):
    tracemalloc.start()
    picture.draw_map(y, labels).savefig(str(tmp_path / "map.png"), bbox_inches="tight")
    assert tracemalloc.get_traced_memory()[1] < 800 * 2**20
    tracemalloc.stop()
    assert (tmp_path / "map.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (NUMBERS[:-1], r"labels of shape \(399,\) for 400 rows"),
        (NUMBERS[:, None], r"labels of shape \(400, 1\) for 400 rows"),
        (NUMBERS * 1j, "complex128 colour nothing"),
        (np.zeros(ROWS, [("a", "i4")]), "colour nothing"),
        (np.array([[1]] * ROWS + [None], object)[:-1], "cannot be told apart"),
    ],
    ids=["too few", "a column", "complex", "records", "lists"],
)
def test_labels_that_colour_nothing_are_refused(y, tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        picture.draw_map(y, labels).savefig(str(tmp_path / "map.png"), bbox_inches="tight")
    assert not (tmp_path / "map.png").exists()


def test_rows_that_all_lie_at_one_place_and_rows_at_none(tmp_path):
    out = str(tmp_path / "map.png")
    picture.draw_map(np.zeros((9, 2), np.float32), np.arange(9)).savefig(out)
    with pytest.raises(InputError, match="none of the rows has coordinates"):
        picture.draw_map(np.full((9, 2), np.nan, np.float32))

"""Write handwritten digits, as many as asked for, to a Zarr store to try things on.

Each row is one of scikit-learn's 1,797 digits (8 x 8 pixels, 0 to 16) under a small random deformation, drawn with
8 x 8 pixels or, between those of the scan, with 28 x 28.
Row i depends on the seed and on i alone, so a smaller set is the beginning of a larger one. Only sums,
products, quotients and square roots are taken, which round the same on every machine.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import zarr
from sklearn.datasets import load_digits

SIDE = 8
MAX_BRIGHTNESS = 16
# The greatest size of each deformation; lengths in pixels.
ROTATION = 0.15  # tangent of the angle
SCALE = 0.08
SHEAR = 0.10
SHIFT = 0.3
WARP = 0.25
INTENSITY = 0.15
DRAWS_PER_ROW = 12


def scramble_bits(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def draw_uniform(seed: int, rows: np.ndarray, draws: int) -> np.ndarray:
    """Draw from [0, 1), shape (draws, rows), each a function of (seed, row, draw)."""
    step = np.uint64(0x9E3779B97F4A7C15)
    seed_key = scramble_bits(np.array([seed], np.uint64) + step)
    key = scramble_bits(seed_key + (rows.astype(np.uint64) + np.uint64(1)) * step)
    draw = np.arange(1, draws + 1, dtype=np.uint64)[:, None]
    return (scramble_bits(key + draw * step) >> np.uint64(11)) * 2.0**-53


def sample_bilinear(padded: np.ndarray, digit_numbers: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sample images, padded by one dark pixel on every side, at (y, x) of the unpadded image."""
    y, x = np.clip(y + 1, 0, SIDE + 1), np.clip(x + 1, 0, SIDE + 1)
    top, left = np.minimum(y.astype(np.intp), SIDE), np.minimum(x.astype(np.intp), SIDE)
    down, right = y - top, x - left
    upper = padded[digit_numbers, top, left] * (1 - right) + padded[digit_numbers, top, left + 1] * right
    lower = padded[digit_numbers, top + 1, left] * (1 - right) + padded[digit_numbers, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def deform_digits(digits: np.ndarray, seed: int, rows: np.ndarray, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of these rows, (rows, side * side) float64, and which digit each was made from."""
    draws = draw_uniform(seed, rows, DRAWS_PER_ROW)[:, :, None, None]
    digit_numbers = (draws[0] * len(digits)).astype(np.intp)
    rotation, stretch_y, stretch_x, shear, shift_y, shift_x, *warps, gain = 2 * draws[1:] - 1

    # Where each pixel comes from: an affine map about the centre, then a warp along each axis that bends
    # with the other axis, as Legendre's second and third polynomials do: no shift or shear hides in them.
    centre = (SIDE - 1) / 2
    pixels = np.linspace(0, SIDE - 1, side) - centre
    y, x = pixels[:, None], pixels[None, :]
    tan = ROTATION * rotation
    cos = 1 / np.sqrt(1 + tan * tan)
    sin = tan * cos
    sheared = x + SHEAR * shear * y
    source_y = (1 + SCALE * stretch_y) * (cos * y - sin * sheared) + SHIFT * shift_y
    source_x = (1 + SCALE * stretch_x) * (sin * y + cos * sheared) + SHIFT * shift_x
    v, u = y / centre, x / centre
    source_y = source_y + WARP * (warps[0] * (3 * u * u - 1) / 2 + warps[1] * (5 * u * u * u - 3 * u) / 2)
    source_x = source_x + WARP * (warps[2] * (3 * v * v - 1) / 2 + warps[3] * (5 * v * v * v - 3 * v) / 2)

    padded = np.pad(digits, ((0, 0), (1, 1), (1, 1)))
    images = sample_bilinear(padded, digit_numbers, source_y + centre, source_x + centre) * (1 + INTENSITY * gain)
    return np.minimum(images, MAX_BRIGHTNESS).reshape(len(rows), side * side), digit_numbers.ravel()


def write_digits(out: Path, rows: int, seed: int, chunk_rows: int, dtype: str, columns: int) -> None:
    """Write `vectors` and `labels` chunk by chunk; the group's attributes, written last, say it is whole."""
    dataset = load_digits()
    digit_labels = dataset.target.astype(np.uint8)
    group = zarr.create_group(out, overwrite=True)
    vectors = group.create_array("vectors", shape=(rows, columns), chunks=(chunk_rows, columns), dtype=dtype)
    labels = group.create_array("labels", shape=(rows,), chunks=(chunk_rows,), dtype="uint8")
    for start in range(0, rows, chunk_rows):
        stop = min(start + chunk_rows, rows)
        images, digit_numbers = deform_digits(dataset.images, seed, np.arange(start, stop), math.isqrt(columns))
        vectors[start:stop] = (np.rint(images) if dtype == "uint8" else images).astype(dtype)
        labels[start:stop] = digit_labels[digit_numbers]
    group.attrs.update({"rows": rows, "seed": seed, "chunk_rows": chunk_rows, "dtype": dtype, "columns": columns})


def is_complete(out: Path, **settings: object) -> bool:
    """Tell whether the store is there, whole, and made with these settings."""
    return (out / "zarr.json").exists() and dict(zarr.open_group(out, mode="r").attrs) == settings


def main() -> None:
    """Read the command line and write the store, unless it is there already."""
    parser = argparse.ArgumentParser(description="Write handwritten digits to a Zarr store.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the store to write, replaced if it differs")
    parser.add_argument("--rows", type=int, default=50_000, help="how many digits (%(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="0 or greater (%(default)s)")
    parser.add_argument("--chunk-rows", type=int, default=8192, help="rows in a chunk (%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "uint8"], default="float32", help="(%(default)s)")
    parser.add_argument("--columns", type=int, choices=[64, 784], default=64, help="pixels of a digit (%(default)s)")
    args = parser.parse_args()
    if args.rows < 1 or args.chunk_rows < 1 or args.seed < 0:
        parser.error("--rows and --chunk-rows must be at least 1, --seed at least 0")

    settings = {
        "rows": args.rows,
        "seed": args.seed,
        "chunk_rows": min(args.chunk_rows, args.rows),
        "dtype": args.dtype,
        "columns": args.columns,
    }
    if is_complete(args.out, **settings):
        print(f"{args.out}: {args.rows:,} digits, already there")
        return
    write_digits(args.out, **settings)
    print(f"{args.out}: {args.rows:,} digits written")


if __name__ == "__main__":
    main()

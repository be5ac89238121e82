"""Write a seeded mixture of curved manifolds as Zarr: a data set of any size, for trials of scale.

    python scripts/manifolds.py OUT.zarr --rows 10000000 [--dims 64] [--manifolds 200] [--seed 7]

Each manifold is a patch of 2 to 6 intrinsic dimensions, bent by waves and squares of its coordinates and laid into
all dims, with a little noise off it. Rows are drawn by chunk from (seed, chunk), so a set is a prefix of a longer one.
The group holds `vectors` (rows, dims) float32 and `labels` (rows,): the manifold of each row.
"""

from __future__ import annotations

import argparse

import numpy as np
import zarr

CHUNK_ROWS = 65_536
WAVE_COUNT = 8
NOISE = 0.02


class Manifold:
    """A bent patch."""

    def __init__(self, rng: np.random.Generator, dims: int) -> None:
        self.intrinsic_dims = int(rng.integers(2, 7))
        self.frequencies = rng.normal(size=(self.intrinsic_dims, WAVE_COUNT)) * 1.5
        self.phases = rng.uniform(0, 2 * np.pi, WAVE_COUNT)
        features = 2 * self.intrinsic_dims + WAVE_COUNT
        self.projection = rng.normal(size=(features, dims)) / np.sqrt(features)
        self.centre = rng.normal(size=dims) * 1.5

    def draw_points(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw points, (count, dims)."""
        latent = rng.uniform(-1, 1, (count, self.intrinsic_dims))
        features = np.concatenate([latent, np.sin(latent @ self.frequencies + self.phases), latent * latent], axis=1)
        noise = rng.normal(size=(count, len(self.centre))) * NOISE
        return self.centre + features @ self.projection + noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--manifolds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    manifolds = [Manifold(rng, args.dims) for _ in range(args.manifolds)]
    shares = rng.dirichlet(np.full(args.manifolds, 2.0))
    group = zarr.open_group(args.out, mode="w")
    rows = min(CHUNK_ROWS, args.rows)
    vectors = group.create_array("vectors", shape=(args.rows, args.dims), chunks=(rows, args.dims), dtype="float32")
    labels = group.create_array("labels", shape=(args.rows,), chunks=(rows,), dtype="int32")
    for chunk, first in enumerate(range(0, args.rows, rows)):
        rng = np.random.default_rng((args.seed, chunk))
        manifold_of_row = rng.choice(args.manifolds, rows, p=shares)
        x = np.empty((rows, args.dims), np.float32)
        for manifold in range(args.manifolds):
            is_member = manifold_of_row == manifold
            x[is_member] = manifolds[manifold].draw_points(rng, int(is_member.sum()))
        count = min(rows, args.rows - first)
        vectors[first : first + count] = x[:count]
        labels[first : first + count] = manifold_of_row[:count]


if __name__ == "__main__":
    main()

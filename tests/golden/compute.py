"""Digest each artifact of a few small runs: `python compute.py FOLDER` prints them as JSON.

Run with the environment of `PROCESSOR`, so that every processor that has AVX2 computes the same.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr

PROCESSOR = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
}
"""What all processors are told to compute for."""
LIBRARIES = ("numpy", "numba", "llvmlite", "scipy")
"""What the bytes may depend on beside dumap's own code."""
SETTINGS: dict[str, dict[str, Any]] = {
    "euclidean": {"cells.max_rows": 700, "neighbors.recall_target": 0.9999, "neighbors.max_repairs": 1},
    "cosine": {"neighbors.metric": "cosine", "start.coarse_epochs": 50},
    "manhattan": {"neighbors.metric": "manhattan", "cells.max_rows": 1500, "start.init": "pca"},
    "unique": {"input.unique": True, "layout.mode": "rounds", "layout.min_dist": 0.5},
}
"""Runs, each of 3000 rows."""
ROWS, DIMS = 3000, 24


def data(name: str) -> np.ndarray:
    """Return rows around 12 centres; for 'unique' some of them twice, as bytes."""
    rng = np.random.default_rng(7)
    x = 4 * rng.normal(size=(12, DIMS))[rng.integers(0, 12, ROWS)] + rng.normal(size=(ROWS, DIMS))
    if name == "unique":
        x = np.clip(8 * x + 100, 0, 255).astype(np.uint8)
        x[1::7] = x[0]
        return x
    return x.astype(np.float32)


def digest(arrays: Iterable[np.ndarray]) -> str:
    """Name some arrays by dtype, shape and bytes."""
    hasher = hashlib.sha256()
    for array in arrays:
        hasher.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()[:32]


def artifacts(output: str) -> dict[str, str]:
    """Digest what a run's stages handed on."""
    from dumap.artifacts.graph import Graph
    from dumap.artifacts.neighbors import NeighborLists
    from dumap.artifacts.start import StartCoordinates
    from dumap.store import Run

    run = Run(output, read_only=True)
    lists, graph = NeighborLists(run), Graph(run)
    shards = range(len(graph.shards))
    starts = StartCoordinates(run, len(shards))
    return {
        "lists": digest(lists.read(name, 0, lists.table.rows) for name in ("indices", "distances")),
        "graph": digest(array for shard in shards for array in graph.read(shard)),
        "start": digest(starts.read(shard) for shard in shards),
        "embedding": digest(zarr.open_array(output, path=name, mode="r")[:] for name in ("embedding", "status")),
    }


def leave_out_forests() -> None:
    """Let `pynndescent.distances` be imported without the package around it, which compiles its forests for 20 s."""
    sys.modules["pynndescent"] = module_from_spec(find_spec("pynndescent"))


def main(folder: str) -> None:
    """Run all of `SETTINGS` on threads of this process."""
    from dumap.config import load_config
    from dumap.recipe.pipeline import run

    leave_out_forests()
    digests = {}
    for name, settings in SETTINGS.items():
        source, output = str(Path(folder, f"{name}-in.zarr")), str(Path(folder, f"{name}.zarr"))
        zarr.create_group(source).create_array("vectors", data=data(name), chunks=(500, DIMS))
        common = {"neighbors.n_neighbors": NEIGHBORS, "layout.n_epochs": 25, "audit.queries": 60}
        run(
            load_config(
                None, (), {"input.path": source, "output": output, "cluster.engine": "local", **common, **settings}
            )
        )
        digests[name] = artifacts(output)
    print(json.dumps({"versions": versions(), "digests": digests}, indent=1))


NEIGHBORS = 16
"""Neighbours a row, itself counted."""


def versions() -> dict[str, str]:
    """Return the versions that the bytes may depend on."""
    return {"machine": platform.machine(), **{name: version(name) for name in LIBRARIES}}


if __name__ == "__main__":
    main(sys.argv[1])

"""Run one peer on a Zarr array in this process: time by stage, and its map or its neighbours as .npy files.

    python scripts/measuring/contenders.py umap-learn DATA.zarr FOLDER [--array vectors] [--threads 2] [--components 2]

The last line is JSON: 'versions', and 'seconds' of 'imports', 'load' (the whole array, as float32), 'warm' (a fit of
the first rows, which compiles what is compiled), 'fit', and of 'stages' of that fit. FOLDER gets embedding.npy and, of
those that tell them, neighbors.npy: ids, the row itself left out. Without a seed all use all threads. It is run by
whatever interpreter has the peer, so it needs that, NumPy and Zarr alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

WARM_ROWS = 6000
"""Rows that are fitted first; above 4,096, below which umap-learn searches otherwise."""
NEIGHBORS = 15
"""Neighbours that are searched, the row itself counted, where a peer takes a number."""


class Peer:
    """A program to compare with.

    Attributes
    ----------
    package, module : str
        What is installed from PyPI, and imported.
    stages : dict
        For each stage, the functions whose time is its: 'module:name', or 'module:class.name'.
    """

    package = module = ""
    stages: ClassVar[dict[str, tuple[str, ...]]] = {}

    def warm_up(self, x: Any, components: int, threads: int) -> None:
        """Have everything compiled that `fit` will need."""
        self.fit(x, components, threads)

    def fit(self, x: Any, components: int, threads: int) -> dict[str, Any]:
        """Return 'embedding' (rows, components), 'neighbors' (rows, k), or both."""
        raise NotImplementedError


class UmapLearn(Peer):
    """umap-learn, without a seed, so that its layout uses all threads."""

    package, module = "umap-learn", "umap"
    stages: ClassVar = {
        "neighbors": ("umap.umap_:nearest_neighbors",),
        "graph": ("umap.umap_:fuzzy_simplicial_set",),
        "start": ("umap.umap_:spectral_layout",),
        "layout": ("umap.umap_:optimize_layout_euclidean",),
    }

    def warm_up(self, x: Any, components: int, threads: int) -> None:
        """As `Peer`, with few epochs."""
        import umap

        umap.UMAP(n_epochs=2, n_neighbors=NEIGHBORS, n_components=components, n_jobs=threads).fit(x)

    def fit(self, x: Any, components: int, threads: int) -> dict[str, Any]:
        """As `Peer`."""
        import umap

        model = umap.UMAP(n_neighbors=NEIGHBORS, n_components=components, n_jobs=threads)
        outputs = {"embedding": model.fit_transform(x)}
        lists = getattr(model, "_knn_indices", None)  # of few rows there are all distances instead
        return outputs if lists is None else {**outputs, "neighbors": lists[:, 1:]}


class Pynndescent(Peer):
    """pynndescent alone, with its own defaults."""

    package = module = "pynndescent"

    def fit(self, x: Any, components: int, threads: int) -> dict[str, Any]:
        """As `Peer`."""
        import pynndescent

        lists = pynndescent.NNDescent(x, n_neighbors=NEIGHBORS, n_jobs=threads).neighbor_graph[0]
        return {"neighbors": remove_self(lists)}


class Pacmap(Peer):
    """PaCMAP, with its own defaults."""

    package, module = "pacmap", "pacmap"
    stages: ClassVar = {
        "start": ("pacmap.pacmap:preprocess_X",),
        "neighbors": ("pacmap.pacmap:compute_nearest_neighbors",),
        "graph": ("pacmap.pacmap:generate_pair",),
        "layout": ("pacmap.pacmap:pacmap",),
    }

    def fit(self, x: Any, components: int, threads: int) -> dict[str, Any]:
        """As `Peer`."""
        import pacmap

        return {"embedding": pacmap.PaCMAP(n_components=components).fit_transform(x)}


class OpenTsne(Peer):
    """openTSNE, with its own defaults and all threads."""

    package, module = "openTSNE", "openTSNE"
    stages: ClassVar = {
        "neighbors": ("openTSNE.nearest_neighbors:Annoy.build", "openTSNE.nearest_neighbors:Sklearn.build"),
        "graph": ("openTSNE.affinity:joint_probabilities_nn",),
        "start": ("openTSNE.initialization:pca",),
        "layout": ("openTSNE.tsne:TSNEEmbedding.optimize",),
    }

    def warm_up(self, x: Any, components: int, threads: int) -> None:
        """Do nothing: it comes compiled."""

    def fit(self, x: Any, components: int, threads: int) -> dict[str, Any]:
        """As `Peer`."""
        import numpy as np
        import openTSNE

        return {"embedding": np.asarray(openTSNE.TSNE(n_components=components, n_jobs=threads).fit(x))}


PEERS: dict[str, type[Peer]] = {
    "umap-learn": UmapLearn,
    "pacmap": Pacmap,
    "opentsne": OpenTsne,
    "pynndescent": Pynndescent,
}


def remove_self(lists: Any) -> Any:
    """Return lists of neighbours (rows, k) without the row itself: k - 1 of each."""
    import numpy as np

    is_self = lists == np.arange(len(lists))[:, None]
    is_self[~is_self.any(axis=1), -1] = True  # a row that is not among its own neighbours loses the last
    return lists[~is_self].reshape(len(lists), -1)


class StageClock:
    """Adds up the time of functions that it wraps; what one of them spends in another is the other's.

    Attributes
    ----------
    seconds : dict of str to float
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner_seconds: list[list[float]] = []

    def time_function(self, stage: str, function_path: str) -> None:
        """Time a function, 'module:name', as part of a stage.

        Raises
        ------
        AttributeError
            The peer has no such function: its stages are called otherwise in this version.
        """
        module, _, attribute_path = function_path.partition(":")
        owner: Any = import_module(module)
        *classes, name = attribute_path.split(".")
        for class_name in classes:
            owner = getattr(owner, class_name)
        setattr(owner, name, self._time_calls(stage, getattr(owner, name)))

    def _time_calls(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call_timed(*arguments: Any, **options: Any) -> Any:
            start_time, inner_seconds = time.perf_counter(), [0.0]
            self._inner_seconds.append(inner_seconds)
            try:
                return function(*arguments, **options)
            finally:
                self._inner_seconds.pop()
                elapsed = time.perf_counter() - start_time
                self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed - inner_seconds[0]
                if self._inner_seconds:
                    self._inner_seconds[-1][0] += elapsed

        return call_timed


def run_peer(peer: Peer, data: str, array: str, folder: Path, threads: int, components: int) -> dict[str, Any]:
    """Run a peer and write what it finds."""
    start_time = time.perf_counter()
    import numpy as np
    import zarr

    import_module(peer.module)
    seconds: dict[str, Any] = {"imports": time.perf_counter() - start_time}
    start_time = time.perf_counter()
    x = np.asarray(zarr.open_array(data, path=array, mode="r")[:], np.float32)
    seconds["load"] = time.perf_counter() - start_time
    start_time = time.perf_counter()
    peer.warm_up(x[:WARM_ROWS], components, threads)
    seconds["warm"] = time.perf_counter() - start_time
    clock = StageClock()
    for stage, function_paths in peer.stages.items():
        for function_path in function_paths:
            clock.time_function(stage, function_path)
    start_time = time.perf_counter()
    outputs = peer.fit(x, components, threads)
    seconds["fit"] = time.perf_counter() - start_time
    for name, values in outputs.items():
        np.save(folder / f"{name}.npy", values)
    other_seconds = {} if not clock.seconds else {"other": seconds["fit"] - sum(clock.seconds.values())}
    seconds["stages"] = {**clock.seconds, **other_seconds} or {"neighbors": seconds["fit"]}
    versions = {peer.package: version(peer.package), "numpy": version("numpy"), "zarr": version("zarr")}
    return {"versions": versions, "seconds": seconds}


def main() -> None:
    """Read the command line, run, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path, help="gets embedding.npy and neighbors.npy")
    parser.add_argument("--array", default="vectors")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--components", type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    peer = PEERS[args.peer]()
    print(json.dumps(run_peer(peer, args.data, args.array, args.folder, args.threads, args.components)))


if __name__ == "__main__":
    main()

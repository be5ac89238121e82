"""A user's program that uses every public name, for `mypy --strict`."""

from pathlib import Path
from typing import Any

import numpy as np

import dumap


class Printing:
    """An observer with all methods that the protocol asks for."""

    def started(self, stage: str, projected_bytes: int) -> None: ...

    def advanced(self, stage: str, done: float, total: float) -> None: ...

    def finished(
        self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict[str, Any]
    ) -> None: ...

    def note(self, message: str) -> None: ...


def show(stage: str, done: float, total: float) -> None:
    """Print how much of a stage is done, as a callback."""
    print(stage, done / total)


async def wait(client: Any) -> dumap.Result:
    return await dumap.submit("DATA.zarr", client, output="RUN.zarr")


def main(client: Any) -> str:
    """Use each public function with the types that a type checker is to accept."""
    config: dumap.Config = dumap.load_config(None, ["input.path=DATA.zarr", "output=RUN.zarr"])
    observer: dumap.Observer = Printing()
    planned: dumap.Plan = dumap.plan(config=config)
    print(planned.peak_bytes, dumap.__version__)
    try:
        result: dumap.Result = dumap.run("DATA.zarr", output=Path("RUN.zarr"), n_neighbors=np.int64(10))
    except dumap.DumapError as error:
        return str(error.exit_code)
    dumap.run(config, client=client, on_progress=observer, parent=result)
    dumap.run(config={"input": {"path": "DATA.zarr"}, "output": "RUN.zarr"}, on_progress=show, layout={"min_dist": 0.2})
    status: dict[str, Any] = dumap.status(result)
    damaged: list[str] = dumap.verify("RUN.zarr", dry_run=True)
    cleaned: dumap.Cleaned = dumap.clean(Path("RUN.zarr"))
    print(status, damaged, cleaned.others, dumap.export(result, "embedding", "map.npy"))
    made: dict[str, Any] = dumap.ingest([Path("a.npy"), "b.npy"], "DATA.zarr", columns=["0:3", 5])
    print(made["rows"])
    again = dumap.open_run("RUN.zarr")
    indices, distances = again.neighbors[:10]
    print(again["state"], again.path, again.facts, indices.shape, distances.dtype, again.graph(0).shape, again.blocks)
    model = dumap.UMAP(n_neighbors=15)
    model.fit(np.zeros((20, 3), np.float32))
    dumap.umap("CELLS.zarr", min_dist=0.5)
    print(model.embedding_, dumap.KNeighborsTransformer(n_neighbors=15).n_neighbors)
    handle: dumap.Handle = dumap.submit("DATA.zarr", client, output="RUN.zarr", n_neighbors=15)
    print(handle.status()["task"], handle.progress()["stage"], dumap.attach("RUN.zarr", client).output)
    try:
        again = handle.result(timeout=3600, on_progress=show)
    except dumap.CancelledError:
        handle.cancel()
    print(again.embedding[:3], again.status[:3], again.to_dask(), again.to_xarray(), again.to_dataframe(), again.plot())
    x = np.zeros((100, 5), np.float32)
    reducer: dumap.UMAP = dumap.UMAP(n_neighbors=10, metric="cosine", store=Path("RUN.zarr"), client=client).fit(x)
    print(reducer.embedding_.shape, reducer.run_.path, reducer.fit_transform(x, knn_graph=reducer.graph_))
    searched = dumap.KNeighborsTransformer(n_neighbors=10, random_state=3).fit_transform(x)
    dumap.umap("CELLS.zarr", min_dist=0.3, key_added="umap")
    print(searched, dumap.umap(searched, copy=True))
    return again.path

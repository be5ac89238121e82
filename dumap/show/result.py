"""Results, by which programs read a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dumap.errors import ConfigError, DroppedError, DumapError, StorageError, missing_packages
from dumap.recipe.status import status
from dumap.store import DONE, Run, internal_location
from dumap.store.disk import normalize
from dumap.store.row_names import read_row_names

if TYPE_CHECKING:
    import dask.array
    import pandas
    import scipy.sparse
    import xarray
    import zarr
    from matplotlib.figure import Figure

    from dumap.show.rows import Neighbors, RowOrder

MAX_SHOWN_ROWS = 1_000_000
"""Most rows that a notebook's picture shows. They are whole chunks, spread over all rows."""


class Result(Mapping[str, Any]):
    """A run, read on access.

    A result is also a mapping of the run's status (`result["stages"]`, see `dumap.status`), which is read once, on
    first access. It can be given wherever a path of a run is expected. Notebooks show it with its map.

    Parameters
    ----------
    path : str
        Where the run lies.
    run_status : dict, optional
        The run's status, if it is known.

    Attributes
    ----------
    path : str

    Examples
    --------
    >>> import dumap
    >>> result = dumap.open_run("RUN.zarr")
    >>> result["state"], result.facts["quality"]["trustworthiness"] > 0.8
    ('done', True)
    >>> result.to_dataframe().columns.tolist()
    ['component_0', 'component_1', 'status']
    """

    def __init__(self, path: str, run_status: dict[str, Any] | None = None) -> None:
        self.path = path
        if run_status is not None:
            self._status = run_status

    @classmethod
    def open(cls, path: str) -> Result:
        """Open an existing run."""
        run = Run(internal_location(path), read_only=True)
        run.attributes  # noqa: B018  raises unless this is a run of this format
        return cls(normalize(path))

    # a mapping of the status -------------------------------------------------------------------

    @cached_property
    def _status(self) -> dict[str, Any]:
        return status(self.path)

    def __getitem__(self, name: str) -> Any:
        return self._status[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._status)

    def __len__(self) -> int:
        return len(self._status)

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<dumap.Result {self.path}: {self['state']}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The facts of each finished stage: `result.facts["audit"]["recall"]`."""
        return {stage["name"]: stage["facts"] for stage in self["stages"] if stage["state"] == "done"}

    # the map -----------------------------------------------------------------------------------

    def _open_after(self, stage: str) -> Run:
        run = Run(internal_location(self.path), read_only=True)
        if not run.is_committed(DONE, stage):
            raise StorageError(f"{self.path}: stage {stage} is not done yet; 'dumap run' goes on")
        return run

    @property
    def embedding(self) -> zarr.Array:
        """The coordinates, an array (row, component) of float32 in the input's order; NaN for a row without
        coordinates.
        """
        return self._open_after("embedding").open_final("embedding")

    @property
    def status(self) -> zarr.Array:
        """The flags of rows, an array (row) of uint8, 0 for an ordinary row. The array's attributes name the flags."""
        return self._open_after("embedding").open_final("status")

    @property
    def row_names(self) -> np.ndarray | None:
        """The names of rows, (rows,) of int64 or texts, or None: an index, obs_names or a coordinate of the input."""
        return read_row_names(self._open_after("embedding"))

    def to_dask(self) -> dask.array.Array:
        """Return the coordinates as a Dask array. Its tasks read the run."""
        from dumap.engine.collections import to_dask

        return to_dask(self.embedding)

    def to_xarray(self) -> xarray.Dataset:
        """Return embedding and status as a lazy data set with the dimensions row and component.

        Raises
        ------
        ConfigError
            xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise missing_packages("to_xarray", "xarray") from error
        from dumap.engine.collections import to_dask

        arrays = {"embedding": self.embedding, "status": self.status}
        dims = {"embedding": ("row", "component"), "status": ("row",)}
        variables = {name: (dims[name], to_dask(array), dict(array.attrs)) for name, array in arrays.items()}
        names = self.row_names
        coordinates = {} if names is None else {"row": names}
        return xarray.Dataset(variables, coords=coordinates, attrs={"source": self.path})

    def to_dataframe(self) -> pandas.DataFrame:
        """Return coordinates and status as a data frame in memory. Its index has the rows' names, if there are any.

        Raises
        ------
        ConfigError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise missing_packages("to_dataframe", "pandas") from error
        run = self._open_after("embedding")
        coordinates = run.read_final("embedding", "embedding")
        columns = {f"component_{number}": coordinates[:, number] for number in range(coordinates.shape[1])}
        frame = pandas.DataFrame({**columns, "status": run.read_final("status", "embedding")})
        names = self.row_names
        return (frame if names is None else frame.set_index(pandas.Index(names))).rename_axis(index="row")

    # the graph ---------------------------------------------------------------------------------

    @cached_property
    def _row_order(self) -> RowOrder:
        from dumap.show.rows import RowOrder

        return RowOrder(self._open_after("graph"))

    @property
    def neighbors(self) -> Neighbors:
        """The nearest neighbours of rows: `indices, distances = result.neighbors[start:stop]`."""
        from dumap.show.rows import Neighbors

        return Neighbors(self._open_after("audit"))

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The rows [start, stop) of each block of `graph`. These blocks are not the blocks in which the input was
        read.
        """
        from dumap.show.rows import BLOCK_ROWS

        rows = int(self["input"]["shape"][0])
        return [(start, min(rows, start + BLOCK_ROWS)) for start in range(0, rows, BLOCK_ROWS)]

    def graph(self, block: int | slice | None = None) -> scipy.sparse.csr_matrix:
        """Return rows of the fuzzy graph, in the input's order.

        Parameters
        ----------
        block : int or slice, optional
            The number of one of `blocks`, or a range of rows; by default all rows.

        Returns
        -------
        csr_matrix of float32, shape (n, rows)
            Membership strengths. The whole graph is read, one shard at a time; memory holds the rows of the block.
        """
        from dumap.show.rows import dropped_error, graph_rows

        rows = int(self["input"]["shape"][0])
        if isinstance(block, int | np.integer):
            start, stop = self.blocks[block]
        else:
            start, stop, step = (block or slice(None)).indices(rows)
            if step != 1:
                raise ConfigError("graph: rows are read one after another; leave out the step")
        run = self._open_after("graph")
        try:
            return graph_rows(run, self._row_order, start, max(start, stop))
        except DroppedError as error:
            raise dropped_error(run, "graph") from error

    # pictures ----------------------------------------------------------------------------------

    def plot(self, labels: Any = None) -> Figure:
        """Draw the map.

        Parameters
        ----------
        labels : array_like, shape (rows,), optional
            Names, numbers or dates that colour the rows.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ConfigError
            The map does not have two dimensions, or matplotlib, datashader or pandas is not installed.
        """
        from dumap.show.picture import draw_map

        coordinates = self._open_after("embedding").read_final("embedding", "embedding")
        if coordinates.shape[1] != 2:
            raise ConfigError(f"a picture needs layout.n_components = 2; this run has {coordinates.shape[1]}")
        return draw_map(coordinates, None if labels is None else np.asarray(labels))

    def _draw_picture(self) -> bytes | str:
        """Return a picture of at most `MAX_SHOWN_ROWS` rows, or a text that says why there is none."""
        from dumap.show.picture import draw_map, to_png

        try:
            array = self.embedding
            if array.shape[1] != 2:
                return f"no picture: the map has {array.shape[1]} dimensions"
            chunk_rows = array.chunks[0]
            chunk_step = max(1, -(-array.shape[0] // MAX_SHOWN_ROWS))
            shown_chunks = [
                np.asarray(array[start : start + chunk_rows])
                for start in range(0, array.shape[0], chunk_rows * chunk_step)
            ]
            return to_png(draw_map(np.concatenate(shown_chunks)))
        except DumapError as error:
            return f"no picture: {error}"

    def _repr_html_(self) -> str:
        from dumap.show.page import to_html

        return to_html(self, self._draw_picture())

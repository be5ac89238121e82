"""The sections of the configuration, a class each; a setting is a field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dumap.config.metrics import METRICS, check_arguments, frozen_numbers
from dumap.config.values import FrozenDict, location, parse_bytes, shorten, show


def _arguments(value: Any) -> FrozenDict:
    if not isinstance(value, Mapping):
        raise ValueError("write the metric's arguments as keys and values, such as {p: 3}")
    return FrozenDict({shorten(str(name)): frozen_numbers(numbers) for name, numbers in value.items()})


def _known_metric(value: str) -> str:
    if value not in METRICS:
        raise ValueError(f"no such metric; allowed are: {', '.join(METRICS)}")
    return value


INITS = ("spectral", "pca", "random")
"""Ways to find the first coordinates; anything else is the path of an array of them."""


def _start(value: str) -> str:
    if value not in INITS and not value.endswith((".npy", ".zarr")) and "/" not in value:
        raise ValueError("allowed are spectral, pca, random, or the path of an array (.npy, or in Zarr)")
    return value


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, lt=2**63)]
Metric = Annotated[str, AfterValidator(_known_metric)]
Location = Annotated[str, AfterValidator(location)]


class Section(BaseModel):
    """A frozen part of the configuration that takes no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class InputConfig(Section):
    """What to embed.

    With `missing` = fill, chunks that are not there are read as the fill value, as Zarr leaves them out that hold
    nothing else; with `unique`, rows equal to the bit are embedded once and weigh as many as they are.
    """

    path: Location
    array: Location = "vectors"
    missing: Literal["error", "fill"] = "error"
    nonfinite: Literal["error", "drop"] = "error"
    unique: bool = False


class NeighborsConfig(Section):
    """The neighbours of each row: searched, and repaired below a recall; or given.

    `n_neighbors` counts the row itself, as in umap-learn: 15 are the row and 14 others. `width` counts it too: so many
    are searched, audited, repaired and kept, and the graph takes the nearest `n_neighbors` of them; null: no more.
    """

    n_neighbors: int = Field(15, ge=2, le=512)
    metric: Metric = "euclidean"
    metric_kwds: Annotated[Any, AfterValidator(_arguments)] = FrozenDict()
    width: int | None = Field(None, ge=2, le=512)
    recall_target: float = Field(0.95, ge=0.0, le=1.0)
    max_repairs: int = Field(3, ge=0, le=9)
    precomputed: Location | None = None

    @model_validator(mode="after")
    def _consistent(self) -> NeighborsConfig:
        check_arguments(self.metric, self.metric_kwds)
        if self.width is not None and self.width < self.n_neighbors:
            raise ValueError(
                f"width ({self.width}) must not be below n_neighbors ({self.n_neighbors}): raise width, lower "
                f"n_neighbors, or set width to null"
            )
        return self

    @property
    def others(self) -> int:
        """Neighbours of a row in the graph, itself not counted."""
        return self.n_neighbors - 1

    @property
    def searched(self) -> int:
        """Neighbours of a row in its list, itself not counted: what is searched, audited, repaired and kept."""
        return (self.width or self.n_neighbors) - 1

    @property
    def widest(self) -> str:
        """The setting that says how many are searched, for messages."""
        return "n_neighbors" if self.searched == self.others else "width"


class CellsConfig(Section):
    """How rows are cut into cells, and how many of them a row is compared in."""

    max_copies: int = Field(6, ge=1, le=64)
    max_rows: int | None = Field(None, ge=64)


class GraphConfig(Section):
    """The fuzzy graph."""

    local_connectivity: float = Field(1.0, ge=0.0)
    set_op_mix_ratio: float = Field(1.0, ge=0.0, le=1.0)
    disconnection_distance: float | None = Field(None, gt=0.0)
    shard_rows: int = Field(65536, ge=4096, multiple_of=4096)


class StartConfig(Section):
    """The first coordinates: spectral, pca, random, or the path of an array of the rows' coordinates.

    With spectral, the coarse graph is laid out in `coarse_epochs` epochs from its eigenvectors; 0: those alone.
    """

    init: Annotated[Location, AfterValidator(_start)] = "spectral"
    coarse_epochs: int = Field(500, ge=0, le=32_000)


class LayoutConfig(Section):
    """Gradient descent.

    With `exchange_every` > 1 shards see each other's rows only after so many epochs, for networks or disks that are
    slow; then the answer depends on `graph.shard_rows`. With `least_fall` > 0 the layout ends once the loss has fallen
    by a smaller share of itself in a tenth of the epochs.
    """

    n_components: int = Field(2, ge=1, le=64)
    n_epochs: int | None = Field(None, ge=1, le=32_000)
    learning_rate: float = Field(1.0, gt=0.0)
    min_dist: float = Field(0.1, ge=0.0)
    spread: float = Field(1.0, gt=0.0)
    a: float | None = Field(None, gt=0.0)
    b: float | None = Field(None, gt=0.0)
    negative_sample_rate: float = Field(5.0, ge=0.0, le=1000.0)
    repulsion_strength: float = Field(1.0, ge=0.0)
    exchange_every: int = Field(1, ge=1, le=1000)
    least_fall: float = Field(0.0, ge=0.0, lt=1.0)
    checkpoint_every: int = Field(50, ge=1)
    mode: Literal["auto", "host", "rounds"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> LayoutConfig:
        if self.min_dist > self.spread:
            raise ValueError(f"min_dist ({self.min_dist}) must not exceed spread ({self.spread})")
        if (self.a is None) != (self.b is None):
            raise ValueError("give both a and b, or neither")
        if self.exchange_every > 1 and self.mode == "host":
            raise ValueError("exchange_every > 1 goes with rounds of shards: set mode to auto or rounds")
        return self


class QualityConfig(Section):
    """The audit of the lists, before and after each repair, and of the map: rows searched exactly."""

    queries: int = Field(1000, ge=0, le=100_000)


class ClusterConfig(Section):
    """Where the run runs; no answer depends on it.

    The engine is Dask, or local: threads of this process. With auto it is local where no cluster is asked for, the
    work is small and memory suffices. `timeout` is for a scheduler that does not answer, `worker_timeout` for one
    without a worker that is fit.
    """

    engine: Literal["auto", "local", "dask"] = "auto"
    workers: int | None = Field(None, ge=1)
    memory_limit: Bytes | None = None
    scheduler: Location | None = None
    scheduler_file: Location | None = None
    timeout: float = Field(60.0, gt=0.0)
    worker_timeout: float = Field(600.0, gt=0.0)

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        """Refuse what would be ignored."""
        schedulers = _given(self, "scheduler", "scheduler_file")
        if len(schedulers) > 1:
            raise ValueError(f"{' and '.join(schedulers)} name a scheduler each: give one, set the other to null")
        if self.engine == "local" and (clusters := _given(self, "scheduler", "scheduler_file", "workers")):
            raise ValueError(
                f"engine = 'local' runs in this process and needs no cluster: leave out {' and '.join(clusters)}, or "
                f"set engine to auto or dask"
            )
        embedded = _given(self, "workers", "memory_limit")
        if schedulers and embedded:
            raise ValueError(
                f"{' and '.join(embedded)} would be of an embedded cluster, but {schedulers[0]} names another, whose "
                f"workers are as they are: leave out the one or the other, or set it to null"
            )
        return self


def _given(section: Section, *names: str) -> list[str]:
    return [f"{name} = {show(value)}" for name in names if (value := getattr(section, name)) is not None]

"""The sections of the configuration that decide what a run computes. Each field of a section is a setting."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from dumap.config.metrics import METRICS, check_arguments, to_frozen_numbers
from dumap.config.setting import Location, Section, setting
from dumap.config.values import FrozenDict, shorten


def _validate_metric_kwds(value: Any) -> FrozenDict:
    """Validate the arguments of a metric."""
    if not isinstance(value, Mapping):
        raise ValueError("write the metric's arguments as keys and values, such as {p: 3}")
    return FrozenDict({shorten(str(name)): to_frozen_numbers(numbers) for name, numbers in value.items()})


def _validate_metric(value: str) -> str:
    """Refuse an unknown metric, and suggest a similar one."""
    if value not in METRICS:
        similar = difflib.get_close_matches(value, METRICS, 1)
        suggestion = f"; did you mean {similar[0]}?" if similar else ""
        raise ValueError(f"no such metric; allowed are: {', '.join(METRICS)}{suggestion}")
    return value


INIT_METHODS = ("spectral", "pca", "random")
"""Methods to compute the first coordinates; any other value is the path of an array."""


def _validate_init(value: str) -> str:
    """Refuse a value that is neither a method nor a path."""
    if value not in INIT_METHODS and not value.endswith((".npy", ".zarr")) and "/" not in value:
        raise ValueError("allowed are spectral, pca, random, or the path of an array (.npy, or in Zarr)")
    return value


Metric = Annotated[str, AfterValidator(_validate_metric)]


class NeighborsConfig(Section):
    """The neighbours of each row, which are searched, and repaired if their recall is too low, or given."""

    n_neighbors: int = setting(
        15,
        "Neighbours of each row in the graph, including the row itself: 15 means the row and 14 others. Larger: "
        "broader structure, and more memory, disk and time; smaller: finer detail.",
        changes=True,
        umap="n_neighbors",
        ge=2,
        le=512,
    )
    metric: Metric = setting(
        "euclidean",
        "The distance between rows; for given neighbours, the metric of their distances. Metrics other than euclidean, "
        "l2, sqeuclidean, bit_hamming, cosine, correlation and haversine take more time and memory. For sparse rows "
        "euclidean, l2, sqeuclidean, cosine and correlation are allowed. Allowed for dense rows: "
        f"{', '.join(METRICS)}.",
        changes=True,
        umap="metric",
    )
    metric_kwds: Annotated[Any, AfterValidator(_validate_metric_kwds)] = setting(
        FrozenDict(),
        "The metric's arguments, such as {p: 3} for minkowski. Arguments that the metric does not take are refused.",
        changes=True,
        umap="metric_kwds",
    )
    width: int | None = setting(
        None,
        "Neighbours of each row that are searched, audited, repaired and kept, including the row itself; the graph "
        "takes the nearest n_neighbors of them. Larger: more memory, disk and time. null: n_neighbors.",
        changes="if it is above n_neighbors",
        ge=2,
        le=512,
    )
    recall_target: float = setting(
        0.95,
        "Lists are repaired as long as the audit measures a recall below this: the share of the true neighbours that "
        "they hold. Larger: more repairs, which take time; 0: no repairs. Ignored if neighbours are given, or "
        "audit.queries is 0.",
        changes="if it decides whether lists are repaired",
        ge=0.0,
        le=1.0,
    )
    max_repairs: int = setting(
        3,
        "The most repairs of the lists. Larger: higher recall if the lists are below recall_target, and more time; 0: "
        "no repairs. Ignored if neighbours are given, or audit.queries is 0.",
        changes="if lists are below recall_target",
        ge=0,
        le=9,
    )
    precomputed: Location | None = setting(
        None,
        "Given neighbours: a Zarr group with arrays indices and distances, which have as many rows as the input. null: "
        "neighbours are searched.",
        changes="by the values of the arrays, not by their location",
        umap="precomputed_knn",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> NeighborsConfig:
        """Refuse arguments that the metric does not take, and a width below n_neighbors."""
        check_arguments(self.metric, self.metric_kwds)
        if self.width is not None and self.width < self.n_neighbors:
            raise ValueError(
                f"width ({self.width}) must not be below n_neighbors ({self.n_neighbors}): raise width, lower "
                f"n_neighbors, or set width to null"
            )
        return self

    @property
    def graph_k(self) -> int:
        """The neighbours of a row in the graph, without the row itself."""
        return self.n_neighbors - 1

    @property
    def search_k(self) -> int:
        """The neighbours of a row that are searched, audited, repaired and kept, without the row itself."""
        return (self.width or self.n_neighbors) - 1

    @property
    def width_setting(self) -> str:
        """The setting that decides `search_k`, for messages."""
        return "n_neighbors" if self.search_k == self.graph_k else "width"


class CellsConfig(Section):
    """The division of rows into cells, and the number of cells in which a row is compared."""

    max_cells_per_row: int = setting(
        6,
        "The most cells in which a row is compared with others: its home cell and cells of its nearest leaves, "
        "which are eight, or 64 for sparse rows. "
        "Larger: higher recall, more disk and time. Ignored if neighbours are given.",
        changes=True,
        ge=1,
        le=64,
    )
    max_rows: int | None = setting(
        None,
        "The most rows of a cell. Smaller: less memory per task, more tasks, and lower recall. Ignored if task_memory "
        "holds fewer rows, or neighbours are given. null: as many as task_memory holds.",
        changes=True,
        ge=64,
    )


class GraphConfig(Section):
    """The fuzzy graph."""

    local_connectivity: float = setting(
        1.0,
        "This many nearest neighbours of a row get weight 1. Larger: rows are tied more closely to their nearest "
        "neighbours.",
        changes=True,
        umap="local_connectivity",
        ge=0.0,
    )
    set_op_mix_ratio: float = setting(
        1.0,
        "1 joins two rows if either has the other among its neighbours, 0 only if both have; values between mix the "
        "two. Smaller: fewer edges, and groups farther apart.",
        changes=True,
        umap="set_op_mix_ratio",
        ge=0.0,
        le=1.0,
    )
    disconnection_distance: float | None = setting(
        None,
        "Neighbours at this distance or farther get no edge. Smaller: more rows without an edge, which have status 2. "
        "null: 2 for cosine and correlation, 1 for hellinger, jaccard, bit_jaccard and dice, else no limit.",
        changes=True,
        umap="disconnection_distance",
        gt=0.0,
    )
    shard_rows: int = setting(
        65536,
        "Rows of one shard of graph, start and layout; fewer if task_memory holds fewer. Larger: fewer tasks and "
        "objects, more memory per task. The parts of a run depend on it, so a run continues only with the same value.",
        changes="with layout.exchange_every above 1",
        ge=4096,
        multiple_of=4096,
    )


class StartConfig(Section):
    """The first coordinates."""

    init: Annotated[Location, AfterValidator(_validate_init)] = setting(
        "spectral",
        "The first coordinates: spectral, from the graph's eigenvectors; pca, from the rows' principal components; "
        "random; or the path of an array with the coordinates of each row (.npy, or in Zarr).",
        changes=True,
        umap="init",
    )
    coarse_epochs: int = setting(
        500,
        "Epochs of the layout of the coarse graph, which begins at its eigenvectors and precedes the layout of all "
        "rows. Larger: the large structure settles better, in more time; 0: only the eigenvectors. Ignored unless init "
        "is spectral, and if rows are so few that the graph is its own coarse graph.",
        changes=True,
        ge=0,
        le=32_000,
    )


class LayoutConfig(Section):
    """The layout of the map by gradient descent."""

    seed: int | None = setting(
        None,
        "Seed of the random numbers of start and layout only. Another seed gives another map of the same graph. "
        "null: seed.",
        changes=True,
        ge=0,
        lt=2**63,
    )
    n_components: int = setting(
        2,
        "Dimensions of the map. Larger: room for more structure, and more memory and time.",
        changes=True,
        umap="n_components",
        ge=1,
        le=64,
    )
    n_epochs: int | None = setting(
        None,
        "Epochs of the descent. Larger: the map settles better, in more time. null: 500 for up to 10,000 rows, else "
        "200.",
        changes=True,
        umap="n_epochs",
        ge=1,
        le=32_000,
    )
    learning_rate: float = setting(
        1.0,
        "The size of the first steps of the descent; it falls to 0 over the epochs. Larger: rows move farther from "
        "their first coordinates; far too large: coordinates diverge, which is an error.",
        changes=True,
        umap="learning_rate",
        gt=0.0,
    )
    min_dist: float = setting(
        0.1,
        "How close the nearest rows are packed in the map; at most spread. Larger: groups are packed less tightly, and "
        "show broad structure rather than detail. Ignored if a and b are given.",
        changes=True,
        umap="min_dist",
        ge=0.0,
    )
    spread: float = setting(
        1.0,
        "The scale of the map. Larger: a wider map, in which min_dist matters less. Ignored if a and b are given.",
        changes=True,
        umap="spread",
        gt=0.0,
    )
    a: float | None = setting(
        None,
        "Parameter a of the curve 1 / (1 + a d^2b), the similarity of two rows at distance d in the map; give it with "
        "b. Larger: a smaller map. null: fitted to min_dist and spread.",
        changes=True,
        umap="a",
        gt=0.0,
    )
    b: float | None = setting(
        None,
        "Parameter b of the same curve; give it with a. Larger: groups are packed less tightly, as with a larger "
        "min_dist. null: fitted to min_dist and spread.",
        changes=True,
        umap="b",
        gt=0.0,
    )
    negative_sample_rate: float = setting(
        5.0,
        "For every two samples of a row's edges, this many random rows repel it, which is umap-learn's balance: there "
        "a sampled edge attracts both its ends, and only one end is repelled. Larger: stronger repulsion, groups "
        "farther apart, more time.",
        changes=True,
        umap="negative_sample_rate",
        ge=0.0,
        le=1000.0,
    )
    repulsion_strength: float = setting(
        1.0,
        "Weight of the repulsion relative to the attraction. Larger: rows and groups lie farther apart.",
        changes=True,
        umap="repulsion_strength",
        ge=0.0,
    )
    exchange_every: int = setting(
        1,
        "Epochs that a task computes for a shard before it reads the new coordinates of other shards' rows. Larger: "
        "less reading and writing, for slow networks and disks, and a somewhat worse map, which also depends on "
        "graph.shard_rows. Above 1, mode must not be host.",
        changes=True,
        ge=1,
        le=1000,
    )
    least_fall: float = setting(
        0.0,
        "The layout ends early if the loss falls by less than this fraction of itself within a tenth of the epochs. "
        "Larger: it ends sooner; 0: it never ends early.",
        changes=True,
        ge=0.0,
        lt=1.0,
    )
    checkpoint_every: int = setting(
        50,
        "Epochs between two checkpoints that survive a power cut. A killed run repeats at most this many epochs on one "
        "host, and one round otherwise. Larger: fewer objects, more epochs to repeat.",
        changes=False,
        ge=1,
    )
    mode: Literal["auto", "host", "rounds"] = setting(
        "auto",
        "host: one task lays out all rows and needs memory for the whole graph; rounds: each epoch is a round of "
        "tasks, and each task lays out some shards; auto: host if a worker's memory suffices and exchange_every is 1.",
        changes=False,
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> LayoutConfig:
        """Refuse settings of the layout that contradict one another."""
        if self.min_dist > self.spread:
            raise ValueError(f"min_dist ({self.min_dist}) must not exceed spread ({self.spread})")
        if (self.a is None) != (self.b is None):
            raise ValueError("give both a and b, or neither")
        if self.exchange_every > 1 and self.mode == "host":
            raise ValueError("exchange_every > 1 goes with rounds of shards: set mode to auto or rounds")
        return self


class AuditConfig(Section):
    """The audit of the lists, before and after each repair: a sample of rows, the queries, is searched exactly."""

    queries: int = setting(
        1000,
        "Rows that each audit searches exactly. Larger: narrower intervals, more time; 0: no recall, no repairs, and "
        "no quality of the map.",
        changes="if it decides whether lists are repaired",
        ge=0,
        le=100_000,
    )


class QualityConfig(Section):
    """The quality of the map, measured on the queries of the audit."""

    queries: int | None = setting(
        None,
        "The number of the audit's queries on which the map's quality is measured; null: all. Trustworthiness uses at "
        "most 300 of them. Smaller: wider intervals, less time; 0: neither trustworthiness nor kept neighbours.",
        changes=False,
        ge=0,
    )

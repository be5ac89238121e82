"""The settings of what a run computes: a class for each section but the input's, a field for each setting."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from dumap.config.metrics import METRICS, check_arguments, frozen_numbers
from dumap.config.setting import Location, Section, setting
from dumap.config.values import FrozenDict, shorten


def _arguments(value: Any) -> FrozenDict:
    if not isinstance(value, Mapping):
        raise ValueError("write the metric's arguments as keys and values, such as {p: 3}")
    return FrozenDict({shorten(str(name)): frozen_numbers(numbers) for name, numbers in value.items()})


def _known_metric(value: str) -> str:
    if value not in METRICS:
        alike = difflib.get_close_matches(value, METRICS, 1)
        meant = f"; did you mean {alike[0]}?" if alike else ""
        raise ValueError(f"no such metric; allowed are: {', '.join(METRICS)}{meant}")
    return value


INITS = ("spectral", "pca", "random")
"""Ways to find the first coordinates; anything else is the path of an array of them."""


def _start(value: str) -> str:
    if value not in INITS and not value.endswith((".npy", ".zarr")) and "/" not in value:
        raise ValueError("allowed are spectral, pca, random, or the path of an array (.npy, or in Zarr)")
    return value


Metric = Annotated[str, AfterValidator(_known_metric)]


class NeighborsConfig(Section):
    """The neighbours of each row: searched, and repaired below a recall; or given."""

    n_neighbors: int = setting(
        15,
        "Neighbours of each row in the graph, the row itself counted: 15 are the row and 14 others. Larger: broader "
        "structure, and more memory, disk and time; smaller: finer detail.",
        changes=True,
        umap="n_neighbors",
        ge=2,
        le=512,
    )
    metric: Metric = setting(
        "euclidean",
        "The distance between rows; of given neighbours, that of their distances. Others than euclidean, l2, "
        f"sqeuclidean, bit_hamming, cosine, correlation and haversine take more time and memory. Allowed: "
        f"{', '.join(METRICS)}.",
        changes=True,
        umap="metric",
    )
    metric_kwds: Annotated[Any, AfterValidator(_arguments)] = setting(
        FrozenDict(),
        "The metric's own arguments, such as {p: 3} for minkowski. Others than those it takes are refused.",
        changes=True,
        umap="metric_kwds",
    )
    width: int | None = setting(
        None,
        "Neighbours of each row that are searched, audited, repaired and kept, the row itself counted; the graph takes "
        "the nearest n_neighbors of them. Larger: more memory, disk and time. null: n_neighbors.",
        changes="where it is above n_neighbors",
        ge=2,
        le=512,
    )
    recall_target: float = setting(
        0.95,
        "Lists are repaired while they hold a smaller share of the true neighbours, as the audit finds. Larger: more "
        "repairs, which take time; 0: none. Ignored where neighbours are given, or audit.queries is 0.",
        changes="where it decides whether lists are repaired",
        ge=0.0,
        le=1.0,
    )
    max_repairs: int = setting(
        3,
        "Repairs of the lists at the most. Larger: truer neighbours where lists fall short of recall_target, and more "
        "time; 0: none. Ignored where neighbours are given, or audit.queries is 0.",
        changes="where lists fall short of recall_target",
        ge=0,
        le=9,
    )
    precomputed: Location | None = setting(
        None,
        "Neighbours to take instead of searching: a Zarr group with arrays indices and distances, of as many rows as "
        "the input. null: neighbours are searched.",
        changes="by what the arrays hold, not by where they lie",
        umap="precomputed_knn",
    )

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
    def graph_k(self) -> int:
        """Neighbours of a row in the graph, itself not counted."""
        return self.n_neighbors - 1

    @property
    def search_k(self) -> int:
        """Neighbours of a row in its list, itself not counted: what is searched, audited, repaired and kept."""
        return (self.width or self.n_neighbors) - 1

    @property
    def width_setting(self) -> str:
        """The setting that says how many are searched, for messages."""
        return "n_neighbors" if self.search_k == self.graph_k else "width"


class CellsConfig(Section):
    """How rows are cut into cells, and how many of them a row is compared in."""

    max_cells_per_row: int = setting(
        6,
        "The most cells in which a row is compared with others, among those of its eight nearest leaves. Larger: truer "
        "neighbours, more disk and time. Ignored where neighbours are given.",
        changes=True,
        ge=1,
        le=64,
    )
    max_rows: int | None = setting(
        None,
        "Rows of a cell at the most. Smaller: less memory a task, more tasks, and neighbours less true. Ignored where "
        "task_memory holds fewer, or neighbours are given. null: as many as task_memory holds.",
        changes=True,
        ge=64,
    )


class GraphConfig(Section):
    """The fuzzy graph."""

    local_connectivity: float = setting(
        1.0,
        "So many of a row's nearest neighbours are joined to it in full. Larger: rows hold together more closely with "
        "those nearest to them.",
        changes=True,
        umap="local_connectivity",
        ge=0.0,
    )
    set_op_mix_ratio: float = setting(
        1.0,
        "1 joins two rows if either has the other among its neighbours, 0 only if both have; between, a mix. Smaller: "
        "fewer edges, and groups farther apart.",
        changes=True,
        umap="set_op_mix_ratio",
        ge=0.0,
        le=1.0,
    )
    disconnection_distance: float | None = setting(
        None,
        "Neighbours at this distance or farther are cut off. Smaller: more rows without an edge, status 2. null: 2 for "
        "cosine and correlation, 1 for hellinger, jaccard, bit_jaccard and dice, else none are cut off.",
        changes=True,
        umap="disconnection_distance",
        gt=0.0,
    )
    shard_rows: int = setting(
        65536,
        "Rows of one shard of graph, start and layout, or fewer where task_memory holds fewer. Larger: fewer tasks and "
        "objects, more memory a task. It fixes how the run's parts are cut, so a run that was begun goes on with no "
        "other value.",
        changes="with layout.exchange_every above 1",
        ge=4096,
        multiple_of=4096,
    )


class StartConfig(Section):
    """The first coordinates."""

    init: Annotated[Location, AfterValidator(_start)] = setting(
        "spectral",
        "Where rows begin: spectral, from the graph's eigenvectors; pca, from the rows' principal components; random; "
        "or the path of an array of coordinates, one row each (.npy, or in Zarr).",
        changes=True,
        umap="init",
    )
    coarse_epochs: int = setting(
        500,
        "Epochs in which a coarse graph is laid out from its eigenvectors, before the whole graph is. Larger: large "
        "structure settles more, in more time; 0: the eigenvectors alone. Ignored unless init is spectral, and where "
        "rows are so few that the graph is its own coarse graph.",
        changes=True,
        ge=0,
        le=32_000,
    )


class LayoutConfig(Section):
    """The map, by gradient descent."""

    seed: int | None = setting(
        None,
        "Seed of the random choices of start and layout alone. Another gives another map of the same graph. "
        "null: as seed.",
        changes=True,
        ge=0,
        lt=2**63,
    )
    n_components: int = setting(
        2,
        "Dimensions of the map. Larger: more structure has room, and more memory and time.",
        changes=True,
        umap="n_components",
        ge=1,
        le=64,
    )
    n_epochs: int | None = setting(
        None,
        "Epochs of the descent. Larger: the map settles more, in more time. null: 500 for up to 10,000 rows, else 200.",
        changes=True,
        umap="n_epochs",
        ge=1,
        le=32_000,
    )
    learning_rate: float = setting(
        1.0,
        "How far rows step at first; steps shrink to none over the epochs. Larger: rows go farther from where they "
        "began; far too large, their coordinates run away, which is an error.",
        changes=True,
        umap="learning_rate",
        gt=0.0,
    )
    min_dist: float = setting(
        0.1,
        "How close the nearest rows come in the map, at most spread. Larger: groups are packed less tightly, and show "
        "broad structure rather than detail. Ignored where a and b are given.",
        changes=True,
        umap="min_dist",
        ge=0.0,
    )
    spread: float = setting(
        1.0,
        "The scale of the map. Larger: a wider map, on which min_dist is less. Ignored where a and b are given.",
        changes=True,
        umap="spread",
        gt=0.0,
    )
    a: float | None = setting(
        None,
        "a of the curve 1 / (1 + a d^2b), which is how near rows are at distance d of the map; goes with b. Larger: a "
        "smaller map. null: fitted to min_dist and spread.",
        changes=True,
        umap="a",
        gt=0.0,
    )
    b: float | None = setting(
        None,
        "b of the same curve; goes with a. Larger: groups are packed less tightly, as of a larger min_dist. null: "
        "fitted to min_dist and spread.",
        changes=True,
        umap="b",
        gt=0.0,
    )
    negative_sample_rate: float = setting(
        5.0,
        "Random rows that push a row away for every two samples of its edges: umap-learn's balance, where a sampled "
        "edge pulls both its ends and one of them is pushed. Larger: stronger pushes, groups farther apart, more "
        "time.",
        changes=True,
        umap="negative_sample_rate",
        ge=0.0,
        le=1000.0,
    )
    repulsion_strength: float = setting(
        1.0,
        "Weight of the pushes against the pulls. Larger: rows and groups lie farther apart.",
        changes=True,
        umap="repulsion_strength",
        ge=0.0,
    )
    exchange_every: int = setting(
        1,
        "Epochs that each shard goes on alone before it sees where the rows of others have gone. Larger: less to read "
        "and write, for slow networks and disks, and a somewhat worse map, which also depends on graph.shard_rows. "
        "Above 1, mode must not be host.",
        changes=True,
        ge=1,
        le=1000,
    )
    least_fall: float = setting(
        0.0,
        "Ends the layout early, once the loss falls by a smaller share of itself in a tenth of the epochs. Larger: it "
        "ends sooner; 0: after n_epochs.",
        changes=True,
        ge=0.0,
        lt=1.0,
    )
    checkpoint_every: int = setting(
        50,
        "Epochs between checkpoints that survive a power cut. A killed run repeats up to so many on one host, one "
        "round otherwise. Larger: fewer objects, more to do again.",
        changes=False,
        ge=1,
    )
    mode: Literal["auto", "host", "rounds"] = setting(
        "auto",
        "host: one task lays out all rows and needs memory for the whole graph; rounds: an epoch is a round of tasks, "
        "of some shards each; auto: host where a worker's memory holds it and exchange_every is 1.",
        changes=False,
    )

    @model_validator(mode="after")
    def _consistent(self) -> LayoutConfig:
        if self.min_dist > self.spread:
            raise ValueError(f"min_dist ({self.min_dist}) must not exceed spread ({self.spread})")
        if (self.a is None) != (self.b is None):
            raise ValueError("give both a and b, or neither")
        if self.exchange_every > 1 and self.mode == "host":
            raise ValueError("exchange_every > 1 goes with rounds of shards: set mode to auto or rounds")
        return self


class AuditConfig(Section):
    """The audit of the lists, before and after each repair: some rows, the queries, are searched exactly."""

    queries: int = setting(
        1000,
        "Rows searched exactly in each audit. Larger: narrower intervals, more time; 0: no recall, no repairs, and no "
        "quality of the map.",
        changes="where it decides whether lists are repaired",
        ge=0,
        le=100_000,
    )


class QualityConfig(Section):
    """The quality of the map, measured on the queries of the audit."""

    queries: int | None = setting(
        None,
        "How many of the audit's queries the map is measured on, evenly spread; null: all. Trustworthiness takes at "
        "most 300 of them. Smaller: wider intervals, less time; 0: neither trustworthiness nor kept neighbours.",
        changes=False,
        ge=0,
    )

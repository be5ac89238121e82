"""The configuration: one frozen, validated object, and what of it a run's answer depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from dumap.config.cluster import ClusterConfig
from dumap.config.input import InputConfig
from dumap.config.sections import (
    AuditConfig,
    CellsConfig,
    GraphConfig,
    LayoutConfig,
    NeighborsConfig,
    QualityConfig,
    StartConfig,
)
from dumap.config.setting import Bytes, Location, Section, setting
from dumap.config.values import SecretDict, shorten


def _options(value: Any) -> SecretDict:
    if not isinstance(value, Mapping):
        raise ValueError("write the service's options as keys and values, such as {endpoint: ..., region: ...}")
    kinds = (str, bool, int)
    odd = [str(name) for name, one in value.items() if not isinstance(name, str) or not isinstance(one, kinds)]
    if odd:
        raise ValueError(f"options are texts, numbers, true or false; {shorten(', '.join(odd))} is not")
    return SecretDict({name: one if isinstance(one, bool) else str(one) for name, one in value.items()})


class Config(Section):
    """All that a run is told: see the descriptions of its fields, or `dumap config`."""

    input: InputConfig = Field(description=InputConfig.__doc__)
    output: Location = setting(
        ...,
        "The run: a path or a URL. Either nothing is there yet, or a run to go on with.",
        changes=False,
        example="RUN.zarr",
    )
    seed: int = setting(
        42,
        "Seed of every random choice. Another gives another map, as good.",
        changes=True,
        umap="random_state",
        ge=0,
        lt=2**63,
    )
    task_memory: Bytes = setting(
        512 * 2**20,
        "What a task may take on top of the interpreter, such as 512MiB; cells are cut by it. Larger: fewer tasks, "
        "larger cells in which neighbours are truer, and workers with more memory.",
        changes=True,
    )
    storage: Annotated[Any, AfterValidator(_options)] = setting(
        SecretDict(),
        "Options of the service behind URLs, such as {endpoint: ..., access_key_id: ..., secret_access_key: ...}, by "
        "the names that obstore has for them. They go to the workers, and into no log and no run; what is left out is "
        "read from the environment.",
        changes=False,
        exclude=True,
        repr=False,
    )
    work: Location | None = setting(
        None,
        "Where all but the results is made and kept: a path or a URL, such as a folder of a fast disk that all workers "
        "see, beside an output in a bucket. The results are copied to the output at the end, which names this place; "
        "it has to stay. null: the output's own folder _dumap.",
        changes=False,
    )
    keep: Literal["results", "model", "all"] = setting(
        "model",
        "What a finished run holds beside embedding and status. model: the tree, neighbours, graph and layout, which "
        "another layout of the same rows needs; results: facts alone; all: also what stages hand to one another, "
        "such as the vectors sorted by cell.",
        changes=False,
    )
    neighbors: NeighborsConfig = Field(NeighborsConfig(), description=NeighborsConfig.__doc__)
    cells: CellsConfig = Field(CellsConfig(), description=CellsConfig.__doc__)
    audit: AuditConfig = Field(AuditConfig(), description=AuditConfig.__doc__)
    graph: GraphConfig = Field(GraphConfig(), description=GraphConfig.__doc__)
    start: StartConfig = Field(StartConfig(), description=StartConfig.__doc__)
    layout: LayoutConfig = Field(LayoutConfig(), description=LayoutConfig.__doc__)
    quality: QualityConfig = Field(QualityConfig(), description=QualityConfig.__doc__)
    cluster: ClusterConfig = Field(ClusterConfig(), description=ClusterConfig.__doc__)

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.input.unique and self.neighbors.precomputed is not None:
            raise ValueError(
                "input.unique = true does not go with neighbors.precomputed, whose lists are of all rows: "
                "set input.unique=false, or neighbors.precomputed=null to have the distinct rows searched"
            )
        return self

    @property
    def layout_seed(self) -> int:
        """The seed of start and layout."""
        return self.seed if self.layout.seed is None else self.layout.seed

    def parameters(self) -> dict[str, Any]:
        """Return what the answer depends on, beside the input's data.

        `input.nonfinite` and `input.missing` are left out: where they matter, one of their two values is an error.
        `audit.queries` is there: the rows that it chooses decide whether lists are repaired.
        Where neighbours are given it says so, but not where they lie, and leaves out `cells`, which is not used then.
        """
        values = self.model_dump(mode="json", exclude={"output", "cluster", "input", "keep", "quality", "work"})
        for where in ("checkpoint_every", "mode"):
            del values["layout"][where]
        if self.neighbors.search_k == self.neighbors.graph_k:
            del values["neighbors"]["width"]
        if self.neighbors.precomputed is None:
            del values["neighbors"]["precomputed"]
        else:
            values["neighbors"]["precomputed"] = True
            del values["cells"]
        return {"input": {"unique": self.input.unique}, **values}

    def digest(self) -> str:
        """Name the parameters."""
        return hashlib.sha256(json.dumps(self.parameters(), sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe where two sets of parameters differ, one line a key."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping) and name != "metric_kwds":
            lines += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before!r} -> {after!r}")
    return lines

"""The configuration, one frozen and validated object, and the parameters on which the bytes of a run depend."""

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


def _validate_storage_options(value: Any) -> SecretDict:
    """Validate the options of a service."""
    if not isinstance(value, Mapping):
        raise ValueError("write the service's options as keys and values, such as {endpoint: ..., region: ...}")
    allowed_types = (str, bool, int)
    invalid_names = [
        str(name) for name, item in value.items() if not isinstance(name, str) or not isinstance(item, allowed_types)
    ]
    if invalid_names:
        raise ValueError(f"options are texts, numbers, true or false; {shorten(', '.join(invalid_names))} is not")
    return SecretDict({name: item if isinstance(item, bool) else str(item) for name, item in value.items()})


class Config(Section):
    """The configuration of a run: see the descriptions of its fields, or `dumap config`."""

    input: InputConfig = Field(description=InputConfig.__doc__)
    output: Location = setting(
        ...,
        "The run: a path or a URL. The location must not exist yet, or hold a run to continue.",
        changes=False,
        example="RUN.zarr",
    )
    seed: int = setting(
        42,
        "Seed of all random numbers. Another seed gives another map of equal quality.",
        changes=True,
        umap="random_state",
        ge=0,
        lt=2**63,
    )
    task_memory: Bytes = setting(
        512 * 2**20,
        "Memory that a task may take in addition to the interpreter, such as 512MiB; it decides the size of cells. "
        "Larger: fewer tasks, larger cells with higher recall, and workers that need more memory.",
        changes=True,
    )
    storage: Annotated[Any, AfterValidator(_validate_storage_options)] = setting(
        SecretDict(),
        "Options of the service behind URLs, such as {endpoint: ..., access_key_id: ..., secret_access_key: ...}, with "
        "obstore's names. They are sent to the workers, but written to no log and no run. Other options are read from "
        "the environment.",
        changes=False,
        exclude=True,
        repr=False,
    )
    work: Location | None = setting(
        None,
        "The work place: a path or a URL for everything but the results, such as a folder on a fast disk that all "
        "workers see, for an output in a bucket. At the end the results are copied to the output, which names the work "
        "place; do not delete it. null: the output's own folder _dumap.",
        changes=False,
    )
    keep: Literal["results", "model", "all"] = setting(
        "model",
        "What a finished run holds in addition to embedding and status. model: the tree, neighbours, graph and layout, "
        "which another layout of the same rows needs; results: only facts; all: also parts that only later stages of "
        "the run read, such as the vectors sorted by cell.",
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
    def _check_consistency(self) -> Config:
        """Refuse settings of different sections that contradict one another."""
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
        """Return the settings on which the bytes of a run depend, in addition to its data.

        `input.nonfinite` and `input.missing` are left out: if they matter, one of their two values is an error.
        `audit.queries` is included: the rows that it chooses decide whether lists are repaired.
        With given neighbours, `precomputed` is True instead of their location, and `cells`, which is not used, is left
        out.
        """
        values = self.model_dump(mode="json", exclude={"output", "cluster", "input", "keep", "quality", "work"})
        for name in ("checkpoint_every", "mode"):
            del values["layout"][name]
        if self.neighbors.search_k == self.neighbors.graph_k:
            del values["neighbors"]["width"]
        if self.neighbors.precomputed is None:
            del values["neighbors"]["precomputed"]
        else:
            values["neighbors"]["precomputed"] = True
            del values["cells"]
        return {"input": {"unique": self.input.unique}, **values}

    def digest(self) -> str:
        """Return the digest of the parameters."""
        return hashlib.sha256(json.dumps(self.parameters(), sort_keys=True).encode()).hexdigest()


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe the differences between two sets of parameters, one line for each key."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping) and name != "metric_kwds":
            lines += describe_differences(before, after, f"{prefix}{name}.")
        elif before != after:
            lines.append(f"{prefix}{name}: {before!r} -> {after!r}")
    return lines

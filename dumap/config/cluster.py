"""The section `cluster` of the configuration: where a run runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from dumap.config.setting import Bytes, Location, Section, setting
from dumap.config.values import FrozenDict, safe_repr, shorten

CLUSTER_ONLY_SETTINGS = ("scheduler", "scheduler_file", "workers", "resources", "allow_workers")
"""Settings that the local engine refuses, since they belong to a cluster."""


def _validate_resources(value: Any) -> FrozenDict:
    """Validate amounts of resources."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("write names and amounts, such as {memory: 2}")
    for name, amount in value.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount < 1e300:
            raise ValueError(f"{shorten(name)}: an amount is a number above 0")
    return FrozenDict(value)


def _validate_worker_names(value: Any) -> tuple[str, ...]:
    """Validate names of workers; a name of digits only may be written as a number."""
    if not isinstance(value, list | tuple) or not all(
        isinstance(name, str | int) and not isinstance(name, bool) and name != "" for name in value
    ):
        raise ValueError("write a list of addresses, hosts or names of workers")
    return tuple(map(str, value))


class ClusterConfig(Section):
    """Where the run runs; the results do not depend on it."""

    engine: Literal["auto", "local", "dask"] = setting(
        "auto",
        "What runs the tasks: local, threads of this process; dask, a cluster; auto, local if no cluster is asked for, "
        "the work is small and memory suffices.",
        changes=False,
    )
    workers: int | None = setting(
        None,
        "Worker processes of the embedded cluster. Larger: less time, up to the number of cores, and more memory. "
        "Refused together with a scheduler. null: as many as cores and memory allow.",
        changes=False,
        ge=1,
    )
    memory_limit: Bytes | None = setting(
        None,
        "Memory of each worker of the embedded cluster, such as 4GiB; with engine local, the memory of the interpreter "
        "and one task. Refused together with a scheduler. null: an equal share of the free memory.",
        changes=False,
    )
    scheduler: Location | None = setting(
        None,
        "The address of a Dask scheduler, such as tcp://host:8786. null: the scheduler that Dask's own configuration "
        "names, else an embedded cluster.",
        changes=False,
    )
    scheduler_file: Location | None = setting(
        None, "The file in which a Dask scheduler wrote its address. null: none.", changes=False
    )
    timeout: float = setting(
        60.0,
        "Seconds to wait for a scheduler that does not answer before the run ends. Ignored by engine local.",
        changes=False,
        gt=0.0,
    )
    worker_timeout: float = setting(
        600.0,
        "Seconds to wait for a worker that is fit for the run before the run ends. Ignored by engine local.",
        changes=False,
        gt=0.0,
    )

    resources: Annotated[Any, AfterValidator(_validate_resources)] = setting(
        FrozenDict(),
        "Amounts of Dask's worker resources that each task reserves while it runs, such as {memory: 2}. Only workers "
        "with these resources are used, and each runs as many tasks as its amounts suffice for. Refused by an embedded "
        "cluster.",
        changes=False,
    )
    allow_workers: Annotated[Any, AfterValidator(_validate_worker_names)] = setting(
        (),
        "The workers that may be used, by address, host or name, such as [node1, tcp://10.0.0.2:4000]. Empty: all. "
        "Refused by an embedded cluster.",
        changes=False,
    )
    priority: int = setting(
        0,
        "The priority of the run's tasks on the Dask cluster. Larger: they run before tasks of other programs. Several "
        "runs of dumap on one cluster take turns, between this priority and the one below. Ignored by engine local.",
        changes=False,
    )
    task_timeout: float | None = setting(
        None,
        "A task that reports no progress for so many seconds counts as stuck. On a cluster its worker is left out, and "
        "the part is sent to another worker; the run ends when a part is stuck for the third time, or if two copies of "
        "its task may not run at once. Engine local ends the run at once. Larger: longer waits; too small: an error if "
        "tasks are slow. null: no limit.",
        changes=False,
        gt=0.0,
    )
    report: Location | None = setting(
        None,
        "The HTML file for Dask's performance report of the run: its tasks, and how busy workers were. Needs bokeh and "
        "a cluster; with engine auto the run uses a cluster. null: no report.",
        changes=False,
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> ClusterConfig:
        """Refuse settings that would be ignored."""
        scheduler_settings = _describe_given(self, "scheduler", "scheduler_file")
        if len(scheduler_settings) > 1:
            raise ValueError(
                f"{' and '.join(scheduler_settings)} name a scheduler each: give one, set the other to null"
            )
        if self.engine == "local" and self.report is not None:
            raise ValueError(
                f"report = {safe_repr(self.report)} is Dask's, and engine = 'local' has none: leave the report out, "
                f"or set engine to dask"
            )
        if self.engine == "local" and (cluster_settings := _describe_given(self, *CLUSTER_ONLY_SETTINGS)):
            raise ValueError(
                f"engine = 'local' runs in this process and needs no cluster: leave out "
                f"{' and '.join(cluster_settings)}, or set engine to auto or dask"
            )
        embedded_settings = _describe_given(self, "workers", "memory_limit")
        if scheduler_settings and embedded_settings:
            raise ValueError(
                f"{' and '.join(embedded_settings)} would be of an embedded cluster, but {scheduler_settings[0]} names "
                f"another, whose workers are as they are: leave out the one or the other, or set it to null"
            )
        return self


def _describe_given(section: Section, *names: str) -> list[str]:
    """Return the settings among `names` that are set, each as a text."""
    return [f"{name} = {safe_repr(value)}" for name in names if (value := getattr(section, name)) not in (None, {}, ())]

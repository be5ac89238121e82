"""The section of the configuration that says where a run runs."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from dumap.config.setting import Bytes, Location, Section, setting
from dumap.config.values import show


class ClusterConfig(Section):
    """Where the run runs; no answer depends on it."""

    engine: Literal["auto", "local", "dask"] = setting(
        "auto",
        "What runs the tasks: local, threads of this process; dask, a cluster; auto, local where no cluster is asked "
        "for, the work is small and memory suffices.",
        changes=False,
    )
    workers: int | None = setting(
        None,
        "Worker processes of the embedded cluster. Larger: less time, as long as there are cores, and more memory. "
        "Refused beside a scheduler. null: as many as cores and memory allow.",
        changes=False,
        ge=1,
    )
    memory_limit: Bytes | None = setting(
        None,
        "Memory of each worker of the embedded cluster, such as 4GiB; with engine local, what the interpreter and one "
        "task may take. Refused beside a scheduler. null: an equal share of what is there.",
        changes=False,
    )
    scheduler: Location | None = setting(
        None,
        "The address of a Dask scheduler, such as tcp://host:8786. null: the one that Dask's own configuration names, "
        "else an embedded cluster.",
        changes=False,
    )
    scheduler_file: Location | None = setting(
        None, "The file in which a Dask scheduler wrote its address. null: none.", changes=False
    )
    timeout: float = setting(
        60.0,
        "Seconds to wait for a scheduler that does not answer, then the run ends. Ignored by engine local.",
        changes=False,
        gt=0.0,
    )
    worker_timeout: float = setting(
        600.0,
        "Seconds to wait for a worker that is fit for the run, then it ends. Ignored by engine local.",
        changes=False,
        gt=0.0,
    )

    report: Location | None = setting(
        None,
        "The file, in HTML, into which Dask writes a performance report of the run: its tasks, and how busy workers "
        "were. Needs bokeh, and a cluster, which it asks for. null: none.",
        changes=False,
    )

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        """Refuse what would be ignored."""
        schedulers = _given(self, "scheduler", "scheduler_file")
        if len(schedulers) > 1:
            raise ValueError(f"{' and '.join(schedulers)} name a scheduler each: give one, set the other to null")
        if self.engine == "local" and self.report is not None:
            raise ValueError(
                f"report = {show(self.report)} is Dask's, and engine = 'local' has none: leave the report out, "
                f"or set engine to dask"
            )
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

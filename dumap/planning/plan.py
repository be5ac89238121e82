"""Plans: the memory, disk and time that a run is projected to take, and checks against the available resources."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dumap.config import Config, format_bytes
from dumap.errors import BudgetError
from dumap.kernels.neighbors import DIM_SECONDS, PAIR_SECONDS, max_exhaustive_rows
from dumap.kernels.vectors import EUCLIDEAN_ORDER_METRICS
from dumap.planning.budget import PAUSE_FRACTION, process_bytes
from dumap.planning.geometry import Geometry
from dumap.planning.steps import Step

RUN_SECONDS, SEARCH_SECONDS, EXTRA_DIMS, EPOCH_SECONDS = 3.0, 4e-7, 50, 6e-8
"""Seconds that one core takes: for any run, for each row times its dims + EXTRA_DIMS, and for each row, epoch and
neighbor (measured, without the time in which threads wait for one another in small stages)."""
MIN_TIME_FACTOR, MAX_TIME_FACTOR = 0.6, 2.0
"""The least and the greatest multiple of the estimate that a run may take. Runs of 10,000 to 10 million rows on two
threads, with and without AVX-512 VNNI, took 0.72 to 1.7 times the estimate (measured)."""


@dataclass(frozen=True)
class StageProjection:
    """A stage's projection of what it will take.

    Attributes
    ----------
    steps : tuple of Step
    shuffled_bytes, disk_bytes : int
        Bytes of arrays that tasks read, of parts and of the input, and bytes of the stage's parts on disk when it ends,
        temporary parts included.
    task_bytes : float
        Bytes of the largest task, without those that the process holds without tasks.
    temporary_bytes : mapping of str to int
        The share of `disk_bytes` that is deleted later, by kind of part.
    replaced_bytes : int
        Bytes of parts that are written and removed while the stage runs.
    """

    steps: tuple[Step, ...]
    shuffled_bytes: int
    disk_bytes: int
    task_bytes: float
    temporary_bytes: Mapping[str, int] = field(default_factory=dict)
    replaced_bytes: int = 0

    @property
    def tasks(self) -> int:
        """The tasks of all steps."""
        return math.ceil(sum(step.tasks for step in self.steps))


@dataclass(frozen=True)
class StagePlan:
    """The projection of one stage in a plan.

    Attributes
    ----------
    name : str
    tasks : int
    reads, writes : int
        Requests of the tasks and of the driver, as a bucket bills them: see `dumap.planning.steps`.
    shuffled_bytes, written_bytes : int
        Bytes that are read, of the run and of the input, and bytes that are written.
    disk_bytes, peak_bytes : int
        As in `StageProjection`; and the peak memory of a worker with one thread.
    held_bytes : int
        Bytes of this peak that a worker holds without any task.
    temporary : tuple of (int, frozenset of str)
        Bytes of the parts that are deleted, each with the stages that must be done first.
    """

    name: str
    tasks: int
    reads: int
    writes: int
    shuffled_bytes: int
    written_bytes: int
    disk_bytes: int
    peak_bytes: int
    held_bytes: int
    temporary: tuple[tuple[int, frozenset[str]], ...] = ()

    def disk_after(self, done: Collection[str]) -> int:
        """Return the bytes of this stage's parts on disk once the stages in `done` are done."""
        return self.disk_bytes - sum(size for size, readers in self.temporary if readers.issubset(done))

    def process_bytes(self, threads: int) -> int:
        """Return the peak memory of a worker with `threads` threads, each with a task."""
        return process_bytes(self.peak_bytes, threads, self.held_bytes)


@dataclass(frozen=True)
class Plan:
    """A run's geometry, its stages, and the estimated time of one core for all of them.

    Compiling is not counted. Stages that are inherited from a parent are only named.

    Examples
    --------
    >>> import dumap
    >>> planned = dumap.plan("DATA.zarr", output="NEW.zarr")
    >>> planned.peak_bytes < 2**30, len(planned.as_dict()["stages"])
    (True, 10)
    """

    geometry: Geometry
    stages: tuple[StagePlan, ...]
    core_seconds: float = 0.0
    inherited: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The greatest peak of all stages."""
        return max(stage.peak_bytes for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        """The bytes of all parts of all stages, temporary ones included."""
        return sum(stage.disk_bytes for stage in self.stages)

    @property
    def peak_disk_bytes(self) -> int:
        """The most bytes on disk at once."""
        return self.disk_needed(set())

    @property
    def final_disk_bytes(self) -> int:
        """The bytes of the finished run on disk."""
        return self._disk_after({stage.name for stage in self.stages})

    def _disk_after(self, done: Collection[str]) -> int:
        return sum(stage.disk_after(done) for stage in self.stages if stage.name in done)

    def disk_needed(self, done: Collection[str]) -> int:
        """Return how many bytes may be on disk at once beyond those of the stages in `done`."""
        ended_stages, max_bytes = set(done), 0
        for stage in self.stages:
            if stage.name not in ended_stages:
                max_bytes = max(max_bytes, self._disk_after(ended_stages) + stage.disk_bytes)
                ended_stages.add(stage.name)
        return max(0, max_bytes - self._disk_after(done))

    def with_task(self, name: str, task_bytes: int) -> Plan:
        """Return the plan in which a stage's largest task takes at least `task_bytes`."""
        peaks = {stage: max(stage.peak_bytes, stage.held_bytes + task_bytes) for stage in self.stages}
        stages = (replace(s, peak_bytes=peak) if s.name == name else s for s, peak in peaks.items())
        return replace(self, stages=tuple(stages))

    def stage(self, name: str) -> StagePlan:
        """Return a stage's plan."""
        return next(stage for stage in self.stages if stage.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        sizes = asdict(self.geometry)
        return {
            **{
                name: size for name, size in sizes.items() if not name.startswith("largest_")
            },  # sizes that are not known yet
            "peak_bytes": self.peak_bytes,
            "disk_bytes": self.disk_bytes,
            "peak_disk_bytes": self.peak_disk_bytes,
            "final_disk_bytes": self.final_disk_bytes,
            "core_seconds": round(self.core_seconds, 1),
            "core_seconds_range": [round(seconds, 1) for seconds in self.seconds(1)],
            "stages": [
                {name: value for name, value in asdict(stage).items() if name != "temporary"} for stage in self.stages
            ],
            "inherited": list(self.inherited),
        }

    def seconds(self, threads: int) -> tuple[float, float]:
        """Return the least and the most seconds that a run may take, without starting workers and compiling."""
        return MIN_TIME_FACTOR * self.core_seconds / threads, MAX_TIME_FACTOR * self.core_seconds / threads

    def __str__(self) -> str:
        return format_plan(self, 1)

    def check(
        self,
        worker_memory: int,
        free_disk: int | None,
        threads: int = 1,
        done: Collection[str] = (),
        written: int = 0,
    ) -> None:
        """Refuse a plan that does not fit. The error says what would fit.

        Parameters
        ----------
        worker_memory : int
            The smallest worker's memory limit, reduced to that of a worker with one thread; 0 is no limit.
        free_disk : int or None
            Free bytes at the output, or None if they are not known.
        threads : int
            Threads of a worker. Each needs memory for a task.
        done : collection of str
            The stages that are done.
        written : int
            Bytes on disk of stages that are not done.
        """
        needed_bytes = math.ceil(self.peak_bytes / PAUSE_FRACTION)
        if worker_memory and needed_bytes > worker_memory:
            stage = max(self.stages, key=lambda s: s.peak_bytes)
            limit_mib = math.ceil(process_bytes(self.peak_bytes, threads) / PAUSE_FRACTION / 2**20)
            raise BudgetError(
                f"stage {stage.name} is projected to peak at {format_bytes(stage.peak_bytes)} a worker, but the "
                f"smallest worker has {format_bytes(worker_memory)}, of which {PAUSE_FRACTION:.0%} may be used: give "
                f"workers --memory-limit {limit_mib}MiB or more" + f", for {threads} threads each" * (threads > 1)
            )
        remaining_bytes = max(0, self.disk_needed(done) - written)
        if free_disk is not None and remaining_bytes > free_disk:
            subject, advice = (
                ("what is left of the run", "what is committed is kept")
                if done or written
                else ("the run", "or name another output")
            )
            raise BudgetError(
                f"{subject} is projected to take {format_bytes(remaining_bytes)} on disk, but the output has "
                f"{format_bytes(free_disk)} free: make room, {advice}"
            )


def estimate_core_seconds(
    config: Config, geometry: Geometry, stages: Collection[str] = ("neighbors", "layout")
) -> float:
    """Estimate the seconds that one core takes for stages, by rates measured on processors of 2026."""
    k, rows, metric = config.neighbors.n_neighbors, geometry.rows, config.neighbors.metric
    search_seconds = rows * (geometry.dims + EXTRA_DIMS) * SEARCH_SECONDS
    if geometry.columns:
        search_seconds = 0.0
    elif metric not in EUCLIDEAN_ORDER_METRICS:  # the metric's own function computes each pair
        search_seconds += (
            rows * min(rows, max_exhaustive_rows(geometry.dims)) * (PAIR_SECONDS + DIM_SECONDS * geometry.dims)
        )
    layout_seconds = rows * geometry.n_epochs * k * EPOCH_SECONDS
    return RUN_SECONDS + search_seconds * ("neighbors" in stages) + layout_seconds * ("layout" in stages)


def format_seconds(seconds: float) -> str:
    """Format a duration with two digits: '40 s', '12 min', '3.5 h'."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 99 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 99 else f"{seconds:.0f} s"


def format_plan(plan: Plan, threads: int) -> str:
    """Format a plan as text, with the time on `threads` threads.

    Parameters
    ----------
    plan : Plan
    threads : int
        Threads of all workers together.
    """
    geometry = plan.geometry
    lists_text = f" given with {geometry.columns} neighbors each" if geometry.columns else ""
    shape_text = f"{geometry.dims} dims"
    if geometry.is_sparse:
        shape_text = f"{geometry.source_dims} columns, {geometry.entries} entries each in the mean"
    lines = [
        f"{geometry.rows} rows x {shape_text}: {geometry.blocks} blocks of {geometry.block_rows} rows, "
        f"{geometry.cells} cells of up to {geometry.cell_rows} rows{lists_text}, {geometry.shards} shards of "
        f"{geometry.shard_rows} rows, {geometry.n_epochs} epochs",
        f"{'stage':<10} {'tasks':>7} {'reads':>9} {'writes':>9} {'shuffled':>10} {'written':>10} {'disk':>10} "
        f"{'peak a worker':>14}",
    ]
    for stage in plan.stages:
        lines.append(
            f"{stage.name:<10} {stage.tasks:>7} {stage.reads:>9} {stage.writes:>9} "
            f"{format_bytes(stage.shuffled_bytes):>10} {format_bytes(stage.written_bytes):>10} "
            f"{format_bytes(stage.disk_bytes):>10} {format_bytes(stage.peak_bytes):>14}"
        )
    if plan.inherited:
        lines.append(f"read through the parent: {', '.join(plan.inherited)}")
    lines.append(
        f"disk {format_bytes(plan.peak_disk_bytes)} at the most, {format_bytes(plan.final_disk_bytes)} once "
        f"done; workers of "
        f"{format_bytes(plan.peak_bytes / PAUSE_FRACTION)} or more are needed"
    )
    shortest, longest = map(format_seconds, plan.seconds(threads))
    lines.append(
        f"time {shortest} to {longest} on {threads} thread{'s' * (threads > 1)} that are kept busy, by rates measured "
        f"on processors of 2026; starting workers, and compiling at first, come on top"
    )
    return "\n".join(lines)

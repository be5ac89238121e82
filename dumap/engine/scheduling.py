"""How a run shares a cluster with other programs: the workers it may use, and the priority of its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dumap.config import ClusterConfig


@dataclass(frozen=True)
class SchedulingOptions:
    """The settings that are sent to Dask with every task, and the time limit of tasks.

    Attributes
    ----------
    resources : mapping
        The amounts of its worker's resources that a task reserves while it runs.
    allow_workers : tuple of str
        Addresses, hosts or names of the workers that may be used; empty for all workers.
    priority : int
        Tasks of a higher priority run first.
    task_timeout : float, optional
        A task that reports no progress for this many seconds counts as stuck.
    """

    resources: Mapping[str, float] = field(default_factory=dict)
    allow_workers: tuple[str, ...] = ()
    priority: int = 0
    task_timeout: float | None = None

    @classmethod
    def from_config(cls, cluster: ClusterConfig) -> SchedulingOptions:
        """Return the options of a configuration."""
        return cls(cluster.resources, cluster.allow_workers, cluster.priority, cluster.task_timeout)

    @property
    def restricts_workers(self) -> bool:
        """Whether the settings exclude some workers."""
        return bool(self.resources or self.allow_workers)

    def allows_worker(self, address: str, identity: Mapping[str, Any]) -> bool:
        """Return whether a worker may be used.

        Parameters
        ----------
        address : str
        identity : mapping
            The worker's 'name', 'host' and 'resources', from the scheduler.
        """
        names = {address, address.split("://")[-1], str(identity.get("name")), str(identity.get("host"))}
        available = identity.get("resources") or {}
        has_resources = all(available.get(name, 0) >= needed for name, needed in self.resources.items())
        return has_resources and (not self.allow_workers or not names.isdisjoint(self.allow_workers))

    def describe(self) -> str:
        """Return the settings that choose workers, as a text; empty if all workers may be used."""
        settings = [f"cluster.resources {dict(self.resources)}"] if self.resources else []
        settings += [f"cluster.allow_workers {list(self.allow_workers)}"] if self.allow_workers else []
        return " and ".join(settings)


DEFAULT_SCHEDULING = SchedulingOptions()
"""No restrictions: all workers may be used."""

"""How a run shares a cluster with others: which workers it may use, and in what order its tasks come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dumap.config import ClusterConfig


@dataclass(frozen=True)
class Sharing:
    """What is handed on to Dask with every task.

    Attributes
    ----------
    resources : mapping
        What a task holds of its worker's resources while it runs.
    allow_workers : tuple of str
        Addresses, hosts or names of workers that may be used; none: all.
    priority : int
        Tasks of a higher one come first.
    task_timeout : float, optional
        Seconds after which a part that tells nothing of its progress is taken for stuck.
    """

    resources: Mapping[str, float] = field(default_factory=dict)
    allow_workers: tuple[str, ...] = ()
    priority: int = 0
    task_timeout: float | None = None

    @classmethod
    def of(cls, cluster: ClusterConfig) -> Sharing:
        """Return what a configuration says."""
        return cls(cluster.resources, cluster.allow_workers, cluster.priority, cluster.task_timeout)

    @property
    def chooses(self) -> bool:
        """Whether some workers may not be used."""
        return bool(self.resources or self.allow_workers)

    def admits(self, address: str, told: Mapping[str, Any]) -> bool:
        """Return whether a worker may be used.

        Parameters
        ----------
        address : str
        told : mapping
            What the scheduler tells of it: its 'name', 'host' and 'resources'.
        """
        names = {address, address.split("://")[-1], str(told.get("name")), str(told.get("host"))}
        has = told.get("resources") or {}
        enough = all(has.get(name, 0) >= amount for name, amount in self.resources.items())
        return enough and (not self.allow_workers or not names.isdisjoint(self.allow_workers))

    def described(self) -> str:
        """Say which workers may be used."""
        wanted = [f"cluster.resources {dict(self.resources)}"] if self.resources else []
        wanted += [f"cluster.allow_workers {list(self.allow_workers)}"] if self.allow_workers else []
        return " and ".join(wanted)


ALONE = Sharing()
"""A cluster that is shared with nobody."""

"""The workers of a cluster, and which of them may be sent tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dumap.engine.scheduling import UNRESTRICTED, Sharing
from dumap.errors import ClusterError

REFRESH_SECONDS = 1.0
"""Seconds between two questions to the scheduler about its workers, at least."""
LEAST_WINDOW = 64
"""The smallest window while there are workers: an adaptive cluster grows only if parts wait."""
WAKING = 2
"""The window while there is no worker, since all waiting parts would go to the first one."""


class ClusterView(Protocol):
    """The cluster as `Members` sees it."""

    @property
    def name(self) -> str:
        """The cluster's name."""

    @property
    def closed(self) -> bool:
        """Whether the connection to the cluster is lost for good."""

    def now(self) -> float:
        """Return the time of a monotonic clock, in seconds."""

    def threads(self) -> dict[str, int] | None:
        """Return the number of threads of each worker by address; None if the scheduler does not answer."""


def host_of(address: str) -> str:
    """Return the host in a worker's address: the text before the port, or before the process number of inproc."""
    return address.split("://")[-1].split("/")[0].rsplit(":", 1)[0]


class Members:
    """The present workers of a cluster, and what is known of them.

    Parameters
    ----------
    source : ClusterView
    timeout : float
        Seconds after which a silent scheduler counts as lost.
    worker_timeout : float
        Seconds after which a cluster without a fit worker is an error.
    note : callable
        Called once for each worker that is left out.
    sharing : Sharing
        Which workers of the cluster may be used.

    Attributes
    ----------
    present : dict
        The number of threads of each worker by address.
    unfit : set of str
        Present workers that are left out.
    proven : set of str
        Present workers that have passed the check of the requirements.
    left_out : dict
        Why each worker was left out, present or not, by address.
    last_left_out : float
        When a worker was last left out.
    """

    def __init__(
        self,
        source: ClusterView,
        timeout: float,
        worker_timeout: float,
        note: Callable[[str], None],
        sharing: Sharing = UNRESTRICTED,
    ) -> None:
        self._sharing = sharing
        self._source, self._timeout, self._worker_timeout, self._note = source, timeout, worker_timeout, note
        self.present: dict[str, int] = {}
        self.unfit: set[str] = set()
        self.proven: set[str] = set()
        self.left_out: dict[str, str] = {}
        self.last_left_out = float("-inf")
        self._asked = self._answered = self._last_fit = float("-inf")

    @property
    def fit(self) -> dict[str, int]:
        """The number of threads of each worker that is not known to be unfit."""
        return {address: threads for address, threads in self.present.items() if address not in self.unfit}

    @property
    def allowed(self) -> frozenset[str] | None:
        """The workers that may be sent tasks; None if all may, since Dask itself matches resources."""
        return frozenset(self.fit) if self.unfit or self._sharing.allow_workers else None

    @property
    def lacking(self) -> bool:
        """Whether only some workers may be sent tasks, and none of them is present."""
        return self.allowed is not None and not self.fit

    @property
    def threads(self) -> int:
        """The number of threads of all fit workers."""
        return sum(self.fit.values())

    @property
    def host_threads(self) -> int:
        """The number of threads of fit workers on the host with the most."""
        totals: dict[str, int] = {}
        for address, threads in self.fit.items():
            host = host_of(address)
            totals[host] = totals.get(host, 0) + threads
        return max(totals.values(), default=0)

    @property
    def window(self) -> int:
        """The largest number of parts in flight."""
        return max(2 * self.threads, LEAST_WINDOW) if self.threads else WAKING

    def reset_timeouts(self) -> None:
        """Restart the timeouts; called before the first refresh of a step."""
        self._answered = self._last_fit = self._source.now()
        self._asked = float("-inf")

    def refresh(self, names: Callable[[], str]) -> bool:
        """Ask the scheduler for its workers, unless it was just asked; return whether it was asked.

        Parameters
        ----------
        names : callable
            Returns the names of what is in flight, for errors.

        Raises
        ------
        ClusterError
            The scheduler has not answered for `timeout`, or no fit worker was present for `worker_timeout`.
        """
        now = self._source.now()
        if now - self._asked < REFRESH_SECONDS:
            return False
        self._asked = now
        present = self._source.threads()
        now = self._source.now()
        if present is None:
            if self._source.closed or now - self._answered > self._timeout:
                raise ClusterError(
                    f"{self._source.name} is lost: its scheduler has not answered for {self._timeout:.0f} s; "
                    f"on its way was {names()}"
                )
            return True
        self._answered, self.present = now, present
        self.unfit &= present.keys()
        self.proven &= present.keys()
        if self.fit:
            self._last_fit = now
        elif now - self._last_fit > self._worker_timeout:
            raise ClusterError(f"{self._source.name}: {self._missing()}; on its way was {names()}")
        return True

    def _missing(self) -> str:
        """Return the message for a cluster without a fit worker."""
        if not self.left_out and self._sharing.chooses:
            return (
                f"no worker of {self._sharing.described()} for {self._worker_timeout:.0f} s; start such workers, or "
                f"raise cluster.worker_timeout"
            )
        if not self.left_out:
            return f"no worker for {self._worker_timeout:.0f} s; start workers, or raise cluster.worker_timeout"
        others = "; ".join(f"{address}: {why}" for address, why in self.left_out.items())
        return (
            f"no fit worker for {self._worker_timeout:.0f} s; mend these, start others, or raise "
            f"cluster.worker_timeout. Left out: {others}"
        )

    def leave_out(self, address: str, reasons: Sequence[str]) -> None:
        """Send a worker no more tasks, and call `note` with the reasons if it is left out for the first time."""
        self.proven.discard(address)
        self.last_left_out = self._source.now()
        self.unfit.add(address)
        if address not in self.left_out:
            self.left_out[address] = ", ".join(reasons)
            self._note(f"worker {address} is left out of the run: {self.left_out[address]}")

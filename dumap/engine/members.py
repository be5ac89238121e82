"""The workers there are now, and which of them may take part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dumap.engine.sharing import ALONE, Sharing
from dumap.errors import ClusterError

REFRESH_SECONDS = 1.0
"""The workers are asked for at most once in this time."""
LEAST_WINDOW = 64
"""The least number of parts in flight: an adaptive cluster grows only if some parts wait."""
WAKING = 2
"""Parts in flight while there is no worker: all that wait then go to the first one."""


class ClusterView(Protocol):
    """What members are learnt from."""

    @property
    def name(self) -> str:
        """The cluster's name."""

    @property
    def closed(self) -> bool:
        """Whether the cluster is out of reach for good."""

    def now(self) -> float:
        """Return the time."""

    def threads(self) -> dict[str, int] | None:
        """Return the workers' threads, None where nobody answers."""


def host_of(address: str) -> str:
    """Return the host of a worker's address: what comes before the port, or before inproc's process and number."""
    return address.split("://")[-1].split("/")[0].rsplit(":", 1)[0]


class Members:
    """The workers of a cluster, as they come and go.

    Parameters
    ----------
    source : ClusterView
    timeout : float
        Seconds after which a silent scheduler is lost.
    worker_timeout : float
        Seconds for which no worker that is fit may be there.
    note : callable
        Told, once, of each worker that is left out.
    sharing : Sharing
        Which of the cluster's workers these are.
    """

    def __init__(
        self,
        source: ClusterView,
        timeout: float,
        worker_timeout: float,
        note: Callable[[str], None],
        sharing: Sharing = ALONE,
    ) -> None:
        self._sharing = sharing
        self._source, self._timeout, self._worker_timeout, self._note = source, timeout, worker_timeout, note
        self.present: dict[str, int] = {}
        self.unfit: set[str] = set()
        self.proven: set[str] = set()
        self.left_out: dict[str, str] = {}
        self.found_unfit = float("-inf")
        self._looked = self._heard = self._staffed = float("-inf")

    @property
    def fit(self) -> dict[str, int]:
        """The threads of those that are not known to be unfit."""
        return {address: threads for address, threads in self.present.items() if address not in self.unfit}

    @property
    def allowed(self) -> frozenset[str] | None:
        """Who may be sent tasks; None where that is anybody: resources are seen to by Dask."""
        return frozenset(self.fit) if self.unfit or self._sharing.allow_workers else None

    @property
    def lacking(self) -> bool:
        """Whether there is nobody who may be sent tasks, and what is sent to anybody might go astray."""
        return self.allowed is not None and not self.fit

    @property
    def threads(self) -> int:
        """The threads of those that are fit."""
        return sum(self.fit.values())

    @property
    def host_threads(self) -> int:
        """Those of the host that has most."""
        totals: dict[str, int] = {}
        for address, threads in self.fit.items():
            host = host_of(address)
            totals[host] = totals.get(host, 0) + threads
        return max(totals.values(), default=0)

    @property
    def window(self) -> int:
        """How many parts may be on their way."""
        return max(2 * self.threads, LEAST_WINDOW) if self.threads else WAKING

    def reset_timeouts(self) -> None:
        """Restart the timeouts, after a time without refreshes."""
        self._heard = self._staffed = self._source.now()
        self._looked = float("-inf")

    def refresh(self, names: Callable[[], str]) -> bool:
        """Ask for the workers, unless that was just done; return whether it was asked.

        Parameters
        ----------
        names : callable
            Names what is on its way, for errors.

        Raises
        ------
        ClusterError
            The scheduler, or all workers that are fit, have been gone for too long.
        """
        now = self._source.now()
        if now - self._looked < REFRESH_SECONDS:
            return False
        self._looked = now
        found = self._source.threads()
        now = self._source.now()
        if found is None:
            if self._source.closed or now - self._heard > self._timeout:
                raise ClusterError(
                    f"{self._source.name} is lost: its scheduler has not answered for {self._timeout:.0f} s; "
                    f"on its way was {names()}"
                )
            return True
        self._heard, self.present = now, found
        self.unfit &= found.keys()
        self.proven &= found.keys()
        if self.fit:
            self._staffed = now
        elif now - self._staffed > self._worker_timeout:
            raise ClusterError(f"{self._source.name}: {self._missing()}; on its way was {names()}")
        return True

    def _missing(self) -> str:
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
        """Send a worker nothing more, and say why, once."""
        self.proven.discard(address)
        self.found_unfit = self._source.now()
        self.unfit.add(address)
        if address not in self.left_out:
            self.left_out[address] = ", ".join(reasons)
            self._note(f"worker {address} is left out of the run: {self.left_out[address]}")

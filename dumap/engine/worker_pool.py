"""The workers of a cluster, and which of them may be sent tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from dumap.engine.scheduling import DEFAULT_SCHEDULING, SchedulingOptions
from dumap.errors import ClusterError

REFRESH_SECONDS = 1.0
"""Seconds between two questions to the scheduler about its workers, at least."""
MIN_IN_FLIGHT = 64
"""The smallest window while there are workers: an adaptive cluster grows only if parts wait."""
IN_FLIGHT_WITHOUT_WORKERS = 2
"""The window while there is no worker, since all waiting parts would go to the first one."""


class ClusterView(Protocol):
    """The cluster as `WorkerPool` sees it."""

    @property
    def name(self) -> str:
        """The cluster's name."""

    @property
    def is_closed(self) -> bool:
        """Whether the connection to the cluster is lost for good."""

    def now(self) -> float:
        """Return the time of a monotonic clock, in seconds."""

    def threads_by_worker(self) -> dict[str, int] | None:
        """Return the number of threads of each worker by address; None if the scheduler does not answer."""


def host_of(address: str) -> str:
    """Return the host in a worker's address: the text before the port, or before the process number of inproc."""
    return address.split("://")[-1].split("/")[0].rsplit(":", 1)[0]


class WorkerPool:
    """The present workers of a cluster, and what is known of them.

    Parameters
    ----------
    cluster : ClusterView
    timeout : float
        Seconds after which a silent scheduler counts as lost.
    worker_timeout : float
        Seconds after which a cluster without a fit worker is an error.
    log : callable
        Called once for each worker that is left out.
    scheduling : SchedulingOptions
        Which workers of the cluster may be used.

    Attributes
    ----------
    present_workers : dict
        The number of threads of each worker by address.
    unfit_workers : set of str
        Present workers that are left out.
    verified_workers : set of str
        Present workers that have passed the check of the requirements.
    exclusion_reasons : dict
        Why each worker was left out, present or not, by address.
    last_exclusion : float
        When a worker was last left out.
    """

    def __init__(
        self,
        cluster: ClusterView,
        timeout: float,
        worker_timeout: float,
        log: Callable[[str], None],
        scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
    ) -> None:
        self._scheduling = scheduling
        self._cluster, self._timeout, self._worker_timeout, self._log = cluster, timeout, worker_timeout, log
        self.present_workers: dict[str, int] = {}
        self.unfit_workers: set[str] = set()
        self.verified_workers: set[str] = set()
        self.exclusion_reasons: dict[str, str] = {}
        self.last_exclusion = float("-inf")
        self._last_question = self._last_answer = self._last_fit = float("-inf")

    @property
    def fit_workers(self) -> dict[str, int]:
        """The number of threads of each worker that is not known to be unfit."""
        return {
            address: threads for address, threads in self.present_workers.items() if address not in self.unfit_workers
        }

    @property
    def allowed_workers(self) -> frozenset[str] | None:
        """The workers that may be sent tasks; None if all may, since Dask itself matches resources."""
        return frozenset(self.fit_workers) if self.unfit_workers or self._scheduling.allow_workers else None

    @property
    def has_no_allowed_worker(self) -> bool:
        """Whether only some workers may be sent tasks, and none of them is present."""
        return self.allowed_workers is not None and not self.fit_workers

    @property
    def threads(self) -> int:
        """The number of threads of all fit workers."""
        return sum(self.fit_workers.values())

    @property
    def host_threads(self) -> int:
        """The number of threads of fit workers on the host with the most."""
        threads_by_host: dict[str, int] = {}
        for address, threads in self.fit_workers.items():
            host = host_of(address)
            threads_by_host[host] = threads_by_host.get(host, 0) + threads
        return max(threads_by_host.values(), default=0)

    @property
    def max_in_flight(self) -> int:
        """The largest number of parts in flight."""
        return max(2 * self.threads, MIN_IN_FLIGHT) if self.threads else IN_FLIGHT_WITHOUT_WORKERS

    def reset_timeouts(self) -> None:
        """Restart the timeouts; called before the first refresh of a step."""
        self._last_answer = self._last_fit = self._cluster.now()
        self._last_question = float("-inf")

    def refresh(self, describe_in_flight: Callable[[], str]) -> bool:
        """Ask the scheduler for its workers, unless it was just asked; return whether it was asked.

        Parameters
        ----------
        describe_in_flight : callable
            Returns the names of what is in flight, for errors.

        Raises
        ------
        ClusterError
            The scheduler has not answered for `timeout`, or no fit worker was present for `worker_timeout`.
        """
        now = self._cluster.now()
        if now - self._last_question < REFRESH_SECONDS:
            return False
        self._last_question = now
        present = self._cluster.threads_by_worker()
        now = self._cluster.now()
        if present is None:
            if self._cluster.is_closed or now - self._last_answer > self._timeout:
                raise ClusterError(
                    f"{self._cluster.name} is lost: its scheduler has not answered for {self._timeout:.0f} s; "
                    f"on its way was {describe_in_flight()}"
                )
            return True
        self._last_answer, self.present_workers = now, present
        self.unfit_workers &= present.keys()
        self.verified_workers &= present.keys()
        if self.fit_workers:
            self._last_fit = now
        elif now - self._last_fit > self._worker_timeout:
            raise ClusterError(
                f"{self._cluster.name}: {self._missing_workers_message()}; on its way was {describe_in_flight()}"
            )
        return True

    def _missing_workers_message(self) -> str:
        """Return the message for a cluster without a fit worker."""
        if not self.exclusion_reasons and self._scheduling.restricts_workers:
            return (
                f"no worker of {self._scheduling.describe()} for {self._worker_timeout:.0f} s; start such workers, or "
                f"raise cluster.worker_timeout"
            )
        if not self.exclusion_reasons:
            return f"no worker for {self._worker_timeout:.0f} s; start workers, or raise cluster.worker_timeout"
        descriptions = "; ".join(f"{address}: {reason}" for address, reason in self.exclusion_reasons.items())
        return (
            f"no fit worker for {self._worker_timeout:.0f} s; mend these, start others, or raise "
            f"cluster.worker_timeout. Left out: {descriptions}"
        )

    def exclude(self, address: str, reasons: Sequence[str]) -> None:
        """Send a worker no more tasks, and call `log` with the reasons if it is left out for the first time."""
        self.verified_workers.discard(address)
        self.last_exclusion = self._cluster.now()
        self.unfit_workers.add(address)
        if address not in self.exclusion_reasons:
            self.exclusion_reasons[address] = ", ".join(reasons)
            self._log(f"worker {address} is left out of the run: {self.exclusion_reasons[address]}")

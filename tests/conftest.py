"""Fixtures that tests share: digits, Zarr stores, runs, a cluster of two processes, the command line.

Also pytest's own hooks: options, shares, how tests are divided among processes, and which skips are allowed.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import processes
import pytest
import zarr
from distributed import Client, LocalCluster
from faults.catalogue import Collector
from hypothesis import settings as hypothesis_settings
from shares import parse_share, share_of
from skips import is_allowed
from sklearn.datasets import load_digits

from dumap.config import Config, load_config
from dumap.recipe.pipeline import run
from dumap.recipe.status import status
from dumap.show.export import export

QUICK_SETTINGS = {"layout.n_epochs": 20, "start.coarse_epochs": 20, "audit.queries": 0, "keep": "all"}
"""Settings of runs whose parts are inspected; their map does not matter."""
LOCAL_ENGINE = {"cluster.engine": "local"}
MEMORY_FOLDER = Path("/dev/shm")

hypothesis_settings.register_profile("dumap", deadline=None)  # a busy machine is no fault
hypothesis_settings.load_profile("dumap")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options: how many random kills and inputs to try, which share of the tests to run, whether skips fail."""
    parser.addoption("--kills", type=int, default=4, metavar="N", help="how often a run is killed at random [4]")
    parser.addoption("--inputs", type=int, default=30, metavar="N", help="random inputs that runs are tried on [30]")
    parser.addoption("--share", metavar="K/N", help="the K-th of N shares of the tests chosen, which together are all")
    parser.addoption("--strict-skips", action="store_true", help="fail on skips that tests/skips.py does not allow")


def pytest_configure(config: pytest.Config) -> None:
    """Check the option --share; collect which tests show which fault, before any test is deselected."""
    if (words := config.getoption("--share")) is not None:
        try:
            parse_share(words)
        except ValueError as error:
            raise pytest.UsageError(f"--share {error}") from None
    config.pluginmanager.register(Collector(), "catalogue")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` starts."""
    return processes.count_processes()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass on to the processes of xdist whether all tests are run."""
    node.workerinput["runs_all"] = processes.runs_all(node.config)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a file to one process, so that its fixtures are made once; files keep their order."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return processes.scope_of(super()._split_scope(nodeid))

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)  # after -m and -k have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the share that --share names; put long files first if several processes run them."""
    if (words := config.getoption("--share")) is not None:
        keep_share(config, items, words)
    if processes.is_one_of_many(config):
        items[:] = processes.sort_longest_first(items)


def keep_share(config: pytest.Config, items: list[pytest.Item], words: str) -> None:
    """Keep the tests of a share. If it has none, pytest fails, as always when no test is run."""
    share, shares = parse_share(words)
    others = [item for item in items if share_of(item.nodeid, shares) != share]
    items[:] = [item for item in items if share_of(item.nodeid, shares) == share]
    config.hook.pytest_deselected(items=others)


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip that tests/skips.py does not allow into a failure."""
    if report.skipped and not hasattr(report, "wasxfail") and not is_allowed(reason := report.longrepr[2]):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} may not be skipped (see tests/skips.py): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With --strict-skips, fail on skips of tests."""
    report = yield
    if item.config.getoption("--strict-skips"):
        refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """With --strict-skips, fail on skips of modules."""
    report = yield
    if collector.config.getoption("--strict-skips"):
        refuse_skip(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Let this process and the drivers that it starts receive SIGINT, which shells make background jobs ignore."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def new_path() -> Iterator[Callable[[str], str]]:
    """Return a function that names a new path, as in `new_path('run.zarr')`.

    Paths are in memory if there is room, since runs flush every object. All are removed at the end of the session.
    """
    roomy = (
        MEMORY_FOLDER.is_dir() and os.access(MEMORY_FOLDER, os.W_OK) and shutil.disk_usage(MEMORY_FOLDER).free > 2**30
    )
    root, numbers = (
        Path(tempfile.mkdtemp(prefix="dumap-tests-", dir=MEMORY_FOLDER if roomy else None)),
        itertools.count(),
    )

    def name(ending: str = "") -> str:
        folder = root / f"{next(numbers):04d}"
        folder.mkdir()
        return str(folder / ending)

    yield name
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: images (1797, 64), whole numbers from 0 to 16, and their labels."""
    x, labels = load_digits(return_X_y=True)
    return x.astype(np.float32), labels


@pytest.fixture(scope="session")
def save(new_path) -> Callable[..., str]:
    """Return a function that writes an array to a new Zarr group, as 'vectors', and returns the group's path."""

    def write(x: np.ndarray, chunk_rows: int = 500, **options: Any) -> str:
        path = new_path("input.zarr")
        chunks = (min(chunk_rows, len(x)), *x.shape[1:])
        zarr.create_group(path, zarr_format=options.get("zarr_format", 3)).create_array(
            "vectors",
            data=x,
            chunks=chunks,
            config={"write_empty_chunks": True},
            **{k: v for k, v in options.items() if k != "zarr_format"},
        )
        return path

    return write


@pytest.fixture(scope="session")
def compiled(embed, digits) -> None:
    """Compile the kernels of runs in this process, before workers start, of which each would compile them itself.

    That takes long only where nothing is compiled yet. All fixtures with clusters depend on it.
    """
    for mode in ("host", "rounds"):
        embed(digits[0][:300], {"cells.max_rows": 100, "layout.mode": mode, "layout.n_epochs": 2})


@pytest.fixture(scope="session")
def client(compiled) -> Iterator[Client]:
    """Return the client of a cluster of two worker processes.

    It starts processes, so it is made once; all tests that need workers and do not harm them share it.
    """
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@dataclass
class Embedded:
    """A finished run, seen through plain Zarr and the exports."""

    output: str
    status: dict[str, Any]
    new_path: Callable[[str], str]

    def array(self, name: str) -> zarr.Array:
        return zarr.open_array(self.output, path=name, mode="r")

    @property
    def y(self) -> np.ndarray:
        return np.asarray(self.array("embedding")[:])

    @property
    def flags(self) -> np.ndarray:
        return np.asarray(self.array("status")[:])

    def facts(self, stage: str) -> dict[str, Any]:
        return next(s["facts"] for s in self.status["stages"] if s["name"] == stage)

    def export(self, what: str, ending: str) -> str:
        out = self.new_path(f"out{ending}")
        export(self.output, what, out)
        return out

    def neighbors(self) -> tuple[np.ndarray, np.ndarray]:
        with np.load(self.export("neighbors", ".npz")) as lists:
            return lists["indices"], lists["distances"]


@pytest.fixture(scope="session")
def configure(save, new_path) -> Callable[..., Config]:
    """Return a function that makes the configuration of a short run of an array or a path; settings by dotted keys."""

    def make(x: np.ndarray | str, settings: dict[str, Any] | None = None) -> Config:
        places = {"input.path": x if isinstance(x, str) else save(x), "output": new_path("run.zarr")}
        return load_config(None, (), {**places, **QUICK_SETTINGS, **(settings or {})})

    return make


@pytest.fixture(scope="session")
def embed(configure, new_path) -> Callable[..., Embedded]:
    """Return a function that embeds an array or a path and returns the finished run.

    It runs on threads of this process, for a few tenths of a second and more, or on the workers of a client.
    """

    def go(x: np.ndarray | str, settings: dict[str, Any] | None = None, client: Client | None = None) -> Embedded:
        config = configure(x, {**({} if client else LOCAL_ENGINE), **(settings or {})})
        return Embedded(config.output, run(config, client=client), new_path)

    return go


@pytest.fixture
def inspect(new_path) -> Callable[[str], Embedded]:
    """Return a function that reads a run by its path."""
    return lambda output: Embedded(output, status(output), new_path)


class Outcome(NamedTuple):
    """How a command ended: its exit code, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Return a function that calls the command line in this process, as in `cli('run', file)`."""
    from dumap.cli import main

    def call(*words: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dumap", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def contents() -> Callable[[str], dict[str, bytes]]:
    """Return a function that reads every file below a folder."""

    def read(folder: str) -> dict[str, bytes]:
        root = Path(folder)
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    return read


@pytest.fixture(scope="session")
def digits_300(digits):
    """Return the first 300 digits, (300, 64)."""
    return digits[0][:300]

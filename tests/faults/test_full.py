"""Disks that are full, read-only or something else: an error that says what to do, and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.harness import SETTING_OPTIONS, Fleet, all_kept, commits, results
from helpers import ActAtStageStart, uncommit_stages
from skips import MOUNTING

from dumap.errors import BudgetError, StorageError
from dumap.recipe.damage import verify
from dumap.recipe.pipeline import plan, run
from dumap.recipe.recipes import make_plan
from dumap.recipe.stage_names import STAGES
from dumap.store import Run
from dumap.store import lock as module

ROOM = 64 << 20


class Disk:
    """A file system in memory of its own."""

    def __init__(self, path: str) -> None:
        self.path = path

    def do(self, *words: str) -> None:
        subprocess.run([*words, self.path], check=True, capture_output=True, text=True)

    def resize(self, size: int) -> None:
        self.do("mount", "-o", f"remount,size={size}")

    def fill(self, spare: int = 0) -> None:
        """Leave next to no room."""
        self.resize(max(shutil.disk_usage(self.path).used + spare, 4096))  # 0 would be no limit
        if not spare:
            with contextlib.suppress(OSError), open(f"{self.path}/filler", "wb") as file:
                file.write(bytes(8192))


@contextlib.contextmanager
def mounted(path: str) -> Iterator[Disk]:
    """Mount a small disk in memory, and unmount it at the end."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", path], check=True, capture_output=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def may_mount() -> bool:
    """Tell whether file systems can be mounted here."""
    with tempfile.TemporaryDirectory() as path:
        try:
            with mounted(path):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


needs_disk = pytest.mark.skipif(not may_mount(), reason=MOUNTING)


@pytest.fixture
def disk(new_path):
    """Return a small disk that a test may fill."""
    os.mkdir(path := new_path("disk"))
    with mounted(path) as small_disk:
        yield small_disk


@pytest.fixture
def short_lease(monkeypatch):
    """Let locks expire after 1 s: on a full disk they cannot be released, and this process lives on."""
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "LEASE_SECONDS", 1.0)


@pytest.mark.fault(15)
@needs_disk
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "spare"), [("neighbors", 65536), ("vectors", 0), ("layout", 8192), ("embedding", 0)])
def test_a_full_output_keeps_what_is_committed(prepare, client, disk, expected, short_lease, stage, spare):
    config = prepare()
    config = config.model_copy(update={"output": f"{disk.path}/run.zarr"})
    with pytest.raises(StorageError, match="no space is left: make room, then the same command goes on") as caught:
        run(config, client=client, observer=ActAtStageStart(stage, lambda: disk.fill(spare)))
    assert caught.value.exit_code == 6
    assert disk.path in str(caught.value)
    assert "the same command goes on from there" in "".join(caught.value.__notes__)
    before = commits(config.output)
    assert verify(config.output) == []
    assert f"run/{stage}.json" not in before
    disk.resize(ROOM)
    assert run(config, client=client)["state"] == "done"
    assert all_kept(before, config.output)
    assert results(config.output) == expected
    assert verify(config.output) == []


@pytest.mark.fault(15)
@needs_disk
def test_an_output_that_is_full_from_the_start_is_refused(prepare, disk, cli):
    config = prepare()
    disk.fill()
    arguments = ["--input", config.input.path, "--output", f"{disk.path}/run.zarr", *SETTING_OPTIONS]
    outcome = cli("run", *arguments)
    assert outcome.code == 4, outcome.err
    assert "the output has 0 B free: make room, or name another output" in outcome.err
    assert os.listdir(disk.path) == ["filler"]


@pytest.mark.fault(15)
@needs_disk
@pytest.mark.slow
@pytest.mark.parametrize("name", ["DASK_TEMPORARY_DIRECTORY", "TMPDIR"])
def test_a_full_scratch_is_said(new_path, prepare, client, disk, expected, name):
    config = prepare({"cluster.workers": 1, "cluster.memory_limit": 2**31})
    disk.fill()
    with Fleet(new_path) as fleet:
        driver = fleet.start(["-m", "dumap.cli", "run", save(new_path, config)], **{name: disk.path})
        code = driver.wait()
    assert "Traceback" not in driver.output
    if name == "DASK_TEMPORARY_DIRECTORY":
        assert code in (5, 6), driver.output
        assert not os.path.exists(config.output)
        assert run(config, client=client)["state"] == "done"
    else:  # where no file can be made in one folder, Python looks for another
        assert code == 0, driver.output
    assert results(config.output) == expected


@pytest.mark.fault(15)
@needs_disk
@pytest.mark.slow
def test_workers_without_room_for_compiled_code_are_refused(new_path, prepare, disk, expected):
    disk.fill()
    with Fleet(new_path) as fleet:
        fleet.start_scheduler()
        (worker,) = fleet.start_workers(1, 1, False, NUMBA_CACHE_DIR=disk.path)
        config = prepare({"cluster.scheduler": fleet.address})
        hasty = ["--set", "cluster.worker_timeout=5"]
        driver = fleet.start(["-m", "dumap.cli", "run", save(new_path, config), *hasty])
        assert driver.wait() == 5, driver.output
        assert "it cannot keep the code that it compiles: No space left on device" in driver.output
        assert "Traceback" not in driver.output
        assert not os.path.exists(config.output)
        worker.end()
        fleet.start_workers(1)
        assert fleet.start(["-m", "dumap.cli", "run", save(new_path, config)]).wait() == 0
    assert results(config.output) == expected


def interrupt() -> None:
    """End a run, as Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.fault(15)
@needs_disk
@pytest.mark.parametrize("stage", ["layout", "quality"])
def test_a_resume_needs_room_for_the_rest_alone(prepare, disk, expected, stage, cli):
    config = prepare().model_copy(update={"output": f"{disk.path}/run.zarr"})
    with pytest.raises(KeyboardInterrupt):
        run(config, observer=ActAtStageStart(stage, interrupt))
    projected = make_plan(config, plan(config).geometry)
    names = [part.name for part in projected.stages]
    rest = sum(part.disk_bytes for part in projected.stages[names.index(stage) :])
    assert rest < projected.disk_bytes / 2
    disk.fill(rest // 2)
    with pytest.raises(BudgetError, match=r"what is left of the run is projected to take .* what is committed is kept"):
        run(config)
    disk.resize(shutil.disk_usage(disk.path).used + projected.disk_bytes * 9 // 10)  # small files take whole pages
    assert shutil.disk_usage(disk.path).free < projected.disk_bytes, "not for all"
    assert run(config)["state"] == "done"
    assert results(config.output) == expected


def save(new_path, config) -> str:
    """Write a configuration to a file; return its path."""
    file = new_path("run.json")
    Path(file).write_text(json.dumps(config.model_dump()))  # which is YAML too
    return file


# read-only ---------------------------------------------------------------------------------------


@pytest.mark.fault(40)
@needs_disk
def test_a_read_only_output_is_refused_before_anything_is_computed(prepare, cli, disk, finished_run, contents):
    """A new output, and a run that somebody else began."""
    config = prepare()
    begun = f"{disk.path}/begun.zarr"
    shutil.copytree(finished_run.output, begun)
    uncommit_stages(begun, STAGES)
    disk.do("mount", "-o", "remount,ro")
    before = contents(disk.path)
    for output in (f"{disk.path}/run.zarr", begun):
        arguments = ["--input", config.input.path, "--output", output, *SETTING_OPTIONS]
        outcome = cli("run", *arguments)
        assert outcome.code == 6, outcome.err
        assert f"output: {output} cannot be" in outcome.err
        assert "ead-only file system" in outcome.err or "the file system is read-only" in outcome.err
        assert "begins" not in outcome.err
        assert "Traceback" not in outcome.err
    for command in ("status", "verify"):
        assert cli(command, begun).code == 0
    assert cli("clean", begun).code == 6
    assert contents(disk.path) == before


# places that are something else ------------------------------------------------------------------


@pytest.mark.fault(34)
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_links_is_refused(prepare, monkeypatch, number, contents):
    def link(*_):
        raise OSError(number, os.strerror(number))

    config = prepare()
    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StorageError, match=r"output: .* cannot be written to") as caught:
        run(config)
    assert "lies on a file system without hard links" in str(caught.value)
    assert contents(config.output) == {}


@pytest.mark.fault(34)
def test_an_output_that_is_something_else_is_left_alone(prepare, cli, data, new_path, contents):
    kept = new_path("input.zarr")
    shutil.copytree(data, kept)
    zipped = shutil.make_archive(new_path("run.zarr"), "zip", kept)
    link = new_path("link.zarr")
    os.symlink(kept, link)
    folder = Path(new_path("folder"))
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    before = contents(kept), Path(zipped).read_bytes()
    for output, message in (
        (kept, "is, holds or lies in the input"),
        (link, "is, holds or lies in the input"),
        (f"{kept}/vectors", "is, holds or lies in the input"),
        (f"{kept}/../input.zarr/run.zarr", "is, holds or lies in the input"),
        (f"file://{kept}", "is, holds or lies in the input"),
        (str(Path(kept).parent), "is, holds or lies in the input"),
        (data, "is not a dumap run"),
        (zipped, "is a file"),
        (str(folder), "exists and is not a dumap run"),
    ):
        outcome = cli("run", "--input", kept, "--output", output, *SETTING_OPTIONS)
        assert (outcome.code, outcome.out) == (6, ""), (output, outcome)
        assert message in outcome.err
        assert "begins" not in outcome.err
    assert (contents(kept), Path(zipped).read_bytes()) == before
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    assert not Run(str(folder), read_only=True).list_terms()

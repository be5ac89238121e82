"""Where compiled code is kept, in installations without a home or a folder that can be written to."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from dumap import compiled


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """Leave numba no place of its own; return where temporary folders are made."""
    blocked, temporary = tmp_path / "file", tmp_path / "tmp"
    blocked.write_text("")
    temporary.mkdir()
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "NUMBA_CACHE_LOCATOR_CLASSES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(blocked))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(compiled, "_pycache_folders", lambda: [str(blocked / "__pycache__")])
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(config=compiled))
    monkeypatch.setattr(compiled, "CACHE_DIR", "", raising=False)
    return temporary


def test_a_private_folder_serves_all_runs(homeless):
    for _ in range(2):
        os.environ.pop("NUMBA_CACHE_DIR", None)
        compiled.choose_cache_folder()
        (folder,) = homeless.iterdir()
        assert os.environ["NUMBA_CACHE_DIR"] == compiled.CACHE_DIR == str(folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("what", ["link", "open to others", "file", "of another user"])
def test_a_folder_that_another_user_could_write_to_is_not_used(homeless, tmp_path, what):
    trap, elsewhere = homeless / f"dumap-compiled-{os.geteuid()}", tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if what == "link":
        trap.symlink_to(elsewhere)
    elif what == "file":
        trap.write_text("")
    else:
        trap.mkdir()
        trap.chmod(0o777 if what == "open to others" else 0o700)
        if what == "of another user":
            if os.geteuid():
                pytest.skip("only root can give a folder away")
            os.chown(trap, 12345, 12345)
    compiled.choose_cache_folder()
    folder = Path(os.environ["NUMBA_CACHE_DIR"])
    assert folder not in (trap, elsewhere)
    assert folder.parent == homeless
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "beside"])
def test_places_of_numba_are_left_alone(homeless, tmp_path, monkeypatch, place):
    if place == "beside":
        monkeypatch.setattr(
            compiled, "_pycache_folders", lambda: [str(tmp_path / "a" / "__pycache__"), str(tmp_path / "b")]
        )
    else:
        monkeypatch.setenv(place, str(tmp_path / "not yet made"))
    before = os.environ.get("NUMBA_CACHE_DIR")
    compiled.choose_cache_folder()
    assert os.environ.get("NUMBA_CACHE_DIR") == before
    assert compiled.CACHE_DIR == ""
    assert list(homeless.iterdir()) == []


def test_a_user_without_a_home_has_no_folder_called_tilde(homeless, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    compiled.choose_cache_folder()
    assert os.environ["NUMBA_CACHE_DIR"].startswith(str(homeless))


@pytest.mark.slow
def test_kernels_are_imported_where_nothing_can_be_written(tmp_path):
    """Files lie where folders would have to be made, as even root cannot write to those."""
    for package in ("dumap", "pynndescent"):
        source = Path(find_spec(package).origin).parent
        shutil.copytree(source, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("dumap/kernels", "pynndescent"):
        (tmp_path / folder / "__pycache__").write_text("")
    (tmp_path / "pynndescent" / "__init__.py").write_text("")  # which would compile all of it
    (tmp_path / "home").write_text("")
    (tmp_path / "tmp").mkdir()
    text = "import dumap.kernels.hashing, pynndescent.distances, numba; print(dumap.__file__, numba.config.CACHE_DIR)"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    env = {**kept, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", text], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    place, folder = done.stdout.split()
    assert Path(place).parent == tmp_path / "dumap"
    assert Path(folder).parent == tmp_path / "tmp"


# taking turns ------------------------------------------------------------------------------------

MODULE = """
import sys, time
from collections import namedtuple
import numba
from numba.core.dispatcher import Dispatcher
from dumap import compiled

began = []
numba.core.event.register("numba:compile", type("L", (numba.core.event.Listener,), {
    "on_start": lambda self, event: (began.append(1), time.sleep(1)), "on_end": lambda self, event: None})())
compiled.patch_numba_cache()
compiled.LOCK_TIMEOUT_SECONDS = float(sys.argv[1])
Pair = namedtuple("Pair", "a b")

@numba.njit(cache=True)
def add(pair):
    return pair.a + pair.b

print(add(Pair(1, 2)), len(began))
"""


@pytest.fixture
def start(tmp_path):
    """Start a process that adds two numbers with a compiled function: `start(patience)`."""
    (tmp_path / "module.py").write_text(MODULE)
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import module"  # so that classes are those of a module

    def go(patience=60.0):
        words = [sys.executable, "-c", code, str(patience)]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return go


def report_of(process) -> list[int]:
    """Return what a process printed: the sum, and how many functions it compiled."""
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return [int(word) for word in out.split()]


@pytest.mark.slow
def test_of_two_processes_one_compiles(start):
    reports = [report_of(process) for process in [start(), start()]]
    assert sorted(reports) == [[3, 0], [3, 1]]
    assert report_of(start()) == [3, 0]


@pytest.mark.slow
def test_nobody_waits_for_ever_nor_for_the_dead(start, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    assert report_of(start()) == [3, 1]
    (lock,) = tmp_path.rglob("*.lock")
    (index,) = tmp_path.rglob("*.nbi")
    index.unlink()  # a lock is left of a process that is gone
    assert report_of(start()) == [3, 1]
    index.unlink()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert report_of(start(patience=0.2)) == [3, 1]


@pytest.mark.slow
def test_an_index_of_classes_that_are_gone_is_empty(start, tmp_path):
    """As after an update that renamed a class: numba unpickles an index before it compares the source's time."""
    assert report_of(start()) == [3, 1]
    module = tmp_path / "module.py"
    module.write_text(module.read_text().replace("Pair", "Two"))
    assert report_of(start()) == [3, 1]
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(index.read_bytes()[:-20])
    assert report_of(start()) == [3, 1]

"""What is installed, and the versions that it claims to work with."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Build the wheel from the source, once for the tests of this file."""
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))
    with zipfile.ZipFile(built) as opened:
        yield opened


def test_the_wheel_holds_types_and_examples(wheel):
    names = set(wheel.namelist())
    configs = [path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.*") if "__pycache__" not in path.parts]
    examples = {f"dumap/{path.as_posix()}" for path in [*configs, Path("configs/crontab")]}
    assert {"dumap/configs/scheduled.yaml", "dumap/configs/systemd/dumap.timer"} <= examples
    assert {"dumap/py.typed", "dumap/__main__.py", "dumap/__init__.py", *examples} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "configs/"))]


def test_dumap_is_a_module_that_runs():
    done = subprocess.run([sys.executable, "-m", "dumap", "--version"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dumap, version ")


PROJECT = {
    "dependencies": ["one>=1.2", "two[more]>=3,<4", "three", "four<5", 'five>=6; python_version < "3.12"'],
    "optional-dependencies": {"extra": ["six>=7.0.1"], "test": ["project[extra]", "tool>=8"]},
}


@pytest.fixture
def lowest_versions(monkeypatch):
    """Return the function of the script of that name."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import lowest_versions

    return lowest_versions.lowest_versions


def test_the_lowest_versions_are_those_claimed(lowest_versions):
    expected = ['five==6; python_version < "3.12"', "one==1.2", "six==7.0.1", "two==3"]
    assert lowest_versions(PROJECT) == expected


def test_every_library_that_dumap_needs_has_a_lowest_version(lowest_versions):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {pin.partition("==")[0] for pin in lowest_versions(project)}
    assert {"numpy", "zarr", "dask", "distributed", "numba", "pyarrow", "obstore"} <= pinned
    assert len(pinned) >= len(project["dependencies"])

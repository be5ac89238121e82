"""What is imported when: start-up is quick, and Dask is imported only where something runs on it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dumap
from dumap.config.metrics import METRICS, REFUSED_METRICS

HEAVY = ("numba", "scipy", "sklearn", "pynndescent", "zarr", "dask", "distributed", "pandas")


def imported_by(code: str, *arguments: str) -> set[str]:
    """Run some code in a process of its own; return which of the heavy libraries it imported."""
    program = f"import sys\n{code}\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()) & set(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "import dumap",
        "import dumap; dumap.Config, dumap.DumapError; dumap.load_config(None, ['input.path=a', 'output=b'])",
        "import dumap; dir(dumap)",
    ],
)
def test_to_import_dumap_imports_no_heavy_library(code):
    assert imported_by(code) == set()


COMMAND = """
import contextlib, os
from dumap.cli import main
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.suppress(SystemExit):
    main()
"""
HELP = ["--help", "--version", "run --help", "config", "config layout", "config --example cluster"]


@pytest.mark.parametrize("arguments", HELP)
def test_help_and_settings_import_no_heavy_library(arguments):
    assert imported_by(f"sys.argv[1:] = {arguments.split()}\n{COMMAND}") == set()


def test_status_imports_zarr_alone(configure, digits):
    config = configure(digits[0][:300], {"cluster.engine": "local"})
    dumap.run(config)
    assert imported_by(f"sys.argv[1:] = ['status', {config.output!r}]\n{COMMAND}") == {"zarr"}


def test_kernels_leave_pynndescent_to_the_metrics_that_need_it():
    code = "from pkgutil import iter_modules\nimport importlib, dumap.kernels as k\n"
    code += "for m in iter_modules(k.__path__): importlib.import_module(f'dumap.kernels.{m.name}')"
    assert imported_by(code) & {"pynndescent", "sklearn", "pandas", "distributed"} == set()


def test_metrics_are_those_that_pynndescent_names():
    from pynndescent.distances import named_distances

    assert set(named_distances) - REFUSED_METRICS == set(METRICS)
    assert list(METRICS) == sorted(METRICS)


def test_public_names_are_there():
    assert set(dumap.__all__) <= set(dir(dumap))
    assert all(getattr(dumap, name) is not None for name in dumap.__all__)
    with pytest.raises(AttributeError, match="'dumap' has no attribute 'ran'"):
        dumap.ran  # noqa: B018

"""Public names have types that a user's type checker understands."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dumap

PROGRAM = Path(__file__).with_name("typed.py")
SETTINGS = """
[mypy]
strict = True
follow_imports = silent
[mypy-click.*,dask.*,distributed.*,h5py.*,llvmlite.*,matplotlib.*,numba.*,obstore.*,pandas.*,psutil.*,pyarrow.*,rich.*]
follow_imports = skip
[mypy-scipy.*,sklearn.*,xarray.*,yaml.*]
follow_imports = skip
follow_imports_for_stubs = True
"""
"""Libraries that no public type is of, which take long to read, are skipped."""


def test_the_program_uses_every_public_name():
    used = {node.attr for node in ast.walk(ast.parse(PROGRAM.read_text())) if isinstance(node, ast.Attribute)}
    assert set(dumap.__all__) <= used


@pytest.mark.slow
def test_a_users_program_is_typed_strictly(tmp_path):
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    wrong = tmp_path / "wrong.py"
    wrong.write_text('import dumap\n\nrows: str = dumap.run("DATA.zarr", output="RUN.zarr").embedding.shape\n')

    def check(program: Path) -> subprocess.CompletedProcess[str]:
        arguments = [f"--config-file={tmp_path}/mypy.ini", f"--cache-dir={tmp_path}/cache", str(program)]
        command = [sys.executable, "-m", "mypy", *arguments]
        return subprocess.run(command, cwd=PROGRAM.parent, capture_output=True, text=True)

    done = check(PROGRAM)
    assert done.returncode == 0, done.stdout + done.stderr
    done = check(wrong)
    assert 'expression has type "tuple[int, ...]", variable has type "str"' in done.stdout, done.stdout + done.stderr

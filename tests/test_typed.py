"""Public names have types that a user's type checker understands."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dumap

PROGRAM = Path(__file__).with_name("typed.py")


def test_the_program_uses_every_public_name():
    used = {node.attr for node in ast.walk(ast.parse(PROGRAM.read_text())) if isinstance(node, ast.Attribute)}
    assert set(dumap.__all__) <= used


@pytest.mark.slow
def test_a_users_program_is_typed_strictly(tmp_path):
    arguments = ["--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={tmp_path}", PROGRAM.name]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments], cwd=PROGRAM.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr

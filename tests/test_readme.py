"""The examples of README run, in its order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(python)?\n(.*?)^```", README, re.M | re.S)
PROGRAM = "\n".join(text for language, text in BLOCKS if language)
"""Every block of Python."""
CONSOLE = [line for language, text in BLOCKS if not language for line in text.splitlines()]
"""Every line of a console, with what it prints."""


def commands() -> list[list[str]]:
    """Return the words of every command that is typed after `$`, without comments."""
    return [shlex.split(line[1:], comments=True) for line in CONSOLE if line.startswith("$ ")]


def test_README_is_short_and_narrow():
    lines = README.splitlines()
    assert len(lines) < 200
    assert [line for line in lines if len(line) > 110] == []


@pytest.mark.slow
def test_examples_of_README_run(digits, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    names = {"x": digits[0][:400]}
    exec(compile(PROGRAM, "README.md", "exec"), names)
    names["client"].close()
    assert names["y"].shape == (400, 2)
    assert names["result"].embedding.shape == (400, 2)

    lines = [line.removeprefix(">>> ") for line in CONSOLE if line.startswith(">>> ")]
    exec(compile("\n".join(lines), "README.md", "exec"), names)
    assert len(commands()) > 8
    for command, *words in commands():
        assert command == "dumap"
        outcome = cli(*words)
        assert outcome.code == 0, (words, outcome)


def test_files_that_README_names_exist():
    links = re.findall(r"\]\(\s*((?!http)[^)\s]+)\s*\)", README)
    paths = re.findall(r"`((?:scripts|configs|tests|dumap)/[\w./]+)`", README)
    assert len(links) > 4
    assert [path for path in links + paths if not (Path(__file__).parents[1] / path).exists()] == []

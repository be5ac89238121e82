"""Documents name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from test_layers import LAYERS

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
DESIGN = (ROOT / "dumap" / "DESIGN.md").read_text()
FOLDERS = "|".join(LAYERS)


def test_files_that_CONTRIBUTING_names_exist():
    named = set(re.findall(r"\b(?:tests|scripts|dumap)/[\w/]+\.\w+", CONTRIBUTING))
    named |= {f"dumap/{path}" for path in re.findall(rf"`((?:{'|'.join(LAYERS)})/\w+\.py)`", CONTRIBUTING)}
    assert len(named) > 25
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_files_that_DESIGN_names_exist():
    named = {path for path in re.findall(rf"`((?:tests/|(?:{FOLDERS})/)[\w/]+\.py)`", DESIGN)}
    assert len(named) > 8
    assert [path for path in sorted(named) if not ((ROOT / path).exists() or (ROOT / "dumap" / path).exists())] == []


def test_scripts_that_BENCHMARKS_names_exist():
    named = set(re.findall(r"scripts/\w+\.py", (ROOT / "dumap" / "BENCHMARKS.md").read_text()))
    assert len(named) > 7
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_words_have_one_meaning_each_and_are_few():
    table = DESIGN[DESIGN.index("## Words") :]
    words = [word for line in re.findall(r"^\| (.+?) \|", table, re.M)[1:] for word in line.split(", ")]
    assert 20 < len(re.findall(r"^\| ", table, re.M)) - 1 <= 40
    assert len(words) == len(set(words))


def test_every_layer_is_told_from_the_top():
    table = CONTRIBUTING[CONTRIBUTING.index("| folder |") :]
    places = [table.index(f"`{layer}.py`" if layer == "api" else f"`{layer}/`") for layer in LAYERS]
    assert places == sorted(places)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_workflows_run_what_is_run_here(python):
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    matrix = jobs["check"]["strategy"]["matrix"]
    assert python in matrix["python"]
    assert any("macos" in more["system"] for more in matrix["include"])
    for job in ("check", "lowest"):
        assert any(step.get("run") == ".ci/run" for step in jobs[job]["steps"])

"""The table of what umap-learn has is complete, and true of the estimator and the settings."""

from __future__ import annotations

import ast
import re
from inspect import signature
from pathlib import Path

import pytest
from umap_learn import class_source, default_values, method_sources

import dumap
from dumap.config import UNSUPPORTED_PARAMETERS, keys_by_name
from dumap.estimator import UNSUPPORTED_METHODS
from dumap.show.fitted import FITTED_ATTRIBUTES

TEXT = (Path(dumap.__file__).parent / "FROM_UMAP_LEARN.md").read_text()
INTERNAL = re.compile(
    r"_(densmap|metric|output_metric|target_metric)_kwds|_original_n_threads|_unique_inverse_|_supervised"
)
INTERNAL_TOO = {
    *("_disconnection_distance", "_initial_alpha", "_input_distance_func", "_input_hash", "_inverse_distance_func"),
    *("_n_neighbors", "_output_distance_func", "_small_data", "_sparse_data"),
}
"""Attributes of umap-learn's that nobody reads but itself."""


def table(title: str) -> dict[str, list[str]]:
    """Return the rows of a table by their first column."""
    section = TEXT[TEXT.index(f"## {title}") :].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    entries = {row[0].strip("`"): row[1:] for row in rows[2:]}
    assert len(entries) == len(rows) - 2, "none twice"
    return entries


PARAMETERS = table("Parameters")


def test_every_parameter_is_there():
    umap_parameters = list(default_values())
    assert list(PARAMETERS) == umap_parameters
    assert [name for name in signature(dumap.UMAP).parameters if name not in ("client", "store")] == umap_parameters


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_as_said(name):
    status, setting, text = PARAMETERS[name]
    assert status in ("same", "other", "not here")
    assert (status == "not here") == (name in UNSUPPORTED_PARAMETERS)
    assert setting == (f"`{keys_by_name()[name]}`" if name in keys_by_name() else "")
    assert (setting == "") == (status == "not here")
    assert text or status == "same", "what differs is told, and what to do"
    if (other := re.match(r"As `(\w+)`\.$", text)) is not None:
        assert PARAMETERS[other[1]][0] == status


def test_defaults_are_umap_learns():
    """But for what is said of `random_state`."""
    umap_defaults = default_values()
    defaults = {name: parameter.default for name, parameter in signature(dumap.UMAP).parameters.items()}
    assert {name: defaults[name] for name in umap_defaults} == umap_defaults


def test_every_method_is_there_and_as_said():
    described = table("Methods")
    assert list(described) == [name for name in method_sources() if not name.startswith("_")]
    for name, (status, text) in described.items():
        assert text
        assert (status == "not here") == (name in UNSUPPORTED_METHODS)
        assert hasattr(dumap.UMAP, name) == (status != "not here")


def test_every_attribute_is_there_and_as_said():
    stored = {
        target.attr
        for node in ast.walk(class_source())
        for target in ast.walk(node)
        if isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and ast.unparse(target.value) == "self"
    }
    described = table("Attributes")
    umap_attributes = {name for name in stored - set(PARAMETERS) - INTERNAL_TOO if not INTERNAL.fullmatch(name)}
    assert set(described) == umap_attributes | {"n_features_in_"}
    same = {name for name, (status, _) in described.items() if status == "same"}
    assert same == {*FITTED_ATTRIBUTES, "_raw_data", "n_features_in_"}
    assert not [name for name, (status, text) in described.items() if status != "same" and not text]

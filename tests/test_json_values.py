"""Figures that are not defined: null in JSON, words for people."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dumap.json_values import format_fact, replace_nonfinite, to_json
from dumap.recipe import pipeline
from dumap.recipe.observers import format_finished
from dumap.stages import start
from dumap.store.objects import seal, unseal

NAN, INF = float("nan"), float("inf")


def strictly(text: str | bytes):
    """Read JSON as its standard has it, without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_where_a_number_is_not_finite():
    document = {"a": [1, NAN, (INF, "NaN")], "b": {"c": -INF, "d": 0.5, "e": np.float64("nan")}, "f": True, "g": None}
    expected = {"a": [1, None, [None, "NaN"]], "b": {"c": None, "d": 0.5, "e": None}, "f": True, "g": None}
    assert strictly(to_json(document)) == replace_nonfinite(document) == expected
    assert to_json({"b": 1, "a": [0.5]}, sort_keys=True) == json.dumps({"b": 1, "a": [0.5]}, sort_keys=True)


def test_a_manifest_has_null_where_a_number_is_not_finite():
    sealed = seal({"loss": INF, "low": [NAN, 1.0]})
    strictly(sealed)
    assert unseal(sealed) == {"loss": None, "low": [None, 1.0]}
    assert unseal(sealed.replace(b"null, 1.0", b"NaN, 1.0")) is None, "which is not what was sealed"


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "not defined"), (0.123456, "0.1235"), (3, "3"), ([None], "[None]")]
)
def test_people_are_told_what_is_not_defined(value, expected):
    assert format_fact(value, ".4g") == expected
    assert format_finished("quality", 1.0, 2, 1, {"figure": value}).endswith(f"; figure {expected}")


@pytest.mark.parametrize("rows", [4, 20, 31])
def test_a_run_of_few_rows_reports_no_figure_that_is_not_defined(configure, cli, rows):
    x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    config = configure(x, {"neighbors.n_neighbors": 3, "audit.queries": 30, "cluster.engine": "local"})
    pipeline.run(config)
    status = strictly(cli("status", config.output, "--json").out)
    facts = {stage["name"]: stage["facts"] for stage in status["stages"]}
    trust = facts["quality"]["trustworthiness"]
    assert (trust is None) == (rows <= 30)
    output = cli("status", config.output).out
    assert f"trustworthiness: {'not defined' if trust is None else f'{trust:.4f}'}\n" in output
    assert 0 <= facts["quality"]["neighbors_preserved"] <= 1


def test_parts_of_no_rows_reach_nowhere_and_the_box_is_that_of_the_others():
    nowhere, somewhere = start.bounding_box(np.empty((0, 2))), start.bounding_box(np.array([[1.0, 5.0], [3.0, 4.0]]))
    documents = [unseal(seal(box)) for box in (nowhere, somewhere)]
    assert documents[0] == {"low": [None, None], "high": [None, None]}
    assert all(math.isfinite(value) for values in documents[1].values() for value in values)
    written: dict = {}

    class Store:
        attributes = written

        def part_facts(self, stage: str, piece: str) -> dict:
            return documents[int(piece)]

        def part(self, stage: str, part: str):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None:
            return None

    class Told:
        run = Store()

    start.find_bounding_box(Told(), start.BOX, ["0", "1"], {})
    assert (written["low"], written["high"]) == ([1.0, 4.0], [3.0, 5.0])

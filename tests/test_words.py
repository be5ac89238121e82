"""Names that were given up do not come back: they stood for several things, or the field has a better word."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dumap

PACKAGE = Path(dumap.__file__).parent

RETIRED = {
    "Generation": "EpochState",
    "generations": "layout_checkpoints",
    "last_generation": "last_epoch_state",
    "Series": "Checkpoints",
    "Line": "TaskQueue",
    "Form": "ArraySpec",
    "Shard": "StoredArray",
    "Shards": "RowRanges",
    "Starts": "StartCoordinates",
    "Descent": "LayoutParameters",
    "COPY": "DUPLICATE",
    "copies_of": "duplicates_of",
    "place_copies": "place_duplicates",
    "find_copies": "find_duplicates",
    "order_copies": "order_by_cell",
    "placed_in": "repeated_positions",
    "merge_own": "merge_home",
    "reach_of": "kth_distances_of, bounding_box",
    "reach_block": "measure_map_neighbors",
    "REACH": "JOINED_LEAVES",
    "SOUGHT": "RANKED_LEAVES",
    "judged": "early_stop_epochs",
    "JUDGEMENTS": "EARLY_STOP_CHECKS",
    "has_settled": "should_stop",
    "BY_PRODUCT": "EUCLIDEAN_ORDER",
    "partition_space": "to_euclidean",
    "from_squared": "metric_from_squared",
    "squared_limits": "squared_from_metric",
    "with_direction": "add_zero_column",
    "placed_dims": "embedded_dims",
    "CARRIED": "MIN_VARIANCE",
    "LEAST": "MIN_GROUP_VARIANCE",
    "FEW": "MIN_GROUP_ROWS",
    "NOISE": "RANDOM_BOX",
    "RANDOM_START": "EIGEN_NOISE",
    "COARSE_DUE": "COARSE_SAMPLES",
    "units_of": "shard_ranges",
    "groups_of": "pass_ranges",
    "flying": "in_flight",
    "_settle": "_record_outcome",
    "_settle_in": "_wait_for_nanny",
}
"""Names of the package's that were given up, and what stands in their place."""
RETIRED_IN_KERNELS = {
    "own": "home_rows, group_of, ...: which",
    "due": "samples",
    "rates": "sample_rates",
    "phases": "sample_phases",
    "names": "row_ids, entries",
    "reach": "kth_distances",
    "some": "rows, block, sample: which",
    "found": "listed, candidates, ...: which",
    "told": "what is told",
}
"""Names that may not be used in kernels, whose loops are hard enough; elsewhere they may be plain words."""


def names(tree: ast.AST) -> set[str]:
    """Return all names that a module defines, assigns, takes as parameters or uses."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found |= {*node.name.split("."), node.asname or ""}
        elif isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").split("."))
    return found


@pytest.mark.parametrize(
    ("folder", "retired"), [(".", RETIRED), ("kernels", RETIRED_IN_KERNELS)], ids=["package", "kernels"]
)
def test_names_that_were_given_up_are_not_used(folder, retired):
    used = {path: names(ast.parse(path.read_text())) & retired.keys() for path in (PACKAGE / folder).rglob("*.py")}
    assert {path: {name: retired[name] for name in given_up} for path, given_up in used.items() if given_up} == {}


def test_every_use_of_a_name_is_seen():
    text = "import a.b as c\nfrom d import e\nclass F:\n    def g(self, h):\n        i.j = k\n"
    assert set("abcdeFghijk") <= names(ast.parse(text))

"""Retired names do not come back: they stood for several things, or the field has a better word."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import dumap

PACKAGE, TESTS = Path(dumap.__file__).parent, Path(__file__).parent

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
    "place_copies": "set_duplicate_positions",
    "find_copies": "find_duplicates",
    "order_copies": "order_by_cell",
    "placed_in": "repeated_positions",
    "merge_own": "merge_home_lists",
    "reach_of": "kth_squared_of, bounding_box",
    "reach_block": "measure_map_neighbors",
    "REACH": "JOINED_LEAVES",
    "SOUGHT": "RANKED_LEAVES",
    "judged": "early_stop_epochs",
    "JUDGEMENTS": "EARLY_STOP_CHECKS",
    "has_settled": "should_stop",
    "BY_PRODUCT": "EUCLIDEAN_ORDER_METRICS",
    "partition_space": "to_euclidean",
    "from_squared": "metric_from_squared",
    "squared_limits": "squared_from_metric",
    "with_direction": "add_zero_column",
    "placed_dims": "prepared_dims",
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
    "Kept": "TaskCache",
    "Counted": "SharedSetting",
    "Growing": "ObjectWriter",
    "Broken": "ChecksumError",
    "Naming": "RunKeys",
    "NAMING": "RUN_KEYS",
    "Demands": "Requirements",
    "TurnLists": "BatchLists",
    "REPAIRS": "MAX_REMAKES",
    "CROWDED": "MAX_GUEST_FILL, MAX_LEAF_LOAD",
    "STRANGE": "MAX_FOREIGN_ERRORS",
    "HALO": "SENT_ROWS",
    "HERE": "OPENED_LOCALLY",
    "CUT": "SMALL_TASKS",
    "ranged": "range_name",
    "labelled": "label_checkpoints",
    "epoch_states": "layout_checkpoints",
    "passing_bytes": "temporary_bytes",
    "kept_bytes": "cached_bytes",
    "universe_rows": "max_repair_rows",
    "travels_as_it_is": "keeps_input_dtype",
    "guests_a_turn": "guests_at_once",
    "slot_offsets": "occurrence_offsets",
    "writes_more": "no_backup",
    "towards": "relative_location",
    "audited": "last_audit_part",
    "max_copies": "max_cells_per_row",
    "nannied": "cluster_with_nannies",
    "_heed": "_read_messages",
    "_wonder": "_handle_foreign_error",
    "PACKED": "BIT_METRICS, PACKED_EDGES",
    "RANKED": "SPEARMAN",
    "BLOCK": "ROW_GROUP",
    "SEEDS": "LABEL_SOURCES",
    "draw_seeds": "draw_label_sources",
    "Feed": "ObjectRows",
    "Telling": "EventObserver",
    "Driven": "SubmittedRun",
    "NAMED": "CLUSTER_SETTINGS, MAX_LISTED",
    "EARLIER_BYTES": "BASELINE_BYTES",
    "guest_classes": "guest_priorities",
    "meet": "search_with_guests",
    "driving": "submitted_run",
    "Executor": "DaskEngine",
    "Committed": "CommittedParts",
    "Work": "StepSpec, DriverFunction",
    "WORK": "PROGRESS_KEYS",
    "STUCK": "MAX_STUCK",
    "last_work": "last_progress",
    "attend": "reset_timeouts",
    "perform": "run_checked_task, run_driver",
    "internal": "internal_location",
    "relatives": "family",
    "_out_of_the_pool": "_secede_while_waiting",
    "PATIENCE": "ANSWER_TIMEOUT",
    "PARTING": "FREEING_TIMEOUT",
    "REMEMBERED": "MAX_DURATIONS",
    "KNOCK_SECONDS": "FIRST_TRY_TIMEOUT",
    "NAMED_INSTEAD": "MAX_SUGGESTED",
    "Found": "ListedNode",
    "found_unfit": "last_left_out",
    "sample_rates": "relative_weights",
    "SPARE": "EXTRA_LEAVES, EXTRA_EIGENVECTORS",
    "CHUNK": "SCAN_COLUMNS, EDGES_AT_ONCE",
    "seeded": "has_source, labels_of_sources",
    "back_heads": "in_rows",
    "back_tails": "in_heads",
    "direct": "weigh_edges",
    "needs_metric": "loads_pynndescent",
    "is_checkpoint": "ends_interval",
    "CLASSES": "N_PRIORITIES",
    "admitted_classes": "admitted_priorities",
    "low_ids": "map_neighbors",
    "wanted_queries": "max_queries",
}
"""Names of the package's and the tests' that were given up, and what stands in their place."""
RETIRED_PARTS = {
    "generation": "checkpoint",
    "labelled": "checkpoint",
    "smooth": "smoothed",
    "reach": "kth_squared",
    "reached": "map_distances",
    "copies": "stored_rows, duplicates",
    "places": "occurrences",
    "placed": "repeated_positions, cast_hashes",
    "merged": "lists, equal_after_cast",
    "wanted": "halo",
    "asked": "requests",
    "joined": "offers",
    "repaired": "repair",
}
"""Kinds of parts, arrays and facts in runs that were given up, and what stands in their place."""
RETIRED_IN_KERNELS = {
    "own": "home_rows, group_of, ...: which",
    "due": "samples",
    "rates": "relative_weights",
    "phases": "sample_phases",
    "names": "row_ids, entries",
    "reach": "kth_distances",
    "some": "rows, block, sample: which",
    "found": "listed, candidates, ...: which",
    "told": "what is told",
    "wanted": "count, n_leaves, ...: which",
}
"""Names that may not be used in kernels, whose loops are hard enough; elsewhere they may be plain words."""

RETIRED_IN_TESTS = {
    "found": "outcome, actual arrays, facts, ...: which",
    "wanted": "expected",
    "told": "records, outcome, error, ...: which",
    "said": "message, output",
    "own": "home_rows, expected, ...: which",
    "reach": "kth_distances, kth_squared, joined_leaves",
    "way": "route, option, relative path: which",
    "turns": "shares",
    "packed": "leaf_cells, packs, edges, bundled: which",
    "fewest": "min_rows",
    "some": "rows, part, selected: which",
    "asked": "keys, requested, expected: which",
    "theirs": "of umap-learn, of scanpy, foreign: whose",
}
"""Names that tests do not use: a test's names are those of the function that it tests, or say what is compared."""


def names(tree: ast.AST) -> set[str]:
    """Return all names that a module defines, assigns, takes as parameters or uses."""
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            used.add(node.name)
        elif isinstance(node, ast.arg):
            used.add(node.arg)
        elif isinstance(node, ast.alias):
            used |= {*node.name.split("."), node.asname or ""}
        elif isinstance(node, ast.ImportFrom):
            used |= set((node.module or "").split("."))
    return used


@cache
def names_of_file(path: Path) -> set[str]:
    """Return all names of a file: each is read once, though several tests look at it."""
    return names(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    ("folder", "retired"),
    [(PACKAGE, RETIRED), (PACKAGE / "kernels", RETIRED_IN_KERNELS), (TESTS, RETIRED | RETIRED_IN_TESTS)],
    ids=["package", "kernels", "tests"],
)
def test_names_that_were_given_up_are_not_used(folder, retired):
    used = {path: names_of_file(path) & retired.keys() for path in folder.rglob("*.py")}
    assert {path: {name: retired[name] for name in given_up} for path, given_up in used.items() if given_up} == {}


def part_kinds(tree: ast.AST) -> set[str]:
    """Return the texts of a module that may name parts, arrays or facts, each up to its first hyphen."""
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {text.split("-")[0] for text in texts}


@pytest.mark.parametrize("folder", ["artifacts", "stages", "recipe"])
def test_kinds_of_parts_that_were_given_up_are_not_used(folder):
    used = {path: part_kinds(ast.parse(path.read_text())) for path in (PACKAGE / folder).rglob("*.py")}
    assert {path: kinds & RETIRED_PARTS.keys() for path, kinds in used.items() if kinds & RETIRED_PARTS.keys()} == {}


def test_every_use_of_a_name_is_seen():
    text = "import a.b as c\nfrom d import e\nclass F:\n    def g(self, h):\n        i.j = k\n"
    assert set("abcdeFghijk") <= names(ast.parse(text))

"""Writes the outcome of a run in Prometheus' text format, for node_exporter's textfile collector."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
"""The pattern of label names."""
LAST_SUCCESS_METRIC = "dumap_last_success_timestamp_seconds"

METRIC_HELP = {
    "dumap_exit_code": "Exit code of the last dumap run.",
    LAST_SUCCESS_METRIC: "When dumap run ended well last, in seconds since 1970.",
    "dumap_stage_seconds": "How long a stage took that is done.",
    "dumap_stage_peak_bytes": "The most memory that a worker's process held in a stage.",
    "dumap_stage_projected_bytes": "The memory of a worker's process that was projected for a stage.",
    "dumap_parts_done": "Parts of a stage that are done, or steps of the part under way.",
    "dumap_parts_total": "Parts, or steps, that the stage has.",
    "dumap_recall": "Share of the true neighbours that the lists hold, by the audit.",
    "dumap_recall_low": "Lower end of the 95% interval of the recall.",
}
"""The metrics and their descriptions; all are gauges."""
STAGE_METRICS = {
    "dumap_stage_seconds": "seconds",
    "dumap_stage_peak_bytes": "peak_bytes",
    "dumap_stage_projected_bytes": "projected_bytes",
}
"""The metrics that are values of a stage's status, and their keys there."""


def read_last_success(text: str) -> float | None:
    """Return the time of the last success from metrics that were written before; None if they have none."""
    match = re.search(rf"^{LAST_SUCCESS_METRIC}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


def format_metrics(
    exit_code: int, last_success: float | None, stages: Sequence[Mapping[str, Any]], labels: Mapping[str, str]
) -> str:
    """Return the metrics of a run as text.

    Parameters
    ----------
    exit_code : int
    last_success : float, optional
        The time of the last success; None if the run never succeeded.
    stages : sequence of mapping
        The stages, see `dumap.recipe.status.status`. Values that are None are left out.
    labels : mapping
        The labels of every sample.
    """
    lines_by_metric: dict[str, list[str]] = {}
    for name, sample_labels, value in _list_samples(exit_code, last_success, stages):
        if value is not None:
            lines_by_metric.setdefault(name, []).append(
                f"{name}{_format_labels({**labels, **sample_labels})} {value!r}\n"
            )
    return "".join(
        f"# HELP {name} {help_text}\n# TYPE {name} gauge\n{''.join(lines_by_metric[name])}"
        for name, help_text in METRIC_HELP.items()
        if name in lines_by_metric
    )


def _list_samples(
    exit_code: int, last_success: float | None, stages: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, str], float | None]]:
    """Yield each sample: the name of its metric, its own labels and its value."""
    yield "dumap_exit_code", {}, exit_code
    yield LAST_SUCCESS_METRIC, {}, last_success
    for stage in stages:
        stage_label = {"stage": stage["name"]}
        for name, key in STAGE_METRICS.items():
            yield name, stage_label, stage[key]
        done, total = stage["progress"] or (stage["parts"], None)
        yield "dumap_parts_done", stage_label, done
        yield "dumap_parts_total", stage_label, total
        for key in ("recall", "recall_low"):
            yield f"dumap_{key}", {}, stage["facts"].get(key)


def _format_labels(labels: Mapping[str, str]) -> str:
    """Return labels in braces, with their values escaped."""
    pairs = ",".join(f'{name}="{_escape_label(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escape_label(value: str) -> str:
    """Return a label's value with backslashes, line ends and quotes escaped."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

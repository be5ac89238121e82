"""Writes the outcome of a run in Prometheus' text format, for node_exporter's textfile collector."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
"""The pattern of label names."""
LAST_SUCCESS = "dumap_last_success_timestamp_seconds"

HELP = {
    "dumap_exit_code": "Exit code of the last dumap run.",
    LAST_SUCCESS: "When dumap run ended well last, in seconds since 1970.",
    "dumap_stage_seconds": "How long a stage took that is done.",
    "dumap_stage_peak_bytes": "The most memory that a worker's process held in a stage.",
    "dumap_stage_projected_bytes": "The memory of a worker's process that was projected for a stage.",
    "dumap_parts_done": "Parts of a stage that are done, or steps of the part under way.",
    "dumap_parts_total": "Parts, or steps, that the stage has.",
    "dumap_recall": "Share of the true neighbours that the lists hold, by the audit.",
    "dumap_recall_low": "Lower end of the 95% interval of the recall.",
}
"""The metrics and their descriptions; all are gauges."""
OF_A_STAGE = {
    "dumap_stage_seconds": "seconds",
    "dumap_stage_peak_bytes": "peak_bytes",
    "dumap_stage_projected_bytes": "projected_bytes",
}
"""The metrics that are values of a stage's status, and their keys there."""


def last_success(text: str) -> float | None:
    """Return the time of the last success from metrics that were written before; None if they have none."""
    match = re.search(rf"^{LAST_SUCCESS}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


def exposition(
    exit_code: int, success: float | None, stages: Sequence[Mapping[str, Any]], labels: Mapping[str, str]
) -> str:
    """Return the metrics of a run as text.

    Parameters
    ----------
    exit_code : int
    success : float, optional
        The time of the last success; None if the run never succeeded.
    stages : sequence of mapping
        The stages, see `dumap.recipe.status.status`. Values that are None are left out.
    labels : mapping
        The labels of every sample.
    """
    samples: dict[str, list[str]] = {}
    for name, more, value in _values(exit_code, success, stages):
        if value is not None:
            samples.setdefault(name, []).append(f"{name}{_braces({**labels, **more})} {value!r}\n")
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} gauge\n{''.join(samples[name])}"
        for name, text in HELP.items()
        if name in samples
    )


def _values(
    exit_code: int, success: float | None, stages: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, dict[str, str], float | None]]:
    """Yield each sample: the name of its metric, its own labels and its value."""
    yield "dumap_exit_code", {}, exit_code
    yield LAST_SUCCESS, {}, success
    for stage in stages:
        of = {"stage": stage["name"]}
        for name, key in OF_A_STAGE.items():
            yield name, of, stage[key]
        done, total = stage["progress"] or (stage["parts"], None)
        yield "dumap_parts_done", of, done
        yield "dumap_parts_total", of, total
        for key in ("recall", "recall_low"):
            yield f"dumap_{key}", {}, stage["facts"].get(key)


def _braces(labels: Mapping[str, str]) -> str:
    """Return labels in braces, with their values escaped."""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    """Return a label's value with backslashes, line ends and quotes escaped."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

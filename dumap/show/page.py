"""A run as HTML for notebooks: the map, its quality, and the time and memory that it took."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from dumap.config import format_bytes
from dumap.json_values import format_fact

QUALITY_STAGES = ("audit", "quality")
"""Stages whose facts measure the map's quality."""
PICTURE_PIXELS = 420
"""Pixels of the picture's width on the page; the picture itself has twice as many."""


def _html_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head_tags = "".join(f"<th>{escape(name)}</th>" for name in head)
    row_tags = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head_tags}</tr></thead><tbody>{row_tags}</tbody></table>"


def _stage_table(run_status: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for stage in run_status["stages"]:
        usage = ("", "", "")
        if stage["state"] == "done":
            usage = (
                f"{stage['seconds']:.1f}",
                format_bytes(stage["peak_bytes"]),
                format_bytes(stage["projected_bytes"]),
            )
        rows.append((stage["name"], stage["state"], *usage))
    return _html_table(("stage", "state", "seconds", "peak memory", "projected"), rows)


def to_html(run_status: Mapping[str, Any], picture: bytes | str) -> str:
    """Format a run as HTML for a notebook.

    Parameters
    ----------
    run_status : mapping
        The run's status.
    picture : bytes or str
        The map as PNG, or a text that says why there is none.

    Returns
    -------
    str
        A `div` that loads nothing from elsewhere.
    """
    rows, dims = run_status["input"]["shape"]
    facts = {
        name: fact
        for stage in run_status["stages"]
        if stage["name"] in QUALITY_STAGES
        for name, fact in stage["facts"].items()
    }
    seconds = sum(stage["seconds"] or 0.0 for stage in run_status["stages"])
    peak_bytes = max(stage["peak_bytes"] or 0 for stage in run_status["stages"])
    if isinstance(picture, bytes):
        encoded = base64.b64encode(picture).decode()
        picture_tag = f'<img alt="the map" width="{PICTURE_PIXELS}" src="data:image/png;base64,{encoded}">'
    else:
        picture_tag = f"<p>{escape(picture)}</p>"
    title = f"{run_status['output']}: {run_status['state']}, {rows:,} rows x {dims} dims"
    usage_text = f"{seconds:.1f} s in stages, {format_bytes(peak_bytes)} at the most in a process"
    quality_table = _html_table(("quality", ""), [(name, format_fact(fact, ".4f")) for name, fact in facts.items()])
    return (
        f'<div class="dumap-result"><p><b>{escape(title)}</b><br>{escape(usage_text)}</p>'
        f'<div style="display:flex;flex-wrap:wrap;gap:1em">{picture_tag}{quality_table if facts else ""}'
        f"<details><summary>stages</summary>{_stage_table(run_status)}</details></div></div>"
    )

"""Draw a benchmark: the maps side by side, and below them time by stage and peak memory."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr

MAX_POINTS = 100_000
"""Points of a map that are drawn, at the most."""
STAGES = (
    *("load", "vectors", "cells", "neighbors", "audit", "graph", "coarsen", "start", "layout", "embedding"),
    *("quality", "other"),
)
"""Stages in the order in which they are stacked; some are not every program's."""


def first_runs(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the first run of each program that has one."""
    run_of_program: dict[str, dict[str, Any]] = {}
    for entry in figures["runs"]:
        if "failed" not in entry:
            run_of_program.setdefault(entry["name"], entry)
    return list(run_of_program.values())


def draw_benchmark(figures: dict[str, Any], runs_folder: Path, labels: str, out: str) -> bool:
    """Write the picture; tell whether there is one, which takes matplotlib.

    Parameters
    ----------
    figures : dict
        As the benchmark writes them.
    runs_folder : Path
        Has a folder for each run, with its map.
    labels : str
        The array of the data's group that colours the maps, where it is there.
    out : str
    """
    runs = first_runs(figures)
    if find_spec("matplotlib") is None or not runs:
        return False
    from matplotlib.figure import Figure

    runs_with_map = [run for run in runs if (runs_folder / f"{run['name']}-{run['round']}" / "embedding.npy").exists()]
    figure = Figure(
        figsize=(3.2 * max(3, len(runs_with_map)), 7.2 if runs_with_map else 3.6), layout="constrained", dpi=120
    )
    subfigures: Any = (
        figure.subfigures(2, 1, height_ratios=(3, 2)) if runs_with_map else [None, figure.subfigures(1, 1)]
    )
    if runs_with_map:
        colours = _read_colours(figures["data"]["path"], labels)
        for axes, run in zip(np.atleast_1d(subfigures[0].subplots(1, len(runs_with_map))), runs_with_map, strict=True):
            _draw_map(axes, np.load(runs_folder / f"{run['name']}-{run['round']}" / "embedding.npy"), colours)
            axes.set_title(f"{run['name']}\ncross-entropy {run['quality']['xent']:.3f}", fontsize=9)
    time_axes, memory_axes = subfigures[1].subplots(1, 2, sharey=True, width_ratios=(2, 1))
    _draw_times(time_axes, runs)
    subfigures[1].legend(loc="outside lower center", ncols=len(STAGES), fontsize=6, handlelength=1.0, columnspacing=1.0)
    memory_axes.barh([run["name"] for run in runs], [run["peak_bytes"] / 2**30 for run in runs], color="#777777")
    memory_axes.set_xlabel("peak memory of all processes, GiB")
    data, machine = figures["data"], figures["machine"]
    figure.suptitle(
        f"{data['rows']:,} rows x {data['dims']} of {data['dtype']}; {machine['processor']['name']}, "
        f"{machine['cores']} cores, {figures['date'][:10]}",
        fontsize=9,
    )
    figure.savefig(out)
    return True


def _read_colours(data: str, labels: str) -> np.ndarray | None:
    if labels not in zarr.open_group(data, mode="r"):
        return None
    return np.unique(np.asarray(zarr.open_array(data, path=labels, mode="r")[...]), return_inverse=True)[1]


def _draw_map(axes: Any, y: np.ndarray, colours: np.ndarray | None) -> None:
    """Draw the first two components of a sample."""
    drawn_rows = np.random.default_rng(0).permutation(len(y))[:MAX_POINTS]
    size = max(0.05, 2000 / len(drawn_rows))
    colour = "#333333" if colours is None else colours[drawn_rows]
    axes.scatter(
        y[drawn_rows, 0], y[drawn_rows, min(1, y.shape[1] - 1)], s=size, c=colour, cmap="tab20", lw=0, rasterized=True
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")


def _draw_times(axes: Any, runs: list[dict[str, Any]]) -> None:
    """Stack the stages of each run; compiling is not among them."""
    import matplotlib

    names, bar_starts = [run["name"] for run in runs], np.zeros(len(runs))
    colormap = matplotlib.colormaps["tab20"]
    for number, stage in enumerate(STAGES):
        seconds = np.array([run["seconds"]["stages"].get(stage, 0.0) for run in runs])
        if seconds.any():
            axes.barh(names, seconds, left=bar_starts, label=stage, color=colormap(number))
            bar_starts += seconds
    axes.set_xlabel("seconds, compiling left out")
    axes.invert_yaxis()

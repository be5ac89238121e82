"""What the steps of a run took, shortened so that a million tasks fit a page.

A *step* is one call of a task for many parts; the next begins when its last task has ended. A *kind* is all steps of a
stage with the same task, such as the rounds of a layout.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from measuring.counting import REQUEST_NAMES

QUANTILES = 21
"""Task times are kept as so many quantiles, from the least to the greatest, over their mean."""


def summarize_steps(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Shorten the steps and tasks of a counted run.

    Parameters
    ----------
    record : dict
        As `measuring.counting.read_counts` returns it.

    Returns
    -------
    list of dict
        For each kind 'stage', 'task', 'calls' (how many steps), 'tasks' (in all), 'seconds' (mean of a task), 'spread'
        (its quantiles over the mean), 'read_bytes', 'written_bytes' and 'requests' (means of a task), 'wall' (seconds
        of all its steps), 'gap' (mean seconds between two tasks of one process), 'driver_cpu' and 'scheduler_cpu'
        (seconds in all). For each stage one of the task '' whose 'wall' is the time between its steps.
    """
    steps_by_kind: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for step in record["steps"]:
        steps_by_kind[step["stage"], step["task"]].append(step)
    tasks_by_kind: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for task in record["tasks"]:
        tasks_by_kind[task["stage"], task["task"]].append(task)
    summaries = [
        _summarize_kind(*name, steps, tasks_by_kind[name])
        for name, steps in steps_by_kind.items()
        if tasks_by_kind[name]
    ]
    for stage in record["stages"]:
        name = stage["stage"]
        step_seconds = sum(step["ended"] - step["began"] for step in record["steps"] if step["stage"] == name)
        summaries.append(
            {"stage": name, "task": "", "calls": 1, "tasks": 0, "wall": max(0.0, stage["seconds"] - step_seconds)}
        )
    return summaries


def _summarize_kind(stage: str, name: str, steps: list[dict], tasks: list[dict]) -> dict[str, Any]:
    seconds = np.array([task["seconds"] for task in tasks])
    mean_seconds = max(float(seconds.mean()), 1e-9)
    requests = [sum(task[kind] for kind in REQUEST_NAMES) for task in tasks]
    return {
        "stage": stage,
        "task": name,
        "calls": len(steps),
        "tasks": len(tasks),
        "seconds": mean_seconds,
        "spread": np.quantile(seconds / mean_seconds, np.linspace(0, 1, QUANTILES)).round(4).tolist(),
        "read_bytes": float(np.mean([task["read_bytes"] for task in tasks])),
        "written_bytes": float(np.mean([task["written_bytes"] for task in tasks])),
        "requests": float(np.mean(requests)),
        "wall": sum(step["ended"] - step["began"] for step in steps),
        "gap": _median_gap(steps, tasks),
        "driver_cpu": sum(step["driver_cpu"] for step in steps),
        "scheduler_cpu": sum(step["scheduler_cpu"] for step in steps),
    }


def _median_gap(steps: list[dict], tasks: list[dict]) -> float | None:
    """Return the median seconds between a task's end and the next one's begin in its process, within a step."""
    gaps = []
    last_task_of_process: dict[int, dict] = {}
    ends = iter(sorted(step["ended"] for step in steps))
    end = next(ends)
    for task in sorted(tasks, key=lambda task: task["began"]):
        while task["began"] > end:
            end, last_task_of_process = next(ends, float("inf")), {}
        if (previous := last_task_of_process.get(task["pid"])) is not None:
            gaps.append(max(0.0, task["began"] - previous["began"] - previous["seconds"]))
        last_task_of_process[task["pid"]] = task
    return float(np.median(gaps)) if gaps else None

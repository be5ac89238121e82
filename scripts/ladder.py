"""Embed data sets of growing size, and say how time, memory, disk, bytes and requests grow, by stage.

    python scripts/ladder.py --output figures/ladder --rows 300000,1000000,3000000,10000000 [--workers 2]
    python scripts/ladder.py --output figures/ladder --rows 30000000                               # adds to the file
    python scripts/ladder.py --output figures/one-worker --rows 1000000 --workers 1

The rows are of scripts/manifolds.py, 64 columns, made when their turn comes and removed after it; a smaller set is the
beginning of a larger one. Each rung is a run in processes of its own, in rounds (layout.mode=rounds), since one process
holds the layout of a million rows otherwise. Whatever is compiled is compiled by a run of few rows before.

OUTPUT.json is written after each rung, and kept: a rung is measured again only with --again. It holds what
scripts/simulate.py needs, the steps of every stage and what their tasks took. For each rung and stage:

seconds         the stage's time; whole_seconds is from the process's start to its exit
core_seconds    the time of the processors in the stage's tasks
peak_bytes      the most memory of a worker in the stage; of the rung, of all processes together, sampled
read_bytes, written_bytes, requests   what the workers' tasks, and beside them the driver, asked of the store
disk            of the rung: peak_disk_bytes is the most that the run held, disk_bytes what is left

A growth exponent is log(figure / figure of the rung before) / log(rows / rows of the rung before): 1 is linear.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import counting, machine
from measuring.process_tree import ProcessResult, run_watched
from measuring.records import summarize_steps

DEFAULT_ROWS = "300000,1000000,3000000,10000000,30000000"
WARM_ROWS = 20_000
SCRIPTS = Path(__file__).parent
GROWING_FIGURES = ("seconds", "core_seconds", "read_bytes", "written_bytes", "requests")
"""What has a growth exponent."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="PREFIX", help="PREFIX.json is written, or added to")
    parser.add_argument("--rows", default=DEFAULT_ROWS, help="of each rung (%(default)s)")
    parser.add_argument("--dims", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread (%(default)s); 0: threads here")
    parser.add_argument("--memory-limit", default="1.5GiB", help="of each worker (%(default)s)")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="of dumap")
    parser.add_argument("--folder", help="where data and runs are written, and removed; default: beside the output")
    parser.add_argument("--again", action="store_true", help="measure rungs that the file has, too")
    parser.add_argument("--cold", action="store_true", help="do not compile before")
    args = parser.parse_args()
    try:
        args.rows = sorted({int(rows) for rows in args.rows.split(",")})
    except ValueError:
        parser.error(f"--rows {args.rows}: whole numbers, with commas between them")
    return args


def raise_on_failure(result: ProcessResult, step: str) -> ProcessResult:
    """Return what a process took, or end with its last words."""
    if result.exit_code:
        raise SystemExit(f"{step} failed with exit code {result.exit_code}:\n{result.err}")
    return result


def run_settings(args: argparse.Namespace) -> list[str]:
    """Return the settings of every run."""
    cluster_settings = [f"cluster.workers={args.workers}", f"cluster.memory_limit={args.memory_limit}"]
    return [*(cluster_settings if args.workers else ["cluster.engine=local"]), "layout.mode=rounds", *args.settings]


def run_counted(args: argparse.Namespace, data: Path, folder: Path, extra_settings: list[str]) -> ProcessResult:
    """Embed data in a counted process, which leaves its run and its lines in a folder."""
    (folder / "counts").mkdir(parents=True)
    command = [sys.executable, str(SCRIPTS / "measuring" / "counting.py"), str(folder / "counts"), str(data)]
    command += [str(folder / "run" / "run.zarr")]
    for setting in [*run_settings(args), *extra_settings]:
        command += ["--set", setting]
    return raise_on_failure(run_watched(command, folder / "run"), f"the run of {data}")


def make_data(rows: int, dims: int, out: Path) -> None:
    """Write rows of curved manifolds."""
    command = [sys.executable, str(SCRIPTS / "manifolds.py"), str(out), "--rows", str(rows), "--dims", str(dims)]
    raise_on_failure(run_watched(command), f"making {rows} rows")


def figures_by_stage(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage, and of what came before the first."""
    figures_of_stages: dict[str, dict[str, Any]] = {}
    for stage in record["stages"]:
        stage_figures = {name: stage[name] for name in ("seconds", "peak_bytes", "projected_bytes")}
        tasks = [task for task in record["tasks"] if task["stage"] == stage["stage"]]
        figures_of_stages[stage["stage"]] = {
            **stage_figures,
            "core_seconds": sum(task["cpu"] for task in tasks),
            "tasks": len(tasks),
        }
    for stage, roles in record["counts"].items():
        figures = figures_of_stages.setdefault(stage, {})
        for kind in ("read_bytes", "written_bytes"):
            figures[kind] = sum(counts[kind] for counts in roles.values())
        requests_by_role = {
            role: sum(counts[kind] for kind in counting.REQUEST_NAMES) for role, counts in roles.items()
        }
        figures |= {"requests": sum(requests_by_role.values()), "driver_requests": requests_by_role.get("driver", 0)}
    return figures_of_stages


def measure_rung(args: argparse.Namespace, rows: int, folder: Path) -> dict[str, Any]:
    """Measure one size."""
    data = folder / "data.zarr"
    make_data(rows, args.dims, data)
    machine_description = machine.describe_machine()
    result = run_counted(args, data, folder, [])
    record = counting.read_counts(str(folder / "counts"))
    stages = figures_by_stage(record)
    totals = {name: sum(stage.get(name, 0) for stage in stages.values()) for name in GROWING_FIGURES}
    return {
        "rows": rows,
        "dims": args.dims,
        "workers": args.workers,
        "settings": run_settings(args),
        "whole_seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
        "peak_disk_bytes": result.peak_disk_bytes,
        "disk_bytes": result.disk_bytes,
        "whole": totals,
        "stages": stages,
        "steps": summarize_steps(record),
        "measured": machine_description,
    }


def growth_exponent(figure: float, figure_before: float, rows: int, rows_before: int) -> float | None:
    """Return how a figure grows with rows; None where there was nothing before."""
    if figure <= 0 or figure_before <= 0:
        return None
    return math.log(figure / figure_before) / math.log(rows / rows_before)


def growth_exponents(rungs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return exponents from each rung to the next, by stage and for the whole."""
    growths = []
    for before, after in itertools.pairwise(rungs):
        row_counts = before["rows"], after["rows"]
        stages = {"whole": (before["whole"], after["whole"])}
        stages |= {
            name: (before["stages"][name], stage_after)
            for name, stage_after in after["stages"].items()
            if name in before["stages"]
        }
        exponents = {
            stage: {
                name: None if value is None else round(value, 3)
                for name in GROWING_FIGURES
                for value in [growth_exponent(new.get(name, 0), old.get(name, 0), *row_counts[::-1])]
            }
            for stage, (old, new) in stages.items()
        }
        growths.append({"from": row_counts[0], "to": row_counts[1], "exponents": exponents})
    return growths


def format_table(rungs: list[dict[str, Any]], exponents: list[dict[str, Any]]) -> str:
    """Write rungs and exponents for people."""
    lines = []
    for rung in rungs:
        lines.append(
            f"{rung['rows']:,} rows x {rung['dims']}, {rung['workers']} workers: {rung['whole_seconds']:.1f} s, "
            f"peak {rung['peak_bytes'] / 2**20:.0f} MiB of all processes, "
            f"disk {rung['peak_disk_bytes'] / 2**20:.0f} MiB"
        )
        lines.append("  stage        seconds    core s  peak MiB   read MiB   written  requests")
        for name, stage in rung["stages"].items():
            cells = [stage.get("seconds", 0), stage.get("core_seconds", 0), stage.get("peak_bytes", 0) / 2**20]
            cells += [stage.get(kind, 0) / 2**20 for kind in ("read_bytes", "written_bytes")]
            seconds, core, *sizes = cells
            formatted = " ".join(f"{size:>{width}.0f}" for size, width in zip(sizes, (9, 10, 9), strict=True))
            lines.append(f"  {name:<10} {seconds:>9.1f} {core:>9.1f} {formatted} {stage.get('requests', 0):>9}")
    for rung in exponents:
        lines.append(f"growth from {rung['from']:,} to {rung['to']:,} rows: " + ", ".join(GROWING_FIGURES))
        for name, values in rung["exponents"].items():
            formatted = "  ".join("   -" if values[kind] is None else f"{values[kind]:.2f}" for kind in GROWING_FIGURES)
            lines.append(f"  {name:<10} {formatted}")
    return "\n".join(lines)


def main() -> None:
    """Measure the rungs that are not there yet, and write all."""
    args = parse_arguments()
    output = Path(f"{args.output}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    rungs: list[dict[str, Any]] = json.loads(output.read_text())["rungs"] if output.exists() else []
    if any((rung["settings"], rung["dims"]) != (run_settings(args), args.dims) for rung in rungs):
        raise SystemExit(f"{output} has rungs of other settings: name another output")
    folder = args.folder or output.parent
    work_folder = Path(tempfile.mkdtemp(prefix="dumap-ladder-", dir=folder))
    try:
        if not args.cold:
            make_data(min(WARM_ROWS, *args.rows), args.dims, work_folder / "warm.zarr")
            run_counted(
                args, work_folder / "warm.zarr", work_folder / "warm", ["layout.n_epochs=3", "cells.max_rows=5000"]
            )
        for rows in args.rows:
            if any(rung["rows"] == rows for rung in rungs) and not args.again:
                print(f"{rows:,} rows: measured before", flush=True)
                continue
            rungs = [rung for rung in rungs if rung["rows"] != rows]
            rung_folder = work_folder / str(rows)
            rung_folder.mkdir()
            rungs = sorted([*rungs, measure_rung(args, rows, rung_folder)], key=lambda rung: rung["rows"])
            shutil.rmtree(rung_folder)
            output.write_text(json.dumps({"rungs": rungs, "growth": growth_exponents(rungs)}) + os.linesep)
            print(f"{rows:,} rows: measured", flush=True)
    finally:
        shutil.rmtree(work_folder, ignore_errors=True)
    print(format_table(rungs, growth_exponents(rungs)))
    print(output)


if __name__ == "__main__":
    main()

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
from measuring.process_tree import Watched, run_watched
from measuring.records import steps_of

RUNGS = "300000,1000000,3000000,10000000,30000000"
WARM_ROWS = 20_000
HERE = Path(__file__).parent
GROWING = ("seconds", "core_seconds", "read_bytes", "written_bytes", "requests")
"""What has a growth exponent."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="PREFIX", help="PREFIX.json is written, or added to")
    parser.add_argument("--rows", default=RUNGS, help="of each rung (%(default)s)")
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


def checked(watched: Watched, what: str) -> Watched:
    """Return what a process took, or end with its last words."""
    if watched.code:
        raise SystemExit(f"{what} failed with exit code {watched.code}:\n{watched.err}")
    return watched


def settings_of(args: argparse.Namespace) -> list[str]:
    """Return the settings of every run."""
    where = [f"cluster.workers={args.workers}", f"cluster.memory_limit={args.memory_limit}"]
    return [*(where if args.workers else ["cluster.engine=local"]), "layout.mode=rounds", *args.settings]


def embed(args: argparse.Namespace, data: Path, folder: Path, more: list[str]) -> Watched:
    """Embed data in a counted process, which leaves its run and its lines in a folder."""
    (folder / "counts").mkdir(parents=True)
    command = [sys.executable, str(HERE / "measuring" / "counting.py"), str(folder / "counts"), str(data)]
    command += [str(folder / "run" / "run.zarr")]
    for setting in [*settings_of(args), *more]:
        command += ["--set", setting]
    return checked(run_watched(command, folder / "run"), f"the run of {data}")


def make_data(rows: int, dims: int, out: Path) -> None:
    """Write rows of curved manifolds."""
    command = [sys.executable, str(HERE / "manifolds.py"), str(out), "--rows", str(rows), "--dims", str(dims)]
    checked(run_watched(command), f"making {rows} rows")


def figures_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of each stage, and of what came before the first."""
    found: dict[str, dict[str, Any]] = {}
    for stage in record["stages"]:
        own = {name: stage[name] for name in ("seconds", "peak_bytes", "projected_bytes")}
        tasks = [task for task in record["tasks"] if task["stage"] == stage["stage"]]
        found[stage["stage"]] = {**own, "core_seconds": sum(task["cpu"] for task in tasks), "tasks": len(tasks)}
    for stage, roles in record["counts"].items():
        figures = found.setdefault(stage, {})
        for kind in ("read_bytes", "written_bytes"):
            figures[kind] = sum(counts[kind] for counts in roles.values())
        asked = {role: sum(counts[kind] for kind in counting.REQUESTS) for role, counts in roles.items()}
        figures |= {"requests": sum(asked.values()), "driver_requests": asked.get("driver", 0)}
    return found


def rung(args: argparse.Namespace, rows: int, place: Path) -> dict[str, Any]:
    """Measure one size."""
    data = place / "data.zarr"
    make_data(rows, args.dims, data)
    described = machine.describe()
    watched = embed(args, data, place, [])
    record = counting.read(str(place / "counts"))
    stages = figures_of(record)
    whole = {name: sum(stage.get(name, 0) for stage in stages.values()) for name in GROWING}
    return {
        "rows": rows,
        "dims": args.dims,
        "workers": args.workers,
        "settings": settings_of(args),
        "whole_seconds": watched.seconds,
        "peak_bytes": watched.peak_bytes,
        "peak_disk_bytes": watched.peak_disk_bytes,
        "disk_bytes": watched.disk_bytes,
        "whole": whole,
        "stages": stages,
        "steps": steps_of(record),
        "measured": described,
    }


def exponent(figure: float, before: float, rows: int, rows_before: int) -> float | None:
    """Return how a figure grows with rows; None where there was nothing before."""
    if figure <= 0 or before <= 0:
        return None
    return math.log(figure / before) / math.log(rows / rows_before)


def growth(rungs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return exponents from each rung to the next, by stage and for the whole."""
    found = []
    for before, after in itertools.pairwise(rungs):
        between = before["rows"], after["rows"]
        stages = {"whole": (before["whole"], after["whole"])}
        stages |= {
            name: (before["stages"][name], own) for name, own in after["stages"].items() if name in before["stages"]
        }
        exponents = {
            stage: {
                name: None if value is None else round(value, 3)
                for name in GROWING
                for value in [exponent(new.get(name, 0), old.get(name, 0), *between[::-1])]
            }
            for stage, (old, new) in stages.items()
        }
        found.append({"from": between[0], "to": between[1], "exponents": exponents})
    return found


def table(rungs: list[dict[str, Any]], exponents: list[dict[str, Any]]) -> str:
    """Write rungs and exponents for people."""
    lines = []
    for one in rungs:
        lines.append(
            f"{one['rows']:,} rows x {one['dims']}, {one['workers']} workers: {one['whole_seconds']:.1f} s, peak "
            f"{one['peak_bytes'] / 2**20:.0f} MiB of all processes, disk {one['peak_disk_bytes'] / 2**20:.0f} MiB"
        )
        lines.append("  stage        seconds    core s  peak MiB   read MiB   written  requests")
        for name, stage in one["stages"].items():
            cells = [stage.get("seconds", 0), stage.get("core_seconds", 0), stage.get("peak_bytes", 0) / 2**20]
            cells += [stage.get(kind, 0) / 2**20 for kind in ("read_bytes", "written_bytes")]
            seconds, core, *sizes = cells
            shown = " ".join(f"{size:>{width}.0f}" for size, width in zip(sizes, (9, 10, 9), strict=True))
            lines.append(f"  {name:<10} {seconds:>9.1f} {core:>9.1f} {shown} {stage.get('requests', 0):>9}")
    for one in exponents:
        lines.append(f"growth from {one['from']:,} to {one['to']:,} rows: " + ", ".join(GROWING))
        for name, values in one["exponents"].items():
            shown = "  ".join("   -" if values[kind] is None else f"{values[kind]:.2f}" for kind in GROWING)
            lines.append(f"  {name:<10} {shown}")
    return "\n".join(lines)


def main() -> None:
    """Measure the rungs that are not there yet, and write all."""
    args = parse()
    output = Path(f"{args.output}.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    rungs: list[dict[str, Any]] = json.loads(output.read_text())["rungs"] if output.exists() else []
    if any((one["settings"], one["dims"]) != (settings_of(args), args.dims) for one in rungs):
        raise SystemExit(f"{output} has rungs of other settings: name another output")
    folder = args.folder or output.parent
    place = Path(tempfile.mkdtemp(prefix="dumap-ladder-", dir=folder))
    try:
        if not args.cold:
            make_data(min(WARM_ROWS, *args.rows), args.dims, place / "warm.zarr")
            embed(args, place / "warm.zarr", place / "warm", ["layout.n_epochs=3", "cells.max_rows=5000"])
        for rows in args.rows:
            if any(one["rows"] == rows for one in rungs) and not args.again:
                print(f"{rows:,} rows: measured before", flush=True)
                continue
            rungs = [one for one in rungs if one["rows"] != rows]
            own = place / str(rows)
            own.mkdir()
            rungs = sorted([*rungs, rung(args, rows, own)], key=lambda one: one["rows"])
            shutil.rmtree(own)
            output.write_text(json.dumps({"rungs": rungs, "growth": growth(rungs)}) + os.linesep)
            print(f"{rows:,} rows: measured", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(table(rungs, growth(rungs)))
    print(output)


if __name__ == "__main__":
    main()

"""Run dumap and other programs on one Zarr store, by turns, each in a process of its own, and judge their maps alike.

    python scripts/digits.py digits.zarr --rows 100000 --columns 784 --dtype uint8
    python scripts/benchmark.py digits.zarr --output figures/digits-100k [--rounds 3] [--only dumap,umap-learn]

Peers: umap-learn, PaCMAP and openTSNE make maps, pynndescent finds neighbours alone; all use all processors and have no
seed. Each is installed from PyPI into an environment of its own, below --environments, unless --installed says to use
what the running environment has. One that cannot be installed, or fails, is reported as such.

Writes OUTPUT.json and, where matplotlib is there, OUTPUT.png; prints a table. The JSON says for each run:

seconds.process   from the process's start to its exit; for dumap this is what counts: with imports, workers' start,
                  reading the store and writing the map
seconds.counted   what is compared: dumap's process; a peer's load and fit, so that its imports and compiling are free
seconds.stages    by stage, as each program divides its work; dumap's start and end are 'other'
seconds.warm      compiling, apart: peers fit the first rows before they are timed; dumap embeds them in earlier
                  processes. kernels_compiled counts what dumap compiled nevertheless while it was timed: 0 if warm
peak_bytes        the most memory of all its processes together, sampled; shared memory is counted once
disk_bytes        what it left in its folder, and peak_disk_bytes the most that it had there
quality           as scripts/judge.py says; 'dumap_worse' names figures in which dumap is behind that peer
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import judge
import numpy as np
import zarr
from measuring import machine, peers, picture
from measuring.contenders import PEERS, WARM_ROWS
from measuring.process_tree import ProcessResult, run_watched

from dumap.compiled import CACHED_PACKAGES, choose_cache_folder

DUMAP = "dumap"
CONTENDERS = (DUMAP, *PEERS)
SCRIPTS = Path(__file__).parent
WARM_CELL_ROWS = 1500
"""Rows of a cell in the run that compiles: several cells have guests, as those of a large run."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a Zarr group with vectors and, to judge by them, labels")
    parser.add_argument("--output", required=True, metavar="PREFIX", help="PREFIX.json and PREFIX.png are written")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="some of: %(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is run, by turns (%(default)s)")
    parser.add_argument("--once", default="", metavar="NAMES", help="those that are run in the first round alone")
    parser.add_argument("--array", default="vectors")
    parser.add_argument("--labels", default="labels")
    parser.add_argument("--components", type=int, default=2)
    parser.add_argument("--queries", type=int, default=2000, help="rows that maps are judged by (%(default)s)")
    parser.add_argument("--workers", type=int, default=machine.count_cores(), help="of dumap, processes")
    parser.add_argument("--memory-limit", default="2GiB", help="of each of these (%(default)s)")
    parser.add_argument("--engine", choices=["dask", "local", "auto"], default="dask", help="dumap's (%(default)s)")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="of dumap")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="after which one is ended, and reported so")
    environment_options = parser.add_mutually_exclusive_group()
    environment_options.add_argument("--environments", type=Path, default=peers.default_folder(), help="(%(default)s)")
    environment_options.add_argument(
        "--installed", action="store_true", help="use peers of the running environment, install none"
    )
    parser.add_argument("--folder", help="where runs are written, and removed; default: beside the output")
    args = parser.parse_args()
    args.only, args.once = ([name for name in names.split(",") if name] for names in (args.only, args.once))
    if unknown_names := {*args.only, *args.once} - set(CONTENDERS):
        parser.error(f"not among {', '.join(CONTENDERS)}: {', '.join(sorted(unknown_names))}")
    if args.rounds < 1 or not args.only:
        parser.error("--rounds must be at least 1, and --only name one at least")
    return args


def describe_failure(result: ProcessResult) -> str | None:
    """Say why a process gave no result; None if it has."""
    if result.exit_code is None:
        return f"ended after {result.seconds:.0f} s, since its time was up"
    if result.exit_code:
        lines = result.err.strip().splitlines()
        return f"exit code {result.exit_code}: {lines[-1] if lines else 'it said nothing'}"
    return None


def memory_and_disk(result: ProcessResult) -> dict[str, Any]:
    """Return the memory and disk that a process and its children took."""
    return {
        "peak_bytes": result.peak_bytes,
        "peak_process_bytes": result.peak_process_bytes,
        "peak_disk_bytes": result.peak_disk_bytes,
        "disk_bytes": result.disk_bytes,
    }


# peers -------------------------------------------------------------------------------------------


def run_peer(args: argparse.Namespace, name: str, interpreter: str, folder: Path) -> dict[str, Any]:
    """Run a peer once."""
    program = str(SCRIPTS / "measuring" / "contenders.py")
    threads = str(machine.count_cores())
    command = [interpreter, program, name, os.path.abspath(args.data), str(folder)]
    command += ["--array", args.array, "--threads", threads, "--components", str(args.components)]
    result = run_watched(command, folder, {"TMPDIR": str(folder)}, args.timeout)
    if (failure := describe_failure(result)) is not None:
        return {"failed": failure, "seconds": {"process": result.seconds}, **memory_and_disk(result)}
    report = json.loads(result.out.strip().splitlines()[-1])
    seconds = {"process": result.seconds, **report["seconds"]}
    seconds["counted"] = seconds["load"] + seconds["fit"]
    stages = {"load": seconds["load"], **seconds.pop("stages")}
    return {"versions": report["versions"], "seconds": {**seconds, "stages": stages}, **memory_and_disk(result)}


# dumap -------------------------------------------------------------------------------------------


def dumap_command(*arguments: str) -> list[str]:
    """Return a command of dumap's, by this interpreter."""
    return [sys.executable, "-m", "dumap", *arguments]


def embed_command(args: argparse.Namespace, data: str, run: str, extra_settings: list[str]) -> list[str]:
    """Return the command that embeds data."""
    arguments = ["run", "--input", data, "--output", run, "--n-components", str(args.components), "--array", args.array]
    if args.engine == "dask":
        arguments += ["--workers", str(args.workers), "--memory-limit", args.memory_limit]
    else:
        arguments += ["--set", f"cluster.engine={args.engine}"]
    return dumap_command(
        *arguments, *(argument for setting in [*args.settings, *extra_settings] for argument in ("--set", setting))
    )


def warm_up_dumap(args: argparse.Namespace, folder: Path) -> float:
    """Have dumap embed the first rows, in one process and in rounds; return the seconds."""
    vectors = zarr.open_array(args.data, path=args.array, mode="r")
    rows = min(WARM_ROWS, vectors.shape[0])
    data, seconds = folder / "warm.zarr", 0.0
    group = zarr.open_group(data, mode="w")
    group.create_array(args.array, data=np.asarray(vectors[:rows]), chunks=(min(rows, 1024), vectors.shape[1]))
    for mode in ("host", "rounds"):
        warm_up_settings = [f"cells.max_rows={WARM_CELL_ROWS}", "layout.n_epochs=2", f"layout.mode={mode}"]
        result = run_watched(embed_command(args, str(data), str(folder / f"{mode}.zarr"), warm_up_settings))
        if (failure := describe_failure(result)) is not None:
            raise SystemExit(f"dumap cannot embed the first rows of {args.data}: {failure}")
        seconds += result.seconds
    shutil.rmtree(folder)
    return seconds


def count_compiled_kernels() -> int:
    """Count the kernels of dumap's and pynndescent's that numba keeps compiled."""
    choose_cache_folder()
    if cache_folder := os.environ.get("NUMBA_CACHE_DIR"):
        return sum(1 for _ in Path(cache_folder).rglob("*.nbc"))
    packages = [find_spec(name) for name in CACHED_PACKAGES]
    folders = [Path(package.origin).parent for package in packages if package is not None and package.origin]
    return sum(1 for folder in folders for _ in folder.rglob("*.nbc"))


def run_dumap(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run dumap once, and export its map and its lists."""
    run, kernels_before = str(folder / "run.zarr"), count_compiled_kernels()
    result = run_watched(
        embed_command(args, os.path.abspath(args.data), run, []), folder, {"TMPDIR": str(folder)}, args.timeout
    )
    if (failure := describe_failure(result)) is not None:
        return {"failed": failure, "seconds": {"process": result.seconds}, **memory_and_disk(result)}
    newly_compiled = count_compiled_kernels() - kernels_before
    run_status = json.loads(
        subprocess.run(dumap_command("status", run, "--json"), capture_output=True, check=True).stdout
    )
    for artifact, ending in (("embedding", ".npy"), ("neighbors", ".npz")):
        subprocess.run(
            dumap_command("export", run, artifact, str(folder / f"{artifact}{ending}")), capture_output=True, check=True
        )
    with np.load(folder / "neighbors.npz") as lists:
        np.save(folder / "neighbors.npy", lists["indices"])
    stages = {stage["name"]: stage["seconds"] for stage in run_status["stages"]}
    stages["other"] = result.seconds - sum(stages.values())
    seconds = {"process": result.seconds, "counted": result.seconds, "stages": stages}
    versions = {"dumap": run_status["versions"]["dumap"]}
    peak_bytes = {stage["name"]: stage["peak_bytes"] for stage in run_status["stages"]}
    return {
        "versions": versions,
        "seconds": seconds,
        **memory_and_disk(result),
        "worker_peak_bytes": peak_bytes,
        "kernels_compiled": newly_compiled,
        "facts": {stage["name"]: stage["facts"] for stage in run_status["stages"]},
    }


# the whole ---------------------------------------------------------------------------------------


def run_all(args: argparse.Namespace, runs_folder: Path) -> list[dict[str, Any]]:
    """Run all by turns; the maps and lists of each run lie in a folder of its own afterwards."""
    entries: list[dict[str, Any]] = []
    interpreters: dict[str, str] = {}
    for name in args.only:
        try:
            if name != DUMAP:
                interpreters[name] = peers.interpreter_of(name, None if args.installed else args.environments)
        except peers.PeerNotInstalled as error:
            entries.append({"name": name, "round": 0, "failed": str(error)})
            print(f"{name}: {error}", flush=True)
    runnable = [name for name in args.only if name == DUMAP or name in interpreters]
    warm_seconds = warm_up_dumap(args, runs_folder / "warm") if DUMAP in runnable else 0.0
    for round_number in range(args.rounds):
        first = round_number % len(runnable) if runnable else 0
        for name in runnable[first:] + runnable[:first]:
            if round_number and name in args.once:
                continue
            folder = runs_folder / f"{name}-{round_number}"
            folder.mkdir(parents=True)
            if name == DUMAP:
                entry = run_dumap(args, folder)
                entry["seconds"]["warm"] = warm_seconds
                shutil.rmtree(folder / "run.zarr", ignore_errors=True)
            else:
                entry = run_peer(args, name, interpreters[name], folder)
            entries.append({"name": name, "round": round_number, **entry})
            print(format_entry(entries[-1]), flush=True)
    return entries


def judge_all(args: argparse.Namespace, runs_folder: Path, entries: list[dict[str, Any]]) -> None:
    """Judge the maps and lists of all runs, and compare those of dumap with the peers' of the same round."""
    succeeded = [entry for entry in entries if "failed" not in entry]
    if not succeeded:
        return
    sample = judge.draw_sample(args.data, args.array, args.labels, args.queries)
    for entry in succeeded:
        folder = runs_folder / f"{entry['name']}-{entry['round']}"
        quality: dict[str, float] = {}
        try:
            if (folder / "embedding.npy").exists():
                quality |= judge.judge_map(sample, np.load(folder / "embedding.npy"))
        except ValueError as error:
            entry["failed"] = str(error)
            continue
        if (folder / "neighbors.npy").exists():
            quality["recall"] = judge.recall(sample, np.load(folder / "neighbors.npy"))
        entry["quality"] = judge.round_figures(quality)
    succeeded = [entry for entry in succeeded if "failed" not in entry]
    dumap_entries = [entry for entry in succeeded if entry["name"] == DUMAP]
    for entry in succeeded:
        if entry["name"] != DUMAP and dumap_entries:
            dumap_entry = next(
                (candidate for candidate in dumap_entries if candidate["round"] == entry["round"]), dumap_entries[0]
            )
            entry["dumap_worse"] = judge.list_worse_figures(dumap_entry["quality"], entry["quality"])


def summarize(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians by program, and how many times dumap's time and memory each peer takes."""
    summary: dict[str, Any] = {}
    for name in dict.fromkeys(entry["name"] for entry in entries):
        succeeded = [entry for entry in entries if entry["name"] == name and "failed" not in entry]
        if not succeeded:
            summary[name] = {"failed": next(entry["failed"] for entry in entries if entry["name"] == name)}
            continue
        summary[name] = {
            "runs": len(succeeded),
            "seconds": statistics.median(entry["seconds"]["counted"] for entry in succeeded),
            "peak_bytes": max(entry["peak_bytes"] for entry in succeeded),
        }
    dumap_figures = summary.get(DUMAP, {})
    for name, figures in summary.items():
        if name != DUMAP and "seconds" in figures and "seconds" in dumap_figures:
            figures["times_dumaps_seconds"] = round(figures["seconds"] / dumap_figures["seconds"], 3)
            figures["times_dumaps_memory"] = round(figures["peak_bytes"] / dumap_figures["peak_bytes"], 3)
    return summary


def format_entry(entry: dict[str, Any]) -> str:
    """Write a run for people."""
    if "failed" in entry:
        return f"{entry['name']}: {entry['failed']}"
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in entry["seconds"]["stages"].items())
    return (
        f"{entry['name']}: {entry['seconds']['counted']:.1f} s ({stages}), {entry['peak_bytes'] / 2**30:.2f} GiB, "
        f"compiling apart {entry['seconds']['warm']:.1f} s"
    )


def format_table(entries: list[dict[str, Any]]) -> str:
    """Write all runs as a table."""
    names = ("xent", "kept15", "trust15", "label15", "silhouette", "recall")
    lines = ["| | seconds | GiB | disk MiB | " + " | ".join(names) + " |", "|---" * (4 + len(names)) + "|"]
    for entry in entries:
        if "failed" in entry:
            lines.append(f"| {entry['name']} | {entry['failed']} |" + " |" * (2 + len(names)))
            continue
        cells = [f"{entry['seconds']['counted']:.1f}", f"{entry['peak_bytes'] / 2**30:.2f}"]
        cells.append(f"{entry['peak_disk_bytes'] / 2**20:.0f}")
        cells += [f"{entry['quality'][name]:.3f}" if name in entry["quality"] else "" for name in names]
        lines.append(f"| {entry['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, judge, write and print."""
    args, machine_description = parse_arguments(), machine.describe_machine()
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    vectors = zarr.open_array(args.data, path=args.array, mode="r")
    runs_folder = Path(tempfile.mkdtemp(prefix="dumap-benchmark-", dir=args.folder or output.parent))
    try:
        entries = run_all(args, runs_folder)
        judge_all(args, runs_folder, entries)
        data = {"path": args.data, "rows": vectors.shape[0], "dims": vectors.shape[1], "dtype": str(vectors.dtype)}
        data["made"] = dict(zarr.open_group(args.data, mode="r").attrs)
        figures = {**machine_description, "data": data, "runs": entries, "summary": summarize(entries)}
        Path(f"{output}.json").write_text(json.dumps(figures, indent=1) + "\n")
        has_picture = picture.draw_benchmark(figures, runs_folder, args.labels, f"{output}.png")
    finally:
        shutil.rmtree(runs_folder, ignore_errors=True)
    print(format_table(entries))
    print(
        f"{output}.json" + (f" and {output}.png" if has_picture else "; no picture, since matplotlib is not installed")
    )


if __name__ == "__main__":
    main()

"""What a run is of: its parameters and its data. Other parameters or data are refused.

The versions that began the run are recorded, too; what they bind is in `provenance.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import VECTORS
from dumap.artifacts.vectors import COORDINATES, FLAGS
from dumap.config import INITS, Config, differences
from dumap.engine import Engine, Observer
from dumap.errors import RunMismatchError
from dumap.recipe.stage_names import ALL_STAGES, DONE, RUN_KEYS
from dumap.sources.spooled import Spooled
from dumap.stages.fingerprints import fingerprint, fingerprint_lists
from dumap.store import IDENTITY, Rows, Run, relative_location

DATA: dict[str, tuple[str, Callable[[Job], str]]] = {
    "input": ("fingerprint", fingerprint),
    "precomputed": ("precomputed_fingerprint", fingerprint_lists),
}
"""What a job reads: the fact of stage vectors that holds its fingerprint, and the function that computes it again."""


def check_chunks(job: Job, note: Callable[[str], None]) -> None:
    """Refuse an input with missing chunks, or report those that are read as the fill value."""
    config, absent = job.config, job.input.absent
    if config.input.missing == "error":
        job.input.require_chunks("input.missing=fill")
    elif absent.chunks:
        note(f"input: {absent}; they are read as the array's fill value (input.missing = fill)")
    if config.neighbors.precomputed is not None:
        job.precomputed.require_chunks()
    if config.start.init not in INITS:
        Rows(config.start.init).require_chunks()


def data_of(config: Config) -> list[str]:
    """Name what a run reads, as a job and the run's attributes do."""
    return ["input"] if config.neighbors.precomputed is None else list(DATA)


def create(job: Job, engine: Engine, parent: Run | None = None) -> None:
    """Create the run's identity and its final arrays, as far as they are missing; NaN and 255 mean 'not yet'."""
    config, geometry = job.config, job.geometry
    job.run.make_folders(RUN_KEYS)
    job.run.create(
        {
            "kind": "dumap run",
            "parameters": config.parameters(),
            "seed": config.seed,
            "versions": engine.versions,
            "cpus": engine.cpus,
            **{what: getattr(job, what).describe() for what in data_of(config)},
            **({} if parent is None else {"parent": relative_location(parent.location, job.run.location)}),
        }
    )
    if not job.run.is_committed(IDENTITY, "results"):
        chunk, shape = min(geometry.output_rows, geometry.rows), (geometry.rows, config.layout.n_components)
        with job.run.part(IDENTITY, "results") as out:
            out.create_final("embedding", shape, "float32", chunk, np.nan, COORDINATES)
            out.create_final("status", shape[:1], "uint8", chunk, 255, FLAGS)
    describe_input(job.run)
    job.run.renew()


def describe_input(run: Run) -> None:
    """Add the input's fingerprints to the run's attributes, once stage vectors has read all rows."""
    if run.is_committed(DONE, VECTORS):
        facts = run.summary(DONE, VECTORS)["facts"]
        run.describe({fact: facts[fact] for fact, _ in DATA.values() if fact in facts})


def lost_identity(run: Run) -> list[str]:
    """List identity manifests that are missing."""
    begun = any(run.committed(stage) for stage in (DONE, *ALL_STAGES))
    needed = {"run": True, "results": begun, "input": run.is_committed(DONE, VECTORS)}
    return [part for part, wanted in needed.items() if wanted and not run.is_committed(IDENTITY, part)]


def check_data(job: Job, what: str, note: Callable[[str], None]) -> None:
    """Refuse other data than a run was begun with. The data is only read again if sizes or times of its objects
    differ.
    """
    run, source, (fact, fingerprint) = job.run, getattr(job, what), DATA[what]
    began, now = run.attributes[what], source.describe()
    if any(began[name] != now[name] for name in ("shape", "dtype")):
        raise RunMismatchError(
            f"{run.location} was begun with {what} of shape {tuple(began['shape'])} and dtype {began['dtype']}; "
            f"{source.path} has {tuple(now['shape'])} and {now['dtype']}: give the same {what}, or another output"
        )
    if began["signature"] != now["signature"]:
        if isinstance(source, Spooled):
            raise RunMismatchError(
                f"{run.location} was begun with other data than the {source.what} that is given now: give the same, or "
                f"name another output"
            )
        note(f"{source.path}: its objects' sizes or times differ from when the run was begun; reading it anew")
        if run.attributes.get(fact) != fingerprint(job):
            raise RunMismatchError(
                f"{source.path} holds other data than when {run.location} was begun, or was changed before all of it "
                f"was read: name another output"
            )


def check_same(job: Job, observer: Observer) -> None:
    """Refuse to go on with a run of other parameters or other input."""
    run, config = job.run, job.config
    attributes = run.attributes
    changed = differences(attributes["parameters"], config.parameters())
    if changed:
        raise RunMismatchError(
            f"{run.location} was begun with other parameters; nothing was touched. The difference:\n  "
            + "\n  ".join(changed)
            + f"\nGive the same parameters, or another output: with --parent {run.location} it reads what is equal"
        )
    for what in data_of(config):
        check_data(job, what, observer.note)

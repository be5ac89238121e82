"""The identity of a run: its parameters and its data. Other parameters or other data are refused.

The identity also records the versions that began the run, which `provenance.py` checks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import VECTORS
from dumap.artifacts.vectors import EMBEDDING_ATTRIBUTES, STATUS_ATTRIBUTES
from dumap.config import INIT_METHODS, Config, describe_differences
from dumap.engine import Engine, Observer
from dumap.errors import RunMismatchError
from dumap.recipe.stage_names import ALL_STAGES, DONE, RUN_KEYS
from dumap.sources.spooled import SpooledInput
from dumap.stages.fingerprints import fingerprint_input, fingerprint_lists
from dumap.store import IDENTITY, ExternalArray, Run, relative_location

INPUT_FINGERPRINTS: dict[str, tuple[str, Callable[[Job], str]]] = {
    "input": ("fingerprint", fingerprint_input),
    "precomputed": ("precomputed_fingerprint", fingerprint_lists),
}
"""For each input of a job: the fact of the stage vectors that is its fingerprint, and the function that computes it."""


def check_chunks(job: Job, log: Callable[[str], None]) -> None:
    """Refuse an input with missing chunks, or note those that are read as the fill value."""
    config, missing_chunks = job.config, job.input.missing_chunks
    if config.input.missing == "error":
        job.input.require_chunks("input.missing=fill")
    elif missing_chunks.chunks:
        log(f"input: {missing_chunks}; they are read as the array's fill value (input.missing = fill)")
    if config.neighbors.precomputed is not None:
        job.precomputed.require_chunks()
    if config.start.init not in INIT_METHODS:
        ExternalArray(config.start.init).require_chunks()


def input_names(config: Config) -> list[str]:
    """Return the names of the inputs that a run reads: attributes of a job and of the run."""
    return ["input"] if config.neighbors.precomputed is None else list(INPUT_FINGERPRINTS)


def create_run(job: Job, engine: Engine, parent: Run | None = None) -> None:
    """Create the run's identity and its final arrays unless they exist; the arrays are filled with NaN and 255."""
    config, geometry = job.config, job.geometry
    job.run.make_folders(RUN_KEYS)
    job.run.create(
        {
            "kind": "dumap run",
            "parameters": config.parameters(),
            "seed": config.seed,
            "versions": engine.versions,
            "cpus": engine.cpus,
            **{name: getattr(job, name).describe() for name in input_names(config)},
            **({} if parent is None else {"parent": relative_location(parent.location, job.run.location)}),
        }
    )
    if not job.run.is_committed(IDENTITY, "results"):
        chunk, shape = min(geometry.output_rows, geometry.rows), (geometry.rows, config.layout.n_components)
        with job.run.part(IDENTITY, "results") as out:
            out.create_final_array("embedding", shape, "float32", chunk, np.nan, EMBEDDING_ATTRIBUTES)
            out.create_final_array("status", shape[:1], "uint8", chunk, 255, STATUS_ATTRIBUTES)
    record_fingerprints(job.run)
    job.run.update_metadata()


def record_fingerprints(run: Run) -> None:
    """Add the input's fingerprints to the run's attributes if the stage vectors is done."""
    if run.is_committed(DONE, VECTORS):
        facts = run.part_facts(DONE, VECTORS)["facts"]
        run.describe({fact: facts[fact] for fact, _ in INPUT_FINGERPRINTS.values() if fact in facts})


def missing_identity_parts(run: Run) -> list[str]:
    """List the manifests of the run's identity that are missing."""
    begun = any(run.committed_parts(stage) for stage in (DONE, *ALL_STAGES))
    parts = {"run": True, "results": begun, "input": run.is_committed(DONE, VECTORS)}
    return [part for part, needed in parts.items() if needed and not run.is_committed(IDENTITY, part)]


def check_same_input(job: Job, input_name: str, log: Callable[[str], None]) -> None:
    """Refuse other data than the run was begun with.

    The data is read again only if the sizes or times of its objects differ.
    """
    run, source, (fact, compute_fingerprint) = job.run, getattr(job, input_name), INPUT_FINGERPRINTS[input_name]
    recorded, current = run.attributes[input_name], source.describe()
    if any(recorded[name] != current[name] for name in ("shape", "dtype")):
        raise RunMismatchError(
            f"{run.location} was begun with {input_name} of shape {tuple(recorded['shape'])} and dtype "
            f"{recorded['dtype']}; {source.path} has {tuple(current['shape'])} and {current['dtype']}: give the same "
            f"{input_name}, or another output"
        )
    if recorded["signature"] != current["signature"]:
        if isinstance(source, SpooledInput):
            raise RunMismatchError(
                f"{run.location} was begun with other data than the {source.what} that is given now: give the same, or "
                f"name another output"
            )
        log(f"{source.path}: its objects' sizes or times differ from when the run was begun; reading it anew")
        if run.attributes.get(fact) != compute_fingerprint(job):
            raise RunMismatchError(
                f"{source.path} holds other data than when {run.location} was begun, or was changed before all of it "
                f"was read: name another output"
            )


def check_same_run(job: Job, observer: Observer) -> None:
    """Refuse to continue a run with other parameters or other data."""
    run, config = job.run, job.config
    attributes = run.attributes
    changed = describe_differences(attributes["parameters"], config.parameters())
    if changed:
        raise RunMismatchError(
            f"{run.location} was begun with other parameters; nothing was touched. The difference:\n  "
            + "\n  ".join(changed)
            + f"\nGive the same parameters, or another output: with --parent {run.location} it reads what is equal"
        )
    for input_name in input_names(config):
        check_same_input(job, input_name, observer.note)

"""What stages come to: a digest of all on which a stage's bytes depend, chained along the stages that it reads.

A stage's digest is that of its name, its version, its own settings that are not at their default, and the digests of
the stages that it reads. The first stage, which reads the input, is known by how the input looks; those after it
depend on what the input holds, as the first stage found: a copy of the input in equal chunks gives those the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import VECTORS
from dumap.config import Config, build
from dumap.errors import RunMismatchError
from dumap.recipe.identity import DATA, data_of
from dumap.recipe.stage_names import DONE
from dumap.stages import Recipe, Stage, settings_of

METADATA = ("shape", "dtype", "signature")
"""What a run records of the metadata of its input."""


@cache
def _defaults() -> Config:
    """Return the configuration in which every setting is at its default."""
    return build({"input": {"path": "-"}, "output": "-"})


def changed_settings(stage: Stage, config: Config) -> dict[str, Any]:
    """Return a stage's settings that are not at their default. The others are left out, so that a new setting changes
    no digest.
    """
    plain = settings_of(_defaults(), stage.keys)
    return {key: value for key, value in settings_of(config, stage.keys).items() if value != plain[key]}


def digest_of(stage: Stage, config: Config, reads: Mapping[str, Any]) -> str:
    """Digest a stage, given the configuration and the digests of the stages that it reads."""
    depends_on = [stage.name, stage.version, changed_settings(stage, config), dict(reads)]
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def chain(
    recipe: Recipe, config: Config, input_metadata: Mapping[str, Any], input_content: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Digest a recipe's stages, by name.

    Parameters
    ----------
    recipe : Recipe
    config : Config
    input_metadata : mapping
        Shape, dtype and signature of what is read, and how it is cut.
    input_content : mapping, optional
        Shape, dtype and fingerprint, and how it is cut. Where that is not known yet, only stages that read no other
        get a digest.
    """
    found: dict[str, str] = {}
    upstream: dict[str, str] = {}
    for stage in recipe:
        if not stage.reads:
            found[stage.name] = digest_of(stage, config, input_metadata)
            if input_content is not None:
                upstream[stage.name] = digest_of(stage, config, input_content)
        elif input_content is not None:
            found[stage.name] = upstream[stage.name] = digest_of(
                stage, config, {name: upstream[name] for name in stage.reads}
            )
    return found


def digests(recipe: Recipe, job: Job, attributes: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, str]:
    """Digest a recipe's stages as a job comes to them.

    Parameters
    ----------
    recipe : Recipe
    job : Job
    attributes : mapping
        A run's attributes, or others like them, with the metadata of what is read.
    facts : mapping, optional
        What the first stage found of it.
    """
    read, blocks = data_of(job.config), {"block_rows": job.geometry.block_rows}
    input_metadata = {what: {name: attributes[what][name] for name in METADATA} for what in read}
    if facts is None:
        return chain(recipe, job.config, {**input_metadata, **blocks})
    input_content = {
        what: {
            "shape": input_metadata[what]["shape"],
            "dtype": input_metadata[what]["dtype"],
            "fingerprint": facts.get(DATA[what][0]),
        }
        for what in read
    }
    return chain(recipe, job.config, {**input_metadata, **blocks}, {**input_content, **blocks})


def digests_of_run(recipe: Recipe, job: Job) -> dict[str, str]:
    """Digest the stages of the job's run, as far as its first stage is done."""
    facts = job.run.summary(DONE, VECTORS)["facts"] if job.run.is_committed(DONE, VECTORS) else None
    return digests(recipe, job, job.run.attributes, facts)


def check_digests(recipe: Recipe, job: Job) -> None:
    """Refuse a run with finished stages that this version of dumap would make differently.

    Raises
    ------
    RunMismatchError
    """
    expected = digests_of_run(recipe, job)
    for stage in recipe:
        if stage.reads and job.run.is_committed(DONE, stage.name):
            digest = job.run.summary(DONE, stage.name).get("digest")
            if digest not in (None, expected.get(stage.name, digest)):
                raise RunMismatchError(
                    f"{job.run.location}: this version of dumap makes stage {stage.name} otherwise than it was made "
                    f"there: use the version that began this run, or name another output"
                )

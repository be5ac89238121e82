"""Digests of stages: a stage's digest covers everything that its bytes depend on.

It is the digest of the stage's name, its version, its settings that differ from their defaults, and the digests of the
stages that it reads. The first stage reads the input, and its digest covers the input's metadata. The digests of later
stages cover the input's content, of which the first stage computes a fingerprint. A copy of the input in equal chunks
therefore gives later stages the same digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import VECTORS
from dumap.config import Config, build_config
from dumap.errors import RunMismatchError
from dumap.recipe.identity import INPUT_FINGERPRINTS, input_names
from dumap.recipe.stage_names import DONE
from dumap.stages import Recipe, Stage, settings_of

METADATA_KEYS = ("shape", "dtype", "signature")
"""The metadata of the input that a run records."""


@cache
def _default_config() -> Config:
    """Return the configuration of all defaults."""
    return build_config({"input": {"path": "-"}, "output": "-"})


def changed_settings(stage: Stage, config: Config) -> dict[str, Any]:
    """Return a stage's settings that differ from their defaults.

    Defaults are left out, so that a new setting does not change the digests of existing runs.
    """
    defaults = settings_of(_default_config(), stage.setting_keys)
    return {key: value for key, value in settings_of(config, stage.setting_keys).items() if value != defaults[key]}


def stage_digest(stage: Stage, config: Config, reads: Mapping[str, Any]) -> str:
    """Return the digest of a stage, given the configuration and the digests of the stages that it reads."""
    depends_on = [stage.name, stage.version, changed_settings(stage, config), dict(reads)]
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def chain_digests(
    recipe: Recipe, config: Config, input_metadata: Mapping[str, Any], input_content: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return the digests of a recipe's stages, by name.

    Parameters
    ----------
    recipe : Recipe
    config : Config
    input_metadata : mapping
        Shape, dtype and signature of each input, and the size of blocks.
    input_content : mapping, optional
        Shape, dtype and fingerprint of each input, and the size of blocks. Without it, only stages that read no other
        stage get a digest.
    """
    digests_by_stage: dict[str, str] = {}
    upstream: dict[str, str] = {}
    for stage in recipe:
        if not stage.reads:
            digests_by_stage[stage.name] = stage_digest(stage, config, input_metadata)
            if input_content is not None:
                upstream[stage.name] = stage_digest(stage, config, input_content)
        elif input_content is not None:
            upstream[stage.name] = stage_digest(stage, config, {name: upstream[name] for name in stage.reads})
            digests_by_stage[stage.name] = upstream[stage.name]
    return digests_by_stage


def compute_digests(
    recipe: Recipe, job: Job, attributes: Mapping[str, Any], facts: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return the digests of a recipe's stages for a job.

    Parameters
    ----------
    recipe : Recipe
    job : Job
    attributes : mapping
        The metadata of each input by name, as in the attributes of a run.
    facts : mapping, optional
        The facts of the first stage, which hold the fingerprints.
    """
    inputs, blocks = input_names(job.config), {"block_rows": job.geometry.block_rows}
    input_metadata = {name: {key: attributes[name][key] for key in METADATA_KEYS} for name in inputs}
    if facts is None:
        return chain_digests(recipe, job.config, {**input_metadata, **blocks})
    input_content = {
        name: {
            "shape": input_metadata[name]["shape"],
            "dtype": input_metadata[name]["dtype"],
            "fingerprint": facts.get(INPUT_FINGERPRINTS[name][0]),
        }
        for name in inputs
    }
    return chain_digests(recipe, job.config, {**input_metadata, **blocks}, {**input_content, **blocks})


def run_digests(recipe: Recipe, job: Job) -> dict[str, str]:
    """Return the digests of the stages of the job's run; only the first stage's until that stage is done."""
    facts = job.run.part_facts(DONE, VECTORS)["facts"] if job.run.is_committed(DONE, VECTORS) else None
    return compute_digests(recipe, job, job.run.attributes, facts)


def check_digests(recipe: Recipe, job: Job) -> None:
    """Refuse a run with finished stages whose digests differ from those that this version of dumap computes.

    Raises
    ------
    RunMismatchError
    """
    expected = run_digests(recipe, job)
    for stage in recipe:
        if stage.reads and job.run.is_committed(DONE, stage.name):
            digest = job.run.part_facts(DONE, stage.name).get("digest")
            if digest not in (None, expected.get(stage.name, digest)):
                raise RunMismatchError(
                    f"{job.run.location}: this version of dumap makes stage {stage.name} otherwise than it was made "
                    f"there: use the version that began this run, or name another output"
                )

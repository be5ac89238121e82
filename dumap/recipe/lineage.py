"""The parent of a run: another run whose finished stages are inherited if this run would make the same bytes.

An inherited stage is committed by reference. Its manifest names the run that holds the parts, and tasks read the parts
there. The only thing written to the parent is a note that it has a child (`family.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import NEIGHBORS, VECTORS
from dumap.config import Config
from dumap.errors import DamageError, DroppedError, RunMismatchError, StorageError
from dumap.recipe.digests import compute_digests, run_digests
from dumap.recipe.family import inherited_stages, parent_of, register_child
from dumap.recipe.identity import INPUT_FINGERPRINTS, input_names, record_fingerprints
from dumap.recipe.locations import check_no_overlap, is_same_location
from dumap.recipe.recipes import geometry_of, recipe_of
from dumap.recipe.stage_names import DONE
from dumap.stages import Recipe, Stage
from dumap.store import INHERITED, Run, internal_location, relative_location, wait_for_driver_end
from dumap.store.disk import normalize

# before a run ------------------------------------------------------------------------------------


def open_parent(output: str, given_parent: str | None) -> Run | None:
    """Open the given parent, or the parent that a run was begun with; it need not exist.

    Raises
    ------
    RunMismatchError
        The run was begun with another parent or without a parent.
    StorageError
        The parent and the output overlap.
    """
    run = Run(output, read_only=True)
    known_parent, is_begun = (parent_of(run), True) if run.exists() else (None, False)
    if given_parent is not None:
        given_parent = normalize(internal_location(given_parent))
        check_no_overlap(output, given_parent, "parent")
        if is_begun and (known_parent is None or not is_same_location(known_parent, given_parent)):
            begun_with = "without a parent" if known_parent is None else f"with the parent {known_parent}"
            raise RunMismatchError(f"{output} was begun {begun_with}: leave {given_parent} out, or name another output")
    location = given_parent or known_parent
    return None if location is None else Run(location, read_only=True, child=output)


def lost_stages(run: Run) -> list[tuple[str, str]]:
    """List the inherited stages that their runs no longer hold unchanged, each with the location of that run."""
    lost = []
    for stage, origin in inherited_stages(run).items():
        origin_run, manifest = Run(origin, read_only=True, inherited={}), run.part_facts(DONE, stage)
        try:
            origin_manifest = origin_run.is_committed(DONE, stage) and origin_run.part_facts(DONE, stage)
            is_lost = (
                not origin_manifest
                or origin_manifest["digest"] != manifest["digest"]
                or set(manifest["parts"]) - set(origin_run.committed_parts(stage))
            )
        except (DamageError, KeyError):
            is_lost = True
        if is_lost:
            lost.append((stage, origin))
    return lost


def check_parent(job: Job, parent: Run | None, log: Callable[[str], None]) -> Recipe:
    """Return the stages that a run makes itself; refuse a parent that cannot be read now or has other data.

    Raises
    ------
    LockError
        A driver works on the parent, or on another run that holds inherited stages.
    RunMismatchError
        The parent's data has another shape or dtype.
    StorageError
        The parent does not exist or has another format, or an inherited stage is lost.
    """
    recipe = recipe_of(job.config)
    if parent is None:
        return recipe
    inherited = inherited_stages(job.run)
    for location in dict.fromkeys([parent.location, *inherited.values()]):
        origin_run = Run(location, read_only=True, child=job.run.location)
        if not origin_run.exists():
            raise StorageError(
                f"{location} is no run, and {job.config.output} reads stages there: name the parent where it lies now "
                f"in another output, or put it back"
            )
        if terms := origin_run.list_terms():
            wait_for_driver_end(origin_run, terms[-1], log, f"reading it for {job.config.output}")
    if lost_inherited := lost_stages(job.run):
        names = ", ".join(f"{stage} of {origin}" for stage, origin in lost_inherited)
        raise StorageError(
            f"{job.config.output} reads stages that are not there any more: {names}. Have 'dumap run' make them there "
            f"again, or name another output"
        )
    attributes = parent.attributes
    for input_name in input_names(job.config):
        current, recorded = getattr(job, input_name).describe(), attributes.get(input_name)
        if recorded is not None and any(recorded[name] != current[name] for name in ("shape", "dtype")):
            raise RunMismatchError(
                f"nothing of {parent.location} is equal: its {input_name} has shape {tuple(recorded['shape'])} and "
                f"dtype {recorded['dtype']}, {current['path']} has {tuple(current['shape'])} and {current['dtype']}; "
                f"leave the parent out"
            )
    not_made = {*inherited, *inheritable_stages(recipe, job, parent)}
    if not not_made:
        log(f"{parent.location}: none of its finished stages is as this run's; all are made")
    return tuple(stage for stage in recipe if stage.name not in not_made)


def inheritable_stages(recipe: Recipe, job: Job, parent: Run) -> list[str]:
    """List the stages of a parent that a run would inherit, assuming that both have the same data."""
    facts = parent.part_facts(DONE, VECTORS)["facts"] if parent.is_committed(DONE, VECTORS) else None
    sources = {name: getattr(job, name).describe() for name in input_names(job.config)}
    digests_here = compute_digests(recipe, job, sources, facts)
    return [stage.name for stage in recipe if _has_equal_stage(stage, parent, digests_here.get(stage.name))]


def _has_equal_stage(stage: Stage, parent: Run, digest: str | None) -> bool:
    """Return whether a parent has finished a stage with this digest; never for stages that write results."""
    if digest is None or stage.writes_results or not parent.is_committed(DONE, stage.name):
        return False
    return parent.part_facts(DONE, stage.name).get("digest") == digest


def with_parents_width(config: Config, parent: Run) -> Config:
    """Return the configuration with the parent's width if the run can then inherit the parent's lists."""
    neighbors, recorded = config.neighbors, parent.attributes["parameters"]["neighbors"]
    width = recorded.get("width") or recorded["n_neighbors"]
    if neighbors.width is not None or neighbors.n_neighbors >= width:
        return config
    widened = config.model_copy(update={"neighbors": neighbors.model_copy(update={"width": width})})
    return (
        widened
        if NEIGHBORS in inheritable_stages(recipe_of(widened), Job(widened, geometry_of(widened)), parent)
        else config
    )


def with_recorded_width(config: Config, run: Run) -> Config:
    """Return the configuration with the width that the run was begun with, if the configuration names no width."""
    neighbors, recorded = config.neighbors, run.attributes["parameters"]["neighbors"]
    if neighbors.width is not None or neighbors.n_neighbors != recorded["n_neighbors"] or not recorded.get("width"):
        return config
    return config.model_copy(update={"neighbors": neighbors.model_copy(update={"width": recorded["width"]})})


def resolve_parent(config: Config, given_parent: str | None, log: Callable[[str], None]) -> tuple[Config, Run | None]:
    """Return the configuration, with the parent's width if its lists can be inherited, and the parent or None."""
    parent, run = open_parent(config.output, given_parent), Run(config.output, read_only=True)
    if parent is None:
        return config, None
    widened = with_recorded_width(config, run) if run.exists() else with_parents_width(config, parent)
    if widened != config:
        log(f"neighbors.width is {widened.neighbors.width}, as in {parent.location}, whose lists are read")
    return widened, parent


# during a run ------------------------------------------------------------------------------------


def check_parent_data(job: Job, parent: Run) -> None:
    """Refuse a parent with other data, if both runs have read all of their data."""
    if not (parent.is_committed(DONE, VECTORS) and job.run.is_committed(DONE, VECTORS)):
        return
    facts, parent_facts = job.run.part_facts(DONE, VECTORS)["facts"], parent.part_facts(DONE, VECTORS)["facts"]
    for input_name in input_names(job.config):
        fact = INPUT_FINGERPRINTS[input_name][0]
        if fact in parent_facts and facts[fact] != parent_facts[fact]:
            raise RunMismatchError(
                f"nothing of {parent.location} is equal: its {input_name} held other data than "
                f"{getattr(job, input_name).path}; name another output, without a parent"
            )


def inherit_stage(recipe: Recipe, stage: Stage, job: Job, parent: Run, log: Callable[[str], None]) -> bool:
    """Commit a stage by reference to the parent if their digests are equal; return whether it was.

    A stage of which this run has committed parts is not inherited, but continued.
    """
    check_parent_data(job, parent)
    if job.run.committed_parts(stage.name) or not _has_equal_stage(
        stage, parent, run_digests(recipe, job).get(stage.name)
    ):
        return False
    manifest, owner = parent.part_facts(DONE, stage.name), parent.owning_run(stage.name)
    if missing_parts := sorted(set(manifest["parts"]) - set(owner.committed_parts(stage.name))):
        raise owner.damage_error(stage.name, missing_parts[0], "its manifest")
    register_child(owner.location, job.run.location, log)
    with job.run.part(DONE, stage.name) as out:
        out.attributes |= {**manifest, "seconds": 0.0, INHERITED: relative_location(owner.location, job.run.location)}
    if job.inherited is not None:
        job.inherited[stage.name] = owner.location
    if stage.name == VECTORS:
        record_fingerprints(job.run)
    log(f"{stage.name}: read through {owner.location}")
    return True


def uncommit_inherited_stage(job: Job, error: DamageError, log: Callable[[str], None]) -> bool:
    """If the run that holds an inherited stage has dropped the missing part, uncommit the stage here, and return True.

    The pipeline then makes the stage in this run.
    """
    if not isinstance(error, DroppedError) or job.inherited is None or error.stage not in job.inherited:
        return False
    origin = job.inherited.pop(error.stage)
    job.run.uncommit(DONE, error.stage)
    log(f"{error.stage}: {origin} dropped {error.part}, which is needed: the stage is made here (see the setting keep)")
    return True

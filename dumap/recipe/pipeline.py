"""Runs the stages of a recipe in order, skips finished stages, and makes damaged parts again."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import AUDIT, CELLS, LAYOUT, VECTORS
from dumap.config import Config, format_bytes
from dumap.engine import Engine, Observer
from dumap.engine.engine_choice import choose_engine, open_engine
from dumap.errors import DamageError, DumapError
from dumap.planning.audits import without_repairs
from dumap.planning.budget import PAUSE_FRACTION, unprojected_bytes
from dumap.planning.plan import Plan
from dumap.recipe.damage import uncommit_part
from dumap.recipe.digests import check_digests, run_digests
from dumap.recipe.family import inherited_stages, register_child
from dumap.recipe.identity import check_chunks, check_same_run, create_run, missing_identity_parts, record_fingerprints
from dumap.recipe.keep import check_not_dropped, drop_unneeded, has_nothing_to_drop, uncommit_dropped
from dumap.recipe.lineage import check_parent, inherit_stage, open_parent, resolve_parent, uncommit_inherited_stage
from dumap.recipe.locations import check_locations, free_disk_bytes, prepare_output, with_normalized_locations
from dumap.recipe.observers import LockObserver, LogObserver
from dumap.recipe.provenance import begin_stage, check_provenance, final_provenance, required_provenance
from dumap.recipe.recipes import geometry_of, make_plan, recipe_until
from dumap.recipe.stage_names import DONE, RUN_KEYS
from dumap.recipe.status import status
from dumap.recipe.work import find_work_place, publish_results, with_work_place_output
from dumap.sources.row_names import keep_names
from dumap.sources.spooled import SPOOL, ObjectRows
from dumap.stages import Context, Recipe, Stage, Task
from dumap.store import Lock, Run, write_work_pointer

if TYPE_CHECKING:
    from distributed import Client
MAX_REMAKES = 3
"""The most times that one call makes a part again. If the part is damaged more often, the disk is not reliable."""


def plan(config: Config, parent: str | None = None) -> Plan:
    """Project a run without starting it; with a parent, only the stages that the run makes itself.

    Raises
    ------
    InputError
        The input cannot be read or embedded.
    """
    memory_limit, log, config = (
        config.cluster.memory_limit or 0,
        LogObserver().note,
        with_normalized_locations(config, parent),
    )
    if parent is None:
        return make_plan(config, geometry_of(config), memory_limit)
    config, parent_run = resolve_parent(with_work_place_output(config, find_work_place(config)), parent, log)
    job = Job(config, geometry_of(config))
    return plan_own_stages(job, find_own_stages(job, parent_run, log), memory_limit)


def find_own_stages(job: Job, parent: Run | None, log: Callable[[str], None]) -> Recipe:
    """Return the stages that a run makes itself: all stages but those that it inherits from its parent."""
    recipe, own_stages = recipe_until(job.config, job.last_stage), check_parent(job, parent, log)
    if parent is not None:
        check_not_dropped(tuple(stage for stage in recipe if stage not in own_stages), parent)
    return tuple(stage for stage in own_stages if stage in recipe)


def plan_own_stages(job: Job, stages: Recipe, worker_memory: int) -> Plan:
    """Project the stages that a run makes itself; the plan also names the inherited stages."""
    inherited_names = tuple(stage.name for stage in recipe_until(job.config, job.last_stage) if stage not in stages)
    return replace(make_plan(job.config, job.geometry, worker_memory, stages), inherited=inherited_names)


def run(
    config: Config,
    client: Client | None = None,
    observer: Observer | None = None,
    force: bool = False,
    parent: str | None = None,
    object_rows: ObjectRows | None = None,
    last: str | None = None,
) -> dict:
    """Embed a data set, or continue a run that an earlier call began.

    Parameters
    ----------
    config : Config
    client : distributed.Client, optional
        A client to use instead of the cluster that `config.cluster` names.
    observer : Observer, optional
    force : bool
        Continue stages that were begun with other versions of the libraries, or on other processors.
    parent : str, optional
        Another run. This run inherits the finished stages of the parent for which it would make the same bytes. A run
        that was begun with a parent knows its parent.
    object_rows : ObjectRows, optional
        The rows of the object that `input.path` stands for.
    last : str, optional
        The stage after which the run stops; a later call without it continues the run.

    Returns
    -------
    dict
        See `status`.

    Raises
    ------
    DumapError
    """
    observer, config = observer or LogObserver(), with_normalized_locations(config, parent)
    output, work = config.output, find_work_place(config)
    if work is None:
        return _run_recipe(config, client, observer, force, parent, object_rows, last)
    _run_recipe(with_work_place_output(config, work), client, observer, force, parent, object_rows, last, output)
    write_work_pointer(output, work)
    if last is None:
        publish_results(work, output, observer.note)
    return status(output)


def _run_recipe(
    config: Config,
    client: Client | None,
    observer: Observer,
    force: bool,
    parent: str | None,
    object_rows: ObjectRows | None,
    last: str | None,
    published_output: str | None = None,
) -> dict:
    """Make a run in the place of its internal folder; `published_output` is the output if that is another place."""
    check_locations(config, RUN_KEYS)
    is_begun = Run(config.output, read_only=True).exists()  # read-only, since opening it for writing makes its folder
    config, parent_run = resolve_parent(config, parent, observer.note)
    job, recipe = Job(config, geometry_of(config), object_rows=object_rows, last_stage=last), recipe_until(config, last)
    if is_begun:
        check_same_run(job, observer)
        if not missing_identity_parts(job.run) and all(job.run.is_committed(DONE, stage.name) for stage in recipe):
            outcome = "nothing to do"
            if not has_nothing_to_drop(job.run, recipe, config.keep):
                with Lock(job.run, observer.note):
                    freed = drop_unneeded(job.run, recipe, config.keep, should_finish_drops=True)
                outcome = f"{format_bytes(freed)} were dropped, since keep is {config.keep}"
            observer.note(f"{config.output}: finished before; {outcome}")
            return status(config.output)
    check_chunks(job, observer.note)
    stages = find_own_stages(job, parent_run, observer.note)
    job = replace(job, inherited=inherited_stages(job.run) if is_begun else {})
    projected = plan_own_stages(job, stages, config.cluster.memory_limit or 0)
    if config.cluster.memory_limit and client is None:  # before a cluster starts, whose workers could be too small
        projected.check(config.cluster.memory_limit, None)
    memory_needed = math.ceil(projected.peak_bytes / PAUSE_FRACTION)
    record = required_provenance(job.run, recipe) if is_begun and not force else None
    engine_choice = choose_engine(config.cluster, projected, client)
    with (
        open_engine(engine_choice, config.cluster, client, observer, memory_needed) as engine,
        contextlib.closing(engine),
    ):
        engine.set_requirements(record, plan_own_stages(job, stages, 0).peak_bytes)
        engine.preflight()
        _run_on_engine(job, parent_run, stages, engine, observer, force, is_begun, published_output)
    return status(config.output)


def _run_on_engine(
    job: Job,
    parent: Run | None,
    stages: Recipe,
    engine: Engine,
    observer: Observer,
    force: bool,
    is_begun: bool,
    published_output: str | None,
) -> None:
    """Make a run's stages on an engine, while holding the run's lock."""
    output, object_rows = job.config.output, job.object_rows
    projected, recipe = plan_own_stages(job, stages, engine.worker_memory), recipe_until(job.config, job.last_stage)
    finished_stages = [stage.name for stage in recipe if job.run.is_committed(DONE, stage.name)]
    written_bytes = sum(job.run.stage_bytes(stage.name) for stage in recipe if stage.name not in finished_stages)
    projected.check(
        engine.worker_memory, free_disk_bytes(output), engine.worker_threads, finished_stages, written_bytes
    )
    prepare_output(output)
    engine.check_output_visible(output)
    try:
        with Lock(job.run, observer.note) as lock:
            job.term, job.token = job.run.term, job.run.token
            if not is_begun and job.run.exists():  # another driver has begun the run in the meantime
                check_same_run(job, observer)
                open_parent(output, None if parent is None else parent.location)
            create_run(job, engine, parent)
            if published_output is not None:
                write_work_pointer(published_output, output)
            keep_names(job.run, job.input, None if object_rows is None else object_rows.names)
            check_provenance(job.run, recipe, engine, force)
            if parent is not None:
                register_child(parent.location, output, observer.note)
            engine.require_run_visible(job.run, projected.peak_bytes)
            run_stages(recipe, job, projected, engine, LockObserver(observer, lock), force, parent)
            job.run.update_metadata()
    except (DumapError, KeyboardInterrupt) as error:
        error.add_note(f"What is committed in {output} is kept; the same command goes on from there.")
        raise


def run_stages(
    recipe: Recipe,
    job: Job,
    projected: Plan,
    engine: Engine,
    observer: Observer,
    force: bool = False,
    parent: Run | None = None,
) -> None:
    """Run the stages of a recipe that are not done; make a part again if it is found damaged."""
    remakes: dict[tuple[str, str], int] = {}
    remade: set[str] = set()
    while True:
        try:
            check_digests(recipe, job)
            if not remakes:  # a part that is made again must stay until all stages that read it are done
                drop_unneeded(job.run, recipe, job.config.keep, should_finish_drops=True)
            for stage in recipe:
                if job.run.is_committed(DONE, stage.name):
                    continue
                if (
                    parent is None
                    or stage.name in remade
                    or not inherit_stage(recipe, stage, job, parent, observer.note)
                ):
                    begin_stage(job.run, stage.name, engine, force)
                    _run_stage(recipe, stage, job, engine, observer)
                    if not remakes:
                        drop_unneeded(job.run, recipe, job.config.keep)
            drop_unneeded(job.run, recipe, job.config.keep)
            return
        except DamageError as error:
            part = (error.stage, error.part)
            remakes[part] = remakes.get(part, 0) + 1
            if remakes[part] > MAX_REMAKES:
                raise
            if uncommit_inherited_stage(job, error, observer.note):
                remade.add(error.stage)
            elif not uncommit_dropped(job.run, error, observer.note):
                observer.note(f"{error}: it is made again")
                uncommit_part(job.run, *part)
            create_run(job, engine, parent)
            engine.require_run_visible(job.run, projected.peak_bytes)


def _run_stage(recipe: Recipe, stage: Stage, job: Job, engine: Engine, observer: Observer) -> None:
    """Run one stage of a recipe and commit it."""
    name = stage.name
    projected = plan_with_facts(recipe, job, engine.worker_memory)
    observer.started(name, projected.stage(name).process_bytes(engine.worker_threads))
    start_time, engine.peak_bytes, engine.held_bytes = time.monotonic(), 0, 0
    compute = _make_compute(job, engine, observer)
    context = Context(job, projected, compute, engine.threads, engine.host_threads, engine.worker_memory, observer.note)
    facts = stage.run(context)
    seconds = time.monotonic() - start_time
    if name == AUDIT:
        projected = plan_with_facts(recipe, job, engine.worker_memory, repairs=facts["repairs"])
    projected_bytes = projected.stage(name).process_bytes(engine.worker_threads) + unprojected_bytes(
        name, engine.held_bytes
    )
    digest = run_digests(recipe, job)[name]
    with job.run.part(DONE, name) as out:
        out.attributes |= {
            "engine": engine.name,
            "seconds": round(seconds, 3),
            "projected_bytes": projected_bytes,
            "peak_bytes": engine.peak_bytes,
            "facts": facts,
            "parts": job.run.committed_parts(name),
            "digest": digest,
            **final_provenance(job.run, name, engine),
        }
    if name == VECTORS:
        record_fingerprints(job.run)
    if name == LAYOUT:
        engine.free_caches()
    observer.finished(name, seconds, projected_bytes, engine.peak_bytes, facts)


def plan_with_facts(recipe: Recipe, job: Job, worker_memory: int, repairs: int | None = None) -> Plan:
    """Project a run with the facts of its finished stages: the sizes of cells, and the number of repairs.

    Parameters
    ----------
    recipe : Recipe
    job : Job
    worker_memory : int
    repairs : int, optional
        The number of repairs. [the fact of the stage audit, if that is done]
    """
    run, config, geometry = job.run, job.config, job.geometry
    if run.is_committed(DONE, CELLS):
        facts = run.part_facts(DONE, CELLS)["facts"]
        geometry = replace(geometry.with_cells(facts), cells=facts["cells"])
    if repairs is None and run.is_committed(DONE, AUDIT):
        repairs = run.part_facts(DONE, AUDIT)["facts"]["repairs"]
    plan = make_plan(without_repairs(config) if repairs == 0 else config, geometry, worker_memory, recipe)
    return plan if job.object_rows is None else plan.with_task(SPOOL, job.object_rows.task_bytes)


def _make_compute(job: Job, engine: Engine, observer: Observer) -> Any:
    """Return the function by which a stage runs tasks, see `dumap.stages.Context`."""

    def compute(
        stage: str, task: Task, parts: list[str], progress: tuple[float, float] | None = None, **options: Any
    ) -> None:
        """Run a task for the parts that are not committed.

        If this call is one of several equal steps, `progress` is the number of steps before it, and of all steps.
        """
        committed: set[str] = set(job.run.committed_parts(stage))
        missing_parts = [part for part in parts if part not in committed]

        def advanced(done: float, total: float) -> None:
            if progress is None:
                finished_before = len(parts) - len(missing_parts) if total == len(missing_parts) else 0
                observer.advanced(stage, finished_before + done, max(total, len(parts)))
            else:
                observer.advanced(stage, min(progress[0] + done / total, progress[1]), progress[1])

        if missing_parts:
            run_parts = engine.spool if stage == SPOOL else engine.map
            run_parts(task, replace(job, stage=stage), missing_parts, options, advanced)

    return compute

"""Recipes, which are the stages of a run in order, and the plan of a run."""

from __future__ import annotations

import math

import numpy as np

from dumap.artifacts.part_names import EMBEDDING
from dumap.config import Config
from dumap.errors import ConfigError, InputError
from dumap.kernels.pairs import SPARSE_METRICS
from dumap.kernels.vectors import BIT_METRICS
from dumap.planning.audits import loads_pynndescent
from dumap.planning.budget import interpreter_bytes
from dumap.planning.geometry import Geometry, make_geometry
from dumap.planning.plan import Plan, StagePlan, StageProjection, estimate_core_seconds
from dumap.planning.sparse import EntryCounts
from dumap.planning.steps import END_READS, END_WRITES, MANIFEST_BYTES, manifest_bytes, read_requests, write_requests
from dumap.sources.opening import open_source
from dumap.sources.spooled import is_spooled
from dumap.sources.zarr_array import PrecomputedNeighbors
from dumap.stages import (
    Recipe,
    Stage,
    audit,
    cells,
    coarsen,
    embedding,
    given,
    graph,
    layout,
    neighbors,
    quality,
    spool,
    start,
    vectors,
)

STAGES_AFTER_LISTS: Recipe = (graph.STAGE, coarsen.STAGE, start.STAGE, layout.STAGE, embedding.STAGE, quality.STAGE)
"""The stages of every run after its lists of neighbours are made."""
SEARCH_RECIPE: Recipe = (vectors.STAGE, cells.STAGE, neighbors.STAGE, audit.STAGE, *STAGES_AFTER_LISTS)
"""The stages of a run that searches neighbours, audits the lists and repairs them if needed."""
GIVEN_NEIGHBORS_RECIPE: Recipe = (
    given.VECTORS_GIVEN,
    given.CELLS_GIVEN,
    given.NEIGHBORS_GIVEN,
    given.AUDIT_GIVEN,
    *STAGES_AFTER_LISTS,
)
"""The stages of a run with given neighbours, which are not repaired."""


def recipe_of(config: Config) -> Recipe:
    """Return the recipe that a configuration asks for."""
    stages = SEARCH_RECIPE if config.neighbors.precomputed is None else GIVEN_NEIGHBORS_RECIPE
    return (spool.STAGE, *stages) if is_spooled(config.input.paths[0]) else stages


def recipe_until(config: Config, last: str | None) -> Recipe:
    """Return the recipe that a configuration asks for, as far as stage `last`; None for all of it."""
    recipe = recipe_of(config)
    end = len(recipe) if last is None else [stage.name for stage in recipe].index(last) + 1
    return recipe[:end]


def geometry_of(config: Config) -> Geometry:
    """Return the geometry of the input that a configuration names.

    Raises
    ------
    InputError
        The input cannot be read or embedded.
    """
    source = open_source(config.input)
    if source.sparse and config.neighbors.metric not in SPARSE_METRICS:
        raise ConfigError(
            f"neighbors.metric = {config.neighbors.metric} is not computed of sparse rows; allowed are "
            f"{', '.join(sorted(SPARSE_METRICS))}: take one of them, or give the rows dense"
        )
    if config.neighbors.metric in BIT_METRICS and source.dtype != np.uint8:
        raise InputError(
            f"{config.input.name}: neighbors.metric = {config.neighbors.metric} is of bits packed into uint8, and the "
            f"rows are {source.dtype}: pack them (numpy.packbits(x, axis=1)), or take hamming or jaccard"
        )
    path = config.neighbors.precomputed
    precomputed = None if path is None else PrecomputedNeighbors(path, source.rows)
    entries = EntryCounts(source.entries, source.max_window_entries) if source.sparse else None
    shape = (source.rows, source.dims, source.dtype.itemsize, source.chunk_rows)
    return make_geometry(config, *shape, precomputed, entries)


def temporary_bytes(
    stage: Stage, projection: StageProjection, recipe: Recipe, keep: str
) -> tuple[tuple[int, frozenset[str]], ...]:
    """Return the bytes of a stage that are deleted, each with the stages that must be done first: see `keep.py`."""
    if keep == "all":
        return ()
    temporary = tuple(
        (size, frozenset(stage.temporary_kinds[kind])) for kind, size in projection.temporary_bytes.items()
    )
    if keep == "model" or stage.name == EMBEDDING:
        return temporary
    readers = frozenset(other.name for other in recipe if stage.name in other.reads)
    return (*temporary, (projection.disk_bytes - sum(projection.temporary_bytes.values()), readers))


def make_plan(config: Config, geometry: Geometry, worker_memory: int = 0, recipe: Recipe | None = None) -> Plan:
    """Project every stage of a recipe.

    Parameters
    ----------
    config : Config
    geometry : Geometry
    worker_memory : int
        The smallest memory limit of a worker, 0 if it is not known. The layout runs on one host if this limit allows.
    recipe : Recipe, optional
        The stages to project. [the recipe that the configuration asks for]
    """
    stages, recipe = [], recipe_of(config) if recipe is None else recipe
    for stage in recipe:
        projection = stage.project(geometry, config, worker_memory)
        process_bytes = interpreter_bytes(stage.name, loads_pynndescent(config, stage.name))
        peak_bytes = process_bytes + math.ceil(projection.task_bytes)
        deleted_bytes = temporary_bytes(stage, projection, recipe, config.keep)
        stages.append(
            StagePlan(
                name=stage.name,
                tasks=projection.tasks,
                reads=read_requests(projection.steps, geometry.chunks_a_block) + END_READS * (stage is recipe[-1]),
                writes=write_requests(projection.steps) + END_WRITES * (stage is recipe[-1]),
                shuffled_bytes=projection.shuffled_bytes + manifest_bytes(projection.steps),
                written_bytes=projection.disk_bytes + projection.replaced_bytes + projection.tasks * MANIFEST_BYTES,
                disk_bytes=projection.disk_bytes,
                peak_bytes=peak_bytes,
                held_bytes=process_bytes,
                temporary=deleted_bytes,
            )
        )
    return Plan(geometry, tuple(stages), estimate_core_seconds(config, geometry, {stage.name for stage in recipe}))

"""The names of all stages in order, and the keys of a run."""

from __future__ import annotations

from dumap.artifacts.part_names import (
    AUDIT,
    CELLS,
    COARSEN,
    EMBEDDING,
    GRAPH,
    LAYOUT,
    NEIGHBORS,
    QUALITY,
    START,
    VECTORS,
)
from dumap.sources.spooled import SPOOL
from dumap.store import DONE, RunKeys

STAGES = (VECTORS, CELLS, NEIGHBORS, AUDIT, GRAPH, COARSEN, START, LAYOUT, EMBEDDING, QUALITY)
"""The stages that every run has."""
ALL_STAGES = (SPOOL, *STAGES)
"""All stages; only runs of objects have a spool."""
RUN_KEYS = RunKeys(ALL_STAGES, [DONE])
"""The keys of a run that are dumap's own."""

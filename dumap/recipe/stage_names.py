"""The stages of a run, and how the keys of one are named."""

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
"""Those that every run has."""
ALL_STAGES = (SPOOL, *STAGES)
"""Those, and the one that only runs of objects have."""
RUN_KEYS = RunKeys(ALL_STAGES, [DONE])
"""The keys of a run that are dumap's; all others belong to somebody else."""

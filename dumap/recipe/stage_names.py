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
"""How the keys of a run are named: what else lies in one is somebody else's."""

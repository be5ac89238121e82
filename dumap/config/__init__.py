"""What a run is told: one frozen, validated object; the metrics and their arguments; values as messages show them.

Imports nothing of dumap but its errors. A setting is a field of a section in `model.py`; `metrics.py` says what a
metric takes, `values.py` how sizes, places and YAML are read.
"""

from dumap.config.metrics import METRICS
from dumap.config.model import (
    INITS,
    CellsConfig,
    ClusterConfig,
    Config,
    GraphConfig,
    InputConfig,
    LayoutConfig,
    NeighborsConfig,
    QualityConfig,
    StartConfig,
    build,
    differences,
    load,
)
from dumap.config.values import FrozenDict, format_bytes, parse_bytes

__all__ = [
    "INITS",
    "METRICS",
    "CellsConfig",
    "ClusterConfig",
    "Config",
    "FrozenDict",
    "GraphConfig",
    "InputConfig",
    "LayoutConfig",
    "NeighborsConfig",
    "QualityConfig",
    "StartConfig",
    "build",
    "differences",
    "format_bytes",
    "load",
    "parse_bytes",
]

"""What a run is told: one frozen, validated object; the metrics and their arguments; values as messages show them.

Imports nothing of dumap but its errors. A setting is a field of a section, in `input.py`, `sections.py` or
`cluster.py`; `model.py` puts them together and says what the answer depends on; `reading.py` reads files and words,
`keywords.py` what a program gives; `annotated.py` writes the defaults with what each setting does; `keys.py` finds the
key that was meant. `metrics.py` says what a metric takes, `values.py` how sizes, places and YAML are read.
"""

from dumap.config.annotated import annotated, read_example
from dumap.config.cluster import ClusterConfig
from dumap.config.input import InputConfig
from dumap.config.keywords import NOT_HERE, keys_by_name, read_config, read_keywords
from dumap.config.metrics import METRICS
from dumap.config.model import Config, differences
from dumap.config.reading import build, contradictions, load, read_file
from dumap.config.sections import (
    INITS,
    AuditConfig,
    CellsConfig,
    GraphConfig,
    LayoutConfig,
    NeighborsConfig,
    QualityConfig,
    StartConfig,
)
from dumap.config.values import FrozenDict, format_bytes, parse_bytes

__all__ = [
    "INITS",
    "METRICS",
    "NOT_HERE",
    "AuditConfig",
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
    "annotated",
    "build",
    "contradictions",
    "differences",
    "format_bytes",
    "keys_by_name",
    "load",
    "parse_bytes",
    "read_config",
    "read_example",
    "read_file",
    "read_keywords",
]

"""The configuration of a run, one frozen and validated object, and the metrics with their arguments.

This folder imports only the errors of dumap.

- Settings are fields of sections, in `input.py`, `sections.py` and `cluster.py`; `model.py` combines the sections and
  selects the parameters on which the bytes of a run depend.
- `reading.py` reads files, `--set` and options; `keywords.py` reads the arguments of functions.
- `annotated.py` writes the defaults with descriptions; `keys.py` suggests keys for a misspelt one.
- `metrics.py` checks metrics and their arguments; `values.py` reads sizes, locations and YAML.
"""

from dumap.config.annotated import annotated_defaults, read_example
from dumap.config.cluster import ClusterConfig
from dumap.config.input import InputConfig
from dumap.config.keywords import UNSUPPORTED_PARAMETERS, keys_by_name, read_config, read_keywords
from dumap.config.metrics import METRICS
from dumap.config.model import Config, describe_differences
from dumap.config.reading import build_config, contradictions, load_config, read_file
from dumap.config.sections import (
    INIT_METHODS,
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
    "INIT_METHODS",
    "METRICS",
    "UNSUPPORTED_PARAMETERS",
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
    "annotated_defaults",
    "build_config",
    "contradictions",
    "describe_differences",
    "format_bytes",
    "keys_by_name",
    "load_config",
    "parse_bytes",
    "read_config",
    "read_example",
    "read_file",
    "read_keywords",
]

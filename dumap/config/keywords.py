"""Reads settings from keyword arguments: umap-learn's flat names, and sections as mappings."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from pydantic import BaseModel

from dumap.config.keys import MAX_SUGGESTIONS, fields_by_key, section_of, similar_keys, umap_learn_name
from dumap.config.model import Config
from dumap.config.reading import build_config, read_file, set_by_key
from dumap.config.values import safe_repr, shorten
from dumap.errors import ConfigError

_SUPERVISED = "maps by labels are not made; leave it out, and colour the map by the labels"
_DENSITY = "maps that keep densities are not made; leave it out, or use umap-learn"
_APPROXIMATE = "how neighbours are searched follows from the data and the section cells; leave it out"
UNSUPPORTED_PARAMETERS = {
    "output_metric": "maps are Euclidean; leave it out",
    "output_metric_kwds": "maps are Euclidean; leave it out",
    "low_memory": "memory is bounded by the setting task_memory; leave it out",
    "n_jobs": "threads are the cluster's: set cluster={'workers': ...}, or give a client",
    "transform_queue_size": "new rows are not placed by a search that has a queue; leave it out",
    "transform_seed": "the run's seed decides all; give seed or random_state",
    "transform_mode": "a run is an embedding; export its graph with dumap.export(run, 'graph', 'graph.npz')",
    "angular_rp_forest": _APPROXIMATE,
    "force_approximation_algorithm": _APPROXIMATE,
    "target_n_neighbors": _SUPERVISED,
    "target_metric": _SUPERVISED,
    "target_metric_kwds": _SUPERVISED,
    "target_weight": _SUPERVISED,
    "verbose": "listen to logging.getLogger('dumap'), or give on_progress",
    "tqdm_kwds": "listen to logging.getLogger('dumap'), or give on_progress",
    "densmap": _DENSITY,
    "dens_lambda": _DENSITY,
    "dens_frac": _DENSITY,
    "dens_var_shift": _DENSITY,
    "output_dens": _DENSITY,
}
"""umap-learn's parameters that dumap does not have, and what to do instead."""


@cache
def keys_by_name() -> Mapping[str, str]:
    """Return the dotted key of each setting with a flat name: settings outside sections, and umap-learn's names."""
    fields = fields_by_key()
    outside_sections = {name: name for name, field in fields.items() if "." not in name and section_of(field) is None}
    return outside_sections | {
        name: key for key, field in fields.items() if (name := umap_learn_name(field)) is not None
    }


def to_plain_value(value: Any) -> Any:
    """Return a program's value as plain Python: numbers of NumPy become Python's, paths become texts.

    Mappings and lists are converted recursively. An array in a mapping (an argument of a metric) becomes a list.
    """
    if isinstance(value, np.floating) and value.itemsize < 8:
        return float(str(value))  # float32(0.1) becomes 0.1, not the nearest float32
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, BaseModel):
        return {name: to_plain_value(getattr(value, name)) for name in value.model_fields_set}
    if isinstance(value, Mapping):
        return {
            name: item.tolist() if isinstance(item, np.ndarray) else to_plain_value(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [to_plain_value(item) for item in value]
    return value


def _suggest_keywords(name: str) -> str:
    """Return the suggestions for an unknown keyword, as the end of a message."""
    similar_names = difflib.get_close_matches(name, [*keys_by_name(), *Config.model_fields], MAX_SUGGESTIONS, 0.7)
    sections_and_settings = [key.split(".", 1) for key in similar_keys(name) if "." in key]
    suggestions = similar_names or [f"{section}={{{setting!r}: ...}}" for section, setting in sections_and_settings]
    return f"; did you mean {' or '.join(suggestions)}?" if suggestions else ""


def _expand_keyword(name: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield each key that a keyword sets, with the way it was written and its value."""
    if name in keys_by_name():
        if name != "random_state" or value is not None:  # umap-learn's default None names no seed
            yield keys_by_name()[name], name, value
    elif name in UNSUPPORTED_PARAMETERS:
        raise ConfigError(f"{name}: dumap has no such parameter of umap-learn's: {UNSUPPORTED_PARAMETERS[name]}")
    elif name not in Config.model_fields:
        raise ConfigError(
            f"{shorten(name)}: unknown setting; allowed are {', '.join(keys_by_name())}, and the "
            f"sections {', '.join(sorted(Config.model_fields.keys() - keys_by_name().keys()))}, as mappings"
            f"{_suggest_keywords(name)}"
        )
    elif isinstance(value, Mapping):
        for setting_name, setting_value in value.items():
            yield f"{name}.{setting_name}", f"{name}={{{setting_name!r}: ...}}", setting_value
    elif value is not None:
        raise ConfigError(f"{name} = {safe_repr(value)}: it is a section; give a mapping, such as {name}={{...}}")


def read_keywords(settings: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values that keywords give, by dotted key.

    Parameters
    ----------
    settings : mapping
        Settings by flat names, and sections as mappings or as their classes. `random_state=None` means the default
        seed.
    data : mapping, optional
        Settings of the section `input`, from the data that the program gives.

    Raises
    ------
    ConfigError
        A name is unknown, or two names give one setting different values.
    """
    assigned = {f"input.{name}": ("data", to_plain_value(value)) for name, value in (data or {}).items()}
    for name, value in settings.items():
        for key, spelling, setting_value in _expand_keyword(name, to_plain_value(value)):
            if key in assigned and assigned[key][1] != setting_value:
                other_spelling, other_value = assigned[key]
                raise ConfigError(
                    f"{other_spelling} and {spelling} give {key} two values, {safe_repr(other_value)} and "
                    f"{safe_repr(setting_value)}: leave one out"
                )
            assigned[key] = spelling, setting_value
    return {key: setting_value for key, (_, setting_value) in assigned.items()}


def read_config(
    config: Config | Mapping[str, Any] | str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
) -> Config:
    """Read a configuration, and replace its values by those of keywords.

    Parameters
    ----------
    config : Config, mapping, path or None
        A mapping has the keys of the YAML files; a path names a YAML file.
    settings, data : mapping
        See `read_keywords`.

    Raises
    ------
    ConfigError
    """
    keywords = read_keywords(settings, data)
    if isinstance(config, Config) and not keywords:
        return config
    if config is None or isinstance(config, str | os.PathLike):
        values = {} if config is None else read_file(os.fsdecode(config))
    elif isinstance(config, Config | Mapping):
        values = to_plain_value(config)
    else:
        raise ConfigError(f"config: give a Config, a mapping or the path of a YAML file, not {type(config).__name__}")
    for key, value in keywords.items():
        set_by_key(values, key, value)
    return build_config(values)

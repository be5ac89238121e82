"""Settings that a program gives as keywords."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from umap_learn import default_values

from dumap.config import UNSUPPORTED_PARAMETERS, LayoutConfig, build_config, keys_by_name, read_config, read_keywords
from dumap.errors import ConfigError

DATA = {"path": "DATA.zarr"}
BOTH = {"input": DATA, "output": "RUN.zarr"}


def test_umap_learns_parameters_are_settings_or_told_of():
    umap_parameters = set(default_values())
    assert umap_parameters <= keys_by_name().keys() | UNSUPPORTED_PARAMETERS.keys()
    assert UNSUPPORTED_PARAMETERS.keys() <= umap_parameters - keys_by_name().keys()


@pytest.mark.parametrize("name", UNSUPPORTED_PARAMETERS)
def test_parameters_that_dumap_lacks_are_refused_with_advice(name):
    with pytest.raises(ConfigError, match=f"^{name}: dumap has no such parameter of umap-learn's: .*[a-z]"):
        read_keywords({name: default_values()[name]})


def test_flat_names_sections_and_data_make_a_configuration():
    flat = {"n_neighbors": 7, "min_dist": 0.2, "random_state": 5, "init": "pca", "keep": "all", "unique": True}
    config = read_config(None, {"output": "RUN.zarr", **flat, "cluster": {"workers": 2}}, DATA)
    assert config == build_config(
        {
            **{"input": {**DATA, "unique": True}, "output": "RUN.zarr", "seed": 5, "keep": "all"},
            **{"neighbors": {"n_neighbors": 7}, "layout": {"min_dist": 0.2}, "start": {"init": "pca"}},
            "cluster": {"workers": 2},
        }
    )


def test_numbers_of_numpy_and_paths_are_taken_inside_sections_too():
    settings = {
        **{"n_neighbors": np.int64(7), "spread": np.float64(2.0), "unique": np.bool_(True), "output": Path("RUN.zarr")},
        **{"metric": "wminkowski", "metric_kwds": {"w": np.array([1, 2]), "p": np.array(3)}},
        "layout": {"min_dist": np.float32(0.3), "n_epochs": np.uint8(9)},
        "cluster": {"scheduler_file": Path("dask.json")},
    }
    config = read_config(None, settings, {"path": Path("DATA.zarr")})
    assert (config.neighbors.n_neighbors, config.layout.spread, config.layout.min_dist) == (7, 2.0, 0.3)
    assert (config.output, config.input.path, config.cluster.scheduler_file) == ("RUN.zarr", "DATA.zarr", "dask.json")
    assert config.neighbors.metric_kwds == {"w": (1.0, 2.0), "p": 3.0}
    assert config.layout.n_epochs == 9


def test_a_section_may_be_of_its_class():
    assert read_keywords({"layout": LayoutConfig(min_dist=0.5)}) == {"layout.min_dist": 0.5}


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1, "random_state": 2},
        {"min_dist": 0.1, "layout": {"min_dist": 0.2}},
        {"input": {"path": "OTHER.zarr"}},
        {"metric_kwds": {"p": 3}, "neighbors": {"metric_kwds": {"p": 4}}},
    ],
)
def test_two_values_of_one_setting_are_refused(settings):
    with pytest.raises(ConfigError, match=r"give \S+ two values, .* leave one out"):
        read_keywords(settings, DATA)


def test_one_value_said_twice_is_no_contradiction():
    settings = {"seed": 1, "random_state": np.int32(1), "input": {"path": "DATA.zarr"}}
    assert read_keywords(settings, DATA) == {"input.path": "DATA.zarr", "seed": 1}


def test_no_random_state_is_the_default_seed():
    assert read_keywords({"random_state": None, "n_epochs": None}) == {"layout.n_epochs": None}
    assert read_keywords({"random_state": None, "seed": 3}) == {"seed": 3}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("n_neighbours", "did you mean n_neighbors"),
        ("min_dists", "did you mean min_dist"),
        ("random_seed", "did you mean random_state"),
        ("max_cells_per_row", r"did you mean cells={'max_cells_per_row': \.\.\.}"),
        ("layuot", "did you mean layout"),
    ],
)
def test_the_nearest_name_is_suggested(name, meant):
    with pytest.raises(ConfigError, match=f"^{name}: unknown setting; .*{meant}"):
        read_keywords({name: 1})


def test_unknown_keys_of_a_section_are_refused_as_in_a_file():
    with pytest.raises(ConfigError, match=r"layout\.min_dists: unknown key; .*did you mean layout\.min_dist"):
        read_config(BOTH, {"layout": {"min_dists": 1}})


def test_a_section_has_to_be_a_mapping():
    with pytest.raises(ConfigError, match=r"layout = 0\.1: it is a section; give a mapping"):
        read_keywords({"layout": 0.1})


@pytest.mark.parametrize("kind", ["config", "mapping", "file"])
def test_keywords_win_over_a_configuration(kind, tmp_path):
    (tmp_path / "run.yaml").write_text("input: {path: DATA.zarr}\noutput: RUN.zarr\nlayout: {min_dist: 0.3, spread: 2}")
    mapping = {**BOTH, "layout": {"min_dist": 0.3, "spread": 2}}
    config = {"config": build_config(mapping), "mapping": mapping, "file": tmp_path / "run.yaml"}[kind]
    assert read_config(config, {}).layout.min_dist == 0.3
    config_read = read_config(config, {"min_dist": 0.2, "output": "NEW.zarr"}, {"path": "MORE.zarr"})
    assert (config_read.layout.min_dist, config_read.layout.spread) == (0.2, 2)
    assert (config_read.output, config_read.input.path) == ("NEW.zarr", "MORE.zarr")
    assert mapping == {**BOTH, "layout": {"min_dist": 0.3, "spread": 2}}, "what was given is left as it is"


def test_a_configuration_is_something_that_holds_settings():
    with pytest.raises(ConfigError, match="not int"):
        read_config(3, {})

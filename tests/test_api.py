"""The functions for programs: run, plan, open_run and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dumap
from dumap.errors import ConfigError, StorageError

QUICK = {"n_epochs": 10, "quality": {"queries": 0}, "audit": {"queries": 0}, "cluster": {"engine": "local"}}


@pytest.fixture(scope="module")
def data(save, digits_300) -> str:
    """Save 300 digits; return their path."""
    return save(digits_300)


@pytest.fixture(scope="module")
def done(data, new_path) -> dumap.Result:
    """Return the result of a short run."""
    return dumap.run(data, output=new_path("run.zarr"), **QUICK)


def test_data_and_keywords_are_all_a_run_needs(data, done, new_path):
    config = {"input": {"path": data}, "output": new_path("run.zarr"), "layout": {"n_epochs": 10}}
    config |= {name: QUICK[name] for name in ("quality", "audit", "cluster")}
    settings = [f"input.path={data}", f"output={config['output']}", "layout.n_epochs=10", "cluster.engine=local"]
    loaded = dumap.load_config(None, [*settings, "quality.queries=0", "audit.queries=0"])
    for other in (dumap.run(config=config), dumap.run(config), dumap.run(loaded)):
        assert np.array_equal(other.embedding[:], done.embedding[:])


def test_a_result_is_a_mapping_of_the_status(done):
    assert dict(done) == dumap.status(done.path)
    assert dumap.open_run(Path(done.path))["state"] == "done"
    assert [stage["state"] for stage in done["stages"]] == ["done"] * 10


def test_paths_may_be_objects(data, done, new_path):
    output = Path(new_path("run.zarr"))
    child = dumap.run(Path(data), output=output, parent=done, min_dist=np.float32(0.5), **QUICK)
    assert child["parent"] == done.path
    assert dumap.verify(child) == []
    assert dumap.clean(output) == ([], [])
    assert dumap.status(output)["state"] == "done"


def test_a_configuration_is_given_once(data):
    with pytest.raises(ConfigError, match="given twice"):
        dumap.run({"input": {"path": data}}, config={})


def test_an_array_has_the_bytes_of_its_store(digits_300, done, new_path):
    result = dumap.run(digits_300, output=new_path("run.zarr"), **QUICK)
    assert np.array_equal(result.embedding[:], done.embedding[:])
    assert dumap.plan(digits_300, output="RUN.zarr").geometry.rows == 300


def test_data_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="data of type int cannot be embedded"):
        dumap.run(3, output="RUN.zarr")


def test_there_has_to_be_a_run_to_open(new_path):
    with pytest.raises(StorageError, match="holds no run"):
        dumap.open_run(new_path("no.zarr"))

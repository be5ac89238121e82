"""Workers with no more memory than the plan asks for: none is killed, and none passes what was projected."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

from dumap.config import Config, load_config, parse_bytes
from dumap.errors import BudgetError
from dumap.planning.budget import PAUSE_FRACTION
from dumap.recipe.pipeline import plan, run
from dumap.recipe.stage_names import STAGES

DIMS = 200
TIGHT = {"task_memory": 48 * 2**20, "audit.queries": 300, "layout.n_epochs": 10}
"""Settings that cut 30,000 rows into many cells."""


def write(path: str, rows: int, groups: int = 40) -> str:
    """Write groups of rows that overlap, chunk by chunk."""
    array = zarr.create_group(path).create_array("vectors", shape=(rows, DIMS), chunks=(2000, DIMS), dtype="f4")
    centers = np.random.default_rng(0).normal(size=(groups, DIMS)) * 2
    for start in range(0, rows, 2000):
        rng = np.random.default_rng([1, start])
        stop = min(rows, start + 2000)
        array[start:stop] = rng.normal(size=(stop - start, DIMS)) + centers[rng.integers(groups, size=stop - start)]
    return path


def config_of(path: str, output: str, **more: object) -> Config:
    """Configure a run that has little memory."""
    return load_config(None, (), {"input.path": path, "output": output, **TIGHT, **more})


def smallest(config: Config) -> int:
    """Return the least memory limit that the plan takes, in bytes."""
    limit = 2**20
    for _ in range(3):  # what a plan asks for may depend on what there is
        with pytest.raises(BudgetError) as refused:
            plan(at_limit(config, limit)).check(limit, None)
        limit = parse_bytes(re.search(r"--memory-limit (\w+)", str(refused.value))[1])
        try:
            plan(at_limit(config, limit)).check(limit, None)
        except BudgetError:
            continue
        return limit
    raise AssertionError("no number that is named is enough")


def at_limit(config: Config, limit: int) -> Config:
    """Return the configuration with workers of that memory limit."""
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"memory_limit": limit})})


class Workers:
    """Two workers of a limit, and the processes they had from the first."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.processes = self.look()

    def look(self) -> dict[str, int]:
        return self.client.run(os.getpid)

    def none_was_lost(self) -> bool:
        return self.look() == self.processes


@pytest.fixture
def workers(request) -> Iterator:
    """Start two workers with a memory limit, for the tests of this file."""
    opened = []

    def start(limit: int) -> Workers:
        one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=limit,
            dashboard_address=":0",
            silence_logs=50,
            env=one_thread,
        )
        opened.extend([client := Client(cluster), cluster])
        client.wait_for_workers(2, timeout=60)
        return Workers(client)

    yield start
    for one in opened:
        one.close()


@pytest.mark.slow
@pytest.mark.fault(19)
@pytest.mark.parametrize(("rows", "mode"), [(30_000, "rounds"), (90_000, "host")])
def test_no_worker_passes_its_memory(new_path, workers, rows, mode):
    config = config_of(write(new_path("in.zarr"), rows), new_path("run.zarr"), **{"layout.mode": mode})
    limit = smallest(config)
    started = workers(limit)
    done = run(config, client=started.client)
    assert [stage["name"] for stage in done["stages"]] == list(STAGES)
    assert next(stage["facts"]["cells"] for stage in done["stages"] if stage["name"] == "cells") >= 4
    for stage in done["stages"]:
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"] <= limit * PAUSE_FRACTION, stage["name"]
    assert started.none_was_lost()


def write_words(path: str, rows: int) -> str:
    """Write bags of 4 of 200 words, common ones and rare ones: some cells have many guests."""
    rng = np.random.default_rng(2)
    share = 1 / np.arange(1, DIMS + 1)
    keys = np.log(rng.random((rows, DIMS))) / share
    counts = np.zeros((rows, DIMS), np.uint8)
    counts[np.arange(rows)[:, None], np.argpartition(keys, -4, axis=1)[:, -4:]] = 1
    zarr.create_group(path).create_array("vectors", data=counts, chunks=(2000, DIMS))
    return path


@pytest.mark.slow
@pytest.mark.fault(19)
def test_a_projection_holds_and_is_near_where_cells_are_crowded(new_path, workers, compiled):
    config = config_of(write_words(new_path("in.zarr"), 20_000), new_path("run.zarr"), **{"cells.max_rows": 6000})
    limit = smallest(config)
    done = {stage["name"]: stage for stage in run(config, client=workers(limit).client)["stages"]}
    assert done["cells"]["facts"]["largest"] > config.cells.max_rows, "no cell searches its guests part by part"
    for name, stage in done.items():
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"], name
    for name in ("vectors", "cells", "neighbors"):
        assert done[name]["projected_bytes"] <= 1.6 * done[name]["peak_bytes"], name


@pytest.mark.slow
@pytest.mark.fault(20)
def test_the_memory_that_a_refusal_names_is_enough(new_path, cli):
    path, output = write(new_path("in.zarr"), 6_000), new_path("run.zarr")
    arguments = ["run", "--input", path, "--output", output, "--workers", "2", "--set", "layout.n_epochs=10"]
    arguments += ["--set", "task_memory=48MiB", "--set", "audit.queries=100"]
    refused = cli(*arguments, "--memory-limit", "700MiB")
    assert refused.code == BudgetError.exit_code
    assert not os.path.exists(output)
    named = re.search(r"give workers --memory-limit (\w+) or more", refused.err)[1]
    less = f"{parse_bytes(named) // 2**20 - 1}MiB"
    assert cli(*arguments, "--memory-limit", less).code == BudgetError.exit_code, "it names more than is needed"
    assert not os.path.exists(output)
    followed = cli(*arguments, "--memory-limit", named, "--json")
    assert followed.code == 0, followed.err
    for stage in json.loads(followed.out)["stages"]:
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"], stage["name"]


@pytest.mark.fault(20)
@pytest.mark.parametrize("rows", [6_000, 90_000, 10**8])
def test_plans_name_the_least_limit_that_they_take(new_path, rows):
    path = new_path("in.zarr")
    zarr.create_group(path).create_array("vectors", shape=(rows, DIMS), chunks=(2000, DIMS), dtype="f4")
    config = config_of(path, new_path("run.zarr"))
    limit = smallest(config)
    with pytest.raises(BudgetError):
        plan(at_limit(config, limit - 2**21)).check(limit - 2**21, None)
    assert plan(at_limit(config, limit)).peak_bytes <= limit * PAUSE_FRACTION


@pytest.mark.slow
@pytest.mark.fault(20)
def test_a_limit_that_no_interpreter_fits_is_refused_before_any_worker_starts(new_path, cli):
    path, output = write(new_path("in.zarr"), 6_000), new_path("run.zarr")
    refused = cli("run", "--input", path, "--output", output, "--workers", "1", "--memory-limit", "200MiB")
    assert refused.code == BudgetError.exit_code, refused.err
    assert "--memory-limit" in refused.err

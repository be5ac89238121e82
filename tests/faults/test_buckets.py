"""Runs in buckets, over a network that loses answers: the same bytes as in a folder, and no secret told."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from distributed import Client, LocalCluster
from faults.harness import SETTING_OPTIONS, Fleet, until
from helpers import ActAtStageStart, mark_slow_except

from dumap.config import load_config
from dumap.errors import DamageError, StorageError
from dumap.recipe.damage import clean, verify
from dumap.recipe.pipeline import run
from dumap.recipe.status import status
from dumap.sources.ingestion import ingest
from dumap.store import LOCKS, MANIFESTS, PARTS, Run, check_writable, manifest_key, stored_array
from dumap.store import lock as lock_module
from dumap.store import objects as objects_module

pytest.importorskip("obstore", reason="buckets need the extra 'cloud'")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from faults.bucket import KEY, SECRET, TIMEOUT, Proxy, Server

SETTINGS = {"layout.n_epochs": 20, "audit.queries": 0, "keep": "all"}
SAME = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
SOURCE, OUTPUT = "s3://data/input.zarr", "s3://data/run.zarr"


@pytest.fixture(scope="module")
def proxy(digits):
    """Return a proxy in front of a bucket 'data' that holds an input; processes started here use it."""
    server = Server()
    proxy = Proxy(server.host, server.port)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_TIMEOUT": f"{TIMEOUT} seconds",
        }.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3", endpoint_url=proxy.url).create_bucket(Bucket="data")
        store = objects_module.open_store(SOURCE, read_only=False)
        zarr.create_group(store).create_array("vectors", data=digits[0][:300], chunks=(150, 64))
        yield proxy
    proxy.close()
    server.close()


@pytest.fixture(autouse=True)
def passing(proxy):
    """Let the proxy pass all requests on again, before and after the test."""
    proxy.clear()


@pytest.fixture(scope="module")
def bucket_client(proxy):
    """Return the client of two workers that know the bucket."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def config_of(output: str = OUTPUT, **more):
    """Configure a run of the bucket's input."""
    return load_config(None, (), {"input.path": SOURCE, "output": output, **SETTINGS, **more})


def bytes_of(location: str) -> dict[str, bytes]:
    """Return the bytes of what a run is for, wherever it lies."""
    store = Run(location, read_only=True)
    arrays = {n: zarr.open_array(store.store, path=n, mode="r")[:].tobytes() for n in ("embedding", "status")}
    for part in (part for part in store.committed_parts("graph") if part.startswith("united-")):
        for array in store.manifest("graph", part)["arrays"]:
            arrays[f"{part} {array}"] = store.read("graph", part, array).tobytes()
    return arrays


@pytest.fixture(scope="module")
def expected(embed, digits):
    """Return the bytes of the same run in a folder."""
    done = embed(digits[0][:300], SETTINGS)
    return bytes_of(done.output)


@pytest.fixture(scope="module")
def flaky_run(proxy, bucket_client, new_path, expected):
    """Run once while one request in twenty fails; return what happened and what the driver wrote."""
    proxy.fail_some(0.05)
    with Fleet(new_path) as fleet:
        file = new_path("run.yaml")
        Path(file).write_text(
            yaml.safe_dump(config_of(**{"cluster.scheduler": bucket_client.scheduler.address}).model_dump())
        )
        driver = fleet.start(["-m", "dumap.cli", "--debug", "run", file])
        code = driver.wait(240)
        happened, output = dict(proxy.happened), driver.output
    proxy.clear()
    assert code == 0, output
    return happened, output


@pytest.mark.fault(16)
@pytest.mark.slow
def test_a_run_over_a_bad_network_is_that_in_a_folder(flaky_run, expected):
    happened, _ = flaky_run
    assert {"error", "late", "lost"} <= set(happened), happened
    assert bytes_of(OUTPUT) == expected


def test_files_become_a_store_in_a_bucket(proxy, digits, new_path):
    file, output = new_path("x.npy"), "s3://data/ingested.zarr"
    np.save(file, digits[0])
    ingest([file], output)
    stored = zarr.open_group(objects_module.open_store(output, read_only=True), mode="r")
    np.testing.assert_array_equal(stored["vectors"][:], digits[0])
    with pytest.raises(StorageError, match="exists"):
        ingest([file], output)


def test_results_lie_in_a_bucket_and_all_else_on_a_disk(proxy, expected, new_path):
    work, output = new_path("work"), "s3://data/results.zarr"
    status = run(config_of(output, work=work, **{"cluster.engine": "local"}))
    assert (status["output"], status["work"], status["state"]) == (output, work, "done")
    store = Run(output, read_only=True)
    keys = set(store.keys())
    assert {key for key in keys if not key.startswith(("embedding/", "status/"))} == {
        "zarr.json",
        "_dumap/zarr.json",
        "_dumap/work.json",
    }
    for name in ("embedding", "status"):
        assert zarr.open_group(store.store, mode="r")[name][:].tobytes() == expected[name]
    assert verify(output, print, should_repair=True) == []
    assert run(config_of(output, **{"cluster.engine": "local"}))["work"] == work


@pytest.mark.slow
def test_given_neighbors_may_lie_in_a_bucket(bucket_client, embed, digits, new_path):
    indices = (np.arange(300)[:, None] + np.arange(1, 16)) % 300
    graphs = new_path("knn.zarr"), "s3://data/knn.zarr"
    for path in graphs:
        group = zarr.create_group(objects_module.open_store(path, read_only=False))
        group.create_array("indices", data=indices, chunks=(100, 15))
        group.create_array("distances", data=(indices % 7 + 1.5).astype(np.float32), chunks=(100, 15))
    here = embed(digits[0][:300], {**SETTINGS, "neighbors.precomputed": graphs[0]})
    config = config_of(new_path("run.zarr"), **{"neighbors.precomputed": graphs[1]})
    assert run(config, client=bucket_client)["state"] == "done"
    assert bytes_of(config.output) == bytes_of(here.output)
    assert run(config)["state"] == "done", "what is finished is known again"


@pytest.mark.slow
def test_commands_work_on_a_bucket(flaky_run, cli, new_path, expected):
    assert cli("verify", OUTPUT).out == "all objects are as they were written\n"
    assert '"state": "done"' in cli("status", OUTPUT, "--json").out
    assert cli("clean", OUTPUT, "--dry-run").code == 0
    Run(OUTPUT).put(f"{PARTS}/vectors/block-00000-01234567", b"left over")
    assert f"removed: {PARTS}/vectors/block-00000-01234567" in cli("clean", OUTPUT).out
    assert cli("clean", OUTPUT).out == "0 objects that no manifest names\n"
    out = new_path("map.npy")
    assert cli("export", OUTPUT, "embedding", out).code == 0
    assert np.load(out).tobytes() == expected["embedding"]


@pytest.mark.fault(13)
@pytest.mark.slow
def test_damage_in_a_bucket_is_made_good(flaky_run, bucket_client, cli, expected):
    store = Run(OUTPUT)
    (key,) = (k for k in store.manifest("embedding", "rows-00000")["objects"] if k.startswith("embedding/"))
    store.put(key, store.get(key)[:-1])
    assert cli("verify", OUTPUT).out == f"damaged: {key}\n1 damaged objects\n"
    assert run(config_of(), client=bucket_client)["state"] == "done"
    assert verify(OUTPUT) == []
    assert bytes_of(OUTPUT) == expected


@pytest.mark.fault(22)
@pytest.mark.slow
def test_an_input_changed_in_its_bucket_is_refused(flaky_run, bucket_client, cli, digits):
    array = zarr.open_array(objects_module.open_store(SOURCE, read_only=False), path="vectors")
    array[3, 3] += 1
    try:
        outcome = cli("run", "--input", SOURCE, "--output", OUTPUT, *SAME)
        assert outcome.code == 7, outcome.err
        assert f"{SOURCE} holds other data than when {OUTPUT} was begun" in outcome.err
    finally:
        array[3, 3] -= 1
    assert cli("run", "--input", SOURCE, "--output", OUTPUT, *SAME).code == 0


@pytest.mark.slow
def test_no_secret_is_told(flaky_run, bucket_client):
    """Not by the driver, --debug or not, nor by workers and scheduler, nor in the run."""
    _, output = flaky_run
    texts = {
        "driver": output,
        "workers": repr(bucket_client.get_worker_logs()),
        "scheduler": repr(bucket_client.get_scheduler_logs()),
    }
    texts["tasks"] = repr(bucket_client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.transition_log)))
    store = Run(OUTPUT, read_only=True)
    texts |= {key: (store.get(key) or b"").decode("latin1") for key in store.keys()}  # noqa: SIM118
    assert "dumap-" in texts["tasks"]
    assert f"{MANIFESTS}/identity/run.json" in texts
    assert [where for where, what in texts.items() if KEY in what or SECRET in what or KEY[6:] in what] == []


@pytest.mark.fault(6)
@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_after_a_kill(proxy, bucket_client, new_path, expected):
    config, store = config_of("s3://data/killed.zarr"), Run("s3://data/killed.zarr", read_only=True)
    with Fleet(new_path) as fleet:
        file = new_path("run.yaml")
        Path(file).write_text(
            yaml.safe_dump(
                config_of(config.output, **{"cluster.scheduler": bucket_client.scheduler.address}).model_dump()
            )
        )
        driver = fleet.start(["-m", "dumap.cli", "run", file])
        until(lambda: store.committed_parts("neighbors") or driver.code is not None, "a commit of neighbors")
        driver.kill()
    before = {(s, p): store.get(manifest_key(s, p)) for s in ("vectors", "cells") for p in store.committed_parts(s)}
    assert before
    assert run(config, client=bucket_client)["state"] == "done"
    assert {(s, p): store.get(manifest_key(s, p)) for s, p in before} == before
    assert bytes_of(config.output) == expected


@pytest.mark.fault(16)
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_that_goes_ends_the_run_in_bounded_time(proxy, bucket_client, expected):
    config = config_of("s3://data/gone.zarr")

    def go():
        proxy.choose = lambda method, path: "gone"

    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        run(config, client=bucket_client, observer=ActAtStageStart("graph", go))
    assert time.monotonic() - began < 240
    assert "s3://data/gone.zarr" in str(caught.value)
    check_message(str(caught.value))
    proxy.clear()
    assert run(config, client=bucket_client)["state"] == "done"
    assert bytes_of(config.output) == expected


# objects -----------------------------------------------------------------------------------------


def check_message(message: str) -> None:
    """Check that a message is for people, and tells no secret."""
    assert KEY not in message
    assert SECRET not in message
    assert "Debug source" not in message
    assert "Traceback" not in message


@pytest.fixture
def no_pauses(monkeypatch):
    """Try failed requests again without a pause."""
    monkeypatch.setattr(objects_module, "RETRY_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def begun_run(proxy, request):
    """Return a new run in the bucket."""
    store = Run(f"s3://data/{abs(hash(request.node.name)):x}.zarr")
    store.create({key: {} for key in ("parameters", "versions", "input")})
    return store


@pytest.mark.fault(17)
@pytest.mark.parametrize("fault", ["lost", pytest.param("late", marks=pytest.mark.slow), "error"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_manifest_whose_answer_is_lost_is_ones_own(proxy, begun_run, fault, times):
    proxy.fail_first(fault, "PUT", "/p.json", times)
    with begun_run.part("stage", "p") as part:
        part.write("a", np.arange(5))
    assert proxy.happened[fault] == times
    other = Run(begun_run.location)
    assert other.manifest("stage", "p")["attempt"] == part.attempt
    assert other.read("stage", "p", "a").tolist() == [0, 1, 2, 3, 4]
    assert begun_run.committed_parts("stage") == ["p"]


@pytest.mark.fault(13, 14)
@pytest.mark.parametrize("harm", ["flip", "cut", "cut short", "empty", "delete"])
def test_rows_that_are_damaged_in_a_bucket_are_an_error(begun_run, no_pauses, monkeypatch, harm):
    """However a bucket answers a request for bytes that there are not."""
    monkeypatch.setattr(stored_array, "RANGE_BYTES", 16 * 8)
    with begun_run.part("stage", "p") as part:
        part.write("a", np.arange(64))
    (key,) = part.objects
    assert Run(begun_run.location).read("stage", "p", "a", 20, 50).tolist() == list(range(20, 50))
    whole = begun_run.get(key)
    if harm == "delete":
        begun_run.delete(key)
    else:
        flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
        begun_run.put(key, {"flip": flipped, "cut": whole[:-1], "cut short": whole[:300], "empty": b""}[harm])
    with pytest.raises(DamageError, match=f"{key} .* is missing or damaged"):
        Run(begun_run.location).read("stage", "p", "a")
    if harm in ("cut", "cut short"):  # what is asked for is there, and right
        assert Run(begun_run.location).read("stage", "p", "a", 0, 16).tolist() == list(range(16))
    if harm in ("cut short", "empty", "delete"):
        with pytest.raises(DamageError, match=f"{key} .* is missing or damaged"):
            Run(begun_run.location).read("stage", "p", "a", 50, 60)
    assert list(Run(begun_run.location).find_damaged()) == [("stage", "p", key)]


@pytest.mark.fault(17)
@pytest.mark.parametrize("fault", ["lost", "error"])
def test_rows_are_asked_for_again(proxy, begun_run, no_pauses, fault):
    with begun_run.part("stage", "p") as part:
        part.write("a", np.arange(5))
    proxy.fail_first(fault, "GET", *part.objects)
    assert Run(begun_run.location).read("stage", "p", "a").tolist() == [0, 1, 2, 3, 4]
    assert proxy.happened[fault] == 1


@pytest.mark.fault(17)
def test_a_lock_whose_answer_is_lost_is_ones_own(proxy, begun_run):
    proxy.fail_first("lost", "PUT", f"/{LOCKS}/00000001.json")
    with lock_module.Lock(begun_run, print) as lock:
        assert lock.run.term == 1
    assert proxy.happened["lost"] == 1
    assert begun_run.list_terms() == [1]


@pytest.mark.fault(17, 18)
def test_the_first_manifest_wins_even_if_its_answer_is_lost(proxy, begun_run):
    slow, fast = Run(begun_run.location).part("stage", "p"), Run(begun_run.location).part("stage", "p")
    slow.write("a", np.array([1.0]))
    fast.write("a", np.array([2.0]))
    proxy.fail_first("lost", "PUT", "/p.json")
    for part in (fast, slow):
        with part:
            pass
        assert part.run.read("stage", "p", "a").tolist() == [2.0]
    assert proxy.happened["lost"] == 1


@pytest.mark.fault(34)
def test_a_bucket_without_conditional_writes_is_refused(proxy, cli):
    proxy.choose = lambda method, path: "blind"
    with pytest.raises(StorageError, match="does not support writing an object only where there is none"):
        check_writable("s3://data/blind.zarr")
    proxy.clear()
    assert Run("s3://data/blind.zarr").keys() == []


@pytest.mark.fault(34, 45)
@pytest.mark.parametrize(
    "output", ["s3://data", "s3://data/", "S3://data/x/..", "s3://data/input.zarr", "s3://data/input.zarr/run"]
)
def test_an_output_that_holds_the_input_is_refused(proxy, cli, output):
    store = Run("s3://data", read_only=True)
    before = store.keys()
    outcome = cli("run", "--input", SOURCE, "--output", output, *SAME)
    assert outcome.code == 6, outcome
    assert "is, holds or lies in the input s3://data/input.zarr" in outcome.err
    assert store.keys() == before


@pytest.mark.fault(34, 45)
@pytest.mark.parametrize("key", ["thesis.txt", "zebra/thesis.txt", f"{LOCKS}/thesis.txt"])
def test_a_prefix_that_holds_anything_but_a_run_is_refused(proxy, cli, key):
    store = Run(f"s3://data/mine-{abs(hash(key)):x}")
    store.put(key, b"years of work")
    outcome = cli("run", "--input", SOURCE, "--output", store.location, *SAME)
    assert outcome.code == 6, outcome
    assert "exists and is not a dumap run; nothing was touched" in outcome.err
    assert store.keys() == [key]


@pytest.mark.fault(45)
def test_files_that_people_add_to_a_run_in_a_bucket_survive(begun_run, cli):
    foreign = ["graph/notes.txt", "labels/c/0", "labels/zarr.json", "notes.txt"]
    for key in foreign:
        begun_run.put(key, b"years of work")
    left = f"{PARTS}/vectors/block-00000-01234567"
    begun_run.put(left, b"left over")
    with begun_run.part("graph", "p") as part:
        part.write("a", np.arange(5))
    (key,) = part.objects
    begun_run.put(f"{key}/notes.txt", b"years of work")
    removed, others = clean(begun_run.location, print)
    assert (removed, others) == ([left], sorted([*foreign, f"{key}/notes.txt"]))
    begun_run.delete_part("graph", "p")
    assert begun_run.keys(f"{PARTS}/graph") == [f"{key}/notes.txt"]
    assert [begun_run.get(key) for key in others] == [b"years of work"] * 5


@pytest.mark.fault(13)
def test_digests_are_found_piece_by_piece(begun_run, monkeypatch):
    begun_run.put("a", bytes(range(100)))
    monkeypatch.setattr(objects_module, "DIGEST_PIECE_BYTES", 30)
    assert begun_run.digest("a", 100) == objects_module.digest(bytes(range(100)))
    assert begun_run.digest("a", 99) is begun_run.digest("b", 100) is None


@pytest.mark.fault(40)
def test_credentials_that_may_not_write_are_refused_first(proxy, client, cli):
    proxy.choose = lambda method, path: "denied" if method in ("PUT", "POST", "DELETE") else None
    address = ["--scheduler", client.scheduler.address]
    outcome = cli("run", "--input", SOURCE, "--output", "s3://data/denied.zarr", *SETTING_OPTIONS, *address)
    assert outcome.code == 6, outcome.err
    assert "output: s3://data/denied.zarr cannot be written to" in outcome.err
    assert "begins" not in outcome.err
    check_message(outcome.err)
    proxy.clear()
    assert Run("s3://data/denied.zarr").keys() == []


BAD = {
    "wrong key": {"AWS_ACCESS_KEY_ID": "AKIAWRONG"},
    "no server": {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
    "no bucket": {},
}


@pytest.mark.fault(16)
@pytest.mark.parametrize("bad", mark_slow_except(BAD, *(bad for bad in BAD if bad != "no server")))
@pytest.mark.parametrize("place", ["input", "output"])
def test_a_bucket_out_of_reach_is_said(proxy, client, cli, data, new_path, monkeypatch, no_pauses, place, bad):
    for name, value in BAD[bad].items():
        monkeypatch.setenv(name, value)
    there = "s3://nowhere/x.zarr" if bad == "no bucket" else "s3://data/input.zarr"
    source, output = (there, new_path("run.zarr")) if place == "input" else (data, there.replace("input", "x"))
    address = ["--scheduler", client.scheduler.address]
    began = time.monotonic()
    outcome = cli("run", "--input", source, "--output", output, *SETTING_OPTIONS, *address)
    assert outcome.code == (3 if place == "input" else 6), outcome.err
    assert time.monotonic() - began < 60
    assert there.rsplit("/", 1)[0] in outcome.err
    assert "unexpected" not in outcome.err
    check_message(outcome.err)


@pytest.mark.slow
def test_a_child_reads_its_parent_in_the_bucket(embed, digits, new_path):
    near, local = {"layout.min_dist": 0.5}, {"cluster.engine": "local"}
    run(config_of("s3://data/kin/parent.zarr", **local))
    child, folder = (
        config_of("s3://data/kin/child.zarr", **local, **near),
        config_of(new_path("c.zarr"), **local, **near),
    )
    child_bytes = bytes_of(embed(digits[0][:300], {**SETTINGS, **near}).output)
    for config in (child, folder):
        stages = run(config, parent="s3://data/kin/parent.zarr")["stages"]
        assert [stage["from"] for stage in stages[:6]] == ["s3://data/kin/parent.zarr"] * 6
        assert bytes_of(config.output) == child_bytes
    assert Run(child.output, read_only=True).attributes["parent"] == "../parent.zarr"
    assert status("s3://data/kin/parent.zarr")["children"] == sorted([child.output, folder.output])
    assert verify(child.output) == []

"""A run in a bucket whose keys only the configuration has: it works everywhere, and the keys are shown nowhere."""

from __future__ import annotations

import logging
import os

import pytest
import zarr
from distributed import Client, LocalCluster

import dumap
from dumap.errors import DumapError
from dumap.store import Run, options
from dumap.store import objects as objects_module

pytest.importorskip("obstore", reason="buckets need the extra 'cloud'")
pytest.importorskip("moto.server", reason="moto[server] is not installed")

from faults.bucket import KEY, SECRET, Server

pytestmark = pytest.mark.slow
QUICK = {"n_epochs": 5, "quality": {"queries": 0}, "audit": {"queries": 0}}
SOURCE, OUTPUT = "s3://secret/input.zarr", "s3://secret/run.zarr"


@pytest.fixture(scope="module")
def storage(digits):
    """Return the options of a bucket that holds an input; no environment variable has them."""
    server = Server()
    options_of = {"endpoint": f"http://{server.host}:{server.port}", "access_key_id": KEY, "secret_access_key": SECRET}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setattr(options, "_options_by_bucket", {})
        import boto3

        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=options_of["endpoint"], **keys).create_bucket(Bucket="secret")
        options.set_options([SOURCE], options_of)
        store = objects_module.open_store(SOURCE, read_only=False)
        zarr.create_group(store).create_array("vectors", data=digits[0][:300], chunks=(150, 64))
        options.set_options([SOURCE], {})
        yield {**options_of, "region": "us-east-1"}
    server.close()


def test_workers_open_what_the_configuration_opens_and_nobody_tells(storage, digits_300, save, new_path, caplog):
    caplog.set_level(logging.DEBUG)
    expected = dumap.run(save(digits_300), output=new_path("run.zarr"), cluster={"engine": "local"}, **QUICK)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="2GiB", dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        result = dumap.run(SOURCE, output=OUTPUT, client=client, storage=storage, **QUICK)
        texts = {
            "workers": repr(client.get_worker_logs()),
            "scheduler": repr(client.get_scheduler_logs()),
            "tasks": repr(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.transition_log))),
        }
    assert result.embedding[:].tobytes() == expected.embedding[:].tobytes()
    texts |= {"status": repr(dict(result)), "log": caplog.text, "repr": repr(result)}
    store = Run(OUTPUT, read_only=True)
    texts |= {key: (store.get(key) or b"").decode("latin1") for key in store.keys()}  # noqa: SIM118
    secrets = (KEY, SECRET, storage["endpoint"])
    assert [where for where, text in texts.items() if any(secret in text for secret in secrets)] == []


def test_keys_that_are_refused_are_not_told(storage, new_path):
    wrong = {**storage, "endpoint": "http://127.0.0.1:9", "timeout": "1 seconds"}
    with pytest.raises(DumapError) as error:
        dumap.plan(SOURCE, output=new_path("run.zarr"), storage=wrong)
    assert not any(secret in str(error.value) for secret in (KEY, SECRET, "127.0.0.1:9"))

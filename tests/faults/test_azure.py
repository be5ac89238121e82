"""Runs in a container of Azure's, as Microsoft's emulator serves it: another service than moto's, by another hand."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import socket
import subprocess
import urllib.request
from email.utils import formatdate

import numpy as np
import pytest
import yaml
import zarr
from faults.harness import until

import dumap
from dumap.store import Run, objects, options

pytest.importorskip("obstore", reason="buckets need the extra 'cloud'")
AZURITE = shutil.which("azurite-blob")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(AZURITE is None, reason="azurite is not installed")]

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The emulator's only account, and its key, which is in its manual."""
QUICK = {"n_epochs": 5, "cells": {"max_rows": 100}, "quality": {"queries": 0}, "audit": {"queries": 50}}
SOURCE, OUTPUT = "az://data/input.zarr", "az://data/run.zarr"


def make_container(endpoint: str, name: str) -> None:
    """Make a container: its library has no call for that."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "PUT" + 12 * "\n" + "".join(f"{key}:{value}\n" for key, value in headers.items())
    signed += f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Type": ""}
    url = f"{endpoint}/{name}?restype=container"
    with urllib.request.urlopen(urllib.request.Request(url, b"", headers, method="PUT")) as answer:
        assert answer.status == 201


@pytest.fixture(scope="module")
def storage(tmp_path_factory, digits_300):
    """Return the options of a container that holds an input."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    folder = tmp_path_factory.mktemp("azurite")
    server = subprocess.Popen(
        [AZURITE, *words, "--blobPort", str(port)], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        assert server.poll() is None
        with socket.socket() as knock:
            return knock.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(answers, "the emulator")
        opened_by = {"account_name": ACCOUNT, "account_key": KEY, "endpoint": f"http://127.0.0.1:{port}/{ACCOUNT}"}
        make_container(opened_by["endpoint"], "data")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(options, "_options_by_bucket", {})
            options.set_options([SOURCE], opened_by)
            store = objects.open_store(SOURCE, read_only=False)
            zarr.create_group(store).create_array("vectors", data=digits_300, chunks=(150, 64))
            yield opened_by
    finally:
        server.kill()
        server.wait()


def test_a_run_goes_to_a_container_and_back(storage, digits_300, new_path, cli, tmp_path):
    expected = dumap.run(digits_300, output=new_path("run.zarr"), **QUICK).embedding[:]
    result = dumap.run(SOURCE, output=OUTPUT, storage=storage, **QUICK)
    assert np.array_equal(result.embedding[:], expected)
    assert dumap.run(SOURCE, output=OUTPUT, storage=storage, **QUICK)["state"] == "done", "and nothing is to do"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"storage": storage}))
    options.set_options([OUTPUT], {})
    for command in (["verify", OUTPUT], ["clean", OUTPUT], ["export", OUTPUT, "embedding", tmp_path / "map.npy"]):
        outcome = cli(*command, "--config", file)
        assert (outcome.code, KEY in outcome.out + outcome.err) == (0, False)
    assert np.array_equal(np.load(tmp_path / "map.npy"), expected)
    status = json.loads(cli("status", OUTPUT, "--json", *(f"--storage={k}={v}" for k, v in storage.items())).out)
    assert status["state"] == "done"


def test_of_two_who_create_an_object_one_is_told_so(storage):
    place = objects.Objects("az://data/created")
    assert [place.backend.create("key", data, False) for data in (b"first", b"second", b"first")] == [True, False, True]
    assert place.get("key") == b"first"


def test_what_is_damaged_is_made_again(storage):
    output = "az://data/damaged.zarr"
    expected = dumap.run(SOURCE, output=output, storage=storage, **QUICK).embedding[:]
    run = Run(output)
    chunk = next(key for key in run.keys() if key.startswith("embedding/c"))  # noqa: SIM118
    run.put(chunk, b"damaged")
    assert dumap.verify(output) == [chunk]
    assert np.array_equal(dumap.run(SOURCE, output=output, storage=storage, **QUICK).embedding[:], expected)

"""The output of a run: which places it may not be, however they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dumap.config import load_config
from dumap.errors import StorageError
from dumap.recipe.locations import check_locations, check_no_overlap, split_url
from dumap.recipe.stage_names import RUN_KEYS
from dumap.store import INSIDE, LOCKS, MANIFESTS
from dumap.store.disk import is_remote, normalize

pytestmark = pytest.mark.fault(34)


@pytest.mark.parametrize(
    ("output", "source"),
    [
        ("s3://data", "s3://data/in.zarr"),
        ("s3://data/", "s3://data/in.zarr"),
        ("s3://data/a", "s3://data/a/b/in.zarr"),
        ("s3://data/in.zarr/run", "s3://data/in.zarr"),
        ("s3://data/in.zarr", "s3://data/in.zarr/"),
        ("S3://Data/in.zarr", "s3://data/in.zarr"),
        ("s3a://data/in.zarr", "s3://data/in.zarr"),
        ("s3://data//in.zarr", "s3://data/in.zarr"),
        ("s3://data/./in.zarr", "s3://data/in.zarr"),
        ("s3://data/x/../in.zarr", "s3://data/in.zarr"),
        ("s3://data/x/%2e%2e/in.zarr", "s3://data/in.zarr"),
        ("s3://data/in%2Ezarr/run", "s3://data/in.zarr"),
        ("s3://data/a%20b", "s3://data/a b/in.zarr"),
        ("https://s3.eu-west-1.amazonaws.com/data/", "s3://data/in.zarr"),
        ("https://data.s3.eu-west-1.amazonaws.com/in.zarr", "s3://data/in.zarr"),
        ("gs://data", "gs://data/in.zarr"),
        ("https://host.org:443/a", "https://HOST.org:443/a/in.zarr"),
        ("file:///data/run", "/data/run/in.zarr"),
        ("FILE:///data/a%20b", "/data/a b/in.zarr"),
        ("file://localhost/data", "/data/in.zarr"),
        ("/data/x/../in.zarr", "/data/in.zarr"),
        ("/data//in.zarr/run", "file:///data/in.zarr/"),
    ],
)
def test_an_output_that_holds_or_lies_in_the_input_is_refused(output, source):
    for pair in ((output, source), (source, output)):
        with pytest.raises(StorageError, match="is, holds or lies in the input"):
            check_no_overlap(*pair)


@pytest.mark.parametrize(
    ("output", "source"),
    [
        ("s3://data/run.zarr", "s3://data/in.zarr"),
        ("s3://data/in.zarr2", "s3://data/in.zarr"),
        ("s3://data/in", "s3://data/in.zarr"),
        ("s3://data", "s3://other/in.zarr"),
        ("s3://data/in.zarr", "gs://data/in.zarr"),
        ("s3://data/IN.zarr", "s3://data/in.zarr"),
        ("/data", "s3://data/in.zarr"),
        ("s3://data", "/data/in.zarr"),
        ("/data/run", "/data/run2"),
    ],
)
def test_places_apart_are_taken(output, source):
    check_no_overlap(output, source)
    check_no_overlap(source, output)


def test_links_and_other_names_of_a_folder_are_seen_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for output in ("link", "link/run.zarr", "link/in.zarr/../in.zarr", "real/in.zarr/run.zarr"):
        for source in ("real/in.zarr", "real"):
            if output == "link/run.zarr" and source == "real/in.zarr":
                continue
            with pytest.raises(StorageError, match="is, holds or lies in the input"):
                check_no_overlap(str(tmp_path / output), f"file://{tmp_path / source}")
    check_no_overlap(str(tmp_path / "link/run.zarr"), str(tmp_path / "real/in.zarr"))


@pytest.mark.parametrize("setting", ["input.path", "neighbors.precomputed", "start.init"])
@pytest.mark.parametrize("kind", ["disk", "bucket"])
def test_nothing_that_is_read_may_lie_in_the_output(tmp_path, setting, kind):
    root = str(tmp_path / "data") if kind == "disk" else "s3://data"
    places = {"input.path": "/elsewhere/in.zarr", "output": f"{root}/out", setting: f"{root}/out/given.zarr"}
    with pytest.raises(StorageError, match=r"is, holds or lies in the input .*given\.zarr"):
        check_locations(load_config(None, (), places), RUN_KEYS)


def test_paths_and_urls_are_told_apart():
    assert [is_remote(place) for place in ("s3://a", "file:///a", "FILE:///a", "/a", "a")] == [True, *[False] * 4]
    assert normalize("file:///a%20b/../c") == "/a b/../c"
    assert normalize("FILE://localhost/a") == "/a"
    assert normalize("/a%20b") == "/a%20b", "a path is what it is"
    assert normalize("s3://a/%20") == "s3://a/%20"
    assert split_url("s3://a//b/./c/../%64/") == ("s3", "a", ("b", "d"))


@pytest.mark.parametrize(
    "place", ["thesis.txt", f"{MANIFESTS}/thesis.txt", f"{LOCKS}/thesis.txt", f"{MANIFESTS}/identity/a b.json"]
)
def test_a_folder_that_holds_anything_else_is_refused(tmp_path, place):
    output = tmp_path / "out"
    file = output / place
    file.parent.mkdir(parents=True)
    file.write_text("years of work")
    config = load_config(None, (), {"input.path": str(tmp_path / "in.zarr"), "output": str(output)})
    with pytest.raises(StorageError, match="exists and is not a dumap run; nothing was touched"):
        check_locations(config, RUN_KEYS)
    file.unlink()
    probe, partial = f"{LOCKS}/probe-{'0' * 16}", f"{MANIFESTS}/identity/.run.json.01234567.partial"
    for begun in (f"{LOCKS}/00000001.json", probe, partial):
        (output / begun).parent.mkdir(parents=True, exist_ok=True)
        (output / begun).write_text("{}")
    check_locations(config, RUN_KEYS)
    (output / "empty").mkdir()
    with pytest.raises(StorageError, match="is not a dumap run"):
        check_locations(config, RUN_KEYS)
    assert sorted(os.listdir(output)) == sorted({"empty", INSIDE})
    assert Path(output, f"{LOCKS}/00000001.json").exists()

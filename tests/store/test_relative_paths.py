"""How runs name one another: by relative paths where there are any."""

from __future__ import annotations

import os

import pytest

from dumap.store import absolute_location, relative_location


@pytest.mark.parametrize(
    ("location", "base", "relative"),
    [
        ("/runs/p.zarr", "/runs/c.zarr", "../p.zarr"),
        ("/runs/old/p.zarr", "/runs/c.zarr", "../old/p.zarr"),
        ("s3://b/runs/p.zarr", "s3://b/runs/c.zarr", "../p.zarr"),
        ("s3://b/p.zarr", "s3://other/c.zarr", "s3://b/p.zarr"),
        ("s3://b/p.zarr", "gs://b/c.zarr", "s3://b/p.zarr"),
        ("s3://b/p.zarr", "/runs/c.zarr", "s3://b/p.zarr"),
        ("/runs/p.zarr", "s3://b/c.zarr", "/runs/p.zarr"),
    ],
)
def test_a_run_is_reached_by_the_way_to_it(location, base, relative):
    assert relative_location(location, base) == relative
    assert absolute_location(relative, base) == location


def test_a_link_to_a_run_leads_to_the_same(tmp_path):
    for name in ("runs/c", "runs/p"):
        (tmp_path / name).mkdir(parents=True)
    os.symlink(tmp_path / "runs" / "c", tmp_path / "link")
    relative = relative_location(str(tmp_path / "runs" / "p"), str(tmp_path / "link"))
    assert relative == "../p"
    assert absolute_location(relative, str(tmp_path / "link")) == str(tmp_path / "runs" / "p")

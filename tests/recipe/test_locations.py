"""Where a run reads and writes: the same for every process, whatever folder it works in."""

from __future__ import annotations

import pytest

from dumap.config import build_config
from dumap.recipe.locations import with_normalized_locations

LOCATIONS = ("input.path", "output", "neighbors.precomputed", "start.init")
"""The keys that workers open."""


def config(**locations: str):
    """Build a configuration with some locations."""
    values: dict = {"neighbors": {}, "start": {}, "input": {}}
    for key, location_of in {"input.path": "in.zarr", "output": "run.zarr", **locations}.items():
        *section, name = key.split(".")
        (values[section[0]] if section else values)[name] = location_of
    return build_config(values)


def location_of(value, key: str) -> str:
    """Return the location that a dotted key names."""
    for name in key.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("key", LOCATIONS)
@pytest.mark.parametrize(
    "spelling", ["a.zarr", "./a.zarr", "file://{here}/a.zarr", "{here}/a.zarr", "{here}//./a.zarr"]
)
def test_a_location_means_the_same_everywhere_and_however_it_is_spelt(tmp_path, monkeypatch, key, spelling):
    monkeypatch.chdir(tmp_path)
    resolved = with_normalized_locations(config(**{key: spelling.format(here=tmp_path)}))
    assert location_of(resolved, key) == str(tmp_path / "a.zarr")
    assert resolved.parameters() == with_normalized_locations(config(**{key: "a.zarr"})).parameters()


@pytest.mark.parametrize("init", ["spectral", "pca", "random", "s3://bucket/first.zarr"])
def test_names_and_urls_stay_as_they_are(init):
    assert with_normalized_locations(config(**{"start.init": init})).start.init == init

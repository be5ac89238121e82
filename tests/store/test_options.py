"""Options of buckets: how stores are opened with them, and that their values are shown nowhere."""

from __future__ import annotations

import pickle

import pytest

from dumap.config import annotated_defaults, build_config, load_config
from dumap.errors import ConfigError, StorageError
from dumap.recipe.locations import with_normalized_locations
from dumap.store import Run, options
from dumap.store.backends import describe_error

SECRET = "zq7/FindThisSecretInNoLog"
STORAGE = {"endpoint": "http://127.0.0.1:9", "access_key_id": "AKIAFINDTHISKEY", "secret_access_key": SECRET}
REQUIRED = {"input": {"path": "s3://data/in.zarr"}, "output": "s3://other/run.zarr"}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Forget all storage options, before and after the test."""
    monkeypatch.setattr(options, "_options_by_bucket", {})


def test_options_are_the_buckets_own():
    options.set_options(["s3://data/in.zarr", "/a/path", "gs://other"], {**STORAGE, "timeout": "2 seconds"})
    expected = {"config": STORAGE, "client_options": {"timeout": "2 seconds", "allow_http": True}}
    assert options.bucket_arguments("s3://data/run.zarr/deep") == expected
    assert options.bucket_arguments("s3://elsewhere/in.zarr") == options.bucket_arguments("/a/path") == {}
    options.set_options(["S3://data/x"], {})
    assert options.bucket_arguments("s3://data/run.zarr") == {}
    assert set(options.known_options()) == {"gs://other"}


def test_a_configuration_opens_what_it_names_and_its_parent():
    config = build_config({**REQUIRED, "storage": STORAGE, "work": "s3://scratch/x"})
    with_normalized_locations(config, "s3://parents/one.zarr")
    assert set(options.known_options()) == {"s3://data", "s3://other", "s3://scratch", "s3://parents"}


def test_values_are_shown_nowhere():
    config = build_config({**REQUIRED, "storage": STORAGE})
    with_normalized_locations(config)
    texts = [repr(config), str(config), repr(config.storage), f"{config.storage}", str(config.model_dump())]
    texts += [str(config.parameters()), annotated_defaults(), config.model_dump_json()]
    texts += [describe_error(ValueError(f"denied: {STORAGE['access_key_id']} by {SECRET}"))]
    assert [text for text in texts if "FINDTHIS" in text.upper()] == []
    assert config.digest() == build_config(REQUIRED).digest()
    assert dict(pickle.loads(pickle.dumps(config)).storage) == STORAGE


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (SECRET, "storage: .*write the service's options as keys and values"),
        ({"key": [SECRET]}, "storage: .*options are texts, numbers, true or false; key is not"),
        ({"key": {SECRET: 1}}, "storage: .*key is not"),
    ],
)
def test_what_is_wrong_is_told_without_the_values(storage, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_config({**REQUIRED, "storage": storage})
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("setting", [f"storage.key: {SECRET}", f"storage.key=[{SECRET}", f"storage={SECRET}"])
def test_a_setting_that_cannot_be_read_is_told_without_its_value(setting):
    with pytest.raises(ConfigError, match="storage") as error:
        load_config(None, [setting], {"input.path": "a", "output": "b"})
    assert SECRET not in str(error.value)


def test_a_file_that_cannot_be_read_is_told_without_its_lines(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"input: {{path: a}}\nstorage: {{key: [{SECRET}}}\noutput: b\n")
    with pytest.raises(ConfigError, match=r"is not YAML: .* in line 2") as error:
        load_config(str(file))
    assert SECRET not in str(error.value)


def test_an_option_that_a_service_does_not_have_is_named():
    pytest.importorskip("obstore")
    options.set_options(["s3://data"], {"nonsense": SECRET})
    with pytest.raises(Exception, match="'nonsense' is not valid") as error:
        Run("s3://data/run.zarr").exists()
    assert SECRET not in str(error.value)
    options.set_options(["s3://data"], {"timeout": SECRET})
    with pytest.raises(Exception, match="failed to parse") as error:
        Run("s3://data/run.zarr").exists()
    assert SECRET not in str(error.value)
    assert not isinstance(error.value, StorageError), "it is the configuration's fault"

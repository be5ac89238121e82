"""Options of buckets on the command line: every command that opens a URL takes them, and tells them nobody."""

from __future__ import annotations

import pytest
import yaml

from dumap.store import disk, known_options, options

SECRET = "zq7/FindThisSecretInNoLog"
RUN = "s3://bucket/run.zarr"
COMMANDS = {
    "status": ["status", RUN],
    "verify": ["verify", RUN],
    "clean": ["clean", RUN],
    "export": ["export", RUN, "embedding", "map.npy"],
    "ingest": ["ingest", "rows.csv", "s3://bucket/rows.zarr"],
    "plan": ["plan", "--input", "s3://bucket/in.zarr", "--output", RUN],
    "run": ["run", "--input", "s3://bucket/in.zarr", "--output", RUN, "--engine", "local"],
}


@pytest.fixture(autouse=True)
def opened(monkeypatch, tmp_path):
    """Refuse to open buckets; return by which options that was tried."""
    tried = []

    def refuse(location):
        tried.append(options.bucket_arguments(location).get("config"))
        raise RuntimeError(f"{location} is refused")

    monkeypatch.setattr(options, "_options_by_bucket", {})
    monkeypatch.setattr("dumap.store.backends.bucket_arguments", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    return tried


@pytest.mark.parametrize("name", COMMANDS)
def test_words_open_buckets(cli, opened, name):
    options = ["--storage", "endpoint=http://127.0.0.1:9", "--storage", f"secret_access_key={SECRET}"]
    outcome = cli(*COMMANDS[name], *options)
    assert opened[0] == {"endpoint": "http://127.0.0.1:9", "secret_access_key": SECRET}
    assert (outcome.code, SECRET in outcome.out + outcome.err) == (2, False)


@pytest.mark.parametrize("name", ["status", "verify", "clean", "export", "ingest"])
def test_a_configuration_opens_buckets_and_words_win(cli, opened, name, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"output": "other.zarr", "storage": {"region": "here", "access_key_id": SECRET}}))
    outcome = cli(*COMMANDS[name], "--config", file, "--storage", "region=there")
    assert opened[0] == {"region": "there", "access_key_id": SECRET}
    assert (outcome.code, SECRET in outcome.out + outcome.err) == (2, False)


@pytest.mark.parametrize("argument", [SECRET, f"={SECRET}", f"key=[{SECRET}", f"key=[{SECRET}]"])
def test_a_word_that_is_no_option_is_not_shown(cli, argument):
    for command in (COMMANDS["status"], COMMANDS["plan"]):
        outcome = cli(*command, "--storage", argument)
        assert (outcome.code, "storage" in outcome.err, SECRET in outcome.out + outcome.err) == (2, True, False)


def test_paths_and_other_buckets_have_no_options(cli):
    assert cli("status", "no.zarr", "--storage", "region=here").code == 6
    assert known_options() == {}
    assert not disk.is_remote("no.zarr")

"""Files, arrays, attributes and links that people keep in a run survive whatever dumap does to it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from faults.harness import SETTING_OPTIONS, results

from dumap.errors import DamageError, StorageError
from dumap.recipe.damage import clean, verify
from dumap.recipe.pipeline import run
from dumap.recipe.stage_names import RUN_KEYS, STAGES
from dumap.show.export import export
from dumap.store import IDENTITY, INSIDE, LOCKS, MANIFESTS, PARTS, Run, manifest_key
from dumap.store.run import OWN

pytestmark = pytest.mark.fault(45)

PLACES = (
    *("notes.txt", "map.png", ".hidden", "plots/a.png", "graph/notes.txt", "start/labels/0.txt", "layout/zarr.json"),
    *("graph/united-00000-01234567", "embedding/notes.txt", "embedding/c/notes.txt", "_dumap/notes.txt"),
    *(
        f"{PARTS}/{name}"
        for name in ("graph/notes.txt", "start/labels/0.txt", "layout/zarr.json", "graph/united-00000")
    ),
    *(f"{PARTS}/graph/{name}" for name in ("united-00000-0123456", "united-00000-01234567.0", ".n.01234567.partial")),
    *(f"{PARTS}/{name}" for name in ("kmeans/block-00000-01234567", "run/a-01234567", "vectors/.labels.partial")),
    *(f"{LOCKS}/notes.txt", f"{LOCKS}/probe-mine", f"{MANIFESTS}/notes.txt", f"{MANIFESTS}/mine/a.json"),
    *(f"{MANIFESTS}/graph/My notes.json", "notes.txt.0123456789abcdef0123456789abcdef.partial"),
)
"""Where people keep files: also where dumap's own lie, and under names much like its own."""


def add_foreign(output: str) -> dict[str, object]:
    """Put into a run what people keep there; return what `kept` finds."""
    root = Path(output)
    for place in PLACES:
        file = root / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"years of work on {place}")
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("years of work")
    for place in (
        "link",
        f"{PARTS}/graph/link",
        f"{PARTS}/graph/united-00099-01234567",
        f"{PARTS}/vectors/block-00000-89abcdef",
        "embedding/link",
    ):
        (root / place).symlink_to(elsewhere)
    for place in ("file link", f"{PARTS}/start/file", f"{PARTS}/graph/united-00098-01234567"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(elsewhere / "thesis.txt")
    (root / "dangling").symlink_to("nowhere")
    (root / "empty folder").mkdir()
    group = zarr.open_group(output, mode="r+", use_consolidated=False)
    group.create_array("labels", data=np.arange(500), chunks=(100,))
    group.create_group("quality/scores").create_array("a", data=np.arange(5))
    return foreign_contents(output)


def foreign_contents(output: str) -> dict[str, object]:
    """Return all in a run and beside it that is not dumap's, as it is."""
    left = clean(output, print, is_dry_run=True)[1]
    root = Path(output)
    contents = {
        place: os.readlink(root / place) if (root / place).is_symlink() else (root / place).read_bytes()
        for place in left
    }
    contents |= {str(path): path.read_bytes() for path in (root.parent / "elsewhere").iterdir()}
    return contents | {"empty folder": os.listdir(root / "empty folder")}


@pytest.mark.fault(24)
def test_files_that_people_add_to_a_run_survive(cli, damageable, expected):
    foreign = add_foreign(damageable.output)
    assert {*PLACES, "labels/zarr.json", "labels/c/0", "quality/scores/a/c/0", "link", "dangling"} <= foreign.keys()
    assert (cli("verify", damageable.output).code, verify(damageable.output)) == (0, [])
    Run(damageable.output).put(f"{PARTS}/vectors/block-00000-01234567", b"left over")
    cleaned = json.loads(cli("clean", damageable.output, "--json").out)
    assert cleaned["unnamed"] == [f"{PARTS}/vectors/block-00000-01234567"]
    assert set(cleaned["left"]) == foreign.keys() - {"empty folder"} - {
        f"{Path(damageable.output).parent}/elsewhere/thesis.txt"
    }
    assert foreign_contents(damageable.output) == foreign
    output = cli("clean", damageable.output).out
    assert "not dumap's, left: notes.txt\n" in output
    assert output.endswith("0 objects that no manifest names\n")
    # made again, but for the first stage, with repairs
    for stage in STAGES[1:]:
        for manifest in Path(damageable.output, MANIFESTS, stage).glob("[a-z]*.json"):
            manifest.unlink()
        Path(damageable.output, MANIFESTS, "done", f"{stage}.json").unlink()
    (block,) = list(Path(damageable.output, PARTS).glob("vectors/block-00002-*"))
    block.write_bytes(b"")
    assert cli("verify", damageable.output).code == 1
    assert run(damageable)["state"] == "done"
    assert results(damageable.output) == expected
    assert verify(damageable.output) == []
    cli("clean", damageable.output)
    assert foreign_contents(damageable.output) == foreign


@pytest.mark.parametrize("consolidated", [False, True], ids=["plain", "consolidated"])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_attributes_survive(cli, damageable, expected, consolidated, new_path):
    group = zarr.open_group(damageable.output, mode="r+", use_consolidated=False)
    group.attrs["note"] = {"by": "me", "values": [1, 2.5, None]}
    group["embedding"].attrs["units"] = "none"
    if consolidated:
        zarr.consolidate_metadata(damageable.output)

    def foreign_attributes():
        group = zarr.open_group(damageable.output, mode="r")
        alone = zarr.open_array(damageable.output, path="embedding", mode="r")
        return group.attrs["note"], alone.attrs["units"], alone.attrs["long_name"]

    before = foreign_attributes()
    assert before[0]["by"] == "me"
    assert verify(damageable.output) == []
    assert cli("verify", damageable.output).code == 0
    export(damageable.output, "embedding", new_path("map.npy"))
    document = json.loads(Path(damageable.output, "zarr.json").read_text())
    document["attributes"]["dumap"]["seed"] = 7
    Path(damageable.output, "zarr.json").write_text(json.dumps(document))
    for key in (f"{MANIFESTS}/{IDENTITY}/results.json", f"{MANIFESTS}/done/vectors.json"):
        Path(damageable.output, key).unlink()
    assert {key for _, _, key in verify(damageable.output)} == {"zarr.json", f"{MANIFESTS}/{IDENTITY}/results.json"}
    assert cli("verify", damageable.output).code == 1
    assert run(damageable)["state"] == "done"
    assert foreign_attributes() == before
    assert verify(damageable.output) == []
    group = zarr.open_group(damageable.output, mode="r", use_consolidated=True)
    assert (group.attrs["dumap"]["seed"], group["embedding"].attrs["units"]) == (damageable.seed, "none")
    assert results(damageable.output) == expected


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"7", b"\xff", b'{"attributes": []}'),
        b'{"zarr_format": 3, "node_type": "group"}',
    ],
    ids=lambda content: repr(content[:20]),
)
@pytest.mark.parametrize("key", ["zarr.json", "embedding/zarr.json"])
def test_metadata_that_says_too_little_is_damage(damageable, cli, content, key):
    Path(damageable.output, key).write_bytes(content)
    assert [damaged_key for _, _, damaged_key in verify(damageable.output)] == [key]
    if key != "zarr.json":
        with pytest.raises(DamageError, match=key):
            Run(damageable.output, read_only=True).open_final("embedding")


def test_an_array_in_the_place_of_the_group_is_damage_and_its_attributes_are_kept(damageable, cli):
    shape = {"shape": [3], "data_type": "int8", "zarr_format": 3, "node_type": "array", "attributes": {"mine": 1}}
    Path(damageable.output, "zarr.json").write_text(json.dumps(shape))
    assert "damaged: zarr.json" in cli("verify", damageable.output).out
    group = zarr.open_group(damageable.output, mode="r", use_consolidated=False)
    assert (group.attrs["mine"], group.attrs["dumap"]["seed"]) == (1, damageable.seed)
    assert verify(damageable.output) == []


def test_attributes_of_others_are_not_taken_for_the_runs(damageable, cli):
    """Not even where the group's metadata is all that tells what the run is of."""
    zarr.open_group(damageable.output, mode="r+", use_consolidated=False).attrs["note"] = "mine"
    Path(damageable.output, manifest_key(IDENTITY, "run")).unlink()
    assert cli("verify", damageable.output).code == 1
    store = Run(damageable.output)
    assert set(store.attributes) <= set(OWN)
    assert zarr.open_group(damageable.output, mode="r", use_consolidated=False).attrs["note"] == "mine"
    with pytest.raises(ValueError, match="not among the run's own attributes: note"):
        Run(f"{damageable.output}-new").create({"note": 1})


# links -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder",
    [*(f"{PARTS}/cells", f"{PARTS}/quality", MANIFESTS, f"{MANIFESTS}/layout", LOCKS, INSIDE), "embedding", "status/c"],
)
@pytest.mark.parametrize("kind", ["folder", "dangling"])
def test_a_folder_of_the_run_that_is_a_link_is_refused(damageable, cli, contents, folder, kind):
    root, victim = Path(damageable.output), Path(damageable.output).parent / "victim"
    for manifest in root.glob(f"{MANIFESTS}/done/*.json"):
        manifest.unlink()
    if (root / folder).exists():
        shutil.move(root / folder, victim)
    if kind == "dangling":
        shutil.rmtree(victim, ignore_errors=True)
    else:
        victim.mkdir(exist_ok=True)
    (root / folder).symlink_to(victim)
    before = contents(str(root.parent))
    arguments = ["--input", damageable.input.path, "--output", damageable.output, *SETTING_OPTIONS]
    for command in (["run", *arguments], ["clean", damageable.output], ["verify", damageable.output]):
        outcome = cli(*command)
        assert outcome.code == 6, outcome
        if folder not in (MANIFESTS, INSIDE) or kind != "dangling":
            assert f"{folder} is a link to {victim}" in outcome.err
    assert contents(str(root.parent)) == before


def test_a_run_behind_a_link_is_a_run(damageable, expected, cli):
    link = Path(damageable.output).parent / "link.zarr"
    link.symlink_to(damageable.output)
    Path(damageable.output, MANIFESTS, "done", "quality.json").unlink()
    config = damageable.model_copy(update={"output": str(link)})
    assert run(config)["state"] == "done"
    assert results(str(link)) == expected
    assert [cli(command, link).code for command in ("verify", "clean", "status")] == [0, 0, 0]


def test_nothing_is_written_through_a_link_that_comes_later(damageable, contents):
    victim = Path(damageable.output).parent / "victim"
    victim.mkdir()
    store = Run(damageable.output)
    store.attributes  # noqa: B018
    values = store.open_final("embedding")[:]
    for folder in (f"{PARTS}/new", "embedding/c"):
        shutil.rmtree(Path(damageable.output, folder), ignore_errors=True)
        Path(damageable.output, folder).symlink_to(victim)
    with pytest.raises(StorageError, match="new is a link to"), store.part("new", "p") as out:
        out.write("a", np.arange(3))
    with pytest.raises(StorageError, match="embedding/c is a link to"), store.part("new", "p") as out:
        out.write_rows("embedding", 0, values)
    assert contents(str(victim)) == {}


def test_a_file_that_a_part_links_to_is_not_deleted(damageable):
    """A part whose object somebody moved away and linked to: what was moved is theirs."""
    store, root = Run(damageable.output), Path(damageable.output)
    (key,), away = store.part_object_keys("graph", "united-00000"), root.parent / "away"
    shutil.move(root / key, away)
    (root / key).symlink_to(away)
    before = away.read_bytes()
    assert verify(damageable.output) == []
    store.delete_part("graph", "united-00000")
    clean(damageable.output, print)
    assert away.read_bytes() == before


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "key", ["graph", f"{MANIFESTS}/graph/united-00000.json", "zarr.json", f"{LOCKS}/00000001.json"]
)
def test_a_file_without_end_is_damage(damageable, key):
    """A link to a device, or a file of 200 GiB, is not read to its end."""
    root = Path(damageable.output)
    path = next(root.glob(f"{PARTS}/graph/united-*")) if key == "graph" else root / key
    for harm in ("device", "pipe", "vast"):
        path.unlink()
        if harm == "device":
            path.symlink_to("/dev/zero")
        elif harm == "pipe":
            os.mkfifo(path)
        else:
            os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 200 << 30)
        assert [
            damaged_key for _, _, damaged_key in Run(damageable.output, read_only=True).find_damaged(RUN_KEYS.groups)
        ] == [str(path.relative_to(root))]


def test_all_that_a_run_writes_is_known_to_be_its_own(finished_run):
    """Else what tasks leave would stay for good, or a damaged manifest go unseen."""
    keys = Run(finished_run.output, read_only=True).keys()
    assert [key for key in keys if not RUN_KEYS.is_permanent(key) and not RUN_KEYS.is_deletable(key)] == []
    assert not any(RUN_KEYS.is_permanent(key) and RUN_KEYS.is_deletable(key) for key in keys)

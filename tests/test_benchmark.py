"""scripts/benchmark.py, small, with the peers that are installed here; and what it is made of."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import benchmark
import numpy as np
import pytest
import zarr
from measuring import contenders, machine, peers, picture
from measuring.process_tree import ProcessResult, folder_bytes, run_watched
from numba.core.caching import UserProvidedCacheLocator

from dumap.compiled import CACHED_PACKAGES

SCRIPTS = Path(__file__).parents[1] / "scripts"
MIB = 2**20


@pytest.fixture(scope="module")
def store(digits, tmp_path_factory):
    """Write digits and labels."""
    out = str(tmp_path_factory.mktemp("benchmark") / "digits.zarr")
    group = zarr.create_group(out)
    group.create_array("vectors", data=digits[0][:600].astype(np.uint8), chunks=(200, 64))
    group.create_array("labels", data=digits[1][:600].astype(np.uint8), chunks=(200,))
    return out


def copy_compiled(folder: Path) -> None:
    """Copy dumap's and pynndescent's compiled code to a folder for `NUMBA_CACHE_DIR`.

    In a folder of its own, the benchmark does not count what other tests compile at the same time.
    """
    for package in CACHED_PACKAGES:
        for ending in ("nbi", "nbc"):  # an index names code that was there before it
            for file in Path(find_spec(package).origin).parent.rglob(f"__pycache__/*.{ending}"):
                place = folder / UserProvidedCacheLocator.get_suitable_cache_subpath(str(file.parents[1] / "module.py"))
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)


@pytest.fixture(scope="module")
def figures(store, tmp_path_factory):
    """Run the benchmark with umap-learn, and with PaCMAP, which may not be here."""
    output = tmp_path_factory.mktemp("figures") / "small"
    words = [store, "--output", str(output), "--installed", "--engine", "local", "--queries", "200"]
    words += ["--only", "dumap,umap-learn,pacmap", "--set", "layout.n_epochs=50"]
    compiled = tmp_path_factory.mktemp("compiled")
    copy_compiled(compiled)
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), *words]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(compiled)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert "| dumap |" in run.stdout
    return json.loads(Path(f"{output}.json").read_text()) | {"output": output}


@pytest.mark.slow
def test_each_program_has_times_memory_and_quality(figures):
    runs = {run["name"]: run for run in figures["runs"]}
    for name in ("dumap", "umap-learn"):
        run = runs[name]
        assert 20 * MIB < run["peak_bytes"] < 2**33
        assert run["seconds"]["counted"] == pytest.approx(sum(run["seconds"]["stages"].values()), rel=0.01)
        assert run["seconds"]["process"] >= run["seconds"]["counted"]
        assert run["disk_bytes"] > 0
        assert run["versions"][name]
    assert runs["dumap"]["seconds"]["process"] == runs["dumap"]["seconds"]["counted"]
    assert runs["dumap"]["kernels_compiled"] == 0
    assert set(runs["umap-learn"]["seconds"]["stages"]) >= {"load", "layout", "other"}
    for name in ("dumap", "umap-learn"):
        assert runs[name]["quality"]["trust15"] > 0.95
        assert runs[name]["quality"]["label15"] > 0.9
    assert runs["dumap"]["quality"]["recall"] > 0.99
    assert figures["summary"]["umap-learn"]["times_dumaps_seconds"] > 0


@pytest.mark.slow
def test_a_program_that_makes_no_map_is_judged_by_its_neighbors(store, tmp_path, monkeypatch, capsys):
    """Called in this process, as it compiles for half a minute in each; others are run as processes."""

    def run_here(command, *rest):
        monkeypatch.setattr(sys, "argv", command[1:])
        start_time = time.perf_counter()
        contenders.main()
        seconds = time.perf_counter() - start_time
        return ProcessResult(0, seconds, *[folder_bytes(tmp_path)] * 4, out=capsys.readouterr().out, err="")

    monkeypatch.setattr(sys, "argv", ["benchmark.py", store, "--output", str(tmp_path / "x"), "--queries", "200"])
    args = benchmark.parse_arguments()
    monkeypatch.setattr(benchmark, "run_watched", run_here)
    (tmp_path / "pynndescent-0").mkdir()
    run = benchmark.run_peer(args, "pynndescent", sys.executable, tmp_path / "pynndescent-0")
    assert run["seconds"]["counted"] == pytest.approx(sum(run["seconds"]["stages"].values()), rel=0.01)
    assert run["seconds"]["process"] >= run["seconds"]["counted"]
    assert run["disk_bytes"] > 0
    assert run["versions"]["pynndescent"]
    run |= {"name": "pynndescent", "round": 0}
    benchmark.judge_all(args, tmp_path, [run])
    assert run["quality"].keys() == {"recall"}
    assert run["quality"]["recall"] > 0.9


@pytest.mark.slow
def test_a_peer_that_is_not_there_is_reported(figures):
    run = next(run for run in figures["runs"] if run["name"] == "pacmap")
    assert "quality" in run or "pacmap is not installed" in run["failed"]


@pytest.mark.slow
def test_figures_say_what_they_were_measured_on(figures):
    assert figures["machine"]["processor"]["name"]
    assert "benchmark.py" in figures["command"]
    assert figures["data"] | {"rows": 600, "dims": 64, "dtype": "uint8"} == figures["data"]
    assert Path(f"{figures['output']}.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in figures["output"].parent.iterdir() if path.is_dir()] == [], "runs were left"


def test_a_peer_that_fails_is_reported_with_its_last_words(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", store, "--output", str(tmp_path / "x"), "--array", "none"])
    result = benchmark.run_peer(benchmark.parse_arguments(), "pynndescent", sys.executable, tmp_path)
    assert "exit code 1" in result["failed"]
    assert benchmark.summarize([{"name": "pynndescent", "round": 0, **result}])["pynndescent"] == {
        "failed": result["failed"]
    }


@pytest.mark.parametrize("words", [["--only", "tsne"], ["--rounds", "0"], ["--once", "nobody"]])
def test_what_is_not_known_is_refused(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "data.zarr", "--output", "x", *words])
    with pytest.raises(SystemExit):
        benchmark.parse_arguments()
    assert "must be" in (error := capsys.readouterr().err) or "not among dumap, umap-learn" in error


def test_medians_and_ratios_are_those_of_all_rounds():
    def run(name, seconds, gib):
        return {"name": name, "round": 0, "seconds": {"counted": seconds}, "peak_bytes": gib}

    runs = [run("dumap", 2.0, 1.0), run("peer", 7.0, 3.0), run("dumap", 4.0, 2.0), run("peer", 5.0, 4.0)]
    result = benchmark.summarize([*runs, {"name": "other", "round": 0, "failed": "no such thing"}])
    assert result["dumap"] == {"runs": 2, "seconds": 3.0, "peak_bytes": 2.0}
    assert (result["peer"]["times_dumaps_seconds"], result["peer"]["times_dumaps_memory"]) == (2.0, 2.0)
    assert result["other"] == {"failed": "no such thing"}


def test_a_map_that_is_not_finite_is_reported(store, tmp_path, monkeypatch):
    (tmp_path / "pacmap-0").mkdir()
    np.save(tmp_path / "pacmap-0" / "embedding.npy", np.full((600, 2), np.nan))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", store, "--output", str(tmp_path / "x"), "--queries", "50"])
    entries = [{"name": "pacmap", "round": 0}]
    benchmark.judge_all(benchmark.parse_arguments(), tmp_path, entries)
    assert "not finite" in entries[0]["failed"]
    assert "not finite" in benchmark.format_table(entries)


# processes ---------------------------------------------------------------------------------------


def test_memory_and_disk_are_those_of_all_processes(tmp_path):
    child = "x = bytearray(b'1') * (150 << 20); import time; time.sleep(2)"
    program = "import subprocess, sys\nheld = bytearray(b'1') * (100 << 20)\n"
    program += f"subprocess.run([sys.executable, '-c', {child!r}])\n"
    program += f"open({str(tmp_path / 'left')!r}, 'wb').write(bytes(3 << 20)); print('done')"
    result = run_watched([sys.executable, "-c", program], tmp_path)
    assert (result.exit_code, result.out.strip()) == (0, "done")
    assert 250 * MIB < result.peak_bytes < 330 * MIB
    assert 150 * MIB < result.peak_process_bytes < 200 * MIB
    assert result.disk_bytes == result.peak_disk_bytes == folder_bytes(tmp_path) >= 3 * MIB


def test_a_process_whose_time_is_up_is_ended_with_its_children(tmp_path):
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    began = time.monotonic()
    result = run_watched([sys.executable, "-c", program], timeout=1.0)
    assert result.exit_code is None
    assert time.monotonic() - began < 30
    assert "its time was up" in benchmark.describe_failure(result)


def test_what_a_process_said_last_is_kept():
    result = run_watched([sys.executable, "-c", "import sys; sys.exit('it is broken')"])
    assert benchmark.describe_failure(result) == "exit code 1: it is broken"


# peers -------------------------------------------------------------------------------------------


def test_time_in_a_function_within_another_is_the_inner_ones():
    clock = contenders.StageClock()

    def inner():
        time.sleep(0.2)

    def outer():
        time.sleep(0.05)
        timed_inner()

    timed_inner, timed_outer = clock._time_calls("inner", inner), clock._time_calls("outer", outer)
    start_time = time.perf_counter()
    timed_outer()
    elapsed = time.perf_counter() - start_time
    assert clock.seconds["inner"] >= 0.2
    assert 0.05 <= clock.seconds["outer"] <= elapsed - clock.seconds["inner"]


def test_a_row_is_left_out_of_its_own_list():
    lists = np.array([[0, 1, 2], [3, 1, 0], [0, 1, 3], [3, 2, 1]])  # row 2 is not in its own
    assert contenders.remove_self(lists).tolist() == [[1, 2], [3, 0], [0, 1], [2, 1]]


def test_stages_of_umap_learn_are_functions_that_it_has():
    for place in itertools.chain.from_iterable(contenders.UmapLearn.stages.values()):
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name)), place


def test_a_function_that_a_peer_lacks_is_an_error():
    clock = contenders.StageClock()
    with pytest.raises(AttributeError, match="no_such"):
        clock.time_function("layout", "umap.umap_:no_such")


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(peers, "run_install_step", lambda command, name: commands.append(command))
    for _ in range(2):
        (tmp_path / f"pacmap-{sys.version_info.major}.{sys.version_info.minor}").mkdir(exist_ok=True)
        result = peers.interpreter_of("pacmap", tmp_path)
    assert result.endswith("bin/python")
    assert len(commands) == 2
    assert commands[1][1:6] == ["-m", "pip", "install", "--quiet", "pacmap"]


def test_what_cannot_be_installed_says_why():
    with pytest.raises(peers.PeerNotInstalled, match="pacmap cannot be installed: no network"):
        peers.run_install_step([sys.executable, "-c", "import sys; sys.exit('no network')"], "pacmap")


def test_a_machine_is_described():
    result = machine.describe_machine()
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["memory_bytes"] > 2**28
    assert {"python", "numpy", "zarr"} <= result["versions"].keys()
    assert set(result["machine"]["processor"]["features"]) <= set(machine.PROCESSOR_FEATURES)


def test_a_picture_without_any_map_has_times_alone(store, tmp_path):
    run = {"name": "pynndescent", "round": 0, "seconds": {"stages": {"neighbors": 1.0}}, "peak_bytes": MIB}
    figures = {"runs": [run, {"name": "x", "round": 0, "failed": "no"}], "data": {"path": store, "rows": 6, "dims": 2}}
    figures["data"]["dtype"] = "uint8"
    assert picture.draw_benchmark(figures | machine.describe_machine(), tmp_path, "labels", str(tmp_path / "out.png"))
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")

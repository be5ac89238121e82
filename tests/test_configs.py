"""The files of configs/ that schedule runs: each is parsed, checked, and run for real as far as it can be."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jsonschema
import pytest
import yaml

import dumap
from dumap import errors
from dumap.recipe import pipeline
from dumap.recipe.stage_names import STAGES

CONFIGS = Path(__file__).parents[1] / "configs"
FINAL = {2, 3, 4, 7}
"""Exit codes of errors that another try would meet again."""
FAKES = {
    "dumap": 'exec {python} -m dumap "$@"',
    "dask": 'exec {python} -m dask "$@"',
    "srun": 'while [ "${{1#--}}" != "$1" ]; do shift; done; sleep "${{LATE:-0}}"; exec "$@"',
    "scontrol": 'echo "$@" >>scontrol.log',
    "sbatch": (
        "export SLURM_JOB_ID=77 SLURM_CPUS_PER_TASK=2 SLURM_MEM_PER_NODE=4096 PS4=; "
        'script=$1; shift; exec bash "$script" "$@"'
    ),
}
"""Commands of a machine with Slurm: what follows srun's options starts late."""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Work in an empty folder, with stand-ins for the commands of schedulers first on the path."""
    (tmp_path / "bin").mkdir()
    for name, text in FAKES.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text.format(python=sys.executable)}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def configured(digits_300, save, new_path):
    """Write the configuration of a tiny run; return its path and the output's."""

    def write(**cluster) -> tuple[str, str]:
        file, output = new_path("run.yaml"), new_path("run.zarr")
        values = {"input": {"path": save(digits_300)}, "output": output, "layout": {"n_epochs": 5}, "cluster": cluster}
        Path(file).write_text(yaml.safe_dump(values))
        return file, output

    return write


def test_final_exit_codes_are_those_of_errors_that_stay():
    kinds = (errors.ConfigError, errors.InputError, errors.BudgetError, errors.RunMismatchError)
    assert {kind.exit_code for kind in kinds} == FINAL


# Slurm -------------------------------------------------------------------------------------------


def slurm(*arguments: str, **environment: str) -> subprocess.Popen:
    """Submit the example's batch script to the Slurm that is on the path."""
    command = ["sbatch", str(CONFIGS / "slurm.sbatch"), *arguments]
    with Path("job.log").open("a") as log:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)


def test_the_batch_script_is_one():
    script = CONFIGS / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).stderr == b""
    lines = script.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in options)
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert len(options) == sum(line.startswith("#SBATCH") for line in lines[:first]) >= 8, "before the first command"


@pytest.mark.slow
def test_a_job_runs_though_its_nodes_are_late(machine, configured):
    file, output = configured()
    job = slurm(file, "--metrics", "dumap.prom", "--set", "cluster.engine=dask", LATE="5")
    assert job.wait(300) == 0, Path("job.log").read_text()
    assert pipeline.status(output)["state"] == "done"
    assert "dumap_exit_code 0" in Path("dumap.prom").read_text()
    summary = json.loads(Path(file).with_name("run.summary.json").read_text())
    assert [stage["engine"] for stage in summary["stages"]] == ["dask"] * len(STAGES)
    assert not list(machine.glob("scheduler-*.json"))
    assert not Path("scontrol.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGUSR1, "requeue 77\n"), (signal.SIGTERM, None)])
def test_a_job_whose_time_is_up_is_queued_again(machine, configured, number, expected):
    file, _ = configured()
    job = slurm(file, LATE="600")
    while not Path("scheduler-77.json").exists():
        assert job.poll() is None, Path("job.log").read_text()
        time.sleep(0.1)
    job.send_signal(number)
    assert job.wait(120) == 143
    log = Path("scontrol.log")
    assert (log.read_text() if log.exists() else None) == expected


# Kubernetes --------------------------------------------------------------------------------------


def documents(name: str) -> list[dict]:
    """Read the YAML documents of an example."""
    return list(yaml.safe_load_all((CONFIGS / name).read_text()))


def const(value: object) -> dict:
    """Return the schema of one value."""
    return {"const": value}


def having(**properties: dict) -> dict:
    """Return the schema of an object that must have properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def each(schema: dict) -> dict:
    """Return the schema of a list of what another schema allows."""
    return {"type": "array", "minItems": 1, "items": schema}


AMOUNTS = having(cpu={"pattern": "^[0-9]+m?$"}, memory={"pattern": "^[0-9]+[MG]i$"})
CONTAINER = having(
    name={"type": "string"},
    image={"type": "string"},
    envFrom=each(having(secretRef=having(name={"type": "string"}))),
    resources=having(requests=AMOUNTS, limits=AMOUNTS),
)
CRON_JOB = having(
    apiVersion=const("batch/v1"),
    kind=const("CronJob"),
    metadata=having(name={"pattern": "^[a-z0-9-]+$"}),
    spec=having(
        schedule={"pattern": r"^(\S+ ){4}\S+$"},
        concurrencyPolicy=const("Forbid"),
        jobTemplate=having(
            spec=having(
                backoffLimit={"type": "integer", "minimum": 1},
                podFailurePolicy=having(rules={"type": "array", "minItems": 1}),
                template=having(
                    spec=having(
                        restartPolicy=const("Never"),
                        terminationGracePeriodSeconds={"type": "integer", "minimum": 30},
                        containers=each(CONTAINER),
                    )
                ),
            )
        ),
    ),
)
PORTS = {"contains": having(name=const("tcp-comm"))}
DASK_JOB = having(
    apiVersion=const("kubernetes.dask.org/v1"),
    kind=const("DaskJob"),
    metadata=having(name={"pattern": "^[a-z0-9-]+$"}),
    spec=having(
        job=having(spec=having(restartPolicy=const("Never"), containers=each(CONTAINER))),
        cluster=having(
            spec=having(
                worker=having(replicas={"type": "integer", "minimum": 1}, spec=having(containers=each(CONTAINER))),
                scheduler=having(
                    spec=having(containers=each(having(ports=PORTS, args=const(["dask", "scheduler"])))),
                    service=having(type=const("ClusterIP"), selector={"type": "object"}, ports=PORTS),
                ),
            )
        ),
    ),
)


@pytest.fixture
def understood(cli, monkeypatch):
    """Return a function that returns the configuration that a container's arguments make."""
    configs = []

    def keep(config, **more):
        configs.append(config)
        raise errors.InputError("seen")

    monkeypatch.setattr(pipeline, "run", keep)

    def call(*arguments: str):
        assert arguments[0] == "dumap"
        outcome = cli(*arguments[1:])
        assert outcome.code == 3, outcome.err
        return configs.pop()

    return call


def test_the_cron_job_is_one(understood, tmp_path):
    config_map, job = documents("k8s-cronjob.yaml")
    jsonschema.validate(job, CRON_JOB)
    (tmp_path / "run.yaml").write_text(config_map["data"]["run.yaml"])
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    arguments = [argument.replace("/etc/dumap", str(tmp_path)) for argument in container["command"]]
    assert understood(*arguments).output == "s3://data/run.zarr"
    (mount,) = container["volumeMounts"]
    (volume,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["volumes"]
    assert mount["mountPath"] == "/etc/dumap"
    assert (mount["name"], volume["configMap"]["name"]) == (volume["name"], config_map["metadata"]["name"])


def test_the_cron_job_fails_at_once_where_another_pod_would():
    rules = documents("k8s-cronjob.yaml")[1]["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    final, evicted = rules
    assert final["action"] == "FailJob"
    assert final["onExitCodes"] == {"containerName": "dumap", "operator": "In", "values": sorted(FINAL)}
    assert evicted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_the_dask_job_is_one(understood):
    (job,) = documents("daskjob.yaml")
    jsonschema.validate(job, DASK_JOB)
    spec = job["spec"]
    (driver,) = spec["job"]["spec"]["containers"]
    config = understood(*driver["args"])
    assert (config.input.path, config.output) == ("s3://data/vectors.zarr", "s3://data/run.zarr")
    assert config.cluster.scheduler is None, "the operator names it in DASK_SCHEDULER_ADDRESS"
    cluster = spec["cluster"]["spec"]
    assert cluster["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == job["metadata"]["name"]
    images = [part["containers"][0]["image"] for part in (cluster["worker"]["spec"], cluster["scheduler"]["spec"])]
    assert images == [driver["image"]] * 2


# systemd and cron --------------------------------------------------------------------------------


def test_the_units_are_taken_by_systemd(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    for name in ("dumap.service", "dumap.timer"):
        text = (CONFIGS / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("/usr/local/bin/dumap", shutil.which("true") or ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_runs_dumap_and_is_started_again_where_that_helps(understood, tmp_path):
    text = (CONFIGS / "systemd" / "dumap.service").read_text()
    options = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert {int(code) for code in options["RestartPreventExitStatus"].split()} == FINAL
    assert options["SuccessExitStatus"] == str(errors.Terminated.exit_code)
    assert options["KillMode"] == "mixed"
    (tmp_path / "run.yaml").write_text("input: {path: in.zarr}\noutput: out.zarr\n")
    command = re.sub("/etc/dumap|/var/lib/dumap/metrics", str(tmp_path), options["ExecStart"]).split()
    understood(Path(command[0]).name, *command[1:])
    assert "dumap_exit_code 3" in (tmp_path / "dumap.prom").read_text()


@pytest.mark.slow
def test_the_line_of_cron_runs(machine, configured):
    lines = [line for line in (CONFIGS / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    *variables, line = lines
    assert [variable.partition("=")[0] for variable in variables] == ["SHELL", "PATH", "DUMAP"]
    *times, command = line.split(None, 5)
    assert all(re.fullmatch(r"[\d*,/-]+", part) for part in times)
    assert "%" not in command, "cron takes it for the end of the line"
    file, output = configured(engine="local")
    shutil.copy(file, "run.yaml")
    Path("metrics").mkdir()
    done = subprocess.run(["/bin/sh", "-c", command], env={**os.environ, "DUMAP": str(machine)}, timeout=300)
    assert done.returncode == 0, Path("dumap.log").read_text()
    assert json.loads(Path("last.json").read_text())["output"] == output
    assert "dumap_exit_code 0" in Path("metrics/dumap.prom").read_text()


# flows -------------------------------------------------------------------------------------------


class Future:
    """What Prefect gives for a task that is submitted: it is tried as often as the task says."""

    def __init__(self, function, arguments, options):
        for left in reversed(range(options["retries"] + 1)):
            try:
                self.error, self.value = None, function(*arguments)
                return
            except Exception as error:
                self.error = error
                if not left or not options["retry_condition_fn"](function, None, self):
                    return

    def result(self):
        if self.error is not None:
            raise self.error
        return self.value


@pytest.fixture
def prefect(monkeypatch, client):
    """Load the flow, with stand-ins for Prefect's modules."""
    from contextlib import nullcontext

    modules = {"prefect": ModuleType("prefect"), "prefect_dask": ModuleType("prefect_dask")}
    modules["prefect"].task = lambda **options: (
        lambda function: SimpleNamespace(submit=lambda *words: Future(function, words, options))
    )
    modules["prefect"].flow = lambda **options: lambda function: function
    modules["prefect_dask"].DaskTaskRunner = lambda address: address
    modules["prefect_dask"].get_dask_client = lambda: nullcontext(client)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return runpy.run_path(str(CONFIGS / "prefect_flow.py"))


@pytest.mark.slow
def test_the_flow_of_prefect_runs(prefect, configured):
    file, output = configured()
    summary = prefect["embed_nightly"](file)
    assert (summary["output"], summary["state"]) == (output, "done")
    assert summary["recall"] > 0.9
    assert 0.5 < summary["trustworthiness"] <= 1


@pytest.mark.parametrize(
    ("error", "tries"), [(errors.ClusterError, 6), (errors.LockError, 6), (errors.InputError, 1), (KeyError, 1)]
)
def test_the_flow_of_prefect_tries_again_where_that_helps(prefect, monkeypatch, error, tries):
    calls = []

    def fail(**more):
        calls.append(more)
        raise error("a sentence")

    monkeypatch.setattr(dumap, "run", fail)
    with pytest.raises(error):
        prefect["embed_nightly"]("run.yaml")
    assert len(calls) == tries


class Failed(Exception):
    """Stands for AirflowFailException."""


class Skipped(Exception):
    """Stands for AirflowSkipException."""


@pytest.fixture
def airflow(monkeypatch):
    """Return a function that calls the DAG's task, with stand-ins for Airflow's modules."""
    sdk, exceptions = ModuleType("airflow.sdk"), ModuleType("airflow.sdk.exceptions")
    exceptions.AirflowFailException, exceptions.AirflowSkipException = Failed, Skipped
    tasks = []
    sdk.dag = lambda **options: lambda function: function
    sdk.task = lambda **options: lambda function: lambda: tasks.append(function)
    for name, module in {"airflow": ModuleType("airflow"), sdk.__name__: sdk, exceptions.__name__: exceptions}.items():
        monkeypatch.setitem(sys.modules, name, module)

    def call(config: str):
        tasks.clear()
        runpy.run_path(str(CONFIGS / "airflow_dag.py"))
        (task,) = tasks
        monkeypatch.setitem(task.__globals__, "CONFIG", config)
        return task()

    return call


def test_the_dag_of_airflow_runs_and_skips_what_is_finished(airflow, configured):
    file, output = configured(engine="local")
    summary = airflow(file)
    assert summary["output"] == output
    assert summary["recall"] > 0.9
    with pytest.raises(Skipped, match="finished before"):
        airflow(file)


def test_the_dag_of_airflow_fails_for_good_where_another_try_would(airflow, configured, monkeypatch):
    with pytest.raises(Failed, match="no_such"):
        airflow("no_such.yaml")

    def fail(**more):
        raise errors.StorageError("no space")

    monkeypatch.setattr(dumap, "run", fail)
    with pytest.raises(errors.StorageError):
        airflow("run.yaml")

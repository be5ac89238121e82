"""The command line: plan, run, config, ingest, status, export, verify, clean."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from dumap import api
from dumap.cli.group import Group
from dumap.cli.logs import log_message, should_log_json
from dumap.cli.records import RecordedCommand, record_of, record_options
from dumap.cli.storage import storage_option, storage_settings, with_storage
from dumap.errors import ConfigError
from dumap.json_values import format_fact, to_json
from dumap.version import __version__

if TYPE_CHECKING:
    from dumap.config import Config

EXIT_CODES = """
Exit codes: 0 ok, 1 damage found, 2 bad configuration, 3 bad input, 4 over budget, 5 cluster lost,
6 storage failed, 7 other parameters, input,
versions or processors than the run's, 8 locked by another driver,
9 a task failed, 70 unexpected, 130 interrupted (Ctrl-C), 143 interrupted (SIGTERM).
"""


SHOWN_STAGES = ("audit", "graph", "quality")
"""The stages whose facts 'dumap status' prints; with --json it prints those of all stages."""
KEY_OF_OPTION = {
    "input_path": "input.path",
    "array": "input.array",
    "output": "output",
    "seed": "seed",
    "n_neighbors": "neighbors.n_neighbors",
    "metric": "neighbors.metric",
    "n_components": "layout.n_components",
    "n_epochs": "layout.n_epochs",
    "min_dist": "layout.min_dist",
    "engine": "cluster.engine",
    "workers": "cluster.workers",
    "memory_limit": "cluster.memory_limit",
    "scheduler": "cluster.scheduler",
    "scheduler_file": "cluster.scheduler_file",
    "report": "cluster.report",
}
"""Options of `plan` and `run`, and the keys of their settings."""


def config_options(command: Any) -> Any:
    """Add the argument CONFIG and the options for settings to a command."""
    options: list[Any] = [
        click.argument("config", required=False, type=click.Path(dir_okay=False)),
        click.option("--input", "input_path", metavar="DATA", help="Zarr group or array: a path or a URL."),
        click.option("--array", metavar="NAME", help="The array's name in the group. [vectors]"),
        click.option("--output", metavar="RUN", help="Where the run is stored: a path or a URL."),
        click.option("--seed", type=int, help="Seed of all random numbers. [42]"),
        click.option("--n-neighbors", type=int, help="Neighbours of each row, including itself. [15]"),
        click.option("--metric", help="The distance between rows. [euclidean]"),
        click.option("--n-components", type=int, help="Dimensions of the map. [2]"),
        click.option("--n-epochs", type=int, help="Epochs of the layout. [by the number of rows]"),
        click.option("--min-dist", type=float, help="How closely rows are packed on the map. [0.1]"),
        click.option("--parent", metavar="RUN", help="Another run, whose equal stages are read."),
        click.option("--engine", help="auto, local (threads of this process) or dask. [auto]"),
        click.option("--workers", type=int, help="Worker processes of the embedded cluster. [a core each]"),
        click.option("--memory-limit", metavar="SIZE", help="Memory of each embedded worker, such as 2GiB."),
        click.option("--scheduler", metavar="ADDRESS", help="A Dask scheduler to use."),
        click.option("--scheduler-file", metavar="FILE", help="A Dask scheduler's file."),
        storage_option,
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting: see 'dumap config'."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def load_settings(
    config: str | None, settings: tuple[str, ...], storage: tuple[str, ...] = (), **options: Any
) -> Config:
    """Return the configuration that a file, --set, --storage and options give."""
    from dumap.config import contradictions, load_config

    settings = (*settings, *storage_settings(storage))
    values_by_key = {KEY_OF_OPTION[name]: value for name, value in options.items() if value is not None}
    if differences := contradictions(config, settings, values_by_key):
        raise ConfigError("an option and --set say different things, give one:\n  " + "\n  ".join(differences))
    return load_config(config, settings, values_by_key)


@click.group("dumap", cls=Group, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="dumap")
def cli() -> None:
    """UMAP of Zarr stores larger than memory, on Dask."""


@cli.command()
@config_options
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def plan(as_json: bool, parent: str | None, **options: Any) -> None:
    """Print the memory, disk and time that a run will take, without starting it."""
    from dumap.engine.engine_choice import choose_engine
    from dumap.engine.resources import cpu_count
    from dumap.planning.plan import format_plan

    config = load_settings(**options)
    planned = api.plan(config=config, parent=parent)
    engine_choice = choose_engine(config.cluster, planned)
    if as_json:
        click.echo(to_json({**planned.as_dict(), "engine": engine_choice.name}))
    else:
        cluster_address = config.cluster.scheduler or config.cluster.scheduler_file
        default_threads = 1 if cluster_address else cpu_count()  # the threads of a named cluster are unknown
        threads = config.cluster.workers or default_threads
        click.echo(f"{format_plan(planned, threads)}\nengine {engine_choice.name}: {engine_choice.reason}")


@cli.command(cls=RecordedCommand)
@config_options
@click.option("--report", metavar="FILE", help="Write Dask's performance report, in HTML.")
@click.option("--force", is_flag=True, help="Continue stages that other versions began.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's status for machines at the end.")
@record_options
@click.option(
    "--exit-code-unchanged",
    "unchanged",
    type=click.IntRange(0, 255),
    default=0,
    metavar="N",
    help="Exit code if the run was finished before. [0]",
)
def run(as_json: bool, force: bool, parent: str | None, unchanged: int, **options: Any) -> None:
    """Embed a data set, or continue a run that was stopped."""
    from dumap.cli.progress import open_observer
    from dumap.store.disk import normalize

    context = click.get_current_context()
    record = record_of(context)
    record.check()
    config = load_settings(**options)
    with open_observer(should_log_json()) as progress_observer:
        recording_observer = record.observe(normalize(config.output), progress_observer)
        result = api.run(config=config, on_progress=recording_observer, force=force, parent=parent)
    if record.unchanged and config.cluster.report is not None:
        log_message(f"no performance report in {config.cluster.report}: nothing was run")
    if as_json:
        click.echo(to_json(dict(result)))
    else:
        outcome = "finished before, nothing to do" if record.unchanged else "done"
        click.echo(f"{outcome}: {result['output']}, arrays 'embedding' and 'status'")
    if record.unchanged:
        context.exit(unchanged)


@cli.command()
@click.argument("sources", nargs=-1, required=True)
@click.argument("output")
@click.option("--array", default="vectors", metavar="NAME", help="The array's name. [vectors]")
@click.option("--columns", metavar="LIST", help="Columns to take: a,b,c; if they have no names, 0,3,8:16.")
@click.option("--names", metavar="COLUMN", help="The column, or array, of row names.")
@click.option("--key", metavar="NAME", help="The array of a file that holds several, such as obsm/X_pca.")
@click.option("--dtype", metavar="DTYPE", help="The dtype of the values, such as float32. [as in the files]")
@click.option("--no-header", is_flag=True, help="The first line of text is a row, not names of columns.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_storage
def ingest(
    sources: tuple[str, ...],
    output: str,
    array: str,
    columns: str | None,
    names: str | None,
    key: str | None,
    dtype: str | None,
    no_header: bool,
    as_json: bool,
) -> None:
    """Make a Zarr store of .npy, .npz, Parquet, HDF5, .h5ad or CSV files, in order; patterns and folders too.

    So many parameters: one for each argument of the command.
    """
    from dumap.sources.files import FileSelection
    from dumap.sources.ingestion import ingest as write_store

    column_names = None if columns is None else tuple(column.strip() for column in columns.split(","))
    selection = FileSelection(column_names, key, names, not no_header)
    store_info = write_store(sources, output, selection, array, dtype, log_message)
    if as_json:
        click.echo(to_json(store_info))
        return
    with_names = " with their names" if store_info["names"] else ""
    click.echo(
        f"{output}: {store_info['rows']} rows{with_names} x {store_info['dims']} columns of {store_info['dtype']}"
    )


@cli.command()
@click.argument("key", required=False)
@click.option("--example", metavar="NAME", help="Print a file that comes with dumap, such as scheduled or slurm.")
def config(key: str | None, example: str | None) -> None:
    """Print the defaults as YAML, with what each setting does: all, or those of KEY (layout, layout.min_dist)."""
    from dumap.config import annotated_defaults, read_example

    if key is not None and example is not None:
        raise click.UsageError("give KEY or --example, not both")
    click.echo(annotated_defaults(key) if example is None else read_example(example), nl=False)


def _stage_origin(stage: dict[str, Any], run_status: dict[str, Any]) -> str:
    """Return the run that holds an inherited stage, and the versions that made a stage if the run has others."""
    remarks = [] if stage["from"] is None else [f"of {stage['from']}"]
    other_versions = set(stage.get("versions", {}).items()) - set(run_status["versions"].items())
    return ", ".join(remarks + [f"made with {name} {version}" for name, version in sorted(other_versions)])


@cli.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_storage
def status(run: str, as_json: bool) -> None:
    """Print which stages of a run are done."""
    from dumap.config import format_bytes

    run_status = api.status(run)
    if as_json:
        click.echo(to_json(run_status))
        return
    click.echo(f"{run_status['output']}: {run_status['state']}")
    if (driver := run_status["driver"]) is not None:
        liveness = "at work" if driver["alive"] else f"no sign of life for {driver['seconds']:.0f} s"
        click.echo(f"driven by process {driver['process']} on {driver['machine']}: {liveness}")
    if run_status["work"] is not None:
        click.echo(f"all but the results is in {run_status['work']}")
    if run_status["parent"] is not None:
        click.echo(f"child of {run_status['parent']}")
    for child in run_status["children"]:
        click.echo(f"parent of {child}")
    click.echo(f"{'stage':<10} {'state':<8} {'done':>13} {'seconds':>8} {'projected':>10} {'peak':>10}  digest")
    for stage in run_status["stages"]:
        progress_text = str(stage["parts"] or "")
        if stage["state"] != "done" and stage["progress"] is not None:
            progress_text = f"{stage['progress'][0]:.0f} of {stage['progress'][1]:.0f}"
        numbers = ["", "", ""]
        if stage["state"] == "done":
            numbers = [
                f"{stage['seconds']:.1f}",
                *(format_bytes(stage[k]) for k in ("projected_bytes", "peak_bytes")),
            ]
        line = " ".join([f"{numbers[0]:>8}", *(f"{number:>10}" for number in numbers[1:])])
        digest = (stage["digest"] or "")[:8]
        line = f"{stage['name']:<10} {stage['state']:<8} {progress_text:>13} {line}  {digest:<8}"
        click.echo(f"{line}  {_stage_origin(stage, run_status)}".rstrip())
    facts = [fact for stage in run_status["stages"] if stage["name"] in SHOWN_STAGES for fact in stage["facts"].items()]
    for name, value in dict(facts).items():
        click.echo(f"  {name}: {format_fact(value, '.4f')}")


@cli.command()
@click.argument("run")
@click.argument("what", type=click.Choice(["embedding", "neighbors", "graph", "picture"]))
@click.argument("out")
@click.option("--labels", help="Labels that colour the picture: .npy, or the path of a Zarr array.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option(
    "--with-self", is_flag=True, help="Neighbors in the form of umap-learn's precomputed_knn: the row itself first."
)
@with_storage
def export(run: str, what: str, out: str, labels: str | None, with_self: bool, force: bool) -> None:
    """Write a result: embedding (.npy .csv .parquet), neighbors (.npz .zarr), graph (.npz), picture (.png)."""
    click.echo(api.export(run, what, out, labels=labels, with_self=with_self, force=force))


@cli.command()
@click.argument("run")
@click.option("--dry-run", is_flag=True, help="Change nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_storage
def verify(run: str, dry_run: bool, as_json: bool) -> None:
    """Check every committed object; 'dumap run' then makes damaged parts again."""
    from dumap.recipe import damage

    keys = [key for _, _, key in damage.verify(run, log_message, should_repair=not dry_run)]
    if as_json:
        click.echo(to_json({"output": run, "damaged": keys}))
    else:
        for key in keys:
            click.echo(f"damaged: {key}")
        click.echo(f"{len(keys)} damaged objects" if keys else "all objects are as they were written")
    sys.exit(1 if keys else 0)


@cli.command()
@click.argument("run")
@click.option("--dry-run", is_flag=True, help="Remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_storage
def clean(run: str, dry_run: bool, as_json: bool) -> None:
    """Remove the leftovers of tasks that died, failed or committed second, and nothing else."""
    from dumap.recipe import damage

    unnamed, others = damage.clean(run, log_message, dry_run)
    if as_json:
        click.echo(to_json({"output": run, "unnamed": unnamed, "removed": not dry_run, "left": others}))
    else:
        for key in unnamed:
            click.echo(f"{'not named' if dry_run else 'removed'}: {key}")
        for key in others:
            click.echo(f"not dumap's, left: {key}")
        click.echo(f"{len(unnamed)} objects that no manifest names")


def main() -> None:
    """Run the command line."""
    cli.main(prog_name="dumap")

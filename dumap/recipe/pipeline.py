"""The recipe: vectors, cells, neighbors, audit, graph, start, layout, embedding, quality."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dumap.config import INITS, Config, differences, format_bytes
from dumap.engine import Engine, Observer
from dumap.engine.choose import choose, reach
from dumap.errors import DamageError, DumapError, LockError, RunMismatchError, StorageError
from dumap.planning.budget import projected_bytes
from dumap.planning.geometry import geometry
from dumap.planning.plan import PAUSE_FRACTION, Plan, make_plan, process_bytes, without_repairs
from dumap.recipe.locations import check_places, free_disk, probe_output, with_places
from dumap.sources.zarr_array import Input, Precomputed
from dumap.stages import (
    Context,
    Job,
    Task,
    audit,
    cells,
    embedding,
    graph,
    layout,
    neighbors,
    quality,
    start,
    vectors,
)
from dumap.store import IDENTITY, LOCKS, Lock, Naming, Rows, Run, await_end, driver, last_work, manifest_key

if TYPE_CHECKING:
    from distributed import Client

RECIPE = (vectors, cells, neighbors, audit, graph, start, layout, embedding, quality)
STAGES = tuple(stage.STAGE for stage in RECIPE)
DONE = "run"
"""Group of the manifests that commit whole stages."""
NAMING = Naming(STAGES, [DONE])
"""How the keys of a run are named: what else lies in one is somebody else's."""
DATA: dict[str, tuple[str, Callable[[Job], str]]] = {
    "input": ("fingerprint", vectors.fingerprint),
    "precomputed": ("precomputed_fingerprint", vectors.fingerprint_lists),
}
"""What a job reads: the fact of the stage vectors that tells it from other data, and what finds that anew."""
REPAIRS = 3
"""Times that one part's damage is repaired in one call: a disk that goes on losing it is no place for a run."""


class Silent:
    """An observer that says nothing."""

    def started(self, stage: str, projected_bytes: int) -> None:
        """Say nothing."""

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Say nothing."""

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""


class Watched:
    """An observer that also has the run's lock say what its driver is at."""

    def __init__(self, observer: Observer, lock: Lock) -> None:
        self.observer, self.lock = observer, lock
        self.started, self.finished, self.note = observer.started, observer.finished, observer.note

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Tell both."""
        self.lock.at(stage, done, total)
        self.observer.advanced(stage, done, total)


def plan(config: Config) -> Plan:
    """Project a run without starting it.

    Raises
    ------
    InputError
        The input cannot be read or embedded.
    """
    source = Input(config.input.path, config.input.array)
    path = config.neighbors.precomputed
    given = None if path is None else Precomputed(path, source.rows)
    cut = geometry(config, source.rows, source.dims, source.dtype.itemsize, source.chunk_rows, given)
    return make_plan(config, cut, config.cluster.memory_limit or 0)


def run(config: Config, client: Client | None = None, observer: Observer | None = None, force: bool = False) -> dict:
    """Embed a data set, going on where an earlier call stopped.

    Parameters
    ----------
    config : Config
    client : distributed.Client, optional
        A client to use instead of what `config.cluster` names.
    observer : Observer, optional
    force : bool
        Go on with a run that other versions of the libraries began.

    Returns
    -------
    dict
        As `status`.

    Raises
    ------
    DumapError
    """
    observer = observer or Silent()
    config = with_places(config)
    check_places(config, NAMING)
    projected = plan(config)
    job = Job(config, projected.geometry)
    begun = Run(config.output, read_only=True).exists()  # to open it for writing would make its folder
    if begun:
        check_same(job, observer)
        if not lost_identity(job.run) and all(job.run.is_committed(DONE, stage) for stage in STAGES):
            observer.note(f"{config.output}: finished before; nothing to do")
            return status(config.output)
    check_chunks(job, observer.note)
    if config.cluster.memory_limit and client is None:  # workers too small to start would not even say so
        projected.check(config.cluster.memory_limit, None)
    need = math.ceil(projected.peak_bytes / PAUSE_FRACTION)
    record = job.run.attributes if begun and not force else None
    chosen = choose(config.cluster, projected, client)
    with reach(chosen, config.cluster, client, observer, need) as cluster, contextlib.closing(cluster):
        cluster.demand(record, make_plan(config, projected.geometry).peak_bytes)
        cluster.preflight()
        projected = make_plan(config, projected.geometry, cluster.worker_memory)
        room = free_disk(config.output)
        projected.check(cluster.worker_memory, room, cluster.worker_threads, held(job.run, projected))
        probe_output(config.output)
        cluster.check_sight(config.output)
        try:
            with Lock(job.run, observer.note) as lock:
                job.term, job.token = job.run.term, job.run.token
                if not begun and job.run.exists():  # another driver has begun it since
                    check_same(job, observer)
                create(job, cluster)
                check_workers(job.run, cluster, force)
                cluster.bind(job.run, projected.peak_bytes)
                follow(job, projected, cluster, Watched(observer, lock))
        except (DumapError, KeyboardInterrupt) as error:
            error.add_note(f"What is committed in {config.output} is kept; the same command goes on from there.")
            raise
    return status(config.output)


def check_chunks(job: Job, note: Callable[[str], None]) -> None:
    """Refuse chunks that are not there of what is read, or tell of those that the input fills."""
    config, absent = job.config, job.input.absent
    if config.input.missing == "error":
        job.input.require_chunks("input.missing=fill")
    elif absent.chunks:
        note(f"input: {absent}; they are read as the array's fill value (input.missing = fill)")
    if config.neighbors.precomputed is not None:
        job.precomputed.require_chunks()
    if config.start.init not in INITS:
        Rows(config.start.init).require_chunks()


def held(run: Run, projected: Plan) -> int:
    """Return how many of the projected bytes a run has written already."""
    found = 0
    for stage in projected.stages:
        done = run.is_committed(DONE, stage.name)
        found += stage.disk_bytes if done else min(stage.disk_bytes, run.sizes(stage.name))
    return found


def follow(job: Job, projected: Plan, cluster: Engine, observer: Observer) -> None:
    """Run the recipe's stages that are not committed yet; make anew what turns out to be damaged on the way."""
    repaired: dict[tuple[str, str], int] = {}
    while True:
        try:
            for stage in RECIPE:
                if not job.run.is_committed(DONE, stage.STAGE):
                    _complete(stage, job, projected, cluster, observer)
            return
        except DamageError as error:
            part = (error.stage, error.part)
            repaired[part] = repaired.get(part, 0) + 1
            if repaired[part] > REPAIRS:
                raise
            observer.note(f"{error}: it is made again")
            forget(job.run, *part)
            create(job, cluster)
            cluster.bind(job.run, projected.peak_bytes)


def _complete(stage: Any, job: Job, projected: Plan, cluster: Engine, observer: Observer) -> None:
    """Run one stage and commit it."""
    name = stage.STAGE
    projected = as_it_turned_out(job, projected, cluster.worker_memory)
    wanted = process_bytes(projected.stage(name).peak_bytes, cluster.worker_threads)
    observer.started(name, wanted)
    began, cluster.peak_bytes, cluster.held_bytes = time.monotonic(), 0, 0
    compute = _compute(job, cluster, observer)
    context = Context(
        job, projected, compute, cluster.threads, cluster.host_threads, cluster.worker_memory, observer.note
    )
    facts = stage.run(context)
    seconds = time.monotonic() - began
    if stage is audit and not facts["repairs"]:
        projected = unrepaired(job, cluster.worker_memory)
    wanted = projected_bytes(name, projected.stage(name).peak_bytes, cluster.worker_threads, cluster.held_bytes)
    with job.run.part(DONE, name) as out:
        out.attributes |= {
            "engine": cluster.name,
            "seconds": round(seconds, 3),
            "projected_bytes": wanted,
            "peak_bytes": cluster.peak_bytes,
            "facts": facts,
            "parts": job.run.committed(name),
        }
    if stage is vectors:
        describe_input(job.run)
    if stage is layout:
        cluster.let_go()
    observer.finished(name, seconds, wanted, cluster.peak_bytes, facts)


def unrepaired(job: Job, worker_memory: int) -> Plan:
    """Project the run as one whose lists need no repair."""
    return make_plan(without_repairs(job.config), job.geometry, worker_memory)


def as_it_turned_out(job: Job, projected: Plan, worker_memory: int) -> Plan:
    """Return what is projected once the audit has told whether lists are repaired."""
    if not job.run.is_committed(DONE, audit.STAGE) or job.run.summary(DONE, audit.STAGE)["facts"]["repairs"]:
        return projected
    return unrepaired(job, worker_memory)


def _compute(job: Job, cluster: Engine, observer: Observer) -> Any:
    def compute(
        stage: str, task: Task, parts: list[str], progress: tuple[float, float] | None = None, **options: Any
    ) -> None:
        """Run a task for the parts not yet committed; `progress` places this call within a longer step."""
        done: set[str] = set(job.run.committed(stage))
        todo = [part for part in parts if part not in done]

        def advanced(some: float, of: float) -> None:
            if progress is None:
                observer.advanced(
                    stage, len(parts) - len(todo) + some if of == len(todo) else some, max(of, len(parts))
                )
            else:
                observer.advanced(stage, progress[0] + some / of, progress[1])

        if todo:
            cluster.map(task, job, todo, options, advanced)

    return compute


# what a run is of --------------------------------------------------------------------------------


def data_of(config: Config) -> list[str]:
    """Name what a run reads, as a job and the run's attributes do."""
    return ["input"] if config.neighbors.precomputed is None else list(DATA)


def create(job: Job, cluster: Engine) -> None:
    """Create what is not there of the run: what it is of, and its final arrays filled with what says 'not yet'."""
    config, cut = job.config, job.geometry
    job.run.create(
        {
            "kind": "dumap run",
            "parameters": config.parameters(),
            "seed": config.seed,
            "versions": cluster.versions,
            "cpus": cluster.cpus,
            **{what: getattr(job, what).describe() for what in data_of(config)},
        }
    )
    if not job.run.is_committed(IDENTITY, "results"):
        chunk, shape = min(cut.output_rows, cut.rows), (cut.rows, config.layout.n_components)
        with job.run.part(IDENTITY, "results") as out:
            out.create_final("embedding", shape, "float32", chunk, np.nan, ("row", "component"))
            out.create_final("status", shape[:1], "uint8", chunk, 255, ("row",))
    describe_input(job.run)


def describe_input(run: Run) -> None:
    """Add the fingerprints of what is read to the run's attributes, once all of it was read."""
    if run.is_committed(DONE, vectors.STAGE):
        facts = run.summary(DONE, vectors.STAGE)["facts"]
        run.describe({fact: facts[fact] for fact, _ in DATA.values() if fact in facts})


def lost_identity(run: Run) -> list[str]:
    """List the parts of what the run is of that should be there, and are not."""
    begun = any(run.committed(stage) for stage in (DONE, *STAGES))
    needed = {"run": True, "results": begun, "input": run.is_committed(DONE, vectors.STAGE)}
    return [part for part, wanted in needed.items() if wanted and not run.is_committed(IDENTITY, part)]


def check_data(job: Job, what: str, note: Callable[[str], None]) -> None:
    """Refuse other data than a run was begun with; all is read only where its objects look other than they did."""
    run, source, (fact, fingerprint) = job.run, getattr(job, what), DATA[what]
    began, now = run.attributes[what], source.describe()
    if any(began[name] != now[name] for name in ("shape", "dtype")):
        raise RunMismatchError(
            f"{run.location} was begun with {what} of shape {tuple(began['shape'])} and dtype {began['dtype']}; "
            f"{source.path} has {tuple(now['shape'])} and {now['dtype']}: give the same {what}, or another output"
        )
    if began["signature"] != now["signature"]:
        note(f"{source.path}: its objects' sizes or times differ from when the run was begun; reading it anew")
        if run.attributes.get(fact) != fingerprint(job):
            raise RunMismatchError(
                f"{source.path} holds other data than when {run.location} was begun, or was changed before all of it "
                f"was read: name another output"
            )


def check_same(job: Job, observer: Observer) -> None:
    """Refuse to go on with a run of other parameters or other input."""
    run, config = job.run, job.config
    attributes = run.attributes
    changed = differences(attributes["parameters"], config.parameters())
    if changed:
        raise RunMismatchError(
            f"{run.location} was begun with other parameters; nothing was touched. The difference:\n  "
            + "\n  ".join(changed)
            + "\nGive the same parameters, or another output"
        )
    for what in data_of(config):
        check_data(job, what, observer.note)


def check_workers(run: Run, cluster: Engine, force: bool) -> None:
    """Refuse, unless forced, to go on with a run with versions, or on processors, that it was not begun with."""
    attributes = run.attributes
    began, cpus = attributes.get("cpus", []), cluster.cpus
    differs = differences(attributes["versions"], cluster.versions)
    differs += [] if set(cpus) <= set(began) else [f"processors: {', '.join(began)} -> {', '.join(cpus)}"]
    if differs and not force:
        raise RunMismatchError(
            f"{run.location} was begun with other versions or processors:\n  "
            + "\n  ".join(differs)
            + "\nUse the old ones, name another output, or go on with --force"
        )


# what a run has come to --------------------------------------------------------------------------


def status(location: str) -> dict[str, Any]:
    """Tell what of a run is done.

    Returns
    -------
    dict
        'output', 'state', 'driver' (who is at work, see `dumap.store.driver`, or None), 'parameters', 'input',
        'versions' and 'stages': a list of dicts with 'name', 'state' (done, partial or pending), 'parts', 'progress'
        (how many steps of how many are done, as far as it is known), 'seconds', 'projected_bytes', 'peak_bytes' and
        'facts'.
    """
    store = Run(location, read_only=True)
    attributes = store.attributes
    stages, at = [], last_work(store)
    for name in STAGES:
        parts = len(store.committed(name))
        entry: dict[str, Any] = {"name": name, "state": "partial" if parts else "pending", "parts": parts}
        entry |= {"seconds": None, "projected_bytes": None, "peak_bytes": None, "facts": {}}
        entry["progress"] = [at["done"], at["total"]] if at.get("stage") == name else None
        if store.is_committed(DONE, name):
            entry |= {"state": "done", **store.summary(DONE, name), "parts": parts, "progress": [parts, parts]}
        stages.append(entry)
    done = all(stage["state"] == "done" for stage in stages)
    return {
        "output": store.location,
        "state": "done" if done else "partial",
        "driver": driver(store),
        "parameters": attributes["parameters"],
        "input": attributes["input"],
        "fingerprint": attributes.get("fingerprint"),
        "versions": attributes["versions"],
        "stages": stages,
    }


def forget(run: Run, stage: str, part: str) -> None:
    """Forget a part, and that its stage is done."""
    run.forget(stage, part)
    if stage in STAGES:
        run.forget(DONE, stage)


def verify(location: str, note: Callable[[str], None] | None = None, mend: bool = False) -> list[tuple[str, str, str]]:
    """Read every committed object against its checksum.

    Parameters
    ----------
    location : str
    note : callable, optional
        Told what a person may want to know.
    mend : bool
        Hold the run's lock meanwhile, and uncommit what is damaged, so that the next run makes exactly that again.
        What cannot be written to is only read.

    Returns
    -------
    list of tuple of str
        Stage, part and key of each damaged object; stage and part are empty for what belongs to the whole run.

    Raises
    ------
    LockError
        A driver is at work: what it replaces would look like damage.
    """
    note = note or Silent().note
    store = Run(location, read_only=True)
    if not store.exists():
        raise StorageError(f"{store.location} holds no run")
    with contextlib.suppress(DamageError):  # which is found below
        store.attributes  # noqa: B018  refuses what is not a run
    if mend:
        return _mend(Run(location), note)
    terms = store.terms()
    if terms:
        await_end(store, terms[-1], note, "looking at what it left")
    found = _damage(store)
    if found and store.terms() != terms:
        raise LockError(f"{store.location}: a driver began to work on it meanwhile; verify again once it is done")
    return found


def _mend(store: Run, note: Callable[[str], None]) -> list[tuple[str, str, str]]:
    """Uncommit what is damaged; where the run cannot be locked, since nothing can be written, only list it."""
    store.refuse_links(NAMING)
    with contextlib.ExitStack() as lock:
        try:
            lock.enter_context(Lock(store, note))
        except StorageError as error:
            note(f"{error}; it is read without its lock, and stays as it is")
            return _damage(Run(store.location, read_only=True))
        found = _damage(store)
        if found:
            _uncommit(store, found)
            note(f"the next 'dumap run' into {store.location} makes exactly that again")
        return found


def _damage(store: Run) -> list[tuple[str, str, str]]:
    """List what is damaged of a run, as `verify` does."""
    found = list(store.damaged(NAMING.groups))
    broken = {part for stage, part, _ in found if stage == DONE}
    for stage in STAGES:
        if stage not in broken and store.is_committed(DONE, stage):
            gone = set(store.summary(DONE, stage)["parts"]) - set(store.committed(stage))
            found += [(stage, part, manifest_key(stage, part)) for part in sorted(gone)]
    return found + [(IDENTITY, part, manifest_key(IDENTITY, part)) for part in lost_identity(store)]


def drop(location: str, damaged: list[tuple[str, str, str]], note: Callable[[str], None]) -> None:
    """Uncommit what is damaged, so that the next run makes exactly that again.

    Parameters
    ----------
    location : str
    damaged : list of tuple of str
        As `verify` returns it.
    note : callable
        Told what a person may want to know.

    Raises
    ------
    LockError
        A driver is at work.
    """
    store = Run(location)
    store.refuse_links(NAMING)
    with Lock(store, note):
        _uncommit(store, damaged)


def _uncommit(store: Run, damaged: list[tuple[str, str, str]]) -> None:
    for stage, part in dict.fromkeys((stage, part) for stage, part, _ in damaged if stage):
        forget(store, stage, part)
    for _, _, key in damaged:
        if key.startswith(f"{LOCKS}/"):
            store.delete(key)
    store.create(store.attributes)


def clean(location: str, note: Callable[[str], None], look_only: bool = False) -> tuple[list[str], list[str]]:
    """Remove what dumap left that no manifest names: of tasks that died, failed or came second.

    Parameters
    ----------
    location : str
    note : callable
        Told what a person may want to know.
    look_only : bool
        Remove nothing.

    Returns
    -------
    tuple of list of str
        The keys of those objects, and of those that are not dumap's, which are left as they are.

    Raises
    ------
    LockError
        A driver is at work: its tasks' objects are not named yet.
    """
    store = Run(location, read_only=True)
    store.attributes  # noqa: B018  refuses what is not a run
    if look_only:
        return store.unnamed(NAMING)
    store = Run(location)
    store.refuse_links(NAMING)
    with Lock(store, note):
        found, others = store.unnamed(NAMING)
        store.delete_all(found)
        store.prune(NAMING, found)
    return found, others


def describe(projected: Plan) -> str:
    """Write a plan for people."""
    cut = projected.geometry
    given = f" given with {cut.columns} neighbors each" if cut.columns else ""
    lines = [
        f"{cut.rows} rows x {cut.dims} dims: {cut.blocks} blocks of {cut.block_rows} rows, {cut.cells} cells of up to "
        f"{cut.cell_rows} rows{given}, {cut.shards} shards of {cut.shard_rows} rows, {cut.n_epochs} epochs",
        f"{'stage':<10} {'tasks':>7} {'shuffled':>10} {'disk':>10} {'peak a worker':>14}",
    ]
    for stage in projected.stages:
        lines.append(
            f"{stage.name:<10} {stage.tasks:>7} {format_bytes(stage.shuffled_bytes):>10} "
            f"{format_bytes(stage.disk_bytes):>10} {format_bytes(stage.peak_bytes):>14}"
        )
    lines.append(
        f"disk {format_bytes(projected.disk_bytes)}; workers of "
        f"{format_bytes(projected.peak_bytes / PAUSE_FRACTION)} or more are needed"
    )
    return "\n".join(lines)


__all__ = ["STAGES", "clean", "describe", "drop", "plan", "run", "status", "verify"]

"""What of a run is done."""

from __future__ import annotations

from typing import Any

from dumap.recipe.relatives import children_of, parent_of
from dumap.recipe.stage_names import ALL_STAGES, DONE, STAGES
from dumap.sources.spooled import is_spooled
from dumap.store import Run, driver, internal, last_work, work_of
from dumap.store.disk import normalize


def status(location: str) -> dict[str, Any]:
    """Return which stages of a run are done, and their facts.

    Returns
    -------
    dict
        'output', 'work' (where all but the results lies; None where that is in the output), 'state', 'parent' and
        'children' (where the run lies whose stages this one reads, and those known to read this one's), 'driver' (who
        is at work, see `dumap.store.driver`, or None), 'parameters', 'input', 'versions' and 'stages': a list of dicts
        with 'name', 'state' (done, partial or pending), 'parts', 'progress' (how many steps of how many are done, as
        far as it is known), 'seconds', 'projected_bytes', 'peak_bytes', 'facts', 'digest' (see `dumap.recipe.digests`),
        'from' (the other run that holds it, or None) and, once done, 'versions' and 'cpus' that made it.
    """
    work = work_of(location)
    store = Run(internal(location), read_only=True)
    attributes = store.attributes
    stages, at = [], last_work(store)
    for name in ALL_STAGES if is_spooled(str(attributes["input"].get("path"))) else STAGES:
        parts = len(store.committed(name))
        entry: dict[str, Any] = {"name": name, "state": "partial" if parts else "pending", "parts": parts}
        entry |= {"seconds": None, "projected_bytes": None, "peak_bytes": None, "facts": {}}
        entry |= {"digest": None, "from": store.origin(name)}
        entry["progress"] = [at["done"], at["total"]] if at.get("stage") == name else None
        if store.is_committed(DONE, name):
            entry |= {"state": "done", **store.summary(DONE, name), "parts": parts, "progress": [parts, parts]}
        stages.append(entry)
    done = all(stage["state"] == "done" for stage in stages)
    return {
        "output": normalize(location),
        "work": work,
        "state": "done" if done else "partial",
        "driver": driver(store),
        "parent": parent_of(store),
        "children": children_of(store),
        "parameters": attributes["parameters"],
        "input": attributes["input"],
        "fingerprint": attributes.get("fingerprint"),
        "versions": attributes["versions"],
        "stages": stages,
    }

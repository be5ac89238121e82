"""The status of a run: its stages and its driver."""

from __future__ import annotations

from typing import Any

from dumap.recipe.family import children_of, parent_of
from dumap.recipe.stage_names import ALL_STAGES, DONE, STAGES
from dumap.sources.spooled import is_spooled
from dumap.store import Run, driver_status, internal_location, last_progress, work_location
from dumap.store.disk import normalize


def status(location: str) -> dict[str, Any]:
    """Return which stages of a run are done, and their facts.

    Returns
    -------
    dict
        'output'; 'work', the work place or None; 'state', 'done' or 'partial'; 'driver', see
        `dumap.store.driver_status`; 'parent', the location of the parent or None; 'children', the locations of the
        known runs that read stages of this one; 'parameters', 'input', 'fingerprint' and 'versions'; and 'stages', a
        list of dicts.
        A stage has 'name', 'state' ('done', 'partial' or 'pending'), 'parts' (their number), 'progress' (steps done and
        steps in all, or None), 'seconds', 'projected_bytes', 'peak_bytes', 'facts', 'digest' (see
        `dumap.recipe.digests`) and 'from' (the location of the run that holds its parts, None for this run). A finished
        stage also has 'versions' and 'cpus', which made it.
    """
    work = work_location(location)
    store = Run(internal_location(location), read_only=True)
    attributes = store.attributes
    stages, progress = [], last_progress(store)
    for name in ALL_STAGES if is_spooled(str(attributes["input"].get("path"))) else STAGES:
        parts = len(store.committed_parts(name))
        entry: dict[str, Any] = {"name": name, "state": "partial" if parts else "pending", "parts": parts}
        entry |= {"seconds": None, "projected_bytes": None, "peak_bytes": None, "facts": {}}
        entry |= {"digest": None, "from": store.inherited_location(name)}
        entry["progress"] = [progress["done"], progress["total"]] if progress.get("stage") == name else None
        if store.is_committed(DONE, name):
            entry |= {"state": "done", **store.part_facts(DONE, name), "parts": parts, "progress": [parts, parts]}
        stages.append(entry)
    done = all(stage["state"] == "done" for stage in stages)
    return {
        "output": normalize(location),
        "work": work,
        "state": "done" if done else "partial",
        "driver": driver_status(store),
        "parent": parent_of(store),
        "children": children_of(store),
        "parameters": attributes["parameters"],
        "input": attributes["input"],
        "fingerprint": attributes.get("fingerprint"),
        "versions": attributes["versions"],
        "stages": stages,
    }

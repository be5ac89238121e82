"""A run as a flow of Prefect 3, on the Dask cluster of its task runner. It needs prefect and prefect-dask.

A finished run is not changed, and a stopped run continues. A failed run is tried again only if that may help.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect_dask import DaskTaskRunner, get_dask_client

import dumap

FINAL = {2, 3, 4, 7}
"""Exit codes of errors that a new try would raise again: configuration, input, memory or disk, other parameters."""


def is_worth_a_try(task: Any, run: Any, state: Any) -> bool:
    """Return whether a new try of a failed task may succeed."""
    try:
        state.result()
    except dumap.DumapError as error:
        return error.exit_code not in FINAL
    except Exception:
        return False
    return False


@task(retries=5, retry_delay_seconds=300, retry_condition_fn=is_worth_a_try, persist_result=False)
def embed(config: str) -> dict[str, Any]:
    """Embed the data that a configuration names; return the quality and the location of the run."""
    with get_dask_client() as client:
        status = dumap.run(config=config, client=client)
    facts = {stage["name"]: stage["facts"] for stage in status["stages"]}
    return {"output": status["output"], "state": status["state"], **facts["audit"], **facts["quality"]}


@flow(name="dumap", task_runner=DaskTaskRunner(address="tcp://scheduler:8786"))
def embed_nightly(config: str = "run.yaml") -> dict[str, Any]:
    """Embed a data set."""
    result: dict[str, Any] = embed.submit(config).result()
    return result


if __name__ == "__main__":
    embed_nightly.serve(name="nightly", cron="15 2 * * *")

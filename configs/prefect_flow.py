"""A run as a flow of Prefect 3, on the Dask cluster of its task runner: needs prefect and prefect-dask.

What is finished is left as it is, what was stopped goes on. A failure is tried again only where that may help.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect_dask import DaskTaskRunner, get_dask_client

import dumap

FINAL = {2, 3, 4, 7}
"""Exit codes of errors that another try would meet again: configuration, input, memory or disk, other parameters."""


def is_worth_a_try(task: Any, run: Any, state: Any) -> bool:
    """Tell whether a task that failed may do better another time."""
    try:
        state.result()
    except dumap.DumapError as error:
        return error.exit_code not in FINAL
    except Exception:
        return False
    return False


@task(retries=5, retry_delay_seconds=300, retry_condition_fn=is_worth_a_try, persist_result=False)
def embed(config: str) -> dict[str, Any]:
    """Embed what a configuration names; return quality and place of the run."""
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

"""A run as a DAG of Airflow 3.1 or newer; DASK_SCHEDULER_ADDRESS or the configuration names a Dask scheduler.

If the run was finished before, the tasks after it are skipped. A stopped run continues. A failed run is tried again
only if that may help.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

import dumap

CONFIG = "/etc/dumap/run.yaml"
FINAL = {2, 3, 4, 7}
"""Exit codes of errors that a new try would raise again: configuration, input, memory or disk, other parameters."""


@dag(schedule="15 2 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def dumap_nightly() -> None:
    """Embed a data set every night."""

    @task(retries=5, retry_delay=timedelta(minutes=5))
    def embed() -> dict[str, Any]:
        made: set[str] = set()
        try:
            status = dumap.run(config=CONFIG, on_progress=lambda stage, done, total: made.add(stage))
        except dumap.DumapError as error:
            if error.exit_code in FINAL:
                raise AirflowFailException(str(error)) from error
            raise
        if not made:
            raise AirflowSkipException(f"{status['output']} was finished before")
        facts = {stage["name"]: stage["facts"] for stage in status["stages"]}
        return {"output": status["output"], **facts["audit"], **facts["quality"]}

    embed()


dumap_nightly()

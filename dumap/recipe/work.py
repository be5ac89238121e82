"""Runs whose internal folder lies in a work place: their results are copied to the output, which names the place."""

from __future__ import annotations

from collections.abc import Callable

from dumap.config import Config, format_bytes
from dumap.errors import RunMismatchError
from dumap.recipe.locations import check_locations, check_no_overlap, is_same_location, source_locations
from dumap.recipe.stage_names import RUN_KEYS
from dumap.store import Run, find_damaged_copies, internal_location, publish, work_location
from dumap.store.objects import Objects


def find_work_place(config: Config) -> str | None:
    """Return the work place of a run that begins or continues; None if its internal folder lies in the output.

    Raises
    ------
    RunMismatchError
        The run was begun in another place.
    StorageError
        The work place or the output cannot be used, or the work place of a begun run is gone.
    """
    output, configured = config.output, config.work
    recorded = work_location(output)
    if recorded is None and configured is None:
        return None
    if recorded is None:
        check_locations(config.model_copy(update={"work": None}), RUN_KEYS)
        if Run(output, read_only=True).exists():
            raise RunMismatchError(
                f"{output} was begun with its internal folder inside, not in {configured}: leave work out, or name "
                f"another output"
            )
    elif configured is not None and not is_same_location(recorded, configured):
        raise RunMismatchError(
            f"{output} keeps its internal folder in {recorded}, not in {configured}: leave work out, or name another "
            f"output"
        )
    work_place = configured if recorded is None else internal_location(output)
    assert work_place is not None
    check_no_overlap(output, work_place, "work place")
    for source in source_locations(config):
        check_no_overlap(output, source)
    return work_place


def with_work_place_output(config: Config, work_place: str | None) -> Config:
    """Return the configuration with the work place, if any, as its output."""
    return config if work_place is None else config.model_copy(update={"output": work_place, "work": None})


def publish_results(work_place: str, output: str, log: Callable[[str], None]) -> None:
    """Copy a finished run's results to its output; call `log` if anything was copied."""
    if copied_bytes := publish(work_place, output, RUN_KEYS):
        log(f"{output}: {format_bytes(copied_bytes)} of results were written; all else is in {work_place}")


def drop_damaged_copies(work_place: str, output: str, should_remove: bool) -> list[tuple[str, str, str]]:
    """List the results in an output that differ from those of the run; with `should_remove`, remove them.

    The next run copies them again.
    """
    damaged = list(find_damaged_copies(work_place, output))
    if should_remove:
        Objects(output).delete_keys([key for key in damaged if not key.endswith("zarr.json")])
    return [("", "", f"{output}/{key}") for key in damaged]

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
    known = work_location(output)
    if known is None and configured is None:
        return None
    if known is None:
        check_locations(config.model_copy(update={"work": None}), RUN_KEYS)
        if Run(output, read_only=True).exists():
            raise RunMismatchError(
                f"{output} was begun with its internal folder inside, not in {configured}: leave work out, or name "
                f"another output"
            )
    elif configured is not None and not is_same_location(known, configured):
        raise RunMismatchError(
            f"{output} keeps its internal folder in {known}, not in {configured}: leave work out, or name another "
            f"output"
        )
    work = configured if known is None else internal_location(output)
    assert work is not None
    check_no_overlap(output, work, "work place")
    for source in source_locations(config):
        check_no_overlap(output, source)
    return work


def with_work_place_output(config: Config, work: str | None) -> Config:
    """Return the configuration with the work place, if any, as its output."""
    return config if work is None else config.model_copy(update={"output": work, "work": None})


def publish_results(work: str, output: str, note: Callable[[str], None]) -> None:
    """Copy a finished run's results to its output; call `note` if anything was copied."""
    if copied := publish(work, output, RUN_KEYS):
        note(f"{output}: {format_bytes(copied)} of results were written; all else is in {work}")


def drop_damaged_copies(work: str, output: str, mend: bool) -> list[tuple[str, str, str]]:
    """List the results in an output that differ from those of the run; with `mend`, remove them.

    The next run copies them again.
    """
    damaged = list(find_damaged_copies(work, output))
    if mend:
        Objects(output).delete_keys([key for key in damaged if not key.endswith("zarr.json")])
    return [("", "", f"{output}/{key}") for key in damaged]

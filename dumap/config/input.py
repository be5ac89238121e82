"""The section of the configuration that says what is embedded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from dumap.config.setting import Location, Section, setting
from dumap.config.values import location


def _paths(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return location(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(path, str) for path in value):
        raise ValueError("write a path, a URL, a pattern of either such as DATA-*.zarr, or a list of them")
    return tuple(map(location, value)) if len(value) > 1 else location(value[0])


class InputConfig(Section):
    """What to embed."""

    path: Annotated[Any, AfterValidator(_paths)] = setting(
        ...,
        "The Zarr array to embed, or the group that holds it: a folder, a zip file or a URL (s3://, gs://, az://). A "
        "list of stores, or a pattern such as DATA-*.zarr (by name), is read as one: their rows one after another.",
        changes="by what the array holds, not by where it lies",
        example="DATA.zarr",
    )
    array: Location = setting(
        "vectors",
        "The array's name in the group, such as obsm/X_pca. Ignored where path is an array.",
        changes="by what the array holds",
    )
    dtype: Literal["bfloat16"] | None = setting(
        None,
        "bfloat16: the array's 16 bits that have no meaning of their own (V2 of Zarr v2, or uint16) are such values. "
        "null: values are what the store says that they are.",
        changes="by what the array holds",
    )
    missing: Literal["error", "fill"] = setting(
        "error",
        "Chunks of the array that are not there, being lost, or never written since they hold the fill value alone: "
        "error refuses them, fill reads them as the fill value.",
        changes=False,
    )
    nonfinite: Literal["error", "drop"] = setting(
        "error",
        "Rows with NaN or infinite values: error refuses them, drop leaves them out, with NaN as their coordinates and "
        "status 1.",
        changes=False,
    )
    unique: bool = setting(
        False,
        "true embeds rows that are equal to the bit once, and weighs them by their number; all of them get the same "
        "coordinates. Less work where many rows are equal. Does not go with neighbors.precomputed.",
        changes=True,
        umap="unique",
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths, URLs and patterns, one or more."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def where(self) -> str:
        """Where the input lies, for messages."""
        paths = self.paths
        return paths[0] if len(paths) == 1 else f"{len(paths)} stores, {paths[0]} to {paths[-1]}"

"""The section `input` of the configuration: the data to embed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from dumap.config.setting import Location, Section, setting
from dumap.config.values import check_location


def _validate_paths(value: Any) -> str | tuple[str, ...]:
    """Validate one path or several."""
    if isinstance(value, str):
        return check_location(value)
    if not isinstance(value, list | tuple) or not value or not all(isinstance(path, str) for path in value):
        raise ValueError("write a path, a URL, a pattern of either such as DATA-*.zarr, or a list of them")
    return tuple(map(check_location, value)) if len(value) > 1 else check_location(value[0])


class InputConfig(Section):
    """The data to embed."""

    path: Annotated[Any, AfterValidator(_validate_paths)] = setting(
        ...,
        "The Zarr array to embed, or the group that holds it: a folder, a zip file or a URL (s3://, gs://, az://). A "
        "list of stores, or a pattern such as DATA-*.zarr (sorted by name), is read as one array: the rows of each "
        "store follow those of the store before it.",
        changes="by the values of the array, not by its location",
        example="DATA.zarr",
    )
    array: Location = setting(
        "vectors",
        "The array's name in the group, such as obsm/X_pca, or the name of a group that holds a sparse matrix by rows "
        "(CSR), such as X of an AnnData store. Ignored if path is an array.",
        changes="by the values of the array",
    )
    dtype: Literal["bfloat16"] | None = setting(
        None,
        "bfloat16: read the array's 16-bit values (dtype V2 of Zarr v2, or uint16) as bfloat16. null: read the values "
        "as the dtype of the array.",
        changes="by the values of the array",
    )
    missing: Literal["error", "fill"] = setting(
        "error",
        "Missing chunks of the array, which were lost, or never written because they hold only the fill value: error "
        "refuses them, fill reads them as the fill value.",
        changes=False,
    )
    nonfinite: Literal["error", "drop"] = setting(
        "error",
        "Rows with NaN or infinite values: error refuses them, drop does not embed them; their coordinates are NaN and "
        "their status is 1.",
        changes=False,
    )
    unique: bool = setting(
        False,
        "true embeds rows that are equal to the bit once, weighted by their number; all of them get the same "
        "coordinates. Less work if many rows are equal. Refused together with neighbors.precomputed.",
        changes=True,
        umap="unique",
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths, URLs and patterns, one or more."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def name(self) -> str:
        """The input as messages name it: its location, or how many stores there are."""
        paths = self.paths
        return paths[0] if len(paths) == 1 else f"{len(paths)} stores, {paths[0]} to {paths[-1]}"

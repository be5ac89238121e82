"""The base class of sections, and the function that declares a setting."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dumap.config.values import check_location, parse_bytes

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, lt=2**63)]
Location = Annotated[str, AfterValidator(check_location)]


class Section(BaseModel):
    """A section of the configuration: frozen, and refusing unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def setting(
    default: Any, description: str, *, changes: bool | str, umap: str | None = None, example: str = "", **bounds: Any
) -> Any:
    """Declare a setting.

    Parameters
    ----------
    default
        The default; `...` if the setting must be given.
    description : str
        What the setting does; how a larger value changes the map, or memory and time; when it is ignored.
    changes : bool or str
        Whether the embedding's bytes depend on the setting. A text says when they do, and continues 'Changes the
        embedding only'.
    umap : str, optional
        The setting's name in umap-learn.
    example : str, optional
        A value to show if there is no default.
    **bounds
        Bounds of the value, see `pydantic.Field`.
    """
    if isinstance(changes, str):
        effect = f"Changes the embedding only {changes}."
    else:
        effect = "Changes the embedding." if changes else "Does not change the embedding."
    name = f"In umap-learn: {umap}. " if umap else ""
    return Field(
        default,
        description=f"{description}\n{name}{effect}",
        examples=[example] if example else None,
        json_schema_extra={"umap_learn": umap, "changes_embedding": changes},
        **bounds,
    )

"""What sections are made of, and what a setting is declared with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dumap.config.values import location, parse_bytes

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, lt=2**63)]
Location = Annotated[str, AfterValidator(location)]


class Section(BaseModel):
    """A frozen part of the configuration that takes no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def setting(
    default: Any, description: str, *, changes: bool | str, umap: str | None = None, example: str = "", **bounds: Any
) -> Any:
    """Declare a setting.

    Parameters
    ----------
    default
        `...` where it must be given.
    description : str
        What it does; which way a larger value moves the map, or memory and time; when it is ignored.
    changes : bool or str
        Whether the embedding's bytes depend on it; or when they do, to be read after 'Changes the embedding only'.
    umap : str, optional
        Its name in umap-learn.
    example : str, optional
        A value to show where there is no default.
    **bounds
        As `pydantic.Field` takes them.
    """
    if isinstance(changes, str):
        part = f"Changes the embedding only {changes}."
    else:
        part = "Changes the embedding." if changes else "Does not change the embedding."
    name = f"In umap-learn: {umap}. " if umap else ""
    return Field(
        default,
        description=f"{description}\n{name}{part}",
        examples=[example] if example else None,
        json_schema_extra={"umap_learn": umap, "changes_embedding": changes},
        **bounds,
    )

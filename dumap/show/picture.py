"""Draw a map. Rows are counted in each pixel, so that a million rows are as legible as a thousand."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dumap.errors import InputError, missing_packages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CANVAS_PIXELS = 900
MIN_ROWS_WITHOUT_SPREAD = 200_000
"""With fewer rows, a row is drawn wider than a pixel."""
MAX_COLOURS = 20
"""Colours of categories. If there are more categories, some share a colour, and the legend is left out."""
MAX_NUMBER_CATEGORIES = 100
"""Up to this many different whole numbers are categories. More of them, and other numbers, are values on a colour
scale."""
CLIP_PERCENTILES = (1, 99)
"""Percentiles of the values at which the colour scale ends, so that a few far values do not use up the scale."""
UNLABELLED_COLOUR = "#d9d9d9"
"""Colour of rows that have no label."""


class Categories(NamedTuple):
    """The category of each row, and the categories' names. -1 is no category."""

    codes: np.ndarray
    names: list[str]


class ScaledValues(NamedTuple):
    """The value of each row, the ends of the colour scale, and the dtype of dates. NaN is no value."""

    numbers: np.ndarray
    low: float
    high: float
    date_dtype: str | None = None


def _clip_values(numbers: np.ndarray, date_dtype: str | None = None) -> ScaledValues:
    """Clip values to the range in which most of them lie."""
    finite = numbers[np.isfinite(numbers)]
    low, high = np.percentile(finite, CLIP_PERCENTILES).tolist() if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return ScaledValues(np.clip(numbers, low, high), low, high, date_dtype)


def read_labels(labels: np.ndarray) -> Categories | ScaledValues:
    """Return labels as categories or as values.

    Raises
    ------
    InputError
        The labels are neither.
    """
    import pandas

    kind = labels.dtype.kind
    if kind in "Mm":
        unit = np.datetime_data(labels.dtype)[0]
        numbers = np.where(np.isnat(labels), np.nan, labels.astype(np.int64).astype(float))
        return _clip_values(numbers, f"{kind}8[{unit}]")
    if kind not in "biufOUST":
        raise InputError(f"labels of dtype {labels.dtype} colour nothing: give numbers, dates or names")
    labels = labels.astype({"f": np.float64, "T": object}.get(kind, labels.dtype))
    try:
        codes, unique_labels = pandas.factorize(labels, sort=kind not in "OT")
    except TypeError as error:
        raise InputError(f"labels of dtype {labels.dtype} cannot be told apart ({error})") from error
    max_categories = {"f": MAX_COLOURS, "i": MAX_NUMBER_CATEGORIES, "u": MAX_NUMBER_CATEGORIES}
    if len(unique_labels) > max_categories.get(kind, len(unique_labels)):
        return _clip_values(labels.astype(np.float64))
    names = [name.decode(errors="replace") if isinstance(name, bytes) else f"{name}" for name in list(unique_labels)]
    if kind in "OT":
        order = np.argsort(np.array(names, dtype=str), kind="stable")
        codes, names = np.append(np.argsort(order), -1)[codes], [names[number] for number in order]
    return Categories(codes, names)


def _draw_categories(frame: Any, canvas: Any, categories: Categories) -> tuple[Any, list]:
    """Colour rows by their categories; return the image and the legend's entries."""
    import datashader
    import matplotlib
    import pandas
    from datashader import transfer_functions
    from matplotlib.lines import Line2D

    count = min(len(categories.names), MAX_COLOURS)
    colormap = matplotlib.colormaps["tab20" if len(categories.names) > 10 else "tab10"]
    colours = [matplotlib.colors.to_hex(colormap(number)) for number in range(count)]
    codes = np.where(categories.codes < 0, -1, categories.codes % MAX_COLOURS)
    frame = frame.assign(label=pandas.Categorical.from_codes(codes, list(range(count))))
    counts = canvas.points(frame[codes >= 0], "x", "y", datashader.count_cat("label"))
    image = transfer_functions.shade(counts, color_key=colours, how="eq_hist", min_alpha=120)
    legend = zip(colours, categories.names, strict=True) if len(categories.names) <= MAX_COLOURS else ()
    return image, [Line2D([], [], marker="o", ls="", color=colour, label=name) for colour, name in legend]


def _draw_values(frame: Any, canvas: Any, values: ScaledValues) -> Any:
    """Colour each pixel by the mean of its rows' values."""
    import datashader
    import matplotlib
    from datashader import transfer_functions

    frame = frame.assign(label=values.numbers)[np.isfinite(values.numbers)]
    means = canvas.points(frame, "x", "y", datashader.mean("label"))
    value_range = (values.low, values.high if values.high > values.low else values.low + 1)
    return transfer_functions.shade(means, cmap=matplotlib.colormaps["viridis"], how="linear", span=value_range)


def _add_colour_bar(figure: Any, axes: Any, values: ScaledValues) -> None:
    """Draw the colour scale."""
    import matplotlib

    scale = matplotlib.colors.Normalize(values.low, values.high if values.high > values.low else values.low + 1)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(scale, "viridis"), ax=axes, shrink=0.5)
    bar.outline.set_visible(False)
    if values.date_dtype:
        bar.formatter = matplotlib.ticker.FuncFormatter(
            lambda value, _: str(np.array(int(value)).astype(values.date_dtype))
        )
        bar.update_ticks()


def _axis_range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


@cache
def _map_figure_class() -> type[Figure]:
    from matplotlib.figure import Figure

    class MapFigure(Figure):
        """A figure that notebooks show even if pyplot is not set up."""

        def _repr_png_(self) -> bytes:
            return to_png(self)

    return MapFigure


def draw_map(coordinates: np.ndarray, labels: np.ndarray | None = None) -> Figure:
    """Draw an embedding.

    Parameters
    ----------
    coordinates : ndarray of float32, shape (rows, 2)
        Rows that are not finite are left out.
    labels : ndarray, shape (rows,), optional
        Categories, each with a colour, or values on a colour scale. Rows whose label is NaN, NaT or None are grey.

    Returns
    -------
    matplotlib.figure.Figure
        A figure without a window. `savefig` writes it, and notebooks show it.

    Raises
    ------
    InputError
        There is not one label for each row, or the labels have another dtype.
    """
    try:
        import datashader
        import pandas
        from datashader import transfer_functions

        figure_class = _map_figure_class()
    except ImportError as error:
        raise missing_packages("a picture", "matplotlib", "datashader", "pandas") from error
    if labels is not None and labels.shape != (len(coordinates),):
        raise InputError(f"labels of shape {labels.shape} for {len(coordinates)} rows: give one a row")
    is_finite = np.isfinite(coordinates).all(axis=1)
    if not is_finite.any():
        raise InputError("none of the rows has coordinates to be drawn at")
    frame = pandas.DataFrame({"x": coordinates[is_finite, 0], "y": coordinates[is_finite, 1]})
    canvas = datashader.Canvas(
        CANVAS_PIXELS, CANVAS_PIXELS, x_range=_axis_range(frame["x"].values), y_range=_axis_range(frame["y"].values)
    )
    row_labels = None if labels is None else read_labels(labels[is_finite])
    legend_handles: list = []
    if row_labels is None:
        image = transfer_functions.shade(canvas.points(frame, "x", "y"), cmap=["#9ecae1", "#08306b"], how="eq_hist")
    else:
        has_label = row_labels.codes >= 0 if isinstance(row_labels, Categories) else np.isfinite(row_labels.numbers)
        layers = []
        if not has_label.all():
            layers.append(
                transfer_functions.shade(
                    canvas.points(frame[~has_label], "x", "y"), cmap=[UNLABELLED_COLOUR, UNLABELLED_COLOUR]
                )
            )
        if has_label.any() and isinstance(row_labels, Categories):
            image, legend_handles = _draw_categories(frame, canvas, row_labels)
            layers.append(image)
        elif has_label.any() and isinstance(row_labels, ScaledValues):
            layers.append(_draw_values(frame, canvas, row_labels))
        image = transfer_functions.stack(*layers) if len(layers) > 1 else layers[0]
    if len(frame) < MIN_ROWS_WITHOUT_SPREAD:
        image = transfer_functions.spread(image, px=1)
    figure = figure_class(figsize=(8, 7), dpi=120)
    axes = figure.subplots()
    axes.imshow(np.asarray(image.to_pil()), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{int(is_finite.sum()):,} rows", loc="left", fontsize=10)
    if legend_handles:
        axes.legend(handles=legend_handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    if isinstance(row_labels, ScaledValues):
        _add_colour_bar(figure, axes, row_labels)
    return figure


def to_png(figure: Figure) -> bytes:
    """Write a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()

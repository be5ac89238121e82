"""Draw a map: points counted per pixel, so that a million rows are as legible as a thousand."""

from __future__ import annotations

import numpy as np

from dumap.errors import ConfigError, InputError

PIXELS = 900
SPARSE_ROWS = 200_000
"""Below this, a row is drawn wider than a pixel."""
NAMED_LABELS = 20
"""Up to as many labels are named in a legend."""


def draw(y: np.ndarray, labels: np.ndarray | None, out: str) -> None:
    """Draw an embedding to a PNG file.

    Parameters
    ----------
    y : ndarray of float32, shape (rows, 2)
        Rows that are not finite are left out.
    labels : ndarray, shape (rows,), optional
        A colour each.
    out : str
    """
    try:
        import datashader
        import matplotlib
        import pandas
        from datashader import transfer_functions
    except ImportError as error:
        raise ConfigError("pictures need the extra 'plot': pip install 'dumap[plot]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    if labels is not None and len(labels) != len(y):
        raise InputError(f"{len(labels)} labels for {len(y)} rows")
    finite = np.isfinite(y).all(axis=1)
    frame = pandas.DataFrame({"x": y[finite, 0], "y": y[finite, 1]})
    canvas = datashader.Canvas(PIXELS, PIXELS)
    handles = []
    if labels is None:
        image = transfer_functions.shade(canvas.points(frame, "x", "y"), cmap=["#9ecae1", "#08306b"], how="eq_hist")
    else:
        frame["label"] = pandas.Categorical(labels[finite])
        names = list(frame["label"].cat.categories)
        colours = [
            matplotlib.colors.to_hex(pyplot.get_cmap("tab20" if len(names) > 10 else "tab10")(i % 20))
            for i in range(len(names))
        ]
        counts = canvas.points(frame, "x", "y", datashader.count_cat("label"))
        image = transfer_functions.shade(counts, color_key=colours, how="eq_hist", min_alpha=120)
        if len(names) <= NAMED_LABELS:
            handles = [
                Line2D([], [], marker="o", ls="", color=c, label=str(n)) for c, n in zip(colours, names, strict=True)
            ]
    if len(frame) < SPARSE_ROWS:
        image = transfer_functions.spread(image, px=1)
    figure, axes = pyplot.subplots(figsize=(8, 7), dpi=120)
    axes.imshow(np.asarray(image.to_pil()), interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"{int(finite.sum()):,} rows", loc="left", fontsize=10)
    if handles:
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(out, bbox_inches="tight")
    pyplot.close(figure)

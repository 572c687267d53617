"""Figures of an evaluation, from plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image

from scoft import sheets


COLUMNS = 3  # panels side by side


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float, float, float]]]], *, title: str
) -> Image.Image:
    """Small multiples: a panel a metric, a line a run of (updates, value, low, high), intervals as bands.

    panels: heading -> run -> its points, in order (figures 7 and 9 of the paper). The runs share their colours.
    """
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(run for lines in panels.values() for run in lines))
    rows = math.ceil(len(panels) / COLUMNS)
    with sheets.style(title, *panels, *runs):
        figure = Figure(figsize=(3.4 * COLUMNS, 0.8 + 2.3 * rows), dpi=100, layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True).flat
        for axes, (heading, lines) in zip(grid, panels.items(), strict=False):
            for run, points in lines.items():
                steps, middle, low, high = zip(*points, strict=True)
                color = f"C{runs.index(run)}"
                axes.plot(steps, middle, color=color, marker="o", markersize=3, label=run)
                axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            axes.set_title(heading, fontsize="small", wrap=True)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize="small", labelbottom=True)
        for axes in list(figure.axes)[len(panels) :]:
            axes.set_visible(False)
        figure.suptitle(title)
        figure.supxlabel("updates", fontsize="small")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small", frameon=False)
        return sheets.picture_of(figure)

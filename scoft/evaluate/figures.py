"""Figures of an evaluation, from plain pictures and numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image

from scoft import sheets


COLUMNS = 3  # panels side by side
PANEL = 2.3  # inches from one row of panels to the next


def methods(rows: Sequence[tuple[str, Sequence[Image.Image]]], names: Sequence[str], *, title: str) -> Image.Image:
    """Prompts as rows, each with its pictures by the methods of these names (figures 1, 4 and 8 of the paper)."""
    cells = [(prompt, [sheets.Cell(picture=picture) for picture in pictures]) for prompt, pictures in rows]
    return sheets.grid(
        [sheets.Row(cells=each, above=prompt) for prompt, each in cells],
        columns=dict.fromkeys(names, 1),
        title=title,
    )


def nearest(pairs: Sequence[tuple[Image.Image, Image.Image, float]], *, title: str) -> Image.Image:
    """Pictures above the training photographs that they are most like, with the cosine: is anything repeated?"""
    pictures = [sheets.Cell(picture=picture) for picture, _, _ in pairs]
    photographs = [sheets.Cell(picture=photograph, words=f"{cosine:.3f}") for _, photograph, cosine in pairs]
    return sheets.grid(
        [
            sheets.Row(heading="picture", cells=pictures),
            sheets.Row(heading="nearest training photograph, cosine", cells=photographs),
        ],
        title=title,
    )


def curves(
    panels: Mapping[str, Mapping[str, Sequence[tuple[int, float, float, float]]]], *, title: str
) -> Image.Image:
    """Small multiples: a panel a metric, a line a run of (updates, value, low, high), intervals as bands.

    panels: heading -> run -> its points, in order (figures 7 and 9 of the paper). The runs share their colours.
    """
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(run for lines in panels.values() for run in lines))
    rows = math.ceil(len(panels) / COLUMNS)
    height = 1.1 + PANEL * rows
    with sheets.style(title, *panels, *runs):
        figure = Figure(figsize=(10.2, height), dpi=100)
        grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
        for axes, (heading, lines) in zip(grid, panels.items()):
            for run, points in lines.items():
                steps, middle, low, high = zip(*points)
                color = f"C{runs.index(run)}"
                axes.plot(steps, middle, color=color, marker="o", markersize=3, label=run)
                axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            axes.set_title(textwrap.fill(heading, 44), fontsize="small")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize="small")
        for axes in figure.axes[len(panels) :]:
            axes.remove()
        for axes in figure.axes[-COLUMNS:]:
            axes.set_xlabel("updates", fontsize="small")
        # inches, as there may be one row or ten; constrained layout takes seconds for twenty panels
        figure.subplots_adjust(
            left=0.06, right=0.99, bottom=0.5 / height, top=1 - 0.9 / height, hspace=0.5, wspace=0.2
        )
        figure.text(0.06, 1 - 0.3 / height, title, fontsize="large", fontweight="bold")
        shown = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels())}
        corner = (0.99, 1 - 0.1 / height)
        figure.legend(shown.values(), shown, loc="upper right", bbox_to_anchor=corner, ncols=len(shown), frameon=False)
        return sheets.picture_of(figure)

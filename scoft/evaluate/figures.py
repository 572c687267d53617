"""Figures of an evaluation: drawn from plain pictures and numbers, and written for a scored folder."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from scoft import sheets
from scoft.cultures import culture_words
from scoft.evaluate.results import Results, checkpoints_of
from scoft.evaluate.tables import headline
from scoft.files import private_folder
from scoft.images import open_file, write_png
from scoft.pictures import is_checkpoint, read_pictures


PHOTOGRAPHS = "photographs"  # the private folder of the sheets that show the dataset's photographs, which are others'
NEAREST_SHOWN = 10  # pictures of a sheet of nearest photographs, the most alike first
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
        lines = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels())}
        corner = (0.99, 1 - 0.1 / height)
        figure.legend(lines.values(), lines, loc="upper right", bbox_to_anchor=corner, ncols=len(lines), frameon=False)
        return sheets.picture_of(figure)


# ---------------------------------------------------------------------------------------------------------------------
# Of a folder
# ---------------------------------------------------------------------------------------------------------------------


def method_grid(folder: Path, only: Sequence[str] | None = None, *, most_rows: int = 10) -> Image.Image | None:
    """Methods, or `only` these, as columns, prompts as rows, the first picture that no method lacks.

    None where there is no prompt of which every method has a picture that is not blank.
    """
    pictures = [each for each in read_pictures(folder) if each.set == "prompts" and not is_checkpoint(each.method)]
    pictures = [each for each in pictures if only is None or each.method in only]
    names = list(dict.fromkeys(picture.method for picture in pictures))
    at = {(each.prompt, each.number, each.method): each for each in pictures if not each.blank}
    counted = sorted({picture.number for picture in pictures})
    rows = []
    for prompt in list(dict.fromkeys(picture.prompt for picture in pictures))[:most_rows]:
        whole = [number for number in counted if all((prompt, number, name) in at for name in names)]
        if whole:
            files = [folder / at[prompt, whole[0], name].file for name in names]
            rows.append((prompt, [open_file(file, within=folder) for file in files]))
    return methods(rows, names, title=culture_words(pictures[0].culture)) if rows else None


def write_nearest(folder: Path, sheet: Image.Image, *, of: str, method: str):
    """Keep the sheet of a set and method where only this user may look."""
    private_folder(folder / PHOTOGRAPHS, flag="folder")
    write_png(folder / nearest_file(of, method), sheet)


def nearest_file(of: str, method: str) -> str:
    return f"{PHOTOGRAPHS}/nearest-{of}-{method}.png"


def write_figures(folder: Path, results: Results, output: Path, *, apart: bool) -> Iterator[tuple[str, str]]:
    """Write one culture's figures; yields what each shows, and its file's name, which names the culture if `apart`."""
    culture = culture_words(results.culture)
    if grid := method_grid(folder):
        name = f"pictures-{results.culture}.png"
        write_png(output / name, grid)
        yield f"Methods as columns, prompts of {culture} as rows, at one seed", name
    for metric, of, method in results.estimates:
        sheet = folder / nearest_file(of, method)
        if metric == "nearest" and not is_checkpoint(method) and sheet.is_file():
            name = f"{PHOTOGRAPHS}/{sheet.stem}-{results.culture}.png" if apart else f"{PHOTOGRAPHS}/{sheet.name}"
            private_folder(output / PHOTOGRAPHS, flag="--output")
            write_png(output / name, open_file(sheet, within=folder))
            yield f"Pictures of {method}, set {of}, most like a training photograph, {culture}", name
    if panels := panels_of(results):
        name = f"updates-{results.culture}.png"
        write_png(output / name, curves(panels, title=culture))
        yield f"Metrics by updates, {culture}", name


def panels_of(results: Results) -> dict[str, dict[str, list[tuple[int, float, float, float]]]]:
    """What `curves` takes: a panel a metric and set, a line a run, from the base model on."""
    panels = defaultdict(dict)
    for (run, metric, of), points in checkpoints_of(results.estimates).items():
        lines = [(updates, each.value, each.low, each.high) for updates, each in points]
        panels[headline(metric, of)][run] = lines
    return panels

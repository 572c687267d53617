"""Figures of a survey, as the paper's 5, 10 to 13."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from scoft import sheets
from scoft.cultures import culture_words
from scoft.images import write_png
from scoft.survey.analysis import Analysis
from scoft.survey.bootstrap import Number
from scoft.survey.consensus import covariance
from scoft.survey.pairs import comparisons_of
from scoft.survey.rankings import Rankings
from scoft.survey.ranks import ALL, parts_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 0.25  # of a violin's kernel, in ranks: single ranks stay to be told apart
CELL = 1.9  # inches of a panel
MOST_LABELS = 12  # cultures beside a matrix


def write_figures(output: Path, rankings: Rankings, analysis: Analysis) -> Iterator[tuple[str, str]]:
    """Write them; yields what each shows, and its file's name."""
    yield from kept(
        output / "violins.png",
        violins(rankings),
        "How often each rank was given, by item and culture: the wider, the more often; the line is the mean. "
        "Rank 1, above, is best (as the paper's figure 5)",
    )
    yield from kept(
        output / "rank_counts.png", rank_counts(analysis.rank_counts), "Ranks by item and method (as figure 13)"
    )
    numbers = {
        part: {which: {name: Number(each.wins) for name, each in found.items()} for which, found in panels.items()}
        for part, panels in analysis.consensus.parts.items()
    }
    yield from kept(
        output / "consensus.png",
        bars(numbers, analysis.methods, title="MMSR and votes", unit="share of questions won"),
        "How many of its questions a method wins by MMSR and its vote (as figure 10)",
    )
    yield from kept(
        output / "noisy_bradley_terry.png",
        bars(analysis.noisy_bradley_terry, analysis.methods, title="Noisy Bradley-Terry", unit="score"),
        "Scores of Noisy Bradley-Terry, with intervals over participants (as figure 11)",
    )
    matrix, who = covariance(comparisons_of(rankings, by_position=False))
    if len(who) > 1:
        yield from kept(
            output / "covariance.png",
            heatmap(matrix, [rankings.participants[each][0] for each in who]),
            "How far each participant agrees with each other one; grey: no overlap (as figure 12)",
        )


def kept(file: Path, picture: Image.Image, words: str) -> Iterator[tuple[str, str]]:
    write_png(file, picture)
    yield words, file.name


def words_of(which: str) -> str:
    """A culture or item, as a figure names it."""
    return "all items" if which == ALL else which


@contextlib.contextmanager
def panels(rows: int, columns: int, *texts: str, width: float = CELL, height: float = CELL, **layout) -> Iterator:
    """A figure, and its (rows, columns) axes in the common style; `layout` is for matplotlib's subplots."""
    from matplotlib.figure import Figure

    with sheets.style(*texts):
        size = (max(1.2 + width * columns, 5), 0.8 + height * rows)
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **layout)
        for each in axes.flat:
            each.spines[["top", "right"]].set_visible(False)
            each.tick_params(labelsize="small")
        yield figure, axes


def violins(rankings: Rankings) -> Image.Image:
    """Items as rows, cultures as columns, a violin a method."""
    items = parts_of(rankings)
    names = {culture: culture_words(culture) for culture in rankings.cultures}
    columns = {"all cultures": None} if len(names) > 1 else {}
    columns |= {words: culture for culture, words in names.items()}
    shared = {"sharex": True, "sharey": True}
    with panels(len(items), len(columns), *columns, *rankings.methods, **shared) as (figure, grid):
        for axes, words in zip(grid[0], columns):
            axes.set_title(words, fontsize="medium")
        for row, (item, part) in zip(grid, items.items()):
            for axes, culture in zip(row, columns.values()):
                shown = part if culture is None else part.of_culture(culture)
                draw_violins(axes, shown.ranks)
                axes.set_xticks(range(len(rankings.methods)), rankings.methods, rotation=45)
                axes.set_yticks(range(1, len(rankings.methods) + 1))
            row[0].set_ylabel(words_of(item))
        return sheets.picture_of(figure)


def draw_violins(axes: Axes, ranks: np.ndarray):
    """A violin of each column of ranks (n, m), rank 1 above; columns without ranks stay empty."""
    m = ranks.shape[1]
    at = np.linspace(0.5, m + 0.5, 101)
    for method, column in enumerate(ranks.T):
        given = column[~np.isnan(column)]
        if len(given):
            density = np.exp(-(((at[:, None] - np.arange(1, m + 1)) / WIDTH) ** 2) / 2) @ [
                (given == rank).mean() for rank in range(1, m + 1)
            ]
            axes.fill_betweenx(at, method - 0.45 * density, method + 0.45 * density, color=f"C{method}", linewidth=0)
            axes.plot([method - 0.3, method + 0.3], [given.mean()] * 2, color="black", linewidth=1.2)
    axes.set(xlim=(-0.6, m - 0.4), ylim=(m + 0.5, 0.5))


def rank_counts(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> Image.Image:
    """A panel an item, a bar a method, its parts the ranks from the best to the last."""
    methods = list(counts[ALL])
    ranks = range(len(methods))
    shades = np.linspace(0.15, 0.85, len(methods))
    with panels(1, len(counts), *counts, *methods, height=2.6) as (figure, grid):
        for axes, (item, each) in zip(grid[0], counts.items()):
            below = np.zeros(len(methods))
            for rank in ranks:
                given = np.array([each[method][rank] for method in methods])
                color = color_of(shades[rank])
                axes.bar(range(len(methods)), given, bottom=below, color=color, label=f"rank {rank + 1}")
                below += given
            axes.set_xticks(range(len(methods)), methods, rotation=45)
            axes.set_title(words_of(item), fontsize="medium")
        grid[0, 0].set_ylabel("answers")
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods), frameon=False
        )
        return sheets.picture_of(figure)


def color_of(shade: float) -> tuple[float, ...]:
    """Dark for 0, pale for 1, told apart also without colours."""
    import matplotlib

    return matplotlib.colormaps["viridis"](shade)


def bars(
    numbers: Mapping[str, Mapping[str, Mapping[str, Number]]], methods: Sequence[str], *, title: str, unit: str
) -> Image.Image:
    """Overall, by culture and by item side by side: a group of bars each, a bar a method, intervals as whiskers."""
    words = {"overall": "overall", "culture": "by culture", "item": "by item"}
    there = {part: each for part, each in numbers.items() if each and (part != "culture" or len(each) > 1)}
    groups = [max(len(each), 2) for each in there.values()]
    labels = {
        part: ["all" if which == ALL else culture_words(which) if part == "culture" else which for which in each]
        for part, each in there.items()
    }
    texts = [title, unit, *methods, *(label for each in labels.values() for label in each)]
    size = {"width": 1 + 0.55 * sum(groups) / len(groups), "height": 2.8}
    with panels(1, len(there), *texts, **size, sharey=True, width_ratios=groups) as (figure, grid):
        for axes, (part, each) in zip(grid[0], there.items()):
            for place, method in enumerate(methods):
                draw_bars(axes, [each[which].get(method, Number(None)) for which in each], place, len(methods), method)
            axes.set_xticks(range(len(each)), labels[part], rotation=30 if len(each) > 1 else 0)
            axes.set_title(words[part], fontsize="medium")
            axes.axhline(0, color="black", linewidth=0.6)
        grid[0, 0].set_ylabel(unit)
        lines = grid[0, 0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=len(methods), frameon=False)
        figure.suptitle(title, fontsize="large", fontweight="bold")
        return sheets.picture_of(figure)


def draw_bars(axes: Axes, numbers: Sequence[Number], place: int, of: int, method: str):
    """A method's bar in each group."""
    x = np.arange(len(numbers)) + (place - (of - 1) / 2) * 0.8 / of
    values = [each.value if each.value is not None else np.nan for each in numbers]
    axes.bar(x, values, width=0.76 / of, color=f"C{place}", label=method)
    for at, each in zip(x, numbers):
        if each.low is not None:
            axes.plot([at, at], [each.low, each.high], color="black", linewidth=1)


def heatmap(matrix: np.ndarray, cultures: Sequence[str]) -> Image.Image:
    """Participants by participants; cultures as blocks, in their order."""
    names = list(dict.fromkeys(cultures))
    order = sorted(range(len(cultures)), key=lambda each: names.index(cultures[each]))
    ends = np.cumsum([cultures.count(name) for name in names])
    with panels(1, 1, *map(culture_words, names), width=5.2, height=4.6) as (figure, grid):
        import matplotlib

        axes = grid[0, 0]
        colors = matplotlib.colormaps["RdBu_r"].with_extremes(bad="lightgray")
        shown = axes.imshow(np.ma.masked_invalid(matrix[np.ix_(order, order)]), cmap=colors, vmin=-1, vmax=1)
        if len(names) <= MOST_LABELS:
            middles = ends - [cultures.count(name) / 2 + 0.5 for name in names]
            axes.set_yticks(middles, map(culture_words, names))
        else:
            axes.set_yticks([])
        axes.set_xticks([])
        figure.colorbar(shown, ax=axes, label="agreement of two participants", shrink=0.8)
        axes.set_title("grey: no overlap", fontsize="small")
        return sheets.picture_of(figure)

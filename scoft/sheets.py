"""Sheets of pictures and plots of numbers, drawn by matplotlib, in the scripts of those who wrote the captions."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import logging
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from scoft.images import as_rgb, open_file


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry

logger = logging.getLogger(__name__)

MARGIN, GAP, GROUP_GAP, BLOCK_GAP = 12, 6, 18, 16  # pixels around a sheet; between cells, groups of columns, blocks
SMALL, TEXT, TITLE = 11, 13, 17  # pixels that letters are high: below a picture, above a row, above the sheet
LINE = 1.4  # of a letter's height; Arabic and Devanagari need it
MIN_WIDTH = 480  # pixels of a sheet, for its texts
MOST_LINES = 4  # of a paragraph; what is longer ends in an ellipsis
MOST_CELLS = 64  # of a row that are drawn; the next one says how many there are
MOST_PIXELS = 20_000  # of a sheet's height: rows below it are not drawn, and counted in a last line
JOINERS = "\u200c\u200d"  # say how letters of Persian and of India's scripts are joined, and are no letters themselves
CJK = {"Han", "Hangul", "Hiragana", "Katakana", "Bopomofo"}


# ---------------------------------------------------------------------------------------------------------------------
# Fonts
# ---------------------------------------------------------------------------------------------------------------------


def font_families(texts: Iterable[str]) -> list[str]:
    """DejaVu Sans, which matplotlib brings, then fonts of this machine for the letters it lacks, Noto's before others.

    matplotlib takes each letter from the first that has it. The log tells once of each script that none has.
    """
    families = dict.fromkeys(["DejaVu Sans"])
    for letter in sorted(set().union(*texts)):
        families |= dict.fromkeys(filter(None, [_family_of(letter)]))
    return list(families)


@functools.cache
def _family_of(letter: str) -> str | None:
    """The family of a font that has the letter; None where the first of `font_families` has it, or none."""
    from fontTools.unicodedata import script, script_name

    name = script_name(script(letter))
    family = _first_with(letter, name)
    if family is None:
        _learn_new_fonts()
        family = _first_with(letter, name)
    if family is None:
        _warn_of(name)
    return None if family == "DejaVu Sans" else family


def _first_with(letter: str, script: str) -> str | None:
    from matplotlib.ft2font import FT2Font

    for font in _fonts_for(script):
        with contextlib.suppress(OSError, RuntimeError):  # a font that is gone, or not one
            if FT2Font(font.fname, face_index=font.index).get_char_index(ord(letter)):
                return font.name
    return None


@functools.cache
def _learn_new_fonts():
    """Tell matplotlib of fonts that were installed after it had made the list that it keeps in its cache."""
    from matplotlib import font_manager

    fonts = font_manager.fontManager
    for file in set(font_manager.findSystemFonts()) - {font.fname for font in fonts.ttflist}:
        with contextlib.suppress(OSError, RuntimeError, NotImplementedError):  # no font, or one of pixels
            fonts.addfont(file)
    _fonts_for.cache_clear()


@functools.cache
def _fonts_for(script: str) -> list[FontEntry]:
    """The upright regular fonts of this machine, those that are to be tried first for a script at the front."""
    from matplotlib.font_manager import fontManager

    def rank(font: FontEntry) -> tuple:
        return (
            font.name != "DejaVu Sans",
            not font.name.startswith("Noto Sans"),
            not font.name.startswith("Noto"),
            ("CJK" if script in CJK else script) not in font.name,
            font.name,
        )

    regular = (font for font in fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal"))
    # "Last Resort" has a box for every letter
    return sorted((font for font in regular if not font.name.startswith("Last Resort")), key=rank)


@functools.cache
def _warn_of(script: str):
    what = "symbols" if script in ("Common", "Inherited", "Unknown") else f"{script} letters"
    package = "fonts-noto-cjk" if script in CJK else "fonts-noto-core"
    logger.warning(
        "No font of this machine has some %s, which pictures show as boxes. Install a Noto font (Debian, Ubuntu: "
        "apt-get install %s).",
        what,
        package,
    )


def printable(text: str) -> str:
    """`text` on one line: what cannot be seen is left out, and what is no character is shown as that."""
    letters = []
    for letter in text:
        if letter.isprintable() or letter in JOINERS:
            letters.append(letter)
        elif letter.isspace():
            letters.append(" ")
        elif unicodedata.category(letter) != "Cf":
            letters.append("\N{REPLACEMENT CHARACTER}")
    return " ".join("".join(letters).split())


@contextlib.contextmanager
def style(*texts: str) -> Iterator[None]:
    """matplotlib as it comes, whatever its user has set, with fonts for `texts`, in which $ and \\ mean themselves."""
    import matplotlib.style

    families = font_families(map(printable, texts))
    with (
        matplotlib.style.context(["default", {"font.family": families, "text.parse_math": False}]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)  # _warn_of says it in words
        yield


def picture_of(figure: Figure) -> Image.Image:
    """The figure's pixels, as RGBA: unlike in matplotlib's own PNG files, nothing says what wrote them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()))


# ---------------------------------------------------------------------------------------------------------------------
# Sheets of pictures
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture, or its file, and the words below it; where there is no picture the words say why."""

    picture: Image.Image | Path | None = None
    words: str = ""  # a line break holds, as in all that follows
    struck: bool = False  # crossed out in red


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells side by side. Words across the sheet above them begin a block; the heading stands to their left."""

    cells: Sequence[Cell]
    above: str = ""
    heading: str = ""


def grid(
    rows: Sequence[Row], *, columns: Mapping[str, int] | None = None, title: str = "", side: int = 128
) -> Image.Image:
    """A sheet of the rows, as RGB: the same for the same rows, fonts and versions.

    `columns`: heading -> the number of cells that it stands over, after which the gap is wider. A picture larger than
    `side` pixels is reduced to fit; a smaller one is enlarged by the greatest whole number that fits, and stays crisp.
    What goes beyond MOST_CELLS and MOST_PIXELS is left out, and the sheet says how much.
    """
    columns = columns or {}
    rows = [replace(row, cells=_bounded(row.cells)) for row in rows]
    ends = list(itertools.accumulate(columns.values()))
    texts = [title, *columns, *(row.above + row.heading for row in rows)]
    with style(*texts, *(cell.words for row in rows for cell in row.cells)):
        page = _Page()
        heading = min(max((page.width_of(row.heading) for row in rows), default=0), side)
        lefts = [MARGIN + (round(heading) + GAP if heading else 0)]
        for c in range(1, max([min(sum(columns.values()), MOST_CELLS + 1), *(len(row.cells) for row in rows)])):
            lefts.append(lefts[-1] + side + (GROUP_GAP if c in ends else GAP))
        right = max(lefts[-1] + side, MIN_WIDTH - MARGIN)

        y = MARGIN
        if title:
            y = GAP + page.write(title, MARGIN, y, right=right, size=TITLE, weight="bold")
        lows = [y]
        for (name, span), end in zip(columns.items(), ends):
            left, its_right = (lefts[min(cell, len(lefts) - 1)] for cell in (end - span, end - 1))
            lows.append(page.write(name, left, y, right=its_right + side, align="center", weight="bold"))
        y = max(lows)
        for r, row in enumerate(rows):
            y += BLOCK_GAP if row.above and r else GAP
            if y > MOST_PIXELS:
                y = page.write(f"... and {len(rows) - r} more", MARGIN, y, right=right)
                break
            if row.above:
                y = page.write(row.above, MARGIN, y, right=right) + GAP // 2
            page.write(row.heading, MARGIN, y + side // 2 - TEXT, right=MARGIN + heading, color="dimgray")
            y = _draw_cells(page, row.cells, y, lefts=lefts, side=side)
        return page.drawn(right + MARGIN, y + MARGIN)


def _bounded(cells: Sequence[Cell]) -> Sequence[Cell]:
    if len(cells) <= MOST_CELLS:
        return cells
    return [*cells[:MOST_CELLS], Cell(words=f"and {len(cells) - MOST_CELLS} more")]


def _draw_cells(page: _Page, cells: Sequence[Cell], top: int, *, lefts: Sequence[int], side: int) -> int:
    """Pictures with their upper edges at `top`, words below all of them; returns where the row ends."""
    pictures = [None if cell.picture is None else fitted(cell.picture, side) for cell in cells]
    low = top + max((picture.height for picture in pictures if picture), default=side // 2)
    bottom = low
    for cell, picture, left in zip(cells, pictures, lefts):
        if picture is None:
            page.gap(cell.words, left, top, right=left + side, bottom=low)
            continue
        page.place(picture, left + (side - picture.width) // 2, top, struck=cell.struck)
        if cell.words:
            color = "firebrick" if cell.struck else "dimgray"
            wrote = page.write(cell.words, left, low + 2, right=left + side, size=SMALL, align="center", color=color)
            bottom = max(bottom, wrote)
    return bottom


def fitted(picture: Image.Image | Path, side: int) -> Image.Image:
    """The picture as `grid` places it, in at most `side` x `side` pixels."""
    if isinstance(picture, Path):
        picture = open_file(picture)
    picture = as_rgb(picture)
    times = side // max(picture.size)
    if times:
        return picture.resize((times * picture.width, times * picture.height), Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    return picture


class _Page:
    """What is placed on a sheet before its height is known; x and y in pixels from the upper left corner."""

    def __init__(self):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        self.figure = Figure(dpi=72)  # at which a point is a pixel
        self.renderer = FigureCanvasAgg(self.figure).get_renderer()
        self.width_of = functools.cache(self.width_of)  # captions have many words in common
        self.downwards = Affine2D()  # to matplotlib's coordinates, which begin at the bottom: see `drawn`
        self.pictures: list[tuple[Image.Image, tuple[int, int]]] = []

    def width_of(self, text: str, size: int = TEXT, weight: str = "normal") -> float:
        from matplotlib.font_manager import FontProperties

        font = FontProperties(size=size, weight=weight)
        return self.renderer.get_text_width_height_descent(text, font, False)[0]

    def write(self, text: str, left: float, top: int, *, right: float, size: int = TEXT, align: str = "left", **look):
        """Write up to MOST_LINES paragraphs between `left` and `right`; returns the y where they end."""
        font = {"size": size, "weight": look.pop("weight", "normal")}
        width_of = functools.partial(self.width_of, **font)
        paragraphs = text.split("\n", MOST_LINES - 1)
        lines = [line for paragraph in paragraphs for line in wrapped(paragraph, right - left, width_of)]
        x = left if align == "left" else (left + right) / 2
        for line in lines:
            self.figure.text(x, top + size, line, ha=align, transform=self.downwards, **font, **look)
            top += round(LINE * size)
        return top

    def place(self, picture: Image.Image, left: int, top: int, *, struck: bool):
        from matplotlib.lines import Line2D

        self.pictures.append((picture, (left, top)))
        if struck:
            x, y = (left, left + picture.width), (top, top + picture.height)
            for ends in (y, y[::-1]):
                self.figure.add_artist(Line2D(x, ends, color="red", linewidth=2, transform=self.downwards))

    def gap(self, words: str, left: int, top: int, *, right: int, bottom: int):
        """Where a picture might be: what is said of there being none."""
        from matplotlib.patches import Rectangle

        self.figure.add_artist(
            Rectangle((left, top), right - left, bottom - top, color="whitesmoke", transform=self.downwards)
        )
        self.write(words, left, (top + bottom) // 2 - SMALL, right=right, size=SMALL, align="center", color="gray")

    def drawn(self, width: int, height: int) -> Image.Image:
        self.figure.set_size_inches(width / self.figure.dpi, height / self.figure.dpi)
        self.figure.set_facecolor("none")
        self.downwards.scale(1, -1).translate(0, height)
        paper = Image.new("RGB", (width, height), "white")
        for picture, place in self.pictures:
            paper.paste(picture, place)  # matplotlib's figimage would resample them, which takes seconds
        ink = picture_of(self.figure)
        paper.paste(ink, mask=ink)
        return paper


def wrapped(text: str, width: float, width_of: Callable[[str], float]) -> list[str]:
    """Lines of at most `width`, broken between words, and within those that are wider than a line."""
    words, lines = printable(text).split()[::-1], []
    space = width_of("n n") - 2 * width_of("n")
    while words and len(lines) < MOST_LINES:
        line = words.pop()
        if width_of(line) > width:
            cut = bisect.bisect(range(1, len(line)), width, key=lambda n: width_of(line[:n])) or 1
            while cut < len(line) and unicodedata.category(line[cut]).startswith("M"):
                cut += 1  # marks stay with their letter
            words += filter(None, [line[cut:]])
            line = line[:cut]
        room = width - width_of(line)
        while words and (room := room - space - width_of(words[-1])) >= 0:
            line = f"{line} {words.pop()}"
        lines.append(line)
    if words:
        lines[-1] = f"{lines[-1]} …"
        while width_of(lines[-1]) > width and len(lines[-1]) > 2:
            lines[-1] = f"{lines[-1][:-3].rstrip()} …"
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Plots of numbers
# ---------------------------------------------------------------------------------------------------------------------


def histogram(values: Sequence[float], *, threshold: float, of: str, unit: str) -> Image.Image:
    """How many `of` have which value, in `unit`, with the threshold as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with style(of, unit):
        figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
        axes = figure.subplots()
        axes.hist(values, bins=40, range=(0, max(*values, 1.2 * threshold, 1e-6)), color="steelblue")
        axes.axvline(threshold, color="red")
        below = f"{sum(value < threshold for value in values)} of {len(values)} {of} are below it"
        axes.set_title(f"threshold {threshold:g}: {below}", color="red", size="medium")
        axes.set(xlabel=unit, ylabel=of)
        axes.margins(x=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return picture_of(figure).convert("RGB")


def comparison_grid(
    prompts: Sequence[str], base: Sequence, changed: Sequence, *, called: str, title: str, photographs: Sequence = ()
) -> Image.Image:
    """A block for each prompt: its words, a row of base pictures, and below them what is `called` so, at their seeds.

    Above them all a row of the dataset's `photographs`, if there are any. An RGB picture.
    """
    columns = len(base) // len(prompts)
    rows = [Row(above="The dataset's photographs", cells=[Cell(picture=each) for each in photographs])]
    for p, prompt in enumerate(prompts):
        for above, heading, images in ((prompt, "base", base), ("", called, changed)):
            cells = [Cell(picture=image) for image in images[p * columns : (p + 1) * columns]]
            rows.append(Row(above=above, heading=heading, cells=cells))
    return grid(rows if photographs else rows[1:], title=title, side=comparison_side(base))


def comparison_side(images: Sequence) -> int:
    """Pixels of a picture in such a sheet: of small ones enough to see them, of large ones enough to compare them."""
    return min(max(images[0].width, 128), 256)

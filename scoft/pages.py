"""Text of pages, which nothing told on them can break."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence


def markdown_text(value: object) -> str:
    """A value as words on one line of a page: what Markdown, HTML or a table would act on is shown as it is.

    It does not hide a list's or heading's mark at the start of a line, so no line of a template starts with a value.
    """
    line = "".join(character for character in " ".join(str(value).split()) if character.isprintable())
    line = re.sub(r"([\\`*_\[\]|~#!$@])", r"\\\1", html.escape(line, quote=False))
    return re.sub(r"(?<=\bwww)\.|:(?=//)", lambda found: "\\" + found[0], line)  # else GitHub's Markdown makes a link


def page_values(value):
    """All text in `value`, its lists and its dicts, but not their keys, as `markdown_text`."""
    if isinstance(value, str):
        return markdown_text(value)
    if isinstance(value, dict):
        return {key: page_values(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [page_values(each) for each in value]
    return value


def code_text(value: str) -> str:
    """A string literal of Python and of JSON, for a block of code on a page."""
    return json.dumps(value, ensure_ascii=False)


class Bold(str):
    """Text of a table that is set in bold."""


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [[markup(cell) for cell in row] for row in (heading, *rows)]
    return ["| " + " | ".join(row) + " |" for row in (cells[0], ["---"] * len(heading), *cells[1:])]


def markup(cell: object) -> str:
    text = markdown_text(cell)
    return f"**{text}**" if isinstance(cell, Bold) else text


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in which the cells of a column stand below each other, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["   ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def comparison_rows(base: dict[str, float], lora: dict[str, float], *, called: str = "LoRA") -> list[tuple[str, ...]]:
    """Numbers as rows of text, base beside LoRA or what else is `called` so, below a row of headings.

    <name>_low and <name>_high, where both are there, stand in the row of <name> as its interval.
    """
    names = base | lora
    bounds = {name: (f"{name}_low", f"{name}_high") for name in names}
    bounds = {name: pair for name, pair in bounds.items() if names.keys() >= set(pair)}
    rows = [("", "base", called)]
    for name in names:
        if not any(name in pair for pair in bounds.values()):
            keys = (name, *bounds.get(name, ()))
            cells = [[numbers[key] for key in keys if key in numbers] for numbers in (base, lora)]
            decimals = shown_decimals([*cells[0], *cells[1]])
            rows.append((name, *(with_interval(cell, decimals) for cell in cells)))
    return rows


def shown_decimals(values: Sequence[float]) -> int:
    """How many decimals numbers are shown with: none if all are int, else two, or more where all are small."""
    if all(isinstance(value, int) for value in values):
        return 0
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0)
    return max(2, 1 - math.floor(math.log10(largest))) if largest > 0 else 2


def with_interval(values: Sequence[float], decimals: int = 2) -> str:
    """'0.61 [0.48, 0.72]' of a number, its lower and its upper bound; '0.61' of a number alone."""
    number, *interval = [f"{value:.{decimals}f}" for value in values] or [""]
    return f"{number} [{', '.join(interval)}]" if interval else number

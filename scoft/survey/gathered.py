"""Responses of a file: ours, or a CSV of answers that were gathered elsewhere."""

import collections
import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scoft.errors import DataError, legible
from scoft.files import checked_name, read_file
from scoft.pictures import method_of
from scoft.survey.problems import Problems
from scoft.survey.responses import COLUMNS, NUMBERS, flagged
from scoft.survey.schema import FLAGS, ITEMS, RESPONSES_FILE, Response


NEEDED = ("participant", "culture", "page", "item", "method", "rank")  # the other columns may be missing
MAX_CSV = 2**28  # bytes
DELIMITERS = ",;\t"  # a spreadsheet's, by where its user lives
LONG_FORM = "It has a row for each rank that a participant gave a picture for an item."


def read_responses(places: Sequence[Path], columns: Mapping[str, str], problems: Problems) -> list[Response]:
    """The rows of CSV files, or of folders with RESPONSES_FILE.

    columns: what a file calls a column -> which of COLUMNS it is.  A row that cannot be used is left out, and of two
    for the same picture the later holds; both go to `problems` with their lines.  Raises DataError where a file cannot
    be read, is not in long form, or has no row of use.
    """
    rows: dict[tuple, Response] = {}
    for place in places:
        path = place / RESPONSES_FILE if place.is_dir() else place
        found, told_flags = [], False
        for where, cells in lines_of(path, columns, problems):
            told_flags |= "flags" in cells
            if (row := row_of(cells, where, problems)) is not None:
                found.append((where, row))
        if not found:
            raise DataError(f"{path} has no row of use. {LONG_FORM}")
        kept = {}
        for where, row in in_range(found, problems):
            key = (row.culture, row.participant, row.page, row.item, row.method)
            if key in rows or key in kept:
                problems.add("repeated rows, of which the last holds", where)
                rows.pop(key, None)
            kept[key] = row
        rows |= kept if told_flags else dict(zip(kept, flagged(list(kept.values()))))
    return list(rows.values())


def lines_of(path: Path, columns: Mapping[str, str], problems: Problems) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each line stands, and its cells by our names. Raises DataError."""
    try:
        text = read_file(path, at_most=MAX_CSV).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}). Save it as CSV in UTF-8.") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count), strict=True)
    try:
        names = heading_of(path, next(reader, []), columns)
    except csv.Error as error:
        raise DataError(f"{path} has a heading that is no CSV ({error}). {LONG_FORM}") from error
    while True:
        begins = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # a quote that never ends takes all that follows
            problems.add("torn lines, left out", f"{path.name}, lines {begins} to {reader.line_num} ({error})")
            continue
        where = f"{path.name}, line {begins}"
        if len(cells) == len(names):
            yield where, {name: cell.strip() for name, cell in zip(names, cells) if name in COLUMNS}
        elif any(cells):
            problems.add("torn lines, left out", f"{where} ({len(cells)} cells, {len(names)} in the heading)")


def heading_of(path: Path, heading: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """The heading in our names. Raises DataError where a column is missing or there twice."""
    there = [name.strip() for name in heading]
    if unknown := set(columns) - set(there):
        raise DataError(
            f"names {legible(min(unknown))}, but {path} has {legible(', '.join(there)) or 'no heading'}.",
            argument="columns",
        )
    names = [columns.get(name, name if name not in columns.values() else "") for name in there]
    if missing := [name for name in NEEDED if name not in names]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}, but {legible(', '.join(there)) or 'no heading'}. {LONG_FORM} "
            "Say what it calls them by the parameter columns, or add them."
        )
    if repeated := [name for name in COLUMNS if names.count(name) > 1]:
        raise DataError(f"{path} has two columns {repeated[0]}. Remove one.")
    return names


def row_of(cells: Mapping[str, str], where: str, problems: Problems) -> Response | None:
    """A line as a row; None, with a problem, where it is none."""
    if blank := [name for name in NEEDED[:-1] if not cells[name]]:
        problems.add("lines without a value that every row needs, left out", f"{where} ({blank[0]})")
        return None
    if cells["item"] not in ITEMS:
        problems.add(f"unknown items, left out (known: {', '.join(ITEMS)})", f"{where} ({cells['item']!r})")
        return None
    try:
        checked_name(cells["culture"], what="culture")
        method_of(cells["method"])
    except DataError:
        problems.add("names that no culture or method can have, left out", f"{where} ({cells['method']!r})")
        return None
    numbers = {}
    for name in NUMBERS:
        text = cells.get(name, "")
        whole = re.fullmatch(r"(-?[0-9]{1,18})(\.0*)?", text)
        if text and not whole:
            problems.add(f"values of {name} that are no whole numbers, taken as not known", f"{where} ({text!r})")
        numbers[name] = int(whole[1]) if whole else None
    told = [flag for flag in FLAGS if flag in cells.get("flags", "").split()]
    rest = {name: cells[name] for name in NEEDED[:-1]}
    return Response(**rest, **numbers, language=cells.get("language") or None, flags=" ".join(told))


def in_range(found: Sequence[tuple[str, Response]], problems: Problems) -> Iterator[tuple[str, Response]]:
    """The rows, ranks that a page has no room for taken as not ranked; it has as many as it has methods."""
    methods = collections.defaultdict(set)
    for _, row in found:
        methods[row.culture, row.page].add(row.method)
    for where, row in found:
        most = len(methods[row.culture, row.page])
        if row.rank is not None and not 1 <= row.rank <= most:
            problems.add("ranks out of range, taken as not ranked", f"{where} ({row.rank}, not 1 to {most})")
            row = dataclasses.replace(row, rank=None)
        yield where, row

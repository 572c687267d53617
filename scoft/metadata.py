"""Lines of metadata that people write beside pictures: metadata.jsonl and metadata.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from scoft.errors import DataError
from scoft.files import read_regular


METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
EXAMPLE_LINE = '{"file_name": "images/house.jpg", "text": "a house with a tiled roof"}'
MAX_METADATA = 2**28  # bytes


def read_metadata(file: Path, *, within: Path) -> io.StringIO:
    """The lines of a metadata file, as they end in it. Raises DataError."""
    try:
        text = read_regular(file, within=within, at_most=MAX_METADATA).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save it as UTF-8.") from error
    except (OSError, DataError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    return io.StringIO(text, newline="")


def jsonl_records(lines: Iterable[str], file: Path) -> Iterator[tuple[int, dict]]:
    """Number and content of each line of `file` that is not blank. Raises DataError."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # the latter two: endless digits, and brackets in brackets
            raise DataError(
                f"{file}, line {number} is not JSON ({error}); write a line such as {EXAMPLE_LINE}"
            ) from error
        if not isinstance(record, dict):
            raise DataError(f"{file}, line {number} is not a JSON object; write a line such as {EXAMPLE_LINE}")
        yield number, record


def csv_rows(lines: Iterable[str], *, source: object) -> tuple[list[str], list[tuple[str, dict[str, str | None]]]]:
    """The columns of a table, and its rows, each with the words by which messages call it; None where a cell lacks.

    Raises DataError for cells that no column is for, and for what is no CSV.
    """
    reader, rows = csv.DictReader(lines), []
    try:
        for number, row in enumerate(reader, start=2):
            if None in row:
                raise DataError(
                    f"{source}, row {number} has more cells than the header; "
                    "put double quotes around a text that contains a comma."
                )
            rows.append((f"{source}, row {number}", row))
        return list(reader.fieldnames or ()), rows
    except csv.Error as error:
        raise DataError(f"{source}, line {reader.line_num} is not CSV ({error}).") from error


def csv_value(cell: str | None) -> str | list | None:
    """CSV knows only strings, so a list is written in it as JSON; any other cell is the text it shows."""
    if cell is None or not cell.lstrip().startswith("["):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell  # a caption that merely begins with a bracket

"""What the user hands in: a table of links, or a folder of pictures with its metadata; and texts."""

import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from scoft.cultures import CATEGORIES, CATEGORY_CODES, CULTURE_OF_CODE
from scoft.dataset import unusable, warn_of_scripts
from scoft.errors import DataError
from scoft.files import content_key, open_regular, read_file, read_regular
from scoft.hub import CREDENTIALS
from scoft.metadata import MAX_METADATA, csv_rows, jsonl_records, read_metadata
from scoft.prepare.photograph import PERIODS, Photograph
from scoft.prepare.web import Fetcher


logger = logging.getLogger(__name__)

LINK_COLUMNS = ("country_code", "category_code", "url", "caption", "created_at")
EXAMPLE_LINE = '{"file_name": "market.jpg", "text": "a market in Ibadan", "category": "city"}'  # of a metadata.jsonl


def read_text(file: Path | None, *, flag: str) -> str:
    """The text of the file that `flag` names, if it names one. Raises DataError, which names the flag."""
    if file is None:
        return ""
    try:
        return read_regular(file, at_most=MAX_METADATA).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{flag} {file} cannot be read ({error}); it is a text file in UTF-8.") from error


def read_deny_list(file: Path | None) -> list[str]:
    """The entries of --deny_list, one a line; # begins a line that is none. Raises DataError."""
    lines = read_text(file, flag="--deny_list").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def read_table(source: str, *, fetcher: Fetcher) -> bytes:
    """The bytes of --links: a file, or a URL, which is asked through the fetcher. Raises DataError without them."""
    if not source.startswith(("http://", "https://")):
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise DataError(f"--links {source}: {error.strerror}.") from error
    fetched = fetcher.fetch_document(source)
    if fetched.status != "ok":
        raise DataError(f"--links {source}: {fetched.status}, {fetched.detail}.")
    return fetched.content


def read_links(table: bytes, *, culture: str, source: str) -> list[Photograph]:
    """The rows of a table of links: `url` and `caption`, and where there are such `category_code` (or `category`),
    `collector`, `period` and `country_code`, by which rows of other countries are left out, with a count in the log.

    Raises DataError for bytes that are not UTF-8, missing columns, unknown codes, and no row for the culture.
    """
    found, elsewhere = {}, Counter()
    for name, row in table_rows(table, source=source, needed=("url", "caption")):
        country = row.get("country_code", "").upper()
        if country and country not in CULTURE_OF_CODE:
            raise DataError(
                f"{name}: country_code {country!r} is none of {', '.join(CULTURE_OF_CODE)}; "
                "without that column, all rows are of --culture."
            )
        if country and CULTURE_OF_CODE[country] != culture:
            elsewhere[country] += 1
            continue
        if not row["url"]:
            raise DataError(f"{name}: the url is blank; fill it in or remove the row.")
        found[name] = Photograph(
            id=content_key(row["url"])[:16],
            url=row["url"],
            category=category_of(row.get("category_code") or row.get("category"), name=name),
            **caption_of(row, "caption"),
            **origin_of(row, name=name),
        )
    for country, count in elsewhere.items():
        logger.info("%s: %d rows of %s are left out: they are not of %s.", source, count, country, culture)
    if not found:
        raise DataError(f"{source}: no row is of --culture {culture}.")
    check_captions(found, source=source)
    return marked_duplicates(list(found.values()))


def table_rows(table: bytes, *, source: str, needed: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a table that are not blank, stripped, each with the words by which messages call it.

    Raises DataError for bytes that are not UTF-8, missing columns, and cells that no column is for.
    """
    try:
        text = table.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = table[: error.start].count(b"\n") + 1
        raise DataError(f"{source}: line {line} is not UTF-8 ({error.reason}); save the table as UTF-8.") from error
    columns, rows = csv_rows(io.StringIO(text, newline=""), source=source)
    if missing := [name for name in needed if name not in columns]:
        raise DataError(
            f"{source}: no column {' and no column '.join(missing)}; it has {', '.join(columns) or 'none'}. "
            f"{' and '.join(needed)} are needed; CCUB's are {', '.join(LINK_COLUMNS)}."
        )
    stripped = [(name, {column: (cell or "").strip() for column, cell in row.items()}) for name, row in rows]
    return [(name, row) for name, row in stripped if any(row.values())]


def category_of(name_or_code: object, *, name: str) -> str | None:
    """One of CATEGORIES, given by its name or CCUB's code; None if nothing is given. DataError for anything else."""
    if name_or_code is not None and not isinstance(name_or_code, str):
        raise DataError(f"{name}: category is a name or code of CCUB, got {name_or_code!r}.")
    text = (name_or_code or "").strip()
    if not text:
        return None
    category = CATEGORY_CODES.get(text.upper(), text.lower())
    if category not in CATEGORIES:
        codes = ", ".join(f"{code} ({words})" for code, words in CATEGORY_CODES.items())
        raise DataError(f"{name}: category {text!r} is none of {codes}.")
    return category


def caption_of(row: dict, column: str) -> dict[str, str]:
    """The caption and, where there is none that can be used, the status, as a Photograph has them."""
    text = row.get(column)
    if why := unusable(text):
        return {"caption": "", "status": "no_caption", "detail": f"{column} is {why}"}
    return {"caption": text.strip()}


def origin_of(row: dict, *, name: str) -> dict[str, str]:
    """Who chose a photograph and what it is of, where the row says so, as a Photograph has them. Raises DataError."""
    collector, period = (str(row.get(column) or "").strip() for column in ("collector", "period"))
    if not re.fullmatch(r"[\w.-]{0,64}", collector):
        raise DataError(
            f"{name}: collector is an opaque id of letters, digits, ., - and _, such as c07, and nobody's name or "
            f"address, got {collector!r}."
        )
    if period.lower() not in ("", *PERIODS):
        raise DataError(f"{name}: period is {' or '.join(PERIODS)}, got {period!r}.")
    return {"collector": collector, "period": period.lower()}


def check_captions(found: dict[str, Photograph], *, source: object):
    """Log which rows, by the words for them, have no caption or one that CLIP does not read. DataError without any."""
    blank = [f"{name}: {row.detail}" for name, row in found.items() if row.status == "no_caption"]
    if len(blank) == len(found):
        raise DataError(f"{source}: no row has a caption: {blank[0]}. A caption is a text that is not blank.")
    if blank:
        logger.warning("%d of %d rows have no caption and are left out: %s", len(blank), len(found), "; ".join(blank))
    warn_of_scripts([(name, row.caption) for name, row in found.items() if row.caption])


def marked_duplicates(found: list[Photograph]) -> list[Photograph]:
    """Of rows with the same link or file the first that has a caption counts; others stay in the manifest, each under
    an id of its own, as duplicates.
    """
    known: set[str] = set()
    for number, photograph in enumerate(found):
        if photograph.id in known:
            photograph.status, photograph.detail = "duplicate", "an earlier line has the same link or file"
        if photograph.status != "pending":
            photograph.id, photograph.source_sha256 = f"{photograph.id}-{number}", ""
        known.add(photograph.id)
    return found


def read_images(folder: Path) -> list[Photograph]:
    """The rows of a folder of pictures: its metadata.jsonl or metadata.csv with `file_name` and `text`, and where
    there are such `category`, `collector`, `period`, `split` (train or test), `source_url` and `license`.

    Raises DataError for a folder without metadata, missing columns, files that are not there or outside of the folder.
    """
    found = {}
    for name, row in metadata_rows(folder):
        if not isinstance(row.get("file_name"), str) or not row["file_name"].strip():
            raise DataError(f"{name}: file_name is a text that is not blank, got {row.get('file_name')!r}.")
        file_name = row["file_name"].strip()
        try:
            with open_regular(folder / file_name, within=folder) as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        except (OSError, DataError) as error:
            raise DataError(
                f"{name}: there is no file {file_name!r} in {folder} that can be read ({error}); names count from "
                "that folder."
            ) from error
        split = str(row.get("split") or "")
        if split not in ("", "train", "test"):
            raise DataError(f"{name}: split is train or test, got {split!r}.")
        url = str(row.get("source_url") or "")
        if CREDENTIALS.search(url):
            raise DataError(f"{name}: source_url holds a user name or password, which the dataset would tell to all.")
        found[name] = Photograph(
            id=content_key(file_name)[:16],
            url=url,
            picture=file_name,
            category=category_of(row.get("category"), name=name),
            license=str(row.get("license") or ""),
            source_sha256=sha256,
            split=split,
            **caption_of(row, "text"),
            **origin_of(row, name=name),
        )
    if not found:
        raise DataError(f"--images {folder}: the metadata has no rows; write one a picture: {EXAMPLE_LINE}")
    check_captions(found, source=f"--images {folder}")
    return marked_duplicates(list(found.values()))


def metadata_rows(folder: Path) -> Iterator[tuple[str, dict]]:
    """Each row of a folder's metadata, with the words by which messages call it."""
    lines, table = folder / "metadata.jsonl", folder / "metadata.csv"
    if lines.is_file():
        for number, row in jsonl_records(read_metadata(lines, within=folder), lines):
            yield f"{lines}, line {number}", row
    elif table.is_file():
        content = read_file(table, within=folder, at_most=MAX_METADATA)
        yield from table_rows(content, source=str(table), needed=("file_name", "text"))
    else:
        raise DataError(
            f"--images {folder}: there is no metadata.jsonl or metadata.csv; write one of lines like {EXAMPLE_LINE}"
        )

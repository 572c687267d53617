"""What the parts of a survey hand each other: its key, the answers as they are posted, and the responses in rows.

    FOLDER/site/            all that participants may see; pictures are called by opaque names
    FOLDER/pages.json       which pictures are of a page: what a server has to know
    FOLDER/key.json         which picture is whose: no server needs it
    FOLDER/answers.sqlite3  what was answered

A page of the survey is a prompt with one picture of each method, of one noise.  On each page each item is answered
once: the pictures ranked, 1 the best.
"""

import dataclasses
from pathlib import Path

from scoft.files import checked_name, read_record
from scoft.pictures import method_of


SITE_FOLDER = "site"
PAGES_FILE = "pages.json"
KEY_FILE = "key.json"
ANSWERS_FILE = "answers.sqlite3"
RESPONSES_FILE = "responses.csv"
ITEMS = ("alignment", "culture", "stereotypes", "offensiveness")  # the paper's four, section 5
LANGUAGE_FORM = r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}"  # en, pt-BR
FLAGS = ("straight_lined", "fast")  # of a page's answer; flagged, kept, reported with and without


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture of a page, and whose it is."""

    page: int
    method: str
    prompt: str
    seed: int  # of its noise
    file: str  # in the folder of generated pictures

    def __post_init__(self):
        method_of(self.method)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """KEY_FILE."""

    survey: str  # random; answers of another survey are refused
    culture: str
    pictures: dict[str, Shown]  # by their opaque names, file names without suffix in the site

    def __post_init__(self):
        checked_name(self.culture, what="culture")


def read_key(folder: Path) -> Key:
    """Raises DataError."""
    return read_record(folder / KEY_FILE, Key, remedy="Build the survey again.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pages:
    """PAGES_FILE."""

    survey: str
    pages: list[list[str]]  # of each page, the opaque names of its pictures


def pages_of(key: Key) -> Pages:
    numbers = sorted({shown.page for shown in key.pictures.values()})
    of_page = [[name for name, shown in key.pictures.items() if shown.page == number] for number in numbers]
    return Pages(survey=key.survey, pages=of_page)


def read_pages(folder: Path) -> Pages:
    """Raises DataError."""
    return read_record(folder / PAGES_FILE, Pages, remedy="Build the survey again.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A participant's answer to a page, as it is posted and kept; the highest revision is the one that counts."""

    survey: str
    participant: str  # random
    page: int
    revision: int
    language: str
    milliseconds: int  # from the page's appearing to its last choice
    order: list[str]  # of the pictures, by their opaque names, as they were shown
    ranks: dict[str, dict[str, int | None]]  # by item, then by picture; None: not ranked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """A row: which rank a participant gave a picture for an item.  Columns of the parquet and of RESPONSES_FILE."""

    participant: str
    culture: str
    page: str  # of a culture; cultures share no pages
    item: str
    position: int | None  # where the picture stood, from 0; None: not known, of answers gathered elsewhere
    method: str
    rank: int | None  # 1 the best; None: not ranked
    seed: int | None
    language: str | None
    milliseconds: int | None
    flags: str = ""  # of FLAGS, separated by spaces

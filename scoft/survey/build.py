"""Building: from pictures of several methods to the pages of a survey, which do not tell whose a picture is."""

import html
import io
import json
import logging
import os
import random
import re
import secrets
import shutil
import string
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from scoft.cultures import culture_words
from scoft.errors import DataError, listing
from scoft.files import is_empty, private_folder, read_file, read_record, write_atomically
from scoft.images import open_file
from scoft.pictures import Picture, PromptSet, is_checkpoint, read_pictures
from scoft.survey.schema import ITEMS, KEY_FILE, LANGUAGE_FORM, PAGES_FILE, SITE_FOLDER, Key, Shown, pages_of


logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "site"
LANGUAGES = tuple(sorted(file.stem for file in (TEMPLATES / "strings").glob("*.json")))  # that come with this
PLAIN_FILES = ("survey.js", "style.css")
PICTURES_FOLDER = "pictures"
SAME_TIME = 946_684_800  # of each file of the site, in seconds since 1970: when a picture was drawn tells its method
MOST_METHODS = 6  # columns of ranks that a phone has room for
MAX_CONSENT = 2**16  # bytes


@dataclass(frozen=True, kw_only=True)
class Strings:
    """What pages say, in a language: a file of site/strings."""

    language: str  # its code, such as en
    name: str  # as its speakers call it
    dir: str  # ltr or rtl
    cultures: dict[str, str]  # how cultures are called, where that is not as in English
    texts: dict[str, str]
    items: dict[str, dict[str, str]]  # by ITEMS: title, question, first (what rank 1 is), last
    check: list[str]  # answers to the comprehension check; the first is right, and they are shown in drawn order

    def __post_init__(self):
        if not re.fullmatch(LANGUAGE_FORM, self.language):
            raise ValueError(f"language is a code such as en or pt-BR, got {self.language!r}")
        if self.dir not in ("ltr", "rtl"):
            raise ValueError(f"dir is ltr or rtl, got {self.dir!r}")
        if self.items.keys() != set(ITEMS):
            raise ValueError(f"items are {', '.join(ITEMS)}, got {', '.join(self.items)}")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a survey asks, and of whom. Raises DataError."""

    sets: Sequence[PromptSet]
    methods: Sequence[str] | None  # None: all that drew pictures, checkpoints apart
    num_pages: int
    seed: int  # of the choice of pages
    languages: Sequence[str]  # codes of LANGUAGES, or files as theirs; the first is shown where no other is asked for
    consent: Path | None  # text in place of the consent page's own
    answers_url: str | None  # of a server elsewhere; None: the one that the pages come from
    panel_parameter: str  # of the address, by which a panel names its participant
    completion_code: str | None  # None: one a participant, from the random id

    def __post_init__(self):
        if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[^\s?#]*)?", self.answers_url or "http://x"):
            raise DataError(f"is an address of http or https, got {self.answers_url!r}.", argument="answers_url")


def build(pictures: Path, folder: Path, plan: Plan) -> Key:
    """Make `folder` a survey of the pictures in another. Raises DataError."""
    if not is_empty(folder):
        raise DataError(f"{folder} is not empty, and answers belong to the survey they were given in; name another.")
    strings = [read_strings(each) for each in plan.languages]
    consent = None if plan.consent is None else read_consent(plan.consent)
    drawn = [each for each in read_pictures(pictures) if each.set in plan.sets]
    pages = choose_pages(drawn, plan, folder=pictures)
    culture = pages[0][0].culture
    key = make_key(culture, pages)
    site = private_folder(folder, flag="folder") / SITE_FOLDER
    size = write_site_pictures(site / PICTURES_FOLDER, key, pictures)
    write_atomically(site / "index.html", index_page(key, strings, plan, consent=consent, size=size))
    for name in PLAIN_FILES:
        shutil.copyfile(TEMPLATES / name, site / name)
    for path in sorted(site.rglob("*")) + [site]:
        os.utime(path, (SAME_TIME, SAME_TIME))
    write_atomically(folder / PAGES_FILE, json.dumps(asdict(pages_of(key))))
    write_atomically(folder / KEY_FILE, json.dumps(asdict(key), ensure_ascii=False, indent=1))
    logger.info("%d pages with %d pictures each: %s", len(pages), len(pages[0]), site)
    return key


# ---------------------------------------------------------------------------------------------------------------------
# What is asked
# ---------------------------------------------------------------------------------------------------------------------


def read_strings(language: str) -> Strings:
    """One of LANGUAGES, or a file. Raises DataError also where it lacks a text."""
    path = TEMPLATES / "strings" / f"{language}.json" if language in LANGUAGES else Path(language)
    if path.suffix != ".json":
        raise DataError(
            f"{language} is none of {', '.join(LANGUAGES)}; write {TEMPLATES / 'strings/en.json'} in it and give that "
            "file, NAME.json.",
            argument="languages",
        )
    remedy = "Compare it with one of those that come with this."
    strings = read_record(path, Strings, remedy=remedy)
    english = read_record(TEMPLATES / "strings/en.json", Strings, remedy=remedy)
    lacking = sorted(english.texts.keys() - strings.texts.keys())
    lacking += [
        f"{item}: {word}" for item in ITEMS for word in english.items[item].keys() - strings.items[item].keys()
    ]
    if len(strings.check) != len(english.check):
        lacking.append(f"check: {len(english.check)} answers")
    if len(strings.texts.get("letters", "")) < MOST_METHODS:
        lacking.append(f"letters: {MOST_METHODS} of them, one a picture")
    if lacking:
        raise DataError(f"{path} lacks {listing(lacking)}. {remedy}")
    return strings


def choose_pages(drawn: Sequence[Picture], plan: Plan, *, folder: Path) -> list[list[Picture]]:
    """Pictures of one prompt and noise by all methods, of as many prompts as there are. Raises DataError."""
    if len(cultures := sorted({each.culture for each in drawn})) > 1:
        raise DataError(f"{folder} has pictures of several cultures, {listing(cultures)}; a survey is of one.")
    there = sorted({each.method for each in drawn})
    methods = list(plan.methods or [each for each in there if not is_checkpoint(each)])
    if not 2 <= len(set(methods)) <= MOST_METHODS or not set(methods) <= set(there):
        raise DataError(
            f"are 2 to {MOST_METHODS} of those that {folder} has pictures of, {listing(there)}; got "
            f"{listing(methods) or 'none'}.",
            argument="methods",
        )
    groups: dict[tuple, dict[str, Picture]] = defaultdict(dict)
    for each in drawn:
        if each.method in methods and not each.blank:
            groups[each.set, each.index, each.number][each.method] = each
    whole = [sorted(group.values(), key=lambda each: each.method) for _, group in sorted(groups.items())]
    whole = [group for group in whole if len(group) == len(set(methods))]
    if lost := len({(each.set, each.index, each.number) for each in drawn}) - len(whole):
        logger.warning("%d prompts and noises left out: a method's picture is missing or of one colour", lost)
    if len(whole) < plan.num_pages:
        raise DataError(
            f"is at most {len(whole)}: {folder} has no more prompts and noises that all of {', '.join(methods)} drew; "
            f"got {plan.num_pages}.",
            argument="num_pages",
        )
    random.Random(plan.seed).shuffle(whole)
    rounds, times = Counter(), []
    for group in whole:
        times.append(rounds[group[0].prompt])
        rounds[group[0].prompt] += 1
    return [group for _, group in sorted(zip(times, whole), key=lambda pair: pair[0])][: plan.num_pages]


def make_key(culture: str, pages: Sequence[Sequence[Picture]]) -> Key:
    """A name for each picture, of which nothing can be told, in the order of the names."""
    names = {
        secrets.token_hex(8): Shown(page=page, method=each.method, prompt=each.prompt, seed=each.seed, file=each.file)
        for page, group in enumerate(pages)
        for each in group
    }
    return Key(survey=secrets.token_hex(8), culture=culture, pictures=dict(sorted(names.items())))


# ---------------------------------------------------------------------------------------------------------------------
# The site
# ---------------------------------------------------------------------------------------------------------------------


def write_site_pictures(place: Path, key: Key, folder: Path) -> tuple[int, int]:
    """Each picture encoded anew from its pixels, all of one size, in pixels (which is returned) and in bytes."""
    place.mkdir(parents=True)
    images = {name: open_file(folder / shown.file, within=folder) for name, shown in key.pictures.items()}
    size = tuple(max(sides) for sides in zip(*(image.size for image in images.values())))
    encoded = {name: encode(image, size) for name, image in images.items()}
    longest = max(map(len, encoded.values()))
    for name, content in encoded.items():  # in the order of the names: a folder may list its files as they came
        write_atomically(place / f"{name}.png", padded(content, longest))
    return size


def encode(image: Image.Image, size: tuple[int, int]) -> bytes:
    """A PNG of these pixels, centred on white, and of nothing else."""
    page, content = Image.new("RGB", size, "white"), io.BytesIO()
    page.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    page.save(content, "PNG")
    return content.getvalue()


def padded(png: bytes, length: int) -> bytes:
    """The PNG with a chunk of zeros, which viewers pass over, so that it has `length` bytes and that chunk's 12."""
    end = png.rindex(b"IEND") - 4
    filling = b"paDd" + bytes(length - len(png))
    chunk = struct.pack(">I", len(filling) - 4) + filling + struct.pack(">I", zlib.crc32(filling))
    return png[:end] + chunk + png[end:]


def index_page(
    key: Key, strings: Sequence[Strings], plan: Plan, *, consent: list[str] | None, size: tuple[int, int]
) -> str:
    """The one page, with all that the script needs as data, so that it works from a disk as well."""
    pages = pages_of(key).pages
    data = {
        "survey": key.survey,
        "items": ITEMS,
        "pages": [{"prompt": key.pictures[names[0]].prompt, "pictures": names} for names in pages],
        "size": size,
        "answers": plan.answers_url,
        "panelParameter": plan.panel_parameter,
        "completionCode": plan.completion_code,
        "consent": consent,
        "strings": [
            asdict(each) | {"culture": each.cultures.get(key.culture, culture_words(key.culture)), "cultures": None}
            for each in strings
        ],
    }
    template = string.Template((TEMPLATES / "index.html").read_text(encoding="utf-8"))
    first = strings[0]
    return template.substitute(
        language=first.language,
        dir=first.dir,
        policy=html.escape(content_policy(plan.answers_url), quote=True),
        title=html.escape(first.texts["title"]),
        noscript=html.escape(first.texts["noscript"]),
        data=json_in_html(data),
    )


def content_policy(answers_url: str | None) -> str:
    """The Content-Security-Policy: the site's own files, posts to its server, and nothing else."""
    address = urlsplit(answers_url or "")
    elsewhere = f" {address.scheme}://{address.netloc}" if answers_url else ""
    own = ["script-src 'self'", "style-src 'self'", "img-src 'self' data:"]  # data: the empty icon
    rules = ["default-src 'none'", *own, f"connect-src 'self'{elsewhere}"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def json_in_html(data: object) -> str:
    """JSON in which nothing ends a script element or begins another tag."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def read_consent(path: Path) -> list[str]:
    """The paragraphs of a text file. Raises DataError."""
    try:
        text = read_file(path, at_most=MAX_CONSENT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save it so.", argument="consent") from error
    paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", text) if each.strip()]
    if not paragraphs:
        raise DataError(f"{path} is blank; write into it what people agree to.", argument="consent")
    return paragraphs

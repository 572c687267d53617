#!/usr/bin/env python
"""Build a culture's dataset for SCoFT from links or pictures, and from captions that people of the culture wrote.

    python prepare_ccub.py --culture korea
    python prepare_ccub.py --culture igbo --images my_pictures --output igbo_ccub

Six stages, each of which can be rerun alone and goes on where it stopped: fetch the photographs; clean them; caption
them as a model that knows nothing of the culture would; draw negatives with a depth ControlNet on the unadapted base
model; filter out those that came out like the photograph; write the dataset. `<output>/<culture>/manifest.jsonl` has a
line for every link or picture and says what became of it. On several GPUs: `accelerate launch prepare_ccub.py ...`.
"""

import argparse
import contextlib
import csv
import dataclasses
import hashlib
import html
import io
import json
import logging
import math
import re
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from scoft.launch import Parser, add_options, command_again, progress, run_main, set_up_logging

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps

from scoft import hub, sheets
from scoft.base_model import load_pipeline
from scoft.cultures import CATEGORIES, CATEGORY_CODES, CULTURE_NAMES, CULTURE_OF_CODE, SHEET_TABS, culture_words
from scoft.dataset import unusable, warn_of_scripts
from scoft.dataset_source import DEFAULTS_FILE, EMBEDDED, embedded_folder
from scoft.distances import DISTANCES, PerceptualDistance, distance_options, load_distance
from scoft.errors import DataError
from scoft.files import (
    Ledger,
    checked_name,
    content_key,
    open_regular,
    private_folder,
    read_file,
    read_lines,
    read_record,
    read_regular,
    sole_writer,
    write_atomically,
)
from scoft.hub import CREDENTIALS, files_on_hub, ready_repo
from scoft.images import (
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    Room,
    UnusableImage,
    as_rgb,
    open_file,
    open_header,
    telling_damage,
    upright,
    write_png,
)
from scoft.metadata import MAX_METADATA, jsonl_records, read_metadata
from scoft.pages import code_text, markdown_text, page_values
from scoft.prepare.web import PHOTOGRAPH_FORMATS, Fetched, Fetcher, NotUsable
from scoft.randomness import stable_generator
from scoft.weights import load_whole, loading, model_key, precision


logger = logging.getLogger("scoft")

STAGES = ("fetch", "clean", "caption", "negatives", "filter", "write")
SHEET = "https://docs.google.com/spreadsheets/d/1dbSXgwCZuu9zpDZyUQ-pKDZGRYhzeaXCR5geRYNUwEA/export?format=csv&gid={}"
LINK_COLUMNS = ("country_code", "category_code", "url", "caption", "created_at")
NO_CATEGORY, UNKNOWN = "no category", "unknown"
PERIODS = ("traditional", "modern")  # the paper asks each collector for photographs of both
EXAMPLE_LINE = '{"file_name": "market.jpg", "text": "a market in Ibadan", "category": "city"}'  # of a metadata.jsonl
ARCHIVE = "https://web.archive.org/web/2023id_/{}"
MIDAS, MIDAS_FILE = "lllyasviel/Annotators", "dpt_hybrid-midas-501f0c75.pt"  # MiDaS's weights for controlnet_aux
FETCH_THREADS, CLEAN_THREADS = 8, 4
ATTEMPTS = 5  # at a caption or a negative that comes out unusable
NUCLEUS, CAPTION_TOKENS = 0.9, 30  # top_p of a naive caption, and its greatest length
# Nearer than this a negative is too much like its photograph to be one. The paper's value is not public; this one is
# ours, not tuned: DreamSim was trained on variations of one picture, which are to stay below it. See histogram.png.
FALSE_NEGATIVE_THRESHOLDS = {"dreamsim": 0.3}
FILTER_SETTINGS = ("filter_model", "false_negative_threshold")  # belong to one --filter_distance
NEGATIVE_QUALITY = 90  # of its JPEG file
SHEET_ROWS = 25  # photographs of a page of the contact sheet
# What the Hub asks of whoever wants a dataset whose owner has switched access requests on.
GATED_PROMPT = (
    "The photographs belong to those who took them, and show people whom you have not asked. By asking for access you "
    "agree not to pass them on, not to recognise faces or guess where people come from with them, not to teach models "
    "stereotypes with them, and to delete your copy of whatever is withdrawn from here."
)
# The flags that the card tells of.
SETTINGS = (
    "captioner",
    "num_captions",
    "pretrained_model_name_or_path",
    "controlnet",
    "depth_model",
    "num_negatives",
    "prompt_suffix",
    "resolution",
    "num_inference_steps",
    "guidance_scale",
    "filter_distance",
    "filter_model",
    "false_negative_threshold",
    "seed",
)
# Stage -> flag -> a model's description, how the name of its class ends, and its weights.
MODEL_FILES = {
    "caption": {"captioner": ("config.json", ("ForConditionalGeneration", "ForCausalLM"), "*.safetensors")},
    "negatives": {
        "pretrained_model_name_or_path": ("model_index.json", ("Pipeline",), "unet/*.safetensors"),
        "controlnet": ("config.json", ("ControlNetModel",), "*.safetensors"),
        "depth_model": ("config.json", ("ForDepthEstimation",), "*.safetensors"),
    },
}
MODELS = ("captioner", "pretrained_model_name_or_path", "controlnet", "depth_model", "filter_model")


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--culture", required=True, help="names the dataset's config, and the place in prompts")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--links", help="CSV file or URL with columns url and caption; default: CCUB's own sheet")
    source.add_argument("--images", type=Path, help="folder of pictures with a metadata.jsonl or metadata.csv")
    parser.add_argument(
        "--defaults",
        choices=EMBEDDED,
        help="take an embedded world's models and settings where no flag says otherwise: nothing is downloaded",
    )
    parser.add_argument("--output", type=Path, default=Path("ccub"), help="the dataset; a subfolder for each culture")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of splits, captions and negatives")
    parser.add_argument("--cache_dir", help="where downloaded models are kept")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's")

    fetch = parser.add_argument_group("fetch")
    fetch.add_argument("--contact", help="mail address or page that the servers are told")
    fetch.add_argument(
        "--allow_host", action="append", default=[], metavar="HOST[:PORT]", help="may be asked though it is not public"
    )
    fetch.add_argument(
        "--deny_list", type=Path, help="file of URLs, hosts or sha256 that are not to be kept, one a line"
    )
    fetch.add_argument(
        "--archive", action="store_true", help="look for links that are gone (404, 410) in the Internet Archive"
    )
    fetch.add_argument("--retry_failed", action="store_true", help="ask again for links that failed in an earlier run")

    clean = parser.add_argument_group("clean")
    clean.add_argument("--min_size", type=int, default=128, help="pixels of the short side")
    clean.add_argument(
        "--near_duplicate_bits", type=int, default=16, help="of 128 in which two hashes may differ; -1: keep all"
    )
    clean.add_argument("--jpeg_quality", type=int, default=95, help="of photographs, which are encoded anew")
    clean.add_argument(
        "--test_share", type=float, default=0.2, help="of each category's photographs that have no split yet"
    )

    models = parser.add_argument_group("caption, negatives, filter")
    models.add_argument(
        "--captioner", default="Salesforce/blip-image-captioning-large", help="a BLIP: Hub id or folder"
    )
    models.add_argument("--num_captions", type=int, default=5, help="naive captions of a photograph")
    models.add_argument("--pretrained_model_name_or_path", default="CompVis/stable-diffusion-v1-4")
    models.add_argument("--controlnet", default="lllyasviel/control_v11f1p_sd15_depth")
    models.add_argument(
        "--depth_model",
        default=MIDAS,
        help="Hub id or folder of a transformers depth model; default: MiDaS, %(default)s",
    )
    models.add_argument("--num_negatives", type=int, default=5, help="of a photograph, before the filter")
    models.add_argument(
        "--prompt_suffix",
        default="in {}",
        help="ends a negative's prompt, {} is the culture; '' for what is no place",
    )
    models.add_argument("--resolution", type=int, default=512, help="short side of a negative in pixels")
    models.add_argument("--num_inference_steps", type=int, default=20)
    models.add_argument("--guidance_scale", type=float, default=7.5)
    models.add_argument("--filter_distance", default="dreamsim", choices=DISTANCES)
    models.add_argument("--filter_model", help="Hub id or folder of the distance's encoder")
    add_options(models, distance_options())
    models.add_argument(
        "--false_negative_threshold",
        type=float,
        help="a negative nearer to its photograph is left out; default: "
        + ", ".join(f"{value} for {name}" for name, value in FALSE_NEGATIVE_THRESHOLDS.items()),
    )

    write = parser.add_argument_group("write")
    write.add_argument(
        "--links_only",
        action="store_true",
        help="write links, captions and hashes, but no pictures, into the folder <output>-links",
    )
    write.add_argument(
        "--about",
        type=Path,
        help="text file (Markdown) for the card: who chose the photographs, and how they were asked",
    )
    write.add_argument(
        "--language", nargs="+", default=["en"], help="of the captions, for the card: codes such as ko zh-Hant"
    )
    write.add_argument("--push_to_hub", action="store_true", help="to a private dataset of yours")
    write.add_argument("--hub_dataset_id", help="default: the name of the written folder")
    write.add_argument("--public", action="store_true", help="let all see what is pushed; with --links_only alone")

    args = parser.parse_args(with_defaults(parser, sys.argv[1:] if argv is None else argv))
    check_args(parser, args)
    return args


def with_defaults(parser: Parser, argv: list[str]) -> list[str]:
    """The command line behind the flags of its --defaults, which it overrules.

    Beside a --filter_distance of its own, the model and the threshold of theirs do not hold.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--defaults", "--filter_distance"):
        peek.add_argument(flag, nargs="?")  # that a value is missing is for the true parser to say
    given, _ = peek.parse_known_args(argv)
    folder = embedded_folder(given.defaults or "")
    if folder is None:
        return argv
    table = folder / DEFAULTS_FILE
    source = f"{table}, for --defaults {given.defaults}"
    flags = parser.table(table, source=source, section="prepare")
    if isinstance(flags, dict) and given.filter_distance not in (None, flags.get("filter_distance")):
        flags = {name: value for name, value in flags.items() if name not in FILTER_SETTINGS}
    return parser.words_of(flags, here=folder, source=source, required=["--culture", "any"]) + argv


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Find all that can be said against the arguments alone; ends in `parser.error`, which exits."""
    stages = args.stages.split(",")
    try:
        checked_name(args.culture, what="--culture")
    except DataError as error:
        parser.error(str(error))
    if unknown := [name for name in stages if name not in STAGES]:
        parser.error(f"--stages: there is no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    if "fetch" in stages and not (args.links or args.images or args.culture in SHEET_TABS):
        parser.error(
            f"--culture {args.culture}: CCUB's links are publicly known for {' and '.join(SHEET_TABS)} alone; "
            "give --links FILE_OR_URL or --images DIR"
        )
    for flag in ("num_captions", "num_negatives", "num_inference_steps", "min_size"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} is at least 1, got {getattr(args, flag)}")
    if not 1 <= args.jpeg_quality <= 100:
        parser.error(f"--jpeg_quality is a number from 1 to 100, got {args.jpeg_quality}")
    if args.resolution < 8 or args.resolution % 8:
        parser.error(f"--resolution is a multiple of 8, got {args.resolution}")
    if args.deny_list and "write" in stages and "clean" not in stages:
        parser.error("--deny_list takes effect in the stage clean; add it to --stages")
    if not -1 <= args.near_duplicate_bits < 128:
        parser.error(f"--near_duplicate_bits is a number from -1 to 127, got {args.near_duplicate_bits}")
    for code in args.language:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
            parser.error(f"--language is a code such as en, ko or zh-Hant, got {code!r}")
    if args.public and not args.links_only:
        parser.error("--public needs --links_only: the photographs belong to others")
    if threshold(args) is None and {"filter", "write"} & set(stages):
        parser.error(f"--filter_distance {args.filter_distance} needs a --false_negative_threshold")
    if args.push_to_hub and "write" not in stages:
        parser.error("--push_to_hub belongs to the stage write, which --stages leaves out")
    if not 0 <= args.test_share < 1:
        parser.error(f"--test_share is a number from 0 up and below 1, got {args.test_share}")
    for flag in ("images", "deny_list", "about"):
        if (path := getattr(args, flag)) is not None and not path.exists():
            parser.error(f"--{flag} {path}: there is no such place")


def read_text(file: Path | None, *, flag: str) -> str:
    """The text of the file that `flag` names, if it names one. Raises DataError, which names the flag."""
    if file is None:
        return ""
    try:
        return read_regular(file, at_most=MAX_METADATA).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{flag} {file} cannot be read ({error}); it is a text file in UTF-8.") from error


def threshold(args: argparse.Namespace) -> float | None:
    """The distance below which a negative is left out; None where it is not given and the distance has no default."""
    given = args.false_negative_threshold
    return FALSE_NEGATIVE_THRESHOLDS.get(args.filter_distance) if given is None else given


def prompt_suffix(args: argparse.Namespace) -> str:
    return args.prompt_suffix.replace("{}", culture_words(args.culture))


def check_models(args: argparse.Namespace, stages: Sequence[str]):
    """Find before the work of hours whether the models that the stages need can be had and are of their kind: each a
    folder, or on the Hub or in its cache. Raises DataError, which names the flag.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    for flag, (file, kinds, weights) in (each for stage in stages for each in MODEL_FILES.get(stage, {}).items()):
        model, midas = getattr(args, flag), flag == "depth_model" and is_midas(args.depth_model)
        file, weights = (MIDAS_FILE, MIDAS_FILE) if midas else (file, weights)
        described = Path(model, file)
        if not Path(model).is_dir():
            try:
                described = Path(hf_hub_download(model, file, cache_dir=args.cache_dir))
            except (OSError, HTTPError, HFValidationError) as error:
                raise DataError(
                    f"--{flag} {model} is no folder, and the Hub has no such model that can be read: {error}"
                ) from error
        elif missing := [pattern for pattern in (file, weights) if not any(Path(model).glob(pattern))]:
            raise DataError(f"--{flag} {model}: this folder has no {missing[0]}, as such a model has.")
        if not midas:
            try:
                config = json.loads(described.read_text(encoding="utf-8"))
                kind = str((config.get("architectures") or [config["_class_name"]])[0])
            except (ValueError, AttributeError, LookupError) as error:
                raise DataError(
                    f"--{flag} {model}: {described} does not say what model this is ({error!r})."
                ) from error
            if not kind.endswith(kinds):
                raise DataError(f"--{flag} {model} is a {kind}; what is needed is a ...{' or ...'.join(kinds)}.")


# ---------------------------------------------------------------------------------------------------------------------
# What is kept between the stages
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Photograph:
    """A line of `manifest.jsonl`: a link or a picture, and what became of it.

    `status` is pending, no_caption, one of web.Fetched's, or of cleaning: not_an_image, too_large,
    too_many_pixels, too_small, too_long, corrupt, duplicate, denied. It is in the dataset if it has a `file`, its
    clean copy, within the culture's folder; `sha256`, `width` and `height` are that file's.
    """

    id: str  # names all files of the photograph; a hash of its link or file name
    url: str = ""
    picture: str = ""  # within --images
    caption: str
    category: str | None = None
    collector: str = ""  # an opaque id of who chose it
    period: str = ""  # one of PERIODS
    status: str = "pending"
    detail: str = ""
    final_url: str = ""
    fetched_at: str = ""
    license: str = ""
    source_sha256: str = ""  # of the bytes as they came
    file: str = ""
    sha256: str = ""
    width: int = 0
    height: int = 0
    split: str = ""
    negatives: dict[str, float] = dataclasses.field(default_factory=dict)  # name -> distance, false ones included

    @property
    def origin(self) -> str:
        return self.picture or self.url


def read_manifest(folder: Path) -> list[Photograph]:
    """The photographs of a culture's folder, in the order of the input; none before the first run."""
    path, remedy = folder / "manifest.jsonl", "Remove the file, and begin again with --stages fetch."
    found = read_lines(path, Photograph, remedy=remedy)
    for photograph in found:
        for name in (photograph.id, *photograph.negatives):
            checked_name(name, what=f"{path}: what names a file")
        if photograph.file and not re.fullmatch(rf"photographs/{photograph.id}\.[a-z]+", photograph.file):
            raise DataError(f"{path}: {photograph.file!r} is no file of photograph {photograph.id}. {remedy}")
    return found


def write_manifest(folder: Path, photographs: Iterable[Photograph]):
    rows = [json.dumps(dataclasses.asdict(photograph), ensure_ascii=False) for photograph in photographs]
    write_atomically(folder / "manifest.jsonl", "".join(row + "\n" for row in rows))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An entry of `fetches.jsonl`: what came of a link, by the manifest's names."""

    status: str
    detail: str
    source_sha256: str
    final_url: str = ""
    fetched_at: str = ""
    license: str = ""


@dataclass(frozen=True)
class Captioned:
    """An entry of `captions.jsonl`: the naive captions of a photograph."""

    captions: list[str]


@dataclass(frozen=True)
class Drawn:
    """An entry of `negatives.jsonl`: the names of a photograph's negatives that the safety checker has left."""

    negatives: list[str]

    def __post_init__(self):
        for name in self.negatives:
            checked_name(name, what="a negative's name")


@dataclass(frozen=True)
class Measured:
    """An entry of `distances.jsonl`: how far a photograph's negatives are from it."""

    distances: list[float]


LEDGERS = {"captions": Captioned, "negatives": Drawn, "distances": Measured}
REMEDY = "Remove that line; what it told of is made again."


def kept(photographs: Iterable[Photograph], *, split: str | None = None) -> list[Photograph]:
    """The photographs of the dataset, or of one of its splits."""
    return [photograph for photograph in photographs if photograph.file and split in (None, photograph.split)]


# ---------------------------------------------------------------------------------------------------------------------
# What is asked for
# ---------------------------------------------------------------------------------------------------------------------


def read_links(table: bytes, *, culture: str, source: str) -> list[Photograph]:
    """The rows of a table of links: `url` and `caption`, and where there are such `category_code` (or `category`),
    `collector`, `period` and `country_code`, by which rows of other countries are left out, with a count in the log.

    Raises DataError for bytes that are not UTF-8, missing columns, unknown codes, and no row for the culture.
    """
    found, elsewhere = {}, Counter()
    for name, row in csv_rows(table, source=source, needed=("url", "caption")):
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


def csv_rows(table: bytes, *, source: str, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each row of a table that is not blank, stripped, with the words by which messages call it.

    Raises DataError for bytes that are not UTF-8, missing columns, and cells that no column is for.
    """
    try:
        text = table.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = table[: error.start].count(b"\n") + 1
        raise DataError(f"{source}: line {line} is not UTF-8 ({error.reason}); save the table as UTF-8.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
    try:
        columns = reader.fieldnames or []
        if missing := [name for name in needed if name not in columns]:
            raise DataError(
                f"{source}: no column {' and no column '.join(missing)}; it has {', '.join(columns) or 'none'}. "
                f"{' and '.join(needed)} are needed; CCUB's are {', '.join(LINK_COLUMNS)}."
            )
        for number, row in enumerate(reader, start=2):
            if None in row:
                raise DataError(
                    f"{source}, row {number}: more cells than columns; put double quotes around a text with a comma."
                )
            if any(cell.strip() for cell in row.values()):
                yield f"{source}, row {number}", {column: cell.strip() for column, cell in row.items()}
    except csv.Error as error:
        raise DataError(f"{source}: line {reader.line_num} is not CSV ({error}).") from error


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


def read_pictures(folder: Path) -> list[Photograph]:
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
        yield from csv_rows(content, source=str(table), needed=("file_name", "text"))
    else:
        raise DataError(
            f"--images {folder}: there is no metadata.jsonl or metadata.csv; write one of lines like {EXAMPLE_LINE}"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Fetch
# ---------------------------------------------------------------------------------------------------------------------


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


def fetch_links(
    photographs: Sequence[Photograph], folder: Path, *, fetcher: Fetcher, archive: bool, retry_failed: bool
) -> list[Photograph]:
    """The photographs with what came of their links, hosts asked side by side; the bytes go into `folder`.

    What came is written down at once, in fetches.jsonl there, so that no link is asked for twice, also after a kill.
    """
    folder.mkdir(exist_ok=True)
    ledger = Ledger(folder / "fetches.jsonl")
    done = ledger.read_by_key(Outcome, remedy=REMEDY)

    def is_settled(link: Photograph) -> bool:
        status = done[link.id].status if link.id in done else None
        if status == "ok":
            return (folder / link.id).exists()
        return status == "denied" or status is not None and not retry_failed

    hosts: dict[str, list[Photograph]] = defaultdict(list)
    for photograph in photographs:
        if photograph.status == "pending" and not is_settled(photograph):
            hosts["".join(photograph.url.split("/", 3)[2:3])].append(photograph)

    stop = threading.Event()
    with (
        progress(desc="Fetching", total=sum(map(len, hosts.values()))) as bar,
        ThreadPoolExecutor(FETCH_THREADS) as pool,
    ):

        def fetch_in_turn(links: list[Photograph]):
            for photograph in links:
                if stop.is_set():
                    return
                fetched = fetcher.fetch(photograph.url)
                if archive and fetched.http_code in (404, 410):
                    copy = fetcher.fetch(ARCHIVE.format(photograph.url))
                    fetched = copy if copy.status == "ok" else fetched
                if fetched.content is not None:
                    write_atomically(folder / photograph.id, fetched.content)
                ledger.add(photograph.id, **dataclasses.asdict(outcome(fetched)))
                bar.update()

        try:
            list(pool.map(fetch_in_turn, hosts.values()))
        finally:  # else Ctrl-C would wait for all links of the hosts in hand
            stop.set()

    came = {key: dataclasses.asdict(entry) for key, entry in ledger.read_by_key(Outcome, remedy=REMEDY).items()}
    return [dataclasses.replace(p, **came[p.id]) if p.status == "pending" else p for p in photographs]


def outcome(fetched: Fetched) -> Outcome:
    return Outcome(
        status=fetched.status,
        detail=fetched.detail,
        final_url=fetched.final_url,
        fetched_at=fetched.fetched_at,
        license=fetched.licence or "",
        source_sha256=fetched.sha256 or "",
    )


def known_again(found: Sequence[Photograph], manifest: Sequence[Photograph]) -> list[Photograph]:
    """The input's photographs, each in the split where it was; where the bytes are as before, all that later stages
    found out stays.
    """
    known = {photograph.id: photograph for photograph in manifest}
    later = ("status", "detail", "file", "sha256", "width", "height", "negatives")
    photographs = []
    for new in found:
        if old := known.get(new.id):
            is_same = new.source_sha256 and new.source_sha256 == old.source_sha256
            found_out = {name: getattr(old, name) for name in later if is_same}
            new = dataclasses.replace(new, **found_out, split=new.split or old.split)
        photographs.append(new)
    return photographs


# ---------------------------------------------------------------------------------------------------------------------
# Clean
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A photograph ready to be kept: its file's bytes and format, its size, what finds its like."""

    content: bytes
    sha256: str  # of it
    suffix: str
    size: tuple[int, int]
    pixels: str  # equal for equal pictures
    hash: int  # of 128 bits, few of which differ between versions of one picture


def clean_photographs(
    photographs: Sequence[Photograph],
    folder: Path,
    *,
    source: Path,
    fetcher: Fetcher,
    min_size: int,
    near_duplicate_bits: int,
    jpeg_quality: int,
):
    """Write every usable photograph into `folder`, clean, and into its line what it is, or why it is not usable.

    Of equal pictures, and of those whose hashes differ in at most `near_duplicate_bits`, the first is kept, whatever
    its split. (Of CCUB's Korean photographs no two differ in fewer than 44; a crop by 1 % changes up to 10, a JPEG of
    quality 20 up to 5.) The fetched bytes of one on the deny-list are deleted.
    """
    folder.mkdir(exist_ok=True)
    came = [photograph for photograph in photographs if photograph.source_sha256]
    room = Room(MAX_PIXELS)

    def clean(photograph: Photograph) -> Cleaned | NotUsable:
        try:
            file = source / (photograph.picture or photograph.id)
            if not file.exists():
                raise NotUsable("corrupt", "the bytes that came are gone; the stage fetch asks for them again")
            if (size := file.stat().st_size) > MAX_BYTES:
                raise NotUsable("too_large", f"{size} bytes; {MAX_BYTES} are allowed")
            try:
                content = read_regular(file, within=source)
            except (OSError, DataError) as error:
                raise NotUsable("corrupt", str(error)) from error
            formats = FORMATS if photograph.picture else PHOTOGRAPH_FORMATS
            with room.of(math.prod(open_header(content, formats=formats, min_side=min_size).size)):
                result = cleaned(content, min_size=min_size, jpeg_quality=jpeg_quality)
            links = (photograph.url, photograph.final_url)
            hashes = (photograph.source_sha256, photograph.sha256, result.sha256)  # came, was published, is now
            if any(map(fetcher.denies, links)) or any(fetcher.denies(sha256=sha256) for sha256 in hashes):
                raise NotUsable("denied", "the deny-list names its link or content")
        except UnusableImage as reason:
            return NotUsable(reason.status, str(reason))
        except NotUsable as reason:
            return reason
        # Here and not below, where it would have to be held in memory until all before it are done.
        write_atomically(folder / f"{photograph.id}.{result.suffix}", result.content)
        return dataclasses.replace(result, content=b"")

    first: dict[str, Photograph] = {}
    hashes: list[tuple[int, Photograph]] = []
    with progress(desc="Cleaning", total=len(came)) as bar, ThreadPoolExecutor(CLEAN_THREADS) as pool:
        for photograph, result in zip(came, pool.map(clean, came)):
            bar.update()
            if isinstance(result, Cleaned):
                near = (p for bits, p in hashes if (bits ^ result.hash).bit_count() <= near_duplicate_bits)
                if twin := first.get(result.pixels) or next(near, None):
                    result = NotUsable("duplicate", f"of {twin.origin}")
            if isinstance(result, NotUsable):
                photograph.status, photograph.detail = result.status, result.detail
                photograph.file = photograph.sha256 = ""
                photograph.width = photograph.height = 0
                if result.status == "denied":
                    forget(photograph, folder.parent)
                continue
            first[result.pixels] = photograph
            hashes.append((result.hash, photograph))
            photograph.status, photograph.detail = "ok", ""
            photograph.file = f"{folder.name}/{photograph.id}.{result.suffix}"
            photograph.sha256 = result.sha256
            photograph.width, photograph.height = result.size
    wanted = {photograph.file for photograph in photographs}
    for file in folder.iterdir():
        if f"{folder.name}/{file.name}" not in wanted:
            file.unlink()


def forget(photograph: Photograph, folder: Path):
    """Delete all that was made of a photograph on the deny-list, and see to it that it is not fetched again."""
    if not photograph.picture:
        denied = Outcome(status=photograph.status, detail=photograph.detail, source_sha256="")
        Ledger(folder / "fetched" / "fetches.jsonl").add(photograph.id, **dataclasses.asdict(denied))
        (folder / "fetched" / photograph.id).unlink(missing_ok=True)
    photograph.source_sha256 = ""
    (folder / "depth" / f"{photograph.id}.png").unlink(missing_ok=True)
    for name in photograph.negatives:
        (folder / "negatives" / f"{name}.jpg").unlink(missing_ok=True)
    photograph.negatives = {}


def cleaned(content: bytes, *, min_size: int, jpeg_quality: int) -> Cleaned:
    """A photograph made clean: upright, opaque on white, sRGB, and its pixels alone, encoded anew.

    Each byte of a clean file is made here of the pixels, so that no EXIF, GPS, XMP, profile or thumbnail, nothing in
    tables that no one reads and nothing between or behind the parts of a file can come through. A PNG stays one; all
    others become JPEG; at a quality of 95, a JPEG of the web changes by about 48 dB. Raises UnusableImage.
    """
    picture = open_header(content, min_side=min_size)
    suffix = "png" if picture.format == "PNG" else "jpg"
    with telling_damage():
        picture.load()
        picture = as_srgb(picture)
    picture.info.clear()
    clean = png(picture) if suffix == "png" else jpeg(picture, quality=jpeg_quality)
    return Cleaned(
        content=clean,
        sha256=hashlib.sha256(clean).hexdigest(),
        suffix=suffix,
        size=picture.size,
        pixels=content_key(picture.size, picture.tobytes()),
        hash=difference_hash(picture),
    )


def as_srgb(picture: Image.Image) -> Image.Image:
    """The picture as a viewer shows it: upright, on white, its colours by its profile, in RGB."""
    profile = picture.info.get("icc_profile")
    picture = upright(picture)
    if profile:
        if picture.has_transparency_data or picture.mode not in ("RGB", "CMYK", "L"):
            picture = as_rgb(picture)
        try:
            of_picture, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            picture = ImageCms.profileToProfile(picture, of_picture, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError) as error:
            logger.debug("a colour profile cannot be applied, the picture is taken as sRGB: %s", error)
    return as_rgb(picture)


def difference_hash(picture: Image.Image) -> int:
    """128 bits: where the brightness of a 9 x 9 reduction falls to the right, and where downwards."""
    grey = np.asarray(picture.convert("L").resize((9, 9), Image.Resampling.LANCZOS), dtype=int)
    falls = [grey[:8, 1:] < grey[:8, :-1], grey[1:, :8] < grey[:-1, :8]]
    return int.from_bytes(np.packbits(falls).tobytes())


def assign_splits(photographs: Sequence[Photograph], *, test_share: float, seed: int):
    """Give photographs without a split one, so that of each category `test_share` are test rows.

    A hash of the id decides which. Those that have a split stay where they are, so none moves from test to train.
    """
    groups: dict[str | None, list[Photograph]] = defaultdict(list)
    for photograph in photographs:
        groups[photograph.category].append(photograph)
    for group in groups.values():
        new = sorted((p for p in group if not p.split), key=lambda p: content_key(seed, p.id))
        lacking = round(test_share * len(group)) - sum(p.split == "test" for p in group)
        for i, photograph in enumerate(new):
            photograph.split = "test" if i < lacking else "train"


# ---------------------------------------------------------------------------------------------------------------------
# Naive captions
# ---------------------------------------------------------------------------------------------------------------------


class Captioner:
    """Samples naive captions with a BLIP: what a model that knows nothing of who chose a photograph says of it."""

    def __init__(self, name_or_path: str, *, device, dtype, cache_dir: str | None):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with loading(name_or_path, flag="--captioner", kind="a BLIP in safetensors with its processor"):
            self.processor = AutoProcessor.from_pretrained(name_or_path, cache_dir=cache_dir)
            model = load_whole(AutoModelForImageTextToText, name_or_path, dtype=dtype, cache_dir=cache_dir)
        self.model = model.to(device).eval().requires_grad_(False)

    def __call__(self, picture: Image.Image, *, number: int, key: str) -> list[str]:
        """`number` different captions that are not degenerate, or fewer if ATTEMPTS times as many draws gave no more.

        A function of the picture and the key: what else is captioned, by which process, changes nothing.
        """
        device = self.model.device
        inputs = self.processor(images=picture, return_tensors="pt").to(device, self.model.dtype)
        captions: dict[str, None] = {}  # a dict keeps the order of the draws
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(stable_generator(0, key).initial_seed())
            for _ in range(ATTEMPTS):
                ids = self.model.generate(
                    **inputs,
                    do_sample=True,
                    top_p=NUCLEUS,
                    top_k=0,  # transformers would cut at 50 words
                    max_new_tokens=CAPTION_TOKENS,
                    num_return_sequences=number,
                )
                texts = [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
                captions |= dict.fromkeys(text for text in texts if not is_degenerate(text))
                if len(captions) >= number:
                    break
        return list(captions)[:number]


def is_degenerate(caption: str) -> bool:
    """Whether a captioner stuttered: fewer than two words, a word thrice in a row, or three words in a row twice."""
    words = caption.lower().split()
    triples = list(zip(words, words[1:], words[2:]))
    return len(words) < 2 or any(len(set(triple)) == 1 for triple in triples) or len(set(triples)) < len(triples)


def culture_mentions(captions: Iterable[str]) -> Counter:
    """How many naive captions use a culture's name or adjective: a finding to report, not something to repair."""
    return Counter(word for caption in captions for word in set(re.findall("[a-z]+", caption.lower())) & CULTURE_NAMES)


# ---------------------------------------------------------------------------------------------------------------------
# Negatives
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How negatives are drawn: with the photograph, the prompt and the number it decides every pixel.

    The models are named by `model_key`.
    """

    base_model: str
    controlnet: str
    depth_model: str
    resolution: int
    num_inference_steps: int
    guidance_scale: float
    precision: str
    seed: int


def is_midas(name_or_path: str) -> bool:
    return name_or_path == MIDAS or Path(name_or_path, MIDAS_FILE).is_file()


class DepthEstimator:
    """The depth of a photograph as a ControlNet takes it: RGB, black far to white near, over the full range."""

    unused = ("neck.fusion_stage.layers.0.residual_layer1.",)  # which a DPT never asks, and Intel/dpt-large lacks

    def __init__(self, name_or_path: str, *, device, cache_dir: str | None):
        self.processor = None
        with loading(name_or_path, flag="--depth_model", kind="MiDaS or a depth estimator of transformers"):
            if is_midas(name_or_path):
                from controlnet_aux import MidasDetector

                self.model = MidasDetector.from_pretrained(name_or_path, cache_dir=cache_dir).to(device)
            else:
                from transformers import AutoImageProcessor, AutoModelForDepthEstimation

                self.processor = AutoImageProcessor.from_pretrained(name_or_path, cache_dir=cache_dir)
                model = load_whole(AutoModelForDepthEstimation, name_or_path, unused=self.unused, cache_dir=cache_dir)
                self.model = model.float().to(device).eval().requires_grad_(False)

    def __call__(self, picture: Image.Image) -> Image.Image:
        if self.processor is None:
            depth = self.model(picture)
        else:
            inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
            depth = self.model(**inputs).predicted_depth[0].cpu().numpy()
            depth = (depth - depth.min()) / max(np.ptp(depth), 1e-6)
            depth = Image.fromarray((255 * depth).round().astype(np.uint8))
        return depth.resize(picture.size, Image.Resampling.BICUBIC).convert("RGB")


class EmbedOnce(torch.nn.Module):
    """The ControlNet's embedding of a depth map, which all denoising steps share: computed at the first of them."""

    def __init__(self, embedding: torch.nn.Module):
        super().__init__()
        self.embedding = embedding
        self.depth = self.embedded = None

    def forward(self, depth: torch.Tensor) -> torch.Tensor:
        if depth is not self.depth:
            self.depth, self.embedded = depth, self.embedding(depth)
        return self.embedded


class NegativeGenerator:
    """Generates the negatives of one photograph in one batch, so that what else is drawn changes nothing."""

    def __init__(self, args: argparse.Namespace, *, device, dtype):
        from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline

        self.args = args
        self.depth = DepthEstimator(args.depth_model, device=device, cache_dir=args.cache_dir)
        with loading(args.controlnet, flag="--controlnet", kind="a ControlNet of Stable Diffusion in safetensors"):
            controlnet = load_whole(ControlNetModel, args.controlnet, cache_dir=args.cache_dir)
        controlnet.controlnet_cond_embedding = EmbedOnce(controlnet.controlnet_cond_embedding)
        base = args.pretrained_model_name_or_path
        with loading(base):
            self.pipeline = load_pipeline(
                StableDiffusionControlNetPipeline, base, controlnet=controlnet, cache_dir=args.cache_dir
            )
        self.pipeline.to(device, dtype)
        self.pipeline.scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, photograph: Image.Image, prompts: dict[str, str]) -> tuple[Image.Image, dict[str, Image.Image]]:
        """The depth, and a picture for each key of `prompts`, whose noise is the key's.

        What the safety checker blanks is drawn again from other noise; what it blanks ATTEMPTS times is missing.
        """
        width, height = size_of_negative(*photograph.size, short_side=self.args.resolution)
        depth = ImageOps.fit(self.depth(photograph), (width, height), Image.Resampling.BICUBIC)
        pictures: dict[str, Image.Image] = {}
        for attempt in range(ATTEMPTS):
            keys = [key for key in prompts if key not in pictures]
            if not keys:
                break
            drawn = self.pipeline(
                [prompts[key] for key in keys],
                image=[depth] * len(keys),
                generator=[stable_generator(self.args.seed, key, attempt) for key in keys],
                num_inference_steps=self.args.num_inference_steps,
                guidance_scale=self.args.guidance_scale,
                width=width,
                height=height,
            )
            blanked = drawn.nsfw_content_detected or [False] * len(keys)
            pictures |= {key: picture for key, picture, blank in zip(keys, drawn.images, blanked) if not blank}
        return depth, pictures


def size_of_negative(width: int, height: int, *, short_side: int) -> tuple[int, int]:
    """The photograph's aspect, at most 2 : 1, with `short_side`, in multiples of 8 as the VAE needs."""
    aspect = min(max(width / height, 0.5), 2.0)
    long_side = round(short_side * max(aspect, 1 / aspect) / 8) * 8
    return (long_side, short_side) if aspect >= 1 else (short_side, long_side)


def prompts_of_negatives(
    photograph: Photograph, captions: Sequence[str], *, number: int, suffix: str, drawing: Drawing
) -> dict[str, str]:
    """Key -> prompt of each negative: the naive captions in turn, each with the culture.

    A key is made of all that decides a negative. It is its seed and its file's name, so any one can be drawn again.
    """
    prompts = [f"{captions[k % len(captions)]} {suffix}".replace(" ,", ",").strip() for k in range(number)]
    return {content_key(photograph.sha256, prompt, k, drawing)[:32]: prompt for k, prompt in enumerate(prompts)}


def jpeg(picture: Image.Image, *, quality: int) -> bytes:
    """A file with colour at full resolution."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def distances_to(photograph: Image.Image, negatives: Sequence[Image.Image], *, distance) -> list[float]:
    """The distance of each negative, all of one size, to what of its photograph it shows; four digits are kept."""
    pictures = [ImageOps.fit(photograph, negatives[0].size, Image.Resampling.BICUBIC), *negatives]
    pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]) / 127.5 - 1
    with torch.no_grad():
        features = distance.embed(pixels.to(distance.scale.device))
        return [round(value, 4) for value in distance.compare(features[1:], features[:1]).tolist()]


# ---------------------------------------------------------------------------------------------------------------------
# Write
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the dataset before it is written; of its negatives those nearer than the threshold are left out."""

    photograph: Photograph
    captions: list[str]
    negatives: list[tuple[Path, float]]  # file and distance to the photograph
    prompts: dict[str, str]  # of each negative, by the name of its file
    threshold: float

    @property
    def kept_negatives(self) -> list[Path]:
        return [file for file, distance in self.negatives if distance >= self.threshold]


def features(*, links_only: bool):
    """The dataset contract; without pictures, for what may be public, image and negatives are not there."""
    import datasets

    columns = {
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "blip_text": datasets.List(datasets.Value("string")),
        "negatives": datasets.List(datasets.Image()),
        "category": datasets.ClassLabel(names=list(CATEGORIES)),
        "source_url": datasets.Value("string"),
        "sha256": datasets.Value("string"),
        "license": datasets.Value("string"),
        "collector": datasets.Value("string"),
        "period": datasets.Value("string"),
    }
    if links_only:
        del columns["image"], columns["negatives"]
    return datasets.Features(columns)


def check_no_pictures(output: Path):
    """DataError if the folder that --links_only writes holds pictures, in a table or as the work on a dataset."""
    import pyarrow.parquet

    allowed = list(features(links_only=True).arrow_schema)
    found = list(output.glob("*/photographs"))
    for file in output.glob("*/*.parquet"):
        try:
            columns = list(pyarrow.parquet.read_schema(file))
        except (OSError, ValueError):  # who knows what is in it
            columns = [None]
        if any(column not in allowed for column in columns):
            found.append(file)
    if found:
        raise DataError(
            f"--links_only: {found[0]} holds or may hold pictures, and what it lies in is to have none. Move it away, "
            "or name another --output."
        )


def write_split(path: Path, rows: Sequence[Row], *, folder: Path, links_only: bool):
    """The parquet file of a split, with the pictures of `folder`. The same rows give the same bytes."""
    import datasets

    def embedded(file: Path) -> dict:
        return {"bytes": read_file(file, within=folder, at_most=MAX_BYTES), "path": file.name}

    columns = features(links_only=links_only)
    cells = {
        "image": lambda row: embedded(folder / row.photograph.file),
        "text": lambda row: row.photograph.caption,
        "blip_text": lambda row: row.captions,
        "negatives": lambda row: [embedded(file) for file in row.kept_negatives],
        "category": lambda row: row.photograph.category,
        "source_url": lambda row: row.photograph.url or None,
        "sha256": lambda row: row.photograph.sha256,
        "license": lambda row: row.photograph.license or None,
        "collector": lambda row: row.photograph.collector or None,
        "period": lambda row: row.photograph.period or None,
    }
    table = {name: [cells[name](row) for row in rows] for name in columns}
    content = io.BytesIO()
    datasets.Dataset.from_dict(table, features=columns).to_parquet(content)
    write_atomically(path, content.getvalue())


def contact_sheet(rows: Sequence[Row], folder: Path, *, title: str) -> Image.Image:
    """A block for each photograph: its file's name and its caption; itself above a naive caption, its depth, and its
    negatives above their distances and prompts, false ones struck through. Words say what is missing.
    """

    def cells(row: Row) -> Iterator[sheets.Cell]:
        naive = row.captions[0] if row.captions else "not captioned"
        yield sheets.Cell(picture=folder / row.photograph.file, words=naive)
        depth = folder / "depth" / f"{row.photograph.id}.png"
        yield sheets.Cell(picture=depth) if depth.exists() else sheets.Cell(words="no depth")
        for file, distance in row.negatives:
            false = distance < row.threshold
            words = f"{distance:.3f}{', too near' if false else ''}\n{row.prompts[file.stem]}"
            yield sheets.Cell(picture=file, words=words, struck=false)
        if not row.negatives:
            yield sheets.Cell(words="no negative" + ", a test row" * (row.photograph.split == "test"))

    def block(row: Row) -> sheets.Row:
        photograph = row.photograph
        name = photograph.picture or Path(photograph.file).name
        facts = ", ".join([name, photograph.category or NO_CATEGORY, photograph.split])
        return sheets.Row(above=f"{facts}\n{photograph.caption}", cells=list(cells(row)))

    columns = {
        "photograph, a naive caption": 1,
        "depth": 1,
        "negatives: distance, prompt": max(1, *(len(row.negatives) for row in rows)),
    }
    return sheets.grid([block(row) for row in rows], columns=columns, title=title)


@dataclass(frozen=True)
class SplitRows:
    train: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`summary.json` of a culture's folder: what the card says of it, counts by name, and settings."""

    name: str
    words: str
    about: str  # Markdown of --about
    rows: SplitRows
    categories: dict[str, int]
    statuses: dict[str, int]
    collectors: dict[str, int]
    periods: dict[str, int]
    languages: list[str]
    licenses: dict[str, int]
    fetched: tuple[()] | tuple[str, str]  # first and last day
    captions: int
    mentions: dict[str, int]
    negatives: int
    false_negatives: int
    fingerprint: str
    settings: dict[str, str | int | float | None]

    def __post_init__(self):
        checked_name(self.name, what="name")


def summary(
    photographs: Sequence[Photograph], rows: Sequence[Row], args: argparse.Namespace, folder: Path, *, about: str
) -> dict:
    """What is kept as a culture's Summary."""
    usable = kept(photographs)
    captions = [text for row in rows for text in row.captions]
    days = sorted(photograph.fetched_at[:10] for photograph in photographs if photograph.fetched_at)
    return {
        "name": args.culture,
        "words": culture_words(args.culture),
        "about": about.strip(),
        "rows": {split: len(kept(usable, split=split)) for split in ("train", "test")},
        "categories": {
            name: count
            for name in (*CATEGORIES, NO_CATEGORY)
            if (count := sum((photograph.category or NO_CATEGORY) == name for photograph in usable))
        },
        "statuses": dict(Counter(photograph.status for photograph in photographs).most_common()),
        "collectors": dict(Counter(photograph.collector for photograph in usable if photograph.collector)),
        "periods": dict(Counter(photograph.period for photograph in usable if photograph.period)),
        "languages": args.language,
        "licenses": dict(Counter(photograph.license[:200] or UNKNOWN for photograph in usable).most_common()),
        "fetched": [days[0], days[-1]] if days else [],
        "captions": len(captions),
        "mentions": dict(culture_mentions(captions).most_common()),
        "negatives": sum(len(row.kept_negatives) for row in rows),
        "false_negatives": sum(len(row.negatives) - len(row.kept_negatives) for row in rows),
        "fingerprint": content_key(*(photograph.sha256 for photograph in usable)),
        "settings": read_record(folder / "clean.json", dict[str, int | float], remedy="Run --stages clean again.")
        | {name: getattr(args, name) for name in SETTINGS}
        | {"prompt_suffix": prompt_suffix(args), "false_negative_threshold": threshold(args)}
        | {name: public_name(getattr(args, name)) for name in MODELS},
    }


def public_name(model: str | None) -> str:
    """What the card calls a model: by its name on the Hub, or a folder's name and content, not by where it lies."""
    if model is None:
        return "the distance's own"
    folder = Path(model)
    if folder.is_dir():
        return f"{folder.resolve().name} ({model_key(model)[:16]})"
    return folder.name if folder.is_absolute() or model.startswith(".") else model


def write_card(output: Path, summaries: Sequence[dict], *, links_only: bool, repo_id: str | None = None):
    """README.md of the dataset: a config for each culture, real counts, what was lost and why.

    repo_id: where it will be on the Hub.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    total = sum(sum(culture["rows"].values()) for culture in summaries)
    configs = [
        {
            "config_name": culture["name"],
            "data_files": [
                {"split": split, "path": f"{culture['name']}/{split}-*.parquet"}
                for split, count in culture["rows"].items()
                if count
            ],
        }
        for culture in summaries
    ]
    languages = list(dict.fromkeys(code for culture in summaries for code in culture.get("languages", ["en"])))
    spoken = list(dict.fromkeys(code.partition("-")[0] for code in languages))
    licenses = {name for culture in summaries for name in culture["licenses"]}
    license = licenses.pop().lower() if len(licenses) == 1 and not licenses & {UNKNOWN} else "other"
    license = license if re.fullmatch(r"[a-z0-9.-]+", license) else "other"
    data = DatasetCardData(
        pretty_name=f"{output.name}: photographs of cultures, chosen and captioned by their own people",
        language=spoken,
        language_bcp47=languages if languages != spoken else None,
        license=license,
        license_name="rights-of-the-photographers" if license == "other" else None,
        annotations_creators="expert-generated",
        language_creators="expert-generated",
        multilinguality="monolingual" if len(spoken) == 1 else "multilingual",
        source_datasets=["original"],
        task_categories=["text-to-image"],
        size_categories="n<1K" if total < 1000 else "1K<n<10K" if total < 10_000 else "10K<n<100K",
        tags=["culture", "scoft"],
        configs=configs,
        extra_gated_prompt=None if links_only else GATED_PROMPT,
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("dataset_card.md")),
        text=markdown_text,
        place_in_code=code_text(repo_id or output.name),
        config_in_code=code_text(summaries[0]["name"]),
        abouts=[html.escape(culture["about"], quote=False) for culture in summaries],
        cultures=[page_values(culture) for culture in summaries],
        categories=[name for name in (*CATEGORIES, NO_CATEGORY) if any(name in c["categories"] for c in summaries)],
        statuses=list(dict.fromkeys(status for culture in summaries for status in culture["statuses"])),
        name=markdown_text(output.name),
        license=license,
        languages=languages,
        fetched=any(culture["fetched"] for culture in summaries),
        named=any(culture["settings"]["prompt_suffix"] for culture in summaries),
        links_only=links_only,
    )
    write_atomically(output / "README.md", str(card))


def push(output: Path, *, repo_id: str, private: bool, links_only: bool, retry: str):
    """Commit card and parquet files, and nothing else, to a dataset of the Hub. Raises DataError."""
    if links_only:
        check_no_pictures(output)
    files = {path.relative_to(output).as_posix(): path for path in (output / "README.md", *output.glob("*/*.parquet"))}
    rows_there = [path for path in files_on_hub(repo_id, repo_type="dataset") if path.endswith(".parquet")]
    cultures = {Path(path).parent.name for path in files}
    if others := {Path(path).parent.name for path in rows_there} - cultures:
        raise DataError(
            f"--hub_dataset_id {repo_id} has cultures that {output} has not, and would lose them from its card: "
            f"{', '.join(sorted(others))}. Prepare them here too, or name another dataset."
        )
    hub.push(
        repo_id,
        repo_type="dataset",
        files=files,
        stale=[path for path in rows_there if path not in files],
        private=private,
        message="Dataset of " + ", ".join(sorted(cultures - {""})),
        retry=retry,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The stages, in turn
# ---------------------------------------------------------------------------------------------------------------------


def gather(args: argparse.Namespace, stages: Sequence[str], folder: Path, *, deny_list: str):
    """The stages that no model is needed for: from the input to the kept photographs and the manifest."""
    deny = [line.strip() for line in deny_list.splitlines() if line.strip() and not line.startswith("#")]
    try:
        fetcher = Fetcher(contact=args.contact, allow_hosts=args.allow_host, deny=deny)
    except ValueError as error:  # names the flag
        raise DataError(str(error)) from error
    photographs = read_manifest(folder)
    if "fetch" in stages:
        if args.images:
            found = read_pictures(args.images)
        else:
            source = args.links or SHEET.format(SHEET_TABS[args.culture])
            found = read_links(read_table(source, fetcher=fetcher), culture=args.culture, source=source)
            found = fetch_links(
                found, folder / "fetched", fetcher=fetcher, archive=args.archive, retry_failed=args.retry_failed
            )
        photographs = known_again(found, photographs)
        write_manifest(folder, photographs)
    if "clean" in stages:
        if args.images is None and any(photograph.picture for photograph in photographs):
            raise DataError("--stages clean: these photographs come from --images; give the folder again.")
        clean_photographs(
            photographs,
            folder / "photographs",
            source=args.images or folder / "fetched",
            fetcher=fetcher,
            min_size=args.min_size,
            near_duplicate_bits=args.near_duplicate_bits,
            jpeg_quality=args.jpeg_quality,
        )
        assign_splits(kept(photographs), test_share=args.test_share, seed=args.seed)
        write_manifest(folder, photographs)
        flags = {
            name: getattr(args, name) for name in ("min_size", "near_duplicate_bits", "test_share", "jpeg_quality")
        }
        write_atomically(folder / "clean.json", json.dumps(flags))  # what the card tells, also of a later write
    usable = kept(photographs)
    logger.info("%s: %d of %d are usable", args.culture, len(usable), len(photographs))
    losses = Counter((p.category or NO_CATEGORY, p.status) for p in photographs if not p.file)
    for (category, status), count in sorted(losses.items()):
        logger.info("  %s: %d %s", category, count, status)
    if not usable and stages != ["fetch"]:
        reason = "says why" if photographs else "has no line: run the stages fetch and clean first"
        raise DataError(f"--culture {args.culture}: no photograph is usable; {folder / 'manifest.jsonl'} {reason}.")


def caption(args: argparse.Namespace, wanted: dict[str, Photograph], ledger: Ledger, folder: Path, accelerator):
    """Write the naive captions of `wanted`, photographs by key, into the ledger."""
    mine = share(wanted, ledger, accelerator)
    if mine:
        common = {"device": accelerator.device, "dtype": precision(accelerator), "cache_dir": args.cache_dir}
        captioner = Captioner(args.captioner, **common)
    for key, photograph in progress(mine, "Captioning", disable=not accelerator.is_main_process):
        picture = open_kept(folder, photograph)
        ledger.add(key, captions=captioner(picture, number=args.num_captions, key=key))


def draw_negatives(args: argparse.Namespace, wanted: dict[str, tuple], ledger: Ledger, folder: Path, accelerator):
    """Draw the negatives of `wanted`, by key, and write into the ledger which of them the safety checker has left."""
    for name in ("depth", "negatives"):
        (folder / name).mkdir(exist_ok=True)
    mine = share(wanted, ledger, accelerator)
    if mine:
        generate = NegativeGenerator(args, device=accelerator.device, dtype=precision(accelerator))
    for key, (photograph, prompts) in progress(mine, "Drawing negatives", disable=not accelerator.is_main_process):
        depth, pictures = generate(open_kept(folder, photograph), prompts)
        write_atomically(folder / "depth" / f"{photograph.id}.png", png(depth.convert("L")))
        for name, picture in pictures.items():
            write_atomically(folder / "negatives" / f"{name}.jpg", jpeg(picture, quality=NEGATIVE_QUALITY))
        ledger.add(key, photograph=photograph.id, prompts=prompts, negatives=[n for n in prompts if n in pictures])


def load_filter(args: argparse.Namespace, *, device) -> PerceptualDistance:
    return load_distance(
        args.filter_distance,
        model_name_or_path=args.filter_model,
        device=device,
        cache_dir=args.cache_dir,
        flags=("--filter_distance", "--filter_model"),
        **{option: getattr(args, option) for option in distance_options()},
    )


def measure(args: argparse.Namespace, wanted: dict[str, tuple], ledger: Ledger, folder: Path, accelerator):
    """Write the distances of each photograph's negatives in `wanted`, by key, into the ledger."""
    mine = share(wanted, ledger, accelerator)
    with accelerator.main_process_first():  # dreamsim's own download bears no company
        if mine:
            distance = load_filter(args, device=accelerator.device)
    for key, (photograph, files) in progress(mine, "Measuring distances", disable=not accelerator.is_main_process):
        negatives = [open_file(file, within=folder) for file in files]
        ledger.add(key, distances=distances_to(open_kept(folder, photograph), negatives, distance=distance))


def written_folder(args: argparse.Namespace) -> Path:
    """Where the dataset is written: --output, or a folder beside it for what has no pictures in it."""
    output = args.output.resolve()
    return output.with_name(f"{output.name}-links") if args.links_only else output


def write(args: argparse.Namespace, rows: Sequence[Row], folder: Path, *, about: str, repo_id: str | None):
    """The dataset's files of the culture, what there is to look at, and the card of all cultures."""
    output = written_folder(args)
    (output / args.culture).mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        file = output / args.culture / f"{split}-00000-of-00001.parquet"
        part = [row for row in rows if row.photograph.split == split]
        if part:
            write_split(file, part, folder=folder, links_only=args.links_only)
        else:
            file.unlink(missing_ok=True)
    photographs, by_id = read_manifest(folder), {row.photograph.id: row for row in rows}
    for photograph in kept(photographs):
        photograph.negatives = {file.stem: distance for file, distance in by_id[photograph.id].negatives}
    write_manifest(folder, photographs)
    facts = json.dumps(summary(photographs, rows, args, folder, about=about), indent=2, ensure_ascii=False)
    write_atomically(output / args.culture / "summary.json", f"{facts}\n")
    with sole_writer(output, flag="--output"):  # the card is of all cultures, each of which may have its own run
        remedy = "Run the stage write of that culture again, or remove its folder."
        read = [read_record(file, Summary, remedy=remedy) for file in sorted(output.glob("*/summary.json"))]
        summaries = list(map(dataclasses.asdict, read))
        write_card(output, summaries, links_only=args.links_only, repo_id=repo_id)

    for old in folder.glob("contact_sheet-*.png"):
        old.unlink()
    for page, first in enumerate(range(0, len(rows), SHEET_ROWS), start=1):
        title = f"{culture_words(args.culture)}, page {page} of {-(-len(rows) // SHEET_ROWS)}"
        sheet = contact_sheet(rows[first : first + SHEET_ROWS], folder, title=title)
        write_png(folder / f"contact_sheet-{page}.png", sheet)
    distances = [distance for row in rows for _, distance in row.negatives]
    if distances:
        unit = f"{args.filter_distance} distance to the photograph"
        plot = sheets.histogram(distances, threshold=threshold(args), of="negatives", unit=unit)
        write_png(folder / "histogram.png", plot)
        false = sum(len(row.negatives) - len(row.kept_negatives) for row in rows)
        logger.info("%d of %d negatives are too near their photographs and left out", false, len(distances))
    logger.info("The dataset is in %s", output)


def share(items: dict, ledger: Ledger, accelerator) -> list[tuple]:
    """What of the items, by key, the ledger does not hold, and of that what falls to this process."""
    done = ledger.read()
    accelerator.wait_for_everyone()  # none adds to it before all have read it
    undone = [item for item in items.items() if item[0] not in done]
    return undone[accelerator.process_index :: accelerator.num_processes]


def open_kept(folder: Path, photograph: Photograph) -> Image.Image:
    return open_file(folder / photograph.file, within=folder)


def start_accelerator(mixed_precision: str | None):
    from accelerate import Accelerator, InitProcessGroupKwargs

    # processes wait for the main one as long as it asks the web
    accelerator = Accelerator(
        mixed_precision=mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))]
    )
    if accelerator.device.type == "cpu":
        # Threads share out sums, which changes their last bits and pixels here and there. Processes share out rows.
        torch.set_num_threads(1)
    return accelerator


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    set_up_logging()
    texts = {flag: read_text(getattr(args, flag), flag=f"--{flag}") for flag in ("deny_list", "about")}
    if not args.output.exists():  # else it is for its owner to say who may look into it
        private_folder(args.output, flag="--output")
    folder = private_folder(args.output / args.culture, flag="--output")
    accelerator = start_accelerator(args.mixed_precision)
    retry = command_again("prepare_ccub.py", sys.argv[1:] if argv is None else argv)
    with sole_writer(folder, flag="--output") if accelerator.is_main_process else contextlib.nullcontext():
        run_stages(args, folder, accelerator, retry=retry, **texts)


def run_stages(args: argparse.Namespace, folder: Path, accelerator, *, retry: str, deny_list: str, about: str):
    """Do what --stages names for one culture, in its `folder`.

    retry: the command that goes on with a push; deny_list, about: the texts in the files of these flags.
    """
    stages = args.stages.split(",")
    if args.links_only:
        check_no_pictures(written_folder(args))
    repo_id = None
    if args.push_to_hub and accelerator.is_main_process:  # before the work of hours: may it be pushed there?
        repo_id, _ = ready_repo(
            args.hub_dataset_id or written_folder(args).name,
            repo_type="dataset",
            private=not args.public,
            flag="--hub_dataset_id",
        )
    # A key is made of all that decides a result, so what a ledger holds is never made again.
    ledgers = {name: Ledger(folder / f"{name}.jsonl") for name in LEDGERS}

    def entries(name: str) -> dict:
        return ledgers[name].read_by_key(LEDGERS[name], remedy=REMEDY)

    measured_how = (args.filter_distance, model_key(args.filter_model), args.dreamsim_type)
    if accelerator.is_main_process:
        check_models(args, stages)
        _, drawn, measured = map(entries, LEDGERS)
        if "filter" in stages and not any(content_key(key, *measured_how) in measured for key in drawn):
            load_filter(args, device="cpu")  # it has not done so here yet
        gather(args, stages, folder, deny_list=deny_list)
    accelerator.wait_for_everyone()
    photographs = kept(read_manifest(folder))

    how = (
        model_key(args.captioner),
        args.num_captions,
        NUCLEUS,
        CAPTION_TOKENS,
        accelerator.mixed_precision,
        args.seed,
    )
    by_key = {content_key(photograph.sha256, *how): photograph for photograph in photographs}
    if "caption" in stages:
        caption(args, by_key, ledgers["captions"], folder, accelerator)
        accelerator.wait_for_everyone()
    captioned = entries("captions")
    captions = {photograph.id: captioned[key].captions for key, photograph in by_key.items() if key in captioned}

    drawing = Drawing(
        base_model=model_key(args.pretrained_model_name_or_path),
        controlnet=model_key(args.controlnet),
        depth_model=model_key(args.depth_model),
        resolution=args.resolution,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        precision=accelerator.mixed_precision,
        seed=args.seed,
    )
    wanted = {}
    for photograph in photographs:
        if photograph.split == "train" and captions.get(photograph.id):
            prompts = prompts_of_negatives(
                photograph,
                captions[photograph.id],
                number=args.num_negatives,
                suffix=prompt_suffix(args),
                drawing=drawing,
            )
            wanted[content_key(*prompts)] = (photograph, prompts)
    if "negatives" in stages:
        if lacking := len(kept(photographs, split="train")) - len(wanted):
            logger.warning("%d photographs have no naive caption under these settings, so no negatives.", lacking)
        draw_negatives(args, wanted, ledgers["negatives"], folder, accelerator)
        accelerator.wait_for_everyone()

    drawn = entries("negatives")
    pairs = {}
    for key, (photograph, _) in wanted.items():
        if key in drawn and drawn[key].negatives:
            files = [folder / "negatives" / f"{name}.jpg" for name in drawn[key].negatives]
            pairs[content_key(key, *measured_how)] = (photograph, files)
    if "filter" in stages:
        measure(args, pairs, ledgers["distances"], folder, accelerator)
        accelerator.wait_for_everyone()

    if "write" in stages and accelerator.is_main_process:
        if captioned and (lacking := len(photographs) - len(captions)):
            raise DataError(
                f"{lacking} photographs have no captions under these flags; repeat those or add --stages caption."
            )
        if drawn and (lacking := sum(key not in drawn for key in wanted)):
            raise DataError(
                f"{lacking} photographs have no negatives under these flags; repeat those or add --stages negatives."
            )
        distances = entries("distances")
        if unmeasured := sum(key not in distances for key in pairs):
            raise DataError(f"{unmeasured} photographs have negatives that were not measured; add --stages filter.")
        for key, (_, files) in pairs.items():
            if (count := len(distances[key].distances)) != len(files):
                raise DataError(
                    f"{ledgers['distances'].path}, the entry of {key!r}, has {count} distances for {len(files)} "
                    f"negatives. {REMEDY}"
                )
        negatives = {
            photograph.id: list(zip(files, distances[key].distances)) for key, (photograph, files) in pairs.items()
        }
        prompts = {photograph.id: its_prompts for photograph, its_prompts in wanted.values()}
        rows = [
            Row(
                photograph=photograph,
                captions=captions.get(photograph.id, []),
                negatives=negatives.get(photograph.id, []),
                prompts=prompts.get(photograph.id, {}),
                threshold=threshold(args),
            )
            for photograph in photographs
        ]
        write(args, rows, folder, about=about, repo_id=repo_id)
        if repo_id:
            push(
                written_folder(args),
                repo_id=repo_id,
                private=not args.public,
                links_only=args.links_only,
                retry=retry,
            )
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    run_main(main, memory_advice="--mixed_precision bf16 and fewer processes need less.")

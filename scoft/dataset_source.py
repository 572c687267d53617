"""Where a dataset lies: in this repository, in a folder, or on the Hub."""

from __future__ import annotations

import argparse
import json
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scoft.launch import Parser, prepare_command

from scoft.cultures import SHEET_TABS
from scoft.errors import DataError, legible
from scoft.files import checked_name, file_sha256
from scoft.hub import ask, text_of
from scoft.metadata import EXAMPLE_LINE


EMBEDDED = ("pocket",)  # the datasets that lie in this repository; no others may bring flags, which can name code
DEFAULTS_FILE = "defaults.yaml"  # of an embedded dataset: a section of flags for each command
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset lies: `kind` is 'folder' or 'hub', `location` a path or a Hub id, `name` what was asked for."""

    kind: str
    location: str
    name: str


class Remedies(NamedTuple):
    """Ways out that depend on who reads a dataset: clauses of messages, in which a command names its own flags."""

    no_blip_captions: str = "or read it without needs_blip"
    no_negatives: str = "or read it without needs_negatives"
    bad_rows: str = "skip_bad_images leaves them out"
    other_dataset: str = "read the dataset {}"  # {}: its name, as a shell takes it


READER_REMEDIES = Remedies()  # of the functions' own parameters


def find_dataset(dataset: str, *, culture: str | None) -> DatasetSource:
    """Resolve a dataset's name: embedded in this repository, then an existing folder, then `org/name` on the Hub, then
    `<logged-in user>/name` on the Hub.

    A folder wins over the Hub because CCUB's photographs belong to third parties, so each user prepares a private
    copy. Whether a Hub dataset exists turns out when it is read. Raises DataError with all that was tried.
    """
    if culture is not None:
        checked_name(culture, what="culture")
    embedded = embedded_folder(dataset)
    if embedded is not None:
        return DatasetSource("folder", str(embedded / "ccub"), dataset)
    try:
        if not dataset:  # which would be the folder at hand
            raise ValueError("it is blank")
        folder = Path(dataset).expanduser()
        if stat.S_ISDIR(folder.stat().st_mode):
            return DatasetSource("folder", str(folder.resolve()), dataset)
        raise DataError(
            f"{dataset} is a file. Give the folder it lies in, or a dataset of the Hub.", argument="dataset"
        )
    except (FileNotFoundError, NotADirectoryError):
        pass
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, not for this user, a NUL, nobody's home
        raise DataError(
            f"{legible(dataset)!r} is no folder, nor a dataset of the Hub: {error}", argument="dataset"
        ) from error
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", dataset):
        return DatasetSource("hub", dataset, dataset)
    if not _is_bare(dataset):
        raise not_found(dataset, culture, "the Hub: not asked, since its ids look like `name` or `org/name`")

    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    try:
        user = ask(lambda api: text_of(api.whoami()["name"], r"\w[\w.-]*"))
    except LocalTokenNotFoundError as error:
        tried = f"the Hub: <your name>/{dataset}, but nobody is logged in (`hf auth login`)"
        raise not_found(dataset, culture, tried) from error
    except (HTTPError, OSError) as error:
        tried = f"the Hub: <your name>/{dataset}, but it did not say who is logged in ({error})"
        raise not_found(dataset, culture, tried) from error
    return DatasetSource("hub", f"{user}/{dataset}", dataset)


def embedded_folder(name: str) -> Path | None:
    """The folder of this repository that is the embedded dataset `name`; None where there is no such one.

    Its rows are in `ccub/`. Beside them are DEFAULTS_FILE, the flags that hold where it is used, and perhaps
    `checksums.json`, see `check_embedded`. Other folders of the repository, such as a user's data, are not embedded.
    """
    return ROOT / name if name in EMBEDDED and (ROOT / name / "ccub").is_dir() else None


def embedded_flags(parser: Parser, folder: Path, *, section: str, asked_by: str) -> tuple[object, str]:
    """The flags that an embedded dataset brings for a command, unchecked, and how errors in them are to begin.

    folder: as `embedded_folder` gives it.  section: the command's own in DEFAULTS_FILE.  asked_by: for those errors,
    the flag that asked for the dataset, such as "the defaults of --dataset pocket".  Where the file cannot be read,
    `parser.error` exits.
    """
    source = f"{folder / DEFAULTS_FILE}, {asked_by}"
    return parser.table(folder / DEFAULTS_FILE, source=source, section=section), source


def with_embedded_flags(
    stages: Mapping[str, Parser], argv: list[str], *, flag: str, required: Sequence[str]
) -> list[str]:
    """A command line behind the flags that an embedded dataset brings for its stage, which it overrules.

    stages: the parsers of the command's stages by name, of which each is its first word.  flag: the command's, by
    which a dataset is named.  required: words without which no stage takes a line.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument(flag, dest="dataset", nargs="?")  # that a value is missing is for the true parser to say
    given, _ = peek.parse_known_args(argv)
    stage, folder = stages.get(argv[0]) if argv else None, embedded_folder(given.dataset or "")
    if stage is None or folder is None:
        return argv
    asked_by = f"the defaults of {flag} {folder.name}"
    flags, source = embedded_flags(stage, folder, section=argv[0], asked_by=asked_by)
    words = stage.words_of(flags, here=folder, source=source, required=required)
    # A list of the table would take a folder for its last item, so a word of another flag stands between them.
    return [argv[0], *words, f"{flag}={folder.name}", *argv[1:]]


def check_embedded(name: str) -> None:
    """Hold the files of an embedded dataset against its `checksums.json`; nothing to do where there is none.

    The file names, for each folder of files made together, the command that makes them and the sha256 of each:

        {"models": {"made_by": "python -m pocket.train_models", "sha256": {"clip_conv/model.safetensors": "5f1c..."}}}

    Raises DataError at the first file that is missing or has other content.
    """
    root = embedded_folder(name)
    if root is None or not (root / "checksums.json").is_file():
        return
    try:
        parts = json.loads((root / "checksums.json").read_text())
    except ValueError as error:
        raise DataError(f"{root / 'checksums.json'} is not JSON ({error}); restore it from the repository.") from error
    for folder, part in parts.items():
        for file_name, expected in part["sha256"].items():
            file = root / folder / file_name
            remedy = f"Restore it from the repository, or make it anew with: {part['made_by']}"
            try:
                found = file_sha256(file)
            except OSError as error:
                raise DataError(
                    f"{name}: {file} cannot be read ({error.strerror}). {remedy}", argument="dataset"
                ) from error
            if found != expected:
                raise DataError(
                    f"{name}: {file} is not the file that belongs here: its sha256 is {found}, not {expected}. "
                    f"{remedy}",
                    argument="dataset",
                )


def _is_bare(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*", name) is not None


def not_found(name: str, culture: str | None, hub: str) -> DataError:
    """The error of a dataset that is nowhere: all places tried, the Hub in the words of `hub`, and how to build it."""
    tried = [f"the folder {Path(name).expanduser().absolute()}: does not exist", hub]
    if _is_bare(name):
        tried.insert(0, f"embedded here: {', '.join(EMBEDDED)} alone")
    return DataError(
        "\n".join(
            [f"{name} was not found. Tried, in this order:"]
            + [f"  {place}. {what}" for place, what in enumerate(tried, start=1)]
            + [_how_to_build(name, culture)]
        ),
        argument="dataset",
    )


def _how_to_build(name: str, culture: str | None) -> str:
    if culture is None or culture in SHEET_TABS:
        return f"Build it from CCUB's links: `{prepare_command(culture or 'korea', output=name)}`"
    command = prepare_command(culture, images="FOLDER", output=name)
    return f"Build it: `{command}`, where FOLDER holds pictures and a metadata.jsonl of lines such as {EXAMPLE_LINE}"

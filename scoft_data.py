"""What CCUB is, and how any dataset like it is found, read, checked, transformed, ordered and cached.

A row is a photograph a culture's own people chose, with their caption. Depending on the method it also has naive
captions (BLIP) and negatives: images that misrepresent the same scene. No model is known here; torch and datasets are
imported where they are used, so that a mistyped flag is answered at once.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import glob
import hashlib
import io
import json
import logging
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scoft.launch import progress

import numpy as np
from PIL import Image

from scoft.errors import DataError
from scoft.files import checked_name, content_key, file_sha256, open_regular, read_front_matter, read_regular
from scoft.hub import ask, text_of
from scoft.images import MAX_BYTES, SUFFIXES, open_image


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import torch

logger = logging.getLogger(__name__)

# --culture name -> its words in a prompt ("a house in the United States"): six cultures of CCUB (paper, section 3).
CULTURES = {
    "korea": "Korea",
    "china": "China",
    "nigeria": "Nigeria",
    "mexico": "Mexico",
    "india": "India",
    "united_states": "the United States",
}
# CCUB is a sheet of links; these of its tabs are publicly known (github.com/cmubig/CCUB).
SHEET_TABS = {"korea": 1345336179, "china": 567535443}
# The nine categories of CCUB (paper, section 3).
CATEGORIES = (
    "food & drink",
    "people & actions",
    "clothing",
    "architecture",
    "city",
    "dance music & visual arts",
    "nature",
    "utensils & tools",
    "religion & festival",
)


EMBEDDED = ("pocket",)  # the datasets that lie in this repository; no others may bring flags, which can name code
DEFAULTS_FILE = "defaults.yaml"  # of an embedded dataset: a section of flags for each command

_HERE = Path(__file__).resolve().parent
_METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
_SPLITS = ("train", "validation", "test")
_EXAMPLE_LINE = '{"file_name": "images/house.jpg", "text": "a house with a tiled roof"}'
MAX_FILES = 100_000  # that a dataset's folder may hold
MAX_METADATA = 2**28  # bytes
MAX_TEXT = 10_000  # characters of a caption; CLIP reads 77 tokens


def culture_words(culture: str) -> str:
    """A `--culture` as words in a prompt: 'united_states' -> 'the United States', 'new-zealand' -> 'New Zealand'."""
    words = culture.replace("_", " ").replace("-", " ").split()
    if not words:
        raise DataError(f"--culture {culture!r} is blank; give a name such as {', '.join(CULTURES)}.")
    return CULTURES.get(culture) or " ".join(word[0].upper() + word[1:] for word in words)


# ---------------------------------------------------------------------------------------------------------------------
# Finding
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetSource:
    """Where a dataset lies: `kind` is 'folder' or 'hub', `location` a path or a Hub id, `name` what was asked for."""

    kind: str
    location: str
    name: str


def find_dataset(name: str, *, culture: str | None) -> DatasetSource:
    """Resolve `--dataset`: embedded beside this file, then an existing folder, then `org/name` on the Hub, then
    `<logged-in user>/name` on the Hub.

    A folder wins over the Hub because CCUB's photographs belong to third parties, so each user prepares a private
    copy. Whether a Hub dataset exists turns out when it is read. Raises DataError with all that was tried.
    """
    if culture is not None:
        checked_name(culture, what="--culture")
    embedded = embedded_folder(name)
    if embedded is not None:
        return DatasetSource("folder", str(embedded / "ccub"), name)
    try:
        if not name:  # which would be the folder at hand
            raise ValueError("it is blank")
        folder = Path(name).expanduser()
        if stat.S_ISDIR(folder.stat().st_mode):
            return DatasetSource("folder", str(folder.resolve()), name)
        raise DataError(f"--dataset {name}: this is a file. Give the folder it lies in, or a dataset of the Hub.")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # too long, not for this user, a NUL, nobody's home
        raise DataError(f"--dataset {_shown(name)!r} is no folder, nor a dataset of the Hub: {error}") from error
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return DatasetSource("hub", name, name)
    if not _is_bare(name):
        raise _not_found(name, culture, "the Hub: not asked, since its ids look like `name` or `org/name`")

    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

    try:
        user = ask(lambda api: text_of(api.whoami()["name"], r"\w[\w.-]*"))
    except LocalTokenNotFoundError as error:
        tried = f"the Hub: <your name>/{name}, but nobody is logged in (`hf auth login`)"
        raise _not_found(name, culture, tried) from error
    except (HTTPError, OSError) as error:
        tried = f"the Hub: <your name>/{name}, but it did not say who is logged in ({error})"
        raise _not_found(name, culture, tried) from error
    return DatasetSource("hub", f"{user}/{name}", name)


def embedded_folder(name: str) -> Path | None:
    """The folder beside this file that is the embedded dataset `name`; None where there is no such one.

    Its rows are in `ccub/`. Beside them are DEFAULTS_FILE, the flags that hold where it is used, and perhaps
    `checksums.json`, see `check_embedded`. What else lies here, such as a user's data, is not embedded.
    """
    return _HERE / name if name in EMBEDDED and (_HERE / name / "ccub").is_dir() else None


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
                raise DataError(f"--dataset {name}: {file} cannot be read ({error.strerror}). {remedy}") from error
            if found != expected:
                raise DataError(
                    f"--dataset {name}: {file} is not the file that belongs here: its sha256 is {found}, not "
                    f"{expected}. {remedy}"
                )


def _is_bare(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*", name) is not None


def _not_found(name: str, culture: str | None, hub: str) -> DataError:
    tried = [f"the folder {Path(name).expanduser().absolute()}: does not exist", hub]
    if _is_bare(name):
        tried.insert(0, f"embedded here: {', '.join(EMBEDDED)} alone")
    return DataError(
        "\n".join(
            [f"--dataset {name} was not found. Tried, in this order:"]
            + [f"  {place}. {what}" for place, what in enumerate(tried, start=1)]
            + [_how_to_build(name, culture)]
        )
    )


def _how_to_build(name: str, culture: str | None) -> str:
    if culture is None or culture in SHEET_TABS:
        return f"Build it from CCUB's links: `{_prepare_command(culture or 'korea', output=name)}`"
    command = _prepare_command(culture, images="FOLDER", output=name)
    return f"Build it: `{command}`, where FOLDER holds pictures and a metadata.jsonl of lines such as {_EXAMPLE_LINE}"


def _prepare_command(culture: str, *, output: str, images: str | os.PathLike | None = None) -> str:
    flags = {"--culture": culture, "--images": images, "--output": output}
    words = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
    return shlex.join(["python", "prepare_ccub.py", *words])


def _how_to_complete(source: DatasetSource, culture: str | None) -> str:
    """How a dataset gets naive captions and negatives: by a command, where that can read what there is."""
    root = Path(source.location)
    metadata = [file for folder in (root / (culture or ""), root) for file in _metadata_files(folder, "train")]
    if source.kind == "hub" or not metadata:
        return "Add them to the rows"
    images = Path(source.name).expanduser() / metadata[0].parent.relative_to(root)
    output = f"{root.name}_prepared"
    command = _prepare_command(culture or "my_culture", images=images, output=output)
    return f"Make them with `{command}` and train with --dataset {shlex.quote(output)}"


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class CulturalDataset:
    """Checked rows: texts in memory, images decoded on demand. Picklable, so DataLoader workers may start by spawn.

    What a method does not need is neither read nor checked: `blip_captions` are then empty, `num_negatives` zeros.
    """

    captions: list[list[str]]  # c_ccub: one or more per row; one is drawn at a time
    blip_captions: list[list[str]]  # {c_blip_i}: naive captions of the same photograph
    num_negatives: list[int]  # how many x-_k the row has
    image_hashes: list[str]  # sha256 of each photograph's bytes: cache keys that survive an edited caption
    fingerprint: str  # sha256 over all texts and all images' bytes, in order
    commit: str | None  # of the Hub dataset that the rows are of; None: they are a folder's
    dropped: int  # rows left out by skip_bad_images
    names: list[str]
    image_files: list[_File | _ArrowCell]
    negative_files: list[list[_File | _ArrowCell]]

    def __len__(self) -> int:
        return len(self.names)

    def row_name(self, i: int) -> str:
        """How messages call row i, e.g. 'row 12 (images/ARCH_1.jpg)'; counted from 0 before any is left out."""
        return self.names[i]

    def image(self, i: int) -> Image.Image:
        """The photograph x+ of row i, upright, RGB, at its own size."""
        return _open_named(self.image_files[i], self.names[i])

    def negatives(self, i: int) -> list[Image.Image]:
        """The negatives x-_k of row i, upright, RGB, each at its own size; possibly none."""
        return [
            _open_named(file, _negative_name(self.names[i], k, file)) for k, file in enumerate(self.negative_files[i])
        ]


def read_dataset(
    source: DatasetSource,
    *,
    culture: str | None,
    split: str = "train",
    image_column: str = "image",
    caption_column: str = "text",
    blip_caption_column: str = "blip_text",
    negatives_column: str = "negatives",
    needs_blip: bool,
    needs_negatives: bool,
    max_samples: int | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
    cache_dir: str | os.PathLike | None = None,
    revision: str | None = None,
) -> CulturalDataset:
    """Read one culture of a dataset and check all of it, decoding every image once, so that training cannot trip.

    A folder is read in either of these layouts, alone or with one subfolder per culture:
    - `metadata.jsonl` or `metadata.csv` in it or in `<split>/`, with imagefolder's `file_name` and
      `negatives_file_names`, or the authors' `negative_imgpath`; paths count from the metadata's folder;
    - parquet files, in it, in `data/` or in `<split>/`, of the split that is in their names, or else all train.
    Its README may declare a config per culture. A dataset of the Hub is such a folder; `revision` is a branch, tag or
    commit of it. Without cultures it is taken whole. Only regular files of the dataset's own folder are read, and in
    parquet from the Hub only pictures that lie in the rows.

    With `max_samples` rows are shuffled by `seed` and the first ones kept, the same as in diffusers' scripts.
    Raises DataError for all that is wrong; with `skip_bad_images` bad images, and rows without a usable caption, are
    left out with a warning instead.
    """
    if source.kind == "hub":
        place = _hub_place(source, culture, split=split, cache_dir=cache_dir, revision=revision)
    elif revision is not None:
        raise DataError(
            f"--dataset_revision {revision} is of a Hub dataset, but --dataset {source.name} is a folder; leave it out"
        )
    else:
        place = _Place(Path(source.location), within=Path(source.location), called=source.location)
    try:
        columns = _Columns(
            image_column,
            caption_column,
            blip_caption_column if needs_blip else None,
            negatives_column if needs_negatives else None,
            completing=_how_to_complete(source, culture),
        )
        rows = _place_rows(place, culture, split=split, columns=columns, cache_dir=cache_dir)
    except OSError as error:
        raise DataError(f"--dataset {source.name} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"--dataset {source.name}: split {split!r} is empty; give it rows, such as {_EXAMPLE_LINE}")
    if max_samples is not None:
        if not 1 <= max_samples <= len(rows):
            raise DataError(
                f"--max_train_samples {max_samples} must be 1 to {len(rows)}, the rows of --dataset {source.name}."
            )
        # datasets' own shuffle(seed), hence diffusers' choice of rows
        rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:max_samples]]

    total = len(rows)
    captions = _checked_texts(
        [(row.name, row.caption) for row in rows],
        problem=f"no usable caption in column {caption_column!r} (--caption_column)",
        fix="A caption is a string, or a list of strings, that is not blank.",
        skip=skip_bad_images,
    )
    blip_captions: dict[int, list[str]] = {i: [] for i in range(total)}
    if needs_blip:
        blip_captions = _checked_texts(
            [(row.name, row.blip_caption) for row in rows],
            problem=f"no usable BLIP caption in column {blip_caption_column!r} (--blip_caption_column)",
            fix=columns.blip_fix,
            skip=skip_bad_images,
        )
    usable = [i for i in range(total) if i in captions and i in blip_captions]
    rows, captions, blip_captions = ([each[i] for i in usable] for each in (rows, captions, blip_captions))
    warn_of_scripts([(row.name, text) for row, texts in zip(rows, captions) for text in texts])

    checked = _checked_images(rows, dataset=source.name, skip_bad_images=skip_bad_images)
    kept = list(checked)
    if needs_negatives and not any(checked[place].negative_files for place in kept):
        raise DataError(f"--dataset {source.name}: no row has a usable negative. {columns.negatives_fix}")
    row_keys = [
        content_key(checked[i].image_hash, captions[i], blip_captions[i], checked[i].negative_hashes) for i in kept
    ]
    return CulturalDataset(
        captions=[captions[i] for i in kept],
        blip_captions=[blip_captions[i] for i in kept],
        num_negatives=[len(checked[i].negative_files) for i in kept],
        image_hashes=[checked[i].image_hash for i in kept],
        fingerprint=content_key(*row_keys),
        commit=place.root.name if place.is_hub else None,
        dropped=total - len(kept),
        names=[rows[i].name for i in kept],
        image_files=[rows[i].image_file for i in kept],
        negative_files=[checked[i].negative_files for i in kept],
    )


class _Columns(NamedTuple):
    """The user's names of the columns, None where the method needs none, and what to do when one is missing."""

    image: str
    caption: str
    blip_caption: str | None
    negatives: str | None
    completing: str

    @property
    def blip_fix(self) -> str:
        return f"{self.completing}, or train with --method finetune, which needs none."

    @property
    def negatives_fix(self) -> str:
        return f"{self.completing}, or train with --method mp, which needs none."


class _Place(NamedTuple):
    """A dataset's folder: rows and pictures are read from files below `within` alone."""

    root: Path
    within: Path  # the root, or the cache in which it links to its files
    called: str  # by messages
    is_hub: bool = False


@dataclass(frozen=True)
class _Row:
    """A row as found, unchecked."""

    name: str
    image_file: _File | _ArrowCell
    caption: object
    blip_caption: object = None
    negative_files: Sequence[_File | _ArrowCell] = ()


@dataclass(frozen=True)
class _File:
    """An image file that metadata names."""

    path: Path
    within: Path

    def read_bytes(self) -> bytes:
        return read_regular(self.path, within=self.within, at_most=MAX_BYTES)

    def __str__(self) -> str:
        return _shown(self.path)


@dataclass(frozen=True)
class _ArrowCell:
    """An image in a `datasets` table in Arrow format: nothing is copied before read_bytes()."""

    table: datasets.Dataset
    row: int
    column: str
    place: int | None = None  # in a list of images
    folder: Path | None = None  # that a path in the cell counts from and lies in; None: the cell holds the bytes

    def read_bytes(self) -> bytes:
        cell = self.table[self.row][self.column][0]
        value = (cell if self.place is None else cell[self.place]).as_py()
        if isinstance(value, dict):  # how `datasets` stores an Image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and self.folder is None:
            raise DataError(f"names the file {_shown(value)}; from the Hub pictures are read that lie in the rows")
        if isinstance(value, str):
            value = read_regular(self.folder / value, within=self.folder, at_most=MAX_BYTES)
        if not isinstance(value, bytes):
            raise DataError(f"column {self.column!r} holds no image here ({type(value).__name__})")
        return value

    def __str__(self) -> str:
        return f"column {self.column!r}"


def _shown(written: object, *, most: int = 120, quoted: bool = False) -> str:
    """What a dataset wrote, as messages show it: in few characters, none of which steers a terminal."""
    text = repr(written) if quoted else repr(str(written))[1:-1]
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def _require_column(found: Iterable[str], spellings: Sequence[str], *, flag: str, where: object, fix: str = "") -> str:
    for spelling in spellings:
        if spelling in found:
            return spelling
    columns = _shown(", ".join(sorted(map(str, found))), most=500) or "none"
    raise DataError(
        f"{where} has no column {spellings[0]!r} ({flag}); its columns are: {columns}. "
        f"Name the right one with {flag}. {fix}".rstrip()
    )


# A folder ------------------------------------------------------------------------------------------------------------


def _place_rows(place: _Place, culture: str | None, *, split: str, columns: _Columns, cache_dir) -> list[_Row]:
    files = _split_files(place, culture, split)
    if files[0].name in _METADATA_NAMES:
        return _metadata_rows(files[0], within=place.within, columns=columns)
    return _table_rows(_parquet_table(files, place, split=split, cache_dir=cache_dir), place, columns=columns)


def _split_files(place: _Place, culture: str | None, split: str) -> list[Path]:
    """The metadata file, or the parquet files, with a culture's rows of a split. Raises DataError."""
    root, configs = place.root, _declared_configs(place)
    if set(configs) - {"default"}:
        return _declared_files(place, configs[_only(configs, culture, place)], split)
    cultures = {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in (*_SPLITS, split) and _holds_rows(folder, split)
    }
    if culture in cultures:
        root = cultures[culture]
    elif configs and not _metadata_files(root, split):  # a lone 'default' says nothing about cultures
        return _declared_files(place, configs["default"], split)
    elif not _holds_rows(root, split):
        if not cultures:
            raise _unreadable_folder(place)
        root = cultures[_only(cultures, culture, place)]
    found = _metadata_files(root, split) or _parquet_files(root, split)
    if not found:
        raise DataError(
            f"{root} has no split {split!r}: no {' or '.join(_METADATA_NAMES)} in it or in {root / split}, and no "
            "parquet files of that name."
        )
    return found


def _declared_configs(place: _Place) -> dict[str, object]:
    """Name -> data_files of each config with such that the README's YAML lists."""
    readme = place.root / "README.md"
    configs = (readme.is_file() and read_front_matter(readme, within=place.within).get("configs")) or []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise DataError(f"{readme}: configs must be a list of `config_name` and `data_files`.")
    return {str(each.get("config_name", "default")): each["data_files"] for each in configs if "data_files" in each}


def _declared_patterns(place: _Place, data_files: object, split: str) -> list[str]:
    """What a README says of where a split lies: paths below the root, with wildcards. Raises DataError."""
    from datasets.data_files import sanitize_patterns

    where = f"{place.root / 'README.md'}, data_files {_shown(data_files)}"
    try:
        splits = sanitize_patterns(data_files)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from error
    if split not in splits:
        raise DataError(f"{where}: there is no split {split!r}; there are {', '.join(splits) or 'none'}.")
    if not all(isinstance(pattern, str) for pattern in splits[split]):
        raise DataError(f"{where}: the paths of split {split!r} must be text.")
    return [pattern.removeprefix("./") for pattern in splits[split]]


def _declared_files(place: _Place, data_files: object, split: str) -> list[Path]:
    """The files that a README says a split lies in, among those that lie in the folder, whatever else it names."""
    from fsspec.utils import glob_translate

    patterns = _declared_patterns(place, data_files, split)
    paths = {file.relative_to(place.root).as_posix(): file for file in _files_below(place.root)}
    try:
        expressions = [re.compile(glob_translate(pattern)) for pattern in patterns]
    except (ValueError, re.error) as error:
        raise DataError(f"{place.root / 'README.md'}, data_files of split {split!r}: {error}") from error
    named = dict.fromkeys(path for each in expressions for path in sorted(paths) if each.match(path))
    files = [paths[path] for path in named]
    found = [file for file in files if file.name in _METADATA_NAMES] or [f for f in files if f.suffix == ".parquet"]
    if not found or (len(found) > 1 and found[0].suffix != ".parquet"):
        raise DataError(
            f"{place.root / 'README.md'} says that split {split!r} lies in {_shown(', '.join(patterns))}, which names "
            f"{len(found)} files with rows: one {' or '.join(_METADATA_NAMES)} or any number of parquet files are "
            "needed, named from this folder and lying in it."
        )
    return found


def _files_below(root: Path) -> Iterator[Path]:
    """All files below a folder; links to folders are not followed. Raises DataError for more than MAX_FILES."""
    count = 0
    for folder, folders, names in os.walk(root):
        folders.sort()
        count += len(names)
        if count > MAX_FILES:
            raise DataError(f"{root} holds more than {MAX_FILES} files; give the folder of the dataset alone.")
        yield from (Path(folder, name) for name in sorted(names))


def _parquet_files(root: Path, split: str) -> list[Path]:
    """The parquet files of a split: those with its name in theirs, or where no name has that of a split, all."""
    files = sorted({file for name in ("", "data", split, *_SPLITS) for file in (root / name).glob("*.parquet")})
    words = {file: re.split(r"[\W_\d]+", file.relative_to(root).as_posix()) for file in files}
    if any(each in words[file] for file in files for each in (split, *_SPLITS)):
        return [file for file in files if split in words[file]]
    return files if split == "train" else []


def _holds_rows(root: Path, split: str) -> bool:
    return any(_metadata_files(root, each) or _parquet_files(root, each) for each in (split, *_SPLITS))


def _metadata_files(root: Path, split: str) -> list[Path]:
    """The one metadata file of a split, if there is one."""
    # as in imagefolder, what lies outside a split's folder is "train"
    for folder in [root / split] + [root] * (split == "train"):
        found = [folder / name for name in _METADATA_NAMES if (folder / name).is_file()]
        if len(found) > 1:
            raise DataError(f"{folder} holds both {' and '.join(_METADATA_NAMES)}; keep one.")
        if found:
            return found
    return []


def _only(cultures: Iterable[str], culture: str | None, place: _Place) -> str:
    """The culture asked for, or the only one there is. Raises DataError."""
    if culture is None and len(list(cultures)) == 1:
        return next(iter(cultures))
    if culture not in cultures:
        raise _unknown_culture(place.called, culture, cultures)
    return culture


def _unknown_culture(where: object, culture: str | None, cultures: Iterable[str]) -> DataError:
    asked = "no --culture was given" if culture is None else f"--culture {culture} is not among them"
    return DataError(
        f"{where} holds one dataset per culture ({', '.join(sorted(cultures))}) and {asked}. Name one of them."
    )


def _unreadable_folder(place: _Place) -> DataError:
    files = [file.relative_to(place.root) for file in _files_below(place.root)]
    photos = [file.as_posix() for file in files if file.suffix.lower() in SUFFIXES]
    lookalikes = [str(file) for file in files if file.name.startswith("metadata")]
    example = _example_line(photos[0]) if photos else _EXAMPLE_LINE
    return DataError(
        f"{place.called} holds {len(photos)} images but no {' or '.join(_METADATA_NAMES)}, in it or in its train/, "
        "and no parquet."
        + (f" Found {_listing(lookalikes)}: rename it to metadata.jsonl." if lookalikes else "")
        + " What the pictures show is for people to say: write a text file metadata.jsonl beside them with one line "
        f"per image, such as {example}"
    )


def _example_line(file_name: str) -> str:
    return json.dumps({"file_name": file_name, "text": "a house with a tiled roof"}, ensure_ascii=False)


def _metadata_rows(file: Path, *, within: Path, columns: _Columns) -> list[_Row]:
    lines = read_metadata(file, within=within)
    if file.suffix == ".jsonl":
        records = [record for _, record in jsonl_records(lines, file)]
    else:
        records = list(_csv_records(lines, file))
    if not records:
        return []
    found = {name for record in records for name in record}
    # imagefolder's rule: column X of images is written as X_file_name(s), and `image` as file_name
    image_spellings = [columns.image, f"{columns.image}_file_name"] + ["file_name"] * (columns.image == "image")
    image = _require_column(found, image_spellings, flag="--image_column", where=file)
    caption = _require_column(found, [columns.caption], flag="--caption_column", where=file)
    blip = negatives = None
    if columns.blip_caption is not None:
        spellings = [columns.blip_caption]
        blip = _require_column(found, spellings, flag="--blip_caption_column", where=file, fix=columns.blip_fix)
    if columns.negatives is not None:
        spellings = [columns.negatives, f"{columns.negatives}_file_names"]
        spellings += ["negative_imgpath"] * (columns.negatives == "negatives")  # the authors' name for it
        negatives = _require_column(found, spellings, flag="--negatives_column", where=file, fix=columns.negatives_fix)

    def path(written: object, row: int, column: str) -> _File:
        if not isinstance(written, str) or not written.strip():
            raise DataError(f"{file}, row {row}: {column!r} must be the path of an image, not {_shown(written)}.")
        return _File(file.parent / written, within)

    rows = []
    for i, record in enumerate(records):
        written = record.get(negatives) or []
        rows.append(
            _Row(
                name=f"row {i} ({_shown(record.get(image))})",
                image_file=path(record.get(image), i, image),
                caption=record.get(caption),
                blip_caption=record.get(blip),
                negative_files=[
                    path(each, i, negatives) for each in (written if isinstance(written, list) else [written])
                ],
            )
        )
    return rows


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
                f"{file}, line {number} is not JSON ({error}); write a line such as {_EXAMPLE_LINE}"
            ) from error
        if not isinstance(record, dict):
            raise DataError(f"{file}, line {number} is not a JSON object; write a line such as {_EXAMPLE_LINE}")
        yield number, record


def _csv_records(lines: Iterable[str], file: Path) -> Iterable[dict]:
    reader = csv.DictReader(lines)
    try:
        for record in reader:
            if None in record:
                raise DataError(
                    f"{file}, line {reader.line_num} has more cells than the header; "
                    "put double quotes around a caption that contains a comma."
                )
            yield {name: _csv_cell(cell) for name, cell in record.items()}
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num} is not CSV ({error}).") from error


def _csv_cell(cell: str | None) -> str | list | None:
    """CSV knows only strings, so a list is written in it as JSON; any other cell is the text it shows."""
    if cell is None or not cell.lstrip().startswith("["):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell  # a caption that merely begins with a bracket


# Parquet and the Hub -------------------------------------------------------------------------------------------------


def hub_commit(
    repo_id: str, *, revision: str | None, file: str, repo_type: str = "model", cache_dir: str | None = None
) -> str:
    """The commit, 40 hex digits, that a branch, tag or commit of a Hub repository stands for; None: its main branch.

    Where the Hub cannot be reached, it is that of the cached copy of `file`. But a Hub that refuses, because there is
    no such repository or revision or it is not for this user, is believed. Raises OSError or httpx's HTTPError, as
    huggingface_hub does; LocalEntryNotFoundError if the cache cannot tell.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    download = functools.partial(hf_hub_download, repo_id, file, repo_type=repo_type, cache_dir=cache_dir)
    try:
        commit = ask(
            lambda api: text_of(api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha, "[0-9a-f]{40}")
        )
    except (HTTPError, OfflineModeIsEnabled, TimeoutError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
    else:
        with contextlib.suppress(EntryNotFoundError):
            download(revision=revision)  # by its name, so that the cache knows offline what the name stood for
        return commit
    cached = download(revision=revision, local_files_only=True)
    return Path(cached).parents[file.count("/")].name  # .../snapshots/<commit>/<file>


def _hub_place(source: DatasetSource, culture: str | None, *, split: str, cache_dir, revision: str | None) -> _Place:
    """The folder of the cache with what a Hub dataset holds of a culture's split, at the commit that is its name."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    location = source.location
    download = functools.partial(snapshot_download, location, repo_type="dataset", cache_dir=cache_dir)
    try:
        try:
            commit = hub_commit(
                location, revision=revision, file="README.md", repo_type="dataset", cache_dir=cache_dir
            )
        except LocalEntryNotFoundError:
            commit = revision  # it has no README; perhaps there is a copy all the same
        folder = Path(download(revision=commit, allow_patterns=["README.md"]))
        place = _Place(folder, within=folder.parents[1], called=location, is_hub=True)
        configs, wanted = _declared_configs(place), None
        if set(configs) - {"default"}:
            patterns = _declared_patterns(place, configs[_only(configs, culture, place)], split)
            # the download's * goes through folders, so these name all that the README's do, or more
            wanted = [pattern.replace("**/", "*") for pattern in patterns]
        download(revision=commit, allow_patterns=wanted)
    except (HTTPError, HFValidationError, OSError) as error:
        raise _not_found(source.name, culture, f"the Hub, {location}: {error}") from error
    return place


def _parquet_table(files: Sequence[Path], place: _Place, *, split: str, cache_dir) -> datasets.Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset, Features, config
    from datasets.exceptions import DatasetsError

    try:
        version = []
        for file in files:
            with open_regular(file, within=place.within) as opened:
                found = os.fstat(opened.fileno())
            version.append([str(file), found.st_size, found.st_mtime_ns])
        # `datasets` itself would take files of another size for those it knows, if they are said to be as old
        cache_dir = Path(cache_dir or config.HF_DATASETS_CACHE) / content_key(version)[:16]
        # the columns as they are stored: what metadata says of them names classes of `datasets`
        features = Features.from_arrow_schema(pq.read_schema(files[0]).remove_metadata())
        paths = [glob.escape(str(file)) for file in files]
        return Dataset.from_parquet(paths, features=features, cache_dir=cache_dir)
    except (DatasetsError, ValueError, TypeError, RuntimeError, OSError, pa.ArrowException) as error:
        names = ", ".join(_shown(file) for file in files)
        raise DataError(f"--dataset {place.called}, split {split!r} cannot be read: {names}: {error}") from error


def _table_rows(table: datasets.Dataset, place: _Place, *, columns: _Columns) -> list[_Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.with_format("arrow")
    if not len(table):
        return []
    found = table.column_names
    image = _require_column(found, [columns.image], flag="--image_column", where=place.called)
    caption = _require_column(found, [columns.caption], flag="--caption_column", where=place.called)
    captions = _texts(table.data.column(caption), f"{place.called}, column {caption!r}")

    images = table.data.column(image)
    paths = [None] * len(table)
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        paths = _texts(pc.struct_field(images, "path"), f"{place.called}, the paths in column {image!r}")

    blip_captions = [None] * len(table)
    if columns.blip_caption is not None:
        spellings = [columns.blip_caption]
        blip = _require_column(
            found, spellings, flag="--blip_caption_column", where=place.called, fix=columns.blip_fix
        )
        blip_captions = _texts(table.data.column(blip), f"{place.called}, column {blip!r}")

    negative_places: list[Sequence[int | None]] = [()] * len(table)
    if columns.negatives is not None:
        spellings, fix = [columns.negatives], columns.negatives_fix
        negatives = _require_column(found, spellings, flag="--negatives_column", where=place.called, fix=fix)
        cells = table.data.column(negatives)
        if not (pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type)):
            raise DataError(
                f"{place.called}: column {negatives!r} (--negatives_column) must hold lists, not {cells.type}."
            )
        negative_places = [range(count or 0) for count in pc.list_value_length(cells).to_pylist()]

    folder = None if place.is_hub else place.root
    return [
        _Row(
            name=f"row {i} ({_shown(paths[i])})" if paths[i] else f"row {i}",
            image_file=_ArrowCell(table, i, image, folder=folder),
            caption=captions[i],
            blip_caption=blip_captions[i],
            negative_files=[_ArrowCell(table, i, negatives, k, folder=folder) for k in negative_places[i]],
        )
        for i in range(len(table))
    ]


def _texts(cells: pa.ChunkedArray, where: str) -> list:
    try:
        return cells.to_pylist()
    except UnicodeDecodeError as error:  # parquet files are not looked at for this
        raise DataError(f"{where} holds text that is not UTF-8 ({error}); write it as UTF-8.") from error


# Checks --------------------------------------------------------------------------------------------------------------


def unusable(text: object) -> str:
    """Why a caption cannot be used, as messages say it; '' if it can."""
    if not isinstance(text, str) or not text.strip():
        return _shown(text, quoted=True)
    if found := re.search("[\0\ud800-\udfff]", text):  # which no tokenizer or no file takes
        return f"{found[0]!r} in {_shown(text)}"
    return f"{len(text)} characters, of which {MAX_TEXT} are allowed" if len(text) > MAX_TEXT else ""


def _checked_texts(cells: Sequence[tuple[str, object]], *, problem: str, fix: str, skip: bool) -> dict[int, list[str]]:
    """Place of a cell -> its strings. A DataError names the rows where one is missing, blank or not text; with `skip`
    a warning does, unless none is left.
    """
    good, bad = {}, []
    for i, (name, cell) in enumerate(cells):
        texts = cell if isinstance(cell, list) and cell else [cell]
        if why := next(filter(None, map(unusable, texts)), ""):
            bad.append(f"{name}: {why}")
        else:
            good[i] = texts
    if bad:
        message = f"{len(bad)} of {len(cells)} rows have {problem}"
        if not (skip and good):
            skipping = " train_scoft_lora.py leaves such rows out with --skip_bad_images." if good else ""
            raise DataError(f"{message}: {_listing(bad)}. {fix}{skipping}")
        logger.warning("--skip_bad_images: %s and are left out: %s", message, _listing(bad, shown=len(bad)))
    return good


def warn_of_scripts(captions: Sequence[tuple[str, str]]) -> None:
    """Log which captions, (row's name, text), are mostly in other letters than Latin ones."""

    def is_foreign(text: str) -> bool:
        letters = [character for character in text if character.isalpha()]
        return 2 * sum("LATIN" in unicodedata.name(letter, "") for letter in letters) < len(letters)

    if foreign := [f"{name}: {text!r}" for name, text in captions if is_foreign(text)]:
        logger.warning(
            "%d of %d captions are in letters that CLIP does not read, since it learned from English: %s. Write them "
            "in English, unless the base model's text encoder reads their language.",
            len(foreign),
            len(captions),
            _listing(foreign),
        )


@dataclass(frozen=True)
class _CheckedImages:
    """The images of a row that passed."""

    image_hash: str
    negative_hashes: list[str]
    negative_files: list[_File | _ArrowCell]


def _checked_images(rows: Sequence[_Row], *, dataset: str, skip_bad_images: bool) -> dict[int, _CheckedImages]:
    """Decode every image once and hash its bytes. Returns place in `rows` -> what passed; without the rows dropped."""
    files = [file for row in rows for file in (row.image_file, *row.negative_files)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        quiet = len(files) < 100 or os.environ.get("LOCAL_RANK", "0") != "0"
        verdicts = iter(list(progress(pool.map(_inspect, files), "Checking images", total=len(files), disable=quiet)))

    checked, problems = {}, []
    for place, row in enumerate(rows):
        image_hash, image_problem = next(verdicts)
        if image_problem:
            problems.append(f"{row.name}: {image_problem}")
        negatives = []
        for k, file in enumerate(row.negative_files):
            digest, problem = next(verdicts)
            if problem:
                problems.append(f"{_negative_name(row.name, k, file)}: {problem}")
            else:
                negatives.append((digest, file))
        if not image_problem:
            hashes, usable = [digest for digest, _ in negatives], [file for _, file in negatives]
            checked[place] = _CheckedImages(image_hash, hashes, usable)

    if problems and not skip_bad_images:
        raise DataError(
            f"--dataset {dataset}: {len(problems)} of {len(files)} images cannot be used: {_listing(problems)}. "
            "Repair or remove them; train_scoft_lora.py leaves them out with --skip_bad_images."
        )
    if problems:
        logger.warning(
            "--skip_bad_images leaves out %d images: %s", len(problems), _listing(problems, shown=len(problems))
        )
    if not checked:
        raise DataError(f"--dataset {dataset}: no usable image is left of {len(rows)} rows: {_listing(problems)}.")
    return checked


def _inspect(file: _File | _ArrowCell) -> tuple[str, str]:
    """(sha256 of the bytes, '') of a usable image, ('', what is wrong) of any other."""
    try:
        data = file.read_bytes()
        open_image(data)
    except FileNotFoundError:
        return "", "the file does not exist"
    except (DataError, OSError) as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), ""


def _open_named(file: _File | _ArrowCell, name: str) -> Image.Image:
    try:
        return open_image(file.read_bytes())
    except (DataError, OSError) as error:
        raise DataError(f"{name} was good when the run began and now is not: {error}") from error


def _negative_name(row_name: str, k: int, file: _File | _ArrowCell) -> str:
    return f"{row_name}, negative {k} ({file})"


def _listing(items: Sequence[str], shown: int = 5) -> str:
    rest = len(items) - shown
    told = [item if len(item) <= 500 else f"{item[:500]}..." for item in items[:shown]]
    return "; ".join(told) + (f"; and {rest} more" if rest > 0 else "")


# ---------------------------------------------------------------------------------------------------------------------
# Randomness without state
# ---------------------------------------------------------------------------------------------------------------------


def stable_generator(seed: int, purpose: str, *place: int) -> torch.Generator:
    """A CPU generator that depends on (seed, purpose, place) alone: the same in every process, at every resume.

    Typical place: (update, place in the batch). torch seeds from 32 bits, so two places share a stream once in 2^32.
    """
    import torch

    text = json.dumps([int(seed), purpose, *map(int, place)])
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def row_of_entry(entry: int, *, num_rows: int, seed: int) -> int:
    """Row at `entry` of the endless chain of epoch permutations: place e mod n of epoch e div n."""
    if num_rows < 1 or entry < 0:
        raise ValueError(f"need num_rows >= 1 and entry >= 0, got {num_rows} and {entry}.")
    epoch, place = divmod(entry, num_rows)
    return _permutation(num_rows, seed, epoch)[place]


@lru_cache(maxsize=8)  # a batch may straddle epochs; loader workers run ahead
def _permutation(num_rows: int, seed: int, epoch: int) -> list[int]:
    import torch

    return torch.randperm(num_rows, generator=stable_generator(seed, "data order", epoch)).tolist()

"""What CCUB is, and how any dataset like it is found, read, checked, transformed, ordered and cached.

A row is a photograph a culture's own people chose, with their caption. Depending on the method it also has naive
captions (BLIP) and negatives: images that misrepresent the same scene. No model is known here; torch and datasets are
imported where they are used, so that a mistyped flag is answered at once.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from scoft.launch import progress

import numpy as np
from PIL import Image

from scoft.errors import DataError
from scoft.files import content_key, read_front_matter
from scoft.hub import ask, text_of
from scoft.images import open_image


if TYPE_CHECKING:
    import datasets
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
_PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
_EXAMPLE_LINE = '{"file_name": "images/house.jpg", "text": "a house with a tiled roof"}'


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
    folder, embedded = Path(name).expanduser(), embedded_folder(name)
    if embedded is not None:
        return DatasetSource("folder", str(embedded / "ccub"), name)
    if folder.is_dir():
        return DatasetSource("folder", str(folder.resolve()), name)
    if folder.exists():
        raise DataError(f"--dataset {name}: this is a file. Give the folder it lies in, or a dataset of the Hub.")
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
                with file.open("rb") as content:
                    found = hashlib.file_digest(content, "sha256").hexdigest()
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
            + [f"Build it with: {_prepare_command(name, culture)}"]
        )
    )


def _prepare_command(name: str, culture: str | None) -> str:
    return f"python prepare_ccub.py --culture {shlex.quote(culture or 'CULTURE')} --output {shlex.quote(name)}"


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
    image_files: list[Path | _ArrowCell]
    negative_files: list[list[Path | _ArrowCell]]

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
    - parquet; its README may declare a config per culture.
    A folder or Hub dataset without cultures is taken whole. `revision`, a branch, tag or commit, is of a Hub dataset.

    With `max_samples` rows are shuffled by `seed` and the first ones kept, the same as in diffusers' scripts.
    Raises DataError for all that is wrong; with `skip_bad_images` bad images are left out with a warning instead.
    """
    columns = _Columns(
        image_column,
        caption_column,
        blip_caption_column if needs_blip else None,
        negatives_column if needs_negatives else None,
        prepare=_prepare_command(source.name, culture),
    )
    commit = None
    if source.kind == "hub":
        rows, commit = _hub_rows(source, culture, split=split, columns=columns, cache_dir=cache_dir, revision=revision)
    elif revision is not None:
        raise DataError(
            f"--dataset_revision {revision} is of a Hub dataset, but --dataset {source.name} is a folder; leave it out"
        )
    else:
        rows = _folder_rows(Path(source.location), culture, split=split, columns=columns, cache_dir=cache_dir)
    if not rows:
        raise DataError(f"--dataset {source.name}: split {split!r} is empty. Build it with: {columns.prepare}")
    if max_samples is not None:
        if not 1 <= max_samples <= len(rows):
            raise DataError(
                f"--max_train_samples {max_samples} must be 1 to {len(rows)}, the rows of --dataset {source.name}."
            )
        # datasets' own shuffle(seed), hence diffusers' choice of rows
        rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:max_samples]]

    captions = _checked_texts(
        [(row.name, row.caption) for row in rows],
        problem=f"no usable caption in column {caption_column!r} (--caption_column)",
        fix="A caption is a string, or a list of strings, that is not blank.",
    )
    blip_captions: list[list[str]] = [[] for _ in rows]
    if needs_blip:
        blip_captions = _checked_texts(
            [(row.name, row.blip_caption) for row in rows],
            problem=f"no usable BLIP caption in column {blip_caption_column!r} (--blip_caption_column)",
            fix=columns.blip_fix,
        )

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
        commit=commit,
        dropped=len(rows) - len(kept),
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
    prepare: str

    @property
    def blip_fix(self) -> str:
        return f"Make them with `{self.prepare} --stages caption`, or train with --method finetune, which needs none."

    @property
    def negatives_fix(self) -> str:
        return f"Make them with `{self.prepare}`, or train with --method mp, which needs none."


@dataclass(frozen=True)
class _Row:
    """A row as found, unchecked."""

    name: str
    image_file: Path | _ArrowCell
    caption: object
    blip_caption: object = None
    negative_files: Sequence[Path | _ArrowCell] = ()


@dataclass(frozen=True)
class _ArrowCell:
    """An image in a `datasets` table in Arrow format, read like a Path: nothing is copied before read_bytes()."""

    table: datasets.Dataset
    row: int
    column: str
    place: int | None = None  # in a list of images

    def read_bytes(self) -> bytes:
        cell = self.table[self.row][self.column][0]
        value = (cell if self.place is None else cell[self.place]).as_py()
        if isinstance(value, dict):  # how `datasets` stores an Image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            value = Path(value).read_bytes()
        if not isinstance(value, bytes):
            raise DataError(f"column {self.column!r} holds no image here ({type(value).__name__})")
        return value

    def __str__(self) -> str:
        return f"column {self.column!r}"


def _require_column(found: Iterable[str], spellings: Sequence[str], *, flag: str, where: object, fix: str = "") -> str:
    for spelling in spellings:
        if spelling in found:
            return spelling
    raise DataError(
        f"{where} has no column {spellings[0]!r} ({flag}); its columns are: {', '.join(sorted(found)) or 'none'}. "
        f"Name the right one with {flag}. {fix}".rstrip()
    )


# A folder ------------------------------------------------------------------------------------------------------------


def _folder_rows(root: Path, culture: str | None, *, split: str, columns: _Columns, cache_dir) -> list[_Row]:
    if _declares_configs(root):
        return _parquet_rows(root, culture, split=split, columns=columns, cache_dir=cache_dir)
    cultures = {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in (*_SPLITS, split) and _holds_rows(folder, split)
    }
    if culture in cultures:
        root = cultures[culture]
    elif not _holds_rows(root, split):
        if not cultures:
            raise _unreadable_folder(root)
        if culture is not None or len(cultures) > 1:
            raise _unknown_culture(root, culture, cultures)
        (root,) = cultures.values()

    metadata = _metadata_file(root, split)
    if metadata is not None:
        return _metadata_rows(metadata, columns=columns)
    if any(_parquet_files(root, split)):
        return _parquet_rows(root, culture, split=split, columns=columns, cache_dir=cache_dir)
    raise DataError(f"{root} has no split {split!r}: no {' or '.join(_METADATA_NAMES)} in it or in {root / split}.")


@dataclass(frozen=True)
class _Config:
    config_name: str = "default"


@dataclass(frozen=True)
class _Page:
    """What is read of the YAML in a dataset's README; `configs:` without a value is ''."""

    configs: list[_Config] | Literal[""] = ""


def _declares_configs(root: Path) -> bool:
    """Whether the README's YAML lists configs; a lone 'default' says nothing about cultures."""
    readme = root / "README.md"
    remedy = "`datasets` needs it too: mend or remove it."
    page = read_front_matter(readme, _Page, remedy=remedy) if readme.is_file() else _Page()
    return any(config.config_name != "default" for config in page.configs)


def _parquet_files(root: Path, split: str) -> Iterable[Path]:
    return (file for folder in ("", "data", split, *_SPLITS) for file in (root / folder).glob("*.parquet"))


def _holds_rows(root: Path, split: str) -> bool:
    metadata = (root / folder / name for folder in ("", split, *_SPLITS) for name in _METADATA_NAMES)
    return any(file.is_file() for file in metadata) or any(_parquet_files(root, split))


def _metadata_file(root: Path, split: str) -> Path | None:
    # as in imagefolder, what lies outside a split's folder is "train"
    for folder in [root / split] + [root] * (split == "train"):
        found = [folder / name for name in _METADATA_NAMES if (folder / name).is_file()]
        if len(found) > 1:
            raise DataError(f"{folder} holds both {' and '.join(_METADATA_NAMES)}; keep one.")
        if found:
            return found[0]
    return None


def _unknown_culture(where: object, culture: str | None, cultures: Iterable[str]) -> DataError:
    asked = "no --culture was given" if culture is None else f"--culture {culture} is not among them"
    return DataError(
        f"{where} holds one dataset per culture ({', '.join(sorted(cultures))}) and {asked}. Name one of them."
    )


def _unreadable_folder(root: Path) -> DataError:
    photos = sum(file.suffix.lower() in _PHOTO_SUFFIXES for file in root.rglob("*"))
    lookalikes = sorted(str(file.relative_to(root)) for file in root.rglob("metadata*") if file.is_file())
    return DataError(
        f"{root} holds {photos} images but no {' or '.join(_METADATA_NAMES)}, in it or in its train/, and no parquet."
        + (f" Found {', '.join(lookalikes)}: rename it to metadata.jsonl." if lookalikes else "")
        + f" metadata.jsonl has one line per image, such as {_EXAMPLE_LINE}"
    )


def _metadata_rows(file: Path, *, columns: _Columns) -> list[_Row]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            records = list(_jsonl_records(lines, file) if file.suffix == ".jsonl" else _csv_records(lines, file))
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save it as UTF-8.") from error
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

    def path(written: object, row: int, column: str) -> Path:
        if not isinstance(written, str) or not written.strip():
            raise DataError(f"{file}, row {row}: {column!r} must be the path of an image, not {written!r}.")
        return file.parent / written

    rows = []
    for i, record in enumerate(records):
        written = record.get(negatives) or []
        rows.append(
            _Row(
                name=f"row {i} ({record.get(image)})",
                image_file=path(record.get(image), i, image),
                caption=record.get(caption),
                blip_caption=record.get(blip),
                negative_files=[
                    path(each, i, negatives) for each in (written if isinstance(written, list) else [written])
                ],
            )
        )
    return rows


def _jsonl_records(lines: Iterable[str], file: Path) -> Iterable[dict]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file}, line {number} is not JSON ({error}); write a line such as {_EXAMPLE_LINE}"
            ) from error
        if not isinstance(record, dict):
            raise DataError(f"{file}, line {number} is not a JSON object; write a line such as {_EXAMPLE_LINE}")
        yield record


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
    except json.JSONDecodeError:
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


def _parquet_rows(root: Path, culture: str | None, *, split: str, columns: _Columns, cache_dir) -> list[_Row]:
    table = _load_table(str(root), culture, split=split, cache_dir=cache_dir)
    return _table_rows(table, str(root), columns=columns)


def _hub_rows(
    source: DatasetSource, culture: str | None, *, split, columns, cache_dir, revision
) -> tuple[list[_Row], str]:
    """The rows and the commit that they are of."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError

    location, page = source.location, {"filename": "README.md", "repo_type": "dataset"}
    try:
        try:
            commit = hub_commit(location, revision=revision, file=page["filename"], repo_type=page["repo_type"])
        except LocalEntryNotFoundError:
            commit = revision  # perhaps `datasets` has a copy all the same
        with contextlib.suppress(EntryNotFoundError):  # `datasets` would read anything that is written there
            readme = hf_hub_download(location, **page, revision=commit, local_files_only=True)
            read_front_matter(Path(readme), _Page, remedy=f"The owner of {location} is to mend it.")
        table = _load_table(location, culture, split=split, cache_dir=cache_dir, revision=commit)
    except (DatasetNotFoundError, ConnectionError, HTTPError, OSError) as error:
        raise _not_found(source.name, culture, f"the Hub, {location}: {error}") from error
    loaded = Path(table.cache_files[0]["filename"]).parent.name if table.cache_files else commit
    if commit not in (None, loaded):
        # datasets takes the newest copy in its cache, of whatever commit, where the Hub cannot be reached
        raise DataError(
            f"--dataset {source.name}: the Hub cannot be reached, and the cached copy is of commit {loaded}, not "
            f"{commit}. Train on it with --dataset_revision {loaded}, or be online once."
        )
    return _table_rows(table, location, columns=columns), loaded


def _table_rows(table: datasets.Dataset, location: str, *, columns: _Columns) -> list[_Row]:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.with_format("arrow")
    if not len(table):
        return []
    found = table.column_names
    image = _require_column(found, [columns.image], flag="--image_column", where=location)
    caption = _require_column(found, [columns.caption], flag="--caption_column", where=location)
    captions = table.data.column(caption).to_pylist()

    images = table.data.column(image)
    paths = [None] * len(table)
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        paths = pc.struct_field(images, "path").to_pylist()

    blip_captions = [None] * len(table)
    if columns.blip_caption is not None:
        spellings = [columns.blip_caption]
        blip = _require_column(found, spellings, flag="--blip_caption_column", where=location, fix=columns.blip_fix)
        blip_captions = table.data.column(blip).to_pylist()

    negative_places: list[Sequence[int | None]] = [()] * len(table)
    if columns.negatives is not None:
        spellings, fix = [columns.negatives], columns.negatives_fix
        negatives = _require_column(found, spellings, flag="--negatives_column", where=location, fix=fix)
        cells = table.data.column(negatives)
        if not (pa.types.is_list(cells.type) or pa.types.is_large_list(cells.type)):
            raise DataError(
                f"{location}: column {negatives!r} (--negatives_column) must hold lists, not {cells.type}."
            )
        negative_places = [range(count or 0) for count in pc.list_value_length(cells).to_pylist()]

    return [
        _Row(
            name=f"row {i} ({paths[i]})" if paths[i] else f"row {i}",
            image_file=_ArrowCell(table, i, image),
            caption=captions[i],
            blip_caption=blip_captions[i],
            negative_files=[_ArrowCell(table, i, negatives, place) for place in negative_places[i]],
        )
        for i in range(len(table))
    ]


def _load_table(
    location: str, culture: str | None, *, split: str, cache_dir, revision: str | None = None
) -> datasets.Dataset:
    """What `datasets` loads. Hub problems (not found, unreachable) pass through, the rest is a DataError."""
    from datasets import config, get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    if Path(location).is_dir():
        # under the same cache, a folder with configs is read as it was at first, though its files have changed since
        files = sorted(file for file in Path(location).rglob("*") if file.is_file())
        version = content_key(*([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files))
        cache_dir = Path(cache_dir or config.HF_DATASETS_CACHE) / version[:16]

    def load(name: str) -> datasets.Dataset:
        return load_dataset(location, name, split=split, cache_dir=cache_dir, revision=revision)

    try:
        if culture is not None:
            try:
                return load(culture)  # first of all, since a copy cached for offline use cannot list its configs
            except ValueError as error:
                cultures = get_dataset_config_names(location, revision=revision)
                if culture in cultures:
                    raise
                if cultures != ["default"]:
                    raise _unknown_culture(location, culture, cultures) from error
                return load("default")
        cultures = get_dataset_config_names(location, revision=revision)
        if len(cultures) > 1:
            raise _unknown_culture(location, culture, cultures)
        return load(cultures[0])
    except (DataError, DatasetNotFoundError, ConnectionError):
        raise
    except (DatasetsError, ValueError, FileNotFoundError) as error:
        raise DataError(f"--dataset {location}, split {split!r} cannot be read: {error}") from error


# Checks --------------------------------------------------------------------------------------------------------------


def _checked_texts(cells: Sequence[tuple[str, object]], *, problem: str, fix: str) -> list[list[str]]:
    """Each cell as a list of strings; a DataError that names the rows where one is missing, blank or not text."""
    texts = [[cell] if isinstance(cell, str) else cell for _, cell in cells]
    bad = [
        f"{name}: {cell!r}"
        for (name, cell), text in zip(cells, texts, strict=True)
        if not (isinstance(text, list) and text and all(isinstance(each, str) and each.strip() for each in text))
    ]
    if bad:
        raise DataError(f"{len(bad)} of {len(cells)} rows have {problem}: {_listing(bad)}. {fix}")
    return texts


@dataclass(frozen=True)
class _CheckedImages:
    """The images of a row that passed."""

    image_hash: str
    negative_hashes: list[str]
    negative_files: list[Path | _ArrowCell]


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
            "Repair or remove them, or leave them out with --skip_bad_images."
        )
    if problems:
        logger.warning("--skip_bad_images leaves out %d images: %s", len(problems), "; ".join(problems))
    if not checked:
        raise DataError(f"--dataset {dataset}: no usable image is left of {len(rows)} rows: {_listing(problems)}.")
    return checked


def _inspect(file: Path | _ArrowCell) -> tuple[str, str]:
    """(sha256 of the bytes, '') of a usable image, ('', what is wrong) of any other."""
    try:
        data = file.read_bytes()
        open_image(data)
    except FileNotFoundError:
        return "", "the file does not exist"
    except (DataError, OSError) as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), ""


def _open_named(file: Path | _ArrowCell, name: str) -> Image.Image:
    try:
        return open_image(file.read_bytes())
    except (DataError, OSError) as error:
        raise DataError(f"{name} was good when the run began and now is not: {error}") from error


def _negative_name(row_name: str, k: int, file: Path | _ArrowCell) -> str:
    return f"{row_name}, negative {k} ({file})"


def _listing(items: Sequence[str], shown: int = 5) -> str:
    rest = len(items) - shown
    return "; ".join(items[:shown]) + (f"; and {rest} more" if rest > 0 else "")


# ---------------------------------------------------------------------------------------------------------------------
# Randomness without state
# ---------------------------------------------------------------------------------------------------------------------


def load_function(spec: str, *, flag: str) -> Callable:
    """The function of FILE.py:function, the value of `flag`. Raises DataError."""
    path, _, name = spec.rpartition(":")
    if not Path(path).is_file():
        raise DataError(f"{flag} {spec}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location("scoft_user_code", path)
    module = sys.modules["scoft_user_code"] = importlib.util.module_from_spec(module_spec)  # dataclasses look there
    module_spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise DataError(f"{flag} {spec}: {path} has no function {name}")
    return getattr(module, name)


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

"""Datasets such as CCUB, read and checked.

A row is a photograph a culture's own people chose, with their caption. Depending on the method it also has naive
captions (BLIP) and negatives: images that misrepresent the same scene. No model is known here; torch and datasets are
imported where they are used, so that a mistyped flag is answered at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scoft.launch import progress

import numpy as np
from PIL import Image

from scoft.dataset_rows import (
    ArrowCell,
    Columns,
    ImageFile,
    Place,
    Row,
    how_to_complete,
    hub_place,
    place_rows,
)
from scoft.dataset_source import READER_REMEDIES, DatasetSource, Remedies
from scoft.errors import DataError, legible, listing
from scoft.files import content_key
from scoft.images import UnusableImage, open_image, reading_key, upright_size
from scoft.metadata import EXAMPLE_LINE
from scoft.user_cache import Verdict, remembered_verdicts


logger = logging.getLogger(__name__)

MAX_TEXT = 10_000  # characters of a caption; CLIP reads 77 tokens


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
    image_files: list[ImageFile | ArrowCell]
    negative_files: list[list[ImageFile | ArrowCell]]

    def __len__(self) -> int:
        return len(self.names)

    def row_name(self, i: int) -> str:
        """How messages call row i, e.g. 'row 12 (images/ARCH_1.jpg)'; counted from 0 before any is left out."""
        return self.names[i]

    def image(self, i: int) -> Image.Image:
        """The photograph x+ of row i, upright, RGB, at its own size."""
        return _open_named(self.image_files[i], self.names[i])

    def size(self, i: int) -> tuple[int, int]:
        """Width and height of `image(i)`."""
        with _naming(self.names[i]):
            return upright_size(self.image_files[i].read_bytes())

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
    max_train_samples: int | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
    cache_dir: str | os.PathLike | None = None,
    dataset_revision: str | None = None,
    remember_in: Path | None = None,
    remedies: Remedies = READER_REMEDIES,
) -> CulturalDataset:
    """Read one culture of a dataset and check all of it, decoding every image once, so that training cannot trip.

    With `remember_in`, the folder of `user_cache`, an image is decoded no more that an earlier run found usable or
    not, as long as its path, size and time of change are the same (in parquet: those of the files).

    A folder is read in either of these layouts, alone or with one subfolder per culture:
    - `metadata.jsonl` or `metadata.csv` in it or in `<split>/`, with imagefolder's `file_name` and
      `negatives_file_names`, or the authors' `negative_imgpath`; paths count from the metadata's folder;
    - parquet files, in it, in `data/` or in `<split>/`, of the split that is in their names, or else all train.
    Its README may declare a config per culture. A dataset of the Hub is such a folder; `dataset_revision` is a branch,
    tag or commit of it. Without cultures it is taken whole. Only regular files of the dataset's own folder are read,
    and in parquet from the Hub only pictures that lie in the rows.

    With `max_train_samples` rows are shuffled by `seed` and the first ones kept, the same as in diffusers' scripts.
    `remedies`: how whoever asks gets on without what is missing, for messages.
    Raises DataError for all that is wrong; with `skip_bad_images` bad images, and rows without a usable caption, are
    left out with a warning instead.
    """
    place = _place_of(source, culture, split=split, cache_dir=cache_dir, revision=dataset_revision)
    blip, negatives = blip_caption_column if needs_blip else None, negatives_column if needs_negatives else None
    try:
        completing = how_to_complete(source, culture, remedies=remedies)
        columns = Columns(image_column, caption_column, blip, negatives, completing=completing, remedies=remedies)
        rows = place_rows(place, culture, split=split, columns=columns, cache_dir=cache_dir)
    except OSError as error:
        raise DataError(f"{source.name} cannot be read: {error}", argument="dataset") from error
    if not rows:
        words = f"{source.name}: split {split!r} is empty; give it rows, such as {EXAMPLE_LINE}"
        raise DataError(words, argument="dataset")
    if max_train_samples is not None:
        rows = _sample(rows, max_train_samples, seed=seed, dataset=source.name)
    commit = place.root.name if place.is_hub else None
    if remember_in is not None:
        remember_in /= f"images/{content_key(str(place.root.resolve()), culture, split)[:32]}.json"
    checks = {"columns": columns, "skip": skip_bad_images, "remember_in": remember_in}
    return _checked_dataset(rows, dataset=source.name, commit=commit, **checks)


def _place_of(
    source: DatasetSource,
    culture: str | None,
    *,
    split: str,
    cache_dir: str | os.PathLike | None,
    revision: str | None,
) -> Place:
    if source.kind == "hub":
        return hub_place(source, culture, split=split, cache_dir=cache_dir, revision=revision)
    if revision is not None:
        words = f"{revision} is of a Hub dataset, but {source.name} is a folder; leave it out"
        raise DataError(words, argument="dataset_revision")
    return Place(Path(source.location), within=Path(source.location), called=source.location)


def _sample(rows: list[Row], number: int, *, seed: int, dataset: str) -> list[Row]:
    """As many rows, by datasets' own shuffle(seed), hence diffusers' choice of them."""
    if not 1 <= number <= len(rows):
        words = f"{number} must be 1 to {len(rows)}, the rows of the dataset {dataset}."
        raise DataError(words, argument="max_train_samples")
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))[:number]]


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def _checked_dataset(
    rows: list[Row], *, dataset: str, commit: str | None, columns: Columns, skip: bool, remember_in: Path | None
) -> CulturalDataset:
    """What of the rows is usable; all of it must be but with `skip`. Raises DataError."""
    total, skipping = len(rows), {"skip": skip, "how_to_skip": columns.remedies.bad_rows}
    captions = _checked_texts(
        [(row.name, row.caption) for row in rows],
        column=columns.caption,
        argument="caption_column",
        fix="A caption is a string, or a list of strings, that is not blank.",
        **skipping,
    )
    blip_captions: dict[int, list[str]] = {i: [] for i in range(total)}
    if columns.blip_caption is not None:
        blip_captions = _checked_texts(
            [(row.name, row.blip_caption) for row in rows],
            column=columns.blip_caption,
            argument="blip_caption_column",
            fix=columns.blip_fix,
            **skipping,
        )
    usable = [i for i in range(total) if i in captions and i in blip_captions]
    rows, captions, blip_captions = ([each[i] for i in usable] for each in (rows, captions, blip_captions))
    warn_of_scripts([(row.name, text) for row, texts in zip(rows, captions) for text in texts])

    checked = _checked_images(rows, dataset=dataset, remember_in=remember_in, **skipping)
    kept = list(checked)
    if columns.negatives is not None and not any(checked[place].negative_files for place in kept):
        raise DataError(f"{dataset}: no row has a usable negative. {columns.negatives_fix}", argument="dataset")
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
        dropped=total - len(kept),
        names=[rows[i].name for i in kept],
        image_files=[rows[i].image_file for i in kept],
        negative_files=[checked[i].negative_files for i in kept],
    )


def unusable(text: object) -> str:
    """Why a caption cannot be used, as messages say it; '' if it can."""
    if not isinstance(text, str) or not text.strip():
        return legible(text, quoted=True)
    if found := re.search("[\0\ud800-\udfff]", text):  # which no tokenizer or no file takes
        return f"{found[0]!r} in {legible(text)}"
    return f"{len(text)} characters, of which {MAX_TEXT} are allowed" if len(text) > MAX_TEXT else ""


def _checked_texts(
    cells: Sequence[tuple[str, object]], *, column: str, argument: str, fix: str, skip: bool, how_to_skip: str
) -> dict[int, list[str]]:
    """Place of a cell, (row's name, what is written), of a column of captions -> its strings.

    A DataError of `argument`, the column's parameter, names the rows where one is missing, blank or not text; with
    `skip` a warning does, unless none is left.
    """
    good, bad = {}, []
    for i, (name, cell) in enumerate(cells):
        texts = cell if isinstance(cell, list) and cell else [cell]
        if why := next(filter(None, map(unusable, texts)), ""):
            bad.append(f"{name}: {why}")
        else:
            good[i] = texts
    if bad:
        message = f"{column!r} holds no usable caption in {len(bad)} of {len(cells)} rows"
        if not (skip and good):
            skipping = f" For bad rows alone: {how_to_skip}." if good else ""
            raise DataError(f"{message}: {listing(bad)}. {fix}{skipping}", argument=argument)
        logger.warning("Column %s, and they are left out: %s", message, listing(bad, shown=len(bad)))
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
            listing(foreign),
        )


@dataclass(frozen=True)
class _CheckedImages:
    """The images of a row that passed."""

    image_hash: str
    negative_hashes: list[str]
    negative_files: list[ImageFile | ArrowCell]


def _checked_images(
    rows: Sequence[Row], *, dataset: str, remember_in: Path | None, skip: bool, how_to_skip: str
) -> dict[int, _CheckedImages]:
    """Judge every image. Returns place in `rows` -> what passed; without the rows dropped."""
    files = [file for row in rows for file in (row.image_file, *row.negative_files)]
    verdicts = iter(_judged(files, remember_in=remember_in))

    checked, problems = {}, []
    for place, row in enumerate(rows):
        image = next(verdicts)
        if image.problem:
            problems.append(f"{row.name}: {image.problem}")
        negatives = []
        for k, file in enumerate(row.negative_files):
            verdict = next(verdicts)
            if verdict.problem:
                problems.append(f"{_negative_name(row.name, k, file)}: {verdict.problem}")
            else:
                negatives.append((verdict.sha256, file))
        if not image.problem:
            hashes, usable = [digest for digest, _ in negatives], [file for _, file in negatives]
            checked[place] = _CheckedImages(image.sha256, hashes, usable)

    if problems and not skip:
        raise DataError(
            f"{dataset}: {len(problems)} of {len(files)} images cannot be used: {listing(problems)}. "
            f"Repair or remove them; {how_to_skip}.",
            argument="dataset",
        )
    if problems:
        logger.warning("Left out are %d bad images: %s", len(problems), listing(problems, shown=len(problems)))
    if not checked:
        raise DataError(
            f"{dataset}: no usable image is left of {len(rows)} rows: {listing(problems)}.", argument="dataset"
        )
    return checked


def _judged(files: Sequence[ImageFile | ArrowCell], *, remember_in: Path | None) -> list[Verdict]:
    """Of each image what is known of it; it is decoded now, once, where no earlier run has done so."""
    names, new, found = [], {}, {}
    with remembered_verdicts(remember_in, key=reading_key()) as known:
        for place, file in enumerate(files):
            name, stamp = file.version() or (place, "")  # before it is read: what changes after this is seen
            names.append(name)
            if name not in known or known[name].stamp != stamp:
                new[name] = file, stamp
        quiet = len(new) < 100 or (remember_in is None and os.environ.get("LOCAL_RANK", "0") != "0")
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            verdicts = pool.map(_inspect, *zip(*new.values())) if new else ()
            verdicts = progress(verdicts, "Checking images", total=len(new), disable=quiet)
            for verdict, name in zip(verdicts, new):
                found[name] = verdict
                if verdict.stamp:
                    known[name] = verdict
        return [found.get(name) or known[name] for name in names]


def _inspect(file: ImageFile | ArrowCell, stamp: str) -> Verdict:
    """What decoding an image shows; under its stamp where this would be the same in another run, else under none."""
    try:
        data = file.read_bytes()
        open_image(data)
    except FileNotFoundError:
        return Verdict("", "", "the file does not exist")
    except (DataError, OSError) as error:
        return Verdict(stamp if isinstance(error, UnusableImage) else "", "", str(error))
    return Verdict(stamp, hashlib.sha256(data).hexdigest(), "")


def _open_named(file: ImageFile | ArrowCell, name: str) -> Image.Image:
    with _naming(name):
        return open_image(file.read_bytes())


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Raise DataError, which names the image, for what keeps it from being read inside."""
    try:
        yield
    except (DataError, OSError) as error:
        raise DataError(f"{name} was good when the run began and now is not: {error}") from error


def _negative_name(row_name: str, k: int, file: ImageFile | ArrowCell) -> str:
    return f"{row_name}, negative {k} ({file})"

"""What is looked at: the pictures that were drawn, and the photographs they are held against."""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scoft.dataset import CulturalDataset, read_dataset
from scoft.dataset_source import Remedies, find_dataset
from scoft.errors import DataError
from scoft.files import read_regular
from scoft.images import MAX_BYTES, SUFFIXES, open_file, open_image
from scoft.pictures import Picture


@dataclass(frozen=True)
class Source:
    """A picture or a photograph: the sha256 of its bytes, by which its features are kept, and how it is opened."""

    sha256: str
    open: Callable[[], Image.Image]


def picture_sources(folder: Path, pictures: Sequence[Picture]) -> list[Source]:
    """The pictures' files. Raises DataError where one is missing, or is not of the size of the others."""
    sources, sizes = [], defaultdict(list)
    for picture in pictures:
        file = folder / picture.file
        try:
            content = read_regular(file, within=folder, at_most=MAX_BYTES)
            sizes[open_image(content).size].append(picture.file)
        except (OSError, DataError) as error:
            raise DataError(f"{file} of the manifest cannot be read ({error}); run generate again.") from error
        sources.append(Source(hashlib.sha256(content).hexdigest(), functools.partial(open_file, file, within=folder)))
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height} ({files[0]})" for (width, height), files in sizes.items())
        raise DataError(f"{folder}: pictures of different sizes cannot be compared: {listed}. Run generate again.")
    return sources


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Which dataset has the culture's photographs, and where in it they and their captions are."""

    name: str  # as --dataset takes it
    culture: str
    revision: str | None
    image_column: str
    caption_column: str
    cache_dir: str | None
    remedies: Remedies  # ways out of what is wrong with it

    def read(self, split: str) -> CulturalDataset:
        return read_dataset(
            find_dataset(self.name, culture=self.culture),
            culture=self.culture,
            split=split,
            needs_blip=False,
            needs_negatives=False,
            image_column=self.image_column,
            caption_column=self.caption_column,
            cache_dir=self.cache_dir,
            dataset_revision=self.revision,
            remedies=self.remedies,
        )


class Photographs:
    """What pictures are held against, each read when it is first asked for.

    `general`: a folder of photographs of no culture.
    """

    def __init__(self, dataset: Dataset, general: Path | None = None):
        self.dataset, self.general = dataset, general
        self.rows = functools.cache(dataset.read)  # of a split
        self.of = functools.cache(self._of)

    def _of(self, which: str) -> list[Source]:
        """Those of a split, train or test, or the `general` ones. Raises DataError."""
        if which == "general":
            return folder_sources(self.general, flag="--general_reference")
        rows = self.rows(which)
        return [Source(sha256, functools.partial(rows.image, i)) for i, sha256 in enumerate(rows.image_hashes)]


def folder_sources(folder: Path, *, flag: str) -> list[Source]:
    """The pictures of a folder, which `flag` names, in the order of their names. Raises DataError."""
    sources = []
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES:
            try:
                content = read_regular(file, at_most=MAX_BYTES)
            except (OSError, DataError) as error:
                raise DataError(f"{flag}: {file} {error}; take it out of the folder.") from error
            sources.append(Source(hashlib.sha256(content).hexdigest(), functools.partial(open_file, file)))
    if len(sources) < 2:
        raise DataError(f"{flag} {folder}: got {len(sources)} pictures, need at least 2.")
    return sources

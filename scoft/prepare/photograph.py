"""A photograph on its way into the dataset: its line of the manifest, and its files."""

import dataclasses
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from scoft.errors import DataError
from scoft.files import checked_name, read_lines, write_atomically
from scoft.images import open_file


PERIODS = ("traditional", "modern")  # the paper asks each collector for photographs of both
NO_CATEGORY, UNKNOWN = "no category", "unknown"


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

    def keep(self, *, file: str, sha256: str, size: tuple[int, int]):
        """It is in the dataset, by its clean copy."""
        self.status, self.detail = "ok", ""
        self.file, self.sha256 = file, sha256
        self.width, self.height = size

    def leave_out(self, status: str, detail: str):
        """It is not in the dataset, for this reason."""
        self.status, self.detail = status, detail
        self.file = self.sha256 = ""
        self.width = self.height = 0


def read_photographs(folder: Path) -> list[Photograph]:
    """The photographs of a culture's folder, in the order of the input; none before the first run."""
    path, remedy = folder / "manifest.jsonl", "Remove the file, and begin again with --stages fetch."
    found = read_lines(path, Photograph, remedy=remedy)
    for photograph in found:
        for name in (photograph.id, *photograph.negatives):
            checked_name(name, what=f"{path}: what names a file")
        if photograph.file and not re.fullmatch(rf"photographs/{photograph.id}\.[a-z]+", photograph.file):
            raise DataError(f"{path}: {photograph.file!r} is no file of photograph {photograph.id}. {remedy}")
    return found


def write_photographs(folder: Path, photographs: Iterable[Photograph]):
    rows = [json.dumps(dataclasses.asdict(photograph), ensure_ascii=False) for photograph in photographs]
    write_atomically(folder / "manifest.jsonl", "".join(row + "\n" for row in rows))


def kept(photographs: Iterable[Photograph], *, split: str | None = None) -> list[Photograph]:
    """The photographs of the dataset, or of one of its splits."""
    return [photograph for photograph in photographs if photograph.file and split in (None, photograph.split)]


def open_kept(folder: Path, photograph: Photograph) -> Image.Image:
    return open_file(folder / photograph.file, within=folder)


def jpeg(picture: Image.Image, *, quality: int) -> bytes:
    """A file with colour at full resolution."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()

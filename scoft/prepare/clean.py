"""The stage clean: pixels alone, no doubles, nothing that is denied; and a split for each photograph."""

import dataclasses
import hashlib
import io
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scoft.launch import progress

import numpy as np
from PIL import Image, ImageCms

from scoft.errors import DataError
from scoft.files import Ledger, content_key, read_record, read_regular, write_atomically
from scoft.images import (
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    Room,
    UnusableImage,
    as_rgb,
    open_header,
    telling_damage,
    upright,
)
from scoft.prepare.fetch import Outcome
from scoft.prepare.photograph import (
    NO_CATEGORY,
    Photograph,
    jpeg,
    kept,
    png,
    read_photographs,
    write_photographs,
)
from scoft.prepare.web import PHOTOGRAPH_FORMATS, Fetcher, NotUsable
from scoft.prepare.work import Run


logger = logging.getLogger(__name__)

CLEAN_THREADS = 4
TOLD = ("min_size", "near_duplicate_bits", "test_share", "jpeg_quality")  # the settings of which the card tells


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A photograph ready to be kept: its file's bytes and format, its size, what finds its like."""

    content: bytes
    sha256: str  # of it
    suffix: str
    size: tuple[int, int]
    pixels: str  # equal for equal pictures
    hash: int  # of 128 bits, few of which differ between versions of one picture


@dataclass(frozen=True, kw_only=True)
class Clean:
    """The stage: from what came to photographs that are usable, each in a split."""

    images: Path | None  # where the pictures lie that were not fetched
    min_size: int  # pixels of the short side
    near_duplicate_bits: int
    jpeg_quality: int
    test_share: float
    seed: int

    def run(self, run: Run, photographs: list[Photograph], *, fetcher: Fetcher) -> list[Photograph]:
        """Those of the dataset. Raises DataError if there are none, unless fetching was all that was asked for."""
        if run.is_main:
            if run.does("clean"):
                self.clean(run, photographs, fetcher=fetcher)
            tell_of_losses(run, photographs)
        run.wait()
        return kept(read_photographs(run.folder))

    def clean(self, run: Run, photographs: list[Photograph], *, fetcher: Fetcher):
        """Clean what came, give it splits, and write that down. DataError where a folder of pictures is not given."""
        if self.images is None and any(photograph.picture for photograph in photographs):
            raise DataError("--stages clean: these photographs come from --images; give the folder again.")
        self.clean_photographs(photographs, run.folder, fetcher=fetcher)
        assign_splits(kept(photographs), test_share=self.test_share, seed=self.seed)
        write_photographs(run.folder, photographs)
        told = {name: getattr(self, name) for name in TOLD}
        write_atomically(run.folder / "clean.json", json.dumps(told))

    def told(self, run: Run) -> dict[str, object]:
        """The settings of which the card tells: those of the run that cleaned, which may be an earlier one."""
        return read_record(run.folder / "clean.json", dict[str, int | float], remedy="Run --stages clean again.")

    def clean_photographs(self, photographs: Sequence[Photograph], folder: Path, *, fetcher: Fetcher):
        """Write a clean copy of every usable photograph into the culture's folder, and into its line what it is, or
        why it is not usable.

        Of equal pictures, and of those whose hashes differ in at most `near_duplicate_bits`, the first is kept,
        whatever its split. (Of CCUB's Korean photographs no two differ in fewer than 44; a crop by 1 % changes up to
        10, a JPEG of quality 20 up to 5.) The fetched bytes of one on the deny-list are deleted.
        """
        copies, room = folder / "photographs", Room(MAX_PIXELS)
        copies.mkdir(exist_ok=True)
        came = [photograph for photograph in photographs if photograph.source_sha256]

        def copied(photograph: Photograph) -> Cleaned | NotUsable:
            try:
                result = self.clean_one(photograph, folder, room=room, fetcher=fetcher)
            except UnusableImage as reason:
                return NotUsable(reason.status, str(reason))
            except NotUsable as reason:
                return reason
            # Here and not below, where it would have to be held in memory until all before it are done.
            write_atomically(copies / f"{photograph.id}.{result.suffix}", result.content)
            return dataclasses.replace(result, content=b"")

        doubles = Doubles(near_duplicate_bits=self.near_duplicate_bits)
        with progress(desc="Cleaning", total=len(came)) as bar, ThreadPoolExecutor(CLEAN_THREADS) as pool:
            for photograph, result in zip(came, pool.map(copied, came)):
                bar.update()
                if isinstance(result, Cleaned) and (twin := doubles.first_like(result)):
                    result = NotUsable("duplicate", f"of {twin.origin}")
                if isinstance(result, Cleaned):
                    doubles.add(photograph, result)
                    file = f"{copies.name}/{photograph.id}.{result.suffix}"
                    photograph.keep(file=file, sha256=result.sha256, size=result.size)
                else:
                    photograph.leave_out(result.status, result.detail)
                    if result.status == "denied":
                        forget(photograph, folder)
        wanted = {photograph.file for photograph in photographs}
        for file in copies.iterdir():
            if f"{copies.name}/{file.name}" not in wanted:
                file.unlink()

    def clean_one(self, photograph: Photograph, folder: Path, *, room: Room, fetcher: Fetcher) -> Cleaned:
        """What came of a photograph, made clean, unless it is denied. Raises UnusableImage and NotUsable."""
        source = self.images or folder / "fetched"
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
        with room.of(math.prod(open_header(content, formats=formats, min_side=self.min_size).size)):
            result = cleaned(content, min_size=self.min_size, jpeg_quality=self.jpeg_quality)
        links = (photograph.url, photograph.final_url)
        hashes = (photograph.source_sha256, photograph.sha256, result.sha256)  # came, was published, is now
        if any(map(fetcher.denies, links)) or any(fetcher.denies(sha256=sha256) for sha256 in hashes):
            raise NotUsable("denied", "the deny-list names its link or content")
        return result


def tell_of_losses(run: Run, photographs: Sequence[Photograph]):
    """Log how many photographs are usable, and of each category what became of the others."""
    usable = kept(photographs)
    logger.info("%s: %d of %d are usable", run.culture, len(usable), len(photographs))
    losses = Counter((p.category or NO_CATEGORY, p.status) for p in photographs if not p.file)
    for (category, status), count in sorted(losses.items()):
        logger.info("  %s: %d %s", category, count, status)
    if not usable and list(run.stages) != ["fetch"]:
        reason = "says why" if photographs else "has no line: run the stages fetch and clean first"
        raise DataError(f"--culture {run.culture}: no photograph is usable; {run.folder / 'manifest.jsonl'} {reason}.")


class Doubles:
    """The pictures that were kept so far, by which others are found to be doubles."""

    def __init__(self, *, near_duplicate_bits: int):
        self.near_duplicate_bits = near_duplicate_bits
        self.by_pixels: dict[str, Photograph] = {}
        self.hashes: list[tuple[int, Photograph]] = []

    def first_like(self, cleaned: Cleaned) -> Photograph | None:
        near = (p for bits, p in self.hashes if (bits ^ cleaned.hash).bit_count() <= self.near_duplicate_bits)
        return self.by_pixels.get(cleaned.pixels) or next(near, None)

    def add(self, photograph: Photograph, cleaned: Cleaned):
        self.by_pixels[cleaned.pixels] = photograph
        self.hashes.append((cleaned.hash, photograph))


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

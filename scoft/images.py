"""Image files into pixels and back: decoded within bounds, upright, on white, and cut to what a model takes."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from PIL import ExifTags, Image, features

from scoft.errors import DataError
from scoft.files import content_key, read_regular, write_atomically


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb
MIN_SIDE = 8  # pixels; anything smaller is an icon or a tracking pixel, not a photograph
MAX_ASPECT = 20  # of the long side to the short one, to which all else is scaled; the longest panoramas stay below
MAX_BYTES = 2**28  # of an image file
MAX_DECODED = 2**27  # pixels that all threads together decode at a time, at 4 to 8 bytes each
STRIP = 2**20  # pixels that are converted at a time

# What photographs come in, by Pillow's names; nothing else is decoded: every decoder more is one more to trust, and
# that of EPS is another program. HEIF needs pillow-heif.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "GIF", "BMP")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}  # of these
_KINDS = {  # how a file begins -> what it is
    rb"\xff\xd8\xff": "JPEG",
    rb"\x89PNG\r\n\x1a\n": "PNG",
    rb"RIFF....WEBP": "WEBP",
    rb"....ftyp(....){0,9}?avi[fs]": "AVIF",
    rb"....ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)": "HEIF",
    rb"....ftypcrx |II\*\0.{4}CR|FUJIFILMCCD-RAW|IIR[OS]|IIU\0": "RAW",
    rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"GIF8[79]a": "GIF",
    rb"BM": "BMP",
    rb"....ftyp": "a film",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"8BPS": "PSD",
    rb"%!PS|\xc5\xd0\xd3\xc6": "EPS",
    rb"%PDF": "PDF",
    rb"(\xef\xbb\xbf)?\s*<": "markup (HTML, SVG or XML)",
}

# --image_interpolation_mode: the values of torchvision's InterpolationMode that apply to PIL images.
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_REDUCED = 254  # the TIFF tag NewSubfileType, whose first bit says that this is a smaller copy of another picture
_UPRIGHT = {  # EXIF orientation -> what undoes it; 1 is upright and other values mean nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # those whose width is the upright height


class UnusableImage(DataError):
    """Why a file gives no picture: `status` is not_an_image, too_many_pixels, too_small, too_long or corrupt."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status


def kind_of(content: bytes) -> str:
    """What a file is, told by how it begins: one of FORMATS, the name of something else, or 'unknown data'."""
    return next((kind for magic, kind in _KINDS.items() if re.match(magic, content, re.DOTALL)), "unknown data")


def open_image(data: bytes | str | os.PathLike) -> Image.Image:
    """Decode an image file, given as bytes or path, to 8-bit RGB as a viewer on a white page would show it.

    Content decides the format, one of FORMATS, not the file's name. The EXIF orientation is applied (outside 1..8 it
    says nothing); transparency is composited on white; 16-bit is scaled to 8. Raises UnusableImage, see `open_header`,
    also if it is truncated; DataError for more than MAX_BYTES; FileNotFoundError for a path that does not exist.
    """
    image = open_header(data if isinstance(data, bytes) else read_regular(Path(data), at_most=MAX_BYTES))
    with _decoding.of(image.width * image.height), telling_damage():
        image.load()
        return as_rgb(upright(image))


def open_header(content: bytes, *, formats: Sequence[str] = FORMATS, min_side: int = MIN_SIDE) -> Image.Image:
    """An image that is not decoded yet; pixels, mode, EXIF and ICC profile are as they are in the file.

    Raises UnusableImage if it is none of `formats`, is animated, has more than MAX_PIXELS, a side below `min_side` (at
    least MIN_SIDE) or one MAX_ASPECT times the other.
    """
    with telling_damage():
        image = Image.open(io.BytesIO(content), formats=[_readable(kind_of(content), formats)])
        _check_header(image, min_side=max(min_side, MIN_SIDE))
        return image


@contextlib.contextmanager
def telling_damage() -> Iterator[None]:
    """Turn what a decoder raises on damaged bytes into UnusableImage."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImage("too_many_pixels", f"has too many pixels; {MAX_PIXELS} are allowed ({error})") from error
    except Image.UnidentifiedImageError as error:  # Pillow's words name a place in memory
        raise UnusableImage("corrupt", "is not an image, or a damaged one: its header cannot be read") from error
    except Exception as error:  # nearly every type there is
        raise UnusableImage("corrupt", f"is not an image, or a damaged one ({error})") from error


def open_file(path: Path, *, within: Path | None = None) -> Image.Image:
    """The picture in a file, see `read_regular` and `open_image`. Raises DataError, which names the file."""
    try:
        return open_image(read_regular(path, within=within, at_most=MAX_BYTES))
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def write_png(path: Path, image: Image.Image):
    """The pixels alone, without what the image's own file told of it, such as its colour profile; atomically."""
    content, bare = io.BytesIO(), image.copy()
    bare.info.clear()
    bare.save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def is_blank(image: Image.Image) -> bool:
    """Whether a picture is of one colour: the safety checker's black, or what is not finite."""
    return all(low == high for low, high in image.convert("RGB").getextrema())


def reading_key() -> str:
    """In keys of caches: which files `open_image` takes, and by whose decoders."""
    try:
        heif = version("pillow-heif")
    except PackageNotFoundError:
        heif = None
    decoders = [PIL.__version__, heif, *map(features.check, ("avif", "webp"))]
    return content_key(decoders, FORMATS, MAX_PIXELS, MIN_SIDE, MAX_ASPECT)


def _readable(kind: str, formats: Sequence[str]) -> str:
    """`kind`, if it is one of `formats` and can be decoded here. UnusableImage says what to do with another file."""
    if kind == "unknown data":
        raise UnusableImage("not_an_image", "is not an image, or a damaged one")
    if kind not in formats:
        what = "develop it to" if kind == "RAW" else "save it as"
        raise UnusableImage("not_an_image", f"is {kind}, which is not an image that is read here; {what} JPEG or PNG")
    if kind == "HEIF":
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError as error:
            raise UnusableImage(
                "not_an_image",
                "is HEIC, as phones write it; `pip install pillow-heif` lets it be read, or save it as JPEG",
            ) from error
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        raise UnusableImage(
            "not_an_image", f"is {kind}, which this Pillow cannot read; `pip install -U Pillow`, or save it as JPEG"
        )
    return kind


class Room:
    """Pixels that all threads share: who needs more than are free waits until others are done."""

    def __init__(self, pixels: int):
        self.free, self.changed = pixels, threading.Condition()

    @contextlib.contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: self.free >= pixels)
            self.free -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.free += pixels
                self.changed.notify_all()


_decoding = Room(MAX_DECODED)


def check_size(width: int, height: int, *, min_side: int = MIN_SIDE):
    """Whether a picture of that many pixels can be used, before it is decoded. Raises UnusableImage."""
    if width * height > MAX_PIXELS:
        raise UnusableImage("too_many_pixels", f"has too many pixels ({width} x {height}); {MAX_PIXELS} are allowed")
    if min(width, height) < min_side:
        raise UnusableImage("too_small", f"is {width} x {height} pixels; each side must have at least {min_side}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnusableImage(
            "too_long", f"is {width} x {height} pixels; no side may be more than {MAX_ASPECT} times the other: crop it"
        )


def _check_header(image: Image.Image, *, min_side: int):
    check_size(*image.size, min_side=min_side)
    if image.mode == "F":
        raise UnusableImage(
            "not_an_image", "holds floating-point pixels, which do not say what white is; save it with 8 bits, as PNG"
        )
    if image.format == "TIFF" and (image.tag_v2.get(_REDUCED, 0) & 1 or ExifTags.Base.DNGVersion in image.tag_v2):
        raise UnusableImage("not_an_image", "is RAW, of which only a preview could be read; develop it to JPEG or PNG")
    # the further pictures in an MPO or a HEIF, which phones write, are other views of the same photograph
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "HEIF"):
        raise UnusableImage(
            "not_an_image",
            f"is animated or has pages ({image.format}); save the one picture that is meant as JPEG or PNG",
        )


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be looked at. What is outside 1..8 says nothing."""
    # ImageOps.exif_transpose also writes the EXIF block anew, which fails where other tags of it are invalid
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, struct.error) as error:
        logger.debug("orientation unknown, the EXIF block is unreadable: %s", error)
        return None


def upright_size(content: bytes) -> tuple[int, int]:
    """Width and height of the picture that `open_image` decodes; raises what that does.

    From the header alone, but for PNG, whose orientation may stand behind the pixels.
    """
    with telling_damage():
        image = open_header(content)
        is_turned = image.format != "TIFF" and _orientation(image) in _LYING  # Pillow turns a TIFF's size by itself
        return image.size[::-1] if is_turned else image.size


def as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, what is transparent on white; it may be `image` itself."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    page = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        page.paste(_strip_as_rgb(image.crop(box)), box)
    return page


def _strip_as_rgb(strip: Image.Image) -> Image.Image:
    if strip.mode == "I" or strip.mode.startswith("I;16"):
        # Pillow's own conversion would clip at 255, which turns a photograph white
        return Image.fromarray((np.asarray(strip).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    page = Image.new("RGBA", strip.size, "white")
    page.alpha_composite(strip.convert("RGBA"))
    return page.convert("RGB")


@dataclass(frozen=True)
class ImageTransform:
    """PIL RGB image -> float32 tensor (3, R, R) in [-1, 1]: shorter side to R = `resolution`, a square crop, a flip.

    Differs from the authors' code: it draws flip and crop anew for each negative; here both are arguments, and the
    crop is a relative position, so a photograph and its negatives stay aligned though their sizes in pixels differ.
    """

    resolution: int
    interpolation: str = "lanczos"

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"resolution {self.resolution} must be at least 1.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}.")

    def square(self, image: Image.Image, *, crop: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
        """The R x R pixels that are taken of it; of such a square they are all.

        `crop` is where it lies (down, across): (0, 0) top left, (0.5, 0.5) center, (1, 1) bottom right.
        """
        scaled, (left, top) = self._scaled(image.size), self._corner(image.size, crop=crop)
        if scaled != image.size:
            image = image.resize(scaled, INTERPOLATIONS[self.interpolation])
        return image.crop((left, top, left + self.resolution, top + self.resolution))

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of a picture of this size whose shorter side is R."""
        return tuple(int(self.resolution * side / min(size)) for side in size)

    def _corner(self, size: tuple[int, int], *, crop: tuple[float, float]) -> tuple[int, int]:
        """Left and top of the square in the scaled picture."""
        if not all(0 <= place <= 1 for place in crop):
            raise ValueError(f"crop {crop} must lie in 0..1.")
        width, height = self._scaled(size)
        return round((width - self.resolution) * crop[1]), round((height - self.resolution) * crop[0])

    def frame(
        self, size: tuple[int, int], *, flip: bool = False, crop: tuple[float, float] = (0.5, 0.5)
    ) -> tuple[int, int, int, int]:
        """What can be told of a square beside its pixels: height and width of the picture that it was cut from, and
        top and left of it in that picture, scaled and, with `flip`, mirrored.
        """
        (width, height), (left, top) = size, self._corner(size, crop=crop)
        if flip:
            left = self._scaled(size)[0] - self.resolution - left
        return height, width, top, left

    def __call__(
        self, image: Image.Image, *, flip: bool = False, crop: tuple[float, float] = (0.5, 0.5)
    ) -> torch.Tensor:
        """The square, see there for `crop`. It is flipped, left to right, after it is cut."""
        import torch

        image = self.square(image, crop=crop)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return (pixels.float() / 255 - 0.5) / 0.5

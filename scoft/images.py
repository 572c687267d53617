"""Image files into pixels: decoded within bounds, upright, on white, and cut to what a model takes."""

from __future__ import annotations

import io
import logging
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from scoft.errors import DataError


if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MAX_PIXELS = 89_478_485  # where Pillow begins to warn of a decompression bomb
MIN_SIDE = 8  # pixels; anything smaller is an icon or a tracking pixel, not a photograph

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
_UPRIGHT = {  # EXIF orientation -> what undoes it; 1 is upright and other values mean nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(data: bytes | str | os.PathLike) -> Image.Image:
    """Decode an image file, given as bytes or path, to 8-bit RGB as a viewer on a white page would show it.

    Content decides the format, not the file's name. The EXIF orientation is applied (outside 1..8 it says nothing);
    transparency is composited on white; 16-bit is scaled to 8. Raises DataError if it is not an image, is truncated or
    animated, has more than MAX_PIXELS pixels (told by the header, before decoding) or a side below MIN_SIDE; a path
    that does not exist raises FileNotFoundError.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            _check_header(image)
            image.load()
            return as_rgb(upright(image))
    except (DataError, FileNotFoundError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"has too many pixels; {MAX_PIXELS} are allowed ({error})") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly every type there is
        raise DataError(f"is not an image, or a damaged one ({error})") from error


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"has too many pixels ({width} x {height}); {MAX_PIXELS} are allowed")
    if min(width, height) < MIN_SIDE:
        raise DataError(f"is {width} x {height} pixels; each side must have at least {MIN_SIDE}")
    if image.mode == "F":
        raise DataError("holds floating-point pixels, which do not say what white is; save it with 8 bits")
    # the further frames of an MPO, which phones write, are other views of the same photograph
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(f"is animated or has pages ({image.format}, {frames} frames); one picture is needed")


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be looked at. What is outside 1..8 says nothing."""
    # ImageOps.exif_transpose also writes the EXIF block anew, which fails where other tags of it are invalid
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, struct.error) as error:
        logger.debug("orientation unknown, the EXIF block is unreadable: %s", error)
        return image
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, what is transparent on white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion would clip at 255, which turns a photograph white
        grey = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
        grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
        image = grey
    if not image.has_transparency_data:
        return image.convert("RGB")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
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
            raise ValueError(f"--resolution {self.resolution} must be at least 1.")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"--image_interpolation_mode {self.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}."
            )

    def __call__(
        self, image: Image.Image, *, flip: bool = False, crop: tuple[float, float] = (0.5, 0.5)
    ) -> torch.Tensor:
        """`crop` is where the square lies (down, across): (0, 0) top left, (0.5, 0.5) center, (1, 1) bottom right.

        The flip, left to right, comes after the crop, so `crop` is a place in the picture as it was.
        """
        import torch

        if not all(0 <= place <= 1 for place in crop):
            raise ValueError(f"crop {crop} must lie in 0..1.")
        width, height = image.size
        short, size = min(width, height), self.resolution
        width, height = int(size * width / short), int(size * height / short)
        if (width, height) != image.size:
            image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        top, left = round((height - size) * crop[0]), round((width - size) * crop[1])
        image = image.crop((left, top, left + size, top + size))
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return (pixels.float() / 255 - 0.5) / 0.5

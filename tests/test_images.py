"""Pictures: opened whatever is in the file, scaled, cropped and flipped alike."""

import io
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from layouts import COLOURS, encoded, noise, plain
from scoft import dataset, images
from scoft.errors import DataError
from scoft.images import ImageTransform, as_rgb, is_blank, open_file, open_image, upright_size, write_png


def refuse(error):
    def call(*_, **__):
        raise error

    return call


ROOT = Path(dataset.__file__).parents[1]


# Opening -------------------------------------------------------------------------------------------------------------


def oriented(value, file_format="JPEG"):
    """Left half black, right half white, 32 x 16, with an EXIF orientation."""
    image = Image.new("RGB", (32, 16))
    image.paste("white", (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(image, file_format, exif=exif)


@pytest.mark.parametrize(
    ("value", "size", "white"),
    [
        (1, (32, 16), (28, 8)),
        (2, (32, 16), (4, 8)),
        (3, (32, 16), (4, 8)),
        (6, (16, 32), (8, 28)),
        (8, (16, 32), (8, 4)),
        (0, (32, 16), (28, 8)),
        (77, (32, 16), (28, 8)),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_orientation(value, size, white, file_format):
    """The EXIF orientation turns the pixels, once; an invalid one does nothing."""
    image = open_image(oriented(value, file_format))
    assert image.size == size
    assert min(image.getpixel(white)) > 250
    assert max(image.getpixel((size[0] - 1 - white[0], size[1] - 1 - white[1]))) < 5


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0MM\0*", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif(exif, file_format):
    """A photograph with an unreadable EXIF block opens as it is."""
    assert open_image(encoded(Image.new("RGB", (24, 16)), file_format, exif=exif)).size == (24, 16)


def test_transparency_on_white():
    """Transparent pixels show white whatever colour hides below, half transparent ones half of it."""
    rgba = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    rgba.putpixel((3, 0), (0, 0, 0, 128))
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((3, 0), 1)
    assert [open_image(encoded(rgba)).getpixel(at) for at in ((0, 0), (3, 0))] == [(255,) * 3, (127,) * 3]
    opened = open_image(encoded(palette, transparency=0))
    assert [opened.getpixel(at) for at in ((0, 0), (3, 0))] == [(255,) * 3, (0, 0, 200)]
    assert open_image(encoded(Image.new("LA", (16, 16), (0, 0)))).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize(
    ("data", "pixel"),
    [
        (encoded(Image.fromarray(np.full((16, 16), 40000, np.uint16))), (156,) * 3),
        (encoded(Image.fromarray(np.full((16, 16), 40000, np.uint16)), "TIFF"), (156,) * 3),
        (encoded(Image.fromarray(np.full((16, 16), 40000, np.int32)), "TIFF"), (156,) * 3),
        (encoded(Image.new("RGB", (16, 16), (7, 8, 9)), "BMP"), (7, 8, 9)),
        (encoded(Image.new("RGB", (16, 16), (200, 8, 9)), "AVIF", quality=100, subsampling="4:4:4"), (200, 8, 9)),
        (encoded(Image.new("L", (16, 16), 77)), (77,) * 3),
        (encoded(Image.new("1", (16, 16), 1)), (255,) * 3),
        (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    ],
    ids=["16-bit png", "16-bit tiff", "32-bit tiff", "bmp", "avif", "grey", "bilevel", "cmyk"],
)
def test_modes(data, pixel):
    """Every colour mode becomes 8-bit RGB of the same look."""
    image = open_image(data)
    assert image.mode == "RGB"
    assert np.abs(np.subtract(image.getpixel((5, 5)), pixel)).max() <= 2


def test_16_bit_orientation():
    """A 16-bit image is turned too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.zeros((16, 32), np.uint16)), exif=exif)
    assert open_image(data).size == (16, 32)


def test_wrong_extension(tmp_path):
    """A PNG named .jpg opens: the content decides."""
    (tmp_path / "a.jpg").write_bytes(plain("blue"))
    assert open_image(tmp_path / "a.jpg").getpixel((0, 0)) == COLOURS["blue"]


def test_mpo_is_a_photograph():
    """The further views in a phone's MPO file do not make it an animation; the first is the photograph."""
    views = [Image.new("RGB", (24, 16), colour) for colour in ("white", "black")]
    data = encoded(views[0], "MPO", save_all=True, append_images=views[1:])
    assert open_image(data).getpixel((0, 0)) == (255,) * 3


def tiff(**tags):
    return encoded(Image.new("RGB", (24, 16)), "TIFF", tiffinfo={int(tag[1:]): value for tag, value in tags.items()})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(Image.new("L", (16, 16)), "PPM"), "is not an image"),
        (encoded(Image.new("RGB", (16, 16)), "TGA"), "is not an image"),
        (encoded(Image.new("RGB", (16, 16)), "JPEG2000"), "is JPEG 2000, .*save it as JPEG or PNG"),
        (encoded(Image.new("RGB", (16, 16)), "PDF"), "is PDF, .*save it as JPEG or PNG"),
        (b"\xff\x0a and more", "is JPEG XL, .*save it as JPEG or PNG"),
        (b"<?xml version='1.0'?><svg/>", "is markup .*SVG.*save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "is a film, "),
        (b"\0\0\0\x18ftypcrx \0\0\0\0crx isom", "is RAW, .*develop it to JPEG or PNG"),
        (b"II*\0\x10\0\0\0CR\2\0", "is RAW, .*develop it to JPEG or PNG"),
        (tiff(_254=1), "is RAW, of which only a preview could be read; develop it to JPEG or PNG"),
        (tiff(_50706=b"\1\4\0\0"), "is RAW, of which only a preview could be read; develop it to JPEG or PNG"),
    ],
)
def test_other_formats_are_named(data, message):
    """What photographs do not come in is never given to a decoder, and is told by name with the way out."""
    with pytest.raises(DataError, match=message):
        open_image(data)


def test_eps_starts_no_program(monkeypatch):
    """Pillow hands EPS to Ghostscript; we do not hand it to Pillow."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", refuse(AssertionError("Ghostscript was started")))
    with pytest.raises(DataError, match="is EPS"):
        open_image(encoded(Image.new("RGB", (24, 16)), "EPS"))


def test_heic_without_its_package(monkeypatch):
    """A phone's HEIC is told by name with the package that reads it."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match="is HEIC, .*`pip install pillow-heif` lets it be read, or save it as JPEG"):
        open_image(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf")


def test_heic():
    """Where pillow-heif is installed, HEIC opens."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    image = open_image(encoded(Image.new("RGB", (32, 16), (200, 8, 9)), "HEIF", quality=100))
    assert image.size == (32, 16) and np.abs(np.subtract(image.getpixel((5, 5)), (200, 8, 9))).max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16", "I"])
def test_strips_change_nothing(monkeypatch, mode):
    """A large picture is converted strip by strip to the same pixels."""
    if mode.startswith("I"):
        image = Image.fromarray(np.arange(37 * 29).reshape(29, 37).astype(np.uint16 if ";" in mode else np.int32) * 60)
    else:
        image = noise((37, 29), "RGBA").convert({"PA": "P"}.get(mode, mode)).convert(mode)
    whole = as_rgb(image)
    monkeypatch.setattr("scoft.images.STRIP", 100)
    assert as_rgb(image).tobytes() == whole.tobytes() and np.ptp(np.asarray(whole)) > 100


def test_large_pictures_take_turns(monkeypatch):
    """All threads together decode no more pixels at a time than there is room for."""
    room, most = images.Room(100), 0

    def decode(pixels):
        nonlocal most
        with room.of(pixels):
            most = max(most, 100 - room.free)
            time.sleep(0.002)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [60, 10, 100, 45, 45, 60, 5, 30] * 3))
    assert 60 < most <= 100 and room.free == 100


def test_want_of_memory_is_no_damage(monkeypatch):
    """Where memory runs out, the picture is not called damaged."""
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse(MemoryError()))
    with pytest.raises(MemoryError):
        open_image(plain("red"))


@pytest.mark.parametrize("made", [lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")])
def test_only_files_are_opened(tmp_path, made):
    """A pipe, which would hang, and a device, which would never end, are refused."""
    made(tmp_path / "a.png")
    with pytest.raises(DataError, match="is not a regular file"):
        open_image(tmp_path / "a.png")


def test_what_cannot_be_opened_is_named(tmp_path):
    """Absent, no image, or outside of where files are read: the message begins with the file."""
    (tmp_path / "a.png").write_text("no image")
    (tmp_path / "within").mkdir()
    for name, why in {"absent.png": "No such file", "a.png": "is not an image"}.items():
        with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / name))} cannot be read: .*{why}"):
            open_file(tmp_path / name)
    with pytest.raises(DataError, match=r"a\.png cannot be read: lies outside of"):
        open_file(tmp_path / "a.png", within=tmp_path / "within")


def test_a_png_is_written_without_metadata(tmp_path):
    """Neither a colour profile nor a comment of the file that the pixels came from goes along; the pixels do."""
    image = Image.open(io.BytesIO(encoded(Image.radial_gradient("L").convert("RGB"), icc_profile=b"profile")))
    write_png(tmp_path / "new" / "a.png", image)
    content = (tmp_path / "new" / "a.png").read_bytes()
    assert not Image.open(io.BytesIO(content)).info and "icc_profile" in image.info
    assert open_file(tmp_path / "new" / "a.png").tobytes() == image.tobytes()


def test_a_picture_of_one_colour_is_blank():
    assert is_blank(Image.new("RGB", (8, 8), "navy")) and not is_blank(Image.radial_gradient("L"))


# The transform -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(97, 61), (40, 71), (32, 32), (500, 33), (32, 35), (35, 32)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_transform_equals_torchvision(size, interpolation):
    """The center crop is torchvision's Resize, CenterCrop, ToTensor and Normalize, bit for bit."""
    image = noise(size)
    reference = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    assert torch.equal(ImageTransform(32, interpolation)(image), reference(image))


def test_transform_range():
    """Black is -1, white is 1, in a contiguous float32 tensor (3, R, R)."""
    for colour, value in (("black", -1), ("white", 1)):
        pixels = ImageTransform(16)(Image.new("RGB", (40, 24), colour))
        assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.float32 and pixels.is_contiguous()
        assert pixels.min() == pixels.max() == value


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [(0.5, 0.5), (0.0, 0.1), (0.3, 0.9), (1.0, 1.0)])
def test_transform_keeps_sizes_aligned(flip, crop):
    """A photograph and the same picture at another size stay aligned to a pixel under the same flip and crop."""
    across = np.linspace(0, 255, 1200)[None, :, None].repeat(800, 0).repeat(3, 2)
    across[:, :, 1] = np.linspace(0, 255, 800)[:, None]
    photograph = Image.fromarray(across.astype(np.uint8))
    transform = ImageTransform(64)
    one, other = (transform(image, flip=flip, crop=crop) for image in (photograph, photograph.resize((300, 200))))
    per_pixel = 2 / 64  # how much the vertical ramp changes from a pixel to the next
    assert (one - other).abs().max() < per_pixel
    assert (one - transform(photograph, flip=not flip, crop=crop)).abs().max() > 0.5


def test_transform_crop_and_flip_places():
    """Crop (down, across) 0 is top left and 1 bottom right, and the flip mirrors what the crop chose."""
    wide = Image.fromarray(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2))
    transform = ImageTransform(16)
    left, right = transform(wide, crop=(0.5, 0.0)), transform(wide, crop=(0.5, 1.0))
    assert left[0, 0, 0] == -1 and right[0, 0, -1] == (252 / 255 - 0.5) / 0.5
    assert torch.equal(transform(wide, flip=True, crop=(0.5, 0.0)), left.flip(-1))
    assert torch.equal(transform(wide.rotate(-90, expand=True), crop=(0.0, 0.5))[:, 0, 0], left[:, 0, 0])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [(0.5, 0.5), (0.0, 0.1), (0.3, 0.9)])
@pytest.mark.parametrize("size", [(48, 32), (32, 61), (97, 61), (16, 16)])
def test_frame_is_where_the_square_lies(size, crop, flip):
    """Height and width of the picture, and the square's corner in it once it is scaled, and mirrored with a flip."""
    transform, image = ImageTransform(16), noise(size)
    height, width, top, left = transform.frame(size, flip=flip, crop=crop)
    assert (width, height) == size
    scaled = image.resize((int(16 * width / min(size)), int(16 * height / min(size))), Image.Resampling.LANCZOS)
    if flip:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    square = scaled.crop((left, top, left + 16, top + 16))
    assert torch.equal(transform(square), transform(image, flip=flip, crop=crop))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("value", [1, 3, 5, 6, 8, 9])
def test_the_upright_size_is_that_of_the_picture(value, file_format, monkeypatch):
    """By the orientation in its header; a JPEG is not decoded."""
    content = oriented(value, file_format)
    expected = open_image(content).size
    if file_format == "JPEG":
        monkeypatch.setattr(Image.Image, "load", refuse(AssertionError("decoded")))
    assert upright_size(content) == expected == ((16, 32) if value in (5, 6, 8) else (32, 16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageTransform(0), "resolution 0"),
        (lambda: ImageTransform(8, "cubic"), "interpolation 'cubic'.*lanczos"),
        (lambda: ImageTransform(8)(Image.new("RGB", (9, 9)), crop=(0.5, 1.5)), r"crop \(0.5, 1.5\)"),
    ],
)
def test_transform_refuses(call, message):
    """A resolution, interpolation or crop that means nothing is refused by name."""
    with pytest.raises(ValueError, match=message):
        call()

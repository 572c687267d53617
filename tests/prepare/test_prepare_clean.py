"""The stage clean: nothing but the picture is left, doubles and what is denied go, splits stay."""

import functools
import io
import struct
import threading
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from loopback import png_of
from preparing import encoded, picture, prepare, statuses, write_images, write_sheet
from scoft.cultures import CATEGORIES
from scoft.errors import DataError
from scoft.images import FORMATS, UnusableImage
from scoft.prepare import clean
from scoft.prepare.clean import Clean, assign_splits
from scoft.prepare.fetch import known_again
from scoft.prepare.photograph import Photograph, read_photographs
from scoft.prepare.web import Fetcher


cleaned = functools.partial(clean.cleaned, jpeg_quality=95)

pytestmark = pytest.mark.usefixtures("threads_given_back")


SECRET = b"37.5665N 126.9780E"


def secret_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, SECRET.decode()
    exif.get_ifd(0x8825)[1] = "N"
    return exif


def srgb_profile(*, swapped: bool = False) -> bytes:
    """An sRGB profile; `swapped`, one whose red is sRGB's green and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        profile = profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
    return profile


def behind_jfif(content: bytes, marker: bytes, data: bytes) -> bytes:
    """A JPEG with one more segment behind its first."""
    (length,) = struct.unpack(">H", content[4:6])
    return content[: 4 + length] + marker + struct.pack(">H", len(data) + 2) + data + content[4 + length :]


CLEAN = encoded(picture(0), quality=90)
THUMBNAIL = b"JFIF\0\1\1\0\0\1\0\1" + bytes([1, 6]) + SECRET


@pytest.mark.parametrize(
    "dirty",
    [
        encoded(picture(0), exif=secret_exif()),
        encoded(picture(0), comment=SECRET),
        encoded(picture(0), icc_profile=srgb_profile() + SECRET),
        encoded(picture(0), xmp=SECRET),
        CLEAN + SECRET,
        CLEAN + SECRET + b"\xff\xd9",
        CLEAN[:2] + behind_jfif(CLEAN, b"\xff\xe0", THUMBNAIL)[20:],
        behind_jfif(CLEAN, b"\xff\xed", b"Photoshop 3.0\0" + SECRET),
        encoded(picture(0), "MPO", save_all=True, append_images=[picture(1)]) + SECRET,
        encoded(picture(0), "WEBP", exif=secret_exif(), xmp=SECRET, lossless=True),
        encoded(picture(0), "PNG", exif=secret_exif(), icc_profile=srgb_profile()) + SECRET,
    ],
    ids=["exif", "comment", "icc", "xmp", "behind", "behind with an end", "thumbnail", "iptc", "mpo", "webp", "png"],
)
def test_nothing_but_the_picture_is_left(dirty):
    """EXIF, GPS, XMP, profiles, comments, thumbnails, second pictures and what lies behind the end are gone."""
    assert SECRET in dirty
    clean = cleaned(dirty, min_size=16)
    assert SECRET not in clean.content
    with Image.open(io.BytesIO(clean.content)) as image:
        assert not image.getexif() and not {"exif", "icc_profile", "xmp", "comment"} & set(image.info)
        difference = np.asarray(image.convert("RGB"), int) - np.asarray(picture(0), int)
    assert np.abs(difference).mean() < 10  # another picture's is about 80
    assert clean.size == (40, 32) and clean.suffix == ("png" if dirty.startswith(b"\x89PNG") else "jpg")


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def before_scan(*segments: bytes) -> bytes:
    at = CLEAN.index(b"\xff\xda")
    return CLEAN[:at] + b"".join(segments) + CLEAN[at:]


TABLE = (SECRET * 4)[:64]  # a quantisation table that no component uses


@pytest.mark.parametrize(
    "dirty",
    [
        CLEAN[:-2] + segment(0xDC, struct.pack(">H", 32) + SECRET) + CLEAN[-2:],
        CLEAN[:-2] + SECRET + CLEAN[-2:],
        CLEAN[:-2] + b"\xff" * 9 + b"\xd9",
        CLEAN[:2] + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") * 3 + CLEAN[20:],
        before_scan(*(segment(0xE0, SECRET[i : i + 9]) for i in range(0, len(SECRET), 9))),
        before_scan(*(segment(0xEE, SECRET[i : i + 9]) for i in range(0, len(SECRET), 9))),
        before_scan(segment(0xDB, b"\3" + TABLE)),
        before_scan(segment(0xDB, b"\0" + TABLE), CLEAN[CLEAN.index(b"\xff\xdb") :][:69]),  # of two the last holds
        before_scan(segment(0xC4, b"\x13" + bytes([0, 1, 2, 3, 4, 5, 6, 7, *[0] * 8]) + (SECRET * 2)[:28])),
    ],
    ids=["DNL", "before the end", "fill bytes", "three APP0", "APP0", "APP14", "spare DQT", "first DQT", "spare DHT"],
)  # fmt: skip
def test_no_byte_of_a_jpeg_is_taken_over(dirty):
    """Whatever else a JPEG holds, its clean copy is, byte for byte, that of the same pixels without it."""
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(dirty))), np.asarray(Image.open(io.BytesIO(CLEAN))))
    assert cleaned(dirty, min_size=16).content == cleaned(CLEAN, min_size=16).content


def test_the_tables_of_a_jpeg_are_not_taken_over():
    """A quantisation table says what it will where the coefficients are nought; the clean copy has its own."""
    grey, tables = Image.new("RGB", (40, 32), (128, 128, 128)), [list(TABLE), list(TABLE[::-1])]
    dirty = encoded(grey, qtables=tables)
    assert len(set(TABLE) & set(dirty)) == len(set(TABLE))
    assert cleaned(dirty, min_size=16).content == cleaned(encoded(grey), min_size=16).content


def test_texts_of_a_png_are_gone():
    """A PNG's text chunks are dropped, its pixels kept exactly."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", SECRET.decode())
    notes.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    dirty = encoded(picture(0), "PNG", pnginfo=notes)
    clean = cleaned(dirty, min_size=16).content
    assert SECRET in dirty and SECRET not in clean
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(clean))), np.asarray(picture(0)))


@pytest.mark.parametrize(
    "content", [CLEAN, encoded(picture(0), "PNG"), encoded(picture(0, (400, 300)), quality=80, progressive=True)]
)
def test_a_clean_copy_is_the_picture_and_always_the_same(content):
    """Clean copies of a file are equal byte for byte; encoded anew, a photograph changes by less than can be seen."""
    once = cleaned(content, min_size=16)
    assert cleaned(content, min_size=16) == once
    found, came = (np.asarray(Image.open(io.BytesIO(each)), float) for each in (once.content, content))
    assert np.square(found - came).mean() < 255**2 / 10**4.2  # 42 dB


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(file_format, orientation):
    """A photograph taken sideways or mirrored stands upright, and says nothing of it any more."""
    upright = picture(0)
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # what the camera did to it
    sensor = functools.reduce(Image.Image.transpose, turns.get(orientation, []), upright)
    found = cleaned(encoded(sensor, file_format, exif=secret_exif(orientation)), min_size=16)
    with Image.open(io.BytesIO(found.content)) as image:
        assert image.size == found.size == upright.size and not image.getexif()
        assert np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(upright, int)).mean() < 10


def colour_of(content: bytes) -> tuple[int, ...]:
    with Image.open(io.BytesIO(cleaned(content, min_size=16).content)) as image:
        assert image.mode == "RGB"
        return image.getpixel((20, 20))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
def test_colours_are_turned_into_srgb(file_format):
    """What a profile calls red comes out as that profile's red; without a profile, or with one of sRGB, as it is."""
    if file_format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    red = Image.new("RGB", (40, 40), (250, 10, 10))
    near = functools.partial(pytest.approx, abs=6)
    assert colour_of(encoded(red, file_format)) == near((250, 10, 10))
    assert colour_of(encoded(red, file_format, icc_profile=srgb_profile())) == near((250, 10, 10))
    assert colour_of(encoded(red, file_format, icc_profile=srgb_profile(swapped=True))) == near((10, 250, 10))
    assert colour_of(encoded(red, file_format, icc_profile=b"no profile")) == near((250, 10, 10))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("CMYK", (40, 40), (0, 255, 255, 0))), (255, 0, 0)),
        (encoded(Image.new("L", (40, 40), 99)), (99, 99, 99)),
        (encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "WEBP"), (255, 255, 255)),
        (encoded(Image.new("RGBA", (40, 40)), "PNG", icc_profile=srgb_profile(swapped=True)), (255, 255, 255)),
        (encoded(Image.new("LA", (40, 40), (0, 0)), "PNG"), (255, 255, 255)),
        (encoded(Image.new("P", (40, 40)), "PNG", transparency=0), (255, 255, 255)),
        (encoded(Image.fromarray(np.full((40, 40), 25_700, np.uint16)), "PNG"), (100, 100, 100)),
        (encoded(Image.new("1", (40, 40), 1), "PNG"), (255, 255, 255)),
    ],
    ids=["CMYK", "grey", "alpha", "alpha webp", "alpha and profile", "grey alpha", "palette", "16 bits", "1 bit"],
)  # fmt: skip
def test_every_kind_of_pixels_becomes_rgb_on_white(content, expected):
    """CMYK, grey, palettes, 16 bits and transparency come out as a viewer on white paper shows them."""
    assert colour_of(content) == pytest.approx(expected, abs=3)


def test_the_short_side_decides_what_is_too_small():
    """`min_size` is of the short side, and exact."""
    assert cleaned(encoded(picture(0, (64, 32))), min_size=32).size == (64, 32)
    with pytest.raises(UnusableImage) as found:
        cleaned(encoded(picture(0, (64, 31))), min_size=32)
    assert found.value.status == "too_small"


def test_versions_of_one_picture_are_found_across_splits_and_the_first_is_kept(tmp_path):
    """Rescaled, recompressed, brightened or cropped by a hundredth, a photograph is a duplicate, whatever its split;
    other photographs are not.
    """
    original = picture(0, (400, 300))
    versions = {
        "original.jpg": encoded(original),
        "same-pixels.png": encoded(Image.open(io.BytesIO(encoded(original))), "PNG"),
        "smaller.jpg": encoded(original.resize((133, 100))),
        "coarser.jpg": encoded(original, quality=20),
        "brighter.jpg": encoded(original.point(lambda value: min(255, value * 1.1))),
        "cropped.jpg": encoded(original.crop((4, 3, 396, 297))),
    }
    others = {f"other-{i}.jpg": encoded(picture(i, (400, 300))) for i in range(1, 13)}
    splits = {name: {"split": "test" if name == "original.jpg" else "train"} for name in [*versions, *others]}
    flags = {
        "culture": "korea",
        "images": write_images(tmp_path / "pictures", splits, versions | others),
        "output": tmp_path / "ccub",
        "stages": "fetch,clean",
    }
    prepare(flags, min_size=64)
    found = {photograph.picture: photograph for photograph in read_photographs(tmp_path / "ccub" / "korea")}
    assert found["original.jpg"].split == "test"
    assert {name for name, photograph in found.items() if photograph.status == "ok"} == {"original.jpg", *others}
    for name in list(versions)[1:]:
        assert (found[name].status, found[name].detail) == ("duplicate", "of original.jpg")
    prepare(flags, min_size=64, near_duplicate_bits=-1)
    found = statuses(tmp_path / "ccub" / "korea")
    assert [name for name, status in found.items() if status == "duplicate"] == ["same-pixels.png"]


def test_a_photograph_is_a_duplicate_up_to_the_number_of_bits(tmp_path, monkeypatch):
    """--near_duplicate_bits itself counts as near; one bit more does not."""
    contents = {f"{i}.jpg": encoded(picture(i, (80 + i, 80))) for i in range(3)}
    monkeypatch.setattr(clean, "difference_hash", lambda image: {80: 0, 81: 0b1110, 82: 0b11110000}[image.width])
    flags = {"culture": "korea", "output": tmp_path / "ccub", "stages": "fetch,clean", "min_size": 16}
    flags["images"] = write_images(tmp_path / "pictures", dict.fromkeys(contents, {}), contents)
    prepare(flags, near_duplicate_bits=3)
    assert list(statuses(tmp_path / "ccub" / "korea").values()) == ["ok", "duplicate", "ok"]


def test_large_photographs_are_not_cleaned_side_by_side(tmp_path, monkeypatch):
    """The photographs in hand have no more pixels together than the largest that is allowed, and no bytes of those
    that are done are held until their turn comes; a file beyond all measure is not even read.
    """
    contents = {f"{i}.jpg": encoded(picture(i)) for i in range(12)} | {"12.jpg": encoded(picture(12)) + bytes(9000)}
    flags = {
        "culture": "korea",
        "images": write_images(tmp_path / "pictures", dict.fromkeys(contents, {}), contents),
        "output": tmp_path / "ccub",
        "stages": "fetch,clean",
        "min_size": 16,
    }
    make_clean, lock, now, most, first = cleaned, threading.Lock(), 0, 0, threading.Event()

    def counted(content, **options):
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        if content == contents["0.jpg"]:
            assert first.wait(20)
        time.sleep(0.02)
        result = make_clean(content, **options)
        with lock:
            now -= 1
        return result

    def written(path, content):
        write(path, content)
        if path.parent.name == "photographs" and len(list(path.parent.glob("*.jpg"))) == 11:
            first.set()

    write = clean.write_atomically
    monkeypatch.setattr(clean, "write_atomically", written)
    monkeypatch.setattr(clean, "cleaned", counted)
    monkeypatch.setattr(clean, "MAX_PIXELS", 2 * 40 * 32 + 1)
    monkeypatch.setattr(clean, "MAX_BYTES", 9000)
    prepare(flags)
    assert most == 2
    *rest, last = read_photographs(tmp_path / "ccub" / "korea")
    assert {photograph.status for photograph in rest} == {"ok"}
    assert last.status == "too_large" and "9000 are allowed" in last.detail


def test_own_pictures_come_in_more_formats_than_links(tmp_path):
    """All that the README names is cleaned from --images; what came from a link is JPEG, PNG or WEBP."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    contents = {f"{i}.{name.lower()}": encoded(picture(i), name) for i, name in enumerate(FORMATS)}
    flags = {
        "culture": "korea",
        "images": write_images(tmp_path / "pictures", dict.fromkeys(contents, {}), contents),
        "output": tmp_path / "ccub",
        "stages": "fetch,clean",
        "min_size": 16,
    }
    prepare(flags)
    assert statuses(tmp_path / "ccub" / "korea") == dict.fromkeys(contents, "ok")
    (tmp_path / "fetched").mkdir()
    links = [Photograph(id=name[0], url="http://a/", caption="x", source_sha256="a") for name in contents]
    for content, link in zip(contents.values(), links):
        (tmp_path / "fetched" / link.id).write_bytes(content)
    stage = Clean(images=None, min_size=16, near_duplicate_bits=16, jpeg_quality=95, test_share=0.2, seed=0)
    stage.clean_photographs(links, tmp_path, fetcher=Fetcher(contact="curator@example.org"))
    assert [link.status for link in links] == ["ok"] * 3 + ["not_an_image"] * 5


def status_of(content: bytes) -> str:
    with pytest.raises(UnusableImage) as found:
        cleaned(content, min_size=16)
    return found.value.status


def test_size_is_judged_before_decoding():
    """Too many pixels and too narrow a picture are told by the header, also where Pillow itself warns or raises."""
    assert status_of(png_of(16, 200_000)) == "too_long"
    assert status_of(png_of(20_000, 10_000)) == "too_many_pixels"
    for action in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)
            assert status_of(png_of(10_000, 9_000)) == "too_many_pixels"


def test_damaged_photographs_are_corrupt():
    """A truncated or damaged file is corrupt, though its header is well."""
    large = encoded(picture(0, (200, 200)), quality=95)
    for content in (large[: len(large) // 2], large[:20], png_of(100, 100), encoded(picture(0), "WEBP")[:60]):
        assert status_of(content) == "corrupt"


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF", "TIFF"])
def test_animations_are_no_photographs(file_format):
    """What has several frames or pages is refused."""
    assert status_of(encoded(picture(0), file_format, save_all=True, append_images=[picture(1)])) == "not_an_image"


def test_postscript_never_reaches_ghostscript(tmp_path, monkeypatch):
    """Whatever its name says, an EPS is no photograph, and Ghostscript is not called for it."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    for content in (encoded(picture(0), "EPS"), b"\xc5\xd0\xd3\xc6" + bytes(28) + encoded(picture(0), "EPS")):
        assert status_of(content) == "not_an_image"


@pytest.mark.usefixtures("web", "quick")
def test_what_is_denied_later_leaves_the_dataset(site, tmp_path):
    """What is put on the deny-list after the fetch is taken out, by its link or its sha256 as it came or is kept."""
    urls = [site.url(f"/{i}.png") for i in range(4)]
    site.pages |= {f"/{i}.png": (200, {}, encoded(picture(i), "PNG") + b"behind") for i in range(4)}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", urls), "output": tmp_path / "ccub"}
    flags |= {"stages": "fetch,clean", "min_size": 16, "allow_host": site.place}
    prepare(flags)
    first, second, third, _ = read_photographs(tmp_path / "ccub" / "korea")
    (tmp_path / "deny.txt").write_text(f"{first.url}\n{second.source_sha256}\n{third.sha256}\n")
    prepare(flags, deny_list=tmp_path / "deny.txt")
    for later in ({}, {"retry_failed": True}, {"stages": "clean"}):  # the list is not needed again
        assert list(statuses(tmp_path / "ccub" / "korea").values()) == ["denied"] * 3 + ["ok"]
        assert len(list((tmp_path / "ccub" / "korea" / "photographs").iterdir())) == 1
        assert len(list((tmp_path / "ccub" / "korea" / "fetched").iterdir())) == 2  # with the ledger
        prepare(flags, **later)
    assert max(site.hits.values()) == 1


@pytest.mark.usefixtures("web", "quick")
def test_what_was_published_is_denied_though_it_is_encoded_otherwise_now(site, tmp_path):
    """The sha256 of a photograph as it was written before takes it out, also where flags have changed its file."""
    urls = [site.url(f"/{i}.jpg") for i in range(2)]
    site.pages |= {f"/{i}.jpg": (200, {}, encoded(picture(i))) for i in range(2)}
    flags = {"culture": "korea", "links": write_sheet(tmp_path / "sheet.csv", urls), "output": tmp_path / "ccub"}
    flags |= {"stages": "fetch,clean", "min_size": 16, "allow_host": site.place}
    prepare(flags)
    before, _ = read_photographs(tmp_path / "ccub" / "korea")
    (tmp_path / "deny.txt").write_text(before.sha256)
    prepare(flags, deny_list=tmp_path / "deny.txt", jpeg_quality=80)
    assert list(statuses(tmp_path / "ccub" / "korea").values()) == ["denied", "ok"]
    prepare(flags)
    assert list(statuses(tmp_path / "ccub" / "korea").values()) == ["denied", "ok"]


def unsplit(count: int, *, categories: int = 2, first: int = 0) -> list[Photograph]:
    return [
        Photograph(id=f"photograph {i}", caption="", category=CATEGORIES[i % categories])
        for i in range(first, first + count)
    ]


def split_of(photographs: list[Photograph], **more) -> dict[str, str]:
    assign_splits(photographs, **{"test_share": 0.2, "seed": 0} | more)
    return {photograph.id: photograph.split for photograph in photographs}


def test_splits_are_stratified_and_a_function_of_ids_and_seed():
    """Of each category the share is test rows; the order of the rows does not matter, the seed does."""
    splits = split_of(unsplit(50))
    for c in range(2):
        assert Counter(list(splits.values())[c::2]) == {"train": 20, "test": 5}
    assert split_of(unsplit(50)[::-1]) == splits != split_of(unsplit(50), seed=1)
    assert set(split_of(unsplit(50), test_share=0).values()) == {"train"}


def test_rows_that_come_later_move_no_other_row():
    """After more rows have come, old rows are where they were, and the share holds over all."""
    photographs = unsplit(30)
    before = split_of(photographs)
    photographs += unsplit(30, first=30)
    after = split_of(photographs)
    assert after.items() >= before.items()
    assert Counter(after.values()) == {"train": 48, "test": 12}


def test_a_picture_that_is_replaced_stays_in_its_split_and_is_cleaned_anew():
    """Under the same name other bytes keep the split, and nothing of what was found out of the old ones."""
    old = Photograph(id="a", caption="", source_sha256="1", split="test", file="a.jpg", sha256="2", status="ok")
    for sha256, found_out in (("1", ("a.jpg", "2", "ok")), ("3", ("", "", "pending"))):
        (new,) = known_again([Photograph(id="a", caption="new", source_sha256=sha256)], [old])
        assert (new.split, new.caption) == ("test", "new")
        assert (new.file, new.sha256, new.status) == found_out


def test_splits_that_are_given_are_kept():
    """A row that came with its split stays in it, also if there are more test rows than the share."""
    photographs = unsplit(10, categories=1)
    for photograph in photographs[:4]:
        photograph.split = "test"
    splits = split_of(photographs)
    assert [splits[photograph.id] for photograph in photographs] == ["test"] * 4 + ["train"] * 6


def test_a_culture_without_a_usable_picture_is_named(tmp_path, caplog):
    """With 0 usable pictures the run ends with the culture, the place of the reasons, and the count of each."""
    contents = {f"{i}.jpg": encoded(picture(i, (20, 20))) for i in range(2)} | {"2.jpg": b"<html>"}
    folder = write_images(tmp_path / "pictures", {name: {"category": "city"} for name in contents}, contents)
    flags = {"culture": "korea", "images": folder, "output": tmp_path / "ccub", "stages": "fetch,clean"}
    with (
        caplog.at_level("INFO", logger="scoft"),
        pytest.raises(DataError, match="--culture korea: no .*manifest.jsonl"),
    ):
        prepare(flags)
    assert "city: 2 too_small" in caplog.text and "city: 1 not_an_image" in caplog.text

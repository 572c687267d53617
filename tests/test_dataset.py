"""Checked datasets: what is bad is found early and named, and nothing depends on hidden state."""

import logging
import struct
import subprocess
import sys
import zlib

import datasets
import pytest
from PIL import Image

from layouts import BLIP, COLOURS, ROOT, encoded, noise, plain, read, records, write_folder, write_parquet
from scoft.errors import DataError


def test_import_is_light():
    """Importing scoft.dataset loads neither torch nor datasets, so that a mistyped flag is answered at once."""
    code = "import sys, scoft.dataset; sys.exit(bool({'torch', 'datasets', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_is_not_needed_is_not_read(tmp_path):
    """Listed negatives that were never shipped do not hinder a method without them."""
    rows = records()
    write_folder(tmp_path / "d", rows)
    (tmp_path / "d" / "images" / "green_negative.png").unlink()
    assert read(tmp_path / "d", needs_negatives=False).num_negatives == [0, 0, 0]


def test_caption_lists_and_strings(tmp_path):
    """Captions and BLIP captions may be a string or a list, in csv a JSON list."""
    rows = [
        {"file_name": "red.png", "text": ["one", "two"], "blip_text": "a door"},
        {"file_name": "blue.png", "text": "three", "blip_text": ["a gate", "a wall"]},
    ]
    for kind in ("jsonl", "csv"):
        data = read(write_folder(tmp_path / kind, rows, kind=kind), needs_negatives=False)
        assert data.captions == [["one", "two"], ["three"]]
        assert data.blip_captions == [["a door"], ["a gate", "a wall"]]


def test_max_train_samples_takes_what_diffusers_takes(tmp_path):
    """max_train_samples keeps the rows that datasets' shuffle(seed).select(range(n)) keeps, under their own names."""
    rows = [{"file_name": f"red_{i}.png", "text": f"caption {i}"} for i in range(9)]
    write_folder(tmp_path / "d", rows)
    expected = datasets.Dataset.from_dict({"i": list(range(9))}).shuffle(seed=3).select(range(4))["i"]
    data = read(tmp_path / "d", needs_blip=False, needs_negatives=False, max_train_samples=4, seed=3)
    assert data.captions == [[f"caption {i}"] for i in expected]
    assert data.row_name(0) == f"row {expected[0]} (red_{expected[0]}.png)"
    for wrong in (0, 10):
        with pytest.raises(DataError, match=f"^max_train_samples {wrong} must be 1 to 9"):
            read(tmp_path / "d", needs_blip=False, needs_negatives=False, max_train_samples=wrong)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("images/red.png", plain("red", (30, 30))),
        ("images/green_negative.png", plain("green", (30, 30))),
        ("metadata.jsonl", lambda text: text.replace(b"a red house", b"a red hut")),
        ("metadata.jsonl", lambda text: text.replace(b"a door", b"a den")),
    ],
    ids=["image", "negative", "caption", "blip caption"],
)
def test_fingerprint_sees_every_part(tmp_path, file, change):
    """A change of any image or text changes the fingerprint; photographs keep their hashes unless they change."""
    before = read(write_folder(tmp_path / "d", records()))
    path = tmp_path / "d" / file
    path.write_bytes(change(path.read_bytes()) if callable(change) else change)
    after = read(tmp_path / "d")
    assert after.fingerprint != before.fingerprint
    same_photographs = [a == b for a, b in zip(after.image_hashes, before.image_hashes, strict=True)]
    assert same_photographs == [file != "images/red.png", True, True]


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"text": "  "}, ["row 1 (images/green.png)", "caption_column", "'  '"]),
        ({"text": 7}, ["row 1 (images/green.png): 7", "caption_column"]),
        ({"text": []}, ["row 1 (images/green.png): []", "caption_column"]),
        ({"text": ["ok", ""]}, ["row 1 (images/green.png)", "caption_column"]),
        ({"blip_text": ""}, ["row 1 (images/green.png)", "'blip_text'", "without needs_blip"]),
        ({"blip_text": None}, ["row 1 (images/green.png): None", "prepare_ccub.py --culture korea"]),
        ({"file_name": None}, ["row 1", "'file_name'", "None"]),
        ({"negatives_file_names": [3]}, ["row 1", "'negatives_file_names'", "not 3"]),
    ],
)
def test_bad_row(tmp_path, change, messages):
    """A bad cell is refused with its row, its flag and the way out."""
    rows = records()
    write_folder(tmp_path / "d", rows)
    rows[1] |= change
    write_folder(tmp_path / "d", rows, images=False)
    with pytest.raises(DataError) as error:
        read(tmp_path / "d")
    assert all(message in str(error.value) for message in messages), str(error.value)


def test_no_row_has_a_negative(tmp_path):
    """A dataset all of whose lists of negatives are empty cannot train with them, and the message says what can."""
    write_folder(tmp_path / "d", [row | {"negatives_file_names": []} for row in records()])
    with pytest.raises(DataError, match="no row has a usable negative.*prepare_ccub.py.*without needs_negatives"):
        read(tmp_path / "d")


def animation(file_format):
    frames = [Image.new("RGB", (24, 16), colour) for colour in COLOURS]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50)


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD_IMAGES = {
    "absent": (None, "the file does not exist"),
    "not an image": (b"<html>404</html>", "is not an image"),
    "empty": (b"", "is not an image"),
    "truncated": (encoded(noise(), "JPEG")[:-400], "damaged"),
    "truncated png": (encoded(noise())[:-900], "damaged"),
    "animated gif": (animation("GIF"), "animated or has pages (GIF); save the one"),
    "animated webp": (animation("WEBP"), "animated or has pages (WEBP); save the one"),
    "animated png": (animation("PNG"), "animated or has pages (PNG); save the one"),
    "bomb": (png_header(20000, 20000), "too many pixels"),
    "large": (png_header(9460, 9460), "too many pixels (9460 x 9460); 89478485 are allowed"),
    "tiny": (plain("red", (40, 7)), "is 40 x 7 pixels; each side must have at least 8"),
    "long": (png_header(8, 200_000), "is 8 x 200000 pixels; no side may be more than 20 times the other: crop it"),
    "float": (encoded(Image.new("F", (20, 20), 0.5), "TIFF"), "floating-point"),
    "eps": (encoded(Image.new("RGB", (24, 16)), "EPS"), "is EPS, which is not an image that is read here; save it as"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image(tmp_path, name, caplog):
    """A bad image is refused with its row, file, reason and skip_bad_images, which leaves out and counts its row."""
    data, reason = BAD_IMAGES[name]
    folder = write_folder(tmp_path / "d", records())
    path = folder / "images" / "green.png"
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read(folder)
    for part in ("row 1 (images/green.png): ", reason, "skip_bad_images"):
        assert part in str(error.value)

    with caplog.at_level(logging.WARNING):
        kept = read(folder, skip_bad_images=True)
    assert (len(kept), kept.dropped, kept.num_negatives) == (2, 1, [2, 1])
    assert kept.captions == [["a red house"], ["a blue house"]] and kept.blip_captions == [BLIP[0], BLIP[2]]
    assert kept.row_name(1) == "row 2 (images/blue.png)"
    assert [record.message for record in caplog.records if "images/green.png" in record.message]


@pytest.mark.parametrize("column", ["text", "blip_text"])
@pytest.mark.parametrize("cell", ["  ", None, 7, []])
def test_rows_without_a_caption_are_left_out_as_those_of_bad_images_are(column, cell, tmp_path, caplog):
    """A row without a usable caption is refused by name, and with skip_bad_images left out, named and counted."""
    rows = records()
    rows[1][column] = cell
    folder = write_folder(tmp_path / "d", rows)
    with pytest.raises(DataError, match=r"(?s)row 1 \(images/green.png\): .*skip_bad_images"):
        read(folder)
    (folder / "images" / "blue.png").write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        kept = read(folder, skip_bad_images=True)
    assert (len(kept), kept.dropped, kept.captions, kept.blip_captions) == (1, 2, [["a red house"]], [BLIP[0]])
    assert "1 of 3 rows" in caplog.text and "row 1 (images/green.png)" in caplog.text
    for row in rows:
        row[column] = cell
    with pytest.raises(DataError, match="3 of 3 rows") as error:
        read(write_folder(tmp_path / "e", rows), skip_bad_images=True)
    assert "skip_bad_images" not in str(error.value)


def test_captions_in_letters_that_clip_does_not_read_are_named(tmp_path, caplog):
    """Captions mostly in other letters than Latin ones are counted and named; accents, digits, a word do no harm."""
    texts = ["경복궁의 근정전", "a bowl of 비빔밥", "Café, 12 €, ½", "дом с садом", "12", "παράθυρο in Athens", "家"]
    rows = [records()[0] | {"file_name": f"red_{i}.png", "text": text} for i, text in enumerate(texts)]
    with caplog.at_level(logging.WARNING):
        read(write_folder(tmp_path / "d", rows), needs_negatives=False)
    (message,) = [record.getMessage() for record in caplog.records if "CLIP" in record.getMessage()]
    assert message.startswith("3 of 7 captions ")
    assert [f"row {i} " in message for i in range(7)] == [True, False, False, True, False, False, True]


def test_bad_image_in_parquet(tmp_path):
    """Bytes in a parquet file are checked as files are."""
    write_parquet(tmp_path / "d" / "train-0.parquet", photographs=[plain("red"), b"nonsense", plain("blue")])
    with pytest.raises(DataError, match=r"row 1 \(green.png\): is not an image"):
        read(tmp_path / "d")


def test_bad_negative(tmp_path, caplog):
    """A bad negative is refused with its row and file; with skip_bad_images it alone is left out."""
    folder = write_folder(tmp_path / "d", records())
    (folder / "images" / "green_negative.png").write_bytes(b"nonsense")
    with pytest.raises(
        DataError, match=r"row 0 \(images/red.png\), negative 0 \(.*green_negative.png\): is not an image"
    ):
        read(folder)
    with caplog.at_level(logging.WARNING):
        kept = read(folder, skip_bad_images=True)
    assert (len(kept), kept.dropped, kept.num_negatives) == (3, 0, [1, 0, 1])
    assert kept.negatives(0)[0].getpixel((0, 0)) == COLOURS["blue"]
    assert "green_negative.png" in caplog.text


def test_all_images_bad(tmp_path):
    """Skipping does not go on with nothing."""
    folder = write_folder(tmp_path / "d", records()[:1], images=False)
    with pytest.raises(DataError, match="no usable image is left of 1 rows: row 0"):
        read(folder, needs_negatives=False, skip_bad_images=True)


def test_image_lost_during_the_run(tmp_path):
    """An image that vanishes after the check is named by its row when it is read."""
    folder = write_folder(tmp_path / "d", records())
    data = read(folder)
    assert data.size(1) == data.image(1).size
    (folder / "images" / "green.png").unlink()
    for read_it in (data.image, data.size):
        with pytest.raises(DataError, match=r"row 1 \(images/green.png\) was good when the run began"):
            read_it(1)


def test_revision_of_a_folder(tmp_path):
    """A revision makes no sense for a folder and is not ignored."""
    write_folder(tmp_path / "d", records())
    with pytest.raises(DataError, match="^dataset_revision v1 is of a Hub dataset"):
        read(tmp_path / "d", dataset_revision="v1")

"""Sheets of pictures: what is written is there in the reader's script, and pixels are as they should be."""

import unicodedata
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.font_manager import FontEntry
from PIL import Image

from scoft import sheets
from scoft.sheets import Cell, Row, font_families, grid, histogram, printable, wrapped


RED = (255, 0, 0)
ONLY_STIX = "\u2312"  # a letter that DejaVu Sans lacks, and another font that matplotlib brings has


@pytest.fixture(autouse=True)
def fonts_are_unknown():
    """What an earlier test has found out of the fonts is forgotten, before and after."""

    def forget():
        for cached in (sheets._warn_of, sheets._family_of, sheets._fonts_for, sheets._learn_new_fonts):
            cached.cache_clear()

    forget()
    yield
    forget()


def ink(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> int:
    """How many pixels, of a box (left, top, right, bottom), are not white."""
    return int((np.asarray(image.crop(box) if box else image) < 200).any(-1).sum())


def places(image: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The box around all pixels of a colour."""
    return Image.fromarray((np.asarray(image) == color).all(-1)).getbbox()


def test_small_pictures_stay_crisp_and_large_ones_fit():
    """A checkered 40 x 30 grows by 3, to just black and white; 400 x 200 shrinks to 128 x 64."""
    small = Image.fromarray((np.indices((30, 40)).sum(0) % 2 * 255).astype(np.uint8))
    sheet = grid([Row(cells=[Cell(picture=small)])])
    at = sheets.MARGIN + 4, sheets.MARGIN + sheets.GAP
    crop = sheet.crop((*at, at[0] + 120, at[1] + 90))
    assert (np.asarray(crop) == np.asarray(small.resize((120, 90), Image.Resampling.NEAREST).convert("RGB"))).all()
    large = grid([Row(cells=[Cell(picture=Image.new("RGB", (400, 200), "blue"))])])
    left, top, right, bottom = places(large, (0, 0, 255))
    assert (right - left, bottom - top) == (128, 64)


def test_words_stand_where_their_cells_are():
    """Headings lie over their cells, words below pictures; where there is no picture its words are in its box."""
    picture = Image.new("RGB", (128, 128), "blue")
    cells = [Cell(picture=picture, words="below"), Cell(words="no depth")]
    plain = grid([Row(cells=[Cell(picture=picture), Cell()])])
    sheet = grid([Row(cells=cells)], columns={"photograph": 1, "depth": 1})
    assert sheet.height > plain.height
    left, top, right, bottom = places(sheet, (0, 0, 255))
    assert ink(sheet, (left, 0, right, top)) and ink(sheet, (left, bottom, right, sheet.height))
    second = right + sheets.GROUP_GAP
    assert ink(sheet, (second, 0, second + 128, top)) and ink(sheet, (second, top, second + 128, bottom))
    assert not ink(sheet, (second, bottom, sheet.width, sheet.height))


def test_a_struck_picture_is_crossed_out():
    sheet = grid([Row(cells=[Cell(picture=Image.new("RGB", (128, 128), "blue"), struck=s) for s in (True, False)])])
    left, top, right, bottom = places(sheet, RED)
    assert abs(right - left - 128) <= 2 and abs(bottom - top - 128) <= 2 and left < sheets.MARGIN + 2


def test_the_same_rows_give_the_same_bytes_whatever_the_user_has_set(tmp_path):
    rows = [Row(above="a $5 b_2 $ caption", cells=[Cell(words="none")])]
    first = grid(rows, title="one")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "savefig.dpi": 10, "figure.dpi": 300}):
        assert grid(rows, title="one").tobytes() == first.tobytes()
    first.save(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as saved:
        assert not saved.info


def test_each_letter_is_drawn_from_a_font_that_has_it(caplog, monkeypatch):
    """DejaVu has é, я and Arabic; else a Noto font is taken before another that has the letter."""
    assert font_families(["é", "я", "سوق"]) == ["DejaVu Sans"]
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = {"A Font": "STIXGeneral", "Noto Sans Math": "STIXGeneral", "DejaVu Sans": "DejaVuSans"}
    fonts = [FontEntry(fname=str(folder / f"{file}.ttf"), name=name, weight=400) for name, file in files.items()]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    assert font_families(["a" + ONLY_STIX]) == ["DejaVu Sans", "Noto Sans Math"]
    assert not caplog.messages


def test_a_font_that_was_installed_since_is_found(caplog, monkeypatch):
    """matplotlib keeps its list of fonts from long ago; who follows our advice is not shown boxes again."""
    stix = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"))
    here = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", here)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [*{font.fname for font in here}, __file__, stix])
    assert font_families([ONLY_STIX]) == ["DejaVu Sans", "STIXGeneral"]
    assert not caplog.messages


def test_a_script_without_a_font_is_warned_of_once(caplog, monkeypatch):
    """The warning names script and package; the letters are drawn as boxes, of which matplotlib says nothing more."""
    here = font_manager.fontManager.ttflist
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [font for font in here if font.name == "DejaVu Sans"])
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    with warnings.catch_warnings(action="error"):
        assert ink(grid([Row(above="한복", cells=[Cell(words="दिल्ली")])], title="한국"))
    hangul, devanagari = sorted(caplog.messages, reverse=True)
    assert "some Hangul letters" in hangul and "apt-get install fonts-noto-cjk" in hangul
    assert "some Devanagari letters" in devanagari and "apt-get install fonts-noto-core" in devanagari


def test_text_is_shaped_and_what_is_no_letter_does_no_harm():
    """Arabic letters join, unless a joiner of width zero forbids it; NUL, surrogates and tabs are drawn as a sign."""
    joined, apart = (grid([Row(above=text, cells=[Cell()])]) for text in ("ههه", "ه\u200cه\u200cه"))
    assert 0 < ink(joined) != ink(apart)
    assert printable("a\x00b\ud800\tc\nd\u202e") == "a\ufffdb\ufffd c d"
    grid([Row(above="a\x00b\ud800\tc", cells=[Cell()])])


def test_long_texts_are_wrapped_and_end_in_an_ellipsis():
    """Lines break between words, else within them but not before a mark; four lines are the most."""

    def width(text):
        return float(sum(not unicodedata.category(letter).startswith("M") for letter in text))

    assert wrapped("one two three", 7, width) == ["one two", "three"]
    assert wrapped("경복궁에서걷는다", 3, width) == ["경복궁", "에서걷", "는다"]
    assert wrapped("ab\u0301c", 2, width) == ["ab\u0301", "c"]
    assert wrapped("x " * 50, 5, width) == ["x x x"] * 3 + ["x x …"]
    assert wrapped("", 5, width) == []


def test_more_than_fits_is_counted_not_drawn(monkeypatch):
    """A sheet has an end: rows and cells beyond it are a number in words, and their files are not opened."""
    monkeypatch.setattr(sheets, "MOST_PIXELS", 200)
    monkeypatch.setattr(sheets, "MOST_CELLS", 2)
    row = Row(cells=[Cell(picture=Image.new("RGB", (128, 128), "blue"))] * 5)
    written = []
    write = sheets._Page.write
    monkeypatch.setattr(
        sheets._Page, "write", lambda page, text, *a, **k: written.append(text) or write(page, text, *a, **k)
    )
    sheet = grid([row, row, *[Row(cells=[Cell(picture=Path("nowhere.png"))])] * 98])
    assert sheet.height < 400 and sheet.width == sheets.MIN_WIDTH
    assert "and 3 more" in written and "... and 98 more" in written


@pytest.mark.parametrize("columns", [{"one": 3, "two": 3}, {"one": 1, "two": 500}])
def test_headings_may_stand_over_more_than_there_is(columns):
    """Rows may lack cells, or have more than are drawn: each heading is there, within the sheet."""
    longest = max(columns.values())
    sheet = grid([Row(cells=[Cell()]), Row(cells=[Cell()] * min(longest, 400) * (longest > 3))], columns=columns)
    assert ink(sheet, (0, 0, sheet.width, sheets.MARGIN + 20)) and sheet.width < 10_000
    assert ink(grid([], columns=columns))


def test_no_text_makes_a_sheet_endless():
    """A caption of a thousand lines is cut like a long one."""
    assert grid([Row(above="a\n" * 1000, cells=[Cell(words="b\n" * 1000)])]).height < 800


def test_the_histogram_shows_the_threshold():
    """The threshold's line lies at its place of the axis, the the bars are as high as their counts."""
    plot = np.asarray(histogram([0.1] * 4 + [0.5], threshold=0.25, of="negatives", unit="clip_conv distance"))
    blue = (plot == (70, 130, 180)).all(-1)
    columns = np.flatnonzero(blue.any(0))
    heights = blue.sum(0)
    assert heights.max() == pytest.approx(4 * heights[columns[-3]], rel=0.05)
    red = (plot[100:200] == RED).all(-1).all(0)
    left = columns[-1] + 1 - (columns[-1] + 1 - columns[0]) / 0.4 * 0.5  # the bars span 0.1 to 0.5
    assert np.flatnonzero(red).mean() == pytest.approx(left + (columns[-1] + 1 - left) / 2, abs=3)

"""What users hand in: tables of links and folders of pictures are read, or told where they cannot be."""

import json
import os

import pytest

from preparing import encoded, picture, prepare, rows_of, write_images
from scoft.errors import DataError
from scoft.prepare.photograph import read_photographs
from scoft.prepare.sources import read_deny_list, read_images, read_links


pytestmark = pytest.mark.usefixtures("threads_given_back")


SHEET_HEAD = "country_code,category_code,url,caption,created_at\n"


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        (b"country_code,link,caption\nKOR,http://a/,b", r"sheet: no column url; it has country_code, link, caption"),
        (b"", "sheet: no column url and no column caption; it has none"),
        (SHEET_HEAD + "KOR,FOOD,http://a/,b,\nJPN,FOOD,http://a/,b,", "row 3: country_code 'JPN' is none of KOR, CHN"),
        (SHEET_HEAD + "KOR,EATING,http://a/,b,", r"row 2: category 'EATING' is none of FOOD \(food & drink\)"),
        ((SHEET_HEAD + "KOR,FOOD,http://a/,\ub098,").encode("cp949"), "line 2 is not UTF-8 .*; save the table"),
        (SHEET_HEAD + "KOR,FOOD,http://a/,,", "sheet: no row has a caption: sheet, row 2: caption is ''"),
        (SHEET_HEAD + "KOR,FOOD,,b,", "row 2: the url is blank"),
        (SHEET_HEAD + "KOR,FOOD,http://a/,rice, with beans,2023", "row 2 has more cells than the header; put double"),
        (SHEET_HEAD + 'KOR,FOOD,http://a/,"' + "x" * 200_000, "line .* is not CSV .*field larger"),
        (SHEET_HEAD + "CHN,FOOD,http://a/,b,", "no row is of --culture korea"),
        (SHEET_HEAD, "no row is of --culture korea"),
    ],
)  # fmt: skip
def test_a_sheet_that_cannot_be_read_is_told_where(sheet, message):
    """What is wrong with a sheet is named with its row, and how to go on."""
    with pytest.raises(DataError, match=message):
        read_links(sheet.encode() if isinstance(sheet, str) else sheet, culture="korea", source="sheet")


def test_a_sheet_is_read_as_spreadsheets_write_it(caplog):
    """A byte-order mark, line breaks in cells, blank rows, other countries' rows and repeated links do no harm."""
    sheet = (
        "\ufeff"
        + SHEET_HEAD
        + 'KOR,FOOD,http://a/," rice\ncake ",\r\n,,,,\nCHN,FOOD,http://b/,b,\nkor,,http://a/,c,\n'
    )
    with caplog.at_level("INFO", logger="scoft"):
        first, again = read_links(sheet.encode(), culture="korea", source="sheet")
    assert (first.url, first.caption, first.category, first.status) == (
        "http://a/",
        "rice\ncake",
        "food & drink",
        "pending",
    )
    assert (again.status, again.category) == ("duplicate", None) and again.id != first.id
    assert "1 rows of CHN are left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        (None, "", "--images .*: there is no metadata.jsonl or metadata.csv; write one"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x"}\n{broken', "metadata.jsonl, line 2 is not JSON"),
        ("metadata.jsonl", '["a.jpg"]', "metadata.jsonl, line 1 is not a JSON object"),
        ("metadata.jsonl", '{"file_name": "a.jpg"}', "no row has a caption: .*line 1: text is None"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": ["x"]}', r"line 1: text is \['x'\]"),
        ("metadata.jsonl", '{"file_name": 7, "text": "x"}', "line 1: file_name is a text that is not blank, got 7"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "collector": "Kim M"}', "collector .* got 'Kim M'"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "collector": ["a"]}', "collector is an opaque id"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "period": "old"}', "traditional or modern, got 'old'"),
        ("metadata.jsonl", '{"file_name": "b.jpg", "text": "x"}', "line 1: there is no file 'b.jpg'"),
        ("metadata.jsonl", '{"file_name": "../secret.jpg", "text": "x"}', r"there is no file '\.\./secret.jpg'"),
        ("metadata.jsonl", '{"file_name": "link.jpg", "text": "x"}', "line 1: there is no file 'link.jpg'"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "split": "dev"}', "split is train or test, got 'dev'"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "category": "pets"}', "category 'pets' is none of"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x", "source_url": "http://me:pass@a/"}',
         "line 1: source_url holds a user name or password"),
        ("metadata.jsonl", '{"text": ' + "[" * 100_000, "metadata.jsonl, line 1 is not JSON"),
        ("metadata.jsonl", '{"file_name": "a\\u0000.jpg", "text": "x"}', r"there is no file 'a\\x00.jpg'"),
        ("metadata.jsonl", '{"file_name": "pipe", "text": "x"}', "there is no file 'pipe'.*is not a regular file"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": "x\\ud800"}', r"no row has a caption: .*'\\ud800' in x"),
        ("metadata.jsonl", "\n", "--images .*: the metadata has no rows"),
        ("metadata.jsonl", b"\xff\xfe", "metadata.jsonl is not UTF-8"),
        ("metadata.csv", "name,text\na.jpg,x", "metadata.csv: no column file_name; it has name, text"),
        ("metadata.csv", "file_name,text\na.jpg,rice, beans", "metadata.csv, row 2 has more cells than the header"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_read_is_told_where(name, metadata, message, tmp_path):
    """What is wrong with a folder of pictures is named with its line; no file outside of it is read."""
    folder = write_images(tmp_path / "pictures", {}, {"a.jpg": encoded(picture(0))})
    (tmp_path / "secret.jpg").write_bytes(encoded(picture(1)))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    os.mkfifo(folder / "pipe")
    (folder / "metadata.jsonl").unlink()
    if name:
        (folder / name).write_bytes(metadata if isinstance(metadata, bytes) else metadata.encode())
    flags = {"culture": "korea", "images": folder, "output": tmp_path / "ccub", "stages": "fetch"}
    with pytest.raises(DataError, match=message):
        prepare(flags)


def test_a_row_without_a_caption_is_named_and_left_out(tmp_path, caplog):
    """A blank caption costs its row alone: it is logged by name, kept in the manifest and counted on the card, and a
    later row of the same picture counts.
    """
    contents = {f"{i}.jpg": encoded(picture(i)) for i in range(3)}
    folder = write_images(
        tmp_path / "pictures", {"0.jpg": {"text": " "}, "1.jpg": {}, "2.jpg": {"text": None}}, contents
    )
    with open(folder / "metadata.jsonl", "a") as file:
        file.write('\n{"file_name": "0.jpg", "text": "now with a caption"}')
    flags = {"culture": "korea", "images": folder, "output": tmp_path / "ccub", "min_size": 16}
    prepare(flags, stages="fetch,clean,write")
    found = read_photographs(tmp_path / "ccub" / "korea")
    assert [photograph.status for photograph in found] == ["no_caption", "ok", "no_caption", "ok"]
    assert found[0].detail == "text is ' '" and len({photograph.id for photograph in found}) == 4
    (message,) = [record.getMessage() for record in caplog.records if "no caption" in record.getMessage()]
    assert "2 of 4 rows" in message and "line 1" in message and "line 3" in message
    assert "| no\\_caption | 2 |" in (tmp_path / "ccub" / "README.md").read_text()

    sheet = (SHEET_HEAD + "KOR,FOOD,http://a/,,\nKOR,FOOD,http://b/,b,\n").encode()
    first, second = read_links(sheet, culture="korea", source="sheet")
    assert (first.status, first.detail, second.status) == ("no_caption", "caption is ''", "pending")


def test_captions_that_clip_does_not_read_are_named(caplog):
    """A sheet with captions in another script is read, and a warning counts and names its rows."""
    read_links((SHEET_HEAD + "KOR,,http://a/,궁,\nKOR,,http://b/,b,\n").encode(), culture="korea", source="sheet")
    assert "1 of 2 captions" in caplog.text and "sheet, row 2: '궁'" in caplog.text


def test_who_chose_and_from_when_is_kept_and_counted(tmp_path):
    """`collector` and `period` go from the input through the manifest into the dataset and, counted, onto the card."""
    rows = {f"{i}.jpg": {"collector": f"c{i % 2}", "period": "modern" if i < 3 else "Traditional"} for i in range(5)}
    rows |= {"5.jpg": {"collector": 7}, "6.jpg": {}}
    contents = {name: encoded(picture(i)) for i, name in enumerate(rows)}
    flags = {"culture": "korea", "output": tmp_path / "ccub", "min_size": 16, "stages": "fetch,clean,write"}
    prepare(flags, images=write_images(tmp_path / "pictures", rows, contents), test_share=0)
    photographs = {photograph.picture: photograph for photograph in read_photographs(tmp_path / "ccub" / "korea")}
    assert (photographs["4.jpg"].collector, photographs["4.jpg"].period) == ("c0", "traditional")
    found = rows_of(tmp_path / "ccub" / "korea")
    assert found["collector"][:] == ["c0", "c1", "c0", "c1", "c0", "7", None]
    assert found["period"][:] == ["modern"] * 3 + ["traditional"] * 2 + [None] * 2
    card = (tmp_path / "ccub" / "README.md").read_text()
    assert "| collectors | 3 |\n| pictures of a collector | 1 to 3; 1 of nobody named |\n" in card
    assert "| traditional, modern | 40 %, 60 % of 5 |\n" in card

    prepare(flags, culture="peru", images=write_images(tmp_path / "others", {"0.jpg": {}}, contents), test_share=0)
    card = (tmp_path / "ccub" / "README.md").read_text()
    assert (
        "| collectors | 3 | not told |\n" in card and "| traditional, modern | 40 %, 60 % of 5 | not told |\n" in card
    )

    sheet = b"url,caption,collector,period\nhttp://a/,b,c-1,modern\n"
    (photograph,) = read_links(sheet, culture="korea", source="sheet")
    assert (photograph.collector, photograph.period) == ("c-1", "modern")


def test_a_folder_with_a_csv_is_read_as_one_with_jsonl(tmp_path):
    """metadata.csv says what metadata.jsonl says: category, split, source and licence."""
    folder = write_images(tmp_path / "pictures", {}, {"a.jpg": encoded(picture(0))})
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(
        "file_name,text,category,split,source_url,license\n"
        'a.jpg,"rice, beans",FOOD,test,https://example.org/a,CC0-1.0\n'
    )
    prepare(
        {"culture": "korea", "images": folder, "output": tmp_path / "ccub", "stages": "fetch,clean", "min_size": 16}
    )
    (photograph,) = read_photographs(tmp_path / "ccub" / "korea")
    assert (photograph.caption, photograph.category, photograph.split) == ("rice, beans", "food & drink", "test")
    assert (photograph.url, photograph.license, photograph.status) == ("https://example.org/a", "CC0-1.0", "ok")


def test_metadata_outside_of_the_folder_is_named(tmp_path):
    folder = write_images(tmp_path / "pictures", {}, {})
    (folder / "metadata.jsonl").unlink()
    (tmp_path / "secret.csv").write_text("file_name,text\n")
    (folder / "metadata.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(DataError, match=f"{folder}/metadata.csv cannot be read: lies outside of"):
        read_images(folder)


def test_a_picture_outside_of_the_folder_is_not_read(copy, flags, tmp_path):
    """Not even if the manifest says so."""
    file = copy / "korea" / "manifest.jsonl"
    lines = file.read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"picture": "../secret.jpg"})
    file.write_text("\n".join(lines))
    secret = flags["images"].parent / "secret.jpg"
    secret.write_bytes(encoded(picture(0)))
    prepare(flags, output=copy, stages="clean")
    secret.unlink()
    first = read_photographs(copy / "korea")[0]
    assert first.status == "corrupt" and "lies outside of" in first.detail


def test_a_deny_list_may_begin_with_a_mark(tmp_path):
    """A spreadsheet's or an editor's byte order mark is no part of the first entry."""
    (tmp_path / "deny.txt").write_bytes(b"\xef\xbb\xbfexample.org\r\nexample.com")
    assert read_deny_list(tmp_path / "deny.txt") == ["example.org", "example.com"]

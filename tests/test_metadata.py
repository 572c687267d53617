"""Lines of metadata that people write: metadata.jsonl and metadata.csv, good and bad ones."""

import pytest

from layouts import plain, read, write_folder
from scoft.errors import DataError


def test_byte_order_mark(tmp_path):
    """A spreadsheet's csv, which begins with a byte order mark, is read like any other."""
    write_folder(tmp_path / "d", [{"file_name": "red.png", "text": "one"}], kind="csv")
    file = tmp_path / "d" / "metadata.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(tmp_path / "d", needs_blip=False, needs_negatives=False).captions == [["one"]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", "", "split 'train' is empty; give it rows, such as .*file_name"),
        ("metadata.jsonl", '{"file_name": "a.png"', r"metadata.jsonl, line 1 is not JSON"),
        ("metadata.jsonl", '\n["a.png"]\n', r"metadata.jsonl, line 2 is not a JSON object"),
        ("metadata.csv", "file_name,text\na.png,a house, in Korea\n", "row 2 has more cells than the header"),
        ("metadata.json1", "{}", '1 images but no metadata.jsonl.*Found metadata.json1: rename.*"file_name"'),
        ("metadata.jsonl", b"\xff\xfe", "not UTF-8"),
        ("README.md", "---\nconfigs: [\n---\n", "README.md begins with metadata that is not valid YAML"),
    ],
)
def test_bad_metadata_file(tmp_path, name, text, message):
    """A metadata file that is empty, malformed, misnamed or wrongly encoded is named with its line and the fix."""
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.png").write_bytes(plain("red"))
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a.png", "text": ' + "[" * 100_000, "line 1 is not JSON"),
        ('{"file_name": "a.png", "text": ' + "9" * 5000 + "}", "line 1 is not JSON"),
        ('{"file_name": "a.png", "text": NaN}', r"row 0 \(a.png\): nan"),
        ('{"file_name": "a.png", "text": "a\\u0000b"}', r"row 0 \(a.png\): '\\x00' in a"),
        ('{"file_name": "a.png", "text": ["ok", "a\\ud800b"]}', r"row 0 \(a.png\): '\\ud800' in a"),
        (
            '{"file_name": "a.png", "text": "%s"}' % ("a" * 10_000_000),
            "row 0 .*: 10000000 characters, of which 10000 are allowed",
        ),
        ('{"file_name": "a\\u0000.png", "text": "a"}', r"row 0 \(a\\x00.png\): is not a path"),
        ('{"file_name": "a\\ud800.png", "text": "a"}', r"row 0 \(a\\ud800.png\): is not a path"),
        ('{"file_name": "\\u001b[2J.png", "text": "a"}', r"row 0 \(\\x1b\[2J.png\): the file does not exist"),
        ('{"file_name": "%s", "text": "a"}' % ("a" * 300), r"row 0 \(a{60}\.\.\.a{60}\): .*File name too long"),
    ],
    ids=["deep", "digits", "nan", "nul", "surrogate", "long", "nul path", "surrogate path", "escape", "long path"],
)
def test_metadata_from_hell(tmp_path, line, message):
    """What JSON can say and no caption or path can be is answered in a short message with its place."""
    folder = write_folder(tmp_path / "d", [{"file_name": "a.png", "text": "a"}], images=False)
    (folder / "a.png").write_bytes(plain("red"))
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=message) as error:
        read(folder, needs_blip=False, needs_negatives=False)
    assert len(str(error.value)) < 1500


def test_csv_cell_of_brackets(tmp_path):
    """A csv caption that begins a list without end is the text it shows."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").write_bytes(plain("red"))
    (tmp_path / "d" / "metadata.csv").write_text("file_name,text\na.png," + "[" * 9000)
    assert read(tmp_path / "d", needs_blip=False, needs_negatives=False).captions == [["[" * 9000]]

"""Datasets: every layout is read alike, what is bad is found early and named, nothing depends on hidden state."""

import csv
import hashlib
import io
import json
import logging
import os
import pickle
import re
import shlex
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

import prepare_ccub
from scoft import dataset, dataset_rows, dataset_source
from scoft.dataset import read_dataset
from scoft.dataset_source import DatasetSource, check_embedded, find_dataset
from scoft.errors import DataError
from scoft.prepare.sources import read_pictures


ROOT = Path(dataset.__file__).parents[1]
COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}
BLIP = [["a door", "a gate"], ["a bowl"], ["a hat"]]
NEGATIVES = [("green", "blue"), (), ("red",)]


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def plain(colour, size=(24, 16)):
    return encoded(Image.new("RGB", size, colour))


def records(*, negatives_key="negatives_file_names", prefix="images/"):
    """Three rows: photographs red, green, blue; two, no and one negatives."""
    return [
        {
            "file_name": f"{prefix}{colour}.png",
            "text": f"a {colour} house",
            "blip_text": BLIP[i],
            negatives_key: [f"{prefix}{each}_negative.png" for each in NEGATIVES[i]],
        }
        for i, colour in enumerate(COLOURS)
    ]


def write_folder(folder, rows, *, kind="jsonl", images=True):
    """An imagefolder: metadata, and for each path in it an image of the colour in its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows if images else ():
        negatives = row.get("negatives_file_names") or row.get("negative_imgpath") or []
        for name in [row["file_name"], *negatives]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(plain(Path(name).stem.split("_")[0]))
    if kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, cells[0])
            writer.writeheader()
            writer.writerows(cells)
    return folder


def write_parquet(file, *, photographs=None, columns=("image", "text", "blip_text", "negatives")):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "blip_text": datasets.List(datasets.Value("string")),
            "negatives": datasets.List(datasets.Image()),
        }
    )
    photographs = photographs or [plain(colour) for colour in COLOURS]
    rows = {
        "image": [{"bytes": data, "path": f"{c}.png"} for data, c in zip(photographs, COLOURS, strict=True)],
        "text": [f"a {colour} house" for colour in COLOURS],
        "blip_text": BLIP,
        "negatives": [[{"bytes": plain(each), "path": None} for each in names] for names in NEGATIVES],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).select_columns(list(columns)).to_parquet(file)


def write_card(root, *cultures):
    lines = [f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/train-*\n" for c in cultures]
    (root / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n# card\n")


def read(folder, *, culture="korea", needs_blip=True, needs_negatives=True, **options):
    source = find_dataset(str(folder), culture=culture)
    cache = folder.parent / "datasets_cache"
    options = {"cache_dir": cache, "needs_blip": needs_blip, "needs_negatives": needs_negatives} | options
    return read_dataset(source, culture=culture, **options)


def refuse(error):
    def call(*_, **__):
        raise error

    return call


def test_import_is_light():
    """Importing scoft.dataset loads neither torch nor datasets, so that a mistyped flag is answered at once."""
    code = "import sys, scoft.dataset; sys.exit(bool({'torch', 'datasets', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("culture", [" ", "", "k" * 300, "../korea", "ko\0rea"])
def test_culture_that_is_no_name(culture):
    """A culture that no folder could be named after is refused by its flag."""
    with pytest.raises(DataError, match="^culture is 1 to 64 letters"):
        find_dataset("pocket", culture=culture)


# Layouts -------------------------------------------------------------------------------------------------------------


def authors_in_train(root):
    write_folder(root / "train", records(negatives_key="negative_imgpath"))


def authors_at_root(root):
    write_folder(root, records(negatives_key="negative_imgpath"))


def imagefolder_jsonl(root):
    write_folder(root, records(prefix="deep/er/"))


def imagefolder_csv_in_train(root):
    write_folder(root / "train", records(), kind="csv")


def parquet_plain(root):
    write_parquet(root / "train-00000-of-00001.parquet")


def parquet_in_data(root):
    write_parquet(root / "data" / "train-00000-of-00001.parquet")


def parquet_with_configs(root):
    for culture in ("korea", "china"):
        write_parquet(root / culture / "train-00000-of-00001.parquet")
    write_card(root, "korea", "china")


def culture_folders(root):
    write_folder(root / "korea" / "train", records())
    write_folder(root / "china", [{"file_name": "red.png", "text": "elsewhere"}])
    (root / "images").mkdir()


def culture_folders_of_parquet(root):
    write_parquet(root / "korea" / "data" / "train-00000-of-00001.parquet")
    write_parquet(root / "china" / "train-00000-of-00001.parquet")


LAYOUTS = [
    authors_in_train,
    authors_at_root,
    imagefolder_jsonl,
    imagefolder_csv_in_train,
    parquet_plain,
    parquet_in_data,
    parquet_with_configs,
    culture_folders,
    culture_folders_of_parquet,
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layout(tmp_path, layout):
    """Every layout gives the same rows and fingerprint, also after a trip through pickle."""
    root = tmp_path / "data_set"
    layout(root)
    loaded = read(root)
    for data in (loaded, pickle.loads(pickle.dumps(loaded))):
        assert len(data) == 3 and data.dropped == 0
        assert data.captions == [["a red house"], ["a green house"], ["a blue house"]]
        assert data.blip_captions == BLIP
        assert data.num_negatives == [2, 0, 1]
        assert [data.image(i).getpixel((0, 0)) for i in range(3)] == list(COLOURS.values())
        seen = [[image.getpixel((0, 0)) for image in data.negatives(i)] for i in range(3)]
        assert seen == [[COLOURS[each] for each in names] for names in NEGATIVES]
        assert data.row_name(1).startswith("row 1 (") and "green.png" in data.row_name(1)
    write_folder(tmp_path / "reference", records())
    assert loaded.fingerprint == read(tmp_path / "reference").fingerprint


@pytest.mark.parametrize("where", ["", "train"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_diffusers_imagefolder(tmp_path, where, kind):
    """What diffusers' --train_data_dir reads, file_name and text alone in nested folders, suffices for finetune."""
    rows = [{"file_name": "a/b/red.png", "text": "one, two"}, {"file_name": "blue.png", "text": "[sic] three"}]
    rows += [{"file_name": "red.png", "text": "42"}]
    write_folder(tmp_path / "d" / where, rows, kind=kind)
    data = read(tmp_path / "d", needs_blip=False, needs_negatives=False)
    assert data.captions == [["one, two"], ["[sic] three"], ["42"]]
    assert data.blip_captions == [[], [], []] and data.num_negatives == [0, 0, 0]
    assert data.image(0).getpixel((0, 0)) == COLOURS["red"]


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


def test_byte_order_mark(tmp_path):
    """A spreadsheet's csv, which begins with a byte order mark, is read like any other."""
    write_folder(tmp_path / "d", [{"file_name": "red.png", "text": "one"}], kind="csv")
    file = tmp_path / "d" / "metadata.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(tmp_path / "d", needs_blip=False, needs_negatives=False).captions == [["one"]]


def test_column_flags_rename(tmp_path):
    """The four column flags choose other columns, in metadata and in parquet."""
    flags = {
        "image_column": "photo",
        "caption_column": "said",
        "blip_caption_column": "naive",
        "negatives_column": "wrong",
    }
    row = {"photo_file_name": "red.png", "said": "one", "naive": "two", "wrong_file_names": ["blue.png"]}
    write_folder(tmp_path / "d", [row], images=False)
    for name in ("red", "blue"):
        (tmp_path / "d" / f"{name}.png").write_bytes(plain(name))
    write_parquet(tmp_path / "p" / "train-0.parquet")
    (tmp_path / "q").mkdir()
    table = datasets.Dataset.from_parquet(str(tmp_path / "p" / "train-0.parquet"), cache_dir=str(tmp_path / "made"))
    renamed = table.rename_columns(dict(zip(["image", "text", "blip_text", "negatives"], flags.values(), strict=True)))
    renamed.to_parquet(tmp_path / "q" / "train-0.parquet")
    data = read(tmp_path / "d", **flags)
    assert (data.captions, data.blip_captions, data.num_negatives) == ([["one"]], [["two"]], [1])
    assert read(tmp_path / "q", **flags).fingerprint == read(tmp_path / "p").fingerprint


def test_splits(tmp_path):
    """Each split is read from its own folder, and a missing one is named."""
    write_folder(tmp_path / "d" / "train", records())
    write_folder(tmp_path / "d" / "test", records()[:1])
    assert len(read(tmp_path / "d", split="test")) == 1
    with pytest.raises(DataError, match="no split 'validation'"):
        read(tmp_path / "d", split="validation")


@pytest.mark.parametrize("layout", [parquet_plain, parquet_with_configs])
def test_parquet_written_anew_is_read_anew(tmp_path, layout):
    """Other content under the same file names is seen, though `datasets` keeps a cache by the folder's name."""
    layout(tmp_path / "d")
    before = read(tmp_path / "d")
    (file,) = (tmp_path / "d").rglob("*.parquet") if layout is parquet_plain else (tmp_path / "d/korea").iterdir()
    age = file.stat().st_mtime_ns
    write_parquet(file, photographs=[plain(colour, (25, 30)) for colour in COLOURS])
    os.utime(file, ns=(age, age))
    between = read(tmp_path / "d").image_hashes
    assert not set(between) & set(before.image_hashes)
    write_parquet(file, photographs=[plain(colour) for colour in reversed(COLOURS)])
    assert read(tmp_path / "d").image_hashes == before.image_hashes[::-1]


def test_split_missing_in_parquet(tmp_path):
    """A split that parquet files lack is refused with those there are."""
    parquet_with_configs(tmp_path / "d")
    with pytest.raises(DataError, match="no split 'test'; there are train"):
        read(tmp_path / "d", split="test")


@pytest.mark.parametrize("layout", [culture_folders, parquet_with_configs, culture_folders_of_parquet])
@pytest.mark.parametrize(
    ("culture", "said"), [("peru", "culture peru is not there: "), (None, "culture was not given: ")]
)
def test_unknown_culture(tmp_path, layout, culture, said):
    """Where there is a dataset per culture, a culture that is absent or not given is answered with the list."""
    layout(tmp_path / "d")
    with pytest.raises(DataError, match=said + r".*\(china, korea\)"):
        read(tmp_path / "d", culture=culture)


def test_only_culture_is_taken(tmp_path):
    """Without --culture the only culture there is is taken."""
    write_folder(tmp_path / "d" / "korea", records())
    assert len(read(tmp_path / "d", culture=None)) == 3


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


# Bad metadata --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("layout", [imagefolder_jsonl, parquet_plain])
@pytest.mark.parametrize(
    ("flag", "fix"),
    [
        ("image_column", ""),
        ("caption_column", ""),
        ("blip_caption_column", "without needs_blip"),
        ("negatives_column", "without needs_negatives"),
    ],
)
def test_missing_column(tmp_path, layout, flag, fix):
    """A column that is absent is refused with the flag, its value and the columns found."""
    layout(tmp_path / "d")
    with pytest.raises(DataError) as error:
        read(tmp_path / "d", **{flag: "nowhere"})
    assert f"{flag} 'nowhere' is no column of " in str(error.value) and "; its columns are: " in str(error.value)
    assert "blip_text" in str(error.value) and fix in str(error.value)


def test_no_row_has_a_negative(tmp_path):
    """A dataset all of whose lists of negatives are empty cannot train with them, and the message says what can."""
    write_folder(tmp_path / "d", [row | {"negatives_file_names": []} for row in records()])
    with pytest.raises(DataError, match="no row has a usable negative.*prepare_ccub.py.*without needs_negatives"):
        read(tmp_path / "d")


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


def test_two_metadata_files(tmp_path):
    """metadata.jsonl beside metadata.csv is ambiguous and refused."""
    write_folder(tmp_path / "d", records())
    write_folder(tmp_path / "d", records(), kind="csv")
    with pytest.raises(DataError, match="both metadata.jsonl and metadata.csv"):
        read(tmp_path / "d")


def test_corrupt_parquet(tmp_path):
    """A parquet file that is none is a DataError, not a traceback of Arrow."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train-0.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match="split 'train' cannot be read"):
        read(tmp_path / "d")


BLOWN = "&x0 [0,0,0,0,0,0,0,0,0]\n" + "".join(f"x{i}: &x{i} [{','.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 10))


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


def test_parquet_text_that_is_not_utf8(tmp_path):
    """Parquet keeps any bytes as text; they are looked at when they are read."""
    texts = pa.array([b"\xff\xfe"]).view(pa.string())
    (tmp_path / "d").mkdir()
    pa.parquet.write_table(pa.table({"image": [plain("red")], "text": texts}), tmp_path / "d" / "train-0.parquet")
    with pytest.raises(DataError, match="column 'text' holds text that is not UTF-8"):
        read(tmp_path / "d", needs_blip=False, needs_negatives=False)


@pytest.mark.parametrize("said", ["[", "{}", '{"info": {"features": {"image": {"_type": "reduce", "function": 1}}}}'])
def test_parquet_metadata_is_not_believed(tmp_path, said):
    """What a parquet file says to `datasets` of its columns, which may name classes, changes nothing."""
    parquet_plain(tmp_path / "d")
    (file,) = (tmp_path / "d").iterdir()
    pa.parquet.write_table(pa.parquet.read_table(file).replace_schema_metadata({"huggingface": said}), file)
    assert len(read(tmp_path / "d")) == 3


# Files that a dataset may name ---------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path):
    """A picture that lies beside the dataset."""
    (tmp_path / "secret.png").write_bytes(plain("red"))
    return tmp_path / "secret.png"


def named_by_metadata(root, path):
    (root / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name, "text": "a"}) + "\n" for name in ("own.png", path))
    )


def named_by_parquet(root, path):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    cells = [{"bytes": None, "path": name} for name in ("own.png", path)]
    table = pa.table({"image": cells, "text": ["a", "a"]}, schema=features.arrow_schema)
    pa.parquet.write_table(table, root / "train-0.parquet")


@pytest.mark.parametrize("write", [named_by_metadata, named_by_parquet])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret.png", "lies outside of"),
        ("{secret}", "lies outside of"),
        ("link.png", "lies outside of"),
        ("linked/secret.png", "lies outside of"),
        ("/dev/zero", "lies outside of"),
        ("pipe", "is not a regular file"),
        (".", "is not a regular file"),
        ("circle", "is not a path|Too many levels"),
        ("https://example.org/a.png", "does not exist"),
        ("hf://datasets/a/b/c.png", "does not exist"),
        ("zip://a.png::../a.zip", "outside of|does not exist"),
    ],
)
def test_only_a_datasets_own_files_are_read(tmp_path, secret, caplog, write, path, message):
    """A path out of the dataset's folder, a pipe, a device or a URL is a bad image, and skip_bad_images drops it."""
    root = tmp_path / "d"
    root.mkdir()
    (root / "own.png").write_bytes(plain("blue"))
    (root / "link.png").symlink_to(secret)
    (root / "linked").symlink_to(tmp_path)
    (root / "circle").symlink_to(root / "circle")
    os.mkfifo(root / "pipe")
    write(root, path.format(secret=secret))
    with pytest.raises(
        DataError, match=rf"1 of 2 images cannot be used: row 1 \(.*\): .*({message}).*skip_bad_images"
    ):
        read(root, needs_blip=False, needs_negatives=False)
    kept = read(root, needs_blip=False, needs_negatives=False, skip_bad_images=True)
    assert len(kept) == kept.dropped == 1 and kept.image(0).getpixel((0, 0)) == COLOURS["blue"]


def test_hub_rows_hold_their_pictures(hub, tmp_path, secret, monkeypatch):
    """A row of the Hub that names a file here is a bad image."""
    (tmp_path / "made").mkdir()
    named_by_parquet(tmp_path / "made", str(secret))
    hub.add("dataset", "bob/ccub", {"train-0.parquet": (tmp_path / "made" / "train-0.parquet").read_bytes()})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"row 1 \(.*secret.png\): names the file .*secret.png; from the Hub pictures"):
        read_hub("bob/ccub", None, needs_blip=False, needs_negatives=False)


def test_hub_folder_of_pictures(hub, tmp_path, monkeypatch):
    """A Hub dataset of pictures with a metadata.jsonl is read as such a folder is, without files outside of it."""
    write_folder(tmp_path / "made", records())
    files = {str(f.relative_to(tmp_path / "made")): f.read_bytes() for f in (tmp_path / "made").rglob("*.*")}
    hub.add("dataset", "bob/ccub", files)
    monkeypatch.chdir(tmp_path)
    assert read_hub("bob/ccub", None).fingerprint == read(tmp_path / "made").fingerprint
    line = json.dumps({"file_name": "../../../../../secret.png", "text": "a"})
    hub.add("dataset", "bob/ccub", {"metadata.jsonl": line.encode()})
    (tmp_path / "secret.png").write_bytes(plain("red"))
    with pytest.raises(DataError, match="lies outside of .*datasets--bob--ccub"):
        read_hub("bob/ccub", None, needs_blip=False, needs_negatives=False)


@pytest.mark.parametrize(
    "named",
    [
        "../outside/train-0.parquet",
        "{outside}/train-0.parquet",
        "linked/train-0.parquet",
        "https://example.org/train-0.parquet",
        "hf://datasets/bob/other/train-0.parquet",
        "zip://train-0.parquet::{outside}/a.zip",
    ],
)
@pytest.mark.parametrize("where", ["folder", "Hub"])
@pytest.mark.parametrize("config", ["default", "korea"])
def test_readme_names_own_files_alone(hub, web, tmp_path, monkeypatch, named, where, config):
    """A README whose data_files lie elsewhere names nothing, and nobody is asked for it."""
    write_parquet(tmp_path / "outside" / "train-0.parquet")
    root = tmp_path / "d"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "outside")
    path = named.format(outside=tmp_path / "outside")
    (root / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files: {path}\n---\n")
    monkeypatch.chdir(tmp_path)
    if where == "Hub":
        hub.add("dataset", "bob/ccub", {"README.md": (root / "README.md").read_bytes()})
    with pytest.raises(DataError, match="README.md says that split 'train' lies in .*, which names 0 files with rows"):
        read(root) if where == "folder" else read_hub("bob/ccub", "korea")
    assert not hub.asked("other")


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("configs: 3", "configs must be a list"),
        ("configs: [x]", "configs must be a list"),
        ("configs:\n- config_name: korea\n  data_files: 3", "data_files 3"),
        ("configs:\n- config_name: korea\n  data_files: [[a]]", "must be text"),
        ("configs:\n- config_name: korea\n  data_files: [{split: train}]", "Invalid format"),
        ("configs:\n- config_name: korea\n  data_files: 'a**b'", "Invalid pattern"),
        ("configs: " + BLOWN, "uses an alias"),
        ("- a", "it has no `name: value`"),
        ("a: " + "[" * 100_000, "more than 20 lists"),
    ],
)
def test_readme_from_hell(tmp_path, readme, message):
    """A README that is no description of a dataset is named."""
    write_folder(tmp_path / "d", records())
    (tmp_path / "d" / "README.md").write_text(f"---\n{readme}\n---\n")
    with pytest.raises(DataError, match=f"(?s)README.md.*{message}"):
        read(tmp_path / "d")


@pytest.mark.parametrize(
    "data_files", ["'**/t-*.parquet'", "[a/t-0.parquet, a/t-1.parquet]", "{train: ['./a/t-?.parquet']}", "'a/**'"]
)
def test_readme_patterns(hub, tmp_path, monkeypatch, data_files):
    """data_files in every form that the Hub's documentation has, in a folder and from the Hub."""
    for i in range(2):
        write_parquet(tmp_path / "d" / "a" / f"t-{i}.parquet", photographs=[plain(c, (20 + i, 20)) for c in COLOURS])
    (tmp_path / "d" / "a" / "junk.txt").write_text("no rows")
    (tmp_path / "d/README.md").write_text(f"---\nconfigs:\n- config_name: korea\n  data_files: {data_files}\n---\n")
    found = read(tmp_path / "d")
    assert [found.image(i).width for i in range(6)] == [20, 20, 20, 21, 21, 21]
    files = {str(f.relative_to(tmp_path / "d")): f.read_bytes() for f in (tmp_path / "d").rglob("*.*")}
    hub.add("dataset", "bob/ccub", files)
    monkeypatch.chdir(tmp_path)
    assert read_hub("bob/ccub", "korea").fingerprint == found.fingerprint


@pytest.mark.parametrize("name", ["a[1]b", "a*b", "한국", "a b"])
def test_folder_of_any_name(tmp_path, name):
    """Wildcards in a folder's name stand for themselves."""
    parquet_with_configs(tmp_path / name)
    assert len(read(tmp_path / name)) == 3


def test_dataset_scripts_are_not_run(tmp_path):
    """A Python file that a dataset holds, as `datasets` once ran them, is one file more."""
    parquet_plain(tmp_path / "d")
    (tmp_path / "d" / "d.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    (tmp_path / "d" / "dataset_infos.json").write_text("[")
    os.mkfifo(tmp_path / "d" / ".huggingface.yaml")
    assert len(read(tmp_path / "d")) == 3 and not (tmp_path / "run").exists()


def test_huge_folder(tmp_path, monkeypatch):
    """A folder of more files than a dataset has is not searched to its end; links in a circle are not followed."""
    (tmp_path / "d" / "deep").mkdir(parents=True)
    (tmp_path / "d" / "deep" / "circle").symlink_to(tmp_path / "d")
    for i in range(9):
        (tmp_path / "d" / "deep" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match='holds 9 images but no metadata.jsonl.*"file_name": "deep/0.png"'):
        read(tmp_path / "d")
    monkeypatch.setattr(dataset_rows, "MAX_FILES", 8)
    with pytest.raises(DataError, match="holds more than 8 files; give the folder of the dataset alone"):
        read(tmp_path / "d")


# Bad images ----------------------------------------------------------------------------------------------------------


def noise(size=(64, 48), mode="RGB"):
    shape = (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode)


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
    (folder / "images" / "green.png").unlink()
    with pytest.raises(DataError, match=r"row 1 \(images/green.png\) was good when the run began"):
        data.image(1)


# Names and the Hub ---------------------------------------------------------------------------------------------------


def test_name_order(hub, tmp_path, monkeypatch):
    """Embedded wins over a folder, a folder over the Hub, and a bare name on the Hub is the user's own."""
    here = tmp_path / "repository"
    monkeypatch.setattr(dataset_source, "ROOT", here)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert find_dataset("pocket", culture=None) == DatasetSource("hub", "alice/pocket", "pocket")
    (tmp_path / "pocket").mkdir()
    assert find_dataset("pocket", culture=None) == DatasetSource("folder", str(tmp_path / "pocket"), "pocket")
    (here / "pocket").mkdir(parents=True)  # code without its dataset is not a dataset
    assert find_dataset("pocket", culture=None).location == str(tmp_path / "pocket")
    (here / "pocket" / "ccub").mkdir()
    assert find_dataset("pocket", culture=None).location == str(here / "pocket" / "ccub")

    assert find_dataset("bob/ccub", culture=None) == DatasetSource("hub", "bob/ccub", "bob/ccub")
    (tmp_path / "bob" / "ccub").mkdir(parents=True)
    assert find_dataset("bob/ccub", culture=None).kind == "folder"


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """The embedded dataset `toy`, two cultures in parquet, with checksums of a model and of its rows."""
    root = tmp_path / "repository" / "toy"
    monkeypatch.setattr(dataset_source, "ROOT", root.parent)
    monkeypatch.setattr(dataset_source, "EMBEDDED", ("toy",))
    parquet_with_configs(root / "ccub")
    (root / "models" / "unet").mkdir(parents=True)
    (root / "models" / "unet" / "model.safetensors").write_bytes(b"weights")
    parts = {"models": ("unet/model.safetensors", "python -m toy.train")}
    parts["ccub"] = ("korea/train-00000-of-00001.parquet", "python prepare_ccub.py toy")
    digests = {
        path: hashlib.sha256((root / part / path).read_bytes()).hexdigest() for part, (path, _) in parts.items()
    }
    table = {part: {"made_by": command, "sha256": {path: digests[path]}} for part, (path, command) in parts.items()}
    (root / "checksums.json").write_text(json.dumps(table))
    return root


def test_embedded_files_as_they_should_be(embedded):
    """Intact files pass, and so does a dataset without checksums or one that is not embedded."""
    check_embedded("toy")
    (embedded / "models" / "unet" / "model.safetensors").unlink()
    check_embedded("./toy")
    (embedded / "checksums.json").unlink()
    check_embedded("toy")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("models/unet/model.safetensors", "python -m toy.train"),
        ("ccub/korea/train-00000-of-00001.parquet", "python prepare_ccub.py toy"),
    ],
)
def test_embedded_file_missing_or_changed(embedded, file, command):
    """A listed file that is gone, or differs in a bit, is named with the command that remakes it, and both digests."""
    right, changed = (embedded / file).read_bytes(), bytearray((embedded / file).read_bytes())
    changed[-1] ^= 1
    (embedded / file).write_bytes(changed)
    found, expected = (hashlib.sha256(data).hexdigest() for data in (changed, right))
    with pytest.raises(DataError, match=f"{file} is not .* is {found}, not {expected}.* anew with: {command}"):
        check_embedded("toy")
    (embedded / file).unlink()
    with pytest.raises(DataError, match=rf"{file} cannot be read \(No such file.* anew with: {command}"):
        check_embedded("toy")


def test_embedded_checksums_that_are_no_json(embedded):
    """A damaged list of checksums is named."""
    (embedded / "checksums.json").write_text("<<<<<<< HEAD")
    with pytest.raises(DataError, match="checksums.json is not JSON"):
        check_embedded("toy")


def test_embedded_unknown_culture(embedded):
    """A culture that an embedded dataset lacks is answered with those it has."""
    source = find_dataset("toy", culture="peru")
    with pytest.raises(DataError, match=r"culture peru is not there: .* \(china, korea\)"):
        read_dataset(source, culture="peru", needs_blip=True, needs_negatives=True, cache_dir=embedded / "cache")


@pytest.mark.parametrize(
    ("name", "token", "messages"),
    [
        ("ccub", None, ["nobody is logged in (`hf auth login`)", "embedded"]),
        ("ccub", "hf_wrong", ["did not say who is logged in (", "<your name>/ccub"]),
        ("./ccub", None, ["not asked"]),
        ("a/b/c", None, ["not asked"]),
    ],
)
def test_not_found(hub, tmp_path, monkeypatch, name, token, messages):
    """What is found nowhere is answered with all that was tried, in order, and the command that builds it."""
    monkeypatch.chdir(tmp_path)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError) as raised:
        find_dataset(name, culture="united_states")
    message = str(raised.value)
    assert all(part in message for part in messages), message
    assert message.index(f"the folder {tmp_path}") < message.index("the Hub")
    assert f"`python prepare_ccub.py --culture united_states --images FOLDER --output {name}`, where FOLDER" in message


@pytest.mark.parametrize("where", ["", "train", "igbo", "igbo/train"])
@pytest.mark.parametrize("asked", [{"needs_blip": True}, {"needs_negatives": True}])
def test_advice_for_a_folder_of_pictures(tmp_path, monkeypatch, where, asked):
    """What a folder of pictures and captions lacks is made by the command that is told, from where its metadata is."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "my pictures" / where, [{"file_name": "red.png", "text": "one"}])
    with pytest.raises(DataError, match="and take the dataset 'my pictures_prepared', or") as error:
        read(Path("my pictures"), culture="igbo", **{"needs_blip": False, "needs_negatives": False} | asked)
    python, script, *argv = shlex.split(re.search("Make them with `(.*)`", str(error.value))[1])
    args = prepare_ccub.parse_args(argv)
    assert (python, script, args.culture) == ("python", "prepare_ccub.py", "igbo")
    (picture,) = read_pictures(args.images)
    assert picture.caption == "one" and args.output == Path("my pictures_prepared")


@pytest.mark.parametrize("culture", [None, "china", "igbo"])
def test_advice_for_what_is_not_found(hub, tmp_path, monkeypatch, culture):
    """The command that builds a dataset can be given, of CCUB's cultures that are public as of any other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    with pytest.raises(DataError) as error:
        find_dataset("ccub", culture=culture)
    python, script, *argv = shlex.split(re.search("Build it.*: `(.*)`", str(error.value))[1])
    args = prepare_ccub.parse_args(argv)
    assert (python, script, args.culture) == ("python", "prepare_ccub.py", culture or "korea")
    assert args.output == Path("ccub") and args.images == (Path("FOLDER") if culture == "igbo" else None)


def test_no_advice_that_does_not_work(tmp_path):
    """prepare_ccub.py reads no parquet, so it is not advised for that."""
    parquet_plain(tmp_path / "d")
    with pytest.raises(DataError, match="'naive'.*Add them to the rows, or read it without needs_blip") as error:
        read(tmp_path / "d", blip_caption_column="naive")
    assert "prepare_ccub" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a\0b", "n" * 300, "~nobody-of-this-name/ccub", "a/" * 3000])
def test_names_that_are_none(name):
    """A --dataset that no folder and no repository could be called is refused in a line."""
    with pytest.raises(DataError, match="^dataset .* is no folder, nor a dataset of the Hub: ") as error:
        find_dataset(name, culture=None)
    assert len(str(error.value)) < 7000 and "\n" not in str(error.value)


def test_a_file_is_no_dataset(tmp_path):
    """The path of a plain file is refused with what to give instead."""
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="a.parquet is a file. Give the folder"):
        find_dataset(str(tmp_path / "a.parquet"), culture=None)


@pytest.fixture
def published(hub, tmp_path, monkeypatch):
    """The private Hub dataset alice/ccub with two commits, of which the second has other captions; alice is logged in.

    The commits.
    """
    parquet_with_configs(tmp_path / "made")
    files = {str(f.relative_to(tmp_path / "made")): f.read_bytes() for f in (tmp_path / "made").rglob("*.*")}
    first = hub.add("dataset", "alice/ccub", files, private=True)
    for file in (tmp_path / "made").rglob("*.parquet"):
        table = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "other"))
        table.map(lambda row: {"text": f"later {row['text']}"}).to_parquet(file)
    files = {str(f.relative_to(tmp_path / "made")): f.read_bytes() for f in (tmp_path / "made").rglob("*.*")}
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.chdir(tmp_path)
    return first, hub.add("dataset", "alice/ccub", files)


def read_hub(name, culture, **options):
    source = find_dataset(name, culture=culture)
    options = {"needs_blip": True, "needs_negatives": True, "cache_dir": "cache"} | options
    return read_dataset(source, culture=culture, **options)


def test_hub_dataset(published):
    """A bare name is read from the user's own private Hub dataset, one config a culture, and its commit is known."""
    found = read_hub("ccub", "china")
    assert found.num_negatives == [2, 0, 1] and found.captions[0] == ["later a red house"]
    assert found.commit == published[1]


def test_hub_dataset_of_a_commit(published):
    """--dataset_revision pins the rows, also when the other commit was read last and lies in the cache."""
    read_hub("ccub", "china")
    found = read_hub("alice/ccub", "china", revision=published[0])
    assert found.captions[0] == ["a red house"] and found.commit == published[0]
    with pytest.raises(DataError, match="the Hub, alice/ccub: "):
        read_hub("alice/ccub", "china", revision="v9")


def test_hub_dataset_without_a_card(published, hub):
    """A dataset of plain parquet files has a commit too."""
    commit = hub.add(
        "dataset", "alice/plain", {"train-0.parquet": Path("made/korea").glob("*").__next__().read_bytes()}
    )
    assert read_hub("alice/plain", None).commit == commit


@pytest.mark.parametrize("token", [None, "hf_bob", "hf_wrong"])
def test_hub_dataset_of_somebody_else(published, monkeypatch, token):
    """A private dataset is read by nobody else, also from the cache; the message says what the Hub said."""
    read_hub("alice/ccub", "korea")
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(DataError, match="^dataset alice/ccub was not found(?s:.*)the Hub, alice/ccub: "):
        read_hub("alice/ccub", "korea")


def test_hub_dataset_offline(published):
    """Offline cached copies are read, each commit's own, and one that lacks a file is refused."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom scoft.dataset import read_dataset\n"
        "from scoft.dataset_source import find_dataset\n"
        "from scoft.errors import DataError\n"
        "source = find_dataset('alice/ccub', culture='korea')\n"
        "read = lambda revision: read_dataset(source, culture='korea', needs_blip=False, needs_negatives=False, "
        "cache_dir='cache', revision=revision)\n"
        "try: read(None); sys.exit('read without a copy')\n"
        "except DataError as error: print(error)\n"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

    def run(program):
        return subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=True)

    assert "the Hub, alice/ccub: " in run(program).stdout and "prepare_ccub.py --culture korea" in run(program).stdout
    read_hub("alice/ccub", "korea", revision=published[0])
    read_hub("alice/ccub", "korea")
    program = program.partition("try:")[0] + (
        f"for revision in (None, {published[0]!r}): print(read(revision).commit, read(revision).captions[0])\n"
        "next(Path('cache').rglob('blobs/*')).unlink()\n"
        "try: read(None), read(revision)\nexcept DataError as error: print(error)\n"
    )
    current, earlier, *torn = run(program).stdout.splitlines()
    assert current == f"{published[1]} ['later a red house']" and earlier == f"{published[0]} ['a red house']"
    assert "the Hub, alice/ccub: " in "".join(torn)


def test_hub_unknown_culture(published):
    """A culture the Hub dataset lacks is answered with those it has."""
    with pytest.raises(DataError, match=r"culture peru is not there: alice/ccub holds .* \(china, korea\)"):
        read_hub("ccub", "peru")


@pytest.mark.parametrize("name", ["a/" + "n" * 200, "a--b/c..d"])
def test_hub_ids_that_are_none(hub, name):
    """What looks like an id of the Hub and is none is answered as a dataset that is not there."""
    with pytest.raises(DataError, match="(?s)was not found.*the Hub, a"):
        read_hub(name, None)


def test_hub_unknown_dataset(published):
    """A bare name that the user's Hub account lacks is answered with all that was tried."""
    with pytest.raises(DataError) as raised:
        read_hub("cub", "korea")
    message = str(raised.value)
    assert "embedded" in message and "the Hub, alice/cub: " in message and "--output cub" in message


def test_revision_of_a_folder(tmp_path):
    """A revision makes no sense for a folder and is not ignored."""
    write_folder(tmp_path / "d", records())
    with pytest.raises(DataError, match="^dataset_revision v1 is of a Hub dataset"):
        read(tmp_path / "d", revision="v1")

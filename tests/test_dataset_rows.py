"""Rows as they lie in folders, parquet files and on the Hub: each layout is read alike, and no file outside it."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

import prepare_ccub
from layouts import (
    BLIP,
    COLOURS,
    NEGATIVES,
    ROOT,
    parquet_plain,
    parquet_with_configs,
    plain,
    read,
    read_hub,
    records,
    write_folder,
    write_parquet,
)
from scoft import dataset_rows
from scoft.errors import DataError
from scoft.prepare.sources import read_images


def authors_in_train(root):
    write_folder(root / "train", records(negatives_key="negative_imgpath"))


def authors_at_root(root):
    write_folder(root, records(negatives_key="negative_imgpath"))


def imagefolder_jsonl(root):
    write_folder(root, records(prefix="deep/er/"))


def imagefolder_csv_in_train(root):
    write_folder(root / "train", records(), kind="csv")


def parquet_in_data(root):
    write_parquet(root / "data" / "train-00000-of-00001.parquet")


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


@pytest.mark.parametrize("where", ["", "train", "igbo", "igbo/train"])
@pytest.mark.parametrize("asked", [{"needs_blip": True}, {"needs_negatives": True}])
def test_advice_for_a_folder_of_pictures(tmp_path, monkeypatch, where, asked):
    """What a folder of pictures and captions lacks is made by the command that is told, from where its metadata is."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "my pictures" / where, [{"file_name": "red.png", "text": "one"}])
    with pytest.raises(DataError, match="and read the dataset 'my pictures_prepared', or") as error:
        read(Path("my pictures"), culture="igbo", **{"needs_blip": False, "needs_negatives": False} | asked)
    python, script, *argv = shlex.split(re.search("Make them with `(.*)`", str(error.value))[1])
    args = prepare_ccub.parse_args(argv)
    assert (python, script, args.culture) == ("python", "prepare_ccub.py", "igbo")
    (picture,) = read_images(args.images)
    assert picture.caption == "one" and args.output == Path("my pictures_prepared")


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


def test_hub_dataset(published):
    """A bare name is read from the user's own private Hub dataset, one config a culture, and its commit is known."""
    found = read_hub("ccub", "china")
    assert found.num_negatives == [2, 0, 1] and found.captions[0] == ["later a red house"]
    assert found.commit == published[1]


def test_hub_dataset_of_a_commit(published):
    """--dataset_revision pins the rows, also when the other commit was read last and lies in the cache."""
    read_hub("ccub", "china")
    found = read_hub("alice/ccub", "china", dataset_revision=published[0])
    assert found.captions[0] == ["a red house"] and found.commit == published[0]
    with pytest.raises(DataError, match="the Hub, alice/ccub: "):
        read_hub("alice/ccub", "china", dataset_revision="v9")


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
        "cache_dir='cache', dataset_revision=revision)\n"
        "try: read(None); sys.exit('read without a copy')\n"
        "except DataError as error: print(error)\n"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}

    def run(program):
        return subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=True)

    assert "the Hub, alice/ccub: " in run(program).stdout and "prepare_ccub.py --culture korea" in run(program).stdout
    read_hub("alice/ccub", "korea", dataset_revision=published[0])
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


def test_hub_unknown_dataset(published):
    """A bare name that the user's Hub account lacks is answered with all that was tried."""
    with pytest.raises(DataError) as raised:
        read_hub("cub", "korea")
    message = str(raised.value)
    assert "embedded" in message and "the Hub, alice/cub: " in message and "--output cub" in message

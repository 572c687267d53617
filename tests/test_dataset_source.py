"""Where a dataset lies: embedded, in a folder or on the Hub, and what is said of one that is not found."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import pytest

import prepare_ccub
from layouts import parquet_plain, parquet_with_configs, read, read_hub
from scoft import dataset_source
from scoft.dataset import read_dataset
from scoft.dataset_source import DatasetSource, check_embedded, find_dataset
from scoft.errors import DataError


@pytest.mark.parametrize("culture", [" ", "", "k" * 300, "../korea", "ko\0rea"])
def test_culture_that_is_no_name(culture):
    """A culture that no folder could be named after is refused by its flag."""
    with pytest.raises(DataError, match="^culture is 1 to 64 letters"):
        find_dataset("pocket", culture=culture)


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


@pytest.mark.parametrize("name", ["a/" + "n" * 200, "a--b/c..d"])
def test_hub_ids_that_are_none(hub, name):
    """What looks like an id of the Hub and is none is answered as a dataset that is not there."""
    with pytest.raises(DataError, match="(?s)was not found.*the Hub, a"):
        read_hub(name, None)

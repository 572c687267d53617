"""The user's cache: verdicts on images serve later runs, and what is torn, foreign or stale is found out anew."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch

from layouts import ROOT, plain, read, records, write_folder, write_parquet
from scoft import dataset, images
from scoft.dataset import CulturalDataset
from scoft.errors import DataError
from scoft.user_cache import Verdict, remembered_tensors, remembered_verdicts, user_cache


@pytest.fixture
def decoded(monkeypatch):
    """The images that were decoded, a list that grows."""
    contents, true = [], dataset.open_image
    monkeypatch.setattr(dataset, "open_image", lambda data: contents.append(data) or true(data))
    return contents


@pytest.fixture
def cache(tmp_path):
    return user_cache(tmp_path / "cache")


def verdicts_of(cache: Path) -> Path:
    (file,) = (cache / "images").glob("*.json")
    return file


def same(a: CulturalDataset, b: CulturalDataset) -> bool:
    return (a.fingerprint, a.image_hashes, a.names) == (b.fingerprint, b.image_hashes, b.names)


def test_it_lies_in_the_hugging_face_home_or_in_cache_dir_for_this_user_alone(tmp_path):
    """The tests' own home is a temporary folder."""
    assert user_cache(None) == Path(huggingface_hub.constants.HF_HOME, "scoft")
    assert "scoft-tests-" in huggingface_hub.constants.HF_HOME
    folder = user_cache(tmp_path / "a")
    assert folder == tmp_path / "a/scoft" and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_a_second_run_decodes_nothing(tmp_path, cache, decoded, layout):
    """Of six images each is decoded once by the first run and by none after; without a cache by every run."""
    if layout == "folder":
        write_folder(tmp_path / "d", records())
    else:
        write_parquet(tmp_path / "d" / "train-0.parquet")
    first = read(tmp_path / "d", remember_in=cache)
    assert len(decoded) == 6
    assert same(first, read(tmp_path / "d", remember_in=cache)) and len(decoded) == 6
    assert same(first, read(tmp_path / "d")) and len(decoded) == 12


def test_an_image_that_several_rows_name_is_decoded_once(tmp_path, cache, decoded):
    rows = [row | {"negatives_file_names": ["images/red_negative.png"]} for row in records()]
    write_folder(tmp_path / "d", rows)
    assert read(tmp_path / "d", remember_in=cache).num_negatives == [1, 1, 1] and len(decoded) == 4


@pytest.mark.parametrize("change", ["content", "time", "size"])
def test_a_changed_image_is_looked_at_anew(tmp_path, cache, decoded, change):
    """By its time of change, or by its size where the time is set back; the others are not. What alone is missed is a
    change that keeps both.
    """
    red = write_folder(tmp_path / "d", records()) / "images/red.png"
    before, found = read(tmp_path / "d", remember_in=cache), red.stat()
    decoded.clear()
    if change != "time":
        red.write_bytes(plain("green", (24, 16) if change == "content" else (48, 32)))
    earlier = 0 if change == "size" else 1
    os.utime(red, ns=(found.st_atime_ns, found.st_mtime_ns - earlier))
    after = read(tmp_path / "d", remember_in=cache)
    assert len(decoded) == 1
    assert same(after, read(tmp_path / "d")) and same(before, after) == (change == "time")


def test_parquet_files_that_changed_are_looked_at_anew(tmp_path, cache, decoded):
    write_parquet(tmp_path / "d" / "train-0.parquet")
    read(tmp_path / "d", remember_in=cache)
    write_parquet(tmp_path / "d" / "train-0.parquet", photographs=[plain("red"), plain("red"), plain("blue")])
    after = read(tmp_path / "d", remember_in=cache)
    assert len(decoded) == 12 and same(after, read(tmp_path / "d"))


def test_parquet_files_that_name_pictures_are_looked_at_at_each_start(tmp_path, cache, decoded):
    """Their own time says nothing of the pictures'."""
    rows = {"image": [{"bytes": None, "path": "red.png"}], "text": ["a red house"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "d" / "train-0.parquet")
    (tmp_path / "d" / "red.png").write_bytes(plain("red"))
    more = {"needs_blip": False, "needs_negatives": False, "remember_in": cache}
    before = read(tmp_path / "d", **more)
    (tmp_path / "d" / "red.png").write_bytes(plain("blue"))
    assert not same(before, read(tmp_path / "d", **more)) and len(decoded) == 2


def test_why_an_image_is_not_usable_is_remembered_until_it_or_the_decoders_change(
    tmp_path, cache, decoded, monkeypatch
):
    green = write_folder(tmp_path / "d", records()) / "images/green.png"
    green.write_bytes(b"nonsense")
    said = []
    for _ in range(2):
        with pytest.raises(DataError) as error:
            read(tmp_path / "d", remember_in=cache)
        said.append(str(error.value))
    assert said[0] == said[1] and "row 1 (images/green.png): is not an image" in said[0] and len(decoded) == 6
    assert read(tmp_path / "d", remember_in=cache, skip_bad_images=True).dropped == 1 and len(decoded) == 6
    monkeypatch.setattr(images, "MIN_SIDE", 20)
    with pytest.raises(DataError, match="row 0 .* is 24 x 16 pixels"):
        read(tmp_path / "d", remember_in=cache)
    assert len(decoded) == 12
    monkeypatch.undo()
    green.write_bytes(plain("green"))
    assert len(read(tmp_path / "d", remember_in=cache)) == 3


def test_a_file_that_could_not_be_read_for_now_is_looked_at_again(tmp_path, cache):
    """That it is not there says nothing of it."""
    green = write_folder(tmp_path / "d", records()) / "images/green.png"
    content = green.read_bytes()
    green.unlink()
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "d", remember_in=cache)
    green.write_bytes(content)
    assert len(read(tmp_path / "d", remember_in=cache)) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{nonsense",
        b"\x80\x04K\x01.",  # a pickle
        b'{"key": "k", "verdicts": {"name": {"stamp": "1", "sha256": "", "problem": ""}}}',
        b'{"key": "k", "verdicts": {"name": ["1", "2", "3"]}}',
    ],
    ids=["empty", "no object", "no JSON", "pickle", "no verdict", "lists"],
)
def test_a_foreign_file_is_as_if_not_there(tmp_path, cache, decoded, caplog, content):
    """It is told of, and written anew."""
    write_folder(tmp_path / "d", records())
    first = read(tmp_path / "d", remember_in=cache)
    verdicts_of(cache).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert same(first, read(tmp_path / "d", remember_in=cache))
    assert "All images are looked at anew" in caplog.text and len(decoded) == 12
    assert same(first, read(tmp_path / "d", remember_in=cache)) and len(decoded) == 12


@pytest.mark.parametrize("place", ["file", "folder"])
def test_where_nothing_can_be_kept_the_run_goes_on_with_a_warning(tmp_path, decoded, caplog, place):
    write_folder(tmp_path / "d", records())
    with caplog.at_level(logging.WARNING):
        if place == "file":
            (tmp_path / "cache").write_text("in the way")
            cache = user_cache(tmp_path / "cache")
            assert cache is None
        else:
            cache = user_cache(tmp_path / "cache")
            (cache / "images").write_text("in the way")
        for _ in range(2):
            assert len(read(tmp_path / "d", remember_in=cache)) == 3
    assert str(tmp_path / "cache") in caplog.text and len(decoded) == 12


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner here")
def test_another_users_word_is_not_taken(tmp_path, caplog, monkeypatch):
    user_cache(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    assert user_cache(tmp_path) is None and "another user's" in caplog.text


def test_what_was_found_until_an_interruption_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), remembered_verdicts(tmp_path / "v.json", key="k") as verdicts:
        verdicts["a"] = Verdict("1", "2", "")
        raise KeyboardInterrupt
    for key, found in (("k", {"a": Verdict("1", "2", "")}), ("other", {})):
        with remembered_verdicts(tmp_path / "v.json", key=key) as verdicts:
            assert verdicts == found
    assert [file.name for file in tmp_path.glob("[!.]*")] == ["v.json"]


def test_of_processes_that_start_together_one_looks_and_the_others_read(tmp_path, cache):
    """Three processes, 60 images: 60 are decoded in all, and all find the same."""
    rows = [{"file_name": f"red_{i}.png", "text": f"house {i}"} for i in range(60)]
    write_folder(tmp_path / "d", rows)
    code = (
        "import sys, pathlib\nfrom scoft import dataset\nfrom scoft.dataset_source import find_dataset\n"
        "true, count = dataset.open_image, []\n"
        "dataset.open_image = lambda data: count.append(1) or true(data)\n"
        "more = {'needs_blip': False, 'needs_negatives': False, 'remember_in': pathlib.Path(sys.argv[2])}\n"
        "data = dataset.read_dataset(find_dataset(sys.argv[1], culture=None), culture=None, **more)\n"
        "print(len(count), data.fingerprint)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d"), str(cache)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts, fingerprints = zip(*(run.communicate()[0].split() for run in runs))
    assert sorted(map(int, counts)) == [0, 0, 60] and len(set(fingerprints)) == 1


def test_on_a_file_system_without_locks_nothing_is_kept_and_all_goes_on(tmp_path, monkeypatch, caplog):
    def refuse(lock, *args, **kwargs):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    found = remembered_tensors(tmp_path / "a.safetensors", key="k", compute=lambda: {"a": torch.arange(3)})
    assert found["a"].tolist() == [0, 1, 2] and not (tmp_path / "a.safetensors").exists()
    with remembered_verdicts(tmp_path / "images/v.json", key="k") as known:
        known["x"] = Verdict("stamp", "0" * 64, "")
    assert not (tmp_path / "images/v.json").exists()
    assert caplog.text.count("cannot be kept for later runs: no flock here") == 2

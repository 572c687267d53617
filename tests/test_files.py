"""The files module: locks that die with their process, writes that are whole, reads of what should be there."""

import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scoft import files
from scoft.errors import DataError
from scoft.files import (
    Ledger,
    cached_tensors,
    checked_name,
    content_key,
    is_empty,
    private_folder,
    read_front_matter,
    read_record,
    read_regular,
    sole_writer,
    write_atomically,
)
from scoft.images import ImageTransform


ROOT = Path(files.__file__).resolve().parents[1]
HOLDER = (
    "import sys, time; from pathlib import Path; from scoft.files import sole_writer\n"
    "with sole_writer(Path(sys.argv[1]), flag='--output_dir'): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that writes into tmp_path / "out"."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "out"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_two_runs_do_not_write_into_one_folder(tmp_path, holder, monkeypatch):
    """The second is refused by its flag; once the first is killed, however hard, nothing stands in the way."""
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=f"--output_dir {out}: another run is writing into it"):
        with sole_writer(out, flag="--output_dir"):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with sole_writer(out, flag="--output_dir"):
        assert is_empty(out)  # but for the lock
    (out / "a").touch()
    assert not is_empty(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="--output .*cannot be written to"):
        with sole_writer(tmp_path / "out", flag="--output"):
            pass


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match="--output .*out cannot be written to"):
        with sole_writer(tmp_path / "out", flag="--output"):
            pass


def test_an_interrupted_write_leaves_the_old_content(tmp_path, monkeypatch):
    """A rename that fails leaves the old file, and nothing else."""
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_link_is_not_written_through(tmp_path):
    """Neither what a write goes through first nor its end is a way out of a folder that somebody else prepared."""
    mine = tmp_path / "mine"
    for name in ("report.md", "report.md.partial"):
        mine.write_text("mine")
        (tmp_path / name).symlink_to(mine)
        write_atomically(tmp_path / "report.md", "report")
        assert mine.read_text() == "mine" and (tmp_path / "report.md").read_text() == "report"
        assert not (tmp_path / "report.md").is_symlink()


def test_what_a_kill_leaves_is_not_taken_for_the_file(tmp_path, monkeypatch):
    """While it is written, no pattern of a folder's rows or pictures finds it."""
    names = []
    monkeypatch.setattr(files, "settle", lambda folder: None)
    monkeypatch.setattr(os, "fsync", lambda _: names.extend(path.name for path in tmp_path.iterdir()))
    write_atomically(tmp_path / "train-0.parquet", b"rows")
    assert len(names) == 1 and not names[0].endswith(".parquet")


def test_private_folders_are_for_one_user(tmp_path, monkeypatch, caplog):
    """Also one that was there; where the file system knows no such thing, the log says so."""
    folder = tmp_path / "a" / "b"
    assert private_folder(folder, flag="--output").stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert private_folder(folder, flag="--output").stat().st_mode & 0o777 == 0o700 and not caplog.text
    folder.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    private_folder(folder, flag="--output")
    assert f"--output {folder}: others may be able to look into it" in caplog.text


def test_a_file_in_the_way_of_a_private_folder(tmp_path):
    (tmp_path / "out").touch()
    for folder in (tmp_path / "out", tmp_path / "out" / "korea"):
        with pytest.raises(DataError, match=f"--output {folder} cannot be made .*Choose another folder"):
            private_folder(folder, flag="--output")


def test_regular_files_alone_are_read(tmp_path):
    """What hangs, never ends or lies elsewhere is refused before a byte of it is read."""
    inside = tmp_path / "dataset"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (inside / "good").write_bytes(b"good")
    (inside / "link").symlink_to(inside / "good")
    (inside / "out").symlink_to(tmp_path / "secret")
    os.mkfifo(inside / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(inside / "socket"))
        for name in ("good", "link", "../dataset/good"):
            assert read_regular(inside / name, within=inside) == b"good"
        for path in (inside / "out", inside / "../secret", tmp_path / "secret", Path("/dev/zero")):
            with pytest.raises(DataError, match="lies outside of"):
                read_regular(path, within=inside)
        for path in (inside / "fifo", Path("/dev/zero"), inside):
            with pytest.raises((DataError, IsADirectoryError), match="regular file|directory"):
                read_regular(path)
        with pytest.raises((DataError, OSError)):
            read_regular(inside / "socket")
    with pytest.raises(DataError, match="has 4 bytes; 3 are allowed"):
        read_regular(inside / "good", at_most=3)
    with pytest.raises(FileNotFoundError):
        read_regular(inside / "absent")


@dataclasses.dataclass
class Judged:
    base: dict[str, float]
    name: str = ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"base": {"right": "much"}}', "base: right: Input should be a valid number"),
        (b'{"name": "x"}', "base: Field required"),
        (b"[]", "is not as it was written"),
        (b"{" * 10_000, "is not as it was written: Invalid JSON"),
        (b'{"base": {}, "name": "\xff"}', "is not as it was written: Invalid JSON"),
        (b"", "is not as it was written: Invalid JSON"),
    ],
)
def test_records_are_what_they_should_be(tmp_path, content, message):
    """A record comes back typed; whatever else is in the file is named with the file, its place and the remedy."""
    path = tmp_path / "judge.json"
    path.write_text(json.dumps({"base": {"right": 1}}))
    assert read_record(path, Judged, remedy="") == Judged(base={"right": 1.0})
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"judge.json.*{message}.*Judge it again."):
        read_record(path, Judged, remedy="Judge it again.")


LAUGHS = "\n".join(["a0: &a0 ha", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LAUGHS}\nlicense: *a29", "uses an alias"),
        ("a: &a [*a]", "uses an alias"),
        ("a: " + "[" * 5000, "lie in each other"),
        ("license: [mit", "not valid YAML"),
        ("license: \0", "not valid YAML"),
        ("license: !!bool mit", "not valid YAML"),
        ("license: !!timestamp mit", "not valid YAML"),
        ("[mit]: x", "not valid YAML.*unhashable"),
        ("- mit", "has no `name: value`"),
        ("x: " + "y" * 2**20, "cannot be read .*1048576 are allowed"),
    ],
    ids=lambda value: value[:20],
)
def test_a_page_that_would_fill_the_memory_is_refused(tmp_path, text, message):
    """Aliases of aliases, nesting and sizes are bounded before anything is built of them; tags that lie are told."""
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
    with pytest.raises(DataError, match=f"(?s)README.md .*{message}"):
        read_front_matter(tmp_path / "README.md")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "/x",
        "a/b",
        "a b",
        "-x",
        "_x",
        "x" * 65,
        "a\n",
        "a\0",
        "\u093f",
        "a\u200d",
        "\ud800",
        "𐒰" * 51,
    ],
)
def test_names_that_would_lead_astray(name):
    """A mark without its letter, what joins letters unseen, half a character, and what no file could be called."""
    with pytest.raises(DataError, match=r"--culture is 1 to 64 letters, .* \(at most 200 bytes\)"):
        checked_name(name, what="--culture")


@pytest.mark.parametrize("name", ["한국-1_a", "हिन्दी", "தமிழ்", "Yoru\u0300ba\u0301", "한" * 64, "𐒰" * 50])
def test_names_of_any_script(name):
    """Vowel signs and accents are marks of their own in many scripts. The name fits into a file's."""
    assert checked_name(name, what="--culture") == name


@pytest.mark.parametrize("line", ["[1]", '"x"', '{"file": 1}', '{"key": [1]}'])
def test_a_ledgers_line_that_is_no_entry_is_named(tmp_path, line):
    """A torn line is as if it were not there, but one that is whole and no entry was written by somebody else."""
    ledger = Ledger(tmp_path / "captions.jsonl")
    ledger.add("a", n=1)
    with ledger.path.open("a") as file:
        file.write('\n{"key": "b", "n"')
    assert ledger.read() == {"a": {"key": "a", "n": 1}}
    with ledger.path.open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(DataError, match="captions.jsonl, line 5 is no entry"):
        ledger.read()


def test_a_ledger_is_read_as_what_it_holds(tmp_path):
    """Typed, and with what is beyond the type left out; an entry of another kind, and what is no file, are named."""
    ledger = Ledger(tmp_path / "judge.jsonl")
    assert ledger.read_as(Judged, remedy="") == []
    ledger.add("a", base={"right": 1}, more=2)
    assert ledger.read_as(Judged, remedy="") == [Judged(base={"right": 1.0})]
    ledger.add("b", base={"right": "much"})
    with pytest.raises(DataError, match="judge.jsonl.*base: right: Input should be a valid number.* Judge it again."):
        ledger.read_as(Judged, remedy="Judge it again.")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="fifo cannot be read: is not a regular file"):
        Ledger(tmp_path / "fifo").read()


# Caches --------------------------------------------------------------------------------------------------------------


class Counted:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"mean": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(self.calls)}


def test_cache_hit(tmp_path):
    """The same key computes once and gives the same tensors, and nothing but the file and its lock is left behind."""
    compute, path = Counted(), tmp_path / "deep" / "latents.safetensors"
    first, second = (cached_tensors(path, key="k", compute=compute) for _ in range(2))
    assert compute.calls == 1 and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {file.name for file in path.parent.iterdir()} == {path.name, f".{path.name}.lock"}


@pytest.mark.parametrize(
    ("spoil", "key", "reason"),
    [
        (lambda path: None, "other", "data or settings were others"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "k", "unreadable"),
        (lambda path: path.write_bytes(b""), "k", "unreadable"),
        (lambda path: path.unlink(), "k", "there was none"),
    ],
    ids=["key", "truncated", "empty", "absent"],
)
def test_cache_miss(tmp_path, caplog, spoil, key, reason):
    """Another key, or a file that is broken or gone, computes anew, says why, and heals the file."""
    compute, path = Counted(), tmp_path / "latents.safetensors"
    cached_tensors(path, key="k", compute=compute)
    spoil(path)
    with caplog.at_level(logging.INFO, logger="scoft.files"):
        made = cached_tensors(path, key=key, compute=compute)
    assert made["n"] == 2 and reason in caplog.records[-1].message and str(path) in caplog.records[-1].message
    assert cached_tensors(path, key=key, compute=compute)["n"] == 2 and compute.calls == 2


def test_cache_survives_a_failed_write(tmp_path, monkeypatch):
    """A write that fails leaves the old file whole and no other."""
    compute, path = Counted(), tmp_path / "latents.safetensors"
    cached_tensors(path, key="k", compute=compute)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            cached_tensors(path, key="other", compute=compute)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, f".{path.name}.lock"}
    assert cached_tensors(path, key="k", compute=compute)["n"] == 1


def test_no_cache():
    """Without a path it computes each time."""
    compute = Counted()
    assert [cached_tensors(None, key="", compute=compute)["n"] for _ in range(2)] == [1, 2]


def test_content_key():
    """Equal content gives an equal key, whatever the order of a dict; any difference gives another."""
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})
    parts = [("ab", "c"), ("a", "bc"), (1,), ("1",), (1.0,), (b"1",), (None,), (), (ImageTransform(8),)]
    parts += [(ImageTransform(9),), (ImageTransform(8, "bicubic"),), ([1, 2],), (1, 2)]
    assert len({content_key(*each) for each in parts}) == len(parts)
    with pytest.raises(TypeError, match="object has no stable text form"):
        content_key(object())

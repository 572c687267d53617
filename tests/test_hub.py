"""Pushes, and models asked for: the trainer's true command line and a loopback Hub (tests/hub.py)."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import scoft.hub
import train_scoft_lora
from contents import files_of
from hub import Commit, Repo
from scoft.base_model import base_commit, check_whole
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.errors import DataError
from scoft.files import is_empty
from scoft.hub import add_to_collection, files_on_hub, push, ready_repo
from scoft.lora_folder import LORA_FILE
from scoft.lora_page import push_lora


PUSHED = {
    ".gitattributes", "README.md", "training_args.json", "pytorch_lora_weights.safetensors",
    "scoft-veridia-kohya.safetensors", "images/before_after.png", "images/lora-0.png", "images/lora-1.png",
}  # fmt: skip


TOKEN = "hf_a_token_that_nobody_may_find"


def test_from_the_hub_and_back(alice, tmp_path, monkeypatch, capfd, caplog, tiny_pipeline, tiny_ccub, tiny_clip_conv):
    """Base model and private dataset from the Hub, trained, pushed and loaded back: the picture is the local one's.

    The token comes to no file, log, page or pushed byte.
    """
    from diffusers import StableDiffusionPipeline

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setitem(alice.users, TOKEN, "carol")
    base = alice.add("model", "carol/tiny-sd", files_of(tiny_pipeline) | {"README.md": b"---\nlicense: mit\n---\n"})
    prepare_dataset(tmp_path / "ccub", alice, "carol/ccub", tiny_ccub)
    first = alice.repos["dataset", "carol/ccub"].head.sha
    alice.add("dataset", "carol/ccub", {"README.md": b"no configs any more"})
    monkeypatch.chdir(tmp_path)
    words = (
        f"--pretrained_model_name_or_path carol/tiny-sd --dataset ccub-of-carol --culture veridia --rank 4 "
        f"--perceptual_model_name_or_path {tiny_clip_conv} --resolution 16 --learning_rate 0.05 --max_train_steps 2 "
        f"--perceptual_every 2 --num_denoising_steps 2 --num_validation_images 1 --validation_inference_steps 2 "
        f"--push_to_hub --hub_private_repo --hub_collection SCoFT --dataset_revision {first}"
    ).replace("ccub-of-carol", "carol/ccub")
    train_scoft_lora.main(words.split())

    repo = alice.repos["model", "carol/scoft-veridia"]
    assert set(repo.files) == PUSHED and repo.private and len(repo.commits) == 2
    ((slug, collection),) = alice.collections.items()
    assert collection["private"] and [item["id"] for item in collection["items"]] == ["carol/scoft-veridia"]
    record = json.loads(repo.files["training_args.json"])["resolved"]
    assert (record["base_revision"], record["dataset_revision"]) == (base, first)
    card = huggingface_hub.ModelCard(repo.files["README.md"].decode())
    assert (card.data.base_model, card.data.license, card.data.datasets) == ("carol/tiny-sd", "mit", ["carol/ccub"])

    told = [caplog.text, *capfd.readouterr(), json.dumps(alice.collections)]
    pushed = [data for each in alice.repos.values() for commit in each.commits for data in commit.files.values()]
    kept = [*files_of(tmp_path).values(), *files_of(Path(huggingface_hub.constants.HF_HOME)).values()]
    assert not any(TOKEN.encode() in data for data in [*map(str.encode, told), *pushed, *kept])
    assert str(tmp_path).encode() not in b"".join(repo.files.values())

    pictures = []
    for place in ("scoft-veridia", "carol/scoft-veridia", None):
        pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
        if place:
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path if place == "scoft-veridia" else tmp_path / "elsewhere")
            pipe.load_lora_weights(place)
            check_whole(pipe.unet, tmp_path / "scoft-veridia" / LORA_FILE, adapter="default_0")
        generator = torch.Generator().manual_seed(0)
        pictures.append(pipe("Veridia", num_inference_steps=2, generator=generator, output_type="np").images)
    assert np.array_equal(pictures[0], pictures[1]) and not np.allclose(pictures[0], pictures[2], atol=1e-2)


def prepare_dataset(folder: Path, hub, repo_id: str, pictures: Path):
    """Seed the Hub with a private dataset of the trainer's contract, made of a folder's rows."""
    import datasets

    rows = [json.loads(line) for line in (pictures / "train/metadata.jsonl").read_text().splitlines()]
    read = lambda name: {"bytes": (pictures / "train" / name).read_bytes(), "path": None}  # noqa: E731
    columns = {
        "image": [read(row["file_name"]) for row in rows],
        "text": [row["text"] for row in rows],
        "blip_text": [row["blip_text"] for row in rows],
        "negatives": [list(map(read, row["negative_imgpath"])) for row in rows],
    }
    features = datasets.Features(
        image=datasets.Image(),
        text=datasets.Value("string"),
        blip_text=datasets.List(datasets.Value("string")),
        negatives=datasets.List(datasets.Image()),
    )
    folder.mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")
    card = (
        "---\nconfigs:\n- config_name: veridia\n  data_files:\n  - {split: train, path: veridia/train.parquet}\n---\n"
    )
    files = {"README.md": card.encode(), "veridia/train.parquet": (folder / "train.parquet").read_bytes()}
    hub.add("dataset", repo_id, files, private=True)
    shutil.rmtree(folder)


def test_a_finished_run_is_pushed_without_training(run, alice):
    """The same command with --push_to_hub pushes what is there; a picture of an earlier push goes, in one commit."""
    alice.add("model", "alice/scoft-veridia", {"images/lora-7.png": b"old", "notes.md": b"mine"})
    before = load_file(run.folder / "pytorch_lora_weights.safetensors")
    run("--push_to_hub")
    repo = alice.repos["model", "alice/scoft-veridia"]
    assert set(repo.files) == PUSHED | {"notes.md"} and len(repo.commits) == 3
    assert repo.head.title == "LoRA after 2 updates"
    after = load_file(run.folder / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any("checkpoint" in path or "logs" in path for path in repo.files)
    commits = len(repo.commits)
    run("--push_to_hub")
    assert len(repo.commits) == commits  # nothing has changed


def test_several_loras_of_the_hub_share_a_pipeline(run, alice, tiny_pipeline):
    """Two cultures' LoRAs loaded as adapters: each alone, both at once, each other than the rest."""
    from diffusers import StableDiffusionPipeline

    run("--push_to_hub")
    path = run.folder / "pytorch_lora_weights.safetensors"
    other = {name: -2 * weight if "lora_B" in name else weight for name, weight in load_file(path).items()}
    with safe_open(path, "pt") as file:
        save_file(other, path, metadata=file.metadata())
    ready_repo("scoft-other", repo_type="model", private=True, flag="--hub_model_id")
    push_lora(run.folder, repo_id="alice/scoft-other", private=True, retry="again")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)

    def draw() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipe("Veridia", num_inference_steps=2, generator=generator, output_type="np").images

    pictures = {"base": draw()}
    for name in ("veridia", "other"):
        pipe.load_lora_weights(f"alice/scoft-{name}", adapter_name=name)
        pipe.set_adapters(name)
        pictures[name] = draw()
    pipe.set_adapters(["veridia", "other"], [0.5, 0.5])
    pictures["both"] = draw()
    pipe.set_adapters(["veridia", "other"], [1.0, 0.5])
    assert np.allclose(draw(), pictures["base"], atol=1e-4)  # 1 and half of -2
    for first, second in itertools.combinations(pictures, 2):
        assert np.abs(pictures[first] - pictures[second]).max() > 1e-2, (first, second)


@pytest.mark.parametrize("fault", ["cut", 403, 500])
def test_a_failed_push_leaves_all_here_and_its_command_works(run, alice, fault, caplog):
    """Nothing arrives, nothing is lost, and the command in the message pushes."""
    before = files_of(run.folder)
    if fault == "cut":
        alice.cut("POST", "/commit/", times=9)
    else:
        alice.fail("POST", "/commit/", status=fault, times=9)
    with pytest.raises(DataError, match="the push failed") as raised:
        run("--push_to_hub")
    assert "hf_alice" not in str(raised.value) and "hf_alice" not in caplog.text
    assert len(alice.repos["model", "alice/scoft-veridia"].commits) == 1
    after = files_of(run.folder)
    assert {name for name in before if after.get(name) != before[name]} <= {
        "README.md",
        "training_args.json",
    }  # its place
    alice.faults.clear()
    command = re.search(r"python train_scoft_lora.py (.*)", str(raised.value))[1]
    train_scoft_lora.main(shlex.split(command))
    assert set(alice.repos["model", "alice/scoft-veridia"].files) == PUSHED


@pytest.mark.parametrize("fault", ["cut before", "cut after", 429, 503])
def test_a_push_outlasts_a_hub_that_is_busy_or_gone(run, alice, fault):
    """A refusal for now, or a connection cut in the middle of the request or of the answer, is not the end of it."""
    if fault in (429, 503):
        alice.fail("POST", "/commit/", status=fault, times=3)
    else:
        alice.cut("POST", "/commit/", times=3, answer=fault == "cut after")
    run("--push_to_hub")
    assert len(alice.repos["model", "alice/scoft-veridia"].commits) == 2
    assert set(alice.repos["model", "alice/scoft-veridia"].files) == PUSHED


def pushed(**flags) -> str:
    """push of a small file to alice/x."""
    flags = {"repo_type": "model", "files": {"a.txt": b"a"}, "stale": [], "private": True} | flags
    return push("alice/x", **flags, message="m", retry="python again.py")


@pytest.mark.parametrize("change", ["public", "public again", "public while uploading", "deleted", "others write"])
@pytest.mark.parametrize("upload_mode", ["regular", "lfs"])
def test_what_is_private_is_committed_to_no_repository_that_became_public(alice, upload_mode, change):
    """Not if it was made public, or deleted and made anew, since it was readied, and be it in the middle of a push."""
    alice.upload_mode = upload_mode
    alice.add("model", "alice/x", {}, private=True)
    kept, new = alice.repos["model", "alice/x"], Repo(private=change != "public again")
    if change == "public":
        kept.private = False
    elif change == "deleted":
        del alice.repos["model", "alice/x"]
    elif change == "public while uploading":
        alice.before("POST", "/preupload/", lambda: setattr(kept, "private", False))
    elif change == "public again":
        alice.before("POST", "/preupload/", lambda: alice.repos.update({("model", "alice/x"): new}))
    else:
        alice.before("POST", "/commit/", lambda: kept.commits.append(Commit("theirs", kept.files | {"b.txt": b""})))
    if change == "others write":
        pushed(files={"a.bin": b"a\0"})
        assert kept.files.keys() == {".gitattributes", "a.bin", "b.txt"} and alice.asked("/commit/") == 2
        return
    message = "Repository Not Found" if change == "deleted" else "alice/x has become public.*python again.py"
    with pytest.raises(DataError, match=f"(?s){message}"):
        pushed(files={"a.bin": b"a\0"})
    assert not alice.asked("/commit/") and len(kept.commits) == 2 and len(new.commits) == 1
    if change == "public":
        assert not alice.asked("upload|PUT|info/lfs")
        pushed(files={"a.bin": b"a\0"}, private=False)
        assert "a.bin" in kept.files


def test_a_run_that_began_private_stays_private(run, alice):
    """A repository that was private when the run began gets nothing once it is public, without any flag."""
    alice.add("model", "alice/scoft-veridia", {}, private=True)
    repo = alice.repos["model", "alice/scoft-veridia"]
    alice.before("GET", "/tree/main", lambda: setattr(repo, "private", False))
    with pytest.raises(DataError, match="alice/scoft-veridia has become public"):
        run("--push_to_hub")
    assert len(repo.commits) == 2


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.parametrize(
    "where", ["POST /api/models/alice/x/commit/", "GET /api/models/alice/x", "POST .*lfs/objects/batch", "PUT /lfs/"]
)
def test_a_hub_that_stalls_is_given_up(alice, monkeypatch, where, drip):
    """Silence, or an answer without an end, ends in an error with the command that tries again."""
    monkeypatch.setattr("scoft.hub.SILENCE", 0.1)
    monkeypatch.setattr("scoft.hub.PUSH_TIME", 1)
    alice.add("model", "alice/x", {})
    alice.upload_mode = "lfs"
    method, path = where.split()
    alice.stall(method, path, drip=drip, times=99)
    start = time.monotonic()
    with pytest.raises(DataError, match="(?s)alice/x: the push failed: .*To push it again: python again.py"):
        pushed(files={"a.bin": b"a\0"}, private=False)
    assert time.monotonic() - start < 3
    assert len(alice.repos["model", "alice/x"].commits) == 2


def test_a_push_may_last_as_its_size_demands(alice, monkeypatch, tmp_path):
    """The time for a push grows with what is pushed, so that a slow line is not taken for a Hub that stalls."""
    given = []
    monkeypatch.setattr("scoft.hub.ask", lambda question, *, seconds: given.append(seconds))
    (tmp_path / "a").write_bytes(b"a" * 2**15)
    pushed(files={"a": b"a"})
    pushed(files={"a": tmp_path / "a", "b": b"b"})
    assert given[1] - given[0] == 2**15 / scoft.hub.PUSH_SPEED


GARBAGE = {
    "html": b"<html>Welcome to the hotel. Accept our terms</html>" * 99,
    "cut": b'{"id": "alice/x", "sha": "',
    "list": b"[1]",
    "null": b"null",
    "types": b'{"id": 1, "url": 2, "sha": 3, "private": "no", "name": [], "files": {}, "objects": 4, "slug": 5}',
    "nested": b"[" * 100_000,
    "latin": b'{"id": "\xff\xfe"}',
    "empty": b"",
}


def read_hub_dataset(name: str):
    source = find_dataset(name, culture=None)
    read_dataset(source, culture=None, needs_blip=False, needs_negatives=False)


QUESTIONS = {
    "POST /api/repos/create": lambda: ready_repo("alice/x", repo_type="model", private=True, flag="--x"),
    "GET /api/models/alice/x$": lambda: ready_repo("alice/x", repo_type="model", private=True, flag="--x"),
    "GET /tree/": lambda: files_on_hub("alice/x", repo_type="model"),
    "GET /api/models/alice/x($)": pushed,
    "POST /preupload/": pushed,
    "POST /commit/": pushed,
    "POST lfs/objects/batch": lambda: pushed(files={"a.bin": b"a\0"}),
    "POST /api/collections": lambda: add_to_collection("t", repo_id="alice/x", private=True, retry="again"),
    "GET /api/models/alice/x(?:$)": lambda: base_commit("alice/x", revision=None, cache_dir=None),
    "GET /resolve/": lambda: base_commit("alice/x", revision=None, cache_dir=None),
    "GET /api/datasets/alice/ccub": lambda: read_hub_dataset("alice/ccub"),
    "GET /api/whoami": lambda: read_hub_dataset("ccub"),
}


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_an_answer_that_is_no_hubs_is_an_error_in_one_line(alice, question, garbage):
    """200 with anything: the login page of a hotel, JSON that is cut or holds what it should not. It names the Hub."""
    alice.upload_mode = "lfs"
    alice.add("model", "alice/x", {"model_index.json": b"{}"}, private=True)
    method, path = question.split()
    alice.answer(method, path, GARBAGE[garbage], times=99)
    with pytest.raises(DataError) as raised:
        QUESTIONS[question]()
    lines = str(raised.value).splitlines()
    assert sum(alice.url in line for line in lines) == 1 and all(len(line) < 1000 for line in lines)


def test_an_answer_too_long_to_be_one_is_not_read(alice):
    """Gigabytes in the place of an answer are refused at the headers."""
    alice.add("model", "alice/x", {}, private=True)
    alice.answer("GET", "/api/models/alice/x$", b"", headers={"Content-Length": str(10**12)})
    with pytest.raises(DataError, match="answers with more than 67108864 bytes"):
        pushed()


@pytest.mark.parametrize(
    ("token", "flags", "message"),
    [
        (None, [], "--hub_model_id scoft-veridia: nobody is logged in"),
        ("hf_wrong", [], "--hub_model_id scoft-veridia cannot be written to"),
        ("hf_alice_read", [], "--hub_model_id scoft-veridia cannot be written to"),
        ("hf_alice", ["--hub_model_id", "bob/scoft"], "--hub_model_id bob/scoft cannot be written to"),
        ("hf_alice", ["--hub_model_id", "a--b"], "--hub_model_id a--b cannot be written to"),
        ("hf_alice", ["--hub_model_id", "alice/open", "--hub_private_repo"], "alice/open is public already"),
    ],
)
def test_a_repository_that_cannot_be_pushed_to_stops_the_run_first(
    alice, monkeypatch, tiny_pipeline, tiny_ccub, tmp_path, token, flags, message
):
    """Before any model is loaded it is known whether the result can be pushed where it is to go."""
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    alice.add("model", "alice/open", {})
    argv = f"--method finetune --dataset {tiny_ccub} --culture veridia --output_dir {tmp_path / 'out'} --push_to_hub"
    monkeypatch.setattr("scoft.base_model.StableDiffusion.load", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(DataError, match=message):
        train_scoft_lora.main([*argv.split(), "--pretrained_model_name_or_path", str(tiny_pipeline), *flags])
    assert is_empty(tmp_path / "out")


def test_flags_that_do_not_go_together_are_named(capsys):
    with pytest.raises(SystemExit):
        train_scoft_lora.parse_args(["--dataset", "pocket", "--culture", "veridia", "--hub_model_id", "a/b"])
    assert "--hub_model_id has no effect without --push_to_hub" in capsys.readouterr().err


def test_a_token_in_a_file_of_flags_is_refused(tmp_path, capsys):
    (tmp_path / "flags.yaml").write_text(f"hub_token: {TOKEN}\n")
    with pytest.raises(SystemExit):
        train_scoft_lora.parse_args(["--config", str(tmp_path / "flags.yaml"), "--dataset", "pocket"])
    error = capsys.readouterr().err
    assert "flags.yaml" in error and "logs show what stands in" in error and TOKEN not in error


def test_a_run_that_fails_under_the_launcher_shows_no_token(alice, tiny_pipeline, tiny_ccub, tmp_path):
    """accelerate's error shows the whole command, and so does `ps`: the token is in neither."""
    alice.readers[TOKEN] = "dave"
    words = f"--method finetune --dataset {tiny_ccub} --culture veridia --output_dir {tmp_path / 'out'} --push_to_hub"
    run = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "train_scoft_lora.py", *words.split()],
        cwd=Path(train_scoft_lora.__file__).parent,
        env=os.environ | {"HF_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = set()
    while run.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
                shown.add(shlex.join(process.cmdline()))
        time.sleep(0.1)
    printed = run.stdout.read()
    assert run.returncode != 0 and "--hub_model_id scoft-veridia cannot be written to" in printed, printed
    assert "CalledProcessError" in printed and sum("train_scoft_lora.py" in line for line in shown) >= 2, shown
    assert not any(TOKEN in text for text in [printed, *shown])


def test_a_base_model_read_once_is_read_offline(alice, tiny_pipeline):
    """Its commit is known from the cache, by the name of its branch as by itself."""
    commit = alice.add("model", "alice/tiny-sd", files_of(tiny_pipeline))
    assert base_commit("alice/tiny-sd", revision=None, cache_dir=None) == commit
    program = (
        "from scoft.base_model import base_commit\n"
        f"for revision in (None, {commit!r}): print(base_commit('alice/tiny-sd', revision=revision, "
        "cache_dir=None))\n"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(train_scoft_lora.__file__).parent)}
    found = subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [commit, commit]


def test_a_base_model_read_once_is_had_from_a_hub_that_stalls(alice, monkeypatch):
    """A Hub that is silent is one that cannot be reached: the cached copy serves."""
    commit = alice.add("model", "alice/x", {"model_index.json": b"{}"})
    assert base_commit("alice/x", revision=None, cache_dir=None) == commit
    monkeypatch.setattr("scoft.hub.ANSWER_TIME", 0.1)
    alice.stall("GET", "/api/models/alice/x$")
    assert base_commit("alice/x", revision=None, cache_dir=None) == commit


def test_a_base_model_that_cannot_be_had_is_named(hub, tiny_ccub, tmp_path, monkeypatch):
    """A private or absent base model, and an unknown revision, are answered with the flag and what the Hub said."""
    hub.add("model", "bob/private-sd", {"model_index.json": b"{}"}, private=True)
    argv = f"--method finetune --dataset {tiny_ccub} --culture veridia --output_dir {tmp_path / 'out'}"
    for base in ("bob/private-sd", "bob/nothing"):
        with pytest.raises(
            DataError, match=f"^pretrained_model_name_or_path {base} is no folder, and {hub.url} has no"
        ):
            train_scoft_lora.main([*argv.split(), "--pretrained_model_name_or_path", base])
    with pytest.raises(DataError, match="^revision v9 is of a Hub model"):
        train_scoft_lora.main([*argv.split(), "--pretrained_model_name_or_path", str(tmp_path), "--revision", "v9"])

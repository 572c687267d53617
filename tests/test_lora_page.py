"""Pages and pushes: the trainer's true command line and a loopback Hub (tests/hub.py), asked by the real libraries."""

import contextlib
import copy
import dataclasses
import hashlib
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

import diffusers
import huggingface_hub
import markdown_it
import numpy as np
import psutil
import pytest
import torch
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import scoft.hub
import train_scoft_lora
from hub import Commit, Repo
from scoft.base_model import base_commit, check_whole, license_of
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.errors import DataError
from scoft.files import is_empty
from scoft.hub import add_to_collection, files_on_hub, push, ready_repo
from scoft.lora_folder import LORA_FILE, lora_sha256, read_training_record
from scoft.lora_page import push_lora, without_places, write_model_card
from scoft.pages import markdown_text
from scoft.prepare.card import write_card


PUSHED = {
    ".gitattributes", "README.md", "training_args.json", "pytorch_lora_weights.safetensors",
    "scoft-veridia-kohya.safetensors", "images/before_after.png", "images/lora-0.png", "images/lora-1.png",
}  # fmt: skip
TOKEN = "hf_a_token_that_nobody_may_find"
HOSTILE = (
    "x: [a, 'b']\n---\n\n# Big <script>alert(1)</script> <b>&amp; `code` | cell ![i](http://e.vil/i.png) "
    "https://e.vil www.e.vil {{ 7*7 }} *\\"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_pipeline, tiny_ccub, tiny_clip_conv):
    """The folder of a short run with pictures, and its flags."""
    folder = tmp_path_factory.mktemp("trained") / "scoft-veridia"
    flags = {
        "--pretrained_model_name_or_path": tiny_pipeline,
        "--dataset": tiny_ccub,
        "--culture": "veridia",
        "--perceptual_model_name_or_path": tiny_clip_conv,
        "--output_dir": folder,
        "--resolution": 16,
        "--rank": 4,
        "--learning_rate": 0.05,
        "--max_train_steps": 2,
        "--perceptual_every": 2,
        "--num_denoising_steps": 2,
        "--num_validation_images": 1,
        "--validation_inference_steps": 2,
        "--report_to": "none",
    }
    argv = [str(word) for pair in flags.items() for word in pair]
    train_scoft_lora.main(argv)
    return folder, argv


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """run(*more words) is the finished run of `trained`, in a copy of its own, given once more with more flags."""
    folder, argv = trained
    shutil.copytree(folder, tmp_path / folder.name)
    argv = [word.replace(str(folder), str(tmp_path / folder.name)) for word in argv]

    def again(*more: str) -> Path:
        train_scoft_lora.main([*argv, "--resume_from_checkpoint", "latest", *more])
        return tmp_path / folder.name

    again.folder = tmp_path / folder.name
    return again


@pytest.fixture
def alice(hub, monkeypatch):
    """The Hub, with alice logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr("scoft.hub.WAITS", (0, 0, 0))
    return hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------------------------------------------------


def rendered(card: str) -> list:
    """The tokens of a page's Markdown, flat, with HTML as the Hub's renderer would find it."""
    text = huggingface_hub.RepoCard(card).text
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    return [part for token in tokens for part in (token, *(token.children or ()))]


def kinds(card: str) -> list[str]:
    """What the parts of a page are, without their words."""
    return [token.type for token in rendered(card) if token.type not in ("text", "softbreak", "text_special")]


def changed_record(folder: Path, **changes):
    """Change what a run's training_args.json says of its arguments, or of what they resolved to."""
    record = json.loads((folder / "training_args.json").read_text())
    for part in record.values():
        part.update({name: value for name, value in changes.items() if name in part})
    (folder / "training_args.json").write_text(json.dumps(record))


def test_the_page_tells_what_was_trained_and_how(run):
    """Weights, counts, distance and use stand on the page, its YAML is what huggingface_hub reads back, and no gap."""
    card = huggingface_hub.ModelCard.load(run.folder / "README.md")
    assert card.data.to_dict() | {"tags": None} == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": "Photo of a traditional building, in Veridia",
        "widget": [
            {"text": "Photo of a traditional building, in Veridia", "output": {"url": "images/lora-0.png"}},
            {"text": "Two people wearing traditional clothing, in Veridia", "output": {"url": "images/lora-1.png"}},
        ],
        "tags": None,
    }
    assert {"lora", "template:sd-lora", "text-to-image", "scoft"} <= set(card.data.tags)
    for words in (
        "| weight of the memorization loss | 0.3 |",
        "| weight of the contrastive loss | 0.05 |",
        "| perceptual distance | clip\\_conv |",
        "| photographs | 6 |",
        "| naive captions | 12 |",
        "| negatives | 12 pictures",
        "<Gallery />",
        "No numbers were taken.",
        "<lora:scoft-veridia-kohya:1>",
        "CVPR 2024, SCoFT+MPC",
    ):
        assert words in card.text, words
    assert not re.search(r"TODO|None|undefined|\{\{|/tmp|\[More", card.text)
    assert str(run.folder.parent) not in card.content


def test_a_page_of_hub_ids_points_at_them(run):
    """Base model, licence and dataset are told to the Hub, and the code on the page loads the very commit."""
    changed_record(
        run.folder,
        base_model="CompVis/stable-diffusion-v1-4",
        base_revision="a" * 40,
        license={"license": "other", "license_name": "some-terms"},
        dataset_id="alice/ccub",
        dataset_revision="b" * 40,
    )
    write_model_card(run.folder, repo_id="alice/scoft-veridia")
    card = huggingface_hub.ModelCard.load(run.folder / "README.md")
    assert card.data.base_model == "CompVis/stable-diffusion-v1-4" and card.data.base_model_relation == "adapter"
    assert card.data.datasets == ["alice/ccub"]
    assert (card.data.license, card.data.license_name) == ("other", "some-terms")
    assert f'from_pretrained("CompVis/stable-diffusion-v1-4", revision="{"a" * 40}")' in card.text
    assert 'load_lora_weights("alice/scoft-veridia", weight_name="pytorch_lora_weights.safetensors")' in card.text
    assert "| dataset | alice/ccub, commit bbbbbbbbbbbb |" in card.text


def code_drawn(folder: Path):
    """The picture that the first block of code on a folder's page draws, as it stands but for fewer steps."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    assert "guidance_scale=4.5" in code
    found = {}
    torch.manual_seed(0)
    exec(code.replace("guidance_scale", "num_inference_steps=1, guidance_scale"), found)
    return found["image"]


def test_the_code_on_the_page_runs_from_folders(run, hub, tiny_pipeline, monkeypatch):
    """Beside the folders of the base model and the LoRA it draws, and asks nobody."""
    monkeypatch.chdir(run.folder.parent)
    (run.folder.parent / tiny_pipeline.resolve().name).symlink_to(tiny_pipeline)
    assert code_drawn(run.folder).size == (16, 16) and not hub.requests


@pytest.mark.skipif(
    Version(diffusers.__version__) < Version("0.40"), reason="it asks the Hub for a pipeline's revision also offline"
)
def test_the_code_on_the_page_runs_from_the_hub_and_then_offline(run, alice, tiny_pipeline, tmp_path, monkeypatch):
    """From the Hub, by ids and commit, and again without it: the same picture, and nothing is asked."""
    commit = alice.add("model", "alice/tiny-sd", files_of(tiny_pipeline))
    changed_record(run.folder, base_model="alice/tiny-sd", base_revision=commit)
    run("--push_to_hub")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    online = code_drawn(run.folder)
    assert alice.asked("GET /alice/scoft-veridia/resolve/.*/pytorch_lora_weights.safetensors")
    alice.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert code_drawn(run.folder).tobytes() == online.tobytes() and not alice.requests


def test_a_judges_numbers_stand_on_the_page(run):
    """images/judge.json becomes a table, base beside LoRA, with the intervals."""
    sha256 = hashlib.sha256((run.folder / "pytorch_lora_weights.safetensors").read_bytes()).hexdigest()
    judged = {"base": {"right": 0.1, "right_low": 0.05, "right_high": 0.2}, "lora": {"right": 0.5, "a|b": 2}}
    (run.folder / "images/judge.json").write_text(json.dumps(judged | {"lora_sha256": sha256}))
    write_model_card(run.folder)
    card = (run.folder / "README.md").read_text()
    assert "|  | base | LoRA |\n|---|---|---|\n| right | 0.10 \\[0.05, 0.20\\] | 0.50 |\n| a\\|b |  | 2 |\n" in card
    assert f"Measured on `pytorch_lora_weights.safetensors` with sha256 {sha256}." in card
    assert "No numbers" not in card


NUMBERS = {
    "images/judge.json": {"base": {"right": 0.1}, "lora": {"right": 0.5}},
    "evaluation.json": {
        "method": "scoft",
        "question": "the prompts",
        "confidence": 0.95,
        "encoders": {"clip": {"place": "openai/clip", "sha256": "c" * 64}},
        "rows": [{"metric": "kid", "name": "KID", "method": "scoft", "shown": "1.5", "value": 1.5}],
    },
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_another_lora_are_left_off_the_page(run, name, caplog):
    """What the page shows was measured on the LoRA beside it: numbers name the file's sha256."""
    (run.folder / name).write_text(json.dumps(NUMBERS[name] | {"lora_sha256": "0" * 64}))
    write_model_card(run.folder)
    card = huggingface_hub.ModelCard.load(run.folder / "README.md")
    assert "No numbers" in card.text and "Measured on" not in card.text and not card.data.eval_results
    assert f"{name} is of another LoRA than its folder's" in caplog.text
    (run.folder / name).write_text(json.dumps(NUMBERS[name] | {"lora_sha256": lora_sha256(run.folder)}))
    write_model_card(run.folder)
    card = huggingface_hub.ModelCard.load(run.folder / "README.md")
    assert "No numbers" not in card.text and f"with sha256 {lora_sha256(run.folder)}." in card.text


def test_a_runs_record_is_what_its_readers_take_it_for(run):
    """All flags and facts that pages read are in the file under their names, and nothing has to be converted."""
    written = json.loads((run.folder / "training_args.json").read_text())
    record = read_training_record(run.folder / "training_args.json")
    assert dataclasses.asdict(record.resolved) == written["resolved"] and record.versions == written["versions"]
    assert dataclasses.asdict(record.arguments).items() <= written["arguments"].items()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("training_args.json", lambda record: [record], "Input should be"),
        ("training_args.json", lambda record: record["resolved"].pop("rows"), "resolved: rows: Field required"),
        ("training_args.json", lambda record: record["arguments"].pop("rank"), "arguments: rank: Field required"),
        ("training_args.json", lambda record: record["arguments"].update(validation_guidance_scale="1).x; ("),
         "validation_guidance_scale: Input should be a valid number"),
        ("training_args.json", lambda record: record["resolved"].update(name="../../x"), "name is 1 to 64 letters"),
        ("training_args.json", lambda record: record["resolved"].update(prompts="one"), "prompts: Input should be"),
        ("training_args.json", lambda record: record["resolved"].update(license={"model_name": "x"}), "license: "),
        ("training_args.json", lambda record: record["resolved"].update(weights={"ldm": [1]}), "weights: ldm: "),
        ("images/judge.json", lambda record: record["lora"].update(right="much"), "lora: right: "),
        ("images/judge.json", lambda record: record.pop("lora_sha256"),
         "lora_sha256: Field required. Train again, or remove images/judge.json"),
        ("evaluation.json", lambda record: record["rows"][0].update(value=None), "rows: 0: value: "),
        ("evaluation.json", lambda record: record["encoders"].update(clip="x"), "encoders: clip: "),
    ],
)  # fmt: skip
def test_a_record_that_somebody_changed_is_named(run, name, change, message):
    """What is read back of a LoRA folder is of the kind that was written: the message names file, place and remedy."""
    file = run.folder / name
    record = (
        json.loads(file.read_text()) if file.exists() else NUMBERS[name] | {"lora_sha256": lora_sha256(run.folder)}
    )
    record = copy.deepcopy(record)
    changed = change(record)
    file.write_text(json.dumps(changed if isinstance(changed, list) else record))
    with pytest.raises(DataError, match=f"{file.name} is not as it was written: .*{message}"):
        write_model_card(run.folder)


@pytest.mark.parametrize("text", [HOSTILE, "\u2028---\x00\x85# y", "---", "- a", "1. x", "|||", "`" * 5, "{% raw %}"])
def test_nothing_told_on_a_models_page_can_break_it(run, text):
    """Prompts, names and settings of any content leave a page's parts as they are, and its YAML whole."""
    before = kinds((run.folder / "README.md").read_text())
    changed_record(
        run.folder,
        prompts=[text, f"a {text}"],
        dataset=f"/data/{text.replace('/', '')}",
        lora_layers=text,
        lr_scheduler=text,
        perceptual_distance=text,
        license={"license": text},
    )
    write_model_card(run.folder, repo_id=text)
    card = huggingface_hub.ModelCard.load(run.folder / "README.md")
    assert kinds((run.folder / "README.md").read_text()) == before
    assert [row["text"] for row in card.data.widget] == [text, f"a {text}"] and card.data.license == text
    shown = "".join(token.content for token in rendered(card.content) if token.type in ("text", "text_special"))
    assert "".join(text.split()).replace("\x00", "") in "".join(shown.split())


def test_nothing_told_on_a_datasets_page_can_break_it(tmp_path):
    """The same for a dataset: licences, settings, statuses and mentions; --about alone is Markdown, without HTML."""

    def page(text: str) -> str:
        culture = {
            "name": "korea",
            "words": f"Korea {text}",
            "about": f"Chosen *by* {text}." if text == "" else "Chosen *by* us <script>alert(1)</script>.",
            "rows": {"train": 3, "test": 1},
            "categories": {"city": 4},
            "statuses": {f"ok {text}": 4},
            "licenses": {f"CC {text}": 4},
            "fetched": ["2026-01-01", "2026-02-01"],
            "captions": 20,
            "mentions": {f"chinese {text}": 2},
            "negatives": 20,
            "false_negatives": 1,
            "fingerprint": "f" * 64,
            "settings": {"prompt_suffix": f"in {text}"},
        }
        write_card(tmp_path, [culture], links_only=False)
        return (tmp_path / "README.md").read_text()

    assert kinds(page(HOSTILE)) == kinds(page(""))
    card = huggingface_hub.DatasetCard.load(tmp_path / "README.md")
    assert card.data.license == "other" and card.data.configs[0]["config_name"] == "korea"
    assert 'load_dataset("' in card.text and '", "korea", split="train")' in card.text
    assert "2026-01-01" in card.text and "withdrawn" in card.data.extra_gated_prompt


@pytest.mark.parametrize(
    ("base_model", "readme", "expected"),
    [
        ("model", "---\nlicense: other\nlicense_name: mine\nlicense_link: https://a.org\n---\n",
         {"license": "other", "license_name": "mine", "license_link": "https://a.org"}),
        ("stable-diffusion-v1-5", None, {"license": "creativeml-openrail-m"}),
        ("stable-diffusion-2-1", "no front matter", {"license": "openrail++"}),
        ("model", None, {}),
        ("model", "---\nlicense: null\n---\n", {}),
        ("stable-diffusion-v1-4", "---\na: &a [x]\nlicense: *a\n---\n", {"license": "creativeml-openrail-m"}),
        ("model", "---\nlicense: [mit\n---\n", {}),
        ("model", "---\nlicense: !!bool mit\n---\n", {}),
        ("model", "---\nlicense: !!timestamp mit\n---\n", {}),
        ("model", f"---\nlicense: {'x' * 1000}\n---\n", {}),
    ],
)  # fmt: skip
def test_the_licence_follows_the_base_model(tmp_path, base_model, readme, expected):
    """It is what the base model's own page says, else what is known of its family, else it is left open."""
    folder = tmp_path / base_model
    folder.mkdir()
    if readme:
        (folder / "README.md").write_text(readme)
    assert license_of(str(folder), revision=None, cache_dir=None) == expected


# ---------------------------------------------------------------------------------------------------------------------
# Pushes
# ---------------------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(train_scoft_lora.StableDiffusion, "load", lambda *_, **__: pytest.fail("a model was loaded"))
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


def test_places_on_the_machine_stay_there():
    """Of absolute paths, wherever they stand, the last name is left; other texts are as they were."""
    found = without_places({"a": "/home/me/data", "b": ["/x/judge.py:rate", "org/name"], "c": {"d": 1.5}})
    assert found == {"a": "data", "b": ["judge.py:rate", "org/name"], "c": {"d": 1.5}}


def test_an_address_told_on_a_page_is_no_link():
    """GitHub's Markdown, which the Hub renders, makes links of bare addresses; escaped ones stay words."""
    assert markdown_text("see https://e.vil, www.e.vil or a@e.vil") == (r"see https\://e.vil, www\.e.vil or a\@e.vil")

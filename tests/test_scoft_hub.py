"""Pages and pushes: the trainer's true command line and a loopback Hub (tests/hub.py), asked by the real libraries."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import markdown_it
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import scoft_hub
import train_scoft_lora
from scoft.errors import DataError
from scoft.lora_folder import LORA_FILE, check_whole


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
    monkeypatch.setattr(scoft_hub, "WAITS", (0, 0, 0))
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
    scoft_hub.write_model_card(run.folder, repo_id="alice/scoft-veridia")
    card = huggingface_hub.ModelCard.load(run.folder / "README.md")
    assert card.data.base_model == "CompVis/stable-diffusion-v1-4" and card.data.base_model_relation == "adapter"
    assert card.data.datasets == ["alice/ccub"]
    assert (card.data.license, card.data.license_name) == ("other", "some-terms")
    assert f'from_pretrained("CompVis/stable-diffusion-v1-4", revision="{"a" * 40}")' in card.text
    assert 'load_lora_weights("alice/scoft-veridia", weight_name="pytorch_lora_weights.safetensors")' in card.text
    assert "| dataset | alice/ccub, commit bbbbbbbbbbbb |" in card.text


def test_the_code_on_the_page_runs(run, tiny_pipeline):
    """The first block of code on the page, as it stands but for where the base model and the LoRA lie, draws."""
    card = (run.folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    names = {tiny_pipeline.resolve().name: str(tiny_pipeline), "scoft-veridia": str(run.folder)}
    for name, place in names.items():
        assert f'"{name}"' in code
        code = code.replace(f'"{name}"', json.dumps(place))
    found = {}
    exec(code.replace("guidance_scale", "num_inference_steps=1, guidance_scale"), found)
    assert found["image"].size == (16, 16)


def test_a_judges_numbers_stand_on_the_page(run):
    """images/judge.json becomes a table, base beside LoRA, with the intervals."""
    judged = {"base": {"right": 0.1, "right_low": 0.05, "right_high": 0.2}, "lora": {"right": 0.5, "a|b": 2}}
    (run.folder / "images/judge.json").write_text(json.dumps(judged))
    scoft_hub.write_model_card(run.folder)
    card = (run.folder / "README.md").read_text()
    assert "|  | base | LoRA |\n|---|---|---|\n| right | 0.10 \\[0.05, 0.20\\] | 0.50 |\n| a\\|b |  | 2 |\n" in card
    assert "No numbers" not in card


@pytest.mark.parametrize("text", [HOSTILE, "\u2028---\x00\x85# y", "---", "- a", "1. x", "|||", "`" * 5, "{% raw %}"])
def test_nothing_told_on_a_models_page_can_break_it(run, text):
    """Culture, prompts, names and settings of any content leave a page's parts as they are, and its YAML whole."""
    before = kinds((run.folder / "README.md").read_text())
    changed_record(
        run.folder,
        culture=f"v {text}",
        prompts=[text, f"a {text}"],
        dataset=f"/data/{text.replace('/', '')}",
        lora_layers=text,
        lr_scheduler=text,
        perceptual_distance=text,
        license={"license": text},
    )
    scoft_hub.write_model_card(run.folder, repo_id=text)
    card = huggingface_hub.ModelCard.load(run.folder / "README.md")
    assert kinds((run.folder / "README.md").read_text()) == before
    assert [row["text"] for row in card.data.widget] == [text, f"a {text}"] and card.data.license == text
    shown = "".join(token.content for token in rendered(card.content) if token.type in ("text", "text_special"))
    assert "".join(text.split()).replace("\x00", "") in "".join(shown.split())


def test_nothing_told_on_a_datasets_page_can_break_it(tmp_path):
    """The same for a dataset: licences, settings, statuses and mentions; --about alone is Markdown, without HTML."""
    import prepare_ccub

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
        prepare_ccub.write_card(tmp_path, [culture], links_only=False)
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
    ],
)  # fmt: skip
def test_the_licence_follows_the_base_model(tmp_path, base_model, readme, expected):
    """It is what the base model's own page says, else what is known of its family, else it is left open."""
    folder = tmp_path / base_model
    folder.mkdir()
    if readme:
        (folder / "README.md").write_text(readme)
    assert scoft_hub.license_of(str(folder), revision=None, cache_dir=None) == expected


# ---------------------------------------------------------------------------------------------------------------------
# Pushes
# ---------------------------------------------------------------------------------------------------------------------


def test_from_the_hub_and_back(alice, tmp_path, monkeypatch, capfd, caplog, tiny_pipeline, tiny_ccub, tiny_clip_conv):
    """Base model and private dataset from the Hub, trained, pushed and loaded back: the picture is the local one's.

    The token of --hub_token, the only one there is, comes to no file, log or page, and to no other server.
    """
    from diffusers import StableDiffusionPipeline

    monkeypatch.delenv("HF_TOKEN")
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
        f"--push_to_hub --hub_private_repo --hub_collection SCoFT --hub_token {TOKEN} --dataset_revision {first}"
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

    everything = [data for data in files_of(tmp_path).values()] + [caplog.text.encode(), *repo.files.values()]
    everything += [text.encode() for text in capfd.readouterr()]
    assert not any(TOKEN.encode() in data for data in everything)
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
    run("--push_to_hub", "--hub_model_id", "scoft-other")
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
        run("--push_to_hub", "--hub_token", "hf_alice")
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
    monkeypatch.setattr(train_scoft_lora, "load_models", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(DataError, match=message):
        train_scoft_lora.main([*argv.split(), "--pretrained_model_name_or_path", str(tiny_pipeline), *flags])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hub_model_id", "a/b"], "--hub_model_id has no effect without --push_to_hub"),
        (["--hub_token", TOKEN, "--report_to", "wandb"], "such trackers keep the command line"),
    ],
)
def test_flags_that_do_not_go_together_are_named(capsys, flags, message):
    with pytest.raises(SystemExit):
        train_scoft_lora.parse_args(["--dataset", "pocket", "--culture", "veridia", *flags])
    error = capsys.readouterr().err
    assert message in error and TOKEN not in error


def test_a_token_in_a_file_of_flags_is_refused(tmp_path, capsys):
    (tmp_path / "flags.yaml").write_text(f"hub_token: {TOKEN}\n")
    with pytest.raises(SystemExit):
        train_scoft_lora.parse_args(["--config", str(tmp_path / "flags.yaml"), "--dataset", "pocket"])
    error = capsys.readouterr().err
    assert "a token does not belong in a file" in error and TOKEN not in error


def test_a_base_model_read_once_is_read_offline(alice, tiny_pipeline):
    """Its commit is known from the cache, by the name of its branch as by itself."""
    commit = alice.add("model", "alice/tiny-sd", files_of(tiny_pipeline))
    assert scoft_hub.base_commit("alice/tiny-sd", revision=None, cache_dir=None) == commit
    program = (
        "import scoft_hub\n"
        f"for revision in (None, {commit!r}): print(scoft_hub.base_commit('alice/tiny-sd', revision=revision, "
        "cache_dir=None))\n"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(scoft_hub.__file__).parent)}
    found = subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [commit, commit]


def test_a_base_model_that_cannot_be_had_is_named(hub, tiny_ccub, tmp_path, monkeypatch):
    """A private or absent base model, and an unknown revision, are answered with the flag and what the Hub said."""
    hub.add("model", "bob/private-sd", {"model_index.json": b"{}"}, private=True)
    argv = f"--method finetune --dataset {tiny_ccub} --culture veridia --output_dir {tmp_path / 'out'}"
    for base in ("bob/private-sd", "bob/nothing"):
        with pytest.raises(
            DataError, match=f"--pretrained_model_name_or_path {base} is no folder, and the Hub has no"
        ):
            train_scoft_lora.main([*argv.split(), "--pretrained_model_name_or_path", base])
    with pytest.raises(DataError, match="--revision v9 is of a Hub model"):
        train_scoft_lora.main([*argv.split(), "--pretrained_model_name_or_path", str(tmp_path), "--revision", "v9"])


def test_places_on_the_machine_stay_there():
    """Of absolute paths, wherever they stand, the last name is left; other texts are as they were."""
    found = scoft_hub.without_places({"a": "/home/me/data", "b": ["/x/judge.py:rate", "org/name"], "c": {"d": 1.5}})
    assert found == {"a": "data", "b": ["judge.py:rate", "org/name"], "c": {"d": 1.5}}


def test_an_address_told_on_a_page_is_no_link():
    """GitHub's Markdown, which the Hub renders, makes links of bare addresses; escaped ones stay words."""
    assert scoft_hub.markdown_text("see https://e.vil, www.e.vil or a@e.vil") == (
        r"see https\://e.vil, www\.e.vil or a\@e.vil"
    )

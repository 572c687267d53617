"""A LoRA's page and what it tells, by the trainer's true command line."""

import copy
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from packaging.version import Version

from contents import HOSTILE, files_of, kinds, rendered
from scoft.base_model import license_of
from scoft.errors import DataError
from scoft.lora_folder import lora_sha256, read_training_record
from scoft.lora_page import without_places, write_model_card


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


def test_places_on_the_machine_stay_there():
    """Of absolute paths, wherever they stand, the last name is left; other texts are as they were."""
    found = without_places({"a": "/home/me/data", "b": ["/x/judge.py:rate", "org/name"], "c": {"d": 1.5}})
    assert without_places(["../clients/acme/base", "./me/base", "~/base"]) == ["base"] * 3
    assert found == {"a": "data", "b": ["judge.py:rate", "org/name"], "c": {"d": 1.5}}

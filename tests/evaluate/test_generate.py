"""Drawing by the true command line, on a tiny pipeline: what is there, what is drawn, and what is not drawn again."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluation import pictures_of, rows_of, run
from scoft import files
from scoft.base_model import load_into_pipeline
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.errors import DataError
from scoft.evaluate import formulas, generate
from scoft.evaluate.metrics import METRICS as ROWS
from scoft.lora_folder import LORA_FILE


def test_the_manifest_keeps_the_contract(done, lora, tiny_pipeline, photographs):
    """Every method has every prompt of every set at the same seeds, and a row says all that decides a picture."""
    rows = rows_of(done)
    assert len(rows) == 4 * 4 * 2 * 3  # methods, sets, prompts, seeds
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["base", "m", "m@1", "m@2"]
    asked = {(row["set"], row["prompt"], row["seed"]) for row in rows}
    assert len({row["seed"] for row in rows}) == 4 * 2 * 3  # of its own for each prompt
    for method in ("base", "m", "m@1", "m@2"):
        assert {(row["set"], row["prompt"], row["seed"]) for row in rows if row["method"] == method} == asked
    assert {row["prompt"] for row in rows if row["set"] == "prompts"} == {"a house, in Veridia",
                                                                         "a bowl of food, in Veridia"}  # fmt: skip
    row = next(row for row in rows if row["method"] == "m" and row["set"] == "train")
    assert row["lora"] == str(lora) and row["base"] == str(tiny_pipeline)
    assert (row["guidance"], row["steps"], row["resolution"], row["blank"]) == (4.5, 2, 16, False)
    data = read_dataset(
        find_dataset(str(photographs), culture="veridia"),
        culture="veridia",
        needs_blip=False,
        needs_negatives=False,
    )
    assert row["prompt"] in data.captions[data.image_hashes.index(row["photograph"])]
    assert {str(file) for file in pictures_of(done)} == {row["file"] for row in rows}


def test_a_picture_is_what_the_pipeline_draws(done, lora, tiny_pipeline):
    """A row's picture is that of a stock pipeline with its LoRA, prompt, seed, steps and guidance."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    drawn = {}
    for method in ("base", "m"):
        if method == "m":
            load_into_pipeline(pipe, lora / LORA_FILE)
        row = next(r for r in rows_of(done) if r["method"] == method and r["set"] == "general" and r["number"] == 2)
        generator = torch.Generator().manual_seed(row["seed"])
        image = pipe(
            row["prompt"], generator=generator, num_inference_steps=2, guidance_scale=4.5, height=16, width=16
        )
        found = np.asarray(Image.open(done / row["file"]), int)
        assert np.abs(found - np.asarray(image.images[0], int)).max() <= 1
        drawn[method] = found
    assert np.abs(drawn["base"] - drawn["m"]).max() > 3


def test_a_lora_that_loads_in_part_draws_nothing_and_its_whole_file_does(done, words, lora, tmp_path):
    """Keys of two forms, as earlier versions wrote, are refused before any drawing; the kohya file draws the same."""
    shutil.copytree(lora, tmp_path / "lora", ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(lora / LORA_FILE).items()
    weights = {
        name.replace("to_v.lora_A", "to_v.lora.down").replace("to_v.lora_B", "to_v.lora.up"): weight
        for name, weight in weights
    }
    save_file(weights, tmp_path / "lora" / LORA_FILE)
    for place in ("lora", "lora/scoft-veridia-kohya.safetensors"):
        flags = [f"m={tmp_path / place}" if word.startswith("m=") else word for word in words["generate"]]
        flags = [*(word for word in flags if word != "--checkpoints"), "--sets", "prompts", "--num_images", "1"]
        if place == "lora":
            with pytest.raises(DataError, match=r"holds 32 tensors, and 16 of them are in the model.*to_v\.lora_A"):
                run("generate", tmp_path / "out", flags)
            assert not pictures_of(tmp_path / "out")
        else:
            run("generate", tmp_path / "out", flags)
    drawn = pictures_of(tmp_path / "out")
    assert len(drawn) == 4
    for name in drawn:
        found, expected = (np.asarray(Image.open(folder / name), int) for folder in (tmp_path / "out", done))
        assert np.abs(found - expected).max() <= 1


def test_interrupted_and_resumed_it_is_the_undisturbed_one(done, words, tmp_path, monkeypatch):
    """Stopped in the middle, the next run draws the rest alone, and all is as if it had not been stopped."""
    drawn, draw = [], generate.draw

    def counting(pipeline, batch, **places):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(len(batch))
        draw(pipeline, batch, **places)

    monkeypatch.setattr(generate, "draw", counting)
    with pytest.raises(KeyboardInterrupt):
        run("generate", tmp_path / "again", words["generate"])
    before = sum(drawn)
    with open(tmp_path / "again/manifest.jsonl", "a") as file:
        file.write('{"key": "torn')
    drawn[:] = [0] * 6
    run("generate", tmp_path / "again", words["generate"])
    assert sum(drawn) == len(rows_of(done)) - before
    assert rows_of(tmp_path / "again") == rows_of(done)
    for name, content in pictures_of(done).items():
        found = np.asarray(Image.open(tmp_path / "again" / name), int)
        expected = np.asarray(Image.open(done / name), int)
        assert np.abs(found - expected).max() <= 1, name  # batches of other sizes round differently
        assert content


def test_what_is_there_is_not_drawn_again_and_what_has_changed_is(copy, words, monkeypatch, lora):
    """Unchanged, nothing is loaded; with another LoRA under its name a method is drawn anew, and others are left."""
    import diffusers

    with monkeypatch.context() as patch:
        patch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
        before = (copy / "manifest.jsonl").read_bytes()
        run("generate", copy, words["generate"])
        assert (copy / "manifest.jsonl").read_bytes() == before
    pictures = pictures_of(copy)
    flags = [f"m={lora / 'checkpoint-1'}" if word.startswith("m=") else word for word in words["generate"]]
    flags.remove("--checkpoints")
    run("generate", copy, flags)
    changed = {name for name, content in pictures_of(copy).items() if pictures[name] != content}
    assert changed and all(name.startswith("images/m/") for name in changed)
    assert {row["method"] for row in rows_of(copy)} == {"base", "m"}  # the checkpoints were of the run before


def test_other_flags_a_kill_and_the_first_flags_again_draw_the_first_pictures(copy, words, monkeypatch):
    """A picture that other flags have drawn over is drawn again, though a row of the first flags is still there."""
    pictures, rows, draw = pictures_of(copy), rows_of(copy), generate.draw

    def once(pipeline, batch, **places):
        draw(pipeline, batch, **places)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generate, "draw", once)
        run("generate", copy, [*words["generate"], "--guidance_scale", "9"])
    changed = [name for name, content in pictures_of(copy).items() if content != pictures[name]]
    assert len(changed) == 8
    run("generate", copy, words["generate"])
    assert pictures_of(copy) == pictures and rows_of(copy) == rows


def test_what_the_safety_checker_blacks_out_is_marked(words, tiny_pipeline, tmp_path):
    """Behind diffusers' own checker, one that objects to everything, every picture is drawn and none is scored."""
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(vision_config=vision | {"num_attention_heads": 2}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-2.0)  # thresholds that every cosine exceeds
    pipe = StableDiffusionPipeline.from_pretrained(
        tiny_pipeline,
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    )
    pipe.save_pretrained(tmp_path / "checked")
    flags = [word.replace(str(tiny_pipeline), str(tmp_path / "checked")) for word in words["generate"]]
    flags = flags[: flags.index("--lora")] + flags[flags.index("--checkpoints") + 1 :]
    run("generate", tmp_path / "out", [*flags, "--sets", "prompts", "--num_images", "2"])
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 4 and all(row["blank"] and (tmp_path / "out" / row["file"]).is_file() for row in rows)
    with pytest.raises(DataError, match="the set prompts of base has 0 pictures that are not blank"):
        run("score", tmp_path / "out", words["score"])


def test_two_runs_in_one_folder_are_refused(done, words, monkeypatch, tmp_path):
    """Every stage that writes into a folder holds it."""
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with files.sole_writer(done, flag="folder"):
        for stage, flags in (("generate", words["generate"]), ("score", words["score"]), ("report", [])):
            with pytest.raises(DataError, match="another run is writing into it"):
                run(stage, done, flags)
        run("report", done, ["--output", str(tmp_path / "elsewhere")])


def test_what_so_few_pictures_will_not_give_is_said_before_they_are_drawn(words, tmp_path, monkeypatch, caplog):
    """With two pictures of a prompt there is no DIV with an interval, and so few are no neighbourhood."""
    every = set(ROWS) - {"judge", "kid_general"}
    monkeypatch.setattr(generate, "draw_all", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    for number, lacking in (("2", {"div", *formulas.PRDC}), ("1", every), ("6", set())):
        caplog.clear()
        with pytest.raises(KeyboardInterrupt):
            run("generate", tmp_path / number, [*words["generate"], "--num_images", number])
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        named = [re.match(r"Of these pictures there will be no ([\w, ]+): ", line)[1].split(", ") for line in said]
        found = {metric for metrics in named for metric in metrics}
        assert found == lacking, number
        assert number != "2" or any("DIV: got 1 picture of the prompt" in line for line in said)


def test_a_lora_that_is_replaced_while_it_draws_is_named(words, lora, tmp_path, monkeypatch):
    """No row names a LoRA that its picture is not of."""
    shutil.copytree(lora, tmp_path / "lora")

    def then_trained_anew(pipeline, file):
        load_into_pipeline(pipeline, file)
        shutil.copy(lora / "checkpoint-1" / LORA_FILE, file)

    monkeypatch.setattr(generate, "load_into_pipeline", then_trained_anew)
    flags = " ".join(words["generate"]).replace(f"m={lora} --checkpoints", f"m={tmp_path / 'lora'}").split()
    with pytest.raises(DataError, match="was replaced while pictures were drawn"):
        run("generate", tmp_path / "out", [*flags, "--sets", "general", "--num_images", "1"])
    assert not (tmp_path / "out/images/m").exists()


def test_a_lora_of_the_hub_is_drawn_with_its_own_base(words, lora, hub, tmp_path, monkeypatch):
    """--lora takes a Hub id; pictures are those of the folder that was pushed."""
    names = (LORA_FILE, "training_args.json")
    hub.add("model", "alice/scoft-veridia", {name: (lora / name).read_bytes() for name in names})
    flags = " ".join(words["generate"]).replace(f"m={lora} --checkpoints", "m=alice/scoft-veridia").split()
    flags += ["--sets", "general", "--num_images", "2"]
    run("generate", tmp_path / "hub", flags)
    flags[flags.index("m=alice/scoft-veridia")] = f"m={lora}"
    run("generate", tmp_path / "folder", flags)
    assert pictures_of(tmp_path / "hub") == pictures_of(tmp_path / "folder")

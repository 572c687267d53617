"""Evaluation: its true command line from pictures to pages, on a tiny pipeline, the pocket world's CLIP and judge."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import evaluate_scoft
import tiny
import train_scoft_lora
from scoft import cultures, files
from scoft.base_model import load_into_pipeline
from scoft.cultures import culture_words
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.errors import DataError
from scoft.evaluate import figures, formulas
from scoft.lora_folder import LORA_FILE


ROOT = Path(evaluate_scoft.__file__).parent
CLIP = ROOT / "pocket/models/clip"
METRICS = ["kid", "clip_score", "clip_cosine", "clip_i", "div", "precision", "recall", "density", "coverage", "vendi",
           "nearest", "judge"]  # fmt: skip


def training(pipeline: Path, folder: Path, photographs: Path) -> list[str]:
    """Flags of a run of two updates, with a checkpoint of each."""
    return (
        f"--pretrained_model_name_or_path {pipeline} --dataset {photographs} --culture veridia --method finetune "
        f"--output_dir {folder} --resolution 16 --rank 4 --lora_layers to_q,to_v --learning_rate 0.2 "
        "--train_batch_size 2 --max_train_steps 2 --checkpointing_steps 1 --num_validation_images 0 --snr_gamma 5 "
        "--report_to none"
    ).split()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return tiny.build_dataset(tmp_path_factory.mktemp("photographs"), rows=7, test_rows=7)


@pytest.fixture(scope="module")
def lora(tmp_path_factory, tiny_pipeline, photographs):
    folder = tmp_path_factory.mktemp("lora") / "scoft-veridia"
    train_scoft_lora.main(training(tiny_pipeline, folder, photographs))
    return folder


@pytest.fixture(scope="module")
def words(tiny_pipeline, lora, photographs, tmp_path_factory):
    """Flags of `generate` and of `score`."""
    prompts = tmp_path_factory.mktemp("prompts")
    (prompts / "culture.txt").write_text("# two\na house, in {}\n\na bowl of food, in {}\n")
    (prompts / "general.txt").write_text("a house\na bowl of food\n")
    (prompts / "judge.py").write_text(
        "import numpy as np\n\ndef rate(images, prompts):\n"
        "    bright = float(np.mean([np.mean(image) > 128 for image in images]))\n"
        "    return {'bright': bright, 'bright_low': 0.0, 'bright_high': 1.0, 'house': float('house' in prompts[0])}\n"
    )
    data = f"--dataset {photographs} --culture veridia"
    return {
        "generate": f"{data} --pretrained_model_name_or_path {tiny_pipeline} --lora m={lora} --checkpoints "
        f"--prompts {prompts / 'culture.txt'} --general_prompts {prompts / 'general.txt'} --num_captions 2 "
        "--num_images 3 --num_inference_steps 2 --batch_size 8".split(),
        "score": f"{data} --encoder clip={CLIP} --features clip --diversity_features clip --device cpu "
        f"--judge {prompts / 'judge.py'}:rate --batch_size 16 --neighbours 2 --metrics {' '.join(METRICS)}".split(),
    }


def run(stage: str, folder: Path, flags: list[str]):
    evaluate_scoft.main([stage, str(folder), *flags])


@pytest.fixture(scope="module")
def done(tmp_path_factory, words):
    """A folder that has gone through all three stages."""
    folder = tmp_path_factory.mktemp("eval") / "veridia"
    run("generate", folder, words["generate"])
    run("score", folder, words["score"])
    run("report", folder, [])
    return folder


@pytest.fixture
def copy(done, tmp_path):
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines() if line]


def pictures_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in (folder / "images").rglob("*.png")}


# ---------------------------------------------------------------------------------------------------------------------
# Generate
# ---------------------------------------------------------------------------------------------------------------------


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
    drawn, draw = [], evaluate_scoft.draw

    def counting(pipeline, batch, **places):
        if len(drawn) == 5:
            raise KeyboardInterrupt
        drawn.append(len(batch))
        draw(pipeline, batch, **places)

    monkeypatch.setattr(evaluate_scoft, "draw", counting)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lora", "base=x"], "--lora takes NAME=PLACE"),
        (["--lora", "m"], "--lora takes NAME=PLACE"),
        (["--lora", "../m=x"], "NAME of --lora NAME=PLACE is 1 to 64 letters"),
        (["--culture", "x" * 300], "--culture is 1 to 64 letters"),
        (["--lora", "a=x", "a=y"], "a is given twice"),
        (["--resolution", "20"], "--resolution is a multiple of 8"),
        (["--num_images", "0"], "--num_images is at least 1"),
    ],
)
def test_bad_flags_of_generate_are_named(capsys, change, message):
    with pytest.raises(SystemExit):
        evaluate_scoft.parse_args(["generate", "out", "--dataset", "pocket", "--culture", "veridia", *change])
    assert message in capsys.readouterr().err


def test_other_flags_a_kill_and_the_first_flags_again_draw_the_first_pictures(copy, words, monkeypatch):
    """A picture that other flags have drawn over is drawn again, though a row of the first flags is still there."""
    pictures, rows, draw = pictures_of(copy), rows_of(copy), evaluate_scoft.draw

    def once(pipeline, batch, **places):
        draw(pipeline, batch, **places)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate_scoft, "draw", once)
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


def test_a_lora_of_another_base_model_is_refused(words, lora, tmp_path, tiny_pipeline):
    """Its record says what it was trained on; without a record it is taken as it is."""
    shutil.copytree(lora, tmp_path / "lora")
    record = json.loads((tmp_path / "lora/training_args.json").read_text())
    record["resolved"]["base_model"] = "org/other"
    (tmp_path / "lora/training_args.json").write_text(json.dumps(record))
    flags = [word.replace(str(lora), str(tmp_path / "lora")) for word in words["generate"]]
    with pytest.raises(DataError, match="was trained on org/other, not on"):
        run("generate", tmp_path / "out", flags)
    data = ["generate", "out", "--dataset", "ccub", "--culture", "veridia"]
    args = evaluate_scoft.parse_args(data)
    files = {place: Path(place, LORA_FILE) for place in (str(lora), str(tmp_path))}
    records = evaluate_scoft.training_records(files)
    assert list(records) == [str(lora)]
    assert evaluate_scoft.base_of(args, records) == str(tiny_pipeline)
    assert evaluate_scoft.base_of(args, {}) == evaluate_scoft.DEFAULT_BASE
    assert "pocket" in evaluate_scoft.parse_args([*data, "--dataset", "pocket"]).pretrained_model_name_or_path


def test_pictures_are_of_the_resolution_of_training(words, lora, tmp_path, tiny_pipeline):
    """By default that of the LoRAs' records, or the base model's own without a LoRA; --resolution overrules both."""

    def of(*more: str, records: dict) -> int:
        args = evaluate_scoft.parse_args(["generate", "out", "--dataset", "ccub", "--culture", "c", *more])
        return evaluate_scoft.resolution_of(args, records, base=str(tiny_pipeline), commit=None)

    files = {place: lora / place / LORA_FILE for place in ("", "checkpoint-1")}
    records = evaluate_scoft.training_records(files)
    assert of(records=records) == 16 and of("--resolution", "24", records=records) == 24
    unet, vae = (json.loads((tiny_pipeline / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert of(records={}) == unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    with pytest.raises(DataError, match=f"^pretrained_model_name_or_path {lora} cannot be loaded"):
        evaluate_scoft.own_resolution(str(lora), commit=None, cache_dir=None)
    record = json.loads((lora / "training_args.json").read_text())
    record["arguments"]["resolution"] = 32
    (tmp_path / "training_args.json").write_text(json.dumps(record))
    both = evaluate_scoft.training_records({"m": files[""], "mpc": tmp_path / LORA_FILE})
    with pytest.raises(DataError, match="different resolutions: m at 16, mpc at 32. Choose one with --resolution"):
        of(records=both)
    record["arguments"]["resolution"] = "large"
    (tmp_path / "training_args.json").write_text(json.dumps(record))
    with pytest.raises(
        DataError, match="training_args.json is not as it was written: arguments: resolution: .*integer"
    ):
        evaluate_scoft.training_records({"mpc": tmp_path / LORA_FILE})


@pytest.mark.parametrize("stage", ["generate", "score"])
def test_the_embedded_dataset_brings_its_flags(stage, capsys):
    """With --dataset pocket its table holds where the command line is silent; other datasets have none."""
    data = [stage, "out", "--dataset", "pocket", "--culture", "veridia"]
    args = evaluate_scoft.parse_args(data)
    if stage == "generate":
        assert (
            args.prompts == ROOT / "pocket/prompts.txt"
            and args.num_inference_steps == 10
            and args.folder == Path("out")
        )
        assert evaluate_scoft.parse_args([*data, "--num_inference_steps", "3"]).num_inference_steps == 3
    else:
        assert args.features == "clip" and args.metrics == METRICS and args.judge == str(ROOT / "pocket/judge.py:rate")
        more = evaluate_scoft.parse_args([*data, "--encoder", "dino=x", "--metrics", "kid"])
        assert more.encoder == [f"clip={CLIP}", "dino=x"] and more.metrics == ["kid"]
    other = evaluate_scoft.parse_args([stage, "out", "--dataset", "ccub", "--culture", "veridia"])
    assert vars(other).get("judge") is None and vars(other).get("pretrained_model_name_or_path") is None


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
    every = set(evaluate_scoft.METRICS) - {"judge", "kid_general"}
    monkeypatch.setattr(evaluate_scoft, "draw_all", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
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

    monkeypatch.setattr(evaluate_scoft, "load_into_pipeline", then_trained_anew)
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


def test_checkpoints_where_there_are_none_are_named(words, lora, tmp_path):
    (tmp_path / "checkpoint-last").mkdir()
    with pytest.raises(DataError, match="has no folder checkpoint-<updates>"):
        evaluate_scoft.lora_places([f"m={tmp_path}"], checkpoints=True)
    assert list(evaluate_scoft.lora_places([f"m={lora}"], checkpoints=True)) == ["m", "m@1", "m@2"]


def test_places_without_a_lora_and_files_without_prompts_are_named(words, tmp_path):
    flags = [word for word in words["generate"] if not word.startswith("m=") and word != "--checkpoints"]
    flags.insert(flags.index("--lora") + 1, f"m={tmp_path}")
    with pytest.raises(DataError, match=rf"--lora {tmp_path}: pytorch_lora_weights.safetensors cannot be had"):
        run("generate", tmp_path / "out", flags)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="empty.txt: got 0 prompts"):
        run("generate", tmp_path / "out", [*words["generate"], "--prompts", str(tmp_path / "empty.txt")])


@pytest.mark.parametrize("flag", ["prompts", "general_prompts"])
def test_prompts_that_cannot_be_read_are_named_by_their_own_flag(words, tmp_path, flag):
    """Absent, and the same prompt twice; the mark with which some editors begin a file is no part of a prompt."""
    file = tmp_path / "prompts.txt"
    for content, message in ((None, "cannot be read"), ("a house\na house\n", "got 2 prompts, 1 different ones")):
        if content:
            file.write_text(content)
        with pytest.raises(DataError, match=rf"^--{flag} .*prompts.txt:? {message}"):
            run("generate", tmp_path / "out", [*words["generate"], f"--{flag}", str(file)])
    file.write_text("a house\n", encoding="utf-8-sig")
    assert evaluate_scoft.read_prompts(file, "korea", flag=f"--{flag}") == ["a house"]


def test_a_culture_without_test_photographs_is_told_how_to_go_on(words, tmp_path):
    """By default the captions of the test split are asked for too; the message names the sets that are left."""
    own = tiny.build_dataset(tmp_path / "own", rows=7, test_rows=0)
    flags = [str(own) if word == words["generate"][1] else word for word in words["generate"]]
    with pytest.raises(DataError, match="(?s)split 'test'.* --sets prompts train general leaves it out"):
        run("generate", tmp_path / "out", flags)


def test_prompt_files_are_the_papers_phrasing_for_any_culture():
    """Ten prompts for any culture by default; the general ones name no culture, and have the paper's that survive."""
    args = evaluate_scoft.parse_args(["generate", "out", "--dataset", "ccub", "--culture", "new_zealand"])
    prompts = evaluate_scoft.read_prompts(args.prompts, args.culture, flag="--prompts")
    assert len(prompts) == 10 and all(prompt.endswith(", in New Zealand") for prompt in prompts)
    names = ["Veridia", *map(culture_words, cultures.CULTURES)]
    for file in (args.general_prompts, ROOT / "pocket/general_prompts.txt"):
        general = evaluate_scoft.read_prompts(file, "veridia", flag="--general_prompts")
        assert len(general) >= 10 and not any(name in prompt for prompt in general for name in names)
    shown = {"a photo of a person", "photo of a bedroom", "students are studying in the classroom"}
    assert shown < set(evaluate_scoft.read_prompts(args.general_prompts, "korea", flag="--general_prompts"))
    pocket = evaluate_scoft.read_prompts(ROOT / "pocket/prompts.txt", "veridia", flag="--prompts")
    assert all("Veridia" in prompt for prompt in pocket)


# ---------------------------------------------------------------------------------------------------------------------
# Score
# ---------------------------------------------------------------------------------------------------------------------


def test_every_metric_of_every_method_has_its_number_and_interval(done):
    """results.json has all that was asked for, of all sets it is of, with intervals, and differences that pair up."""
    results = evaluate_scoft.read_results(done)
    found = {metric.partition("/")[0] for metric, _, _ in results.estimates}
    assert found == set(METRICS)
    for method in ("base", "m", "m@1", "m@2"):
        for metric in set(METRICS) - {"judge"}:
            for name in evaluate_scoft.METRICS[metric].sets:
                estimate = results.estimates[metric, name, method]
                assert estimate.low <= estimate.value <= estimate.high and estimate.n == 6
    assert {metric for metric, _, _ in results.estimates if "/" in metric} == {"judge/bright", "judge/house"}
    assert results.estimates["judge/house", "prompts", "m"].value == 0.5
    for row in results.differences:
        assert (row.method, row.to) == ("m", "base")
        pair = [results.estimates[row.metric, row.set, method] for method in ("m", "base")]
        assert row.value == pytest.approx(pair[0].value - pair[1].value)
    assert results.counts["m/train"] == evaluate_scoft.Count(pictures=6, blank=0)
    (encoder,) = results.encoders.values()
    assert re.fullmatch("[0-9a-f]{64}", encoder.sha256) and encoder.place == "clip"


def test_clip_score_is_its_definition_by_transformers(done):
    """2.5 max(cos, 0), by CLIP's own forward pass of picture and prompt, averaged."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(CLIP).eval(), CLIPProcessor.from_pretrained(CLIP)
    cosines = []
    for row in rows_of(done):
        if row["method"] == "m" and row["set"] == "prompts":
            image = Image.open(done / row["file"]).convert("RGB")
            inputs = processor(text=[row["prompt"]], images=[image], return_tensors="pt", padding=True)
            with torch.no_grad():
                cosines.append(float(model(**inputs).logits_per_image / model.logit_scale.exp()))
    results = evaluate_scoft.read_results(done)
    assert results.estimates["clip_cosine", "prompts", "m"].value == pytest.approx(np.mean(cosines), abs=1e-5)
    expected = np.mean([2.5 * max(cosine, 0) for cosine in cosines])
    assert results.estimates["clip_score", "prompts", "m"].value == pytest.approx(expected, abs=1e-5)


def test_kid_is_to_the_test_photographs(done, words):
    """KID compares with the 7 photographs of the test split, and with none of the training photographs."""
    args = evaluate_scoft.parse_args(["score", str(done), *words["score"]])
    features = evaluate_scoft.Features(args)
    shown = [p for p in evaluate_scoft.read_manifest(done) if (p.method, p.set) == ("m", "prompts")]
    x = features.of("clip", evaluate_scoft.generated(done, shown))
    y = features.of("clip", evaluate_scoft.Photographs(args).test)
    assert len(y) == 7
    found = evaluate_scoft.read_results(done).estimates["kid", "prompts", "m"]
    assert found.value == pytest.approx(1000 * formulas.kid(x, y))


def test_features_are_computed_once_and_in_blocks(copy, words, monkeypatch):
    """Scored again, no picture is embedded; another block size embeds all, never more than a block at once."""
    compute = evaluate_scoft.Features.compute
    monkeypatch.setattr(evaluate_scoft.Features, "compute", lambda *_: pytest.fail("embedded again"))
    before = (copy / "results.json").read_bytes()
    run("score", copy, words["score"])
    assert (copy / "results.json").read_bytes() == before
    sizes = []

    def counting(self, encoder, block):
        sizes.append(len(block))
        return compute(self, encoder, block)

    monkeypatch.setattr(evaluate_scoft.Features, "compute", counting)
    monkeypatch.setattr(evaluate_scoft, "BLOCK", 4)
    run("score", copy, words["score"])
    assert max(sizes) == 4
    after = json.loads((copy / "results.json").read_text())["scores"]
    for row, expected in zip(after, json.loads(before)["scores"], strict=True):
        assert row["value"] == pytest.approx(expected["value"], rel=1e-4, abs=1e-6)


def test_blank_pictures_are_counted_and_left_out(copy, words):
    """A black square of the safety checker is in the counts and in no number."""
    rows = rows_of(copy)
    blank = next(row for row in rows if row["method"] == "m" and row["set"] == "prompts")
    blank["blank"] = True
    (copy / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"(?s)cannot be all numbers of .*\n  div: m, set prompts.*take --metrics kid clip_score"
    ):
        run("score", copy, words["score"])
    run("score", copy, [*words["score"], "--metrics", "kid"])
    results = evaluate_scoft.read_results(copy)
    assert results.counts["m/prompts"] == evaluate_scoft.Count(pictures=6, blank=1)
    assert results.estimates["kid", "prompts", "m"].n == 5 and results.estimates["kid", "prompts", "base"].n == 6


def spoil(folder: Path, how: str):
    rows = rows_of(folder)
    mine = [row for row in rows if row["method"] == "m" and row["set"] == "prompts"]
    if how == "missing":
        (folder / mine[0]["file"]).unlink()
    elif how == "torn":
        (folder / mine[0]["file"]).write_bytes((folder / mine[0]["file"]).read_bytes()[:40])
    elif how == "sizes":
        Image.radial_gradient("L").resize((8, 8)).save(folder / mine[0]["file"])
    elif how == "prompts":
        mine[0]["prompt"] = "another"
    elif how == "guidance":
        mine[0]["guidance"] = 9.0
    elif how == "loras":
        mine[0]["lora_sha256"] = "0" * 64
    elif how == "sets":
        rows = [row for row in rows if row["method"] != "m" or row["set"] != "test"]
    elif how == "blank":
        for row in mine[1:]:
            row["blank"] = True
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if how == "none":
        (folder / "manifest.jsonl").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("none", "has no manifest.jsonl of pictures; generate them: it is the stage before"),
        ("missing", r"prompts-000-000.png of the manifest cannot be read"),
        ("sizes", r"different sizes cannot be compared: .*8 x 8"),
        ("prompts", "the set prompts of .* has other prompts or pictures than that of"),
        ("torn", r"prompts-000-000.png of the manifest cannot be read"),
        ("guidance", r"pictures of different guidance cannot be compared: 4.5 \(.*\), 9.0 \(m\)"),
        ("loras", "the pictures of m are of more than one LoRA"),
        ("sets", "the set test of m has other prompts or pictures than that of base"),
        ("blank", "the set prompts of m has 1 pictures that are not blank"),
    ],
)
def test_pictures_that_cannot_be_scored_are_named(copy, words, how, message):
    spoil(copy, how)
    with pytest.raises(DataError, match=message):
        run("score", copy, words["score"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--features inception --metrics kid",
            "inception cannot be loaded: its weights are never downloaded. Fetch https://.*/weights-inception-2015-12-05-"
            "6726825d.pth .*sha256 6726825d0af5f729.*--encoder inception=FILE",
        ),
        ("--metrics kid dino", "the encoder dino cannot be loaded"),
        ("--neighbours 99 --metrics precision", "PRDC: got k = 99, 6 pictures"),
        ("--encoder clip=/nowhere --metrics clip_score", "the encoder clip cannot be loaded"),
    ],
)
def test_what_is_asked_for_and_impossible_is_an_error(copy, words, hub, monkeypatch, flags, message):
    """A metric without its encoder, or without enough pictures, stops the scoring before anything is embedded."""
    monkeypatch.setattr(evaluate_scoft.Features, "of", lambda *_: pytest.fail("worked in vain"))
    base = words["score"][: words["score"].index("--neighbours")]
    with pytest.raises(DataError, match=message):
        run("score", copy, [*base, *flags.split()])


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("raises.py:f", r"--judge .* for images/.*png, but ZeroDivisionError: division by zero"),
        ("nothing.py:f", r"--judge .* gave no dict of numbers for images/.*, but AttributeError"),
        (
            "word.py:f",
            r"--judge .* gave no dict of numbers for images/.*, but ValueError: could not convert .* 'good'",
        ),
        ("half.py:f", r"--judge .* said {'a': 0.5} of images/.*; it is to say 0 or 1 of each picture"),
        ("broken.py:f", "--judge .*broken.py cannot be imported: SyntaxError"),
        ("other.py:f", "other.py has no function f"),
    ],
)
def test_judges_that_judge_nothing_are_told_in_one_line(copy, words, tmp_path, judge, message):
    bodies = {"raises": "1 / 0", "nothing": "None", "word": "{'a': 'good'}", "half": "{'a': 0.5}"}
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(f"def f(images, prompts):\n    return {body}\n")
    for name, content in {"x.txt": "", "broken.py": "def f(", "other.py": ""}.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        run("score", copy, [*words["score"], "--metrics", "judge", "--judge", str(tmp_path / judge)])


def test_kid_of_general_photographs_is_of_general_prompts(copy, words, tmp_path):
    """The paper's is the same for every culture: prompts that name none, against a folder; only pictures are read."""
    general = tmp_path / "general"
    general.mkdir()
    for i, picture in enumerate(noise(6)):
        picture.save(general / f"{i}{('.png', '.TIF')[i % 2]}")
    (general / "notes.txt").write_text("no picture")
    flags = [*words["score"], "--metrics", "kid_general", "--general_reference", str(general)]
    run("score", copy, flags)
    results = evaluate_scoft.read_results(copy)
    assert {(metric, of) for metric, of, _ in results.estimates} == {("kid_general", "general")}
    args = evaluate_scoft.parse_args(["score", str(copy), *flags])
    features = evaluate_scoft.Features(args)
    shown = [p for p in evaluate_scoft.read_manifest(copy) if (p.method, p.set) == ("m", "general")]
    x = features.of("clip", evaluate_scoft.generated(copy, shown))
    y = features.of("clip", evaluate_scoft.Photographs(args).general)
    assert len(y) == 6
    expected = 1000 * formulas.kid(x, y)
    assert results.estimates["kid_general", "general", "m"].value == pytest.approx(expected)
    os.mkfifo(general / "fifo.png")
    with pytest.raises(DataError, match="--general_reference: .*fifo.png is not a regular file"):
        run("score", copy, flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--metrics kid_general", "--metrics kid_general needs --general_reference"),
        ("--metrics judge", "--metrics judge needs --judge"),
        ("--judge judge", "--judge is FILE.py:function, got 'judge'"),
        ("--judge judge.txt:f", "--judge is FILE.py:function, got 'judge.txt:f'"),
        ("--encoder resnet=x", "--encoder takes NAME=PLACE with NAME of inception"),
    ],
)
def test_bad_flags_of_score_are_named(capsys, flags, message):
    with pytest.raises(SystemExit):
        evaluate_scoft.parse_args(["score", "out", "--dataset", "ccub", "--culture", "veridia", *flags.split()])
    assert message in capsys.readouterr().err


def encoder(name: str, place, **more) -> evaluate_scoft.Encoder:
    """An encoder of ENCODERS as `score` loads it."""
    flags = {"dataset": "ccub", "culture": "veridia", "encoder": f"{name}={place}", "device": "cpu"} | more
    argv = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    return evaluate_scoft.Features(evaluate_scoft.parse_args(["score", "out", *argv])).encoder(name)


def noise(number: int, side: int = 48) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (number, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


@torch.no_grad()
def test_dreamsims_features_give_the_packages_distance(tiny_dreamsim):
    """DIV of two pictures from our features is what the dreamsim package says of them, at its own size."""
    from dreamsim import dreamsim

    model, _ = dreamsim(device="cpu", cache_dir=str(tiny_dreamsim), dreamsim_type="open_clip_vitb32")
    pictures = noise(2, side=224)
    expected = model(*(evaluate_scoft.as_pixels(picture) / 2 + 0.5 for picture in pictures))
    features = encoder("dreamsim", tiny_dreamsim, dreamsim_type="open_clip_vitb32")(pictures)
    assert formulas.diversity(features.numpy(), ["a", "a"]) == pytest.approx(float(expected), abs=1e-5)


@torch.no_grad()
def test_dino_is_the_class_token(tiny_dinov2):
    """By transformers' own processor and model; the hash is of the weights."""
    from transformers import AutoImageProcessor, AutoModel

    found = encoder("dinov2", tiny_dinov2)
    inputs = AutoImageProcessor.from_pretrained(tiny_dinov2)(images=noise(3), return_tensors="pt")
    model = AutoModel.from_pretrained(tiny_dinov2)
    torch.testing.assert_close(found(noise(3)), model(**inputs).last_hidden_state[:, 0])
    assert encoder("dinov2", tiny_dinov2).sha256 == found.sha256 != encoder("dino", tiny_dinov2).sha256


@torch.no_grad()
def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """The features of torch-fidelity's own class, of a file of weights made here, one picture or two at a time."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save({}, tmp_path / "none.pth")
    with monkeypatch.context() as patch, torch.random.fork_rng():
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=tmp_path / "none.pth")
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    pictures = noise(2)
    expected = theirs.eval()(torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in pictures]))[0]
    sha256 = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    read = evaluate_scoft.read_regular
    monkeypatch.setattr(evaluate_scoft, "read_regular", lambda file: (read(file), file.unlink())[0])
    inception = encoder("inception", tmp_path / "weights.pth")
    assert inception.sha256 == sha256  # of what was read, and read once: then the file was gone
    found = inception(pictures)
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_inception_is_read_without_running_what_is_pickled(tmp_path):
    """A weights file whose pickle would call a function is refused before torch-fidelity unpickles it."""
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "weights.pth")
    file = tmp_path / "weights.pth"
    with pytest.raises(
        DataError, match=f"the encoder inception cannot be loaded from {file}: Weights only load failed"
    ):
        encoder("inception", file)
    with pytest.raises(DataError, match=f"the encoder inception cannot be loaded from {tmp_path}: .*(file|directory)"):
        encoder("inception", tmp_path)
    assert not (tmp_path / "ran").exists()


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_another_culture_than_was_drawn_is_an_error(copy, words):
    flags = [word.replace("veridia", "ochria") if word == "veridia" else word for word in words["score"]]
    with pytest.raises(DataError, match="--culture ochria: the pictures of .* are of veridia"):
        run("score", copy, flags)


def test_a_metric_of_a_set_that_was_not_drawn_is_an_error(copy, words):
    rows = [row for row in rows_of(copy) if row["set"] == "prompts"]
    (copy / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="--metrics clip_i is of the set train, but .* has pictures of prompts alone"):
        run("score", copy, words["score"])


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------


def test_table_1_of_the_paper_is_the_mean_of_its_table_4():
    """The unweighted mean over the five cultures of the printed numbers gives the printed ones, to their digits."""
    printed = {
        "base": (30.355, 4.396, 0.813), "m": (22.643, 4.711, 0.802),
        "mp": (21.360, 4.936, 0.800), "mpc": (19.621, 4.819, 0.799),
    }  # fmt: skip
    found = evaluate_scoft.paper_means(evaluate_scoft.PAPER_CULTURES)
    for method, numbers in printed.items():
        for metric, number in zip(("kid", "kid_general", "clip_score"), numbers):
            assert found[metric, method].value == pytest.approx(number, abs=1.1e-3), (method, metric)


def test_the_report_shows_what_was_scored(done):
    """Numbers stand in the tables with their intervals, every figure is there, and the page has no gap."""
    text = (done / "report.md").read_text()
    results = evaluate_scoft.read_results(done)
    for metric, name, method in (("kid", "prompts", "m"), ("div", "test", "base"), ("vendi", "general", "m")):
        cell = evaluate_scoft.shown(results.estimates[metric, name, method], metric)
        assert cell.replace("[", "\\[").replace("]", "\\]") in text
    figures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert "pictures-veridia.png" in figures and "updates-veridia.png" in figures
    for figure in figures:
        assert np.ptp(np.asarray(Image.open(done / figure))) > 0
    assert (
        "| Veridia | m | KID" in text
        and "| | base | m |" in text.replace("|  |", "| |")
        and "nan" not in text
        and "None" not in text
    )
    assert "photographs/nearest-train-m.png" in figures and not any("@" in figure for figure in figures)
    assert (done / "photographs/nearest-train-m@1.png").is_file()  # of checkpoints they are not on the page


def test_sheets_with_the_datasets_photographs_are_for_one_user(copy, tmp_path):
    """In folders that nobody else may look into, the report's too; one that cannot be read is named."""
    flags = ["--output", str(tmp_path / "out")]
    run("report", copy, flags)
    for folder in (copy, tmp_path / "out"):
        sheets = {file.relative_to(folder).parent.name for file in folder.rglob("nearest-*.png")}
        assert sheets == {"photographs"} and (folder / "photographs").stat().st_mode & 0o777 == 0o700
    assert "(photographs/nearest-prompts-m.png)" in (tmp_path / "out/report.md").read_text()
    sheet = copy / "photographs/nearest-prompts-m.png"
    sheet.rename(tmp_path / "elsewhere.png")
    sheet.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="nearest-prompts-m.png cannot be read: lies outside of"):
        run("report", copy, flags)


def with_results(folder: Path, named: str, values: dict[str, float], **changes) -> Path:
    """A folder scored with KIDs by method, over four seeds that agree to within a hundredth."""
    folder.mkdir()
    scores = []
    for method, value in values.items():
        replicates = [[seed, value * (1 + shift)] for seed, shift in enumerate((0.003, -0.003, 0.001, -0.001))]
        row = {"metric": "kid", "set": "prompts", "method": method, "value": value, "n": 4}
        scores.append(row | {"low": value / 1.1, "high": value / 0.9, "replicates": {"seeds": replicates}})
    record = {"culture": named, "question": "these prompts", "confidence": 0.95, "encoders": {}, "counts": {}}
    record |= {"features": "clip", "diversity_features": "clip", "neighbours": 5, "settings": {}, "loras": {}}
    record |= {"scores": scores, "differences": []} | changes
    (folder / "results.json").write_text(json.dumps(record))
    row = {"key": "k", "culture": named, "method": "base", "set": "general", "index": 0, "number": 0, "prompt": "x"}
    row |= {"base": "b", "base_key": "b", "variant": None, "lora": None, "lora_sha256": None, "photograph": None}
    row |= {"guidance": 1, "steps": 1, "resolution": 8, "precision": "no", "blank": False}
    (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"culture": "/../../x"}, "Value error, culture is 1 to 64 letters"),
        ({"scores": [{"metric": "kid", "set": "../x"}]}, "scores: 0: set: Input should be 'prompts', 'train'"),
        ({"scores": [{"metric": "kid"}]}, "scores: 0: set: Field required"),
        ({"confidence": "high"}, "confidence: Input should be a valid number"),
        ({"encoders": [1]}, "encoders: Input should be an object"),
    ],
)
def test_scores_that_somebody_else_wrote_are_held_against_their_kind(tmp_path, change, message):
    """What becomes names of files and text of a page is refused with its place and the remedy."""
    folder = with_results(tmp_path / "x", "korea", {"base": 40}, **change)
    with pytest.raises(DataError, match=f"results.json is not as it was written: .*{message}.*Score the folder"):
        run("report", folder, [])
    assert {file.name for file in folder.iterdir()} == {"results.json", "manifest.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == {"x"}


@pytest.mark.parametrize("method", ["../../x", "a/b", "m@1/../..", "", "@1"])
def test_methods_that_would_lead_out_of_the_folder(tmp_path, method):
    folder = with_results(tmp_path / "x", "korea", {method: 40})
    with pytest.raises(DataError, match="results.json is not as it was written: scores: 0: Value error, .*method is"):
        run("report", folder, [])
    row = json.loads((folder / "manifest.jsonl").read_text()) | {"method": method}
    (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="manifest.jsonl.* is not as it was written: Value error, .*method is"):
        evaluate_scoft.read_manifest(folder)


def test_pictures_lie_in_their_folder(copy, words, tmp_path):
    """A row's file is not asked for, and a picture that is a link out of the folder, or a FIFO, is not read."""
    rows = rows_of(copy)
    victim = copy / next(row["file"] for row in rows if row["set"] == "prompts")
    shutil.copy(victim, tmp_path / "secret.png")
    victim.unlink()
    victim.symlink_to(tmp_path / "secret.png")
    for stage, flags in (("score", words["score"]), ("report", [])):
        with pytest.raises(DataError, match=f"{victim.name}.* cannot be read.*lies outside of"):
            run(stage, copy, flags)
    victim.unlink()
    os.mkfifo(victim)
    with pytest.raises(DataError, match="is not a regular file"):
        run("score", copy, words["score"])
    for row in rows:
        row["file"] = "../secret.png"
    (copy / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert all(picture.file.startswith("images/") for picture in evaluate_scoft.read_manifest(copy))


def test_a_report_writes_through_no_link(copy, tmp_path):
    """Names that are links in a folder that somebody else prepared give way to the files."""
    (tmp_path / "mine").write_text("mine")
    for name in ("report.md", "report.md.partial", "pictures-veridia.png", "updates-veridia.png"):
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(tmp_path / "mine")
    run("report", copy, [])
    assert (tmp_path / "mine").read_text() == "mine" and "# Evaluation" in (copy / "report.md").read_text()


def test_the_report_says_when_to_stop(tmp_path, monkeypatch):
    """Of a run's checkpoints the one of the least KID is named, with those whose difference from it may be 0."""
    kid = {"base": 40, "m@100": 30, "m@200": 20, "m@300": 20.01, "m@400": 25}
    folder, drawn = with_results(tmp_path / "korea", "korea", kid), []
    curves = figures.curves
    monkeypatch.setattr(figures, "curves", lambda panels, **more: drawn.append(panels) or curves(panels, **more))
    evaluate_scoft.main(["report", str(folder)])
    text = (folder / "report.md").read_text()
    (lines,) = drawn[0].values()
    assert [step for step, *_ in lines["m"]] == [0, 100, 200, 300, 400]  # from the base model on
    assert "Differences" not in text
    row = next(line for line in text.splitlines() if line.startswith("| Korea | m |"))
    assert row.split("|")[4:7:2] == [" 200 ", " 300 "]
    assert (folder / "updates-korea.png").is_file()


@pytest.mark.parametrize(
    ("culture", "sha256", "place", "shown"),
    [
        ("korea", evaluate_scoft.Inception.usual, evaluate_scoft.Clip.default, {"28.06", "0.844"}),
        ("korea", "0" * 64, evaluate_scoft.Clip.default, {"0.844"}),
        ("korea", evaluate_scoft.Inception.usual, "clip", {"28.06"}),
        ("korea", "0" * 64, "clip", set()),
        ("veridia", evaluate_scoft.Inception.usual, evaluate_scoft.Clip.default, set()),
    ],
)
def test_the_papers_numbers_stand_beside_those_of_the_same_encoders_alone(tmp_path, culture, sha256, place, shown):
    """Those of its culture, by metric; for another Inception or CLIP, or another culture, there are none."""
    encoders = {"inception": {"place": "x", "sha256": sha256}, "clip": {"place": place, "sha256": "0" * 64}}
    folder = with_results(tmp_path / "x", culture, {"base": 40}, features="inception", encoders=encoders)
    record = json.loads((folder / "results.json").read_text())
    record["scores"].append(record["scores"][0] | {"metric": "clip_score"})
    (folder / "results.json").write_text(json.dumps(record))
    run("report", folder, [])
    text = (folder / "report.md").read_text()
    assert {number for number in ("28.06", "0.844") if number in text} == shown
    assert ("The paper's Table 4" in text) == bool(shown)


def test_several_cultures_have_their_mean(tmp_path):
    """Two folders make the mean over cultures and a table of each."""
    folders = [
        with_results(tmp_path / culture, culture, {"base": base, "mpc": mpc})
        for culture, base, mpc in (("korea", 30, 20), ("china", 20, 14))
    ]
    evaluate_scoft.main(["report", *map(str, folders), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out/report.md").read_text()
    assert re.search(r"Table 1.*\n\n\|  \| base \| mpc \|\n.*\n\| KID × 10³ .* ↓ \| 25\.00 .*\| 17\.00 ", text)
    assert "### Korea" in text and "### China" in text
    assert re.search(r"Mean over cultures\n\n\|  \| mpc - base \|\n.*\n\| KID .* \| \*\*-8\.00 ", text)
    with pytest.raises(DataError, match="is not the only folder of korea"):
        evaluate_scoft.main(["report", str(folders[0]), str(shutil.copytree(folders[0], tmp_path / "again"))])
    other = json.loads((folders[1] / "results.json").read_text())
    for change, message in (
        ({"neighbours": 3}, "neighbours 3 in one, 5 in"),
        ({"scores": other["scores"][:1]}, "no kid of mpc"),
    ):
        (folders[1] / "results.json").write_text(json.dumps(other | change))
        with pytest.raises(DataError, match=message):
            evaluate_scoft.main(["report", *map(str, folders)])
    for row in other["scores"]:
        row["replicates"]["seeds"] = row["replicates"]["seeds"][:3]
    (folders[1] / "results.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="have no mean: .*with the same flags"):
        evaluate_scoft.main(["report", *map(str, folders), "--output", str(tmp_path / "out")])


def test_the_loras_page_gets_the_numbers(copy, lora, tmp_path, tiny_pipeline, photographs):
    """report --card puts a table, a grid and a model-index that huggingface_hub reads back onto the page."""
    shutil.copytree(lora, tmp_path / "lora")
    evaluate_scoft.main(["report", str(copy), "--card", str(tmp_path / "lora"), "--method", "m"])
    card = huggingface_hub.ModelCard.load(tmp_path / "lora/README.md")
    estimate = evaluate_scoft.read_results(copy).estimates["kid", "prompts", "m"]
    (kid,) = [result for result in card.data.eval_results if result.metric_type == "kid"]
    assert kid.metric_value == pytest.approx(estimate.value, abs=1e-3) and kid.task_type == "text-to-image"
    shown = evaluate_scoft.shown(estimate, "kid").replace("[", "\\[").replace("]", "\\]")
    assert shown in card.text and "images/evaluation.png" in card.text and "No numbers were taken" not in card.text
    assert Image.open(tmp_path / "lora/images/evaluation.png").height > 100
    assert "nearest-" not in card.text and not list((tmp_path / "lora").rglob("nearest-*"))
    longer = ["--max_train_steps", "3", "--resume_from_checkpoint", "latest"]
    train_scoft_lora.main([*training(tiny_pipeline, tmp_path / "lora", photographs), *longer])
    assert "No numbers were taken" in (tmp_path / "lora/README.md").read_text()  # they were of another LoRA
    with pytest.raises(
        DataError, match="--method mpc was not drawn by the LoRA in .*; the LoRAs scored are m. If it was"
    ):
        evaluate_scoft.main(["report", str(copy), "--card", str(tmp_path / "lora"), "--method", "mpc"])


def test_a_card_that_is_none_leaves_no_trace(tmp_path):
    """A --card that is no LoRA folder, as a slip of the pen makes it, is found before anything is written."""
    folder = with_results(tmp_path / "x", "korea", {"base": 40})
    with pytest.raises(DataError, match="--card .*typo is no LoRA folder of train_scoft_lora.py"):
        run("report", folder, ["--card", str(tmp_path / "typo"), "--method", "m"])
    assert not (tmp_path / "typo").exists() and not (folder / "report.md").exists()


def test_a_folder_without_scores_is_named(tmp_path):
    with pytest.raises(DataError, match="results.json cannot be read .* Score the folder: it is the stage before"):
        evaluate_scoft.main(["report", str(tmp_path)])

"""benchmarks/claims.py: it trains, draws and scores each arm once, and pairs what comes out by training seed."""

import json

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evaluate_scoft
from benchmarks import claims, claims_data, claims_page
from scoft.lora_folder import LORA_FILE, write_safetensors


@pytest.fixture
def line(tmp_path, monkeypatch):
    """The command line of a study whose arms are one update and two."""
    arms = {
        "one": "--method finetune --max_train_steps 1",
        "two": "--method mpc --max_train_steps 2 --dataset swapped",
    }
    monkeypatch.setattr(
        claims, "STUDIES", {"tiny": claims.Study("Does an update matter?", arms, sets=tuple(claims.METRICS))}
    )
    monkeypatch.setattr(claims, "WORK", tmp_path / "work")
    monkeypatch.setattr(claims, "TRAINING", "--num_validation_images 0 --report_to none".split())
    prompts, general = tmp_path / "prompts.txt", tmp_path / "general.txt"
    prompts.write_text("Photo of a traditional building, in {}\nPhoto of a bowl of food, in {}\n")
    general.write_text("Photo of a building\nPhoto of a bowl of food\n")
    drawing = f"--num_images 3 --num_captions 2 --prompts {prompts} --general_prompts {general}"
    monkeypatch.setattr(claims, "DRAWING", drawing.split())
    output = ["--output", str(tmp_path / "out/claims.json"), "--page", str(tmp_path / "claims.md")]
    return ["tiny", "--cultures", "veridia", "--seeds", "3", *output]


def test_a_cell_goes_from_training_to_the_page_once(line, tmp_path, monkeypatch):
    """By the true commands; the same again runs nothing, other flags run anew, and the page names what it is of."""
    claims.main(line)
    runs = json.loads((tmp_path / "out/claims.json").read_text())["tiny"]
    assert [each["arm"] for each in runs] == ["base", "one", "two"]
    assert all({"kid:prompts", "judge/right:prompts"} <= each["numbers"].keys() for each in runs)
    assert len({each["lora_sha256"] for each in runs}) == 3 and runs[0]["lora_sha256"] is None
    arguments = [json.loads(file.read_text()) for file in (tmp_path / "work/loras").rglob("training_args.json")]
    seen = sorted((each["arguments"]["max_train_steps"], each["arguments"]["dataset"]) for each in arguments)
    assert seen == [(1, "pocket"), (2, str(tmp_path / "work/data/swapped"))]
    text = (tmp_path / "claims.md").read_text()
    assert "## Does an update matter?" in text and "veridia; training seeds 3" in text and "| two - one |" in text

    started = []
    monkeypatch.setattr(claims, "cell", lambda study, **at: started.append(at) or runs)
    claims.main(line)
    assert not started and (tmp_path / "claims.md").read_text() == text
    monkeypatch.setattr(claims, "TRAINING", [*claims.TRAINING, "--rank", "2"])
    claims.main([*line, "--report"])
    assert not started
    claims.main(line)
    assert started == [{"culture": "veridia", "seed": 3}]


def test_a_failed_run_ends_the_benchmark(line, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "TRAINING", [*claims.TRAINING, "--caption_column", "absent"])
    with pytest.raises(SystemExit, match="this run failed, see above: .*train_scoft_lora.py .*--max_train_steps 1"):
        claims.main(line)
    assert not (tmp_path / "out").exists()


def test_differences_are_paired_by_seed_and_cultures_shared():
    """By hand: seeds differ by 1 and 3, each the mean of two cultures: 2 -+ 12.706; seeds of one arm stay away."""

    def run(arm, seed, culture, value):
        return {"arm": arm, "seed": seed, "culture": culture, "numbers": {"kid:prompts": value}}

    runs = [run("a", seed, culture, 10.0 * seed) for seed in (1, 2, 3) for culture in ("x", "y")]
    runs += [run("b", 1, "x", 10.5), run("b", 1, "y", 11.5), run("b", 2, "x", 22.0), run("b", 2, "y", 24.0)]
    assert claims_page.difference(runs, "kid:prompts", "b", "a") == pytest.approx(
        (2, 2 - 12.7062, 2 + 12.7062), abs=1e-3
    )
    runs.append(run("c", 3, "x", 31.0))
    assert claims_page.difference(runs, "kid:prompts", "c", "a") == (1.0,)
    assert claims_page.difference(runs, "kid:prompts", "c", "b") == ()
    assert claims_page.difference(runs, "div:train", "b", "a") == ()


def test_no_study_by_that_name(capsys):
    with pytest.raises(SystemExit):
        claims.main(["table2"])
    assert "there is no study table2; there are table1" in capsys.readouterr().err


def test_every_arm_of_every_study_is_a_command_line_that_differs():
    """Flags that the training script would refuse, or that change nothing, would be found after hours."""
    for study in claims.STUDIES.values():
        settings = claims.settings_of(study, culture="veridia", seed=0)
        assert len(set(settings.values())) == len(study.arms) >= 2
        loras = [f"{arm}=x" for arm in settings]
        assert evaluate_scoft.parse_args(["generate", "x", "--dataset", "x", "--culture", "x", "--lora", *loras])


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """The rows of Veridia as they are and of each variant, by name, with images as their files' bytes."""
    folder = tmp_path_factory.mktemp("variants")
    places = {name: claims_data.make_variant(name, folder) for name in claims_data.VARIANTS}
    return {name: raw_rows(place) for name, place in places.items()} | {"": raw_rows(claims_data.POCKET / "ccub")}


def raw_rows(place) -> list[dict]:
    (file,) = place.glob("veridia/train-*.parquet")
    rows = claims_data.with_images(datasets.Dataset.from_parquet(str(file)), decode=False)
    images = [row["image"]["bytes"] for row in rows]
    negatives = [[each["bytes"] for each in row["negatives"]] for row in rows]
    return [row | {"image": x, "negatives": others} for row, x, others in zip(rows, images, negatives)]


def test_the_controls_exchange_what_they_say(variants):
    """Swapped: a negative is the photograph and the photograph the negative; others: none is of its own row."""
    true = {row["image"]: row for row in variants[""] if row["negatives"]}
    assert len(variants["swapped"]) == len(true) > 100
    for row in variants["swapped"]:
        (photograph,) = row["negatives"]
        assert row["image"] == true[photograph]["negatives"][0] and row["text"] == true[photograph]["text"]
    for row, was in zip(variants["others"], variants[""], strict=True):
        assert row["image"] == was["image"] and not set(row["negatives"]) & set(was["negatives"])


def test_five_categories_and_bare_captions(variants, tmp_path):
    assert {row["category"] for row in variants["five"]} == {0, 1, 2, 3, 8}
    assert len(claims_data.prompts_of_the_other_four(tmp_path).read_text().splitlines()) >= 4
    assert len(variants["five"]) == sum(row["category"] in {0, 1, 2, 3, 8} for row in variants[""])
    assert {row["text"] for row in variants["bare"] if row["category"] == 3} == {"Photo of a building, in Veridia"}
    assert [row["image"] for row in variants["bare"]] == [row["image"] for row in variants[""]]


def test_two_loras_joined_add_what_both_add(tmp_path):
    """B A of the joined is the sum of both, of other ranks too."""
    generator = torch.Generator().manual_seed(0)
    deltas = []
    for name, rank in (("one", 2), ("two", 3)):
        low = {"unet.x.lora_A.weight": torch.randn(rank, 5, generator=generator)}
        low["unet.x.lora_B.weight"] = torch.randn(4, rank, generator=generator)
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / LORA_FILE, low, metadata={})
        deltas.append(low["unet.x.lora_B.weight"] @ low["unet.x.lora_A.weight"])
    joined = load_file(
        claims_data.join_loras(tmp_path / "one", tmp_path / "two", folder=tmp_path / "both") / LORA_FILE
    )
    found = joined["unet.x.lora_B.weight"] @ joined["unet.x.lora_A.weight"]
    assert torch.allclose(found, sum(deltas), atol=1e-6) and not torch.allclose(found, deltas[0], atol=1e-2)


def test_the_figure_is_dark_where_an_interval_is_without_zero():
    """And a record without any study makes a figure too."""
    sections = {name: study.section for name, study in claims.STUDIES.items()}

    def figure(step):
        runs = [
            {"arm": arm, "seed": seed, "culture": "x", "numbers": {"kid:prompts": step * at + 0.1 * seed * at % 0.3}}
            for at, arm in enumerate(("m", "finetune", "mpc"))
            for seed in (1, 2, 3)
        ]
        return np.asarray(claims_page.draw({"table1": runs}, sections))[..., :3].astype(int)

    def blue(pixels):
        return int((pixels[..., 2] - pixels[..., 0] > 60).sum())

    assert blue(figure(1.0)) > 50 and blue(figure(0.0)) == 0
    assert claims_page.draw({}, sections).width == 1200


def test_a_study_of_others_draws_each_culture_from_the_loras_of_one(tmp_path, monkeypatch):
    """Their numbers stand under their roles, and the last arm's LoRA is joined with the next culture's of its seed."""
    monkeypatch.setattr(claims, "WORK", tmp_path)
    drawn = []

    def train(flags, *, culture, seed):
        folder = tmp_path / f"{culture}-{seed}-{flags.split()[-1]}"
        folder.mkdir(exist_ok=True)
        (folder / LORA_FILE).write_text(folder.name)
        return folder

    def join(*loras, folder):
        folder.mkdir(parents=True)
        (folder / LORA_FILE).write_text(" and ".join(lora.name for lora in loras))
        return folder

    def score(study, loras, *, culture, folder):
        drawn.append((culture, folder))
        return {
            arm: {"judge/right:prompts": f"{arm} of {culture}", "kid:prompts": culture} for arm in ("base", *loras)
        }

    for name, stub in (("train", train), ("join_loras", join), ("score", score)):
        monkeypatch.setattr(claims, name, stub)
    runs = claims.cell(claims.STUDIES["harm"], culture="corallia", seed=4)
    by_arm = {each["arm"]: each for each in runs}
    assert list(by_arm) == ["base", "finetune", "m", "mpc", "both"]
    assert by_arm["both"]["numbers"] == {
        "judge/right:prompts": "both of corallia",
        "kid:prompts": "corallia",
        "judge/right:next": "both of veridia",
        "judge/right:third": "both of ochria",
        "judge/right:azuria": "both of azuria",
    }
    assert len(set(drawn)) == 4
    (joined,) = (tmp_path / "both").glob(f"*/{LORA_FILE}")
    assert joined.read_text() == "corallia-4-mpc and veridia-4-mpc"
    assert claims.is_there(runs, claims.STUDIES["harm"], culture="corallia", seed=4)
    assert claims.STUDIES["harm"].section.pairs[-1] == ("both", "mpc")

"""Correctors among the methods: at the LoRAs' noise, gated, alone and with a LoRA; refused where they do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import evaluate_scoft
import tiny
from evaluation import pictures_of, rows_of, run
from scoft.corrector.callback import Corrector
from scoft.corrector.preference import ATTENTION, Preference, layers_of, sample_of
from scoft.errors import DataError
from scoft.evaluate import generate
from scoft.evaluate.correctors import find_correctors
from scoft.pictures import read_pictures


@pytest.fixture(scope="module")
def corrector(tiny_pipeline, tmp_path_factory):
    """The folder of one that moves pictures much."""
    unet = StableDiffusionPipeline.from_pretrained(tiny_pipeline).unet
    with tiny.seeded(0):
        preference = Preference(
            culture="veridia",
            words=["Veridia"],
            base_model=str(tiny_pipeline),
            base_weights=sample_of(unet),
            layers=layers_of(unet, ATTENTION),
        )
        for parameter in preference.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("corrector")
    Corrector(preference).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(words, lora, corrector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corrected") / "veridia"
    flags = [word for word in words["generate"] if word != "--checkpoints"]
    flags += ["--num_images", "1", "--corrector", f"c={corrector}", f"m={corrector}", "--lora", f"plain={lora}"]
    run("generate", folder, flags)
    return folder


def test_a_corrector_is_a_method_at_the_loras_noise(drawn, corrector):
    rows = rows_of(drawn)
    assert list(dict.fromkeys(row["method"] for row in rows)) == ["base", "m", "plain", "c"]
    seeds = {method: [row["seed"] for row in rows if row["method"] == method] for method in ("base", "m", "c")}
    assert seeds["base"] == seeds["m"] == seeds["c"]
    of = {row["method"]: row for row in rows}
    assert of["c"]["corrector"] == of["m"]["corrector"] == str(corrector) and of["base"]["corrector"] is None
    assert of["c"]["lora"] is None and of["m"]["lora"] == of["plain"]["lora"]
    found = find_correctors({"x": str(corrector)}, culture="veridia", cache_dir=None)
    assert of["c"]["corrector_key"] == found["x"].key


def test_it_acts_on_prompts_of_the_culture_alone(drawn):
    pictures = pictures_of(drawn)

    def same(method, other, of):
        names = [name for name in pictures if name.startswith(f"images/{method}/{of}-")]
        assert names
        return {pictures[name] == pictures[name.replace(f"/{method}/", f"/{other}/")] for name in names}

    assert same("c", "base", "general") == {True} and same("c", "base", "prompts") == {False}
    assert same("m", "plain", "general") == {True} and same("m", "plain", "prompts") == {False}
    assert same("m", "c", "prompts") == {False}


def test_other_knobs_are_another_corrector(drawn, words, lora, corrector, tmp_path):
    """Its pictures are drawn again, and no others."""
    copy = shutil.copytree(corrector, tmp_path / "corrector")
    config = json.loads((copy / "config.json").read_text()) | {"strength": 1.0}
    (copy / "config.json").write_text(json.dumps(config))
    folder = shutil.copytree(drawn, tmp_path / "drawn")
    before = pictures_of(folder)
    flags = [word for word in words["generate"] if word != "--checkpoints"]
    flags += ["--num_images", "1", "--corrector", f"c={copy}", f"m={corrector}", "--lora", f"plain={lora}"]
    run("generate", folder, flags)
    after = pictures_of(folder)
    changed = {name.split("/")[1] for name in after if after[name] != before[name]}
    assert changed == {"c"}


def test_pictures_of_before_keep_their_keys():
    """A manifest that was written before there were correctors names its pictures by the same keys."""
    folder = Path(evaluate_scoft.__file__).parent / "pocket/pictures"
    rows = rows_of(folder)
    assert rows and all("corrector" not in row for row in rows)
    assert [each.key for each in read_pictures(folder)] == [row["key"] for row in rows]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"culture": "ochria"}, "^corrector .* is of ochria, not of veridia"),
        ({"base_model": "another/base"}, "^corrector .* corrects another/base, not "),
    ],
)
def test_one_that_does_not_fit_is_named_before_models_load(corrector, words, tmp_path, monkeypatch, change, said):
    copy = shutil.copytree(corrector, tmp_path / "corrector")
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("scoft.evaluate.generate.drawing_pipeline", None)
    with pytest.raises(DataError, match=said):
        run("generate", tmp_path / "out", [*words["generate"], "--corrector", f"c={copy}"])


def without_loras(flags: list[str]) -> list[str]:
    """Flags of `generate` that ask for the base model and what more is given behind them."""
    at = flags.index("--lora")
    return [flag for flag in flags[:at] + flags[at + 2 :] if flag != "--checkpoints"]


def test_one_that_is_replaced_while_the_base_loads_is_named(corrector, words, tmp_path, monkeypatch):
    """Else pictures would be kept under the key of another."""
    copy = shutil.copytree(corrector, tmp_path / "corrector")
    load = generate.drawing_pipeline

    def replacing(*args, **options):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"strength": 1.0}))
        return load(*args, **options)

    monkeypatch.setattr(generate, "drawing_pipeline", replacing)
    with pytest.raises(DataError, match="^corrector .* was replaced since; run the same again"):
        run("generate", tmp_path / "out", [*without_loras(words["generate"]), "--corrector", f"c={copy}"])
    assert not (tmp_path / "out/images/c").exists()


def test_a_base_of_the_same_name_with_other_weights_is_named(corrector, words, tiny_pipeline, tmp_path):
    """A fiftieth more or less is another base model; what 16 bits round off is not, see test_corrector.py."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter *= 1.02
    pipe.save_pretrained(tmp_path / tiny_pipeline.name)
    flags = [*without_loras(words["generate"]), "--pretrained_model_name_or_path", str(tmp_path / tiny_pipeline.name)]
    with pytest.raises(DataError, match="corrects .*, and the pipeline's UNet has other weights. Load that base"):
        run("generate", tmp_path / "out", [*flags, "--corrector", f"c={corrector}"])
    assert not (tmp_path / "out/images").exists()


def test_pictures_of_two_correctors_under_one_name_are_not_scored(drawn, words, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "drawn")
    rows = rows_of(folder)
    next(row for row in rows if row["method"] == "c")["corrector_key"] = "of another"
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="pictures of c are of more than one corrector; finish them: run generate"):
        run("score", folder, words["score"])

"""correct_scoft.py: fitted, tried, drawn with, gone on from, and pushed."""

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import correct_scoft
import tiny
from contents import files_of
from scoft.base_model import StableDiffusion
from scoft.correct.fit import CHECKPOINT_FILE, LEVELS, METRICS_FILE, Fit, Fitting, rewards_of_held_out
from scoft.correct.page import read_fit_record
from scoft.correct.pairs import Pairs, Split
from scoft.corrector.callback import Corrector, is_named
from scoft.corrector.preference import KINDS, NEGATIVE, POSITIVE, Preference, layers_of, sample_of
from scoft.cultures import CULTURES, in_words
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.errors import DataError
from scoft.weights import weights_key


CPU = torch.device("cpu")


def words_for(pipeline, dataset, folder, **flags):
    """The command line of a short fit."""
    flags = {
        "pretrained_model_name_or_path": pipeline,
        "dataset": dataset,
        "culture": "veridia",
        "output_dir": folder,
        "resolution": 16,
        "rank": 4,
        "held_out_share": 0.34,
        "max_train_steps": 6,
        "train_batch_size": 2,
        "checkpointing_steps": 2,
        "num_validation_images": 1,
        "validation_inference_steps": 2,
    } | flags
    return ["fit", *(f"--{flag}={value}" for flag, value in flags.items())]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, tiny_pipeline, tiny_ccub):
    """The folder of a short fit, and its command line."""
    folder = tmp_path_factory.mktemp("fitted") / "scoft-veridia-corrector"
    argv = words_for(tiny_pipeline, tiny_ccub, folder)
    correct_scoft.main(argv)
    return folder, argv


@pytest.fixture
def again(fitted, tmp_path):
    """again(*more words) is the same fit in a copy of its folder, given once more."""
    folder, argv = fitted
    copy = shutil.copytree(folder, tmp_path / folder.name)

    def run(*more):
        correct_scoft.main([word.replace(str(folder), str(copy)) for word in argv] + list(more))
        return copy

    run.folder = copy
    return run


RESUME = "--resume_from_checkpoint=latest"


# ---------------------------------------------------------------------------------------------------------------------
# fit
# ---------------------------------------------------------------------------------------------------------------------


def test_a_fit_leaves_a_corrector_that_a_stock_pipeline_takes(fitted, tiny_pipeline):
    folder, _ = fitted
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    corrector = Corrector.from_pretrained(folder, pipe, culture="veridia")
    options = {"num_inference_steps": 3, "output_type": "latent"}
    pictures = [
        pipe("a house, in Veridia", generator=torch.Generator().manual_seed(0), callback_on_step_end=each, **options)
        for each in (None, corrector)
    ]
    assert not torch.equal(pictures[0].images, pictures[1].images)
    with Image.open(folder / "images/before_after.png") as image:
        assert image.width > 128 and image.height > 4 * 128
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0].keys() == {"step", "loss", "loss/positive", "grad_norm", "lr"}
    assert lines[0]["lr"] == 1e-3 and lines[-1]["lr"] < 1e-4


def test_its_page_tells_what_was_done(fitted):
    folder, _ = fitted
    page, record = (folder / "README.md").read_text(), read_fit_record(folder)
    assert "# Veridia: a corrector" in page and "| updates | 6, 2 photographs each |" in page
    assert 'Corrector.from_pretrained("scoft-veridia-corrector", pipe)' in page
    assert page.count("\n| 300 | ") == 1 and record.accuracy["timestep"] == [300, 500, 700, 900]
    assert str(folder.parent) not in page  # where it lies on a machine is nobody's business
    assert record.rows == 6 and record.negatives == 12


def test_a_fit_leaves_the_base_models_files_and_weights(tiny_ccub, tmp_path, monkeypatch):
    pipeline = tiny.build_pipeline(tmp_path / "pipeline")
    files, seen = files_of(pipeline), []
    load = StableDiffusion.load

    def watched(*args, **options):
        model = load(*args, **options)
        seen.append((model.unet, weights_key(model.unet)))
        return model

    monkeypatch.setattr(StableDiffusion, "load", watched)
    correct_scoft.main(words_for(pipeline, tiny_ccub, tmp_path / "out"))
    assert files_of(pipeline) == files
    ((unet, before),) = seen
    assert weights_key(unet) == before and not any(module._forward_hooks for module in unet.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fits_and_resumes_bit_for_bit(tiny_pipeline, tiny_ccub, tmp_path, kind, monkeypatch):
    """A fit that is killed between two checkpoints ends as one that was not."""
    flags = {"kind": kind, "num_validation_images": 0, "negative_weight": 0.5, "pair_weight": 0.5, "snr_gamma": 5}
    correct_scoft.main(words_for(tiny_pipeline, tiny_ccub, tmp_path / "whole", **flags))
    argv = words_for(tiny_pipeline, tiny_ccub, tmp_path / "killed", **flags)
    update = Fit.update

    def killed(fit):
        if fit.step == 3:
            raise KeyboardInterrupt
        return update(fit)

    monkeypatch.setattr(Fit, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        correct_scoft.main(argv)
    monkeypatch.setattr(Fit, "update", update)
    correct_scoft.main([*argv, RESUME])
    for name in ("diffusion_pytorch_model.safetensors", CHECKPOINT_FILE, METRICS_FILE, "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_a_torn_line_of_metrics_is_written_again(again):
    metrics = again.folder / METRICS_FILE
    before = metrics.read_text()
    metrics.write_text(before + '{"step": 7, "lo')
    again(RESUME)
    assert metrics.read_text() == before


def test_another_fits_checkpoint_is_refused(again):
    with pytest.raises(DataError, match="checkpoint.safetensors is of a fit with other flags or data"):
        again(RESUME, "--learning_rate=0.5")


def test_a_damaged_checkpoint_is_named(again):
    file = again.folder / CHECKPOINT_FILE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="^resume_from_checkpoint latest: .* cannot be read"):
        again(RESUME)


def test_knobs_may_differ_in_a_resumed_fit(again):
    assert again(RESUME, "--strength=2", "--stop=0.8").joinpath("config.json").exists()
    config = json.loads((again.folder / "config.json").read_text())
    assert config["strength"] == 2 and config["stop"] == 0.8


def test_a_folder_in_use_is_not_written_over(again):
    with pytest.raises(DataError, match="output_dir .* is not empty.*--resume_from_checkpoint latest"):
        again()


def test_a_judges_numbers_stand_on_the_page(tiny_pipeline, tiny_ccub, tmp_path):
    judge = tmp_path / "judge.py"
    judge.write_text("def rate(images, prompts):\n    return {'images': len(images), 'named': len(set(prompts))}\n")
    argv = words_for(tiny_pipeline, tiny_ccub, tmp_path / "out", validation_judge=f"{judge}:rate", max_train_steps=1)
    correct_scoft.main([*argv, "--num_validation_images=3"])
    assert read_fit_record(tmp_path / "out").judged.corrected == {"images": 6, "named": 2}
    assert "|  | base | corrected |\n|---|---|---|\n| images | 6 | 6 |" in (tmp_path / "out/README.md").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# What is learnt
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory):
    return tiny.build_dataset(tmp_path_factory.mktemp("many"), rows=36, negatives=2)


WEIGHTS = {"negative_weight": 0.0, "pair_weight": 0.0, "beta": 100.0}


def build_fit(pipeline, dataset, folder, *, kind="adapters", updates=60, **fitting):
    place = {"revision": None, "variant": None, "cache_dir": None, "prediction_type": None}
    model = StableDiffusion.load(str(pipeline), **place, dtype=torch.float32)
    rows = read_dataset(
        find_dataset(str(dataset), culture="veridia"), culture="veridia", needs_blip=False, needs_negatives=True
    )
    pairs = Pairs.of(rows, Split.of(rows, seed=0, share=0.5), model=model, resolution=16, device=CPU)
    with tiny.seeded(0):
        preference = Preference(
            kind=kind,
            culture="veridia",
            words=["Veridia"],
            base_weights=sample_of(model.unet),
            layers=layers_of(model.unet, ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"]),
            rank=8,
            width=model.caption_shape[1] if kind == "tokens" else model.unet.config.block_out_channels[-1],
        )
    known = {"seed": 0, "batch_size": 4, "learning_rate": 0.02, "max_grad_norm": 1.0, "snr_gamma": None}
    fitting = Fitting(updates=updates, **known | WEIGHTS | fitting)
    folder.mkdir()
    return Fit(preference, model=model, pairs=pairs, fitting=fitting, folder=folder, key="test")


def test_before_the_fit_nothing_is_told_apart(tiny_pipeline, many_rows, tmp_path):
    """Both sides are one then; what a fit learns, test_pocket_corrector.py sees. No held-out row is fitted on."""
    fit = build_fit(tiny_pipeline, many_rows, tmp_path / "fit")
    with torch.no_grad():
        rewards = [pair for level in LEVELS for pair in rewards_of_held_out(fit.preference, fit.pairs, level, seed=0)]
    assert len(rewards) == 18 * len(LEVELS)
    assert all(each.abs().max() < 1e-5 for pair in rewards for each in pair)  # but for rounding, by place in a batch
    split = fit.pairs.split
    assert len(split.held_out) == 18 and not {*split.held_out} & {*split.fitted, *split.paired}


def test_each_side_learns_to_denoise_its_own(tiny_pipeline, many_rows, tmp_path):
    fit = build_fit(tiny_pipeline, many_rows, tmp_path / "fit", updates=30, negative_weight=1.0)
    first = [fit.losses(update) for update in range(8)]
    fit.run(checkpointing_steps=100)
    last = [fit.losses(update) for update in range(8)]
    for side in ("positive", "negative"):
        before, after = (sum(float(terms[side].detach()) for terms in each) for each in (first, last))
        assert after < before


@pytest.mark.parametrize("kind", ["adapters", "tokens"])
def test_unless_it_is_fitted_the_negative_side_stays_as_it_was(tiny_pipeline, many_rows, tmp_path, kind):
    """Of adapters that is the base model itself."""
    fit = build_fit(tiny_pipeline, many_rows, tmp_path / "fit", kind=kind, updates=3)
    before = {name: each.detach().clone() for name, each in fit.parameters.items()}
    fit.run(checkpointing_steps=100)
    for name, each in fit.parameters.items():
        assert not torch.equal(each[POSITIVE], before[name][POSITIVE])
        assert torch.equal(each[NEGATIVE], before[name][NEGATIVE])
    if kind == "adapters":
        batch = fit.pairs.batch(0, size=2, seed=0, of="photographs")
        with torch.no_grad():
            _, negative = fit.preference.rule.both(fit.model.unet, batch.z, batch.t, batch.c)
            base = fit.model.unet(batch.z, batch.t, batch.c).sample
        torch.testing.assert_close(negative, base)


def test_no_draw_has_timestep_0_and_pairs_share_their_noise(tiny_pipeline, many_rows, tmp_path):
    pairs = build_fit(tiny_pipeline, many_rows, tmp_path / "fit").pairs
    batches = {of: pairs.batch(3, size=64, seed=0, of=of) for of in ("photographs", "negatives", "their photographs")}
    assert all(1 <= int(each.t.min()) for each in batches.values())
    negatives, theirs = batches["negatives"], batches["their photographs"]
    for field in ("t", "c", "target"):
        assert torch.equal(getattr(negatives, field), getattr(theirs, field))
    assert not torch.equal(negatives.z, theirs.z)
    assert not torch.equal(batches["photographs"].target, theirs.target)
    one = pairs.batch(3, size=64, seed=0, of="negatives")
    assert torch.equal(one.z, negatives.z) and not torch.equal(
        one.z, pairs.batch(4, size=64, seed=0, of="negatives").z
    )


def test_a_loss_that_is_not_finite_ends_the_fit_before_its_checkpoint(tiny_pipeline, many_rows, tmp_path):
    fit = build_fit(tiny_pipeline, many_rows, tmp_path / "fit")
    with torch.no_grad():
        next(fit.preference.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="update 1: .*not finite"):
        fit.run(checkpointing_steps=1)
    assert not (tmp_path / "fit" / CHECKPOINT_FILE).exists()


def test_v_prediction_is_fitted_by_its_own_target(tiny_pipeline_v, many_rows, tmp_path):
    fit = build_fit(tiny_pipeline_v, many_rows, tmp_path / "fit", updates=2)
    batch = fit.pairs.batch(0, size=2, seed=0, of="negatives")
    assert not torch.allclose(batch.target.std(), torch.tensor(1.0), atol=1e-3)
    fit.run(checkpointing_steps=2)
    assert fit.step == 2


# ---------------------------------------------------------------------------------------------------------------------
# draw, and the Hub
# ---------------------------------------------------------------------------------------------------------------------


def test_draw_writes_pictures_beside_each_other(fitted, tmp_path, caplog):
    folder, _ = fitted
    out = tmp_path / "drawn"
    prompts = ["a house, in Veridia", "a house"]
    flags = [f"--output_dir={out}", "--num_images=2", "--num_inference_steps=3", "--seed=5", "--strength=8"]
    correct_scoft.main(["draw", str(folder), *flags, "--prompts", *prompts])
    assert {file.name for file in out.glob("*.png")} == {"before_after.png"} | {
        f"{of}-{p:03d}-{i:03d}.png" for of in ("base", "corrected") for p in range(2) for i in range(2)
    }
    same = [
        (out / f"base-{p:03d}-000.png").read_bytes() == (out / f"corrected-{p:03d}-000.png").read_bytes()
        for p in range(2)
    ]
    assert same == [False, True]
    assert "Not corrected, since none of Veridia stands in it: a house" in caplog.text


def test_draw_names_another_culture_and_another_base(fitted, tmp_path, tmp_path_factory):
    folder, _ = fitted
    with pytest.raises(DataError, match="^the corrector .* is of veridia, not of ochria"):
        correct_scoft.main(["draw", str(folder), "--culture=ochria"])
    other = tiny.build_pipeline(tmp_path_factory.mktemp("other"), seed=3)
    with pytest.raises(DataError, match="the pipeline's UNet has other weights"):
        flags = [f"--pretrained_model_name_or_path={other}", f"--output_dir={tmp_path / 'x'}"]
        correct_scoft.main(["draw", str(folder), "--culture=veridia", *flags])


def test_a_finished_fit_is_pushed_and_draws_the_same_from_the_hub(alice, again, tiny_pipeline, tmp_path):
    folder = again(RESUME, "--push_to_hub", "--hub_private_repo")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    options = {"num_inference_steps": 3, "output_type": "latent"}
    drawn = [
        pipe(
            "a house, in Veridia",
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=Corrector.from_pretrained(place, pipe, cache_dir=tmp_path / "cache"),
            **options,
        ).images
        for place in (folder, "alice/scoft-veridia-corrector")
    ]
    assert torch.equal(*drawn)
    assert 'Corrector.from_pretrained("alice/scoft-veridia-corrector", pipe)' in (folder / "README.md").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# Bad input, before models load
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_models(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(StableDiffusion, "load", refuse)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strength=-1"], "--strength is a number from 0 up, got -1"),
        (["--strength=nan"], "--strength is a number from 0 up, got nan"),
        (["--strength=inf"], "--strength is a number from 0 up, got inf"),
        (["--start=0.8", "--stop=0.5"], "--start 0.8 is to lie below --stop 0.5"),
        (["--cap=0"], "--cap is a positive number, got 0"),
        (["--held_out_share=1"], "--held_out_share is a number between 0 and 1, got 1"),
        (["--kind=lora"], "invalid choice: 'lora'"),
        (["--hub_model_id=x"], "--hub_model_id has no effect without --push_to_hub"),
    ],
)
def test_bad_flags_are_named(tiny_pipeline, tiny_ccub, tmp_path, no_models, capsys, words, said):
    with pytest.raises(SystemExit):
        correct_scoft.main([*words_for(tiny_pipeline, tiny_ccub, tmp_path / "out"), *words])
    assert said in capsys.readouterr().err


def test_fp16_is_refused_for_a_fit(tiny_pipeline, tiny_ccub, tmp_path, no_models):
    with pytest.raises(DataError, match="mixed_precision fp16 loses small gradients; fit with bf16"):
        correct_scoft.main(words_for(tiny_pipeline, tiny_ccub, tmp_path / "out", mixed_precision="fp16"))


def test_prompts_that_the_gate_would_hold_back_are_named(tiny_pipeline, tiny_ccub, tmp_path, no_models):
    with pytest.raises(DataError, match="words none of Hanok stands in the prompt 'Photo of a traditional building"):
        correct_scoft.main(words_for(tiny_pipeline, tiny_ccub, tmp_path / "out", words="Hanok"))


def test_several_processes_are_refused(tiny_pipeline, tiny_ccub, tmp_path, no_models, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        correct_scoft.main(words_for(tiny_pipeline, tiny_ccub, tmp_path / "out"))
    assert "--num_processes 1" in capsys.readouterr().err


def test_a_dataset_without_negatives_is_named_before_models_load(tiny_pipeline, tmp_path, no_models):
    bare = tiny.build_dataset(tmp_path / "bare", negatives=0)
    with pytest.raises(DataError, match="no row has a usable negative|negative"):
        correct_scoft.main(words_for(tiny_pipeline, bare, tmp_path / "out"))


def test_too_few_rows_to_hold_some_out_are_named(tiny_pipeline, tmp_path):
    few = tiny.build_dataset(tmp_path / "few", rows=1)
    with pytest.raises(DataError, match="held_out_share .* leaves 0 to be held out and 1 to be fitted on"):
        correct_scoft.main(words_for(tiny_pipeline, few, tmp_path / "out"))


def test_culture_words_are_names_and_adjectives():
    def words(*more):
        return correct_scoft.naming_of(correct_scoft.parse_args(["fit", "--dataset=x", *more]))

    assert words("--culture=korea") == ["Korea", "korean"]
    assert words("--culture=new-zealand") == ["New Zealand"]
    assert words("--culture=united_states") == ["usa", "america", "american", "United States"]
    for culture in CULTURES:  # the gate is open for what the fit itself draws
        prompts = in_words(correct_scoft.PROMPTS, culture)
        assert all(is_named(prompt, words(f"--culture={culture}")) for prompt in prompts)
    assert words("--culture=korea", "--words", "Hanok", "Seoul") == ["Hanok", "Seoul"]


def test_fitting_is_what_its_key_holds():
    """Each of its fields decides the result, so each is in the checkpoint's key."""
    assert {field.name for field in dataclasses.fields(Fitting)} == {
        "seed", "batch_size", "updates", "learning_rate", "max_grad_norm", "snr_gamma", "negative_weight",
        "pair_weight", "beta"
    }  # fmt: skip

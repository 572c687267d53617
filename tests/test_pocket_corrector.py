"""A corrector of the pocket world, where the truth is known: the judge, not the preference, says what it does."""

import dataclasses

import numpy as np
import pytest
import torch

import correct_scoft
from pocket import judge
from scoft.base_model import StableDiffusion
from scoft.correct.page import read_fit_record
from scoft.correct.pairs import Pairs
from scoft.correct.pictures import Drawing
from scoft.corrector.callback import Corrector
from scoft.corrector.preference import Preference
from scoft.dataset_source import ROOT
from scoft.weights import load_whole, weights_key


UPDATES = 40  # a sixth of the pocket's own number
BASE = ROOT / "pocket/models/stable-diffusion"
DRAWING = Drawing(
    prompts=[f"Photo of a {what}, in Veridia" for what in ("traditional building", "robe on a stand", "shrine")],
    images_per_prompt=4,
    seed=100,
    resolution=64,
    inference_steps=10,
    guidance_scale=4.5,
)


@pytest.fixture(scope="module")
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def fit_into(folder, *more):
    flags = ["--dataset=pocket", "--culture=veridia", f"--output_dir={folder}", "--num_validation_images=0"]
    correct_scoft.main(["fit", *flags, f"--max_train_steps={UPDATES}", *more])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, threads):
    folder = tmp_path_factory.mktemp("pocket") / "corrector"
    fit_into(folder)
    return folder


@pytest.fixture(scope="module")
def model(fitted):
    place = {"revision": None, "variant": None, "cache_dir": None, "prediction_type": None}
    return StableDiffusion.load(str(BASE), **place, dtype=torch.float32)


@pytest.fixture(scope="module")
def corrector(fitted):
    return Corrector(load_whole(Preference, fitted))


def said(pictures, name):
    """What the judge says of each picture alone, under a name."""
    prompts = [prompt for prompt, _ in DRAWING.jobs]
    return np.array([judge.rate([image], [prompt])[name] for image, prompt in zip(pictures, prompts, strict=True)])


def test_held_out_pairs_beat_shuffled_labels_at_each_level_of_noise(fitted, tmp_path, monkeypatch):
    """Those of a fit on rows of which every other one has its negative for a photograph, and the other way round."""
    of = Pairs.of

    def shuffled(*given, **options):
        pairs = of(*given, **options)
        for row in pairs.split.paired[::2]:
            negatives = pairs.negatives[row]
            pairs.photographs[row], negatives[0] = negatives[0], pairs.photographs[row]
        return pairs

    monkeypatch.setattr(Pairs, "of", shuffled)
    fit_into(tmp_path / "shuffled")
    true, by_chance = (read_fit_record(folder).accuracy for folder in (fitted, tmp_path / "shuffled"))
    assert true["timestep"] == [300, 500, 700, 900]
    for held_out, shuffled in zip(true["held_out"], by_chance["held_out"]):
        assert held_out > shuffled + 0.1, (true, by_chance)


def test_the_judge_sees_the_stereotype_go_and_the_truth_come(model, corrector):
    """By paired intervals of its log-odds, which exclude 0; and the base's weights are as they were."""
    before = weights_key(model.unet)
    base, corrected = (DRAWING.draw(model, corrector=each) for each in (None, corrector))
    for name, sign in (("right_log_odds", 1), ("stereotype_log_odds", -1)):
        low, high = judge.normal_interval(said(corrected, name) - said(base, name))
        assert (low > 0) if sign == 1 else (high < 0), (name, low, high)
    assert said(corrected, "stereotype").mean() <= said(base, "stereotype").mean() - 0.4
    assert weights_key(model.unet) == before


def test_the_control_shows_nothing_right(model, tmp_path):
    """Ascent on what tells photographs from negatives moves the pictures, and not to the truth."""
    fit_into(tmp_path / "features", "--kind=features")
    control = Corrector(load_whole(Preference, tmp_path / "features"))
    base, moved = (DRAWING.draw(model, corrector=each) for each in (None, control))
    assert not any(np.array_equal(a, b) for a, b in zip(base, moved))
    low, _ = judge.normal_interval(said(moved, "right") - said(base, "right"))
    assert low <= 0 and said(moved, "right").mean() < 0.2


def test_general_prompts_are_bit_identical(model, corrector):
    drawing = dataclasses.replace(DRAWING, prompts=["Photo of a building", "Photo of a shrine, in Azuria"])
    base, corrected = (drawing.draw(model, corrector=each) for each in (None, corrector))
    assert all(np.array_equal(a, b) for a, b in zip(base, corrected))

"""The stage negatives: each one can be drawn again alone, at its photograph's depth."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import prepare_ccub
from preparing import picture, prepare, words
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.files import Ledger
from scoft.prepare import caption, negatives
from scoft.prepare.negatives import (
    MIDAS_FILE,
    DepthEstimator,
    Drawing,
    DrawNegatives,
    NegativeGenerator,
    prompts_of_negatives,
    size_of_negative,
)
from scoft.prepare.photograph import Photograph
from scoft.prepare.tables import MIDAS
from scoft.weights import model_key


pytestmark = pytest.mark.usefixtures("threads_given_back")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (680, 512)),
        ((480, 640), (512, 680)),
        ((512, 512), (512, 512)),
        ((3000, 1000), (1024, 512)),
        ((100, 900), (512, 1024)),
        ((641, 640), (512, 512)),
    ],
)
def test_negatives_have_the_photographs_aspect(size, expected):
    """The short side is the resolution and the aspect the photograph's, at most 2 : 1, in multiples of 8."""
    assert size_of_negative(*size, short_side=512) == expected


@pytest.fixture
def generate(flags):
    args = prepare_ccub.parse_args(words(flags))
    stage = prepare_ccub.built(DrawNegatives, args)
    return NegativeGenerator(stage, device=torch.device("cpu"), dtype=torch.float32, cache_dir=None)


def test_any_negative_can_be_drawn_again_alone(generate):
    """A negative is its key's and its prompt's: alone it has the pixels that it has among others."""
    prompts = {"a": "a red house", "b": "a blue house", "c": "a blue house"}
    depth, pictures = generate(picture(0, (64, 32)), prompts)
    assert depth.size == (32, 16) and all(drawn.size == (32, 16) for drawn in pictures.values())
    for key, drawn in pictures.items():
        _, again = generate(picture(0, (64, 32)), {key: prompts[key]})
        assert np.abs(np.asarray(again[key], int) - np.asarray(drawn, int)).max() <= 1
    assert not np.array_equal(pictures["b"], pictures["c"])  # the noise is the key's


def test_the_depth_decides_what_is_drawn(generate):
    """Shown another depth, the ControlNet draws another picture of the same noise and prompt."""
    _, pictures = generate(picture(0), {"a": "a red house"})
    generate.depth = lambda photograph: Image.new("RGB", photograph.size)
    _, flat = generate(picture(0), {"a": "a red house"})
    assert np.abs(np.asarray(pictures["a"], int) - np.asarray(flat["a"], int)).mean() > 0.5


def test_the_depth_is_embedded_once_for_all_steps_and_nothing_else_changes(generate):
    """Each photograph's depth is embedded once, and the pictures are those of a ControlNet that does so each step."""
    controlnet, asked = generate.pipeline.controlnet, []
    once = controlnet.controlnet_cond_embedding
    once.embedding.register_forward_hook(lambda *_: asked.append(1))
    pictures = [generate(picture(seed), {"a": "a red house", "b": "a roof"})[1] for seed in (0, 1)]
    assert len(asked) == 2
    controlnet.controlnet_cond_embedding = once.embedding
    for seed, expected in enumerate(pictures):
        _, found = generate(picture(seed), {"a": "a red house", "b": "a roof"})
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert len(asked) == 2 + 2 * generate.draw.num_inference_steps


def test_what_the_safety_checker_blanks_is_drawn_again(generate, monkeypatch):
    """A blanked picture is drawn again from other noise; one that is always blanked is missing."""
    asked = []

    def check(image, device, dtype):
        asked.append(len(image))
        return image, [len(asked) == 1, True][-len(image) :]

    _, undisturbed = generate(picture(0), {"a": "a red house", "b": "a roof"})
    monkeypatch.setattr(generate.pipeline, "run_safety_checker", check)
    _, pictures = generate(picture(0), {"a": "a red house", "b": "a roof"})
    assert asked == [2, 2, 1, 1, 1] and len(asked) == caption.ATTEMPTS
    assert set(pictures) == {"a"} and not np.array_equal(pictures["a"], undisturbed["a"])


def test_blanked_negatives_are_left_out_and_recorded(copy, flags, made, monkeypatch):
    """The ledger tells which prompts were drawn for and which negatives are left; the dataset has these alone."""
    from diffusers import StableDiffusionControlNetPipeline

    def blank_the_last(self, image, device, dtype):
        return image, [False] * (len(image) - 1) + [True]

    monkeypatch.setattr(StableDiffusionControlNetPipeline, "run_safety_checker", blank_the_last)
    monkeypatch.setattr(negatives, "ATTEMPTS", 2)
    prepare(flags, output=copy, seed=1)
    entries = Ledger(copy / "korea" / "negatives.jsonl").read()
    new = [entry for key, entry in entries.items() if key not in Ledger(made / "korea" / "negatives.jsonl").read()]
    assert len(new) == 6
    assert all(len(entry["prompts"]) == 2 and entry["negatives"] == list(entry["prompts"])[:1] for entry in new)
    source = find_dataset(str(copy), culture="korea")
    dataset = read_dataset(
        source, culture="korea", needs_blip=True, needs_negatives=True, cache_dir=copy.parent / "cache"
    )
    assert dataset.num_negatives == [1] * 6


def test_prompts_are_the_captions_in_turn_with_the_suffix(flags):
    """Each negative has a naive caption with the culture, or with --prompt_suffix, which may be empty."""
    args = prepare_ccub.parse_args(words(flags | {"culture": "united_states"}))
    assert prepare_ccub.built(DrawNegatives, args).suffix("united_states") == "in the United States"
    plain = prepare_ccub.parse_args(words(flags | {"prompt_suffix": ""}))
    assert prepare_ccub.built(DrawNegatives, plain).suffix("korea") == ""
    drawing = Drawing(
        base_model="a", controlnet="b", depth_model="c", resolution=16, num_inference_steps=2, guidance_scale=7.5,
        precision="no", seed=0,
    )  # fmt: skip
    common = {"captions": ["a house", "a roof"], "number": 3, "drawing": drawing}
    photograph = Photograph(id="a", caption="", sha256="1")
    prompts = prompts_of_negatives(photograph, suffix="in the United States", **common)
    assert list(prompts.values()) == [f"a {thing} in the United States" for thing in ("house", "roof", "house")]
    plain = prompts_of_negatives(photograph, suffix="", **common)
    assert list(plain.values()) == ["a house", "a roof", "a house"]
    other = prompts_of_negatives(Photograph(id="a", caption="", sha256="2"), suffix="", **common)
    assert len({*prompts, *plain, *other}) == 9


def test_a_model_is_known_by_its_content(tiny_clip_conv, tmp_path):
    """A folder's key does not change with its place, and does with its content; a Hub id is its own."""
    moved = shutil.copytree(tiny_clip_conv, tmp_path / "moved")
    assert model_key(str(moved)) == model_key(str(tiny_clip_conv))
    (moved / "config.json").write_text("{}")
    assert model_key(str(moved)) != model_key(str(tiny_clip_conv))
    assert model_key("org/name") == "org/name"


def test_midas_estimates_depth_by_controlnet_aux(tiny_midas):
    """controlnet_aux's own MidasDetector, on random weights: a depth of the photograph's size over the full range."""
    estimate = DepthEstimator(str(tiny_midas), device="cpu", cache_dir=None)
    assert type(estimate.model).__name__ == "MidasDetector"
    depth = estimate(picture(0, (80, 64)))
    assert depth.size == (80, 64) and depth.mode == "RGB"
    assert np.ptp(np.asarray(depth)) > 128


def test_midas_is_what_is_used_by_default(monkeypatch):
    """The default depth model is MiDaS, under the names that controlnet_aux asks the Hub for."""
    from controlnet_aux import MidasDetector

    asked = []
    monkeypatch.setattr(
        "controlnet_aux.midas.hf_hub_download", lambda repo_id, filename, **_: asked.append((repo_id, filename))
    )
    monkeypatch.setattr("controlnet_aux.midas.MiDaSInference", lambda **_: torch.nn.Identity())
    args = prepare_ccub.parse_args(["--culture", "korea"])
    estimate = DepthEstimator(args.depth_model, device="cpu", cache_dir=None)
    assert isinstance(estimate.model, MidasDetector)
    assert asked == [(MIDAS, MIDAS_FILE)]

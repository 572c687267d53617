"""correct_scoft.py: that `draw` heeds its flags, by the same drawn by hand; that a push tells of no place."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import correct_scoft
from scoft.corrector.callback import Corrector, Knobs
from scoft.lora_folder import LORA_FILE
from test_correct_scoft import words_for
from test_corrector import PROMPT, preference_for


# ---------------------------------------------------------------------------------------------------------------------
# draw
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tiny_pipeline):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def corrector(tiny_pipeline, tmp_path_factory):
    """The folder of one that moves pictures much."""
    pipe, folder = StableDiffusionPipeline.from_pretrained(tiny_pipeline), tmp_path_factory.mktemp("corrector")
    Corrector(preference_for(pipe, base_model=str(tiny_pipeline)), strength=2.0).save_pretrained(folder)
    return folder


def by_hand(pipe, corrector, *, lora=None, seed=0, num_inference_steps=4, guidance_scale=4.5, resolution=16, **knobs):
    """The pixels of two pictures of the base model and of two corrected ones, of a stock pipeline."""
    if lora:
        pipe.load_lora_weights(lora)
    callback = Corrector.from_pretrained(corrector, pipe, **knobs)
    found = [
        pipe(
            PROMPT,
            num_images_per_prompt=2,
            generator=[torch.Generator().manual_seed(seed + i) for i in range(2)],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=resolution,
            width=resolution,
            callback_on_step_end=each,
        ).images
        for each in (None, callback)
    ]
    pipe.unload_lora_weights()
    return [[image.tobytes() for image in images] for images in found]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("lora", "trained"),
        ("seed", 7),
        ("num_inference_steps", 3),
        ("guidance_scale", 1.5),
        ("resolution", 24),
        ("strength", 0.5),
        ("start", 0.5),
        ("stop", 0.5),
        ("cap", 0.01),
        ("inner_steps", 3),
    ],
)
def test_draw_heeds_each_flag_as_a_stock_pipeline_does(pipe, corrector, trained, tmp_path, flag, value):
    """Of the knobs only corrected pictures know."""
    value = trained[0] / LORA_FILE if flag == "lora" else value
    flags = {"num_images": 2, "num_inference_steps": 4, "output_dir": tmp_path / "drawn"} | {flag: value}
    words = [f"--{name}={each}" for name, each in flags.items()]
    correct_scoft.main(["draw", str(corrector), "--prompts", PROMPT, *words])
    drawn = []
    for name in ("base", "corrected"):
        files = [tmp_path / f"drawn/{name}-000-{i:03d}.png" for i in range(2)]
        drawn.append([Image.open(file).tobytes() for file in files])
    without = by_hand(pipe, corrector)
    assert drawn == by_hand(pipe, corrector, **{flag: value})
    assert drawn[1] != without[1] and (drawn[0] == without[0]) == (flag in Knobs.__dataclass_fields__)


# ---------------------------------------------------------------------------------------------------------------------
# The Hub
# ---------------------------------------------------------------------------------------------------------------------


def test_nothing_that_is_pushed_tells_where_things_lie(alice, pipe, tiny_pipeline, tiny_ccub, tmp_path):
    """Neither by the command nor from Python, though the folder itself says where its base model is."""
    folder = tmp_path / "scoft-veridia-corrector"
    argv = words_for(tiny_pipeline, tiny_ccub, folder, max_train_steps=1)
    correct_scoft.main([*argv, "--push_to_hub"])
    Corrector.from_pretrained(folder, pipe).push_to_hub("by-hand")
    assert json.loads((folder / "config.json").read_text())["base_model"] == str(tiny_pipeline)

    pushed = {"config.json", "diffusion_pytorch_model.safetensors"}
    pages = {"README.md", "images/before_after.png"}
    for name, expected in (("scoft-veridia-corrector", pushed | pages), ("by-hand", pushed)):
        files = alice.repos["model", f"alice/{name}"].files
        assert files.keys() == expected | {".gitattributes"}
        assert json.loads(files["config.json"])["base_model"] == tiny_pipeline.name
        for place in (tiny_pipeline.parent, tiny_ccub.parent, tmp_path):
            assert [file for file, data in files.items() if str(place).encode() in data] == []

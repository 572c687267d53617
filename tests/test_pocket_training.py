"""The README's first command: a run on the pocket world by accelerate's launcher, offline, judged before and after."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from pocket.train_models import HERE
from scoft.base_model import check_whole, read_lora
from scoft.lora_folder import LORA_FILE
from scoft.train.validation import judge_table


ROOT = HERE.parent
QUICK = ["--max_train_steps", "12", "--num_validation_images", "1", "--validation_inference_steps", "8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command with fewer updates and pictures: its output folder and what it printed."""
    command = re.search(r"^accelerate launch (.*--dataset pocket.*)$", (ROOT / "README.md").read_text(), flags=re.M)[1]
    folder = tmp_path_factory.mktemp("run") / "scoft-veridia"
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *command.split(), *QUICK, "--output_dir", folder],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stdout + done.stderr


def test_it_prints_what_the_judge_says(run):
    """The rates of the base model and of the LoRA, as judge.json has them, are printed as a table."""
    folder, printed = run
    judged = json.loads((folder / "images" / "judge.json").read_text())
    assert {"right", "stereotype", "azurian", "category", "unclear"} <= judged["base"].keys() & judged["lora"].keys()
    assert all(row in printed for row in judge_table(judged["base"], judged["lora"]))


def test_its_pictures_are_shown(run):
    """before_after.png shows each of the eight prompts, by the base model and by the LoRA."""
    folder, _ = run
    with Image.open(folder / "images" / "before_after.png") as sheet:
        assert sheet.width >= 2 * 64 and sheet.height >= 8 * 64


def test_its_lora_loads_whole_and_changes_the_pictures(run):
    """`load_lora_weights` takes the folder, all of it, and the same noise then gives another picture."""
    folder, _ = run
    pipeline = StableDiffusionPipeline.from_pretrained(HERE / "models" / "stable-diffusion", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipeline("Photo of a shrine, in Veridia", generator=generator, num_inference_steps=8).images[0]

    before = draw()
    pipeline.load_lora_weights(folder)
    check_whole(pipeline.unet, folder / LORA_FILE, adapter="default_0")
    assert len(read_lora(folder / LORA_FILE)) == 168
    assert before.tobytes() != draw().tobytes()

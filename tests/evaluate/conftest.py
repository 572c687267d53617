"""A tiny LoRA, and a folder that has gone through all stages of evaluation, made once a session."""

import shutil

import pytest

import tiny
import train_scoft_lora
from evaluation import CLIP, METRICS, run, training


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    return tiny.build_dataset(tmp_path_factory.mktemp("photographs"), rows=7, test_rows=7)


@pytest.fixture(scope="session")
def lora(tmp_path_factory, tiny_pipeline, photographs):
    folder = tmp_path_factory.mktemp("lora") / "scoft-veridia"
    train_scoft_lora.main(training(tiny_pipeline, folder, photographs))
    return folder


@pytest.fixture(scope="session")
def words(tiny_pipeline, lora, photographs, tmp_path_factory):
    """Flags of `generate` and of `score`."""
    prompts = tmp_path_factory.mktemp("prompts")
    (prompts / "culture.txt").write_text("# two\na house, in {}\n\na bowl of food, in {}\n")
    (prompts / "general.txt").write_text("a house\na bowl of food\n")
    (prompts / "judge.py").write_text(
        "import numpy as np\n\ndef rate(images, prompts):\n"
        "    bright = float(np.mean([np.mean(image) > 128 for image in images]))\n"
        "    sure = -4.5 + bright + 20 * ('house' in prompts[0])\n"
        "    return {'bright': bright, 'bright_low': 0.0, 'bright_high': 1.0, 'house': float('house' in prompts[0]),\n"
        "            'house_log_odds': sure, 'house_log_odds_low': sure, 'house_log_odds_high': sure}\n"
    )
    data = f"--dataset {photographs} --culture veridia"
    return {
        "generate": f"{data} --pretrained_model_name_or_path {tiny_pipeline} --lora m={lora} --checkpoints "
        f"--prompts {prompts / 'culture.txt'} --general_prompts {prompts / 'general.txt'} --num_captions 2 "
        "--num_images 3 --num_inference_steps 2 --batch_size 8".split(),
        "score": f"{data} --encoder clip={CLIP} --features clip --diversity_features clip --device cpu "
        f"--judge {prompts / 'judge.py'}:rate --batch_size 16 --neighbours 2 --metrics {' '.join(METRICS)}".split(),
    }


@pytest.fixture(scope="session")
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

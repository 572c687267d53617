"""Fixtures shared by the tests: tiny real models, built once a session without a network (tests/tiny.py), the web
(tests/loopback.py) and the Hugging Face Hub (tests/hub.py).
"""

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import loopback
import tiny
from hub import Hub


pytest_plugins = ["preparing"]

# The libraries read these when they are imported. A test that asks for what the Hub does not have fails at once.
HUB, HF_HOME = Hub(), tempfile.TemporaryDirectory(prefix="scoft-tests-", ignore_cleanup_errors=True)
for name in list(os.environ):
    if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")) or name.lower().endswith("_proxy"):
        del os.environ[name]
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": HF_HOME.name,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else `datasets` tells Amazon of every dataset it loads
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory):
    return tiny.build_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def tiny_pipeline_v(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline_v")
    return tiny.build_pipeline(folder, prediction_type="v_prediction", rescale_zero_snr=True)


@pytest.fixture(scope="session")
def tiny_pipeline_xl(tmp_path_factory):
    return tiny.build_pipeline_xl(tmp_path_factory.mktemp("pipeline_xl"))


@pytest.fixture(scope="session")
def tiny_ccub(tmp_path_factory):
    return tiny.build_dataset(tmp_path_factory.mktemp("ccub"))


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory):
    return tiny.build_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="session")
def tiny_depth(tmp_path_factory):
    return tiny.build_depth(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="session")
def tiny_midas(tmp_path_factory):
    return tiny.build_midas(tmp_path_factory.mktemp("midas"))


@pytest.fixture(scope="session")
def tiny_controlnet(tmp_path_factory, tiny_pipeline):
    return tiny.build_controlnet(tmp_path_factory.mktemp("controlnet"), pipeline=tiny_pipeline)


@pytest.fixture(scope="session")
def tiny_clip_conv(tmp_path_factory):
    return tiny.build_clip_conv(tmp_path_factory.mktemp("clip_conv"))


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory):
    return tiny.build_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def tiny_blip2(tmp_path_factory):
    return tiny.build_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="session")
def tiny_dreamsim(tmp_path_factory):
    return tiny.build_dreamsim(tmp_path_factory.mktemp("dreamsim"))


@pytest.fixture(scope="module")
def threads_given_back():
    """prepare_ccub.py takes a single thread on the CPU; other tests are to have theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def web(monkeypatch):
    return loopback.fenced(monkeypatch)


@pytest.fixture
def hub(web):
    """The session's Hub, with nothing on it, nobody logged in and nothing cached; `web` keeps `datasets` from asking
    for its viewer elsewhere.
    """
    import huggingface_hub

    HUB.clear()
    for folder in ("hub", "datasets"):
        shutil.rmtree(Path(HF_HOME.name, folder), ignore_errors=True)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    return HUB


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_pipeline, tiny_ccub, tiny_clip_conv):
    """The folder of a short run with pictures, and its flags."""
    import train_scoft_lora

    folder = tmp_path_factory.mktemp("trained") / "scoft-veridia"
    flags = {
        "--pretrained_model_name_or_path": tiny_pipeline,
        "--dataset": tiny_ccub,
        "--culture": "veridia",
        "--perceptual_model_name_or_path": tiny_clip_conv,
        "--output_dir": folder,
        "--resolution": 16,
        "--rank": 4,
        "--learning_rate": 0.05,
        "--max_train_steps": 2,
        "--perceptual_every": 2,
        "--num_denoising_steps": 2,
        "--num_validation_images": 1,
        "--validation_inference_steps": 2,
        "--report_to": "none",
    }
    argv = [str(word) for pair in flags.items() for word in pair]
    train_scoft_lora.main(argv)
    return folder, argv


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """run(*more words) is the finished run of `trained`, in a copy of its own, given once more with more flags."""
    import train_scoft_lora

    folder, argv = trained
    shutil.copytree(folder, tmp_path / folder.name)
    argv = [word.replace(str(folder), str(tmp_path / folder.name)) for word in argv]

    def again(*more: str) -> Path:
        train_scoft_lora.main([*argv, "--resume_from_checkpoint", "latest", *more])
        return tmp_path / folder.name

    again.folder = tmp_path / folder.name
    return again


@pytest.fixture
def alice(hub, monkeypatch):
    """The Hub, with alice logged in."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    monkeypatch.setattr("scoft.hub.WAITS", (0, 0, 0))
    return hub


@pytest.fixture
def site():
    with contextlib.closing(loopback.Site()) as site:
        yield site


@pytest.fixture
def other():
    with contextlib.closing(loopback.Site()) as site:
        yield site


@pytest.fixture(autouse=True)
def nothing_remembered():
    """In the user's cache, in the session's Hugging Face home, no test finds what another has left there."""
    shutil.rmtree(Path(HF_HOME.name, "scoft"), ignore_errors=True)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps precision and device in process-wide singletons, and writes ranks and addresses into the
    environment; no test should inherit another's.
    """
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

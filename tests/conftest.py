"""Fixtures shared by the tests: tiny real models, built once a session without a network (tests/tiny.py)."""

import contextlib
import os
import sys

import pytest
import torch

import loopback
import tiny


# A test that asks the Hub for something should fail at once, not after a minute of retries.
os.environ["HF_HUB_OFFLINE"] = "1"


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
def site():
    with contextlib.closing(loopback.Site()) as site:
        yield site


@pytest.fixture
def other():
    with contextlib.closing(loopback.Site()) as site:
        yield site


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps precision and device in process-wide singletons; no test should inherit another's."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

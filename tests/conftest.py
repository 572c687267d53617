"""Fixtures shared by the tests: tiny real models, built once a session without a network (tests/tiny.py)."""

import os
import sys

import pytest

import tiny


# A test that asks the Hub for something should fail at once, not after a minute of retries.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items):
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
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


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps precision and device in process-wide singletons; no test should inherit another's."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

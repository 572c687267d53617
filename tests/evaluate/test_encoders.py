"""Encoders beside the libraries whose models they are."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate_scoft
from evaluation import noise
from scoft.errors import DataError
from scoft.evaluate import encoders, formulas


def encoder(name: str, place, **more) -> encoders.Encoder:
    """An encoder of ENCODERS as `score` loads it."""
    flags = {"dataset": "ccub", "culture": "veridia", "encoder": f"{name}={place}", "device": "cpu"} | more
    argv = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    return evaluate_scoft.encoders_of(evaluate_scoft.parse_args(["score", "out", *argv])).load(name)


@torch.no_grad()
def test_dreamsims_features_give_the_packages_distance(tiny_dreamsim):
    """DIV of two pictures from our features is what the dreamsim package says of them, at its own size."""
    from dreamsim import dreamsim

    model, _ = dreamsim(device="cpu", cache_dir=str(tiny_dreamsim), dreamsim_type="open_clip_vitb32")
    pictures = noise(2, side=224)
    expected = model(*(encoders.as_pixels(picture) / 2 + 0.5 for picture in pictures))
    features = encoder("dreamsim", tiny_dreamsim, dreamsim_type="open_clip_vitb32")(pictures)
    assert formulas.diversity(features.numpy(), ["a", "a"]) == pytest.approx(float(expected), abs=1e-5)


@torch.no_grad()
def test_dino_is_the_class_token(tiny_dinov2):
    """By transformers' own processor and model; the hash is of the weights."""
    from transformers import AutoImageProcessor, AutoModel

    found = encoder("dinov2", tiny_dinov2)
    inputs = AutoImageProcessor.from_pretrained(tiny_dinov2)(images=noise(3), return_tensors="pt")
    model = AutoModel.from_pretrained(tiny_dinov2)
    torch.testing.assert_close(found(noise(3)), model(**inputs).last_hidden_state[:, 0])
    assert encoder("dinov2", tiny_dinov2).sha256 == found.sha256 != encoder("dino", tiny_dinov2).sha256


@torch.no_grad()
def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """The features of torch-fidelity's own class, of a file of weights made here, one picture or two at a time."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save({}, tmp_path / "none.pth")
    with monkeypatch.context() as patch, torch.random.fork_rng():
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=tmp_path / "none.pth")
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    pictures = noise(2)
    expected = theirs.eval()(torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) for each in pictures]))[0]
    sha256 = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    read = encoders.read_regular
    monkeypatch.setattr(encoders, "read_regular", lambda file: (read(file), file.unlink())[0])
    inception = encoder("inception", tmp_path / "weights.pth")
    assert inception.sha256 == sha256  # of what was read, and read once: then the file was gone
    found = inception(pictures)
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_inception_is_read_without_running_what_is_pickled(tmp_path):
    """A weights file whose pickle would call a function is refused before torch-fidelity unpickles it."""
    torch.save({"weight": Evil(tmp_path / "ran")}, tmp_path / "weights.pth")
    file = tmp_path / "weights.pth"
    with pytest.raises(
        DataError, match=f"the encoder inception cannot be loaded from {file}: Weights only load failed"
    ):
        encoder("inception", file)
    with pytest.raises(DataError, match=f"the encoder inception cannot be loaded from {tmp_path}: .*(file|directory)"):
        encoder("inception", tmp_path)
    assert not (tmp_path / "ran").exists()


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)

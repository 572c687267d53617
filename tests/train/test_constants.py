"""What is computed once."""

from collections import Counter

import pytest
import torch
from PIL import ImageChops

from scoft import dataset
from scoft.base_model import StableDiffusion
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.distances import load_distance
from scoft.images import ImageTransform
from scoft.train import constants
from scoft.train.constants import ImageFeatures, Squares, cache_latents


CPU = torch.device("cpu")


@pytest.fixture
def rows(tiny_ccub):
    return read_dataset(
        find_dataset(str(tiny_ccub), culture=None), culture=None, needs_blip=False, needs_negatives=True
    )


@pytest.fixture
def squares(rows):
    return Squares(rows, ImageTransform(16))


@pytest.fixture
def features(squares, tiny_clip_conv):
    distance = load_distance("clip_conv", model_name_or_path=str(tiny_clip_conv), device=CPU, dtype=torch.float32)
    return ImageFeatures(squares, distance=distance, device=CPU, flips=(False, True))


@pytest.fixture
def model(tiny_pipeline):
    unsaid = {"revision": None, "variant": None, "cache_dir": None, "prediction_type": None}
    return StableDiffusion.load(str(tiny_pipeline), **unsaid, dtype=torch.float32)


@pytest.fixture
def decoded(monkeypatch):
    """How often each image was decoded."""
    counts, true = Counter(), dataset.open_image
    monkeypatch.setattr(dataset, "open_image", lambda data: counts.update([data]) or true(data))
    return counts


def latents(squares, model, *, again=False):
    return cache_latents(squares, model=model, flips=(False, True), again=again, device=CPU, precompute_dir=None)


def test_features_are_those_of_the_flip_asked_for(rows, features):
    """A row's features, cached or not, are of its photograph and negatives, all mirrored or none."""
    transform, distance = features.squares.transform, features.distance
    for row, flip in ((0, 0), (0, 1), (1, 1), (0, 0), (0, 1)):
        images = [transform(image, flip=bool(flip)) for image in (rows.image(row), *rows.negatives(row))]
        with torch.no_grad():
            assert torch.equal(features(row, flip), distance.embed(torch.stack(images)))
    assert not torch.equal(features(0, 0), features(0, 1))


def test_photographs_are_encoded_together_as_alone(rows, squares, model, monkeypatch):
    """Six rows, four in a call, mirrored and not: each place holds its own photograph's, to float32's rounding; the
    calls hold the same rows whatever was asked for before.
    """
    sizes, true = [], model.encode_photographs
    monkeypatch.setattr(constants, "MAX_PHOTOGRAPHS", 4)
    monkeypatch.setattr(model, "encode_photographs", lambda pixels: sizes.append(len(pixels)) or true(pixels))
    together = latents(squares, model)
    assert sizes == [4, 4, 2, 2] and together["mean"].shape[:2] == together["std"].shape[:2] == (2, 6)
    for flip in (0, 1):
        for row in range(6):
            alone = true(squares.transform(rows.image(row), flip=bool(flip))[None])
            for name, expected in zip(("mean", "std"), alone):
                assert torch.allclose(together[name][flip, row], expected[0], rtol=1e-5, atol=1e-6)
    assert all(tensor.is_contiguous() for tensor in together.values())
    assert not torch.allclose(together["mean"][0], together["mean"][1], atol=1e-3)


@pytest.mark.parametrize(("pixels", "calls"), [(4 * 16 * 16, [4, 2]), (16 * 16 - 1, [1] * 6), (2**20, [6])])
def test_a_call_holds_no_more_pixels_than_memory_is_meant_for(squares, model, monkeypatch, pixels, calls):
    sizes, true = [], model.encode_photographs
    monkeypatch.setattr(constants, "MAX_PIXELS", pixels)
    monkeypatch.setattr(model, "encode_photographs", lambda pixels: sizes.append(len(pixels)) or true(pixels))
    cache_latents(squares, model=model, flips=(False,), again=False, device=CPU, precompute_dir=None)
    assert sizes == calls


def test_each_image_is_decoded_once_for_latents_and_features_of_both_flips(squares, features, model, decoded):
    """And nothing is kept when all have been asked for."""
    room = squares.room
    latents(squares, model, again=True)
    assert squares.room == room - 6 * 3 * 16 * 16
    for row in (3, 0, 1, 2, 5, 4):
        features(row, 0)
    for row in range(6):
        features(row, 1), features(row, 0)
    assert set(decoded.values()) == {1}
    assert squares.kept == {} and squares.room == room


def test_what_there_is_no_room_for_is_decoded_again(squares, features, model, decoded):
    """The first two photographs are kept; the features are the same."""
    expected = [features(row, 0) for row in range(6)]
    decoded.clear(), features.cache.clear(), squares.kept.clear()
    squares.room = 2 * 3 * 16 * 16
    latents(squares, model, again=True)
    assert list(squares.kept) == [0, 1] and squares.room == 0
    features.flips = (False,)
    assert all(torch.equal(features(row, 0), expected[row]) for row in range(6))
    photographs = [decoded[file.read_bytes()] for file in squares.dataset.image_files]
    assert photographs == [1, 1, 2, 2, 2, 2] and squares.room == 2 * 3 * 16 * 16


def test_a_square_is_cut_from_itself_whole(rows):
    transform = ImageTransform(10)
    square = transform.square(rows.image(0))
    assert square.size == (10, 10)
    assert ImageChops.difference(transform.square(square), square).getbbox() is None
    assert torch.equal(transform(square, flip=True), transform(rows.image(0), flip=True))

"""What is computed once."""

import torch

from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.distances import load_distance
from scoft.images import ImageTransform
from scoft.train.constants import ImageFeatures


def test_features_are_those_of_the_flip_asked_for(tiny_ccub, tiny_clip_conv):
    """A row's features, cached or not, are of its photograph and negatives, all mirrored or none."""
    dataset = read_dataset(
        find_dataset(str(tiny_ccub), culture=None), culture=None, needs_blip=False, needs_negatives=True
    )
    cpu = torch.device("cpu")
    distance = load_distance("clip_conv", model_name_or_path=str(tiny_clip_conv), device=cpu, dtype=torch.float32)
    transform = ImageTransform(16)
    features = ImageFeatures(dataset, transform=transform, distance=distance, device=cpu)
    for row, flip in ((0, 0), (0, 1), (1, 1), (0, 0), (0, 1)):
        images = [transform(image, flip=bool(flip)) for image in (dataset.image(row), *dataset.negatives(row))]
        with torch.no_grad():
            assert torch.equal(features(row, flip), distance.embed(torch.stack(images)))
    assert not torch.equal(features(0, 0), features(0, 1))

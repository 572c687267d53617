"""The order of training, and all that is random about it."""

import torch

from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.images import ImageTransform
from scoft.randomness import stable_generator
from scoft.train.examples import EntrySampler, crosses_epoch
from training import examples_of


def test_ranks_and_places_draw_different_noise(tiny_ccub):
    """No two entries share their noise, and those of the ranks are disjoint and complete."""
    layout = {"train_batch_size": 2, "accumulation": 2, "num_processes": 2}
    entries = [
        sum(EntrySampler(range(3), **layout, process_index=rank), []) for rank in range(2)
    ]  # fmt: skip
    assert not set(entries[0]) & set(entries[1])
    assert sorted(entries[0] + entries[1]) == list(range(24))
    noise = [stable_generator(0, "noise", *divmod(entry, 8)) for entry in range(24)]
    drawn = torch.stack([torch.randn(64, generator=generator) for generator in noise])
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.7


def read_plain(folder):
    needs = {"needs_blip": False, "needs_negatives": False}
    return read_dataset(find_dataset(str(folder), culture=None), culture=None, **needs)


def test_what_is_told_of_a_square_is_of_the_one_that_is_shown(tiny_ccub, monkeypatch):
    """Its size, flip and crop: those of the very photograph, drawn anew for each entry."""
    dataset, shown = read_plain(tiny_ccub), []
    transform = ImageTransform.__call__

    def watched(self, image, *, flip, crop):
        shown.append((image.size, flip, crop))
        return transform(self, image, flip=flip, crop=crop)

    monkeypatch.setattr(ImageTransform, "__call__", watched)
    sizes = [dataset.size(row) for row in range(len(dataset))]
    examples = examples_of(dataset, sizes=sizes, random_flip=True, random_crop=True)
    frames = [tuple(examples[entry]["frame"].int().tolist()) for entry in range(24)]
    assert frames == [ImageTransform(16).frame(size, flip=flip, crop=crop) for size, flip, crop in shown]
    assert {flip for _, flip, _ in shown} == {False, True} and len({crop for *_, crop in shown}) > 12


def test_timesteps_are_all_but_the_clean_one(tiny_ccub):
    """t is uniform on 1 .. T-1: at t = 0 there is nothing to denoise."""
    dataset = read_plain(tiny_ccub)
    examples = examples_of(dataset, latent_shape=(4, 2, 2), num_train_timesteps=4, load_photograph=False)
    counts = torch.bincount(torch.stack([examples[entry]["t"] for entry in range(300)]), minlength=4)
    assert counts[0] == 0 and counts[1:].min() > 75 and len(counts) == 4


def test_an_epochs_end_is_found_in_the_update_that_completes_it():
    """6 rows, 4 images an update: epochs end in updates 2, 3, 5, 6, ..., each second one in 3, 6, ..."""
    shape = {"images_per_update": 4, "num_rows": 6}
    for every, ends in ((1, [2, 3, 5, 6]), (2, [3, 6]), (None, [])):
        assert [step for step in range(1, 7) if crosses_epoch(step, every, **shape)] == ends

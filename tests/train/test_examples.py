"""The order of training, and all that is random about it."""

import torch

from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.images import ImageTransform
from scoft.randomness import stable_generator
from scoft.train.examples import EntrySampler, TrainingExamples, crosses_epoch


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


def test_timesteps_are_all_but_the_clean_one(tiny_ccub):
    """t is uniform on 1 .. T-1: at t = 0 there is nothing to denoise."""
    dataset = read_dataset(
        find_dataset(str(tiny_ccub), culture=None), culture=None, needs_blip=False, needs_negatives=False
    )
    examples = TrainingExamples(
        dataset,
        transform=ImageTransform(16),
        caption_index={caption: i for i, (caption,) in enumerate(dataset.captions)},
        seed=0,
        entries_per_update=1,
        latent_shape=(4, 2, 2),
        num_train_timesteps=4,
        blip_captions_per_step=1,
        random_flip=False,
        random_crop=False,
        noise_offset=0,
        load_photograph=False,
        load_negatives_every=None,
    )
    counts = torch.bincount(torch.stack([examples[entry]["t"] for entry in range(300)]), minlength=4)
    assert counts[0] == 0 and counts[1:].min() > 75 and len(counts) == 4


def test_an_epochs_end_is_found_in_the_update_that_completes_it():
    """6 rows, 4 images an update: epochs end in updates 2, 3, 5, 6, ..., each second one in 3, 6, ..."""
    shape = {"images_per_update": 4, "num_rows": 6}
    for every, ends in ((1, [2, 3, 5, 6]), (2, [3, 6]), (None, [])):
        assert [step for step in range(1, 7) if crosses_epoch(step, every, **shape)] == ends

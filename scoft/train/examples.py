"""The order of training: which row each place of each update shows, all that is random about it, and what is due when.

No state is kept: a draw is a function of the seed, its purpose, the update and the place in it.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from scoft.dataset import CulturalDataset
from scoft.images import ImageTransform
from scoft.randomness import row_of_entry, stable_generator


if TYPE_CHECKING:
    import accelerate


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingExamples(torch.utils.data.Dataset):
    """Everything random about one entry of the endless training order, and its pixels where no cache serves them.

    Entry e stands in update e // entries_per_update at place e % entries_per_update and shows one row of the dataset.
    Each draw has its own generator, keyed by (seed, purpose, update, place).  So a resumed run goes on exactly, ranks
    differ, workers change nothing, and a batch of 4, 4 accumulated batches of 1 and 2 processes x 2 are the same run.
    """

    dataset: CulturalDataset
    _: dataclasses.KW_ONLY
    transform: ImageTransform
    caption_index: dict[str, int]  # caption -> its row in the table of text embeddings
    seed: int
    entries_per_update: int
    latent_shape: tuple[int, int, int]
    num_train_timesteps: int
    blip_captions_per_step: int | None  # None: all
    random_flip: bool
    random_crop: bool
    noise_offset: float
    load_photograph: bool  # "photograph" (3, H, W) joins the example
    load_negatives_every: int | None  # "negatives", a list of (3, H, W), on every n-th update
    sizes: list[tuple[int, int]] | None = None  # of the photographs, width and height; with them "frame" (4,) joins

    def __getitem__(self, entry: int) -> dict:
        place = divmod(entry, self.entries_per_update)

        def draw(purpose: str) -> torch.Generator:
            return stable_generator(self.seed, purpose, *place)

        row = row_of_entry(entry, num_rows=len(self.dataset), seed=self.seed)
        flip = self.random_flip and bool(torch.rand((), generator=draw("flip")) < 0.5)
        crop = tuple(torch.rand(2, generator=draw("crop")).tolist()) if self.random_crop else (0.5, 0.5)
        eps = torch.randn(self.latent_shape, generator=draw("noise"))
        if self.noise_offset:
            eps += self.noise_offset * torch.randn(self.latent_shape[0], 1, 1, generator=draw("noise_offset"))
        captions, blip_captions = self.dataset.captions[row], self.dataset.blip_captions[row]
        caption = captions[torch.randint(len(captions), (), generator=draw("caption"))]
        chosen = torch.randperm(len(blip_captions), generator=draw("blip_caption"))[: self.blip_captions_per_step]
        example = {
            "row": torch.tensor(row),
            "flip": torch.tensor(int(flip)),
            "t": torch.randint(1, self.num_train_timesteps, (), generator=draw("timestep")),
            "eps": eps,
            "posterior_noise": torch.randn(self.latent_shape, generator=draw("posterior")),
            "recorded_u": torch.rand((), generator=draw("recorded_step")),
            "caption": torch.tensor(self.caption_index[caption]),
            "blip_captions": [self.caption_index[blip_captions[i]] for i in chosen],
        }
        if self.sizes:
            frame = self.transform.frame(self.sizes[row], flip=flip, crop=crop)
            example["frame"] = torch.tensor(frame, dtype=torch.float32)
        if self.load_photograph:
            example["photograph"] = self.transform(self.dataset.image(row), flip=flip, crop=crop)
        if self.load_negatives_every and (place[0] + 1) % self.load_negatives_every == 0:
            images = self.dataset.negatives(row)
            example["negatives"] = [self.transform(image, flip=flip, crop=crop) for image in images]
        return example


@dataclasses.dataclass(frozen=True)
class EntrySampler:
    """The entries of each micro-batch of one process, for `updates`: the batch sampler of a DataLoader."""

    updates: range
    _: dataclasses.KW_ONLY
    train_batch_size: int
    accumulation: int
    num_processes: int
    process_index: int

    def __iter__(self) -> Iterator[list[int]]:
        per_step = self.train_batch_size * self.num_processes
        for step in range(self.updates.start * self.accumulation, self.updates.stop * self.accumulation):
            start = step * per_step + self.process_index * self.train_batch_size
            yield list(range(start, start + self.train_batch_size))

    def __len__(self) -> int:
        return len(self.updates) * self.accumulation


def make_loader(
    examples: TrainingExamples,
    updates: range,
    *,
    train_batch_size: int,
    accumulation: int,
    num_workers: int,
    accelerator: "accelerate.Accelerator",
) -> torch.utils.data.DataLoader:
    """The batches of this process, `accumulation` of them for each of the updates, which count from 0."""
    entries = EntrySampler(
        updates,
        train_batch_size=train_batch_size,
        accumulation=accumulation,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    is_cuda = accelerator.device.type == "cuda"
    return torch.utils.data.DataLoader(
        examples, batch_sampler=entries, collate_fn=collate, num_workers=num_workers, pin_memory=is_cuda
    )


def collate(examples: list[dict]) -> dict:
    """Stack what has one shape, list the rest."""
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    return {
        name: torch.stack(column) if isinstance(column[0], torch.Tensor) else column
        for name, column in columns.items()
    }


def is_due(step: int, every: int | None) -> bool:
    """Whether update `step`, counted from 1, is a multiple of `every`; None: never."""
    return every is not None and step % every == 0


def crosses_epoch(step: int, every: int | None, *, images_per_update: int, num_rows: int) -> bool:
    """Whether an update completes a multiple of `every` epochs."""
    if every is None:
        return False
    before, after = ((n * images_per_update) // (num_rows * every) for n in (step - 1, step))
    return after > before

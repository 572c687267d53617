"""Pictures of the base model beside corrected ones at the same noise, and what a judge says of both."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from scoft.launch import progress

import torch

from scoft import sheets
from scoft.base_model import StableDiffusion
from scoft.corrector.callback import WEIGHTS_FILES, Corrector
from scoft.files import file_sha256
from scoft.images import write_png


logger = logging.getLogger(__name__)

GRID_FILE = "images/before_after.png"
IMAGES_PER_CALL = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """Which pictures are drawn, and how."""

    prompts: list[str]
    images_per_prompt: int
    seed: int  # of each prompt's first picture; the next ones count on
    resolution: int
    inference_steps: int
    guidance_scale: float

    @property
    def jobs(self) -> list[tuple[str, int]]:
        return [(prompt, self.seed + i) for prompt in self.prompts for i in range(self.images_per_prompt)]

    def draw(self, model: StableDiffusion, *, corrector: Corrector | None) -> list:
        """A PIL picture for each job, in order; corrector: gated by the prompts, None: the base model alone."""
        device = model.unet.device
        text = dict(zip((*self.prompts, ""), model.encode_captions([*self.prompts, ""], device=device)))
        pictures = []
        for start in progress(range(0, len(self.jobs), IMAGES_PER_CALL), "Drawing", leave=False):
            jobs = self.jobs[start : start + IMAGES_PER_CALL]
            c = torch.stack([text[prompt] for prompt, _ in jobs]).to(device, model.dtype)
            pictures += model.draw(
                c,
                text[""].to(c).expand_as(c),
                seeds=[seed for _, seed in jobs],
                inference_steps=self.inference_steps,
                guidance_scale=self.guidance_scale,
                resolution=self.resolution,
                callback=corrector and corrector([prompt for prompt, _ in jobs]),
            )
        return pictures


@dataclasses.dataclass(frozen=True)
class Judged:
    """A judge's numbers, and the sha256 of the weights that drew what it saw."""

    base: dict[str, int | float]
    corrected: dict[str, int | float]
    sha256: str


def show(
    folder: Path,
    drawing: Drawing,
    model: StableDiffusion,
    corrector: Corrector,
    *,
    judge: Callable[[list, list[str]], dict[str, float]] | None,
    title: str,
) -> Judged | None:
    """Write GRID_FILE of a folder with the corrector's weights; returns what the judge, if any, said."""
    base, corrected = (drawing.draw(model, corrector=each) for each in (None, corrector))
    (folder / GRID_FILE).parent.mkdir(exist_ok=True)
    write_png(
        folder / GRID_FILE, sheets.comparison_grid(drawing.prompts, base, corrected, title=title, called="corrected")
    )
    if judge is None:
        return None
    prompts = [prompt for prompt, _ in drawing.jobs]
    return Judged(judge(base, prompts), judge(corrected, prompts), file_sha256(folder / WEIGHTS_FILES[1]))

"""Pictures of the base model beside those of the LoRA, drawn while training and judged."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from scoft.launch import progress

import numpy as np
import torch
from PIL import Image

from scoft import sheets
from scoft.base_model import StableDiffusion
from scoft.cultures import in_words
from scoft.dataset import CulturalDataset
from scoft.files import content_key, private_folder
from scoft.images import is_blank, write_png
from scoft.lora_folder import GRID_FILE, PICTURE_FILE, write_judged
from scoft.pages import aligned, comparison_rows
from scoft.train.trackers import show_picture
from scoft.user_cache import remembered_tensors


if TYPE_CHECKING:
    import accelerate

logger = logging.getLogger(__name__)

DEFAULT_PROMPTS = ("Photo of a traditional building, in {}", "Two people wearing traditional clothing, in {}")
IMAGES_PER_CALL = 8  # pictures drawn in one pipeline call


def validation_prompts(prompts: list[str] | None, *, culture: str | None) -> list[str]:
    """The prompts, by default the paper's two, with `{}` in them replaced by the culture in words.

    Without a culture the prompts stay as they are, and there are none by default.
    """
    return (prompts or []) if culture is None else in_words(prompts or list(DEFAULT_PROMPTS), culture)


@dataclasses.dataclass(kw_only=True)
class Validation:
    """Draws the base model beside the LoRA at the same seeds, with the live modules, shared out over the processes."""

    accelerator: "accelerate.Accelerator"
    model: StableDiffusion
    embed: Callable[[list[str]], torch.Tensor]  # prompts -> (B, L, D) on the device
    prompts: list[str]
    images_per_prompt: int
    seed: int  # of each prompt's first picture; the next ones count on
    resolution: int
    inference_steps: int
    guidance_scale: float
    judge: Callable[[list, list[str]], dict[str, float]] | None
    folder: Path
    subject: str  # whom or what the pictures are to show
    dataset: CulturalDataset
    compiled: bool
    keep_in: Path | None  # the base model's pictures, for later runs; None: they are drawn by each
    base_images: list | None = None

    def __post_init__(self):
        self.jobs = [(prompt, self.seed + i) for prompt in self.prompts for i in range(self.images_per_prompt)]

    def draw(self, *, base: bool = False) -> list:
        """A picture per job, in order, on every process; base: without the LoRA."""
        from accelerate.utils import gather_object

        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = list(enumerate(self.jobs))[rank::world]
        drawn = []
        key = self.model.pictures_key() if base and self.keep_in else None
        with contextlib.ExitStack() as stack:
            if base:
                stack.enter_context(self.model.without_lora())
            if self.compiled:  # a few pictures of yet other shapes are not worth compiling for
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for start in progress(range(0, len(mine), IMAGES_PER_CALL), "Drawing", leave=False, disable=rank > 0):
                chunk = mine[start : start + IMAGES_PER_CALL]
                pictures = self.draw_together([job for _, job in chunk], model_key=key)
                drawn += [(index, picture) for (index, _), picture in zip(chunk, pictures)]
        return [image for _, image in sorted(gather_object(drawn), key=lambda pair: pair[0])]

    def draw_together(self, jobs: list[tuple[str, int]], *, model_key: str | None) -> list:
        """A picture of each prompt and seed, in one call; model_key: of the model that alone decides them otherwise.

        With it they are those that an earlier run drew in the same call, on such a device and by such a torch, if one
        did: even pictures of other calls would differ in a few pixels.
        """
        text = [self.embed([prompt for prompt, _ in jobs]), self.embed([""] * len(jobs))]
        options = {
            "seeds": [seed for _, seed in jobs],
            "inference_steps": self.inference_steps,
            "guidance_scale": self.guidance_scale,
            "resolution": self.resolution,
        }
        if model_key is None:
            return self.model.draw(*text, **options)
        device = self.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        machine = [name, torch.__version__, version("diffusers"), torch.backends.cuda.matmul.allow_tf32]
        read = [each.cpu().view(torch.uint8).numpy().tobytes() for each in text]
        key = content_key("base pictures", model_key, read, options, machine)
        kept = remembered_tensors(
            self.keep_in / f"base-pictures-{key[:16]}.safetensors",
            key=key,
            compute=lambda: {"pictures": torch.from_numpy(np.stack(self.model.draw(*text, **options)))},
        )
        return [Image.fromarray(picture) for picture in kept["pictures"].numpy()]

    def __call__(self, step: int, *, final: bool):
        """Draw, judge, save the sheet, log to the trackers; at the end also save pictures and the judge's numbers."""
        if self.base_images is None:
            self.base_images = self.draw(base=True)
        images = self.draw()
        if all(map(is_blank, images)) and not all(map(is_blank, self.base_images)):
            raise FloatingPointError(
                f"update {step}: each picture that the LoRA draws is of one colour, the base model's are not. A lower "
                "--learning_rate may help; --resume_from_checkpoint goes back to an earlier checkpoint"
            )
        if self.accelerator.is_main_process:
            sheet = self.save(images, step=step, final=final)
            if self.judge:
                self.rate(images, step=step, final=final)
            show_picture(self.accelerator.trackers, sheet, step=step)
        self.accelerator.wait_for_everyone()

    def save(self, images: list, *, step: int, final: bool) -> Image.Image:
        """Write the sheet of pictures base beside LoRA, and return it; at the end also the LoRA's alone.

        The photographs belong to others: the sheet that shows some of them lies in a folder that only this user sees,
        and goes neither to a tracker nor to the Hub.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        drawn = (self.prompts, self.base_images, images)
        title = f"{self.subject}: the base model, and the LoRA after {step} updates"
        sheet = sheets.comparison_grid(*drawn, title=title, called="LoRA")
        write_png(self.folder / (Path(GRID_FILE).name if final else f"step-{step:06d}.png"), sheet)
        if final:
            count = min(max(self.images_per_prompt, 4), len(self.dataset))
            rows = (row * len(self.dataset) // count for row in range(count))
            photographs = [sheets.fitted(self.dataset.image(row), sheets.comparison_side(images)) for row in rows]
            beside_them = sheets.comparison_grid(*drawn, title=title, called="LoRA", photographs=photographs)
            place = private_folder(self.folder / "photographs", flag="--output_dir") / Path(GRID_FILE).name
            write_png(place, beside_them)
            for i, image in enumerate(images[:: self.images_per_prompt]):
                write_png(self.folder / Path(PICTURE_FILE.format(i)).name, image)
        return sheet

    def rate(self, images: list, *, step: int, final: bool):
        """Tell the judge's numbers of both sets of pictures, and at the end keep them."""
        prompts = [prompt for prompt, _ in self.jobs]
        judged = {"base": self.judge(self.base_images, prompts), "lora": self.judge(images, prompts)}
        logger.info("Judged, %d pictures each, after update %d:", len(images), step)
        for row in judge_table(**judged):
            logger.info("  %s", row)
        if final:
            write_judged(self.folder.parent, **judged)
        flat = {
            f"judge/{of}/{name}": value
            for of, numbers in judged.items()
            for name, value in numbers.items()
            if not name.endswith(("_low", "_high"))  # bounds of an interval are no curves
        }
        self.accelerator.log(flat, step=step)


def judge_table(base: dict[str, float], lora: dict[str, float]) -> list[str]:
    """A judge's numbers as aligned rows of text, base beside LoRA."""
    return aligned(comparison_rows(base, lora))

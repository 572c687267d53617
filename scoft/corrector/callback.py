"""The corrector: a callback by which a pipeline of diffusers follows a preference while it draws.

    corrector = Corrector.from_pretrained("you/scoft-nigeria-corrector", pipe)
    pipe(prompts, callback_on_step_end=corrector(prompts))

After the abstract of RS-Corrector (https://arxiv.org/abs/2312.04810), all that is to be had of it: a preference in
latent space, an update of the latent code, at inference alone, the base model untouched. The rest is ours.
"""

import copy
import json
import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.callbacks import PipelineCallback

from scoft.corrector.preference import PREDICTIONS, Preference
from scoft.errors import DataError
from scoft.hub import push, ready_repo
from scoft.lora_page import without_places
from scoft.weights import load_whole, loading
from scoft_losses import at_least_float32, ddim_coefficients


# Those whose next step goes on from the latent that it is given, by the way that they scale it: not at all, or into
# sigma space, z / sqrt(abar).
SCHEDULERS = {"DDIMScheduler": False, "DPMSolverMultistepScheduler": False, "EulerDiscreteScheduler": True}
WEIGHTS_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """How a preference is followed. Raises DataError.

    strength: of the direction, as it is added to the guided prediction; 0: not at all.  start, stop: the first share
    of the steps that is corrected, and the first that no longer is.  cap: the longest move before a step, as a share
    of the latent's norm, row by row; None: any.  inner_steps: into how many a move is divided, each by a direction of
    its own.
    """

    strength: float
    start: float
    stop: float
    cap: float | None
    inner_steps: int

    def __post_init__(self):
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise DataError(f"is a finite number from 0 up, got {self.strength}", argument="strength")
        if not 0 <= self.start < self.stop <= 1:
            raise DataError(f"{self.start} is to lie below stop {self.stop}, both from 0 to 1", argument="start")
        if self.cap is not None and not (math.isfinite(self.cap) and self.cap > 0):
            raise DataError(f"is a positive share of the latent's norm, or None, got {self.cap}", argument="cap")
        if self.inner_steps < 1:
            raise DataError(f"is at least 1, got {self.inner_steps}", argument="inner_steps")


class Corrector(PipelineCallback):
    """Moves the latents before each step but the first along a preference, in the rows that its gate lets through.

    As it is it acts on all rows; `corrector(prompts)` acts on those of prompts that name the culture, and
    `corrector.rows(mask)` on those of a mask. The other rows are not touched.  Each corrected step costs one more call
    of the UNet, of two rows for each row corrected: as much as the step itself under guidance.
    """

    tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(self, preference: Preference, **knobs):
        """knobs: those of `Knobs`, by default the preference's own. Raises DataError."""
        super().__init__()
        self.preference, self.mask = preference, None
        own = {name: preference.config[name] for name in Knobs.__dataclass_fields__}
        self.knobs = Knobs(**own | {name: value for name, value in knobs.items() if value is not None})

    @classmethod
    def from_pretrained(
        cls,
        place: str | Path,
        pipe,
        *,
        culture: str | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        **knobs,
    ) -> "Corrector":
        """The corrector of a folder or a Hub id, for a pipeline: checked to be that base's, and of `culture` if given.

        knobs: as of `Corrector`.  Raises DataError.
        """
        with loading(str(place), flag="the corrector", kind="a corrector: config.json and its safetensors"):
            preference = load_whole(Preference, place, revision=revision, cache_dir=cache_dir)
        own = preference.config.culture
        if culture is not None and own != culture:
            raise DataError(f"{place} is of {own}, not of {culture}; take that culture's", argument="the corrector")
        corrector = cls(preference.requires_grad_(False), **knobs)
        check_scheduler(pipe.scheduler, prediction_type=preference.config.prediction_type)
        preference.check_base(pipe.unet, called=str(place))
        return corrector

    def save_pretrained(self, folder: str | Path):
        """Write config.json, which has the knobs, and the weights."""
        self.preference.register_to_config(**vars(self.knobs))
        self.preference.save_pretrained(folder)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Push what `save_pretrained` writes as one commit; returns the address. Raises DataError."""
        repo_id, private = ready_repo(repo_id, repo_type="model", private=private, flag="repo_id")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            files = {name: Path(folder, name) for name in WEIGHTS_FILES}
            files["config.json"] = shared_config(Path(folder))
            retry = f'corrector.push_to_hub("{repo_id}")'
            message = f"Corrector for {self.preference.config.culture}"
            return push(
                repo_id, repo_type="model", files=files, stale=(), private=private, message=message, retry=retry
            )

    def using(self, **knobs) -> "Corrector":
        """The same with other knobs. Raises DataError."""
        other = copy.copy(self)
        other.knobs = replace(self.knobs, **knobs)
        return other

    # The gate

    def __call__(self, *given):
        """`corrector(prompts)`: gated by a prompt, or a list of them; four arguments: a pipeline's own call."""
        if len(given) != 1:
            return super().__call__(*given)
        (prompts,) = given
        return self.rows([self.names_culture(text) for text in ([prompts] if isinstance(prompts, str) else prompts)])

    def names_culture(self, prompt: str) -> bool:
        """Whether one of the culture's words stands in the prompt, as a word, in small letters or capitals."""
        return any(
            re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE)
            for word in self.preference.config.words
        )

    def rows(self, mask: Sequence[bool]) -> "Corrector":
        """The same, acting on the rows of prompts that are True alone."""
        gated = copy.copy(self)
        gated.mask = torch.tensor([bool(each) for each in mask])
        return gated

    def rows_of(self, latents: torch.Tensor) -> torch.Tensor:
        """The places of the rows acted upon; a prompt's pictures stand together. Raises DataError."""
        if self.mask is None:
            return torch.arange(len(latents))
        each, rest = divmod(len(latents), max(len(self.mask), 1))
        if rest or not each:
            raise DataError(
                f"the corrector was gated by {len(self.mask)} prompts, and the pipeline draws {len(latents)} pictures"
                "; give corrector(prompts) the prompts of the call"
            )
        return self.mask.repeat_interleave(each).nonzero()[:, 0]

    # The update

    def callback_fn(self, pipeline, step_index: int, timestep, callback_kwargs: dict) -> dict:
        """Move the latents, which stand behind a step, for the step that follows; of the last one nothing does."""
        scheduler, knobs = pipeline.scheduler, self.knobs
        check_scheduler(scheduler, prediction_type=self.preference.config.prediction_type)
        latents, rows = callback_kwargs["latents"], self.rows_of(callback_kwargs["latents"])
        place = int((scheduler.timesteps == timestep).nonzero()[-1]) + 1
        steps = len(scheduler.timesteps)
        if place == steps or not knobs.start <= place / steps < knobs.stop or not knobs.strength or not len(rows):
            return callback_kwargs
        c = callback_kwargs["prompt_embeds"][-len(latents) :]  # under guidance those of no words stand before them
        if len(c) != len(latents):
            raise DataError(
                f"There are {len(latents)} latents for {len(c)} text embeddings: another callback cut them"
            )
        moved = latents.clone()
        t = scheduler.timesteps[place].to(latents.device)
        rows = rows.to(latents.device)
        moved[rows] = self.moved(pipeline.unet, scheduler, latents[rows], c[rows], t=t, place=place).to(moved.dtype)
        return callback_kwargs | {"latents": moved}

    @torch.no_grad()
    def moved(self, unet, scheduler, latents: torch.Tensor, c: torch.Tensor, *, t, place: int) -> torch.Tensor:
        """The latents (R, 4, h, w) before step `place`, moved by (b / a) strength times the direction."""
        abar, abar_next = noise_levels(scheduler)[place : place + 2]
        a, b = ddim_coefficients(abar, abar_next, prediction_type=self.preference.config.prediction_type)
        scale = float(abar.sqrt()) if SCHEDULERS[type(scheduler).__name__] else 1.0
        gain = float(b / a) * self.knobs.strength / self.knobs.inner_steps
        z = first = at_least_float32(latents) * scale
        for _ in range(self.knobs.inner_steps):
            z = z + gain * self.preference.direction(unet, z.to(unet.dtype), t, c.to(unet.dtype))
            if self.knobs.cap is not None:
                z = first + within(z - first, self.knobs.cap * norms(first))
        return z / scale


def shared_config(folder: Path) -> bytes:
    """A folder's config.json as it may be shown: where the base model lies on a machine is nobody's business."""
    return json.dumps(without_places(json.loads((folder / "config.json").read_text())), indent=2).encode()


def norms(z: torch.Tensor) -> torch.Tensor:
    """(R, 1, 1, 1)."""
    return z.square().sum((1, 2, 3), keepdim=True).sqrt()


def within(move: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """A move (R, 4, h, w), shortened in each row to a norm of `most` (R, 1, 1, 1) where it is longer."""
    return move * (most / norms(move)).nan_to_num(nan=1.0, posinf=1.0).clamp(max=1)


def noise_levels(scheduler) -> torch.Tensor:
    """abar (n + 1,) before each of a scheduler's n steps, and behind the last; float64 on the CPU."""
    if hasattr(scheduler, "sigmas"):
        return 1 / (1 + scheduler.sigmas.cpu().double() ** 2)
    abar = scheduler.alphas_cumprod.cpu().double()
    last = torch.as_tensor(scheduler.final_alpha_cumprod).cpu().double()
    return torch.cat([abar[scheduler.timesteps.cpu()], last[None]])


def check_scheduler(scheduler, *, prediction_type: str):
    """Raise DataError where a pipeline's scheduler would not follow a corrector."""
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        why = ": it goes on from what it remembers of earlier steps, and nearly drops a move of the latents"
        raise DataError(
            f"the scheduler {name} cannot be corrected{why if 'PNDM' in name else ''}. Take one of "
            f"{', '.join(SCHEDULERS)}: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    found = scheduler.config.prediction_type
    if found != prediction_type or found not in PREDICTIONS:
        raise DataError(
            f"the scheduler predicts {found}, and the corrector was fitted where {prediction_type} is predicted; load "
            "the base model with its own"
        )

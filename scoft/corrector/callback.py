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
from collections.abc import Mapping, Sequence
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
KIND_OF_MODEL = "a corrector: config.json and its safetensors"
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
        for name, value in vars(self).items():
            kinds = int if name == "inner_steps" else (int, float)
            is_number = isinstance(value, kinds) and not isinstance(value, bool)
            if not is_number and not (name == "cap" and value is None):
                raise DataError(f"is a number, got {value!r}", argument=name)
        if not (math.isfinite(self.strength) and self.strength >= 0):
            raise DataError(f"is a finite number from 0 up, got {self.strength}", argument="strength")
        if not 0 <= self.start < self.stop <= 1:
            raise DataError(f"{self.start} is to lie below stop {self.stop}, both from 0 to 1", argument="start")
        if self.cap is not None and not (math.isfinite(self.cap) and self.cap > 0):
            raise DataError(f"is a positive share of the latent's norm, or None, got {self.cap}", argument="cap")
        if self.inner_steps < 1:
            raise DataError(f"is at least 1, got {self.inner_steps}", argument="inner_steps")


def knobs_of(config: Mapping, given: Mapping[str, float | None]) -> Knobs:
    """Those of a corrector's config, but for those that are given. Raises DataError."""
    own = {name: config[name] for name in Knobs.__dataclass_fields__}
    return Knobs(**own | {name: value for name, value in given.items() if value is not None})


def read_config(
    place: str | Path,
    *,
    culture: str | None,
    knobs: Mapping[str, float | None],
    flag: str = "the corrector",
    revision: str | None = None,
    cache_dir: str | None = None,
) -> dict:
    """The config of a corrector's folder or Hub id, with all that is wrong with it known before weights are loaded.

    culture: that it must be of, if any.  Raises DataError, which names the flag.
    """
    with loading(str(place), flag=flag, kind=KIND_OF_MODEL):
        config = Preference.load_config(place, revision=revision, cache_dir=cache_dir)
    if lacking := sorted({"culture", "base_model", *Knobs.__dataclass_fields__} - config.keys()):
        raise DataError(f"{place} is no corrector: its config.json has no {lacking[0]}", argument=flag)
    if culture is not None and config["culture"] != culture:
        raise DataError(f"{place} is of {config['culture']}, not of {culture}; take that culture's", argument=flag)
    knobs_of(config, knobs)
    return config


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
        self.preference, self.mask, self.knobs = preference, None, knobs_of(preference.config, knobs)

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
        where = {"revision": revision, "cache_dir": cache_dir}
        read_config(place, culture=culture, knobs=knobs, **where)
        with loading(str(place), flag="the corrector", kind=KIND_OF_MODEL):
            preference = load_whole(Preference, place, **where)
        corrector = cls(preference.requires_grad_(False), **knobs)
        check_scheduler(pipe.scheduler, prediction_type=preference.config.prediction_type)
        preference.check_base(pipe.unet, called=str(place))
        return corrector

    def save_pretrained(self, folder: str | Path):
        """Write config.json, which has the knobs, and the weights."""
        preference = copy.copy(self.preference)  # others share it, with knobs of their own
        preference.register_to_config(**vars(self.knobs))
        preference.save_pretrained(folder)

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
        return is_named(prompt, self.preference.config.words)

    def rows(self, mask: Sequence[bool]) -> "Corrector":
        """The same, acting on the rows of prompts that are True alone. Raises DataError for none."""
        if not len(mask):
            raise DataError("the corrector was gated by no prompts; corrector itself acts on all rows")
        gated = copy.copy(self)
        gated.mask = torch.tensor([bool(each) for each in mask])
        return gated

    def rows_of(self, c: torch.Tensor) -> torch.Tensor:
        """The places of the rows acted upon, of c (B, 77, D); a prompt's pictures stand together. Raises DataError."""
        if self.mask is None:
            return torch.arange(len(c))
        each, rest = divmod(len(c), len(self.mask))
        by_prompt = c[: len(c) - rest].unflatten(0, (len(self.mask), -1))
        if rest or not each or not by_prompt.eq(by_prompt[:, :1]).all():
            raise DataError(
                f"the corrector was gated by {len(self.mask)} prompts, and the pipeline draws {len(c)} pictures of "
                "others; give corrector(prompts) the prompts of the call"
            )
        return self.mask.repeat_interleave(each).nonzero()[:, 0]

    # The update

    def callback_fn(self, pipeline, step_index: int, timestep, callback_kwargs: dict) -> dict:
        """Move the latents, which stand behind a step, for the step that follows; of the last one nothing does."""
        scheduler, knobs = pipeline.scheduler, self.knobs
        check_scheduler(scheduler, prediction_type=self.preference.config.prediction_type)
        latents = callback_kwargs["latents"]
        c = callback_kwargs["prompt_embeds"][-len(latents) :]  # under guidance those of no words stand before them
        if len(c) != len(latents):
            raise DataError(
                f"There are {len(latents)} latents for {len(c)} text embeddings: another callback cut them"
            )
        rows, steps = self.rows_of(c), len(scheduler.timesteps)
        place = steps - pipeline.num_timesteps + step_index + 1  # img2img begins within the schedule
        if place == steps or not knobs.start <= place / steps < knobs.stop or not knobs.strength or not len(rows):
            return callback_kwargs
        moved = latents.clone()
        t = scheduler.timesteps[place].to(latents.device)
        rows = rows.to(latents.device)
        options = {"t": t, "place": place, "cross_attention_kwargs": pipeline.cross_attention_kwargs}
        moved[rows] = self.moved(pipeline.unet, scheduler, latents[rows], c[rows], **options).to(moved.dtype)
        return callback_kwargs | {"latents": moved}

    @torch.no_grad()
    def moved(
        self, unet, scheduler, latents: torch.Tensor, c: torch.Tensor, *, t: torch.Tensor, place: int, **options
    ) -> torch.Tensor:
        """The latents (R, 4, h, w) before step `place`, moved by (b / a) strength times the direction.

        options: of the UNet's call, as the pipeline has them.
        """
        abar, abar_next = noise_levels(scheduler)[place]
        a, b = ddim_coefficients(abar, abar_next, prediction_type=self.preference.config.prediction_type)
        scale = float(abar.sqrt()) if SCHEDULERS[type(scheduler).__name__] else 1.0
        gain = float(b / a) * self.knobs.strength / self.knobs.inner_steps
        z = first = at_least_float32(latents) * scale
        for _ in range(self.knobs.inner_steps):
            z = z + gain * self.preference.direction(unet, z.to(unet.dtype), t, c.to(unet.dtype), **options)
            if self.knobs.cap is not None:
                z = first + within(z - first, self.knobs.cap * norms(first))
        return z / scale


def is_named(prompt: str, words: Sequence[str]) -> bool:
    """Whether one of the words stands in the prompt, as a word or as its plural in s, in any case."""
    return any(re.search(rf"(?<!\w){re.escape(word)}s?(?!\w)", prompt, re.IGNORECASE) for word in words)


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
    """abar (n, 2) before and behind each of a scheduler's n steps; float64 on the CPU."""
    if hasattr(scheduler, "sigmas"):
        abar = 1 / (1 + scheduler.sigmas.cpu().double() ** 2)
        return torch.stack([abar[:-1], abar[1:]], dim=1)
    abar = scheduler.alphas_cumprod.cpu().double()
    last = torch.as_tensor(scheduler.final_alpha_cumprod).cpu().double()
    before = scheduler.timesteps.cpu()
    behind = before - scheduler.config.num_train_timesteps // scheduler.num_inference_steps  # not the next timestep
    return torch.stack([abar[before], torch.where(behind >= 0, abar[behind.clamp(min=0)], last)], dim=1)


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

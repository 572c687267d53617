"""Fitting a preference: each side denoises, and every update can be gone on from, bit for bit."""

import dataclasses
import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path

from scoft.launch import progress

import torch
from safetensors import SafetensorError, safe_open

from scoft.base_model import StableDiffusion
from scoft.correct.pairs import Noised, Pairs
from scoft.corrector.preference import NEGATIVE, POSITIVE, Preference, Sides
from scoft.errors import DataError
from scoft.files import write_atomically
from scoft.lora_folder import write_safetensors
from scoft.randomness import stable_generator
from scoft_losses import ldm_loss


logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint.safetensors"
METRICS_FILE = "metrics.jsonl"
LEVELS = (0.3, 0.5, 0.7, 0.9)  # of the timesteps, at which held-out pairs are told apart
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitting:
    """How a preference is fitted; all of it decides the result."""

    seed: int
    batch_size: int  # on each side
    updates: int
    learning_rate: float  # at the start; it falls to 0 by a half cosine
    max_grad_norm: float
    snr_gamma: float | None  # min-SNR weighting of the denoising loss
    negative_weight: float  # of denoising negatives by the negative side; 0: it stays the base model as it is
    pair_weight: float  # of -log sigmoid(beta (r+ - r-)) on pairs
    beta: float


@dataclasses.dataclass
class Fit:
    """A fit as far as it has come, which `run` takes to its end."""

    preference: Preference
    model: StableDiffusion
    pairs: Pairs
    fitting: Fitting
    folder: Path
    key: str  # of all that decides the result
    step: int = 0

    def __post_init__(self):
        self.parameters = dict(self.preference.named_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=self.fitting.learning_rate, weight_decay=0.0)

    def losses(self, update: int) -> dict[str, torch.Tensor]:
        """The terms of an update, scalars, unweighted."""
        fitting, preference, unet = self.fitting, self.preference, self.model.unet
        known, terms = {"size": fitting.batch_size, "seed": fitting.seed}, {}
        is_sided = isinstance(preference.rule, Sides)
        if is_sided:
            batch, sides = self.pairs.batch(update, of="photographs", **known), {"positive": POSITIVE}
            if fitting.negative_weight:
                batch += self.pairs.batch(update, of="negatives", **known)
                sides["negative"] = NEGATIVE
            prediction = preference.rule.predict(unet, batch.z, batch.t, batch.c, sides=tuple(sides.values()))
            w_t = None
            if fitting.snr_gamma is not None:
                w_t = self.model.snr_weights(batch.t.cpu(), gamma=fitting.snr_gamma).to(batch.z.device)
            losses = ldm_loss(prediction, batch.target, w_t=w_t).chunk(len(sides))
            terms = {side: loss.mean() for side, loss in zip(sides, losses)}
        if fitting.pair_weight or not is_sided:
            photographs, negatives = (
                self.pairs.batch(update, of=of, **known) for of in ("their photographs", "negatives")
            )
            terms["pairs"] = pair_loss(preference, unet, photographs, negatives, beta=fitting.beta if is_sided else 1)
        return terms

    def update(self) -> dict[str, float]:
        """Do the next one; its numbers, as metrics.jsonl has them."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate = self.rate_at(self.step)
        terms = self.losses(self.step)
        weights = {"negative": self.fitting.negative_weight}
        if "positive" in terms:
            weights["pairs"] = self.fitting.pair_weight
        loss = sum(weights.get(name, 1.0) * term for name, term in terms.items())
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.fitting.max_grad_norm)
        numbers = {"loss": loss, **{f"loss/{name}": term for name, term in terms.items()}, "grad_norm": norm}
        numbers = {name: float(number.detach()) for name, number in numbers.items()}
        if broken := [name for name, number in numbers.items() if not math.isfinite(number)]:
            raise FloatingPointError(
                f"update {self.step + 1}: {', '.join(broken)} not finite; a lower --learning_rate or "
                "--mixed_precision bf16 may help"
            )
        self.optimizer.step()
        self.step += 1
        return {"step": self.step, **numbers, "lr": rate}

    def rate_at(self, step: int) -> float:
        return self.fitting.learning_rate * (1 + math.cos(math.pi * step / self.fitting.updates)) / 2

    def run(self, *, checkpointing_steps: int):
        """Fit to the end."""
        metrics = self.folder / METRICS_FILE
        lines = metrics.read_text(errors="replace").splitlines() if metrics.exists() else []
        steps = [re.match(r'{"step": (\d+),', line) for line in lines]  # a kill may have torn the last line
        kept = [line for line, found in zip(lines, steps) if found and int(found[1]) <= self.step]
        write_atomically(metrics, "".join(f"{line}\n" for line in kept))
        total = self.fitting.updates
        with progress(initial=self.step, total=total, desc="Updates") as bar, metrics.open("a") as file:
            while self.step < total:
                numbers = self.update()
                file.write(json.dumps(numbers) + "\n")
                bar.update()
                bar.set_postfix({"loss": f"{numbers['loss']:.3g}"}, refresh=False)
                if self.step % checkpointing_steps == 0 or self.step == total:
                    file.flush()
                    self.save()

    # Checkpoints

    def save(self):
        """Write the weights, their moments and the update into one file, which is there whole or not at all."""
        state = self.optimizer.state
        tensors = {f"weight.{name}": each.detach() for name, each in self.parameters.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{moment}.{name}": state[parameter][moment] for moment in MOMENTS}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"step": str(self.step), "key": self.key}
        write_safetensors(self.folder / CHECKPOINT_FILE, tensors, metadata=metadata)

    def resume(self):
        """Go on from the folder's checkpoint, where there is one. Raises DataError for another fit's, or a damaged."""
        file = self.folder / CHECKPOINT_FILE
        if not file.exists():
            logger.info("Resuming from the start: no checkpoint yet.")
            return
        remedy = "Choose another --output_dir, or remove the file to begin anew"
        try:
            with safe_open(file, framework="pt") as saved:
                metadata = saved.metadata() or {}
                tensors = {name: saved.get_tensor(name) for name in saved.keys()}
        except (SafetensorError, OSError) as error:
            raise DataError(f"latest: {file} cannot be read ({error}). {remedy}", argument=RESUME) from error
        if metadata.get("key") != self.key:
            raise DataError(f"latest: {file} is of a fit with other flags or data. {remedy}", argument=RESUME)
        self.step = int(metadata["step"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
                moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}
        logger.info("Resuming from %s, after %d updates.", file, self.step)


RESUME = "resume_from_checkpoint"


def pair_loss(preference, unet, photographs: Noised, negatives: Noised, *, beta: float) -> torch.Tensor:
    """-log sigmoid(beta (r+ - r-)), the mean over pairs."""
    both = photographs + negatives
    better, worse = preference.reward(unet, both.z, both.t, both.c, both.target).chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (better - worse)).mean()


# ---------------------------------------------------------------------------------------------------------------------
# What was learnt
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def pair_accuracy(preference: Preference, pairs: Pairs, *, seed: int) -> dict[str, list[float]]:
    """The share of held-out pairs, a photograph and a negative of it under one noise, told apart at each of LEVELS.

    By chance that is half, or somewhat more: a preference that learnt nothing may still take to smooth pictures.
    """
    right = [
        torch.cat([better - worse for better, worse in rewards_of_held_out(preference, pairs, level, seed=seed)])
        for level in LEVELS
    ]
    return {
        "timestep": [round(level * pairs.model.num_train_timesteps) for level in LEVELS],
        "held_out": [float((each > 0).float().mean()) for each in right],
    }


def rewards_of_held_out(
    preference: Preference, pairs: Pairs, level: float, *, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """r+ and r- (K,) of each held-out row with K negatives, on the CPU."""
    for row in pairs.split.held_out:
        photograph, negatives = pairs.photographs[row], pairs.negatives[row]
        z_0 = torch.stack([photograph.mean, *(each.mean for each in negatives)])
        generator = stable_generator(seed, "held-out noise", row, round(1000 * level))
        eps = torch.randn(photograph.mean.shape, generator=generator).expand_as(z_0)
        t = torch.full((len(z_0),), round(level * pairs.model.num_train_timesteps))
        batch = pairs.noised(z_0, eps, t, [pairs.captions[row][0]] * len(z_0))
        rewards = preference.reward(pairs.model.unet, batch.z, batch.t, batch.c, batch.target).cpu()
        yield rewards[:1].expand(len(negatives)), rewards[1:]

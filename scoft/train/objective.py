"""The run's objective: all that is decided of it before the first update, and nothing that changes after."""

import copy
import dataclasses
from typing import Literal

import torch

from scoft.base_model import StableDiffusion
from scoft.distances.base import PerceptualDistance
from scoft.randomness import stable_generator
from scoft.train.constants import Constants, pad_rows, to_device
from scoft.train.examples import is_due
from scoft.train.terms import ACTIVE, IMAGE_TERMS
from scoft_losses import (
    RecordedStepDenoiser,
    Rollout,
    active_negatives,
    latent_gradient,
    ldm_loss,
    memorization_loss,
    perceptual_loss,
    recorded_step_surrogate,
    self_contrastive_loss,
    weighted_sum,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLosses:
    """What the losses on images, L_P and L_C, are made of."""

    distance: PerceptualDistance  # S
    denoiser: RecordedStepDenoiser  # z_t -> z_hat_0
    negative_weight: float  # lambda
    margin: float  # m
    every: int  # they fall on each update that is a multiple of this

    @property
    def hinge(self) -> dict[str, float]:
        """What L_C has besides distances."""
        return {"negative_weight": self.negative_weight, "margin": self.margin}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What `training_losses` computes with."""

    model: StableDiffusion
    constants: Constants
    weights: dict[str, float]  # of the terms wanted
    teacher: Literal["current", "base"]  # whose weights predict for the naive captions
    snr_gamma: float | None  # None: w_t is 1
    images: ImageLosses | None  # None: no term is on images
    naive_captions: int | None = None  # to so many a batch is filled up, always to one shape; None: it is not

    def assemble(self, batch: dict, step: int) -> dict:
        """A collated batch of update `step` as `training_losses` takes it; with features where L_P and L_C are due."""
        with_images = self.images is not None and is_due(step, self.images.every)
        return self.constants.assemble(batch, with_images=with_images)

    def teach(self, batch: dict, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """eps(c_blip) (N, 4, h, w) at z_t, what the teacher predicts for the naive captions; without gradient."""
        predict = self.model.predict_base if self.teacher == "base" else self.model.predict_frozen
        rows, c_blip = batch["blip_rows"], batch["c_blip"]
        count = len(rows)
        if self.naive_captions:  # the fill is the first caption once more, and dropped
            index = torch.arange(self.naive_captions)
            index[count:] = 0
            rows, c_blip = rows[index], c_blip[to_device(index, c_blip.device)]
        rows = to_device(rows, z_t.device)
        return predict(z_t[rows], t[rows], c_blip)[:count]

    def roll_out(self, batch: dict, z_t: torch.Tensor) -> Rollout:
        """z_t denoised to z_hat_0 under the LoRA as it is, with guidance; without gradient."""
        captions = torch.cat([batch["c_ccub"], batch["c_null"]])
        with self.model.merged_lora() as predict:

            def predict_pair(z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return predict(torch.cat([z, z]), torch.cat([t, t]), captions).chunk(2)

            return self.images.denoiser(predict_pair, z_t, batch["t"], batch["recorded_u"])

    def term_norms(self, batch: dict, *, scaler) -> dict[str, torch.Tensor]:
        """The norm of each weighted term's gradient in the LoRA, by name, on this process's rows of the batch.

        The objective is computed here once for each term.  scaler: of gradients in fp16, None in other precisions.
        """
        model, norms = copy.copy(self.model), {}
        model.trained = model.network  # whose gradients no other process waits for
        parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
        scale = scaler.get_scale() if scaler else 1.0
        without_images = {name: part for name, part in batch.items() if name != "f_pos"}
        for term, weight in self.weights.items():
            if term in IMAGE_TERMS and "f_pos" not in batch:
                continue
            needed = batch if term in IMAGE_TERMS else without_images
            loss, _ = training_losses(needed, dataclasses.replace(self, model=model, weights={term: weight}))
            gradients = torch.autograd.grad(loss * scale, parameters)
            norms[f"grad_norm/{term}"] = torch.nn.utils.get_total_norm(gradients) / scale
        return norms

    def check_prediction(self, step: int, *, seed: int, resolution: int):
        """Losses tell of the weights before an update; those after it, which are saved, show here what they are.

        Raises FloatingPointError.
        """
        c_null = self.constants.embed([""])
        if self.model.is_framed:
            whole = torch.tensor([[resolution, resolution, 0, 0]], device=c_null.device)
            c_null = self.model.framed(c_null, whole)
        generator = stable_generator(seed, "check")
        z = torch.randn(1, *self.model.latent_shape(resolution), generator=generator).to(c_null.device)
        t = torch.tensor([self.model.num_train_timesteps // 2], device=c_null.device)
        with torch.compiler.set_stance("force_eager"):  # one call is not worth compiling for
            prediction = self.model.predict_frozen(z, t, c_null)
        if not prediction.isfinite().all():
            raise FloatingPointError(
                f"update {step} left weights with which the UNet's prediction is not finite; no checkpoint of them is "
                "written. A lower --learning_rate or --mixed_precision bf16 may help"
            )


def training_losses(batch: dict, objective: Objective) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The SCoFT objective on one micro-batch (section 4), its terms and what else is logged; scalars, means over rows.

    batch: z_0 and eps (B, 4, h, w); c_ccub and c_null (B, L, D); c_blip (N, L, D); where L_P and L_C are due, f_pos
        (B, P, D), f_neg (B, K, P, D) and is_negative (B, K).  On the CPU, so that no device is waited for: t (B,),
        recorded_u (B,) and blip_rows (N,), the row that each naive caption belongs to, in order.
    """
    model, weights, images = objective.model, objective.weights, objective.images if "f_pos" in batch else None
    z_0, eps, c_ccub = batch["z_0"], batch["eps"], batch["c_ccub"]
    size, t = len(z_0), to_device(batch["t"], z_0.device)
    z_t = model.noised(z_0, eps, t)

    # All that carries no gradient comes first.
    eps_blip = objective.teach(batch, z_t, t) if "memorization" in weights else None
    z_in, t_in, c_in = z_t, t, c_ccub
    if images:
        rollout = objective.roll_out(batch, z_t)
        g, image_terms = latent_gradient(lambda z: image_losses(z, batch, objective), weights, rollout.z_hat_0)
        if images.denoiser.recorded_step != "first":
            z_in, t_in = torch.cat([z_t, rollout.z_recorded]), torch.cat([t, rollout.t_recorded])
            c_in = torch.cat([c_ccub, c_ccub])

    # The one graph of the update.  Where the first step is recorded, its prediction is L_LDM's own.
    eps_theta = model.predict(z_in, t_in, c_in)
    eps_theta, eps_recorded = eps_theta[:size], eps_theta[-size:]

    terms = {}
    if "ldm" in weights:
        w_t = objective.snr_gamma and model.snr_weights(t, gamma=objective.snr_gamma)
        terms["ldm"] = ldm_loss(eps_theta, model.target(z_0, eps, t), w_t=w_t)
    if "memorization" in weights:
        counts = torch.bincount(batch["blip_rows"], minlength=size).tolist()
        terms["memorization"] = memorization_loss(eps_theta, *pad_rows(list(eps_blip.split(counts))))

    loss = weighted_sum(terms, weights)
    if images:
        loss = loss + recorded_step_surrogate(eps_recorded, rollout.c, g)
        terms |= image_terms
    return loss.mean(), {name: term.detach().mean() for name, term in terms.items()}


def image_losses(z: torch.Tensor, batch: dict, objective: Objective) -> dict[str, torch.Tensor]:
    """L_P and L_C (equations 3 and 4) of a latent z (B, 4, h, w), each (B,), as far as they have a weight.

    Beside L_C comes the share of the negatives that it sees.
    """
    images, weights = objective.images, objective.weights
    f_hat = images.distance.embed(objective.model.decode(z))
    d_pos = perceptual_loss(images.distance, f_hat, batch["f_pos"])
    terms = {"perceptual": d_pos} if "perceptual" in weights else {}
    if "contrastive" in weights:
        distances = d_pos, images.distance.compare(f_hat[:, None], batch["f_neg"]), batch["is_negative"]
        terms["contrastive"] = self_contrastive_loss(*distances, **images.hinge)
        terms[ACTIVE] = active_negatives(*distances, **images.hinge)
    return terms

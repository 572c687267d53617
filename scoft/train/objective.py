"""The run's objective: all that is decided of it before the first update, and nothing that changes after."""

import dataclasses
from typing import Literal

import torch

from scoft.base_model import StableDiffusion
from scoft.distances import PerceptualDistance
from scoft.randomness import stable_generator
from scoft.train.constants import Constants, to_device
from scoft.train.examples import is_due
from scoft_losses import RecordedStepDenoiser


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageLosses:
    """What the losses on images, L_P and L_C, are made of."""

    distance: PerceptualDistance  # S
    denoiser: RecordedStepDenoiser  # z_t -> z_hat_0
    negative_weight: float  # lambda
    margin: float  # m
    every: int  # they fall on each update that is a multiple of this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What `training_losses` computes with."""

    model: StableDiffusion
    constants: Constants
    weights: dict[str, float]  # of the terms wanted
    teacher: Literal["current", "base"]  # whose weights predict for the naive captions
    snr_gamma: float | None  # None: w_t is 1
    images: ImageLosses | None  # None: no term is on images

    def assemble(self, batch: dict, step: int) -> dict:
        """A collated batch of update `step` as `training_losses` takes it; with features where L_P and L_C are due."""
        with_images = self.images is not None and is_due(step, self.images.every)
        return self.constants.assemble(batch, with_images=with_images)

    def constant_predictions(
        self, batch: dict, z_t: torch.Tensor, t: torch.Tensor, *, with_images: bool
    ) -> tuple[list[torch.Tensor] | None, torch.Tensor | None]:
        """eps(c_ccub) and eps(null) at z_t, and eps(c_blip), in as few calls as the teacher allows; without gradient.

        None where not needed; the pair is left to the denoiser where it cannot ride along with the naive captions.
        """
        if "memorization" not in self.weights:
            return None, None
        model, is_base = self.model, self.teacher == "base"
        rows = to_device(batch["blip_rows"], z_t.device)
        z_blip, t_blip, c_blip = z_t[rows], t[rows], batch["c_blip"]
        if is_base or not with_images:
            return None, (model.predict_base if is_base else model.predict_frozen)(z_blip, t_blip, c_blip)
        captions = torch.cat([batch["c_ccub"], batch["c_null"], c_blip])
        predictions = model.predict_frozen(torch.cat([z_t, z_t, z_blip]), torch.cat([t, t, t_blip]), captions)
        *pair, eps_blip = predictions.split([len(z_t), len(z_t), len(rows)])
        return pair, eps_blip

    def check_prediction(self, step: int, *, seed: int, resolution: int):
        """Losses tell of the weights before an update; those after it, which are saved, show here what they are.

        Raises FloatingPointError.
        """
        c_null = self.constants.embed([""])
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

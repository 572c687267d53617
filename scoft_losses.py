"""What SCoFT trains with: section 4 of the paper as pure functions, in three shelves.

1. Losses (equations 1 to 4).  2. Denoising with one recorded step (section 4.3).  3. The same by flow matching.

    symbol      meaning                                                              shape, range
    z_0, z_t    latent of the photograph x+, and the same noised to timestep t       (B, 4, h, w)
    t           timestep, 1 .. T-1                                                   (B,) integers
    abar        alphas_cumprod of the noise scheduler: z_t = sqrt(abar) z_0 + sqrt(1 - abar) eps
    eps         the noise; under v-prediction, the velocity takes its place          (B, 4, h, w)
    eps_theta   the UNet's prediction, in the model's own prediction space           (B, 4, h, w)
    z_hat_0     clean latent after DDIM from z_t; x_hat = decode(z_hat_0)            (B, 4, h, w)
    x_hat, x+   generated image and photograph;  x-_k: its negatives                 (B, 3, H, W) in [-1, 1]
    S           a perceptual *distance*: 0 for identical images, larger is less alike

Losses return one value per sample, (B,); the caller reduces.  No function here knows of command-line arguments, of a
dataset or of a pipeline.  Every departure is marked "Differs from the paper:" or "Differs from the authors' code:".

Paper: SCoFT: Self-Contrastive Fine-Tuning for Equitable Image Generation, https://arxiv.org/abs/2401.08053
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


RECORDED_STEPS = ("first", "last", "random")
RECORDED_STEP_SCALINGS = ("paper", "normalized")


# ---------------------------------------------------------------------------------------------------------------------
# 1. Losses
# ---------------------------------------------------------------------------------------------------------------------


def ldm_loss(eps_theta: torch.Tensor, eps: torch.Tensor, *, w_t: torch.Tensor | None = None) -> torch.Tensor:
    """L_LDM (equation 1): w_t || eps - eps_theta(z_t, c_ccub, t) ||^2, the mean over a sample's elements.

    eps_theta, eps (B, ...): prediction and target, both noise or both velocity.  w_t (B,): 1 if absent.  Returns (B,).

    Differs from the paper: it prints the norm unsquared; the authors' code, whose weights we use, takes this mean.
    """
    loss = (at_least_float32(eps_theta) - at_least_float32(eps)).square().flatten(1).mean(1)
    return loss if w_t is None else w_t * loss


def min_snr_weights(
    t: torch.Tensor, alphas_cumprod: torch.Tensor, *, gamma: float, prediction_type: str
) -> torch.Tensor:
    """w_t of "Efficient Diffusion Training via Min-SNR Weighting Strategy" (https://arxiv.org/abs/2303.09556).

    min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v-prediction.  t (B,) integers; returns (B,).
    The first is written as min(1, gamma / SNR), which stays 1 where zero terminal SNR makes diffusers' script divide
    by zero.
    """
    abar = alphas_cumprod[t]
    snr = abar / (1 - abar)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def memorization_loss(eps_theta: torch.Tensor, eps_blip: torch.Tensor, is_caption: torch.Tensor) -> torch.Tensor:
    """L_M (equation 2): || eps_theta(z_t, c_ccub, t) - mean_i sg[eps_theta(z_t, c_blip_i, t)] ||^2.

    eps_theta (B, ...).  eps_blip (B, K, ...): predictions for the naive captions, padded to K; never carries gradient.
    is_caption (B, K): True where a caption exists; each row needs at least one.  Returns (B,).

    The gradient for one caption drawn at random equals in expectation that for the mean over all captions; more
    captions only lower its variance.
    """
    eps_blip = at_least_float32(eps_blip.detach())
    share = is_caption.to(eps_blip.dtype) / is_caption.sum(1, keepdim=True)
    teacher = torch.einsum("bk,bk...->b...", share, eps_blip)
    return ldm_loss(eps_theta, teacher)


def perceptual_loss(distance: nn.Module, f_hat: torch.Tensor, f_pos: torch.Tensor) -> torch.Tensor:
    """L_P (equation 3): S(x_hat, x+), from the features of both.

    f_hat, f_pos (B, P, D): `distance.embed` of x_hat (with gradient) and of x+ (a constant, so it can be cached).
    Returns (B,).  Differs from the authors' code: they take unweighted VGG-16 feature differences here and another
    distance in L_C; the paper has one S for both.
    """
    return distance.compare(f_hat, f_pos)


def self_contrastive_loss(
    d_pos: torch.Tensor, d_neg: torch.Tensor, is_negative: torch.Tensor, *, negative_weight: float, margin: float
) -> torch.Tensor:
    """L_C (equation 4): mean over k of max(S(x_hat, x+) - lambda S(x_hat, x-_k) + m, 0).

    d_pos (B,): distances to the photographs.  d_neg (B, K): to the negatives, padded to K.  is_negative (B, K): True
    where a negative exists.  negative_weight: lambda.  margin: m.  Returns (B,).

    A row without negatives gives 0 and still counts in the batch mean, so batches keep their size.
    Differs from the paper: it calls S a similarity; the equation only works with a distance.
    Differs from the authors' code: there is no hinge and no margin there, so the loss is unbounded below.
    """
    hinge = _hinge(d_pos, d_neg, is_negative, negative_weight=negative_weight, margin=margin)
    return hinge.sum(1) / is_negative.sum(1).clamp(min=1)


def active_negatives(
    d_pos: torch.Tensor, d_neg: torch.Tensor, is_negative: torch.Tensor, *, negative_weight: float, margin: float
) -> torch.Tensor:
    """The share (B,) of a row's negatives, 0 of none, that L_C, see there, sees: farther ones have no gradient."""
    hinge = _hinge(d_pos, d_neg, is_negative, negative_weight=negative_weight, margin=margin)
    return (hinge > 0).sum(1) / is_negative.sum(1).clamp(min=1)


def _hinge(d_pos, d_neg, is_negative, *, negative_weight: float, margin: float) -> torch.Tensor:
    """(B, K), 0 where there is no negative."""
    return torch.where(is_negative, (d_pos[:, None] - negative_weight * d_neg + margin).clamp(min=0), 0)


def weighted_sum(terms: dict[str, torch.Tensor], weights: dict[str, float]) -> torch.Tensor:
    """L = sum over the terms of weight times term (section 4).  A term without a weight is a KeyError."""
    return sum(weights[name] * term for name, term in terms.items())


# ---------------------------------------------------------------------------------------------------------------------
# 2. Denoising with one recorded step (section 4.3)
# ---------------------------------------------------------------------------------------------------------------------
#
# z_t is denoised by DDIM (eta 0) under classifier-free guidance, and the gradient flows through the conditional noise
# prediction of one step alone.  Every other noise prediction is a constant (.sg), eps(null) too, and nothing is
# clipped.  The final latent is then affine in the recorded prediction: z_hat_0 = A + c eps_theta, with a scalar c per
# sample that is known beforehand.  So the gradient of any loss of x_hat needs no graph through the sampler:
#
#     g = d loss / d z_hat_0  at a leaf,   then   <sg[c g], eps_theta>   has the same gradient in the UNet's weights.
#
# Under v-prediction the noise prediction is eps_theta = sqrt(1 - abar) z + sqrt(abar) v_theta, and it is this eps that
# .sg holds constant at the other steps, as in the paper: the method does not depend on the network's parametrisation.


def denoising_timetables(t: torch.Tensor, *, num_steps: int) -> torch.Tensor:
    """Each row's own way from t to clean in n = min(num_steps, t) steps: t_j = t - floor(j t / n), then -1 for clean.

    t (B,) integers >= 1.  Returns (B, num_steps + 1): row b starts at t[b], falls strictly for n steps and stays at -1
    (abar = 1) from column n on.

    Differs from the authors' code: k = t // 19 makes uneven steps, two steps for every t < 19, and fails at t = 0.
    """
    if t.min() < 1:
        raise ValueError(f"denoising starts at a timestep t >= 1, got t = {int(t.min())}")
    t = t[:, None]
    n = t.clamp(max=num_steps)
    j = torch.arange(num_steps + 1)
    return torch.where(j < n, t - j * t // n, -1)


def recorded_index(which: str, t: torch.Tensor, u: torch.Tensor, *, num_steps: int) -> torch.Tensor:
    """Which step of each row's timetable records the gradient: first 0, last n - 1, random uniform on 0 .. n - 1.

    t (B,) integers.  u (B,): uniform draws in [0, 1), used by random alone.  Returns (B,) integers.
    """
    n = t.clamp(max=num_steps)
    return {"first": torch.zeros_like(t), "last": n - 1, "random": (u * n).long().clamp(max=n - 1)}[which]


def ddim_coefficients(
    abar: torch.Tensor, abar_next: torch.Tensor, *, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """a, b of the DDIM step z' = a z + b prediction (eta 0, no clipping of the predicted z_0).

    From abar to abar_next >= abar, elementwise.  At abar = 1, a finished row, a = 1 and b = 0: it stands still.
    """
    if prediction_type == "v_prediction":
        a = (abar_next * abar).sqrt() + ((1 - abar_next) * (1 - abar)).sqrt()
        b = ((1 - abar_next) * abar).sqrt() - (abar_next * (1 - abar)).sqrt()
    else:
        a = (abar_next / abar).sqrt()
        b = (1 - abar_next).sqrt() - (abar_next * (1 - abar) / abar).sqrt()
    return a, b


def recorded_gain(
    abar: torch.Tensor, abar_next: torch.Tensor, *, guidance_scale: float, prediction_type: str
) -> torch.Tensor:
    """c of z_hat_0 = A + c eps_theta for a gradient recorded at the step abar -> abar_next; guidance_scale is 1 + w.

    The step's b times the scale; every later step multiplies z by sqrt(abar_next / abar), which telescopes to
    1 / sqrt(abar_next).  Under v-prediction b already holds the factor sqrt(abar), so c stays finite at zero SNR.
    """
    _, b = ddim_coefficients(abar, abar_next, prediction_type=prediction_type)
    return guidance_scale * b / abar_next.sqrt()


def guide(eps_cond: torch.Tensor, eps_null: torch.Tensor, *, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance (1 + w) eps_cond - w eps_null with guidance_scale = 1 + w (section 4.3)."""
    return eps_null + guidance_scale * (eps_cond - eps_null)


class Rollout(NamedTuple):
    """What `RecordedStepDenoiser` returns."""

    z_hat_0: torch.Tensor  # (B, 4, h, w) clean latent, no gradient
    z_recorded: torch.Tensor  # (B, 4, h, w) latent at which the recorded step's prediction is made
    t_recorded: torch.Tensor  # (B,) its timestep
    c: torch.Tensor  # (B,) d z_hat_0 / d eps_theta(z_recorded, c_ccub, t_recorded), scaled as asked for


class RecordedStepDenoiser:
    """DDIM from z_t to clean in `num_steps` steps; rows of different t go together, each on its own timetable.

    alphas_cumprod (T,): the noise scheduler's.  guidance_scale: 1 + w.  recorded_step: first, last or random.
    scaling: `paper` takes c as derived; it grows about 1300-fold from t = 37 to t = 999 on SD's schedule.
    `normalized` puts sign(c) times the root mean square of c over t = 1 .. T-1 (and, for random, over the steps) in
    its place, so that every t pulls alike.

    Tables are float64; timesteps and tables live on the CPU, where they are drawn, so nothing here waits for a device.
    Raises ValueError on epsilon prediction with zero terminal SNR, where DDIM divides by zero.
    """

    def __init__(
        self,
        alphas_cumprod: torch.Tensor,
        *,
        prediction_type: str,
        num_steps: int,
        guidance_scale: float,
        recorded_step: str = "first",
        scaling: str = "paper",
    ):
        if recorded_step not in RECORDED_STEPS or scaling not in RECORDED_STEP_SCALINGS:
            raise ValueError(
                f"recorded_step is one of {RECORDED_STEPS} and scaling one of {RECORDED_STEP_SCALINGS}, "
                f"got {recorded_step!r} and {scaling!r}"
            )
        if prediction_type == "epsilon" and alphas_cumprod.min() <= 0:
            raise ValueError("epsilon prediction cannot start from zero terminal SNR; use a v-prediction model")
        # The appended 1 is what the clean mark -1 of a timetable indexes.
        self.abar = torch.cat([alphas_cumprod.detach().double().cpu(), torch.ones(1, dtype=torch.float64)])
        self.prediction_type = prediction_type
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.recorded_step = recorded_step
        self.rms_gain = self._rms_gain() if scaling == "normalized" else None

    def _rms_gain(self) -> torch.Tensor:
        t = torch.arange(1, len(self.abar) - 1)
        draws = self.num_steps if self.recorded_step == "random" else 1
        # One draw for each step; where t < num_steps, several fall on one step, as evenly as they divide.
        c = torch.stack([self._gain(t, torch.full(t.shape, (k + 0.5) / draws)) for k in range(draws)])
        return c.square().mean().sqrt()

    def _gain(self, t: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        timetables = denoising_timetables(t, num_steps=self.num_steps)
        index = recorded_index(self.recorded_step, t, u, num_steps=self.num_steps)[:, None]
        return recorded_gain(
            self.abar[timetables.gather(1, index)[:, 0]],
            self.abar[timetables.gather(1, index + 1)[:, 0]],
            guidance_scale=self.guidance_scale,
            prediction_type=self.prediction_type,
        )

    @torch.no_grad()
    def __call__(
        self,
        predict: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
        z_t: torch.Tensor,
        t: torch.Tensor,
        u: torch.Tensor,
    ) -> Rollout:
        """Denoise z_t (B, 4, h, w) from t (B,), on the CPU; u (B,) are the draws for `recorded_step="random"`.

        predict(z, t) returns the predictions (eps_cond, eps_null) at z, each (B, 4, h, w); t is on z's device.  No
        call runs with gradients on; latents keep z_t's dtype.
        """
        timetables = denoising_timetables(t, num_steps=self.num_steps)
        recorded = recorded_index(self.recorded_step, t, u, num_steps=self.num_steps)
        a, b = ddim_coefficients(
            self.abar[timetables[:, :-1]], self.abar[timetables[:, 1:]], prediction_type=self.prediction_type
        )
        is_recorded = torch.arange(self.num_steps) == recorded[:, None]
        c = self._gain(t, u) if self.rms_gain is None else self._gain(t, u).sign() * self.rms_gain
        # non_blocking: the device may still be busy, and these few numbers need not wait for it.
        a, b, c = (table.to(z_t.device, z_t.dtype, non_blocking=True) for table in (a, b, c))
        is_recorded, tau = (
            table.to(z_t.device, non_blocking=True) for table in (is_recorded, timetables.clamp(min=0))
        )
        a, b, is_recorded = (table[..., None, None, None] for table in (a, b, is_recorded))

        z = z_recorded = z_t
        for j in range(int(t.max().clamp(max=self.num_steps))):
            z_recorded = torch.where(is_recorded[:, j], z, z_recorded)
            # A finished row rests: the UNet is asked about timestep 0 for it, and b = 0 drops the answer.
            eps_cond, eps_null = predict(z, tau[:, j])
            z = a[:, j] * z + b[:, j] * guide(eps_cond, eps_null, guidance_scale=self.guidance_scale).to(z)

        t_recorded = tau.gather(1, recorded[:, None].to(tau.device, non_blocking=True))[:, 0]
        return Rollout(z, z_recorded, t_recorded, c)


def latent_gradient(
    image_terms: Callable[[torch.Tensor], dict[str, torch.Tensor]], weights: dict[str, float], z_hat_0: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """g = d sum_b (w_p L_P + w_c L_C)_b / d z_hat_0 with z_hat_0 as a leaf; its graph is freed before this returns.

    image_terms: z (B, 4, h, w) -> the image-space losses of decode(z) by name, each (B,), and numbers to be looked at,
    which have no weight.  weights: by the same names.  Returns g (B, 4, h, w), and all that image_terms did, detached.
    """
    with torch.enable_grad():
        z = z_hat_0.detach().requires_grad_(True)
        terms = image_terms(z)
        losses = {name: term for name, term in terms.items() if name in weights}
        (g,) = torch.autograd.grad(weighted_sum(losses, weights).sum(), z)
    return g, {name: term.detach() for name, term in terms.items()}


def recorded_step_surrogate(eps_theta: torch.Tensor, c: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """<sg[c g], eps_theta> per sample: its gradient is that of the image losses through the recorded step.

    eps_theta (B, 4, h, w): the conditional prediction at the recorded step, with gradient.  c (B,).  g (B, 4, h, w).
    Returns (B,), summed over elements in at least float32.  The value means nothing: add it to the objective, never
    log it as a loss.
    """
    eps_theta = at_least_float32(eps_theta)
    weight = (c[:, None, None, None] * g).detach().to(eps_theta)
    return (weight * eps_theta).flatten(1).sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# 3. The same by flow matching
# ---------------------------------------------------------------------------------------------------------------------
#
# Models of today mix z_sigma = (1 - sigma) z_0 + sigma eps and predict the velocity v = eps - z_0; Euler's step is
# z' = z + (sigma' - sigma) v.  As above, .sg holds the noise prediction of every other step constant, which here is
# eps_hat = z + (1 - sigma) v.  Such a step multiplies z by (1 - sigma') / (1 - sigma), which telescopes: again the
# final latent is affine in the recorded prediction, z_hat_0 = A + c v_theta, and since only the steps after it count,
# the way may start from pure noise, sigma = 1.  g = d loss / d z_hat_0 and the surrogate are those of above.


def flow_timetables(sigma: torch.Tensor, *, num_steps: int, shift: float) -> torch.Tensor:
    """Each row's own way from sigma to clean: even steps of what the schedule's shift makes uneven, 0 at the end.

    sigma (B,) in (0, 1].  shift: alpha of sigma = alpha u / (1 + (alpha - 1) u), the scheduler's own, or e^mu where
    it depends on the size of the picture.  Returns (B, num_steps + 1) in sigma's dtype; from 1 they are diffusers'
    `set_timesteps(sigmas=...)` of 1 - j / num_steps.
    """
    if not ((sigma > 0) & (sigma <= 1)).all():
        raise ValueError(f"denoising starts at a noise level sigma above 0 and up to 1, got {sigma.tolist()}")
    u = sigma / (shift - (shift - 1) * sigma)
    u = u[:, None] * (1 - torch.arange(num_steps + 1, dtype=sigma.dtype) / num_steps)
    timetables = shift * u / (1 + (shift - 1) * u)
    timetables[:, 0] = sigma  # which was rounded on the way to u and back
    return timetables


def flow_gain(sigma: torch.Tensor, sigma_next: torch.Tensor, *, guidance_scale: float) -> torch.Tensor:
    """c of z_hat_0 = A + c v_theta for a gradient recorded at the step sigma -> sigma_next < 1.

    guidance_scale: the factor on the conditional prediction, 1 + w; 1 of a model without guidance.
    """
    return guidance_scale * (sigma_next - sigma) / (1 - sigma_next)


@torch.no_grad()
def flow_rollout(
    predict: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    z: torch.Tensor,
    timetables: torch.Tensor,
    recorded: torch.Tensor,
    *,
    guidance_scale: float,
) -> Rollout:
    """Denoise z (B, ...) by Euler's steps, each row on its own timetable (B, num_steps + 1), on the CPU.

    predict(z, sigma) returns the velocities (v_cond, v_null) at z, each shaped as it; of a model without guidance
    both are v_cond.  recorded (B,): which step of each row records the gradient, as `recorded_index` has it.  Latents
    keep z's dtype, t_recorded is the recorded step's sigma, on z's device; no call runs with gradients on.
    """
    place = recorded[:, None]
    sigma, sigma_next = timetables.gather(1, place)[:, 0], timetables.gather(1, place + 1)[:, 0]
    c = flow_gain(sigma, sigma_next, guidance_scale=guidance_scale)
    is_recorded = torch.arange(timetables.shape[1] - 1) == place
    timetables, steps, sigma, c = (
        table.to(z.device, z.dtype, non_blocking=True) for table in (timetables, timetables.diff(), sigma, c)
    )
    steps, is_recorded = (
        table.to(z.device, non_blocking=True)[(...,) + (None,) * (z.dim() - 1)] for table in (steps, is_recorded)
    )
    z_recorded = z
    for j in range(steps.shape[1]):
        z_recorded = torch.where(is_recorded[:, j], z, z_recorded)
        v_cond, v_null = predict(z, timetables[:, j])
        z = z + steps[:, j] * guide(v_cond, v_null, guidance_scale=guidance_scale).to(z)
    return Rollout(z, z_recorded, sigma, c)


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

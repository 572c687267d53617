"""The losses and the recorded-step denoiser of scoft_losses.py; the distances have test_perceptual_distances.py.

The heart is `Chain`: autograd through every DDIM step, written here from the equations, is what the one UNet graph of
the surrogate has to equal.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from peft import LoraConfig

from scoft.base_model import StableDiffusion
from scoft.distances import load_distance
from scoft.train.objective import ImageLosses, Objective, image_losses, training_losses
from scoft.train.terms import ACTIVE
from scoft_losses import (
    RECORDED_STEPS,
    RecordedStepDenoiser,
    Rollout,
    active_negatives,
    ddim_coefficients,
    denoising_timetables,
    guide,
    latent_gradient,
    ldm_loss,
    memorization_loss,
    min_snr_weights,
    perceptual_loss,
    recorded_gain,
    recorded_index,
    recorded_step_surrogate,
    self_contrastive_loss,
    weighted_sum,
)
from tiny import seeded


NUM_STEPS, GUIDANCE_SCALE = 20, 4.5
PREDICTIONS = ("epsilon", "v_prediction", "v_prediction with zero terminal SNR")
LAMBDA, MARGIN = 0.7, 0.01
IMAGE_WEIGHTS = {"perceptual": 0.01, "contrastive": 0.05}
WEIGHTS = {"ldm": 0.7, "memorization": 0.3, **IMAGE_WEIGHTS}


def scheduler_options(prediction: str) -> dict:
    """Stable Diffusion's schedule."""
    return {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "prediction_type": prediction.split()[0],
        "rescale_betas_zero_snr": "zero" in prediction,
    }


def noise_scheduler_of(prediction: str) -> DDPMScheduler:
    return DDPMScheduler(**scheduler_options(prediction))


def denoiser_of(prediction: str, **options) -> RecordedStepDenoiser:
    scheduler = noise_scheduler_of(prediction)
    options = {"num_steps": NUM_STEPS, "guidance_scale": GUIDANCE_SCALE, **options}
    return RecordedStepDenoiser(scheduler.alphas_cumprod, prediction_type=scheduler.config.prediction_type, **options)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Losses


def test_ldm_loss_is_the_weighted_mean_square():
    """Equation 1 by hand: the mean over a sample's elements, times w_t where it is given."""
    eps_theta = torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]])
    eps = torch.tensor([[[0.0, 0.0]], [[0.0, 1.0]]])
    torch.testing.assert_close(ldm_loss(eps_theta, eps), torch.tensor([2.5, 6.5]))
    torch.testing.assert_close(ldm_loss(eps_theta, eps, w_t=torch.tensor([2.0, 0.5])), torch.tensor([5.0, 3.25]))


def test_memorization_loss_takes_the_mean_over_the_captions_there_are():
    """Equation 2 by hand: rows of two and of one caption, and nothing of the padding."""
    eps_theta = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    eps_blip = torch.tensor([[[1.0, 1.0], [3.0, 5.0]], [[1.0, 3.0], [1e30, -1e30]]])
    is_caption = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(memorization_loss(eps_theta, eps_blip, is_caption), torch.tensor([6.5, 2.0]))


def test_memorization_teacher_carries_no_gradient():
    """.sg: only the prediction for the cultural caption is pulled."""
    eps_theta, eps_blip = normal(2, 4, seed=0).requires_grad_(), normal(2, 3, 4, seed=1).requires_grad_()
    memorization_loss(eps_theta, eps_blip, torch.ones(2, 3, dtype=torch.bool)).sum().backward()
    assert eps_blip.grad is None
    assert (eps_theta.grad != 0).all()


def test_one_caption_at_random_is_unbiased():
    """The gradients of one caption each average to the gradient of the mean over all."""
    eps_theta, eps_blip = normal(1, 4, seed=0).requires_grad_(), normal(1, 3, 4, seed=1)

    def gradient(eps_blip):
        loss = memorization_loss(eps_theta, eps_blip, torch.ones(eps_blip.shape[:2], dtype=torch.bool))
        return torch.autograd.grad(loss.sum(), eps_theta)[0]

    one_by_one = [gradient(eps_blip[:, i : i + 1]) for i in range(3)]
    torch.testing.assert_close(sum(one_by_one) / 3, gradient(eps_blip))


@pytest.mark.parametrize("padding", [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
def test_self_contrastive_loss_by_hand(padding):
    """Equation 4: a hinge for each negative, their mean; rows with fewer, none at all; padding is never seen."""
    d_pos = torch.tensor([0.5, 0.2, 0.3], requires_grad=True)
    d_neg = torch.tensor([[0.1, 0.4], [0.1, padding], [padding, padding]], requires_grad=True)
    is_negative = torch.tensor([[True, True], [True, False], [False, False]])

    loss = self_contrastive_loss(d_pos, d_neg, is_negative, negative_weight=2.0, margin=0.1)
    # Row 0: max(0.5 - 0.2 + 0.1, 0) = 0.4 and max(0.5 - 0.8 + 0.1, 0) = 0.  Row 1: 0.2 - 0.2 + 0.1.
    torch.testing.assert_close(loss, torch.tensor([0.2, 0.1, 0.0]))
    active = active_negatives(d_pos, d_neg, is_negative, negative_weight=2.0, margin=0.1)
    assert active.tolist() == [0.5, 1.0, 0.0]

    loss.sum().backward()
    torch.testing.assert_close(d_pos.grad, torch.tensor([0.5, 1.0, 0.0]))
    torch.testing.assert_close(d_neg.grad, torch.tensor([[-1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]]))


def test_self_contrastive_loss_without_room_for_negatives():
    """A batch in which no row has a negative, K = 0, gives zeros and a zero gradient."""
    d_pos = torch.tensor([0.5, 0.2], requires_grad=True)
    none = torch.zeros(2, 0)
    loss = self_contrastive_loss(d_pos, none, none.bool(), negative_weight=1.0, margin=0.1)
    loss.sum().backward()
    assert torch.equal(loss.detach(), torch.zeros(2)) and torch.equal(d_pos.grad, torch.zeros(2))
    assert not active_negatives(d_pos, none, none.bool(), negative_weight=1.0, margin=0.1).any()


def test_weighted_sum_needs_every_weight():
    """Weight times term; a weight too many is a term not due, a weight missing is an error."""
    terms = {"ldm": torch.tensor([1.0, 2.0]), "memorization": torch.tensor([3.0, 4.0])}
    total = weighted_sum(terms, {"ldm": 0.7, "memorization": 0.3, "perceptual": 100.0})
    torch.testing.assert_close(total, torch.tensor([1.6, 2.6]))
    with pytest.raises(KeyError, match="memorization"):
        weighted_sum(terms, {"ldm": 0.7})


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers(prediction, gamma):
    """At every t, min(SNR, gamma) over SNR or SNR + 1 with the SNR of diffusers."""
    scheduler, t = noise_scheduler_of(prediction), torch.arange(1000)
    snr = compute_snr(scheduler, t)
    expected = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    weights = min_snr_weights(t, scheduler.alphas_cumprod, gamma=gamma, prediction_type=prediction)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction, weight", [("epsilon", 1.0), ("v_prediction", 0.0)])
def test_min_snr_weights_at_zero_snr(prediction, weight):
    """Pure noise has SNR 0: the weight is the limit, not 0 / 0."""
    w_t = min_snr_weights(torch.tensor([0, 1]), torch.tensor([0.0, 1e-12]), gamma=5.0, prediction_type=prediction)
    torch.testing.assert_close(w_t, torch.full((2,), weight))


def _contrast(d_pos, d_neg):
    is_negative = torch.tensor([[True, True, True], [True, True, False], [False] * 3])
    return self_contrastive_loss(d_pos, d_neg, is_negative, negative_weight=0.8, margin=0.1)


@pytest.mark.parametrize(
    "loss, shapes",
    [
        (lambda eps_theta, eps, w_t: ldm_loss(eps_theta, eps, w_t=w_t), [(2, 3), (2, 3), (2,)]),
        (lambda x: memorization_loss(x, normal(2, 3, 4, seed=9), torch.ones(2, 3).tril() > 0), [(2, 4)]),
        (
            lambda d_pos, d_neg: self_contrastive_loss(
                d_pos, d_neg, torch.ones(3, 3).tril(-1) > 0, negative_weight=0.8, margin=0.1
            ),
            [(3,), (3, 3)],
        ),
        (lambda x: recorded_step_surrogate(x, normal(2, seed=7), normal(2, 1, 2, 2, seed=8)), [(2, 1, 2, 2)]),
    ],
    ids=["ldm", "memorization", "contrastive", "surrogate"],
)
def test_gradients_equal_finite_differences(loss, shapes):
    """In float64 each loss has the derivative it claims, in every argument that carries one."""
    inputs = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(loss, inputs)


def test_half_precision_is_summed_in_float32():
    """bfloat16 predictions are raised before they are squared or summed."""
    eps_theta, eps = (normal(2, 4, 8, 8, seed=i).bfloat16() for i in range(2))
    c, g = torch.tensor([-16.4, -0.01]), normal(2, 4, 8, 8, seed=2).float()
    for low, high in [
        (ldm_loss(eps_theta, eps), ldm_loss(eps_theta.float(), eps.float())),
        (recorded_step_surrogate(eps_theta, c, g), recorded_step_surrogate(eps_theta.float(), c, g)),
    ]:
        assert low.dtype == torch.float32
        assert torch.equal(low, high)


def test_surrogate_holds_its_weight_constant():
    """The gradient is c g, and neither c nor g gets one."""
    eps_theta, g = (normal(2, 4, 2, 2, seed=i).requires_grad_() for i in range(2))
    c = normal(2, seed=2).requires_grad_()
    recorded_step_surrogate(eps_theta, c, g).sum().backward()
    torch.testing.assert_close(eps_theta.grad, (c.view(2, 1, 1, 1) * g).detach())
    assert c.grad is None and g.grad is None


# Timetables


@pytest.mark.parametrize("num_steps", [1, 7, 20, 1000])
def test_timetables_fall_from_t_to_clean(num_steps):
    """For every t: starts at t, falls for min(N, t) even steps, then rests at -1."""
    t = torch.arange(1, 1000)
    timetables = denoising_timetables(t, num_steps=num_steps)
    assert timetables.shape == (999, num_steps + 1)
    for start, timetable in zip(t.tolist(), timetables.tolist()):
        n = min(num_steps, start)
        steps = [a - b for a, b in itertools.pairwise([*timetable[:n], 0])]
        assert timetable[0] == start
        assert timetable[n:] == [-1] * (num_steps + 1 - n)
        assert min(steps) >= 1 and max(steps) - min(steps) <= 1


def test_timetables_by_hand():
    """Rows of different t side by side, the short one finished early."""
    expected = torch.tensor([[10, 8, 5, 3, -1], [2, 1, -1, -1, -1], [999, 750, 500, 250, -1]])
    assert torch.equal(denoising_timetables(torch.tensor([10, 2, 999]), num_steps=4), expected)


def test_timetables_refuse_a_clean_image():
    """At t = 0 nothing is left to denoise, wherever it stands in the batch."""
    with pytest.raises(ValueError, match="t >= 1, got t = 0"):
        denoising_timetables(torch.tensor([5, 0, 7]), num_steps=20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recorded_index_stays_within_each_rows_steps(dtype):
    """First is 0, last is n - 1, random runs from 0 at u = 0 to n - 1 as u nears 1."""
    t = torch.tensor([1, 3, 20, 999])
    zero = torch.zeros(4, dtype=dtype)
    nearly_one = torch.nextafter(zero + 1, zero)
    last = torch.tensor([0, 2, 19, 19])
    for which, u, expected in [
        ("first", nearly_one, torch.zeros(4, dtype=torch.long)),
        ("last", zero, last),
        ("random", zero, torch.zeros(4, dtype=torch.long)),
        ("random", nearly_one, last),
    ]:
        assert torch.equal(recorded_index(which, t, u, num_steps=20), expected)


@pytest.mark.parametrize("t, n", [(7, 7), (500, 20)])
def test_random_recorded_index_is_uniform(t, n):
    """Evenly spread draws fall on each of the n steps equally often."""
    u = (torch.arange(100 * n) + 0.5) / (100 * n)
    index = recorded_index("random", torch.full(u.shape, t), u, num_steps=20)
    assert torch.equal(index.bincount(), torch.full((n,), 100))


# DDIM


def test_guidance_is_the_papers():
    """(1 + w) eps_cond - w eps_null, so 1 is the plain conditional prediction."""
    cond, null = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    torch.testing.assert_close(guide(cond, null, guidance_scale=4.5), 4.5 * cond - 3.5 * null)
    torch.testing.assert_close(guide(cond, null, guidance_scale=1.0), cond)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [20, 1])
def test_ddim_coefficients_are_diffusers_step(prediction, num_steps):
    """a z + b prediction is DDIMScheduler.step in float64, from pure noise down to the clean latent."""
    scheduler = DDIMScheduler(set_alpha_to_one=True, **scheduler_options(prediction))
    abar = scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(num_steps)
    z, output = normal(1, 4, 8, 8, seed=0), normal(1, 4, 8, 8, seed=1)
    for t in [999, 998, 700, 500, 51, 50, 49, 2, 1]:
        t_next = t - 1000 // num_steps
        abar_next = abar[t_next] if t_next >= 0 else torch.ones_like(abar[t])
        a, b = ddim_coefficients(abar[t], abar_next, prediction_type=scheduler.config.prediction_type)
        expected = scheduler.step(output, t, z, eta=0.0).prev_sample
        torch.testing.assert_close(a * z + b * output, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_finished_rows_stand_still(prediction_type):
    """From clean to clean z' = z exactly, whatever the prediction."""
    one = torch.ones(1, dtype=torch.float64)
    assert ddim_coefficients(one, one, prediction_type=prediction_type) == (1, 0)


@pytest.mark.parametrize("recorded_step", RECORDED_STEPS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_rows_of_a_batch_do_not_meet(prediction, recorded_step):
    """A batch of mixed t is its rows denoised one by one."""

    def predict(z, t):
        assert t.min() >= 0
        wave = torch.sin(z + 0.01 * t.view(-1, 1, 1, 1))
        return wave, wave.flip(3)

    t = torch.tensor([1, 5, 18, 19, 20, 37, 500, 999])
    z_t, u = normal(8, 4, 4, 4, seed=0), torch.rand(8, generator=torch.Generator().manual_seed(1))
    denoiser = denoiser_of(prediction, recorded_step=recorded_step)
    together = denoiser(predict, z_t, t, u)
    for b in range(8):
        alone = denoiser(predict, z_t[b : b + 1], t[b : b + 1], u[b : b + 1])
        for whole, row in zip(together, alone):
            torch.testing.assert_close(whole[b : b + 1], row, rtol=1e-12, atol=1e-12)


# The recorded step's gain


def gain(abar: torch.Tensor, t: int, t_next: int, *, is_velocity: bool) -> float:
    """d z_hat_0 / d prediction of the DDIM step t -> t_next, through eps and z_0, in plain floats."""
    now, then = float(abar[t]), float(abar[t_next]) if t_next >= 0 else 1.0
    slope = math.sqrt(1 - then) - math.sqrt(then) * math.sqrt(1 - now) / math.sqrt(now)
    return GUIDANCE_SCALE * slope / math.sqrt(then) * (math.sqrt(now) if is_velocity else 1)


def timetable(t: int) -> list[int]:
    n = min(NUM_STEPS, t)
    return [t - j * t // n for j in range(n)] + [-1]


def recorded_steps(t: int, which: str) -> range:
    """The steps that may be recorded from t."""
    n = min(NUM_STEPS, t)
    return {"first": range(1), "last": range(n - 1, n), "random": range(n)}[which]


@pytest.mark.parametrize("recorded_step", RECORDED_STEPS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_normalized_gain_is_the_root_mean_square(prediction, recorded_step):
    """`normalized` keeps the sign of c and the latents, and gives every t the magnitude of the mean square over t."""
    t = torch.tensor([1, 5, 37, 500, 999])
    z_t, u = normal(5, 4, 2, 2, seed=0), torch.tensor([0.0, 0.3, 0.5, 0.9, 0.99])
    paper, normalized = (
        denoiser_of(prediction, recorded_step=recorded_step, scaling=scaling)(lambda z, t: (z, -z), z_t, t, u)
        for scaling in ("paper", "normalized")
    )
    abar = noise_scheduler_of(prediction).alphas_cumprod
    mean_square = 0.0
    for start in range(1, 1000):
        steps = recorded_steps(start, recorded_step)
        gains = [gain(abar, *timetable(start)[j : j + 2], is_velocity=prediction != "epsilon") for j in steps]
        mean_square += sum(c**2 for c in gains) / len(gains) / 999
    rms = math.sqrt(mean_square)

    torch.testing.assert_close(normalized.c.abs(), torch.full((5,), rms, dtype=torch.float64), rtol=1e-6, atol=0)
    assert torch.equal(normalized.c.sign(), paper.c.sign()) and (paper.c != 0).all()
    assert torch.equal(normalized.z_hat_0, paper.z_hat_0)


def test_paper_gain_grows_over_t():
    """On SD's schedule |c| grows 1291-fold from t = 37 to t = 999, where 94 % of its square lies above t = 800."""
    t = torch.arange(1, 1000)
    c = denoiser_of("epsilon")(lambda z, t: (z, z), torch.zeros(999, 1, 1, 1).double(), t, torch.zeros(999)).c
    assert float(c[998] / c[36]) == pytest.approx(1291, abs=1)
    assert float(c[998]) == pytest.approx(-16.42, abs=0.01)
    assert float(c[t > 800].square().sum() / c.square().sum()) == pytest.approx(0.94, abs=0.005)


def test_gain_on_the_authors_timetable():
    """The authors' code steps from 999 by 999 // 19, to 947; a DDIM step that long has |c| = 17.2."""
    abar = noise_scheduler_of("epsilon").alphas_cumprod.double()
    c = recorded_gain(abar[999], abar[999 - 999 // 19], guidance_scale=4.5, prediction_type="epsilon")
    assert float(c) == pytest.approx(-17.2, abs=0.1)


@pytest.mark.parametrize(
    "prediction, options, message",
    [
        ("epsilon with zero terminal SNR", {}, "zero terminal SNR; use a v-prediction model"),
        ("epsilon", {"recorded_step": "middle"}, r"\('first', 'last', 'random'\).*got 'middle'"),
        ("epsilon", {"scaling": "none"}, r"\('paper', 'normalized'\).*and 'none'"),
    ],
)
def test_denoiser_refuses(prediction, options, message):
    """What cannot work or is not known is refused before anything runs."""
    with pytest.raises(ValueError, match=message):
        denoiser_of(prediction, **options)


# One UNet graph against autograd through the whole chain


class World(NamedTuple):
    """Real models in float64, and a batch as `training_losses` takes it."""

    unet: UNet2DConditionModel
    lora: list[torch.nn.Parameter]
    vae: AutoencoderKL
    distance: torch.nn.Module
    batch: dict[str, torch.Tensor]

    def predict(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.unet(z, t, c).sample

    @torch.no_grad()
    def predict_frozen(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.predict(z, t, c)

    def predict_base(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        self.unet.disable_adapters()
        prediction = self.predict_frozen(z, t, c)
        self.unet.enable_adapters()
        return prediction

    def image_terms(self, z: torch.Tensor, batch: dict) -> dict[str, torch.Tensor]:
        """L_P and L_C, written anew."""
        f_hat = self.distance.embed(self.vae.decode(z / self.vae.config.scaling_factor).sample)
        d_pos = perceptual_loss(self.distance, f_hat, batch["f_pos"])
        d_neg = self.distance.compare(f_hat[:, None], batch["f_neg"])
        contrast = self_contrastive_loss(d_pos, d_neg, batch["is_negative"], negative_weight=LAMBDA, margin=MARGIN)
        return {"perceptual": d_pos, "contrastive": contrast}

    def objective(self, prediction: str, *, recorded_step: str = "first", weights: dict, **options) -> Objective:
        noise_scheduler, parts = noise_scheduler_of(prediction), {"tokenizer": None, "text_encoder": None}
        images = ImageLosses(
            distance=self.distance,
            denoiser=denoiser_of(prediction, recorded_step=recorded_step),
            negative_weight=LAMBDA,
            margin=MARGIN,
            every=1,
        )
        model = StableDiffusion(noise_scheduler, **parts, vae=self.vae, unet=self.unet, dtype=torch.float64)
        decided = {"model": model, "constants": None, "weights": weights, "images": images}
        return Objective(**{"teacher": "current", "snr_gamma": None} | decided | options)

    def losses(
        self, prediction: str, *, batch: dict | None = None, **options
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`training_losses` of the trainer on this world's batch."""
        return training_losses(batch or self.batch, self.objective(prediction, **options))

    def without_images(self) -> dict[str, torch.Tensor]:
        """The batch of an update in which L_P and L_C are not due."""
        return {name: part for name, part in self.batch.items() if name not in ("f_pos", "f_neg", "is_negative")}

    def lora_gradient(self, value: torch.Tensor, *, retain_graph: bool = False) -> torch.Tensor:
        gradients = torch.autograd.grad(value, self.lora, retain_graph=retain_graph)
        return torch.cat([gradient.flatten() for gradient in gradients])


@pytest.fixture(scope="module")
def world(tiny_clip_conv) -> World:
    with seeded(0):
        unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=4)
        unet.requires_grad_(False)
        modules = ["to_q", "to_k", "to_v", "to_out.0"]
        # peft starts B at zero, where A would have no gradient.
        unet.add_adapter(LoraConfig(r=2, target_modules=modules, init_lora_weights=False))
    unet, vae = unet.double().eval(), vae.double().requires_grad_(False).eval()
    distance = load_distance("clip_conv", model_name_or_path=str(tiny_clip_conv), device="cpu", dtype=torch.float64)
    photographs, negatives = normal(8, 3, 4, 4, seed=1).tanh(), normal(8, 3, 3, 4, 4, seed=2).tanh()
    captions = torch.tensor([1, 2, 3, 1, 1, 2, 1, 3])
    batch = {
        "t": torch.tensor([1, 5, 18, 19, 20, 37, 500, 999]),
        "z_0": normal(8, 4, 4, 4, seed=3),
        "eps": normal(8, 4, 4, 4, seed=4),
        "recorded_u": torch.rand(8, generator=torch.Generator().manual_seed(5), dtype=torch.float64),
        "c_ccub": normal(8, 5, 16, seed=6),
        "c_null": normal(1, 5, 16, seed=7).expand(8, -1, -1),
        "c_blip": normal(int(captions.sum()), 5, 16, seed=8),
        "blip_rows": torch.repeat_interleave(torch.arange(8), captions),
        "f_pos": distance.embed(photographs),
        "f_neg": distance.embed(negatives.flatten(0, 1)).unflatten(0, (8, 3)),
        # Rows with all negatives, with fewer, and one with none.
        "is_negative": torch.arange(3) < torch.tensor([3, 3, 2, 1, 0, 3, 2, 3])[:, None],
    }
    return World(unet, [p for p in unet.parameters() if p.requires_grad], vae, distance, batch)


class Chain(NamedTuple):
    """What autograd through every step of every row says."""

    prediction: str
    recorded_step: str
    z_t: torch.Tensor  # (8, 4, 4, 4)
    z_hat_0: torch.Tensor  # (8, 4, 4, 4)
    gradients: torch.Tensor  # (8, P): of each row's weighted image losses, in all LoRA parameters


def unrolled(
    world: World, b: int, *, abar: torch.Tensor, recorded: int, is_velocity: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row b noised to t and denoised step by step, with autograd on; returns z_t and z_hat_0.

    The paper's chain, as conversions between z, eps and z_0: every noise prediction is a constant but the recorded
    step's conditional one, and z is never detached.
    """
    row = {name: world.batch[name][b : b + 1] for name in ("z_0", "eps", "c_ccub", "c_null")}
    path = timetable(int(world.batch["t"][b]))
    start = abar[path[0]]
    z = z_t = start.sqrt() * row["z_0"] + (1 - start).sqrt() * row["eps"]
    for j, (t, t_next) in enumerate(itertools.pairwise(path)):
        now, then = abar[t], abar[t_next] if t_next >= 0 else torch.ones_like(start)
        captions = torch.cat([row["c_ccub"], row["c_null"]])
        cond, null = world.predict(torch.cat([z, z]), torch.tensor([t, t]), captions).chunk(2)
        if j != recorded:
            cond = cond.detach()
        output = GUIDANCE_SCALE * cond - (GUIDANCE_SCALE - 1) * null.detach()
        if is_velocity and now == 0:  # pure noise, and the first step: v is -z_0, and eps is z
            z_0, eps = -output, z
        else:
            # z here is the constant that the prediction was made at; up to the recorded step there is no other.
            eps = (1 - now).sqrt() * z.detach() + now.sqrt() * output if is_velocity else output
            if j != recorded:
                eps = eps.detach()
            z_0 = (z - (1 - now).sqrt() * eps) / now.sqrt()
        z = then.sqrt() * z_0 + (1 - then).sqrt() * eps
    return z_t, z


@pytest.fixture(
    scope="module",
    params=list(itertools.product(PREDICTIONS, RECORDED_STEPS)),
    ids=lambda param: "-".join(param).replace(" ", "_"),
)
def chain(request, world) -> Chain:
    prediction, recorded_step = request.param
    abar = noise_scheduler_of(prediction).alphas_cumprod.double()
    z_t, z_hat_0, gradients = [], [], []
    for b, (t, u) in enumerate(zip(world.batch["t"].tolist(), world.batch["recorded_u"].tolist())):
        candidates = recorded_steps(t, recorded_step)
        noisy, clean = unrolled(
            world,
            b,
            abar=abar,
            recorded=candidates[int(u * len(candidates))],
            is_velocity=prediction != "epsilon",
        )
        row = {name: world.batch[name][b : b + 1] for name in ("f_pos", "f_neg", "is_negative")}
        losses = world.image_terms(clean, row)
        gradients.append(world.lora_gradient(sum(IMAGE_WEIGHTS[name] * loss.sum() for name, loss in losses.items())))
        z_t.append(noisy)
        z_hat_0.append(clean.detach())
    return Chain(prediction, recorded_step, torch.cat(z_t), torch.cat(z_hat_0), torch.stack(gradients))


@pytest.fixture(scope="module")
def rollout(world, chain) -> Rollout:
    c_ccub, c_null = world.batch["c_ccub"], world.batch["c_null"]

    def predict(z, t):
        return world.predict(torch.cat([z, z]), torch.cat([t, t]), torch.cat([c_ccub, c_null])).chunk(2)

    denoiser = denoiser_of(chain.prediction, recorded_step=chain.recorded_step)
    return denoiser(predict, chain.z_t, world.batch["t"], world.batch["recorded_u"])


def surrogate(world: World, rollout: Rollout) -> torch.Tensor:
    """(8,), by the three functions that the trainer is made of."""
    g, _ = latent_gradient(lambda z: world.image_terms(z, world.batch), IMAGE_WEIGHTS, rollout.z_hat_0)
    eps_theta = world.predict(rollout.z_recorded, rollout.t_recorded, world.batch["c_ccub"])
    return recorded_step_surrogate(eps_theta, rollout.c, g)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (got - expected).norm(dim=-1) / expected.norm(dim=-1)


def test_surrogate_is_autograd_through_the_chain(world, chain, rollout):
    """For each t of a mixed batch: the same z_hat_0, and the same gradient in all LoRA parameters together."""
    assert not any(tensor.requires_grad for tensor in rollout)
    torch.testing.assert_close(rollout.z_hat_0, chain.z_hat_0, rtol=1e-9, atol=1e-9)

    gradients = torch.stack([world.lora_gradient(row, retain_graph=True) for row in surrogate(world, rollout)])
    assert (chain.gradients.norm(dim=1) > 0).all()
    assert relative_error(gradients, chain.gradients).max() <= 1e-8
    assert relative_error(gradients.sum(0), chain.gradients.sum(0)) <= 1e-8


def test_planted_errors_are_seen(world, chain, rollout):
    """The comparison above fails by far on a gain 1 % off, a timestep one off, or another step's latent."""
    another = rollout.z_hat_0 if chain.recorded_step == "first" else chain.z_t
    for wrong in [
        rollout._replace(c=1.01 * rollout.c),
        rollout._replace(t_recorded=rollout.t_recorded + 1),
        rollout._replace(z_recorded=another),
    ]:
        gradient = world.lora_gradient(surrogate(world, wrong).sum())
        assert relative_error(gradient, chain.gradients.sum(0)) > 1e-4


def text_losses(world: World, prediction: str, *, teacher: Callable) -> dict[str, torch.Tensor]:
    """L_LDM and L_M of the batch, row by row and caption by caption."""
    abar = noise_scheduler_of(prediction).alphas_cumprod.double()[world.batch["t"]]
    ldm, memorization = [], []
    for b in range(8):
        z_0, eps, t, c_ccub = (world.batch[name][b : b + 1] for name in ("z_0", "eps", "t", "c_ccub"))
        signal, noise = abar[b].sqrt(), (1 - abar[b]).sqrt()
        z_t = signal * z_0 + noise * eps
        captions = world.batch["c_blip"][world.batch["blip_rows"] == b].split(1)
        eps_theta = world.predict(z_t, t, c_ccub)
        eps_blip = sum(teacher(z_t, t, c_blip) for c_blip in captions) / len(captions)
        target = eps if prediction == "epsilon" else signal * eps - noise * z_0
        ldm.append((eps_theta - target).square().mean())
        memorization.append((eps_theta - eps_blip).square().mean())
    return {"ldm": sum(ldm) / 8, "memorization": sum(memorization) / 8}


def test_image_losses_of_the_trainer_have_the_chains_gradient(world, chain):
    """With L_P and L_C alone, the gradient of the trainer's objective is the chain's."""
    objective, _ = world.losses(chain.prediction, recorded_step=chain.recorded_step, weights=IMAGE_WEIGHTS)
    assert relative_error(world.lora_gradient(objective), chain.gradients.mean(0)) <= 1e-8


def test_all_losses_of_the_trainer(world, chain):
    """With all four, gradient and logged terms are the sum's and the losses' own; the surrogate is no term."""
    text = text_losses(world, chain.prediction, teacher=world.predict_frozen)
    expected = text | world.image_terms(chain.z_hat_0, world.batch)
    gradient = world.lora_gradient(sum(WEIGHTS[name] * loss for name, loss in text.items())) + chain.gradients.mean(0)

    objective, terms = world.losses(chain.prediction, recorded_step=chain.recorded_step, weights=WEIGHTS)
    assert relative_error(world.lora_gradient(objective), gradient) <= 1e-8
    assert terms.keys() == expected.keys() | {ACTIVE}
    for name, term in ((name, terms[name]) for name in expected):
        assert not term.requires_grad
        torch.testing.assert_close(term, expected[name].detach().mean(), rtol=1e-9, atol=0)


def test_base_teacher(world):
    """With the base model as the teacher, L_M compares with the predictions that the LoRA has no part in."""
    _, terms = world.losses("epsilon", weights=WEIGHTS, batch=world.without_images(), teacher="base")
    current, base = (
        text_losses(world, "epsilon", teacher=teacher)["memorization"].detach()
        for teacher in (world.predict_frozen, world.predict_base)
    )
    torch.testing.assert_close(terms["memorization"], base, rtol=1e-9, atol=0)
    assert abs(current / base - 1) > 1e-3


def test_min_snr_weighs_the_trainers_ldm_loss(world):
    """--snr_gamma multiplies each row's L_LDM by its own w_t."""
    t, scheduler = world.batch["t"], noise_scheduler_of("epsilon")
    eps_theta = world.predict_frozen(
        scheduler.add_noise(world.batch["z_0"], world.batch["eps"], t), t, world.batch["c_ccub"]
    )
    snr = compute_snr(scheduler, t).double()
    expected = (snr.clamp(max=5) / snr * (eps_theta - world.batch["eps"]).square().mean((1, 2, 3))).mean()
    _, terms = world.losses("epsilon", weights={"ldm": 1.0}, batch=world.without_images(), snr_gamma=5.0)
    torch.testing.assert_close(terms["ldm"], expected, rtol=1e-5, atol=0)


# The calls of the UNet


@pytest.fixture
def unet_calls(world):
    """(batch size, gradients on) of every call of the UNet."""
    calls = []
    handle = world.unet.register_forward_pre_hook(
        lambda module, args: calls.append((len(args[0]), torch.is_grad_enabled()))
    )
    yield calls
    handle.remove()


BLIP = 14  # naive captions of the batch's 8 rows
PAIRS = [(16, False)]


@pytest.mark.parametrize("recorded_step, graph", [("first", 8), ("last", 16), ("random", 16)])
@pytest.mark.parametrize(
    "weights, teacher, constant",
    [
        (WEIGHTS, "current", [(BLIP, False)] + 20 * PAIRS),
        (WEIGHTS, "base", [(BLIP, False)] + 20 * PAIRS),
        ({"ldm": 0.7, **IMAGE_WEIGHTS}, "current", 20 * PAIRS),
    ],
    ids=["current teacher", "base teacher", "no teacher"],
)
def test_unet_calls_of_an_update_with_image_losses(
    world, unet_calls, weights, teacher, constant, recorded_step, graph
):
    """One call with gradients, the last; before it one for all naive captions, and a pair for each step."""
    world.losses(
        "epsilon",
        recorded_step=recorded_step,
        weights=weights,
        teacher=teacher,
    )
    assert unet_calls == constant + [(graph, True)]


@pytest.mark.parametrize(
    "weights, constant", [({"ldm": 1.0}, []), (WEIGHTS, [(BLIP, False)])], ids=["finetune", "between image losses"]
)
def test_unet_calls_of_an_update_without_image_losses(world, unet_calls, weights, constant):
    """L_LDM costs one call with gradients, L_M one without for all captions."""
    world.losses("epsilon", weights=weights, batch=world.without_images())
    assert unet_calls == constant + [(8, True)]


@pytest.mark.parametrize("teacher", ["current", "base"])
def test_batches_of_naive_captions_are_filled_up_to_one_shape(world, unet_calls, teacher):
    """What fills them is dropped: the losses are the same."""
    more = {"weights": WEIGHTS, "batch": world.without_images(), "teacher": teacher}
    expected, _ = world.losses("epsilon", **more)
    found, _ = world.losses("epsilon", **more, naive_captions=BLIP + 3)
    assert unet_calls == [(BLIP, False), (8, True), (BLIP + 3, False), (8, True)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_rollout_ends_with_its_longest_row(world, unet_calls):
    """A batch of small t takes as many steps as its largest t needs."""
    batch = world.batch | {"t": torch.tensor([1, 2, 3, 4, 5, 6, 7, 7])}
    world.losses("epsilon", weights=WEIGHTS, batch=batch)
    assert unet_calls == [(BLIP, False)] + 7 * PAIRS + [(8, True)]


# Image losses of the trainer


@pytest.mark.parametrize(
    "weights", [IMAGE_WEIGHTS, {"perceptual": 1.0}, {"contrastive": 1.0}], ids=lambda w: "+".join(w)
)
def test_image_terms_of_the_trainer(world, weights):
    """image_losses decodes, embeds once and returns the losses that have a weight, and the share that L_C sees."""
    terms = image_losses(world.batch["z_0"], world.batch, world.objective("epsilon", weights=weights))
    expected = world.image_terms(world.batch["z_0"], world.batch)
    assert ("contrastive" in weights) == (ACTIVE in terms)
    seen = terms.pop(ACTIVE, expected["contrastive"])
    assert torch.equal(seen > 0, expected["contrastive"] > 0) and 0 <= seen.min() and seen.max() <= 1
    assert terms.keys() == weights.keys()
    for name in terms:
        torch.testing.assert_close(terms[name], expected[name], rtol=1e-4, atol=1e-6, check_dtype=False)
    assert torch.equal(expected["contrastive"] == 0, ~world.batch["is_negative"].any(1))

"""Denoising with one recorded step by flow matching, on shelf 3 of scoft_losses.py.

As in test_scoft_losses.py autograd through every step, written here from the equations, is what has to come out; and
the pipeline of a real model, tiny, is where the steps have to end.
"""

from typing import NamedTuple

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig

from scoft_losses import (
    RECORDED_STEPS,
    Rollout,
    flow_gain,
    flow_rollout,
    flow_timetables,
    latent_gradient,
    recorded_index,
    recorded_step_surrogate,
)
from tiny import seeded


NUM_STEPS = 8
SIGMAS = torch.tensor([1.0, 0.63, 0.11, 1.0, 0.37], dtype=torch.float64)
U = torch.tensor([0.0, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)  # draws of the random recorded step
SHIFT = 3.0


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Timetables


@pytest.mark.parametrize("shift", [1.0, SHIFT])
@pytest.mark.parametrize("num_steps", [1, 4, 20])
def test_timetables_from_noise_are_the_schedulers(shift, num_steps):
    """From sigma = 1 they are what diffusers steps through when it is told the even steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - j / num_steps for j in range(num_steps)])
    (own,) = flow_timetables(torch.ones(1, dtype=torch.float64), num_steps=num_steps, shift=shift)
    torch.testing.assert_close(own.float(), scheduler.sigmas, rtol=0, atol=1e-6)


def test_timetables_by_hand():
    """Rows side by side, from their own sigma to 0: even where nothing is shifted, else even in u."""
    sigma = torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64)
    even = torch.tensor([[1.0, 0.5, 0.0], [0.6, 0.3, 0.0], [0.2, 0.1, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(flow_timetables(sigma, num_steps=2, shift=1.0), even)
    # shift 3: u = 0.6 / (3 - 2 0.6) = 1/3, whose half 1/6 comes to (3/6) / (1 + 2/6)
    shifted = flow_timetables(sigma[1:2], num_steps=2, shift=3.0)
    torch.testing.assert_close(shifted, torch.tensor([[0.6, 0.375, 0.0]], dtype=torch.float64))
    assert torch.equal(flow_timetables(sigma, num_steps=7, shift=SHIFT)[:, 0], sigma)


@pytest.mark.parametrize("sigma", [0.0, -0.1, 1.01, float("nan")])
def test_timetables_refuse_what_is_no_noise_level(sigma):
    """At 0 nothing is left to denoise, wherever it stands in the batch."""
    with pytest.raises(ValueError, match="sigma above 0 and up to 1, got"):
        flow_timetables(torch.tensor([0.5, sigma]), num_steps=20, shift=1.0)


def test_gain_by_hand():
    """g (sigma' - sigma) / (1 - sigma'): from noise, in the middle, and at the last step, which ends at 0."""
    sigma = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    gain = flow_gain(sigma, torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64), guidance_scale=4.0)
    torch.testing.assert_close(gain, torch.tensor([-4.0, -4 / 3, -1.0], dtype=torch.float64))


# One graph against autograd through the whole chain


class World(NamedTuple):
    """A real transformer in float64 with a LoRA, a batch of noisy latents, and the target of a loss on clean ones."""

    transformer: SD3Transformer2DModel
    lora: list[torch.nn.Parameter]
    z: torch.Tensor  # (5, 4, 4, 4)
    captions: torch.Tensor  # (2, 5, 3, 32): conditional, null
    pooled: torch.Tensor  # (2, 5, 16)
    target: torch.Tensor  # (5, 4, 4, 4)

    def predict(self, z: torch.Tensor, sigma: torch.Tensor, which: int, rows=slice(None)) -> torch.Tensor:
        text, pooled = self.captions[which, rows], self.pooled[which, rows]
        return self.transformer(z, text, pooled, 1000 * sigma, return_dict=False)[0]

    def loss(self, z: torch.Tensor, rows=slice(None)) -> torch.Tensor:
        """(B,), of no particular shape."""
        return (z - self.target[rows]).tanh().square().flatten(1).sum(1)

    def gradient(self, value: torch.Tensor, *, retain_graph: bool = False) -> torch.Tensor:
        gradients = torch.autograd.grad(value, self.lora, retain_graph=retain_graph)
        return torch.cat([gradient.flatten() for gradient in gradients])


def tiny_transformer() -> SD3Transformer2DModel:
    with seeded(0):
        transformer = SD3Transformer2DModel(
            sample_size=4,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
        )
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.3)  # else its velocity hardly depends on anything
    return transformer.eval()


@pytest.fixture(scope="module")
def world() -> World:
    transformer = tiny_transformer().double().requires_grad_(False)
    modules = ["to_q", "to_k", "to_v", "to_out.0"]
    with seeded(1):
        transformer.add_adapter(LoraConfig(r=2, target_modules=modules, init_lora_weights=False))
    transformer = transformer.double()
    lora = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    z, target = normal(5, 4, 4, 4, seed=1), normal(5, 4, 4, 4, seed=2)
    return World(transformer, lora, z, normal(2, 5, 3, 32, seed=3), normal(2, 5, 16, seed=4), target)


def recorded_of(which: str) -> torch.Tensor:
    return recorded_index(which, torch.full((5,), NUM_STEPS), U, num_steps=NUM_STEPS)


def unrolled(world: World, b: int, *, recorded: int, guidance_scale: float) -> torch.Tensor:
    """Row b denoised with autograd on, as conversions between z, eps and z_0; returns z_hat_0.

    Every noise prediction is a constant but the recorded step's conditional one, and z is never detached.
    """
    u = SIGMAS[b] / (SHIFT - (SHIFT - 1) * SIGMAS[b])
    path = [SHIFT * u * s / (1 + (SHIFT - 1) * u * s) for s in 1 - torch.arange(NUM_STEPS + 1).double() / NUM_STEPS]
    z, rows = world.z[b : b + 1], slice(b, b + 1)
    for j in range(NUM_STEPS):
        sigma, sigma_next = path[j], path[j + 1]
        v = world.predict(z, sigma[None], 0, rows)
        if j != recorded:
            v = v.detach()
        if guidance_scale != 1:
            null = world.predict(z, sigma[None], 1, rows).detach()
            v = guidance_scale * v - (guidance_scale - 1) * null
        if sigma == 1:  # pure noise, of which the prediction says z_0 alone; there eps is z
            z_0, eps = z - v, z
        else:  # z here is the constant that the prediction was made at; up to the recorded step there is no other
            eps = z.detach() + (1 - sigma) * v
            z_0 = (z - sigma * eps) / (1 - sigma)
        z = (1 - sigma_next) * z_0 + sigma_next * eps
    return z


class Chain(NamedTuple):
    """What autograd through every step of every row says."""

    recorded_step: str
    guidance_scale: float
    z_hat_0: torch.Tensor  # (5, 4, 4, 4)
    gradients: torch.Tensor  # (5, P): of each row's loss, in all LoRA parameters


@pytest.fixture(scope="module", params=[(step, scale) for step in RECORDED_STEPS for scale in (4.5, 1.0)], ids=str)
def chain(request, world) -> Chain:
    which, guidance_scale = request.param
    z_hat_0, gradients = [], []
    for b, recorded in enumerate(recorded_of(which).tolist()):
        clean = unrolled(world, b, recorded=recorded, guidance_scale=guidance_scale)
        gradients.append(world.gradient(world.loss(clean, slice(b, b + 1)).sum()))
        z_hat_0.append(clean.detach())
    return Chain(which, guidance_scale, torch.cat(z_hat_0), torch.stack(gradients))


@pytest.fixture(scope="module")
def rollout(world, chain) -> Rollout:
    def predict(z, sigma):
        assert not torch.is_grad_enabled()
        v_cond = world.predict(z, sigma, 0)
        return v_cond, v_cond if chain.guidance_scale == 1 else world.predict(z, sigma, 1)

    timetables = flow_timetables(SIGMAS, num_steps=NUM_STEPS, shift=SHIFT)
    recorded = recorded_of(chain.recorded_step)
    return flow_rollout(predict, world.z, timetables, recorded, guidance_scale=chain.guidance_scale)


def surrogate(world: World, rollout: Rollout) -> torch.Tensor:
    """(5,), by the functions that the trainer is made of."""
    g, _ = latent_gradient(lambda z: {"loss": world.loss(z)}, {"loss": 1.0}, rollout.z_hat_0)
    return recorded_step_surrogate(world.predict(rollout.z_recorded, rollout.t_recorded, 0), rollout.c, g)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (got - expected).norm(dim=-1) / expected.norm(dim=-1)


def test_surrogate_is_autograd_through_the_chain(world, chain, rollout):
    """For each sigma of a mixed batch: the same z_hat_0, and the same gradient in all LoRA parameters together."""
    assert not any(tensor.requires_grad for tensor in rollout)
    torch.testing.assert_close(rollout.z_hat_0, chain.z_hat_0, rtol=1e-9, atol=1e-9)
    gradients = torch.stack([world.gradient(row, retain_graph=True) for row in surrogate(world, rollout)])
    assert (chain.gradients.norm(dim=1) > 0).all()
    assert relative_error(gradients, chain.gradients).max() <= 1e-8


def test_planted_errors_are_seen(world, chain, rollout):
    """The comparison above fails by far on a gain 1 % off, a noise level 1 % off, or another step's latent."""
    another = rollout.z_hat_0 if chain.recorded_step == "first" else world.z
    for wrong in [
        rollout._replace(c=1.01 * rollout.c),
        rollout._replace(c=rollout.c * (1 - rollout.t_recorded)),
        rollout._replace(t_recorded=0.99 * rollout.t_recorded),
        rollout._replace(z_recorded=another),
    ]:
        gradient = world.gradient(surrogate(world, wrong).sum())
        assert relative_error(gradient, chain.gradients.sum(0)) > 1e-4


# The steps


@pytest.mark.parametrize("shift", [1.0, SHIFT])
@pytest.mark.parametrize("guidance_scale", [4.5, 1.0])
def test_rollout_ends_at_the_pipelines_last_latent(guidance_scale, shift):
    """At equal sigmas a stock pipeline, from the same noise and embeddings, hands the same latent to its decoder."""
    unsaid = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    transformer = tiny_transformer()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    pipeline = StableDiffusion3Pipeline(transformer, scheduler, **dict.fromkeys(unsaid))
    pipeline.set_progress_bar_config(disable=True)
    z, text, pooled = normal(2, 4, 4, 4, seed=0), normal(2, 2, 3, 32, seed=1), normal(2, 2, 16, seed=2)
    z, text, pooled = z.float(), text.float(), pooled.float()
    expected = pipeline(
        prompt_embeds=text[0],
        negative_prompt_embeds=text[1],
        pooled_prompt_embeds=pooled[0],
        negative_pooled_prompt_embeds=pooled[1],
        sigmas=[1 - j / NUM_STEPS for j in range(NUM_STEPS)],
        guidance_scale=guidance_scale,
        latents=z,
        height=32,
        width=32,
        output_type="latent",
    ).images

    def predict(z, sigma):
        pair = (transformer(z, text[i], pooled[i], 1000 * sigma, return_dict=False)[0] for i in range(2))
        return tuple(pair)

    timetables = flow_timetables(torch.ones(2, dtype=torch.float64), num_steps=NUM_STEPS, shift=shift)
    recorded = torch.zeros(2, dtype=torch.long)
    found = flow_rollout(predict, z, timetables, recorded, guidance_scale=guidance_scale)
    assert (found.z_hat_0 - z).abs().max() > 0.5 and found.z_hat_0.dtype == torch.float32
    torch.testing.assert_close(found.z_hat_0, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.z_recorded, z) and found.t_recorded.tolist() == [1, 1]


@pytest.mark.parametrize("recorded_step", RECORDED_STEPS)
def test_rows_of_a_batch_do_not_meet(recorded_step):
    """A batch of mixed sigma is its rows denoised one by one, latents of any number of dimensions."""

    def predict(z, sigma):
        wave = torch.sin(z + sigma.view(-1, *[1] * (z.dim() - 1)))
        return wave, wave.flip(-1)

    timetables, recorded = flow_timetables(SIGMAS, num_steps=NUM_STEPS, shift=SHIFT), recorded_of(recorded_step)
    z = normal(5, 3, 2, 2, 2, seed=0)
    together = flow_rollout(predict, z, timetables, recorded, guidance_scale=4.5)
    for b in range(5):
        rows = slice(b, b + 1)
        alone = flow_rollout(predict, z[rows], timetables[rows], recorded[rows], guidance_scale=4.5)
        for whole, row in zip(together, alone):
            torch.testing.assert_close(whole[rows], row, rtol=1e-12, atol=1e-12)

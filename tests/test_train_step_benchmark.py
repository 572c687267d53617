"""benchmarks/train_step.py: its two arms compute one gradient, and the command writes what it measured."""

import json

import pytest
import torch

from benchmarks import train_step
from scoft.train.terms import ACTIVE


TINY = {
    "size": "tiny",
    "resolution": 16,
    "device": "cpu",
    "precision": "fp32",
    "batch": 2,
    "blip_captions": 2,
    "negatives": 2,
    "num_denoising_steps": 5,
    "perceptual_every": 2,
    "compile": False,
    "gradient_checkpointing": False,
}


def lora_gradient(bench: train_step.Bench, arm: str, *, step: int) -> tuple[torch.Tensor, dict[str, float]]:
    """The gradient of one update in all LoRA weights, and the terms; one row has fewer steps to go than the other."""
    (batch,) = bench.batches(arm, range(step, step + 1))
    batch["t"] = torch.tensor([3, 700])
    objective, terms = bench.losses(arm, batch, step)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(objective, bench.parameters)])
    return gradient, {name: term.item() for name, term in terms.items()}


# A random encoder hardly tells images apart: these weights let L_P and L_C be the larger part of the gradient.
@pytest.mark.parametrize("image_weight", [0.0, 1e3])
def test_the_plain_implementation_has_our_losses_and_our_gradient(monkeypatch, image_weight):
    """On the same batch both arms give the same terms and the same LoRA gradient, to 1e-4 of its length."""
    weights = train_step.WEIGHTS | {"perceptual": image_weight, "contrastive": 2 * image_weight}
    monkeypatch.setattr(train_step, "WEIGHTS", weights)
    bench = train_step.Bench(arms=train_step.ARMS, **TINY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in bench.parameters:  # half of a fresh LoRA is zero, and with it half of the gradient
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))

    step = 2 if image_weight else 1
    ours, our_terms = lora_gradient(bench, "ours", step=step)
    plain, plain_terms = lora_gradient(bench, "plain", step=step)

    assert (our_terms.pop(ACTIVE, None) is None) == (not image_weight)
    assert our_terms == pytest.approx(plain_terms, rel=1e-4)
    assert (ours - plain).norm() < 1e-4 * plain.norm()
    if image_weight:
        without, _ = lora_gradient(bench, "plain", step=1)
        assert plain.norm() > 5 * without.norm()


def test_in_bf16_both_arms_still_have_one_gradient():
    """On a GPU the arms are compared in bf16, with checkpointing too: a cosine of the gradients above 0.99."""
    settings = TINY | {"precision": "bf16", "gradient_checkpointing": True}
    bench = train_step.Bench(arms=train_step.ARMS, **settings)
    for step in (1, 2):
        ours, plain = (lora_gradient(bench, arm, step=step)[0] for arm in train_step.ARMS)
        assert torch.cosine_similarity(ours, plain, dim=0) > 0.99


def test_the_command_adds_its_run_to_the_output(tmp_path):
    """A call keeps the runs in --output and adds one, with each quantity by arm and kind of update."""
    output = tmp_path / "results.json"
    output.write_text('{"runs": ["an earlier run"]}')
    flags = "--size tiny --device cpu --num_denoising_steps 2 --perceptual_every 2 --updates 1 --warmup 0"
    train_step.main([*flags.split(), "--output", str(output)])

    earlier, run = json.loads(output.read_text())["runs"]
    assert earlier == "an earlier run"
    seconds, tflop = (run["per_update"][quantity] for quantity in ("seconds", "tflop"))
    for arm in train_step.ARMS:
        without, with_image_losses = (run["rounds_seconds"][arm][kind] for kind in train_step.KINDS)
        assert seconds[arm]["mean"] == pytest.approx((without[0] + with_image_losses[0]) / 2, rel=1e-3)
        assert 0 < tflop[arm]["without_image_losses"] < tflop[arm]["with_image_losses"]
    # Encoding the photograph anew costs arithmetic in each update.
    assert min(run["plain_over_ours"]["tflop"].values()) > 1

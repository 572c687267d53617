"""benchmarks/train_step.py: both arms compute one gradient, and the command writes what it says."""

import json

import pytest
import torch

from benchmarks import train_step


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


@pytest.mark.parametrize("step", [1, 2], ids=["without image losses", "with image losses"])
def test_the_plain_implementation_has_our_losses_and_our_gradient(step):
    """On the same batch both arms give the same terms and the same LoRA gradient, to 1e-4 of its length."""
    bench = train_step.Bench(arms=train_step.ARMS, **TINY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in bench.parameters:  # half of a fresh LoRA is zero, and with it half of the gradient
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))

    ours, our_terms = lora_gradient(bench, "ours", step=step)
    plain, plain_terms = lora_gradient(bench, "plain", step=step)

    assert our_terms == pytest.approx(plain_terms, rel=1e-4)
    assert len(our_terms) == (4 if step == 2 else 2)
    assert plain.norm() > 0
    assert (ours - plain).norm() < 1e-4 * plain.norm()


def test_the_image_losses_reach_the_compared_gradient():
    """L_P and L_C are a visible part of the gradient that the arms are compared by."""
    bench = train_step.Bench(arms=("ours",), **TINY)
    (batch,) = bench.batches("ours", range(2, 3))
    batch["t"] = torch.tensor([3, 700])
    gradients = []
    for step in (1, 2):
        objective, _ = bench.losses("ours", batch, step)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(objective, bench.parameters)]))
    without, with_image_losses = gradients
    assert (with_image_losses - without).norm() > 0.01 * without.norm()


def test_the_command_adds_its_run_to_the_output(tmp_path):
    """Each call adds a run with time, memory, arithmetic and ratios for both arms and both kinds of update."""
    output = tmp_path / "results.json"
    flags = "--size tiny --device cpu --num_denoising_steps 2 --perceptual_every 2 --updates 1 --warmup 0".split()
    for _ in range(2):
        train_step.main([*flags, "--output", str(output)])

    runs = json.loads(output.read_text())["runs"]
    assert len(runs) == 2
    for run in runs:
        for by_arm in run["per_update"].values():
            for by_kind in by_arm.values():
                assert 0 < by_kind["without_image_losses"] < by_kind["with_image_losses"]
        assert run["plain_over_ours"]["tflop"]["mean"] > 1

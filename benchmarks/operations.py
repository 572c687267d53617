#!/usr/bin/env python
"""What an update asks of a GPU beside its arithmetic, counted without one: operations, casts and bytes of each call.

    python -m benchmarks.operations
    python -m benchmarks.operations --precision fp32 --output results.json

The models are Stable Diffusion 1.x at 512 pixels with the paper's CLIPConv, of full size and without weights, as the
trainer sets them up.  Nothing is computed: tensors are fake, and each operation that reaches torch's dispatcher is
counted but views, which start no kernel.  Each is a launch on a GPU where nothing is compiled; bytes are those that
it reads and writes, nothing fused.  What the count cannot see is time.
"""

import argparse
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_scoft_lora as trainer
from benchmarks.train_step import SIZES, RandomClipConv, make_accelerator, random_model
from scoft.base_model import StableDiffusion
from scoft.files import write_atomically
from scoft.pages import aligned
from scoft.train.optimizer import make_optimizer
from scoft.weights import DTYPES


SIZE = SIZES["full"]
DEFAULTS = trainer.parse_args(["--dataset", "any", "--culture", "any"])
EVERY = DEFAULTS.perceptual_every  # updates of a round, of which the last has L_P and L_C
NEGATIVES = 5  # of a photograph


class Counter(TorchDispatchMode):
    """Counts what is dispatched while it is entered."""

    def __init__(self):
        super().__init__()
        self.counts = {"operations": 0, "casts": 0, "bytes": 0}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        name = operation._schema.name
        if name.startswith("aten::") and not operation.is_view and name != "aten::_unsafe_view":
            tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
            self.counts["operations"] += 1
            self.counts["casts"] += name == "aten::_to_copy" and args[0].dtype is not result.dtype
            self.counts["bytes"] += sum(each.numel() * each.element_size() for each in tensors)
        return result


def counted(call: Callable) -> tuple[dict[str, int], object]:
    """The counts of a call, and what it returned."""
    with Counter() as counter:
        result = call()
    return counter.counts, result


def empty_model(precision: str) -> tuple[StableDiffusion, list[torch.nn.Parameter]]:
    """The base model as the trainer has it, and its LoRA's parameters; none of their memory is touched."""
    with torch.device("meta"):
        model = random_model(SIZE, dtype=DTYPES[precision])
    for part in (model.unet, model.vae):
        part.to_empty(device="cpu")
    parameters = model.add_lora(rank=SIZE["rank"], alpha=SIZE["rank"], target_modules=DEFAULTS.lora_layers.split(","))
    model.decode_in(model.image_dtype)
    model.trained = make_accelerator(precision, cpu=True).prepare(model.unet)
    return model, parameters


def count_update(precision: str) -> dict[str, dict[str, int]]:
    """The counts of each kind of call in an update of batch 1 and one naive caption, and how many a round makes."""
    model, parameters = empty_model(precision)
    distance = RandomClipConv(**SIZE["clip_conv"], device=torch.device("cpu"), dtype=model.image_dtype)
    optimizer = make_optimizer(parameters, use_8bit=False, lr=1e-4)
    latent = model.latent_shape(SIZE["resolution"])
    found = {}

    with FakeTensorMode(allow_non_fake_inputs=True):

        def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            width = SIZE["text"]["hidden_size"]
            z, t = torch.empty(batch, *latent), torch.zeros(batch, dtype=torch.long)
            return z, t, torch.empty(batch, 77, width, dtype=model.dtype)

        def add(name: str, of_round: int, call: Callable):
            counts, result = counted(call)
            found[name] = {"calls_in_a_round": of_round, **counts}
            return result

        with contextlib.ExitStack() as stack:
            predict_pair = add("the LoRA merged", 1, lambda: stack.enter_context(model.merged_lora()))
            z, t, c = inputs(2)
            add("merged, the guidance's pair", DEFAULTS.num_denoising_steps, lambda: predict_pair(z, t, c))
        z, t, c = inputs(1)
        add("frozen, a naive caption", EVERY, lambda: model.predict_frozen(z, t, c))
        eps_theta = add("with gradient", EVERY, lambda: model.predict(z, t, c))
        add("its backward pass", EVERY, lambda: eps_theta.sum().backward())

        z_hat_0 = torch.empty(1, *latent, requires_grad=True)
        f_pos = distance.embed(torch.empty(1 + NEGATIVES, 3, SIZE["resolution"], SIZE["resolution"]))
        image = add("decoder", 1, lambda: model.decode(z_hat_0))
        far = add("distances", 1, lambda: distance.compare(distance.embed(image), f_pos))
        add("backward pass of both", 1, lambda: far.sum().backward())

    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the moments
    counts, _ = counted(optimizer.step)
    found["AdamW"] = {"calls_in_a_round": EVERY, **counts}
    return found


def totals(calls: dict[str, dict[str, int]]) -> dict[str, float]:
    """Of an update, the mean over a round."""
    names = ("operations", "casts", "bytes")
    return {name: sum(each["calls_in_a_round"] * each[name] for each in calls.values()) / EVERY for name in names}


def table(calls: dict[str, dict[str, int]]) -> str:
    rows = [("call", f"in {EVERY} updates", "operations", "casts", "GB")]
    for name, each in calls.items():
        counts = (str(each[key]) for key in ("calls_in_a_round", "operations", "casts"))
        rows.append((name, *counts, f"{each['bytes'] / 1e9:.1f}"))
    mean = totals(calls)
    rows.append(
        ("an update, the mean", "", f"{mean['operations']:.0f}", f"{mean['casts']:.0f}", f"{mean['bytes'] / 1e9:.1f}")
    )
    return "\n".join(aligned(rows))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"], help="of the UNet's weights")
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    args = parser.parse_args(argv)
    calls = count_update(args.precision)
    print(table(calls))
    if args.output:
        result = {"precision": args.precision, "torch": torch.__version__, "calls": calls, "update": totals(calls)}
        write_atomically(args.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Arithmetic and memory of an update of full size for each family of base models, counted on a CPU without weights.

    python -m benchmarks.bases --output benchmarks/results/bases.json

In bf16, with a batch of one photograph and one naive caption, at each family's own resolution.  A round is ten
updates, of which the last has L_P and L_C.  Memory is what tensors hold at once: on a GPU CUDA's own and what the
allocator cannot use come on top, and so do the encoder of the perceptual distance and its activations.
"""

import argparse
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import train_scoft_lora
import train_scoft_lora_sdxl
from benchmarks.train_step import SIZES, random_model
from scoft.base_model import StableDiffusion, StableDiffusionXL
from scoft.files import write_atomically
from scoft.pages import aligned


ROOT = Path(train_scoft_lora.__file__).resolve().parent
GIB = 2**30
# Attention on a CPU, which torch's counter does not know of, though it does of the GPU's.
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
    ),
}
XL = {
    "full": {
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    },
    "tiny": {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "transformer_layers_per_block": 1,
        "attention_head_dim": (1, 2, 2),
        "cross_attention_dim": 48,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
        "norm_num_groups": 8,
    },
}


class Memory(TorchDispatchMode):
    """Bytes of all tensors made while it is entered: those that are still held, and the most at once."""

    def __init__(self):
        super().__init__()
        self.known: set[int] = set()  # places of the storages that are held
        self.held = self.most = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        made = () if operation.is_view else (each for each in tree_leaves(result) if isinstance(each, torch.Tensor))
        for storage in (each.untyped_storage() for each in made):
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.held += storage.nbytes()
                weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.held)
        return result

    def drop(self, place: int, size: int):
        self.known.remove(place)
        self.held -= size


def counted(call: Callable) -> tuple[dict[str, float], object]:
    """The counts of a call, and what it returned; `kept` is what is held after it, by its graph too.

    It is called twice: what torch's counter of arithmetic refers to is freed late.
    """
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as arithmetic:
        call()
    gc.collect()
    with Memory() as memory:
        result = call()
        kept = memory.held
    return {"tflop": arithmetic.get_total_flops() / 1e12, "most": memory.most / GIB, "kept": kept / GIB}, result


def stable_diffusion(size: str) -> StableDiffusion:
    """Stable Diffusion 1.x, whose weights' memory is never touched."""
    with torch.device("meta"):
        model = random_model(SIZES[size], dtype=torch.bfloat16)
    return with_weights(model)


def stable_diffusion_xl(size: str) -> StableDiffusionXL:
    """The same of XL; of its text encoders, which are no part of an update, the sizes alone."""
    channels, shapes = SIZES[size]["vae"]["block_out_channels"], XL[size]
    levels = len(channels)
    pooled = shapes["projection_class_embeddings_input_dim"] - 6 * shapes["addition_time_embed_dim"]
    with torch.device("meta"):
        vae = AutoencoderKL(
            **SIZES[size]["vae"],
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        )
        unet = UNet2DConditionModel(
            **shapes,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            addition_embed_type="text_time",
            use_linear_projection=True,
        )
    for part in (vae, unet):
        part.requires_grad_(False).eval()
    text_encoder_2 = SimpleNamespace(config=SimpleNamespace(projection_dim=pooled))
    more = {"tokenizer_2": None, "text_encoder_2": text_encoder_2, "zeros_for_empty": True}
    unet = unet.to(torch.bfloat16)
    return with_weights(StableDiffusionXL(None, None, None, vae, unet, dtype=torch.bfloat16, **more))


def with_weights(model: StableDiffusion) -> StableDiffusion:
    for part in (model.unet, model.vae):
        part.to_empty(device="cpu")
    model.decode_in(model.image_dtype)
    return model


# Each family's name, its model, the rows and channels of a caption by its size, and the defaults of its trainer.
BASES = {
    "Stable Diffusion 1.x": (
        stable_diffusion,
        lambda size: (77, SIZES[size]["text"]["hidden_size"]),
        train_scoft_lora.parse_args,
    ),
    "Stable Diffusion XL": (
        stable_diffusion_xl,
        lambda size: (79, XL[size]["cross_attention_dim"]),
        train_scoft_lora_sdxl.parse_args,
    ),
}


def count(base: str, *, size: str = "full", resolution: int | None = None) -> dict:
    """The calls of an update, each with its counts and how many a round has; bytes of weights; peaks, in GiB."""
    make, caption, parse_args = BASES[base]
    args, model = parse_args(["--dataset", "any", "--culture", "any"]), make(size)
    resolution = resolution or args.resolution
    rank = SIZES[size]["rank"]
    lora = model.add_lora(rank=rank, alpha=rank, target_modules=args.lora_layers.split(","))
    every, latent, calls = args.perceptual_every, model.latent_shape(resolution), {}

    def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        c = torch.empty(batch, *caption(size), dtype=model.dtype)
        return torch.empty(batch, *latent), torch.zeros(batch, dtype=torch.long), c

    def image() -> torch.Tensor:
        return model.decode(torch.empty(1, *latent, requires_grad=True))

    def there_and_back(*noised: torch.Tensor):
        model.predict(*noised).sum().backward()
        for parameter in lora:
            parameter.grad = None

    with FakeTensorMode(allow_non_fake_inputs=True):

        def add(name: str, in_a_round: int, call: Callable):
            calls[name], result = counted(call)
            calls[name]["in_a_round"] = in_a_round
            return result

        def pair():
            with model.merged_lora() as predict:
                predict(*inputs(2))

        add("naive caption", every, lambda: model.predict_frozen(*inputs(1)))
        add("step of the roll-out", args.num_denoising_steps, pair)
        for checkpointing in ("", ", checkpointing"):
            if checkpointing:
                model.speed_up(gradient_checkpointing=True, xformers=False, compile=False)
            counts, graph = counted(lambda: model.predict(*inputs(1)))
            calls[f"prediction{checkpointing}"] = counts | {"in_a_round": every}
            del graph
            add(f"prediction and back{checkpointing}", every, lambda: there_and_back(*inputs(1)))
            add(f"decoding and back{checkpointing}", 1, lambda: image().sum().backward())
    return {"resolution": resolution, "calls": calls} | summary(calls, model, lora, every=every)


def summary(calls: dict, model: StableDiffusion, lora: list[nn.Parameter], *, every: int) -> dict:
    """What an update comes to: its arithmetic, the mean over a round, and memory with and without checkpointing."""
    frozen = [p for part in (model.unet, model.vae.decoder) for p in part.parameters() if not p.requires_grad]
    held = {
        "frozen": sum(each.numel() * each.element_size() for each in frozen) / GIB,
        "lora": 3 * sum(each.numel() * each.element_size() for each in lora) / GIB,  # with AdamW's two moments
    }
    needed = {}
    for way in ("", ", checkpointing"):
        passes = [name for name in calls if name.endswith(f"and back{way}")] + [
            "naive caption",
            "step of the roll-out",
        ]
        needed[way] = sum(held.values()) + max(calls[name]["most"] for name in passes)
    passes = ("naive caption", "step of the roll-out", "prediction and back", "decoding and back")
    return {
        "tflop_an_update": sum(calls[name]["tflop"] * calls[name]["in_a_round"] for name in passes) / every,
        **{f"gib_{name}": value for name, value in held.items()},
        "gib": needed[""],
        "gib_checkpointing": needed[", checkpointing"],
        "lora_parameters": sum(each.numel() for each in lora),
    }


def table(found: dict[str, dict]) -> str:
    rows = []
    for base, counts in found.items():
        rows.append((f"{base}, {counts['resolution']} px", "in a round", "TFLOP", "GiB at most", "GiB kept"))
        for name, each in counts["calls"].items():
            numbers = (f"{each[key]:.2f}" for key in ("tflop", "most", "kept"))
            rows.append((f"  {name}", str(each["in_a_round"]), *numbers))
        weights = f"{counts['gib_frozen']:.2f} frozen, {counts['gib_lora']:.2f} LoRA and moments"
        rows.append((f"  an update: {counts['tflop_an_update']:.1f} TFLOP; GiB: {weights};", "", "", "", ""))
        both = f"{counts['gib']:.1f} in all, {counts['gib_checkpointing']:.1f} with checkpointing"
        rows.append((f"  {both}", "", "", "", ""))
    return "\n".join(aligned(rows))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--bases", nargs="+", default=[*BASES], choices=BASES, help="families to count")
    parser.add_argument("--size", default="full", choices=XL, help="of the models")
    parser.add_argument("--resolution", type=int, help="default: each family's own")
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    args = parser.parse_args(argv)
    found = {base: count(base, size=args.size, resolution=args.resolution) for base in args.bases}
    print(table(found))
    if args.output:
        write_atomically(args.output, json.dumps({"torch": torch.__version__} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()

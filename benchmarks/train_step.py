#!/usr/bin/env python
"""Time, peak memory and arithmetic of one update of train_scoft_lora.py beside a plain implementation of the method.

    python -m benchmarks.train_step --size small
    python -m benchmarks.train_step --size full --precision bf16 --compile --updates 20 --output results.json

Both arms run in the trainer's own loop (`update`: data, backward, clipping, AdamW) on the same models with
random weights and on the same batches, which are noise: nothing is downloaded.

    ours    `training_losses` as it ships, with the caches of latents, text embeddings and image features warm
    plain   `plain_losses` below: the objective as one writes it from the paper.  The same gradient, SDPA, precision.

A round is one cadence of the method: `--perceptual_every` - 1 updates without L_P and L_C, then one with them.  The
arms take turns round by round, and medians over the rounds are reported, so that a busy machine disturbs both alike.
Memory and arithmetic are measured apart, each arm in a process of its own.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from tokenizers.pre_tokenizers import ByteLevel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import train_scoft_lora as trainer
from scoft.base_model import StableDiffusion
from scoft.distances.base import PerceptualDistance
from scoft.distances.clip_conv import ClipConv
from scoft.train.build import build_examples, build_objective
from scoft.train.examples import is_due, make_loader
from scoft.train.objective import training_losses
from scoft.train.optimizer import make_optimizer
from scoft.train.run import update
from scoft.train.terms import DEFAULT_WEIGHTS
from scoft.weights import DTYPES
from scoft_losses import denoising_timetables, weighted_sum


ARMS = ("ours", "plain")
KINDS = ("without_image_losses", "with_image_losses")
WEIGHTS = DEFAULT_WEIGHTS
GUIDANCE_SCALE, NEGATIVE_WEIGHT = 4.5, 1.0
SEED, ROWS = 0, 2

# `full` is Stable Diffusion 1.x with the paper's CLIPConv.  `small` keeps roughly its proportions, counted in forwards
# of the UNet: encoding and decoding an image take 1.4 and 3.1 at full size, a caption and a feature map 0.02 each.
SIZES = {
    "tiny": {
        "resolution": 16,
        "rank": 4,
        "unet": {
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 8,
        },
        "vae": {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "clip_conv": {"model_name": "test_resnet", "size": 64},
    },
    "small": {
        "resolution": 128,
        "rank": 16,
        "unet": {"block_out_channels": (64, 128, 256, 256)},
        "vae": {"block_out_channels": (24, 48, 96, 96), "layers_per_block": 2, "norm_num_groups": 8},
        "text": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2},
        "clip_conv": {"model_name": "test_resnet", "size": 64},
    },
    "full": {
        "resolution": 512,
        "rank": 64,
        "unet": {"block_out_channels": (320, 640, 1280, 1280)},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "clip_conv": {"model_name": "resnet101_clip.openai", "size": 224},
    },
}


# ---------------------------------------------------------------------------------------------------------------------
# The plain implementation
# ---------------------------------------------------------------------------------------------------------------------


def plain_losses(
    batch: dict,
    *,
    with_image_losses: bool,
    token_ids: torch.Tensor,
    null_caption: int,
    text_encoder,
    vae,
    unet,
    noise_scheduler,
    distance: PerceptualDistance,
    num_denoising_steps: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Section 4 of the paper, computed in the order it is written; takes and returns what the trainer's `losses` do.

    Photographs and captions are encoded in each update, the UNet is called once per caption and once per half of the
    guidance with the batch's rows together, and autograd goes back through decoder and sampler to the recorded step.
    What needs no gradient records none.  In bf16 the UNet computes in it throughout, its LoRA as well, as in ours.
    """
    device, scaling = vae.device, vae.config.scaling_factor
    photograph, t, eps = (batch[name].to(device) for name in ("photograph", "t", "eps"))

    def encode(captions: torch.Tensor) -> torch.Tensor:
        return text_encoder(token_ids[captions].to(device))[0]

    def predict(z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        prediction = unet(z.to(c.dtype), t, c, return_dict=False)[0].float()
        return prediction.clone()  # a CUDA graph's next replay writes over the last

    with torch.no_grad():
        posterior = vae.encode(photograph.to(vae.dtype)).latent_dist
        z_0 = (posterior.mean + posterior.std * batch["posterior_noise"].to(device)) * scaling
        z_t = noise_scheduler.add_noise(z_0, eps, t)
        captions = torch.stack([batch["caption"], *torch.tensor(batch["blip_captions"]).T])
        c_ccub, *c_blip = encode(captions.flatten()).chunk(len(captions))
        eps_blip = torch.stack([predict(z_t, t, c) for c in c_blip]).mean(0)

    eps_theta = predict(z_t, t, c_ccub)
    terms = {"ldm": F.mse_loss(eps_theta, eps), "memorization": F.mse_loss(eps_theta, eps_blip)}
    if with_image_losses:
        with torch.no_grad():
            c_null = encode(torch.tensor([null_caption] * len(t)))
            f_pos = distance.embed(photograph)
            f_neg = torch.stack([distance.embed(torch.stack(images).to(device)) for images in batch["negatives"]])
        z_hat_0 = plain_denoise(
            z_t,
            batch["t"],
            predict=predict,
            c_ccub=c_ccub,
            c_null=c_null,
            alphas_cumprod=noise_scheduler.alphas_cumprod,
            num_steps=num_denoising_steps,
        )
        f_hat = distance.embed(vae.decode(z_hat_0.to(vae.dtype) / scaling).sample.float())
        d_pos, d_neg = distance.compare(f_hat, f_pos), distance.compare(f_hat[:, None], f_neg)
        hinge = (d_pos[:, None] - NEGATIVE_WEIGHT * d_neg + distance.default_margin).clamp(min=0)
        terms |= {"perceptual": d_pos.mean(), "contrastive": hinge.mean()}
    return weighted_sum(terms, WEIGHTS), {name: term.detach() for name, term in terms.items()}


def plain_denoise(z, t, *, predict, c_ccub, c_null, alphas_cumprod, num_steps: int) -> torch.Tensor:
    """z_hat_0 (B, 4, h, w): DDIM from z_t, each row from its own t, recording the first conditional prediction."""
    timetables = denoising_timetables(t, num_steps=num_steps)
    abar = torch.cat([alphas_cumprod, alphas_cumprod.new_ones(1)])[timetables.to(z.device), None, None, None]
    timesteps = timetables.clamp(min=0).to(z.device)  # a row at its end, -1, has abar = 1 and stands still
    for j, (abar_t, abar_next) in enumerate(pairwise(abar.unbind(1))):
        with torch.set_grad_enabled(j == 0):
            eps_cond = predict(z, timesteps[:, j], c_ccub)
        with torch.no_grad():
            eps_null = predict(z, timesteps[:, j], c_null)
        eps = GUIDANCE_SCALE * eps_cond - (GUIDANCE_SCALE - 1) * eps_null
        z_0 = (z - (1 - abar_t).sqrt() * eps) / abar_t.sqrt()
        z = abar_next.sqrt() * z_0 + (1 - abar_next).sqrt() * eps
    return z


# ---------------------------------------------------------------------------------------------------------------------
# Models and data
# ---------------------------------------------------------------------------------------------------------------------


class RandomClipConv(PerceptualDistance):
    """`ClipConv` with random weights."""

    features = ClipConv.features

    def __init__(self, *, model_name: str, size: int, device: torch.device, dtype: torch.dtype):
        encoder = timm.create_model(model_name, features_only=True, out_indices=(4,))
        pixels = {name: encoder.pretrained_cfg[name] for name in ("mean", "std")}
        super().__init__(encoder.to(dtype), size=size, **pixels, device=device, dtype=dtype)


class NoiseDataset:
    """Photographs and negatives of uniform noise and numbered captions, as `CulturalDataset` gives rows."""

    def __init__(self, *, resolution: int, blip_captions: int, negatives: int):
        self.captions = [[f"photograph {row}"] for row in range(ROWS)]
        self.blip_captions = [[f"naive {row} {k}" for k in range(blip_captions)] for row in range(ROWS)]
        self.images = torch.rand(ROWS, 1 + negatives, 3, resolution, resolution) * 2 - 1

    def __len__(self) -> int:
        return ROWS

    def image(self, row: int) -> torch.Tensor:
        return self.images[row, 0]

    def negatives(self, row: int) -> list[torch.Tensor]:
        return list(self.images[row, 1:])


@dataclasses.dataclass(frozen=True)
class AsItIs:
    """In the place of the image transform: neither arm pays for reading and resizing files."""

    resolution: int

    def square(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def __call__(self, image: torch.Tensor, *, flip: bool, crop: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
        return image


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary of single bytes."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def random_model(shapes: dict, *, dtype: torch.dtype, device: torch.device | None = None) -> StableDiffusion:
    """Stable Diffusion with random weights, frozen.  shapes: see `SIZES`.  dtype: of the UNet.

    device: where the weights are drawn and stay, by default torch's own; full size takes a CPU core 16 s.
    """
    levels = len(shapes["vae"]["block_out_channels"])
    with device or contextlib.nullcontext():
        text_encoder = CLIPTextModel(CLIPTextConfig(**shapes["text"]))
        vae = AutoencoderKL(
            **shapes["vae"],
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        )
        unet = UNet2DConditionModel(
            **shapes["unet"], cross_attention_dim=shapes["text"]["hidden_size"], attention_head_dim=8
        )
    for model in (text_encoder, vae, unet):
        model.requires_grad_(False).eval()
    noise_scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )
    return StableDiffusion(noise_scheduler, byte_tokenizer(), text_encoder, vae, unet.to(dtype), dtype=dtype)


def make_accelerator(precision: str, *, cpu: bool) -> Accelerator:
    """As the trainer's, without autocast."""
    mixed_precision = "no" if precision == "fp32" else precision
    return Accelerator(cpu=cpu, mixed_precision=mixed_precision, kwargs_handlers=[AutocastKwargs(enabled=False)])


class Bench:
    """The run that `train_scoft_lora.py` sets up, by its own builders, on models of random weights and on noise.

    arms: without "plain", VAE encoder and text encoder leave the device once the constants are computed, as in the
    trainer.  Other arguments: see `parse_args`.
    """

    def __init__(
        self,
        *,
        arms: tuple[str, ...],
        size: str,
        resolution: int,
        device: str,
        precision: str,
        batch: int,
        blip_captions: int,
        negatives: int,
        num_denoising_steps: int,
        perceptual_every: int,
        compile: bool,
        gradient_checkpointing: bool,
    ):
        torch.manual_seed(SEED)
        shapes = SIZES[size]
        dtype = DTYPES[precision]
        self.accelerator = make_accelerator(precision, cpu=device == "cpu")
        self.device = self.accelerator.device
        flags = f"--dataset noise --culture noise --method mpc --seed {SEED} --resolution {resolution}"
        flags += f" --rank {shapes['rank']} --train_batch_size {batch} --blip_captions_per_step all"
        flags += f" --num_denoising_steps {num_denoising_steps} --denoising_guidance_scale {GUIDANCE_SCALE}"
        flags += f" --negative_weight {NEGATIVE_WEIGHT} --perceptual_every {perceptual_every}"
        self.args = trainer.parse_args(flags.split())

        self.model = random_model(shapes, dtype=dtype, device=self.device)
        layers = self.args.lora_layers.split(",")
        self.parameters = self.model.add_lora(rank=self.args.rank, alpha=self.args.rank, target_modules=layers)
        self.model.speed_up(gradient_checkpointing=gradient_checkpointing, xformers=False, compile=compile)
        optimizer = make_optimizer(self.parameters, use_8bit=False, lr=self.args.learning_rate)
        self.lr_scheduler = get_scheduler("constant", optimizer)
        self.model.trained, self.optimizer = self.accelerator.prepare(self.model.trained, optimizer)

        self.distance = RandomClipConv(**shapes["clip_conv"], device=self.device, dtype=dtype)
        self.transform = AsItIs(resolution)
        self.dataset = NoiseDataset(resolution=resolution, blip_captions=blip_captions, negatives=negatives)
        vae = self.model.vae
        encoder = {name: getattr(vae, name) for name in ("encoder", "quant_conv")}
        self.objective = build_objective(
            self.args,
            model=self.model,
            dataset=self.dataset,
            prompts=[],
            weights=WEIGHTS,
            distance=self.distance,
            transform=self.transform,
            device=self.device,
        )
        for row in range(ROWS):
            self.objective.constants.features(row, 0)
        if "plain" in arms:
            captions = list(self.objective.constants.caption_index)
            self.token_ids = self.model.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
            self.model.text_encoder.to(self.device, dtype)
            for name, module in encoder.items():  # which the trainer needs no more
                setattr(vae, name, module.to(self.device, dtype))

    def batches(self, arm: str, steps: range) -> Iterator[dict]:
        """The collated batches of updates `steps`, the same for both arms; `plain` gets the pixels too."""
        examples = build_examples(
            self.args,
            objective=self.objective,
            dataset=self.dataset,
            transform=self.transform,
            images_per_update=self.args.train_batch_size,
        )
        if arm == "plain":
            pixels = {"load_photograph": True, "load_negatives_every": self.args.perceptual_every}
            examples = dataclasses.replace(examples, **pixels)
        loader = make_loader(
            examples,
            range(steps.start - 1, steps.stop - 1),
            train_batch_size=self.args.train_batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            num_workers=self.args.dataloader_num_workers,
            accelerator=self.accelerator,
        )
        return iter(loader)

    def losses(self, arm: str, batch: dict, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The objective and its terms on one batch; L_P and L_C are among them on every n-th step."""
        if arm == "ours":
            return training_losses(self.objective.assemble(batch, step), self.objective)
        self.model.cast_lora()
        return plain_losses(
            batch,
            with_image_losses=is_due(step, self.args.perceptual_every),
            token_ids=self.token_ids,
            null_caption=self.objective.constants.caption_index[""],
            text_encoder=self.model.text_encoder,
            vae=self.model.vae,
            unet=self.model.trained,
            noise_scheduler=self.model.noise_scheduler,
            distance=self.distance,
            num_denoising_steps=self.args.num_denoising_steps,
        )

    def updates(self, arm: str, steps: range) -> Iterator[dict]:
        """An update of the trainer at each `next`."""
        batches = self.batches(arm, steps)
        for step in steps:
            yield update(
                self.args,
                step,
                batches,
                functools.partial(self.losses, arm),
                objective=self.objective,
                accelerator=self.accelerator,
                parameters=self.parameters,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
            )


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


class PeakMemory:
    """The most memory held since the last `reset`, in MiB.

    On CUDA what torch's allocator handed out.  On Linux without it the resident set, by the kernel's own high-water
    mark, above what it was when this object was made: make it before the models.
    """

    def __init__(self, device: str):
        self.device = device
        self.before = 0 if device == "cuda" else self.resident("VmRSS")

    @staticmethod
    def is_supported(device: str) -> bool:
        return device == "cuda" or (device == "cpu" and Path("/proc/self/clear_refs").exists())

    @staticmethod
    def resident(field: str) -> int:
        return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    def reset(self):
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM back to VmRSS

    def read(self) -> float:
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else self.resident("VmHWM") - self.before
        return peak / 2**20


def inspect_arm(arm: str, settings: dict) -> dict[str, dict[str, float]]:
    """Peak memory and arithmetic of one update of each kind; for a process that does nothing else.

    Compiled, the arithmetic is left out, as kernels escape its counter, and on the CPU the memory, as the resident set
    holds the compiler's own.
    """
    device, is_compiled = settings["device"], settings["compile"]
    has_memory = PeakMemory.is_supported(device) and (device == "cuda" or not is_compiled)
    memory = PeakMemory(device) if has_memory else None
    bench = Bench(arms=(arm,), **settings)
    step_of = dict(zip(KINDS, (1, settings["perceptual_every"])))

    def update(kind: str):
        next(bench.updates(arm, range(step_of[kind], step_of[kind] + 1)))

    for kind in KINDS if is_compiled else KINDS[:1]:  # compiles, and makes AdamW's state
        update(kind)
    measured = {}
    if memory:
        measured["peak_memory_mib"] = {}
        for kind in KINDS:
            memory.reset()
            update(kind)
            measured["peak_memory_mib"][kind] = round(memory.read())
    if not is_compiled:
        measured["tflop"] = {}
        for kind in KINDS:
            with FlopCounterMode(display=False) as counter:
                update(kind)
            measured["tflop"][kind] = counter.get_total_flops() / 1e12
    return measured


def inspect_apart(arm: str, settings: dict) -> dict[str, dict[str, float]]:
    """`inspect_arm` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=1, mp_context=context) as process:
        return process.submit(inspect_arm, arm, settings).result()


def seconds_per_update(updates: Iterator, *, count: int, device: str) -> float:
    synchronize = torch.get_device_module(device).synchronize
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        next(updates)
    synchronize()
    return (time.perf_counter() - start) / count


def time_arms(
    arms: tuple[str, ...], settings: dict, *, updates: int, warmup: int
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """Seconds per update by arm and kind, one number a round; and the seconds each arm's warm-up took."""
    bench = Bench(arms=arms, **settings)
    every, device = settings["perceptual_every"], settings["device"]
    loops = {arm: bench.updates(arm, range(1, (warmup + updates) * every + 1)) for arm in arms}
    warmup_seconds = {
        arm: warmup * every * seconds_per_update(loop, count=warmup * every, device=device) if warmup else 0.0
        for arm, loop in loops.items()
    }
    rounds = {arm: {kind: [] for kind in KINDS} for arm in arms}
    for _ in range(updates):
        for arm, loop in loops.items():
            for kind, count in zip(KINDS, (every - 1, 1)):
                rounds[arm][kind].append(seconds_per_update(loop, count=count, device=device))
    return rounds, warmup_seconds


def mean_per_update(by_kind: dict[str, float], *, every: int) -> float:
    """The mean over a cadence of `every` updates, the last of which has the image losses."""
    without, with_image_losses = (by_kind[kind] for kind in KINDS)
    return ((every - 1) * without + with_image_losses) / every


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor()


def measure(arms: tuple[str, ...], settings: dict, *, updates: int, warmup: int) -> dict:
    """One run: where, what, and each quantity by arm and kind of update, with the ratios plain / ours."""
    inspected = {arm: inspect_apart(arm, settings) for arm in arms}
    rounds, warmup_seconds = time_arms(arms, settings, updates=updates, warmup=warmup)
    every = settings["perceptual_every"]

    quantities = {"seconds": {}}
    for arm in arms:
        seconds = {kind: statistics.median(rounds[arm][kind]) for kind in KINDS}
        quantities["seconds"][arm] = seconds | {"mean": mean_per_update(seconds, every=every)}
        for quantity, by_kind in inspected[arm].items():
            mean = {"mean": mean_per_update(by_kind, every=every)} if quantity == "tflop" else {}
            quantities.setdefault(quantity, {})[arm] = by_kind | mean
    ratios = {
        quantity: {kind: by_arm["plain"][kind] / by_arm["ours"][kind] for kind in by_arm["ours"]}
        for quantity, by_arm in quantities.items()
        if set(by_arm) == set(ARMS)
    }
    return {
        "machine": {
            "processor": processor(settings["device"]),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "platform": f"{platform.system()} {platform.machine()}",
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "peft", "timm")},
        },
        "settings": settings | {"updates": updates, "warmup": warmup},
        "per_update": quantities,
        "plain_over_ours": ratios,
        "warmup_seconds": warmup_seconds,
        "rounds_seconds": rounds,
    }


def rounded(value):
    """Four significant digits, throughout a result."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--size", default="small", choices=SIZES, help="full is Stable Diffusion 1.x")
    parser.add_argument("--resolution", type=int, help="default: 16, 128 and 512 by size")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda", "mps"]
    )
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--blip_captions", type=int, default=1, help="naive captions per photograph and update")
    parser.add_argument("--negatives", type=int, default=5, help="per photograph")
    parser.add_argument("--num_denoising_steps", type=int, default=20)
    parser.add_argument("--perceptual_every", type=int, default=10, help="updates in a round; the last has L_P, L_C")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet, for both arms")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="for both arms")
    parser.add_argument("--arms", default=",".join(ARMS), choices=[*ARMS, ",".join(ARMS)])
    parser.add_argument("--updates", type=int, default=5, help="rounds timed")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them, timed apart; also the compilation")
    parser.add_argument("--output", type=Path, help="add the run to this JSON file's list")
    args = parser.parse_args(argv)
    for flag, least in (
        ("batch", 1),
        ("blip_captions", 1),
        ("negatives", 1),
        ("num_denoising_steps", 1),
        ("perceptual_every", 2),
        ("updates", 1),
        ("warmup", 0),
    ):
        if getattr(args, flag) < least:
            parser.error(f"--{flag} is at least {least}, got {getattr(args, flag)}")
    if args.resolution is not None and (args.resolution < 8 or args.resolution % 8):
        parser.error(f"--resolution is a multiple of 8, got {args.resolution}")
    if not torch.get_device_module(args.device).is_available():
        parser.error(f"--device {args.device}: this machine has none; give --device cpu")
    return args


def main(argv: list[str] | None = None):
    settings = dict(vars(parse_args(argv)))
    settings["resolution"] = settings["resolution"] or SIZES[settings["size"]]["resolution"]
    output, arms = settings.pop("output"), tuple(settings.pop("arms").split(","))
    updates, warmup = settings.pop("updates"), settings.pop("warmup")
    run = rounded(measure(arms, settings, updates=updates, warmup=warmup))
    print(json.dumps(run, indent=2))
    if output:
        runs = json.loads(output.read_text())["runs"] if output.exists() else []
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"runs": [*runs, run]}, indent=2) + "\n")


if __name__ == "__main__":
    main()

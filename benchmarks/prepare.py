#!/usr/bin/env python
"""How long prepare_ccub.py takes, stage by stage.

    python -m benchmarks.prepare --output benchmarks/results/prepare.json
    python -m benchmarks.prepare --full_size --output benchmarks/results/prepare.json

The first prepares --rows pictures of the pocket world on the pocket models, with all defaults of a real run but size.
Each stage is a launch of its own; what a launch costs that finds nothing to do is told beside them. The second draws
negatives with Stable Diffusion 1.x, a ControlNet and a depth model of full size and random weights, to see what
drawing the negatives of a photograph in one batch gains.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import prepare_ccub
from benchmarks.train_step import SIZES, byte_tokenizer, processor, rounded
from pocket.make_dataset import words, write_pictures
from pocket.train_models import make_scheduler
from scoft.prepare.negatives import NEGATIVE_QUALITY, DrawNegatives, NegativeGenerator
from scoft.prepare.photograph import jpeg


ROOT = Path(prepare_ccub.__file__).parent
CULTURE = "veridia"
FLAGS = {"defaults": "pocket", "culture": CULTURE}
BATCHES = (1, 2, 5, 10)  # negatives of a photograph
# A DPT to go with the small sizes; its defaults are those of the large one.
SMALL_DEPTH = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 16, 32, 32],
    "fusion_hidden_size": 16,
}


# ---------------------------------------------------------------------------------------------------------------------
# The pocket world, stage by stage
# ---------------------------------------------------------------------------------------------------------------------


def launch(flags: dict[str, object], *, processes: int):
    """prepare_ccub.py by accelerate's launcher, on the CPU."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        command += ["--multi_gpu", "--main_process_port", "0"]  # 0: any free one
    command += ["--num_processes", str(processes), str(ROOT / "prepare_ccub.py")]
    command += words(flags)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")


def seconds_of_stages(flags: dict[str, object], *, processes: int) -> dict[str, float]:
    """Seconds of a launch for each stage, and of one of all stages afterwards, when nothing is left to do."""
    seconds = {}
    for stages in (*prepare_ccub.STAGES, ",".join(prepare_ccub.STAGES)):
        start = time.perf_counter()
        launch(flags | {"stages": stages}, processes=processes)
        seconds[stages if stages in prepare_ccub.STAGES else "all again"] = time.perf_counter() - start
    return seconds


def prepare_pocket(*, rows: int, processes: int, flags: dict[str, object]) -> dict:
    """Prepare `rows` pictures: seconds by stage, and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(CULTURE, Path(folder, "pictures"), rows={"train": rows})
        output = Path(folder, "ccub")
        seconds = seconds_of_stages(
            flags | {"images": Path(folder, "pictures"), "output": output}, processes=processes
        )
        found = json.loads((output / CULTURE / "summary.json").read_text())
    stages = sum(seconds[stage] for stage in prepare_ccub.STAGES)
    return {
        "rows": rows,
        "processes": processes,
        "seconds": seconds | {"all stages": stages},
        "written": {name: found[name] for name in ("rows", "captions", "negatives", "false_negatives")},
    }


# ---------------------------------------------------------------------------------------------------------------------
# The negatives stage at full size
# ---------------------------------------------------------------------------------------------------------------------


def build_models(folder: Path, *, size: str, device: str, dtype) -> dict[str, Path]:
    """Random weights of a size of `benchmarks.train_step`, as folders: flag -> folder."""
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    shapes = SIZES[size]
    levels = len(shapes["vae"]["block_out_channels"])
    depth = {} if size == "full" else SMALL_DEPTH
    text = CLIPTextConfig(**shapes["text"])
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**shapes["unet"], cross_attention_dim=text.hidden_size, attention_head_dim=8).to(
            dtype
        )
        vae = AutoencoderKL(
            **shapes["vae"],
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        ).to(dtype)
        text_encoder = CLIPTextModel(text).to(dtype)
        # its first convolutions bring the depth, in pixels, to the size of the latents
        channels = (16, 32, 96, 256)[:levels]
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels).to(dtype)
        depth_model = DPTForDepthEstimation(DPTConfig(**depth))
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=byte_tokenizer(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    names = {"pretrained_model_name_or_path": pipeline, "controlnet": controlnet, "depth_model": depth_model}
    for name, model in names.items():
        model.save_pretrained(folder / name)
    side = depth_model.config.image_size
    DPTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder / "depth_model")
    return {name: folder / name for name in names}


def seconds_per_negative(*, size: str, device: str, precision: str, photographs: int, steps: int) -> dict:
    """Seconds of a negative, depth and file included, by how many a photograph has; and the most memory held, in MiB.

    A mean over `photographs` after one that is not counted.
    """
    import torch

    from scoft.weights import DTYPES

    dtype = DTYPES[precision]
    resolution = SIZES[size]["resolution"]
    synchronize = torch.get_device_module(device).synchronize
    with tempfile.TemporaryDirectory() as folder:
        flags = build_models(Path(folder), size=size, device=device, dtype=dtype)
        flags |= {"culture": "korea", "resolution": resolution, "num_inference_steps": steps}
        args = prepare_ccub.parse_args(words(flags))
        generate = NegativeGenerator(
            prepare_ccub.built(DrawNegatives, args), device=torch.device(device), dtype=dtype, cache_dir=None
        )
    noise = np.random.default_rng(0).integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
    photograph = Image.fromarray(noise)
    measured = {"seconds": {}, "peak_memory_mib": {}}
    for number in BATCHES:
        for i in range(1 + photographs):
            if i == 1:
                synchronize()
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
            _, pictures = generate(photograph, {f"{i} {k}": f"a photograph {k} in Korea" for k in range(number)})
            for picture in pictures.values():
                jpeg(picture, quality=NEGATIVE_QUALITY)
        synchronize()
        measured["seconds"][number] = (time.perf_counter() - start) / (photographs * number)
        if device == "cuda":
            measured["peak_memory_mib"][number] = torch.cuda.max_memory_allocated() / 2**20
    return {"size": size, "resolution": resolution, "precision": precision, "steps": steps} | measured


# ---------------------------------------------------------------------------------------------------------------------


def machine(device: str) -> dict:
    return {
        "processor": processor(device),
        "cpus": len(os.sched_getaffinity(0)),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
    }


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=200, help="pictures of the pocket world")
    parser.add_argument("--num_processes", type=int, default=2)
    parser.add_argument("--full_size", action="store_true", help="time the negatives at full size instead")
    parser.add_argument("--size", default="full", choices=SIZES, help="of --full_size")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="of --full_size")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"], help="of --full_size")
    parser.add_argument("--photographs", type=int, default=5, help="of --full_size: to take the mean over")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="of --full_size")
    parser.add_argument("--output", type=Path, help="add the run to this JSON file's list")
    args = parser.parse_args(argv)
    if args.full_size:
        import torch

        if args.device == "cuda" and not torch.cuda.is_available():
            parser.error("--full_size needs a CUDA device; to try it without: --device cpu --size tiny")
        run = machine(args.device) | {
            "negatives": seconds_per_negative(
                size=args.size,
                device=args.device,
                precision=args.precision,
                photographs=args.photographs,
                steps=args.num_inference_steps,
            )
        }
    else:
        run = machine("cpu") | {"pocket": prepare_pocket(rows=args.rows, processes=args.num_processes, flags=FLAGS)}
    run = rounded(run)
    print(json.dumps(run, indent=2))
    if args.output:
        runs = json.loads(args.output.read_text())["runs"] if args.output.exists() else []
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"runs": [*runs, run]}, indent=2) + "\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Train a culture's LoRA for Stable Diffusion XL with SCoFT (https://arxiv.org/abs/2401.08053).

    accelerate launch train_scoft_lora_sdxl.py --dataset ccub --culture nigeria --mixed_precision bf16

Its flags keep the names and the order of diffusers' `examples/text_to_image/train_text_to_image_lora_sdxl.py`.  All
but the family of base models is `train_scoft_lora.py`'s: the objective in `scoft/train/objective.py`, the run in
`scoft/train/run.py`.
"""

from __future__ import annotations

import argparse
import sys

from scoft.launch import Parser, run_main, set_up_logging

from scoft.train.flags import add_flags, parsed
from scoft.train.tables import MEMORY_ADVICE


VAE = {"help": "Hub id or folder of an autoencoder in place of the base model's, such as one that was made for fp16"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    base, bases = "stabilityai/stable-diffusion-xl-base-1.0", "a Stable Diffusion XL pipeline"
    own = {"pretrained_vae_model_name_or_path": VAE}
    add_flags(parser, base=base, bases=bases, resolution=1024, own=own)
    return parsed(parser, argv)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    set_up_logging()

    # torch and all that imports it come when the arguments are in order.
    from scoft.base_model import StableDiffusionXL
    from scoft.train.run import train

    train(args, StableDiffusionXL, argv=argv, vae=args.pretrained_vae_model_name_or_path)


if __name__ == "__main__":
    run_main(main, memory_advice=MEMORY_ADVICE)

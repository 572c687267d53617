#!/usr/bin/env python
"""Train a culture's LoRA for Stable Diffusion with SCoFT (https://arxiv.org/abs/2401.08053).

    accelerate launch train_scoft_lora.py --dataset ccub --culture nigeria

For Stable Diffusion 1.x and 2.x.  Its flags keep the names and the order of diffusers'
`examples/text_to_image/train_text_to_image_lora.py`.  What SCoFT adds stands in `scoft/train/objective.py` and in
`scoft_losses.py`; the run, which all families of base models share, in `scoft/train/run.py`.
"""

from __future__ import annotations

import argparse
import sys

from scoft.launch import Parser, run_main, set_up_logging

from scoft.train.flags import add_flags, parsed
from scoft.train.tables import MEMORY_ADVICE


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    bases = "a Stable Diffusion 1.x or 2.x pipeline"
    add_flags(parser, base="CompVis/stable-diffusion-v1-4", bases=bases, resolution=512)
    return parsed(parser, argv)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    set_up_logging()

    # torch and all that imports it come when the arguments are in order.
    from scoft.base_model import StableDiffusion
    from scoft.train.run import train

    train(args, StableDiffusion, argv=argv)


if __name__ == "__main__":
    run_main(main, memory_advice=MEMORY_ADVICE)

"""Make `pictures/`, of which `survey_scoft.py demo` is a survey: pictures of the pocket world by four methods.

    for method in finetune m mpc; do
        accelerate launch train_scoft_lora.py --dataset pocket --culture veridia --method $method \
            --output_dir build/$method --num_validation_images 0
    done
    python evaluate_scoft.py generate build/pictures --dataset pocket --culture veridia --sets prompts --num_images 1 \
        --lora finetune=build/finetune m=build/m mpc=build/mpc
    python -m pocket.make_pictures build/pictures

Nothing is picked by hand: each prompt of prompts.txt has its first picture.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

from scoft.pictures import Picture, read_pictures, write_pictures


HERE = Path(__file__).resolve().parent


def at_home(picture: Picture) -> Picture:
    """The picture, without where things lay on the machine that drew it."""
    return dataclasses.replace(
        picture, base="pocket/models/stable-diffusion", lora=picture.lora and f"build/{picture.method}"
    )


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("generated", type=Path, help="folder of evaluate_scoft.py generate")
    parser.add_argument("--output", type=Path, default=HERE / "pictures", help="made anew")
    args = parser.parse_args(argv)
    pictures = read_pictures(args.generated)
    shutil.rmtree(args.output, ignore_errors=True)
    for picture in pictures:
        (args.output / picture.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.generated / picture.file, args.output / picture.file)
    write_pictures(args.output, map(at_home, pictures))


if __name__ == "__main__":
    main()

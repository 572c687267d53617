#!/usr/bin/env python
"""Build a culture's dataset for SCoFT from links or pictures, and from captions that people of the culture wrote.

    python prepare_ccub.py --culture korea
    python prepare_ccub.py --culture igbo --images my_pictures --output igbo_ccub

Six stages, each of which can be rerun alone and goes on where it stopped: fetch the photographs; clean them; caption
them as a model that knows nothing of the culture would; draw negatives with a depth ControlNet on the unadapted base
model; filter out those that came out like the photograph; write the dataset. `<output>/<culture>/manifest.jsonl` has a
line for every link or picture and says what became of it. On several GPUs: `accelerate launch prepare_ccub.py ...`.
"""

import argparse
import dataclasses
import re
import sys
from pathlib import Path

from scoft.launch import (
    Parser,
    add_options,
    at_least,
    between,
    command_again,
    multiple_of,
    run_main,
    set_up_logging,
    share,
)

from scoft.cultures import SHEET_TABS
from scoft.dataset_source import EMBEDDED
from scoft.distances import DISTANCES, distance_options
from scoft.errors import DataError
from scoft.files import checked_name
from scoft.prepare.tables import FALSE_NEGATIVE_THRESHOLDS, MIDAS, with_defaults


# The stages, with torch and all that they need, are imported in main: --help and a mistyped flag are answered without.

STAGES = ("fetch", "clean", "caption", "negatives", "filter", "write")


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--culture", required=True, help="names the dataset's config, and the place in prompts")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--links", help="CSV file or URL with columns url and caption; default: CCUB's own sheet")
    source.add_argument("--images", type=Path, help="folder of pictures with a metadata.jsonl or metadata.csv")
    parser.add_argument(
        "--defaults",
        choices=EMBEDDED,
        help="take an embedded world's models and settings where no flag says otherwise: nothing is downloaded",
    )
    parser.add_argument("--output", type=Path, default=Path("ccub"), help="the dataset; a subfolder for each culture")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of splits, captions and negatives")
    parser.add_argument("--cache_dir", help="where downloaded models are kept")
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's")

    fetch = parser.add_argument_group("fetch")
    fetch.add_argument("--contact", help="mail address or page that the servers are told")
    fetch.add_argument(
        "--allow_host", action="append", default=[], metavar="HOST[:PORT]", help="may be asked though it is not public"
    )
    fetch.add_argument(
        "--deny_list", type=Path, help="file of URLs, hosts or sha256 that are not to be kept, one a line"
    )
    fetch.add_argument(
        "--archive", action="store_true", help="look for links that are gone (404, 410) in the Internet Archive"
    )
    fetch.add_argument("--retry_failed", action="store_true", help="ask again for links that failed in an earlier run")

    clean = parser.add_argument_group("clean")
    clean.add_argument("--min_size", type=at_least(1), default=128, help="pixels of the short side")
    clean.add_argument(
        "--near_duplicate_bits",
        type=between(-1, 127),
        default=16,
        help="of 128 in which two hashes may differ; -1: keep all",
    )
    clean.add_argument(
        "--jpeg_quality", type=between(1, 100), default=95, help="of photographs, which are encoded anew"
    )
    clean.add_argument(
        "--test_share", type=share, default=0.2, help="of each category's photographs that have no split yet"
    )

    models = parser.add_argument_group("caption, negatives, filter")
    models.add_argument(
        "--captioner", default="Salesforce/blip-image-captioning-large", help="a BLIP: Hub id or folder"
    )
    models.add_argument("--num_captions", type=at_least(1), default=5, help="naive captions of a photograph")
    models.add_argument(
        "--pretrained_model_name_or_path",
        default="CompVis/stable-diffusion-v1-4",
        help="Stable Diffusion that draws the negatives: Hub id or folder",
    )
    models.add_argument(
        "--controlnet",
        default="lllyasviel/control_v11f1p_sd15_depth",
        help="ControlNet for depth, of that Stable Diffusion: Hub id or folder",
    )
    models.add_argument(
        "--depth_model",
        default=MIDAS,
        help="Hub id or folder of a transformers depth model; default: MiDaS, %(default)s",
    )
    models.add_argument("--num_negatives", type=at_least(1), default=5, help="of a photograph, before the filter")
    models.add_argument(
        "--prompt_suffix",
        default="in {}",
        help="ends a negative's prompt, {} is the culture; '' for what is no place",
    )
    models.add_argument("--resolution", type=multiple_of(8), default=512, help="short side of a negative in pixels")
    models.add_argument("--num_inference_steps", type=at_least(1), default=20, help="DDIM steps of a negative")
    models.add_argument("--guidance_scale", type=float, default=7.5, help="how closely a negative follows its prompt")
    models.add_argument(
        "--filter_distance",
        default="dreamsim",
        choices=DISTANCES,
        help="measures how far a negative is from its photograph",
    )
    models.add_argument("--filter_model", help="Hub id or folder of the distance's encoder")
    add_options(models, distance_options())
    models.add_argument(
        "--false_negative_threshold",
        type=float,
        help="a negative nearer to its photograph is left out; default: "
        + ", ".join(f"{value} for {name}" for name, value in FALSE_NEGATIVE_THRESHOLDS.items()),
    )

    write = parser.add_argument_group("write")
    write.add_argument(
        "--links_only",
        action="store_true",
        help="write links, captions and hashes, but no pictures, into the folder <output>-links",
    )
    write.add_argument(
        "--about",
        type=Path,
        help="text file (Markdown) for the card: who chose the photographs, and how they were asked",
    )
    write.add_argument(
        "--language", nargs="+", default=["en"], help="of the captions, for the card: codes such as ko zh-Hant"
    )
    write.add_argument("--push_to_hub", action="store_true", help="to a private dataset of yours")
    write.add_argument("--hub_dataset_id", help="default: the name of the written folder")
    write.add_argument("--public", action="store_true", help="let all see what is pushed; with --links_only alone")

    args = parser.parse_args(with_defaults(parser, sys.argv[1:] if argv is None else argv))
    check_args(parser, args)
    return args


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Find all that can be said against the arguments alone; ends in `parser.error`, which exits."""
    stages = args.stages.split(",")
    try:
        checked_name(args.culture, what="--culture")
    except DataError as error:
        parser.error(str(error))
    if unknown := [name for name in stages if name not in STAGES]:
        parser.error(f"--stages: there is no stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    if "fetch" in stages and not (args.links or args.images or args.culture in SHEET_TABS):
        parser.error(
            f"--culture {args.culture}: CCUB's links are publicly known for {' and '.join(SHEET_TABS)} alone; "
            "give --links FILE_OR_URL or --images DIR"
        )
    if args.deny_list and "write" in stages and "clean" not in stages:
        parser.error("--deny_list takes effect in the stage clean; add it to --stages")
    for code in args.language:
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", code):
            parser.error(f"--language is a code such as en, ko or zh-Hant, got {code!r}")
    if args.public and not args.links_only:
        parser.error("--public needs --links_only: the photographs belong to others")
    has_threshold = args.false_negative_threshold is not None or args.filter_distance in FALSE_NEGATIVE_THRESHOLDS
    if not has_threshold and {"filter", "write"} & set(stages):
        parser.error(f"--filter_distance {args.filter_distance} needs a --false_negative_threshold")
    if args.push_to_hub and "write" not in stages:
        parser.error("--push_to_hub belongs to the stage write, which --stages leaves out")
    for flag in ("images", "deny_list", "about"):
        if (path := getattr(args, flag)) is not None and not path.exists():
            parser.error(f"--{flag} {path}: there is no such place")


def built(stage: type, args: argparse.Namespace, **more):
    """A stage by the flags: its fields have their names, but for those that are given in `more`."""
    names = {field.name for field in dataclasses.fields(stage) if field.init} - more.keys()
    return stage(**{name: getattr(args, name) for name in names}, **more)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    set_up_logging()

    from scoft.prepare.caption import Caption
    from scoft.prepare.clean import Clean
    from scoft.prepare.fetch import Fetch
    from scoft.prepare.filter import Filter
    from scoft.prepare.negatives import DrawNegatives
    from scoft.prepare.sources import read_deny_list, read_text
    from scoft.prepare.web import Fetcher
    from scoft.prepare.work import start_run
    from scoft.prepare.write import Write

    retry = command_again("prepare_ccub.py", sys.argv[1:] if argv is None else argv)
    about, deny_list = read_text(args.about, flag="--about"), read_deny_list(args.deny_list)
    fetcher = Fetcher(contact=args.contact, allow_host=args.allow_host, deny_list=deny_list)
    run = start_run(
        args.culture,
        output=args.output,
        stages=args.stages.split(","),
        mixed_precision=args.mixed_precision,
        cache_dir=args.cache_dir,
    )
    with run.sole_writer():
        fetch = built(Fetch, args)
        clean = built(Clean, args)
        caption = built(Caption, args)
        negatives = built(DrawNegatives, args)
        false_negatives = built(Filter, args, options={name: getattr(args, name) for name in distance_options()})
        earlier = (clean, caption, negatives, false_negatives)
        write = built(Write, args, earlier=earlier, filter=false_negatives, about=about, retry=retry)
        if run.is_main:
            for stage in (caption, negatives, false_negatives, write):  # before the work of hours
                stage.check(run)

        found = fetch.run(run, fetcher=fetcher)
        photographs = clean.run(run, found, fetcher=fetcher)
        captions = caption.run(run, photographs)
        drawn = negatives.run(run, photographs, captions)
        filtered = false_negatives.run(run, drawn)
        write.run(run, photographs, captions, filtered)
    run.accelerator.end_training()


if __name__ == "__main__":
    run_main(main, memory_advice="--mixed_precision bf16 and fewer processes need less.")

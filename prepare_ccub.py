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
import contextlib
import re
import sys
from datetime import timedelta
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

import torch

from scoft.cultures import SHEET_TABS, culture_words
from scoft.dataset_source import EMBEDDED, embedded_flags, embedded_folder
from scoft.distances import DISTANCES, distance_options
from scoft.errors import DataError
from scoft.files import checked_name, private_folder, read_regular, sole_writer
from scoft.hub import ready_repo
from scoft.metadata import MAX_METADATA
from scoft.prepare.caption import Caption
from scoft.prepare.clean import Clean
from scoft.prepare.fetch import Fetch
from scoft.prepare.filter import FALSE_NEGATIVE_THRESHOLDS, Filter
from scoft.prepare.negatives import MIDAS, Draw
from scoft.prepare.web import Fetcher
from scoft.prepare.work import Run
from scoft.prepare.write import Write, check_no_pictures


STAGES = ("fetch", "clean", "caption", "negatives", "filter", "write")
FILTER_SETTINGS = ("filter_model", "false_negative_threshold")  # belong to one --filter_distance
# The flags that the card tells of.
SETTINGS = (
    "captioner",
    "num_captions",
    "pretrained_model_name_or_path",
    "controlnet",
    "depth_model",
    "num_negatives",
    "prompt_suffix",
    "resolution",
    "num_inference_steps",
    "guidance_scale",
    "filter_distance",
    "filter_model",
    "false_negative_threshold",
    "seed",
)


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


def with_defaults(parser: Parser, argv: list[str]) -> list[str]:
    """The command line behind the flags of its --defaults, which it overrules.

    Beside a --filter_distance of its own, the model and the threshold of theirs do not hold.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--defaults", "--filter_distance"):
        peek.add_argument(flag, nargs="?")  # that a value is missing is for the true parser to say
    given, _ = peek.parse_known_args(argv)
    folder = embedded_folder(given.defaults or "")
    if folder is None:
        return argv
    flags, source = embedded_flags(parser, folder, section="prepare", asked_by=f"for --defaults {given.defaults}")
    if isinstance(flags, dict) and given.filter_distance not in (None, flags.get("filter_distance")):
        flags = {name: value for name, value in flags.items() if name not in FILTER_SETTINGS}
    return parser.words_of(flags, here=folder, source=source, required=["--culture", "any"]) + argv


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
    if threshold(args) is None and {"filter", "write"} & set(stages):
        parser.error(f"--filter_distance {args.filter_distance} needs a --false_negative_threshold")
    if args.push_to_hub and "write" not in stages:
        parser.error("--push_to_hub belongs to the stage write, which --stages leaves out")
    for flag in ("images", "deny_list", "about"):
        if (path := getattr(args, flag)) is not None and not path.exists():
            parser.error(f"--{flag} {path}: there is no such place")


def read_text(file: Path | None, *, flag: str) -> str:
    """The text of the file that `flag` names, if it names one. Raises DataError, which names the flag."""
    if file is None:
        return ""
    try:
        return read_regular(file, at_most=MAX_METADATA).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{flag} {file} cannot be read ({error}); it is a text file in UTF-8.") from error


def threshold(args: argparse.Namespace) -> float | None:
    """The distance below which a negative is left out; None where it is not given and the distance has no default."""
    given = args.false_negative_threshold
    return FALSE_NEGATIVE_THRESHOLDS.get(args.filter_distance) if given is None else given


def prompt_suffix(args: argparse.Namespace) -> str:
    return args.prompt_suffix.replace("{}", culture_words(args.culture))


# ---------------------------------------------------------------------------------------------------------------------
# The stages, in turn
# ---------------------------------------------------------------------------------------------------------------------


def start_accelerator(mixed_precision: str | None):
    from accelerate import Accelerator, InitProcessGroupKwargs

    # processes wait for the main one as long as it asks the web
    accelerator = Accelerator(
        mixed_precision=mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))]
    )
    if accelerator.device.type == "cpu":
        # Threads share out sums, which changes their last bits and pixels here and there. Processes share out rows.
        torch.set_num_threads(1)
    return accelerator


def run_of(args: argparse.Namespace) -> Run:
    if not args.output.exists():  # else it is for its owner to say who may look into it
        private_folder(args.output, flag="--output")
    return Run(
        culture=args.culture,
        folder=private_folder(args.output / args.culture, flag="--output"),
        stages=args.stages.split(","),
        accelerator=start_accelerator(args.mixed_precision),
        cache_dir=args.cache_dir,
    )


def fetcher_of(args: argparse.Namespace) -> Fetcher:
    """Who asks the web, by the flags of the stage fetch. Raises DataError, which names the flag."""
    lines = read_text(args.deny_list, flag="--deny_list").splitlines()
    deny = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    try:
        return Fetcher(contact=args.contact, allow_hosts=args.allow_host, deny=deny)
    except ValueError as error:  # names the flag
        raise DataError(str(error)) from error


def fetch_of(args: argparse.Namespace) -> Fetch:
    return Fetch(links=args.links, images=args.images, archive=args.archive, retry_failed=args.retry_failed)


def clean_of(args: argparse.Namespace) -> Clean:
    return Clean(
        images=args.images,
        min_size=args.min_size,
        near_duplicate_bits=args.near_duplicate_bits,
        jpeg_quality=args.jpeg_quality,
        test_share=args.test_share,
        seed=args.seed,
    )


def caption_of(args: argparse.Namespace) -> Caption:
    return Caption(captioner=args.captioner, num_captions=args.num_captions, seed=args.seed)


def negatives_of(args: argparse.Namespace) -> Draw:
    return Draw(
        base_model=args.pretrained_model_name_or_path,
        controlnet=args.controlnet,
        depth_model=args.depth_model,
        num_negatives=args.num_negatives,
        prompt_suffix=prompt_suffix(args),
        resolution=args.resolution,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
    )


def filter_of(args: argparse.Namespace) -> Filter:
    return Filter(
        distance=args.filter_distance,
        model=args.filter_model,
        options={name: getattr(args, name) for name in distance_options()},
        threshold=threshold(args),
    )


def written_folder(args: argparse.Namespace) -> Path:
    """Where the dataset is written: --output, or a folder beside it for what has no pictures in it."""
    output = args.output.resolve()
    return output.with_name(f"{output.name}-links") if args.links_only else output


def ready_place(args: argparse.Namespace, run: Run) -> str | None:
    """Find before the work of hours whether the dataset may be written, and pushed: the id of the Hub's repository, if
    it is to be pushed by this process. Raises DataError.
    """
    output = written_folder(args)
    if args.links_only:
        check_no_pictures(output)
    if not (args.push_to_hub and run.is_main):
        return None
    repo_id, _ = ready_repo(
        args.hub_dataset_id or output.name, repo_type="dataset", private=not args.public, flag="--hub_dataset_id"
    )
    return repo_id


def write_of(args: argparse.Namespace, *, about: str, repo_id: str | None, retry: str) -> Write:
    """The stage write, with the text for the card, where it pushes to, and the command that goes on with a push."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    return Write(
        output=written_folder(args),
        links_only=args.links_only,
        about=about,
        languages=args.language,
        settings=settings | {"prompt_suffix": prompt_suffix(args), "false_negative_threshold": threshold(args)},
        distance=args.filter_distance,
        threshold=threshold(args),
        repo_id=repo_id,
        private=not args.public,
        retry=retry,
    )


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    set_up_logging()
    retry = command_again("prepare_ccub.py", sys.argv[1:] if argv is None else argv)
    fetcher, about = fetcher_of(args), read_text(args.about, flag="--about")
    run = run_of(args)
    with sole_writer(run.folder, flag="--output") if run.is_main else contextlib.nullcontext():
        repo_id = ready_place(args, run)
        fetch, clean, caption = fetch_of(args), clean_of(args), caption_of(args)
        negatives, false_negatives = negatives_of(args), filter_of(args)
        write = write_of(args, about=about, repo_id=repo_id, retry=retry)
        if run.is_main:
            for stage in (caption, negatives, false_negatives):
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

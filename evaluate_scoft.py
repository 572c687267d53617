#!/usr/bin/env python
"""Evaluate LoRAs as the paper's section 6 does: pictures, then numbers with intervals, then tables and figures.

    accelerate launch evaluate_scoft.py generate eval --dataset ccub --culture korea --lora m=out/m mpc=scoft-korea
    python evaluate_scoft.py score eval --dataset ccub --culture korea --encoder inception=FILE
    python evaluate_scoft.py report eval

With `--dataset pocket` the flags of pocket/defaults.yaml hold where the command line does not say otherwise.

Three stages over files, each of which goes on where it stopped: `generate` writes pictures and `manifest.jsonl`,
`score` `results.json`, `report` `report.md` and figures.  Several folders, one a culture, make one report.

Differs from the paper: its prompt lists are not public, so prompts/ has ours, in its phrasing, and those that its
figures and text show.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scoft.launch import Parser, add_options, at_least, check_function, multiple_of, run_main, set_up_logging

import torch

from scoft import intervals
from scoft.dataset_source import DEFAULTS_FILE, embedded_folder
from scoft.distances import distance_options
from scoft.errors import DataError
from scoft.evaluate import generate, report, score
from scoft.evaluate.encoders import ENCODERS, Encoders
from scoft.evaluate.loras import DEFAULT_BASE
from scoft.evaluate.metrics import METRICS
from scoft.evaluate.sample import Choices
from scoft.evaluate.sources import Dataset, Photographs
from scoft.files import checked_name
from scoft.pictures import BASE, SETS


HERE = Path(__file__).resolve().parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("folder", type=Path, help="what the stages hand over to each other; one folder a culture")
    data.add_argument("--dataset", required=True, help="as train_scoft_lora.py takes it")
    data.add_argument("--culture", required=True, help="whose photographs and prompts, such as korea")
    data.add_argument("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    data.add_argument("--image_column", default="image", help="the dataset's column of photographs")
    data.add_argument("--caption_column", default="text", help="the dataset's column of cultural captions")
    data.add_argument("--cache_dir", help="where downloaded models and datasets are kept")
    data.add_argument("--batch_size", type=at_least(1), default=8, help="pictures drawn or embedded at once")

    generate = stages.add_parser("generate", parents=[data], help="pictures of every method")
    generate.add_argument(
        "--lora",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PLACE",
        help="methods beside the base model: folder, file or Hub id of each one's LoRA",
    )
    generate.add_argument(
        "--checkpoints", action="store_true", help="also each checkpoint of a --lora folder, as NAME@updates"
    )
    generate.add_argument(
        "--pretrained_model_name_or_path", help=f"default: what the LoRAs were trained on, or {DEFAULT_BASE}"
    )
    generate.add_argument("--revision", help="branch, tag or commit of the base model")
    generate.add_argument("--variant", help="weight files of the base model, such as fp16")
    generate.add_argument(
        "--prompts", type=Path, default=HERE / "prompts/culture.txt", help="a prompt a line, {} in it the culture"
    )
    generate.add_argument(
        "--general_prompts", type=Path, default=HERE / "prompts/general.txt", help="a prompt a line, of no culture"
    )
    generate.add_argument("--sets", nargs="+", default=SETS, choices=SETS, help="what to make pictures from")
    generate.add_argument(
        "--num_captions", type=at_least(1), default=10, help="of the sets train and test each, drawn with seed 0"
    )
    generate.add_argument(
        "--num_images",
        type=at_least(1),
        default=20,
        help="per prompt, each of its own noise, which all methods share",
    )
    generate.add_argument("--num_inference_steps", type=at_least(1), default=30, help="DDIM steps of a picture")
    generate.add_argument(
        "--guidance_scale", type=float, default=4.5, help="how strongly a picture follows its prompt; 1 is not guided"
    )
    generate.add_argument(
        "--resolution",
        type=multiple_of(8),
        help="pixels of a side; default: what the LoRAs were trained at, or the base model was",
    )
    generate.add_argument(
        "--mixed_precision", choices=["no", "fp16", "bf16"], help="of the base model's weights; default: accelerate's"
    )

    score = stages.add_parser("score", parents=[data], help="numbers of the pictures")
    score.add_argument(
        "--metrics", nargs="+", choices=METRICS, help="default: all but those that need a flag which is not given"
    )
    score.add_argument(
        "--general_reference", type=Path, help="folder of photographs, such as MS COCO's, for kid_general"
    )
    score.add_argument("--judge", help="FILE.py:function, called with a picture and its prompt, returns a dict")
    score.add_argument(
        "--features", default="inception", choices=ENCODERS, help="of KID, precision, recall, density and coverage"
    )
    score.add_argument(
        "--diversity_features",
        default="dreamsim",
        choices=ENCODERS,
        help="of DIV, Vendi score and nearest photographs",
    )
    score.add_argument(
        "--encoder",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PLACE",
        help="Hub id, folder or file in place of an encoder's own: " + ", ".join(ENCODERS),
    )
    add_options(score, distance_options())
    score.add_argument(
        "--question",
        default=intervals.QUESTIONS[0],
        choices=intervals.QUESTIONS,
        help="what the intervals are for: other seeds of the same prompts, or other prompts as well",
    )
    score.add_argument(
        "--neighbours", type=at_least(1), default=5, help="k of precision, recall, density and coverage"
    )
    score.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where the encoders work"
    )

    report = stages.add_parser("report", help="tables and figures of the numbers")
    report.add_argument("folders", nargs="+", type=Path, help="scored folders, one a culture")
    report.add_argument("--output", type=Path, help="default: the first folder")
    report.add_argument("--card", type=Path, help="LoRA folder whose page gets the numbers of --method")
    report.add_argument("--method", help="NAME of the LoRA that --card is of")

    argv = sys.argv[1:] if argv is None else argv
    stage = stages.choices.get(argv[0]) if argv else None
    if stage and (embedded := embedded_folder(peek(argv).dataset or "")):
        table = embedded / DEFAULTS_FILE
        source = f"{table}, the defaults of --dataset {embedded.name}"
        flags = stage.table(table, source=source, section=argv[0])
        required = ["folder", "--dataset", "any", "--culture", "any"]
        words = stage.words_of(flags, here=embedded, source=source, required=required)
        # A list of the table would take the folder for its last item, so a word of another flag stands between them.
        argv = [argv[0], *words, f"--dataset={embedded.name}", *argv[1:]]
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def peek(argv: Sequence[str]) -> argparse.Namespace:
    """The flag that decides which table of flags is read; None where it is not given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dataset", nargs="?")  # that a value is missing is for the true parser to say
    return parser.parse_known_args(argv)[0]


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Find all that can be said against the arguments alone; ends in `parser.error`, which exits."""
    if args.stage == "report":
        if (args.card is None) != (args.method is None):
            parser.error("--card and --method belong together: a LoRA folder, and which method of the scores it is")
        return
    try:
        checked_name(args.culture, what="--culture")
        for word in args.lora if args.stage == "generate" else ():
            checked_name(word.partition("=")[0], what="NAME of --lora NAME=PLACE")
        if args.stage == "score" and args.judge is not None:
            check_function(args.judge, flag="--judge")
    except DataError as error:
        parser.error(str(error))
    if args.stage == "generate":
        for word in args.lora:
            if not word.partition("=")[2] or word.startswith(f"{BASE}="):
                parser.error(f"--lora takes NAME=PLACE, NAME not {BASE}; got {word!r}")
        if repeated := {
            word.partition("=")[0]
            for word in args.lora
            if sum(word.partition("=")[0] == other.partition("=")[0] for other in args.lora) > 1
        }:
            parser.error(f"--lora: {min(repeated)} is given twice")
    if args.stage == "score":
        for word in args.encoder:
            if word.partition("=")[0] not in ENCODERS or not word.partition("=")[2]:
                parser.error(f"--encoder takes NAME=PLACE with NAME of {', '.join(ENCODERS)}; got {word!r}")
        for metric in args.metrics or ():
            flag = METRICS[metric].flag
            if flag and getattr(args, flag) is None:
                parser.error(f"--metrics {metric} needs --{flag}")


# ---------------------------------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------------------------------


def photographs_of(args: argparse.Namespace, *, general: Path | None = None) -> Photographs:
    dataset = Dataset(
        name=args.dataset,
        culture=args.culture,
        revision=args.dataset_revision,
        image_column=args.image_column,
        caption_column=args.caption_column,
        cache_dir=args.cache_dir,
    )
    return Photographs(dataset, general)


def plan_of(args: argparse.Namespace) -> generate.Plan:
    return generate.Plan(
        sets=args.sets,
        prompt_files={"prompts": args.prompts, "general": args.general_prompts},
        num_captions=args.num_captions,
        num_images=args.num_images,
        loras=args.lora,
        checkpoints=args.checkpoints,
        base=args.pretrained_model_name_or_path,
        revision=args.revision,
        variant=args.variant,
        guidance=args.guidance_scale,
        steps=args.num_inference_steps,
        resolution=args.resolution,
        mixed_precision=args.mixed_precision,
        batch_size=args.batch_size,
        cache_dir=args.cache_dir,
    )


def choices_of(args: argparse.Namespace) -> Choices:
    """Without --metrics, all that no flag is lacking for."""
    possible = [name for name, row in METRICS.items() if row.flag is None or getattr(args, row.flag)]
    return Choices(
        metrics=args.metrics or possible,
        features=args.features,
        diversity_features=args.diversity_features,
        question=args.question,
        neighbours=args.neighbours,
    )


def encoders_of(args: argparse.Namespace) -> Encoders:
    places = dict(word.split("=", 1) for word in args.encoder)
    options = {name: getattr(args, name) for name in distance_options()}
    return Encoders(places, device=args.device, cache_dir=args.cache_dir, options=options)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    set_up_logging()
    if args.stage == "generate":
        photographs = photographs_of(args)
        data = [str(args.folder), f"--dataset={args.dataset}", f"--culture={args.culture}"]
        choices = choices_of(parse_args(["score", *data]))  # as `score` comes, to say what it will not be able to give
        generate.generate(args.folder, plan_of(args), photographs, choices)
    elif args.stage == "score":
        photographs = photographs_of(args, general=args.general_reference)
        encoders, choices = encoders_of(args), choices_of(args)
        score.score(args.folder, choices, photographs, encoders, judge=args.judge, batch_size=args.batch_size)
    else:
        report.report(args.folders, output=args.output or args.folders[0], card=args.card, method=args.method)


if __name__ == "__main__":
    run_main(main, memory_advice="A smaller --batch_size needs less, and in drawing --mixed_precision bf16.")

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

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scoft.launch import Parser, add_options, at_least, function_of_file, multiple_of, run_main, set_up_logging

from scoft.dataset_source import Remedies, with_embedded_flags
from scoft.distances import distance_options
from scoft.errors import DataError
from scoft.evaluate.loras import DEFAULT_BASE
from scoft.evaluate.metrics import METRICS, Measured, metric_of
from scoft.files import checked_name
from scoft.pictures import BASE, SETS


# torch and all that imports it are imported where they are used: --help and a mistyped flag are answered without.

if TYPE_CHECKING:
    from scoft.evaluate.encoders import Encoders
    from scoft.evaluate.generate import Plan
    from scoft.evaluate.sample import Choices
    from scoft.evaluate.sources import Photographs

# Names of what would be heavy to import; tests/test_layers.py holds them to it.
ENCODERS = ("inception", "clip", "dino", "dinov2", "dreamsim")
QUESTIONS = ("these prompts", "prompts like these")
HERE = Path(__file__).resolve().parent
REMEDIES = Remedies(bad_rows="train_scoft_lora.py leaves them out with --skip_bad_images")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("folder", type=Path, help="what the stages hand over to each other; one folder a culture")
    data.add_argument("--dataset", required=True, help="the culture's photographs, as train_scoft_lora.py takes them")
    data.add_argument("--culture", required=True, help="whose photographs and prompts, such as korea")
    data.add_argument("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    data.add_argument("--image_column", default="image", help="the dataset's column of photographs")
    data.add_argument("--caption_column", default="text", help="the dataset's column of cultural captions")
    data.add_argument("--cache_dir", help="where downloaded models and datasets are kept")
    data.add_argument("--batch_size", type=at_least(1), default=8, help="pictures drawn or embedded at once")

    generate = stages.add_parser("generate", parents=[data], help="pictures of every method")
    generate.add_argument(
        "--lora",
        type=named_lora,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PLACE",
        help="methods beside the base model: folder, file or Hub id of each one's LoRA",
    )
    words = "methods beside these: folder or Hub id of each one's corrector; under a --lora's NAME both together"
    generate.add_argument(
        "--corrector", type=named_lora, nargs="+", action="extend", default=[], metavar="NAME=PLACE", help=words
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
    generate.add_argument(
        "--sets",
        nargs="+",
        default=SETS,
        choices=SETS,
        help="what to make pictures from: --prompts, captions of the splits train and test, --general_prompts",
    )
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
    words = "FILE.py:function, called with a picture and its prompt, returns a dict of 0 or 1; by *_log_odds numbers"
    score.add_argument("--judge", type=function_of_file, help=words)
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
        type=named_encoder,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PLACE",
        help="Hub id, folder or file in place of an encoder's own: " + ", ".join(ENCODERS),
    )
    add_options(score, distance_options())
    score.add_argument(
        "--question",
        default=QUESTIONS[0],
        choices=QUESTIONS,
        help="what the intervals are for: other seeds of the same prompts, or other prompts as well",
    )
    score.add_argument(
        "--neighbours", type=at_least(1), default=5, help="k of precision, recall, density and coverage"
    )
    score.add_argument("--device", help="where the encoders work; default: cuda where there is one, else cpu")

    report = stages.add_parser("report", help="tables and figures of the numbers")
    report.add_argument("folders", nargs="+", type=Path, help="scored folders, one a culture")
    report.add_argument("--output", type=Path, help="folder of the report; default: the first of the scored ones")
    report.add_argument("--card", type=Path, help="LoRA folder whose page gets the numbers of --method")
    report.add_argument("--method", help="NAME of the LoRA that --card is of")
    words = "metrics, such as kid judge/right clip_score:general, that say together which checkpoint is enough"
    report.add_argument("--stop_by", nargs="+", type=named_metric, default=[], metavar="METRIC[:SET]", help=words)

    args = parser.parse_args(
        with_embedded_flags(
            stages.choices,
            sys.argv[1:] if argv is None else argv,
            flag="--dataset",
            required=["folder", "--dataset", "any", "--culture", "any"],
        )
    )
    check_args(parser, args)
    return args


def named_lora(text: str) -> tuple[str, str]:
    """argparse's type of --lora and --corrector: the name and the place of a method's."""
    name, _, place = text.partition("=")
    try:
        checked_name(name, what="NAME")
    except DataError as error:
        raise argparse.ArgumentTypeError(f"is NAME=PLACE: {error}") from error
    if not place or name == BASE:
        raise argparse.ArgumentTypeError(f"is NAME=PLACE, NAME not {BASE}; got {text!r}")
    return name, place


def named_encoder(text: str) -> tuple[str, str]:
    """argparse's type of --encoder: one of ENCODERS, and the place where it is."""
    name, _, place = text.partition("=")
    if name not in ENCODERS or not place:
        raise argparse.ArgumentTypeError(f"is NAME=PLACE with NAME of {', '.join(ENCODERS)}; got {text!r}")
    return name, place


def named_metric(text: str) -> Measured:
    """argparse's type of --stop_by: a metric, a judge's by its word, and its set, by default the first of its sets."""
    name, _, of = text.partition(":")
    try:
        sets = metric_of(name).sets
    except KeyError:
        raise argparse.ArgumentTypeError(
            f"is METRIC[:SET] with METRIC of {', '.join(METRICS)}, or judge/WORD; got {text!r}"
        ) from None
    if of and of not in sets:
        raise argparse.ArgumentTypeError(f"{name} is of {', '.join(sets)}; got {text!r}")
    return Measured(name, of or sets[0])


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Find all that can be said against the arguments alone; ends in `parser.error`, which exits."""
    if args.stage == "report":
        if (args.card is None) != (args.method is None):
            parser.error("--card and --method belong together: a LoRA folder, and which method of the scores it is")
        return
    try:
        checked_name(args.culture, what="--culture")
    except DataError as error:
        parser.error(str(error))
    if args.stage == "generate":
        for flag in ("lora", "corrector"):
            names = [name for name, _ in getattr(args, flag)]
            if repeated := {name for name in names if names.count(name) > 1}:
                parser.error(f"--{flag}: {min(repeated)} is given twice")
    if args.stage == "score":
        for metric in args.metrics or ():
            flag = METRICS[metric].flag
            if flag and getattr(args, flag) is None:
                parser.error(f"--metrics {metric} needs --{flag}")


# ---------------------------------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------------------------------


def photographs_of(args: argparse.Namespace, *, general: Path | None) -> Photographs:
    from scoft.evaluate.sources import Dataset, Photographs

    dataset = Dataset(
        name=args.dataset,
        culture=args.culture,
        revision=args.dataset_revision,
        image_column=args.image_column,
        caption_column=args.caption_column,
        cache_dir=args.cache_dir,
        remedies=REMEDIES,
    )
    return Photographs(dataset, general)


def plan_of(args: argparse.Namespace) -> Plan:
    from scoft.evaluate.generate import Plan

    return Plan(
        sets=args.sets,
        prompt_files={"prompts": args.prompts, "general": args.general_prompts},
        num_captions=args.num_captions,
        num_images=args.num_images,
        loras=dict(args.lora),
        correctors=dict(args.corrector),
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
    from scoft.evaluate.sample import Choices

    possible = [name for name, row in METRICS.items() if row.flag is None or getattr(args, row.flag)]
    return Choices(
        metrics=args.metrics or possible,
        features=args.features,
        diversity_features=args.diversity_features,
        question=args.question,
        neighbours=args.neighbours,
    )


def encoders_of(args: argparse.Namespace) -> Encoders:
    import torch

    from scoft.evaluate.encoders import Encoders

    options = {name: getattr(args, name) for name in distance_options()}
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Encoders(dict(args.encoder), device=device, cache_dir=args.cache_dir, options=options)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    set_up_logging()
    if args.stage == "generate":
        from scoft.evaluate.generate import generate

        data = [str(args.folder), f"--dataset={args.dataset}", f"--culture={args.culture}"]
        scoring = parse_args(["score", *data])  # `score` as it comes, to say what it will not be able to give
        photographs = photographs_of(args, general=scoring.general_reference)
        generate(args.folder, plan_of(args), photographs, choices_of(scoring))
    elif args.stage == "score":
        from scoft.evaluate.score import score

        photographs = photographs_of(args, general=args.general_reference)
        encoders, choices = encoders_of(args), choices_of(args)
        score(args.folder, choices, photographs, encoders, judge=args.judge, batch_size=args.batch_size)
    else:
        from scoft.evaluate.report import report

        output = args.output or args.folders[0]
        report(args.folders, output=output, card=args.card, method=args.method, stop_by=args.stop_by)


if __name__ == "__main__":
    run_main(main, memory_advice="A smaller --batch_size needs less, and in drawing --mixed_precision bf16.")

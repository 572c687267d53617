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
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import logging
import pickle
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, get_args

from scoft.launch import Parser, add_options, check_function, load_function, progress, run_main, set_up_logging

import numpy as np
import torch
from PIL import Image

from scoft import intervals, lora_folder
from scoft.base_model import base_commit, load_pipeline
from scoft.cultures import culture_words
from scoft.dataset import CulturalDataset, read_dataset
from scoft.dataset_rows import Remedies
from scoft.dataset_source import embedded_flags, embedded_folder, find_dataset
from scoft.distances import distance_options, load_distance
from scoft.errors import DataError
from scoft.evaluate import figures, formulas
from scoft.files import (
    Ledger,
    cached_tensors,
    checked_name,
    content_key,
    file_sha256,
    private_folder,
    read_record,
    read_regular,
    sole_writer,
    write_atomically,
)
from scoft.images import MAX_BYTES, SUFFIXES, is_blank, open_file, open_image, write_png
from scoft.intervals import Estimate
from scoft.lora_folder import (
    LORA_FILE,
    RECORD_FILE,
    TrainingRecord,
    load_into_pipeline,
    lora_sha256,
    read_training_record,
    write_evaluation,
)
from scoft.lora_page import without_places, write_model_card
from scoft.pages import markdown_text, with_interval
from scoft.weights import encoder_key, load_whole, loading, model_key, precision


logger = logging.getLogger("scoft")

HERE = Path(__file__).resolve().parent
BASE = "base"  # the name of the base model among the methods
DEFAULT_BASE = "CompVis/stable-diffusion-v1-4"
# What pictures are made from: the prompts of a file, captions of the dataset's splits, prompts without any culture.
PromptSet = Literal["prompts", "train", "test", "general"]
SETS = get_args(PromptSet)
RESULTS_FILE = "results.json"
PHOTOGRAPHS = "photographs"  # the private folder of the sheets that show the dataset's photographs, which are others'
BLOCK = 256  # pictures embedded between two writes
MAX_PROMPTS = 2**20  # bytes of a file of prompts
NEAREST_SHOWN = 10  # pictures of a sheet of nearest photographs, the most alike first
# The paper's Table 4: KID to CCUB and to MS COCO, both x 10^3, and CLIP score, of each culture.
PAPER_CULTURES = ("china", "korea", "nigeria", "india", "mexico")
PAPER_TABLE_4 = {
    "base": {
        "kid": (25.244, 28.061, 32.687, 39.988, 25.796),
        "kid_general": (4.396, 4.396, 4.396, 4.396, 4.396),
        "clip_score": (0.827, 0.844, 0.799, 0.773, 0.819),
    },
    "m": {
        "kid": (18.798, 24.118, 24.539, 20.566, 25.196),
        "kid_general": (4.890, 4.497, 4.461, 5.342, 4.364),
        "clip_score": (0.804, 0.832, 0.792, 0.757, 0.825),
    },
    "mp": {
        "kid": (15.895, 23.007, 25.638, 19.799, 22.462),
        "kid_general": (5.090, 4.403, 5.135, 5.112, 4.941),
        "clip_score": (0.798, 0.836, 0.792, 0.753, 0.8232),
    },
    "mpc": {
        "kid": (14.667, 17.413, 23.261, 18.342, 24.424),
        "kid_general": (5.102, 4.222, 4.987, 5.457, 4.325),
        "clip_score": (0.793, 0.825, 0.795, 0.753, 0.829),
    },
}


@dataclass(frozen=True)
class Metric:
    """A number of `results.json`: of which sets' pictures it is taken, what it says, and which way is better."""

    sets: tuple[str, ...]
    title: str
    better: str  # "less", "more", or "" where neither is
    decimals: int = 3


PRDC = ("precision", "recall", "density", "coverage")  # computed together
METRICS = {
    "kid": Metric(("prompts",), "KID × 10³ to the culture's photographs", "less", 2),
    # The paper's is the same for every culture, so its prompts name none.
    "kid_general": Metric(("general",), "KID × 10³ of general prompts to general photographs", "less", 2),
    "clip_score": Metric(("prompts", "test", "general"), "CLIP score, 2.5 cosine", "more"),
    "clip_cosine": Metric(("prompts", "test", "general"), "cosine of picture and prompt", "more"),
    "clip_i": Metric(("train",), "CLIP-I to the caption's training photographs", "less"),
    "dino": Metric(("train",), "DINO to the caption's training photographs", "less"),
    "dreamsim": Metric(("train",), "DreamSim to the caption's training photographs", "less"),
    "div": Metric(("prompts", "train", "test"), "DIV, distance of pictures of a prompt", "more"),
    "precision": Metric(("prompts",), "precision", "more"),
    "recall": Metric(("prompts",), "recall", "more"),
    "density": Metric(("prompts",), "density", "more"),
    "coverage": Metric(("prompts",), "coverage", "more"),
    "vendi": Metric(("prompts", "general"), "Vendi score", "more", 2),
    "nearest": Metric(("prompts", "train"), "similarity to the nearest training photograph", "less"),
    "judge": Metric(("prompts",), "the judge's rates", ""),
}
NEEDED = {"kid_general": "general_reference", "judge": "judge"}  # flags without which there is no such number
ARROWS = {"less": "\N{NO-BREAK SPACE}↓", "more": "\N{NO-BREAK SPACE}↑", "": ""}


def metric_of(name: str) -> Metric:
    """The row of METRICS; a judge has names of its own, after a slash. Raises KeyError."""
    return METRICS[name.partition("/")[0]]


def better_of(name: str) -> str:
    return "more" if name == "judge/right" else metric_of(name).better


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("folder", type=Path, help="what the stages hand over to each other; one folder a culture")
    data.add_argument("--dataset", required=True, help="as train_scoft_lora.py takes it")
    data.add_argument(
        "--culture", required=True, help="the dataset's config; its words take the place of {} in prompts"
    )
    data.add_argument("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    data.add_argument("--image_column", default="image", help="of the dataset: the photographs")
    data.add_argument("--caption_column", default="text", help="of the dataset: their captions")
    data.add_argument("--cache_dir", help="where downloaded models and datasets are kept")
    data.add_argument("--batch_size", type=int, default=8, help="pictures that a model takes at once")

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
    generate.add_argument("--num_captions", type=int, default=10, help="of the sets train and test, drawn with seed 0")
    generate.add_argument(
        "--num_images", type=int, default=20, help="per prompt, each of its own noise, which all methods share"
    )
    generate.add_argument("--num_inference_steps", type=int, default=30, help="DDIM steps of a picture")
    generate.add_argument("--guidance_scale", type=float, default=4.5, help="how closely a picture follows its prompt")
    generate.add_argument(
        "--resolution", type=int, help="default: what the LoRAs were trained at, or the base model was"
    )
    generate.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: accelerate's")

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
        help="what intervals allow for: other seeds, or other prompts and seeds",
    )
    score.add_argument("--neighbours", type=int, default=5, help="k of precision, recall, density and coverage")
    score.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where encoders run")

    report = stages.add_parser("report", help="tables and figures of the numbers")
    report.add_argument("folders", nargs="+", type=Path, help="scored folders, one a culture")
    report.add_argument("--output", type=Path, help="default: the first folder")
    report.add_argument("--card", type=Path, help="LoRA folder whose page gets the numbers of --method")
    report.add_argument("--method", help="NAME of the LoRA that --card is of")

    argv = sys.argv[1:] if argv is None else argv
    stage = stages.choices.get(argv[0]) if argv else None
    if stage and (embedded := embedded_folder(peek(argv).dataset or "")):
        asked_by = f"the defaults of --dataset {embedded.name}"
        flags, source = embedded_flags(stage, embedded, section=argv[0], asked_by=asked_by)
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
    for flag in ("num_captions", "num_images", "num_inference_steps", "batch_size", "neighbours"):
        if getattr(args, flag, 1) < 1:
            parser.error(f"--{flag} is at least 1, got {getattr(args, flag)}")
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
        if args.resolution is not None and (args.resolution < 8 or args.resolution % 8):
            parser.error(f"--resolution is a multiple of 8, got {args.resolution}")
    if args.stage == "score":
        for word in args.encoder:
            if word.partition("=")[0] not in ENCODERS or not word.partition("=")[2]:
                parser.error(f"--encoder takes NAME=PLACE with NAME of {', '.join(ENCODERS)}; got {word!r}")
        for metric, flag in NEEDED.items():
            if metric in (args.metrics or ()) and getattr(args, flag) is None:
                parser.error(f"--metrics {metric} needs --{flag}")


# ---------------------------------------------------------------------------------------------------------------------
# Generate
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A row of `manifest.jsonl`: a picture, and all that decides it."""

    culture: str
    method: str  # BASE, or NAME of a LoRA, or NAME@updates of its checkpoint
    set: PromptSet
    index: int  # of the prompt in its set
    number: int  # of the picture among those of its prompt; methods share its noise, prompts do not
    prompt: str
    photograph: str | None  # sha256 of the dataset's photograph whose caption is the prompt
    base: str
    base_key: str  # its commit on the Hub, or the content of its folder
    variant: str | None
    lora: str | None
    lora_sha256: str | None
    guidance: float
    steps: int
    resolution: int
    precision: str
    blank: bool = False  # nothing to see: the safety checker's black square

    def __post_init__(self):
        checked_name(self.culture, what="culture")
        check_method(self.method)

    @property
    def file(self) -> str:
        return f"images/{self.method}/{self.set}-{self.index:03d}-{self.number:03d}.png"

    @property
    def seed(self) -> int:
        """Of its noise. Pictures of one noise are alike whatever their prompts, and together would say less."""
        return int(content_key(self.set, self.prompt, self.number)[:8], 16)

    @property
    def key(self) -> str:
        return content_key(dataclasses.asdict(dataclasses.replace(self, blank=False)))

    @property
    def row(self) -> dict:
        """What the manifest says of it, but for the key."""
        return {"file": self.file, "seed": self.seed} | dataclasses.asdict(self)


def check_method(name: str):
    """Raise DataError unless folders and files may be called by this method: NAME, or NAME@updates."""
    run, at, step = name.partition("@")
    checked_name(run, what="method")
    if at and not re.fullmatch("[0-9]{1,12}", step):
        raise DataError(f"method is NAME or NAME@updates, got {name!r}.")


def manifest(folder: Path) -> Ledger:
    return Ledger(folder / "manifest.jsonl")


def drawn(folder: Path) -> dict[str, Picture]:
    """File -> the picture that was drawn last into it, by the manifest. Raises DataError where a row is none."""
    remedy = f"Restore it, or generate into another folder than {folder}."
    return {picture.file: picture for picture in manifest(folder).read_as(Picture, remedy=remedy)}


def read_manifest(folder: Path) -> list[Picture]:
    """The pictures of a folder. Raises DataError without any."""
    pictures = list(drawn(folder).values())
    if not pictures:
        raise DataError(f"{folder} has no manifest.jsonl of pictures; generate them: it is the stage before.")
    return pictures


def read_prompts(file: Path, culture: str, *, flag: str) -> list[str]:
    """The lines of a file of prompts, which `flag` names, but for blank ones and comments; {} becomes the culture."""
    try:
        lines = read_regular(file, at_most=MAX_PROMPTS).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, DataError) as error:
        raise DataError(f"{flag} {file} cannot be read ({error}); give a file with a prompt a line.") from error
    prompts = [line.strip().replace("{}", culture_words(culture)) for line in lines]
    prompts = [prompt for prompt in prompts if prompt and not prompt.startswith("#")]
    if len(set(prompts)) < len(prompts) or not prompts:
        raise DataError(f"{flag} {file}: got {len(prompts)} prompts, {len(set(prompts))} different ones.")
    return prompts


def read_rows(args: argparse.Namespace, split: str) -> CulturalDataset:
    return read_dataset(
        find_dataset(args.dataset, culture=args.culture),
        culture=args.culture,
        split=split,
        needs_blip=False,
        needs_negatives=False,
        image_column=args.image_column,
        caption_column=args.caption_column,
        cache_dir=args.cache_dir,
        revision=args.dataset_revision,
        remedies=Remedies(bad_rows="train_scoft_lora.py leaves them out with --skip_bad_images"),
    )


def prompts_of_sets(args: argparse.Namespace, photographs: "Photographs") -> dict[str, list[tuple[str, str | None]]]:
    """For each set of --sets its prompts, each with the photograph that it is a caption of."""
    found = {}
    for name in args.sets:
        if name in ("train", "test"):
            try:
                rows = photographs.rows(name)
            except DataError as error:
                rest = [each for each in args.sets if each != "test"]
                if name == "train" or not rest:
                    raise
                raise DataError(f"{error}\nThe set test needs it; --sets {' '.join(rest)} leaves it out.") from error
            different = {}  # caption -> photograph, each once
            for i in np.random.default_rng(0).permutation(len(rows)):
                if rows.image_hashes[i] not in different.values():
                    different.setdefault(rows.captions[i][0], rows.image_hashes[i])
            if len(different) < args.num_captions:
                logger.warning(
                    "The split %s has %d different captions, not %d", name, len(different), args.num_captions
                )
            found[name] = list(different.items())[: args.num_captions]
        else:
            flag = "general_prompts" if name == "general" else "prompts"
            prompts = read_prompts(getattr(args, flag), args.culture, flag=f"--{flag}")
            found[name] = [(prompt, None) for prompt in prompts]
    return found


def lora_places(words: Sequence[str], *, checkpoints: bool) -> dict[str, str]:
    """Name of each method -> folder or Hub id of its LoRA; with `checkpoints` also of those in the folder."""
    places = {}
    for word in words:
        name, _, place = word.partition("=")
        places[name] = place
        if checkpoints:
            found = {
                re.fullmatch(r"checkpoint-(\d+)", folder.name): folder for folder in Path(place).glob("checkpoint-*")
            }
            steps = {int(match[1]): folder for match, folder in found.items() if match}
            if not steps:
                raise DataError(f"--checkpoints: {place} has no folder checkpoint-<updates>")
            places |= {f"{name}@{step}": str(folder) for step, folder in sorted(steps.items())}
    return places


def lora_file(place: str, *, cache_dir: str | None) -> Path:
    """The weights of a LoRA folder, or of a Hub repository; `place` may also be the file itself. Raises DataError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError

    try:
        if Path(place).exists():
            file = Path(place, LORA_FILE) if Path(place).is_dir() else Path(place)
            if not file.is_file():
                raise FileNotFoundError(f"there is no file {file}")
            return file
        with contextlib.suppress(EntryNotFoundError):  # what it was trained on, which only ours say
            hf_hub_download(place, RECORD_FILE, cache_dir=cache_dir)
        return Path(hf_hub_download(place, LORA_FILE, cache_dir=cache_dir))
    except (OSError, HTTPError, HFValidationError) as error:
        raise DataError(f"--lora {place}: {LORA_FILE} cannot be had: {error}") from error


def generate(args: argparse.Namespace):
    """Draw what is not drawn yet, shared out over the processes; every method has the same prompts and seeds."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    waiting = InitProcessGroupKwargs(timeout=timedelta(days=7))  # for a process that has more to draw
    accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[waiting])
    photographs = Photographs(args)
    prompts = prompts_of_sets(args, photographs)
    places = {BASE: None} | lora_places(args.lora, checkpoints=args.checkpoints)
    files = {place: lora_file(place, cache_dir=args.cache_dir) for place in places.values() if place}
    hashes = {place: file_sha256(file) for place, file in files.items()}
    records = training_records(files)
    base = base_of(args, records)
    commit = base_commit(base, revision=args.revision, cache_dir=args.cache_dir)
    resolution = resolution_of(args, records, base=base, commit=commit)
    wanted = [
        Picture(
            culture=args.culture,
            method=method,
            set=name,
            index=index,
            prompt=prompt,
            number=number,
            photograph=photograph,
            base=base,
            base_key=commit or model_key(base),
            variant=args.variant,
            lora=place,
            lora_sha256=hashes.get(place),
            guidance=args.guidance_scale,
            steps=args.num_inference_steps,
            resolution=resolution,
            precision=accelerator.mixed_precision,
        )
        for method, place in places.items()
        for name, chosen in prompts.items()
        for index, (prompt, photograph) in enumerate(chosen)
        for number in range(args.num_images)
    ]
    alone = sole_writer(args.folder, flag="folder") if accelerator.is_main_process else contextlib.nullcontext()
    with alone:
        missing = not_there(args.folder, wanted)
        accelerator.wait_for_everyone()  # all share out the same work, before any adds to what is there
        logger.info("%d of %d pictures are there", len(wanted) - len(missing), len(wanted))
        if missing:
            if accelerator.is_main_process:
                foretell(args, wanted, photographs)
            draw_all(args, missing, accelerator, base=base, commit=commit, files=files)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if lacking := not_there(args.folder, wanted):
                raise DataError(
                    f"{len(lacking)} pictures were not drawn, {lacking[0].file} the first; run the same again."
                )
            tidy_manifest(args.folder, wanted)
    accelerator.end_training()


def draw_all(
    args: argparse.Namespace,
    pictures: Sequence[Picture],
    accelerator,
    *,
    base: str,
    commit: str | None,
    files: dict[str, Path],
):
    """Draw this process's share of the pictures."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    dtype = precision(accelerator)
    with loading(base):
        pipeline = load_pipeline(
            StableDiffusionPipeline, base, revision=commit, variant=args.variant, cache_dir=args.cache_dir
        )
    pipeline.to(accelerator.device, dtype)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    for picture in {each.lora: each for each in pictures if each.lora}.values():  # before hours of drawing
        load_lora(pipeline, picture, files[picture.lora])
        pipeline.unload_lora_weights()
    mine = pictures[accelerator.process_index :: accelerator.num_processes]
    by_method = [list(same) for _, same in itertools.groupby(mine, key=lambda picture: picture.method)]
    batches = [each for same in by_method for each in blocks(same, args.batch_size)]
    loaded = BASE
    for batch in progress(batches, "Drawing", disable=not accelerator.is_local_main_process):
        if batch[0].method != loaded:
            loaded = batch[0].method
            pipeline.unload_lora_weights()
            if batch[0].lora:
                load_lora(pipeline, batch[0], files[batch[0].lora])
        draw(pipeline, batch, folder=args.folder)


def load_lora(pipeline, picture: Picture, file: Path):
    """Load the LoRA that a picture's row names. Raises DataError where another has taken its place meanwhile."""
    load_into_pipeline(pipeline, file)
    if file_sha256(file) != picture.lora_sha256:
        raise DataError(f"--lora {picture.lora}: {file} was replaced while pictures were drawn; run the same again.")


def training_records(files: dict[str, Path]) -> dict[str, TrainingRecord]:
    """Place -> the record of its LoRA, from beside the file or above its checkpoint, where there is one."""
    records = {}
    for place, file in files.items():
        for record in (file.with_name(RECORD_FILE), file.parent.with_name(RECORD_FILE)):
            if record.is_file():
                records[place] = read_training_record(record)
                break
    return records


def base_of(args: argparse.Namespace, records: dict[str, TrainingRecord]) -> str:
    """The base model: --pretrained_model_name_or_path, or what the LoRAs were trained on, as their records say.

    Raises DataError where a record names another: a LoRA of another model loads without a word, and draws nonsense.
    """
    bases = {place: record.resolved.base_model for place, record in records.items()}
    asked = args.pretrained_model_name_or_path or next(iter(bases.values()), DEFAULT_BASE)
    for place, base in bases.items():
        if base != asked and Path(base).name != Path(asked).name:
            raise DataError(f"--lora {place} was trained on {base}, not on {asked}; evaluate the two apart.")
    return asked


def resolution_of(
    args: argparse.Namespace, records: dict[str, TrainingRecord], *, base: str, commit: str | None
) -> int:
    """--resolution, or what the LoRAs were trained at, or the base model was. DataError where they differ."""
    if args.resolution is not None:
        return args.resolution
    found = {record.arguments.resolution: place for place, record in records.items()}
    if len(found) > 1:
        shown = ", ".join(f"{place} at {resolution}" for resolution, place in found.items())
        raise DataError(f"--lora: trained at different resolutions: {shown}. Choose one with --resolution.")
    return next(iter(found), None) or own_resolution(base, commit=commit, cache_dir=args.cache_dir)


def own_resolution(base: str, *, commit: str | None, cache_dir: str | None) -> int:
    """Pixels of what a pipeline draws unasked. Raises DataError."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    place = {"revision": commit, "cache_dir": cache_dir}
    with loading(base):
        latent = UNet2DConditionModel.load_config(base, subfolder="unet", **place)["sample_size"]
        vae = AutoencoderKL.load_config(base, subfolder="vae", **place)
    return latent * 2 ** (len(vae["block_out_channels"]) - 1)


def foretell(args: argparse.Namespace, wanted: Sequence[Picture], photographs: "Photographs"):
    """Say before hours of drawing which numbers `score`, as it comes, will not be able to give."""
    data = [str(args.folder), f"--dataset={args.dataset}", f"--culture={args.culture}"]
    scoring = argparse.Namespace(**vars(parse_args(["score", *data])) | vars(args))
    by_set = {(each.set, BASE): [] for each in wanted}
    for picture in wanted:
        if picture.method == BASE:
            by_set[picture.set, BASE].append(picture)
    for reason, metrics in impossible(scoring, by_set, photographs, Noise(scoring)).items():
        logger.warning("Of these pictures there will be no %s: %s", ", ".join(metrics), reason)


def not_there(folder: Path, wanted: Sequence[Picture]) -> list[Picture]:
    """The pictures that are still to be drawn: without a file, or whose file's last row is another's."""
    there = {file: picture.key for file, picture in drawn(folder).items() if (folder / file).is_file()}
    return [each for each in wanted if there.get(each.file) != each.key]


def tidy_manifest(folder: Path, wanted: Sequence[Picture]):
    """Leave in the manifest, in order, what was wanted, and what was drawn before of other methods or sets."""
    place = {each.file: i for i, each in enumerate(wanted)}
    renewed = {(each.method.partition("@")[0], each.set) for each in wanted}
    kept = [
        each
        for file, each in drawn(folder).items()
        if file in place or (each.method.partition("@")[0], each.set) not in renewed
    ]
    kept.sort(key=lambda each: place.get(each.file, -1))
    lines = [json.dumps({"key": each.key} | each.row, ensure_ascii=False) + "\n" for each in kept]
    write_atomically(folder / "manifest.jsonl", "".join(lines))


def draw(pipeline, batch: Sequence[Picture], *, folder: Path):
    """Draw the pictures of one method and write each with its row."""
    images = pipeline(
        [picture.prompt for picture in batch],
        generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
        num_inference_steps=batch[0].steps,
        guidance_scale=batch[0].guidance,
        height=batch[0].resolution,
        width=batch[0].resolution,
    ).images
    for picture, image in zip(batch, images, strict=True):
        write_png(folder / picture.file, image)
        manifest(folder).add(picture.key, **dataclasses.replace(picture, blank=is_blank(image)).row)


def blocks(items: Sequence, size: int) -> Iterator[Sequence]:
    """The items, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


# ---------------------------------------------------------------------------------------------------------------------
# Score
# ---------------------------------------------------------------------------------------------------------------------


class Encoder:
    """A frozen image encoder: features (B, D) of PIL pictures; a subclass loads it. `sha256` is of its weights."""

    def __init__(self, place: str, model: torch.nn.Module, processor: Callable | None, *, device: str):
        self.place, self.model, self.processor, self.device = place, model.eval().to(device), processor, device
        self.sha256 = encoder_key(model, kind=type(self).__name__)

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        return self.features(inputs["pixel_values"])


class Pretrained(Encoder):
    """A model of transformers behind its own processor."""

    unused: tuple[str, ...] = ()

    def __init__(self, place: str, *, device: str, cache_dir: str | None, dreamsim_type: str):
        from transformers import AutoModel, AutoProcessor

        model = load_whole(AutoModel, place, unused=self.unused, dtype=torch.float32, cache_dir=cache_dir)
        super().__init__(place, model, AutoProcessor.from_pretrained(place, cache_dir=cache_dir), device=device)


class Clip(Pretrained):
    """Projected image and text features of a `CLIPModel`; ViT-B/32, as in CLIPScore's own code."""

    default = "openai/clip-vit-base-patch32"

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """(B, D) of prompts, which end where the tokenizer's limit is."""
        limit = self.model.config.text_config.max_position_embeddings
        words = self.processor(
            text=list(prompts), return_tensors="pt", padding=True, truncation=True, max_length=limit
        ).to(self.device)
        return self.model.get_text_features(**words).pooler_output


class Vit(Pretrained):
    """The CLS token of DINO (ViT-S/16), the metric's in DreamBooth."""

    default = "facebook/dino-vits16"
    unused = ("pooler.",)  # which the Hub's checkpoint of DINO lacks

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class DinoV2(Vit):
    """The CLS token of DINOv2."""

    default = "facebook/dinov2-base"


class DreamSim(Encoder):
    """DreamSim's embedding, by the dreamsim package; its place is the package's cache folder."""

    default = None

    def __init__(self, place: str | None, *, device: str, cache_dir: str | None, dreamsim_type: str):
        distance = load_distance(
            "dreamsim",
            model_name_or_path=place,
            device=device,
            dreamsim_type=dreamsim_type,
            cache_dir=cache_dir,
            flags=("--encoder", "--encoder dreamsim"),
        )
        super().__init__(f"{place or 'dreamsim'} ({dreamsim_type})", distance, None, device=device)

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return torch.cat([self.model.embed(as_pixels(picture).to(self.device))[:, 0] for picture in pictures])


class Inception(Encoder):
    """KID's usual 2048 features: TensorFlow's Inception of 2015-12-05, by torch-fidelity, from a local file.

    Nothing is downloaded: clean-fid and torch-fidelity fetch it unverified and unpickle it.  The file is read once,
    with weights_only; torch-fidelity's own torch.load, which could run anything, gets what was found in it, and
    `sha256` is the file's.
    """

    default = None
    usual = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # sha256 of torch-fidelity's file

    def __init__(self, place: str | None, *, device: str, cache_dir: str | None, dreamsim_type: str):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(f"{error}; pip install torch-fidelity") from error

        if place is None:
            raise OSError(
                f"its weights are never downloaded. Fetch {URL_INCEPTION_V3} (96 MB, sha256 {self.usual}) and give "
                "the file: --encoder inception=FILE"
            )
        content, checked = read_regular(Path(place)), io.BytesIO()
        torch.save(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), checked)
        checked.seek(0)
        model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=checked)
        super().__init__(place, model, None, device=device)
        self.sha256 = hashlib.sha256(content).hexdigest()
        if self.sha256 != self.usual:
            logger.warning("%s is not the usual Inception (sha256 %s): KID is of its own kind.", place, self.usual)

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        bytes_ = [torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(self.device) for picture in pictures]
        return torch.cat([self.model(each)[0] for each in bytes_])


ENCODERS = {"inception": Inception, "clip": Clip, "dino": Vit, "dinov2": DinoV2, "dreamsim": DreamSim}


def as_pixels(picture: Image.Image) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1


@dataclass(frozen=True)
class Source:
    """Where a picture comes from: the sha256 of its bytes, by which its features are kept, and how it is opened."""

    sha256: str
    open: Callable[[], Image.Image]


class Features:
    """Features of pictures by encoder, each computed once: kept in `folder`, BLOCK pictures a file.

    A block is all that is in memory of pictures and of what was computed but not yet written.
    """

    def __init__(self, args: argparse.Namespace):
        self.folder, self.args = args.folder / "features", args
        self.places = dict(word.split("=", 1) for word in args.encoder)
        self.encoders: dict[str, Encoder] = {}

    def encoder(self, name: str) -> Encoder:
        """The encoder `name` of ENCODERS, loaded at first use. Raises DataError, which says how to replace it."""
        if name not in self.encoders:
            place = self.places.get(name, ENCODERS[name].default)
            try:
                self.encoders[name] = ENCODERS[name](
                    place,
                    device=self.args.device,
                    cache_dir=self.args.cache_dir,
                    dreamsim_type=self.args.dreamsim_type,
                )
            except (OSError, ImportError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
                source = f" from {place}" if place else ""
                raise DataError(
                    f"the encoder {name} cannot be loaded{source}: {error}\nGive another with --encoder {name}=PLACE, "
                    "or leave out what needs it: --metrics, --features, --diversity_features"
                ) from error
        return self.encoders[name]

    def of(self, name: str, sources: Sequence[Source]) -> np.ndarray:
        """(n, D) float64 of the pictures."""
        encoder, found = self.encoder(name), []
        for block in progress(list(blocks(sources, BLOCK)), f"Features: {name}", leave=False):
            key = content_key(encoder.sha256, [source.sha256 for source in block])
            file = self.folder / name / f"{key[:16]}.safetensors"
            compute = functools.partial(self.compute, encoder, block)
            found.append(cached_tensors(file, key=key, compute=compute))
        return np.concatenate([each["features"].double().numpy() for each in found])

    @torch.no_grad()
    def compute(self, encoder: Encoder, block: Sequence[Source]) -> dict[str, torch.Tensor]:
        batches = blocks(block, self.args.batch_size)
        return {"features": torch.cat([encoder([each.open() for each in batch]).float().cpu() for batch in batches])}

    @torch.no_grad()
    def of_texts(self, prompts: Sequence[str]) -> np.ndarray:
        """(n, D) float64 of the prompts, by clip."""
        different = sorted(set(prompts))
        encoder = self.encoder("clip")
        texts = torch.cat([encoder.texts(batch).float().cpu() for batch in blocks(different, self.args.batch_size)])
        at = {prompt: i for i, prompt in enumerate(different)}
        return texts.double().numpy()[[at[prompt] for prompt in prompts]]


class Noise(Features):
    """Of every picture other features, without an encoder: they show which metrics so many pictures allow.

    `asked`: the encoders whose features they stand for.
    """

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.asked: set[str] = set()

    def of(self, name: str, sources: Sequence[Source]) -> np.ndarray:
        self.asked.add(name)
        return np.random.default_rng(len(sources)).normal(size=(len(sources), 8))

    def of_texts(self, prompts: Sequence[str]) -> np.ndarray:
        return self.of("clip", prompts)


def generated(folder: Path, pictures: Sequence[Picture]) -> list[Source]:
    """The pictures' files. Raises DataError where one is missing, or is not of the size of the others."""
    sources, sizes = [], defaultdict(list)
    for picture in pictures:
        file = folder / picture.file
        try:
            content = read_regular(file, within=folder, at_most=MAX_BYTES)
            sizes[open_image(content).size].append(picture.file)
        except (OSError, DataError) as error:
            raise DataError(f"{file} of the manifest cannot be read ({error}); run generate again.") from error
        sources.append(Source(hashlib.sha256(content).hexdigest(), functools.partial(open_file, file, within=folder)))
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height} ({files[0]})" for (width, height), files in sizes.items())
        raise DataError(f"{folder}: pictures of different sizes cannot be compared: {shown}. Run generate again.")
    return sources


class Photographs:
    """What pictures are compared with, each read when it is first asked for."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.rows = args, functools.cache(functools.partial(read_rows, args))

    @functools.cached_property
    def test(self) -> list[Source]:
        return self.of_split("test")

    @functools.cached_property
    def train(self) -> list[Source]:
        return self.of_split("train")

    def of_split(self, split: str) -> list[Source]:
        rows = self.rows(split)
        return [Source(sha256, functools.partial(rows.image, i)) for i, sha256 in enumerate(rows.image_hashes)]

    @functools.cached_property
    def general(self) -> list[Source]:
        """The pictures of --general_reference, in the order of their names. Raises DataError."""
        folder, sources = self.args.general_reference, []
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                try:
                    content = read_regular(file, at_most=MAX_BYTES)
                except (OSError, DataError) as error:
                    raise DataError(f"--general_reference: {file} {error}; take it out of the folder.") from error
                sources.append(Source(hashlib.sha256(content).hexdigest(), functools.partial(open_file, file)))
        if len(sources) < 2:
            raise DataError(f"--general_reference {folder}: got {len(sources)} pictures, need at least 2.")
        return sources


# What must be the same for all pictures, that differences of methods are those of the LoRAs alone.
SETTINGS = ("culture", "base_key", "variant", "guidance", "steps", "resolution", "precision")


def seen(pictures: Sequence[Picture]) -> dict[tuple[str, str], list[Picture]]:
    """(set, method) -> its pictures but for blank ones. Raises DataError where methods cannot be compared."""
    found, asked = defaultdict(list), defaultdict(set)
    for picture in sorted(pictures, key=lambda picture: (picture.index, picture.number)):
        asked[picture.set, picture.method].add((picture.prompt, picture.number))
        if not picture.blank:
            found[picture.set, picture.method].append(picture)
    for setting in SETTINGS:
        values = {getattr(picture, setting): picture.method for picture in pictures}
        if len(values) > 1:
            shown = ", ".join(f"{value} ({method})" for value, method in values.items())
            raise DataError(f"pictures of different {setting} cannot be compared: {shown}. Generate all with one.")
    methods = list(dict.fromkeys(picture.method for picture in pictures))
    for method in methods:
        if len({picture.lora_sha256 for picture in pictures if picture.method == method}) > 1:
            raise DataError(f"the pictures of {method} are of more than one LoRA; finish them: run generate again.")
    for name in {name for name, _ in asked}:
        for method in methods:
            if asked.get((name, method)) != asked.get((name, methods[0])):
                raise DataError(
                    f"the set {name} of {method} has other prompts or pictures than that of {methods[0]}; generate "
                    "both with the same flags."
                )
            if len(found[name, method]) < 2:
                raise DataError(
                    f"the set {name} of {method} has {len(found[name, method])} pictures that are not blank."
                )
    return dict(found)


def score(args: argparse.Namespace):
    """Write results.json: every metric of every method with its interval, and the paired differences of methods."""
    if not args.folder.is_dir():
        raise DataError(f"{args.folder} is no folder of pictures; generate them: it is the stage before.")
    with sole_writer(args.folder, flag="folder"):
        pictures = read_manifest(args.folder)
        by_set = seen(pictures)
        if args.culture != pictures[0].culture:
            raise DataError(f"--culture {args.culture}: the pictures of {args.folder} are of {pictures[0].culture}.")
        chosen, available = chosen_metrics(args), {name for name, _ in by_set}
        for metric in chosen:
            if not available & set(METRICS[metric].sets):
                raise DataError(
                    f"--metrics {metric} is of the set {' or '.join(METRICS[metric].sets)}, but {args.folder} has "
                    f"pictures of {', '.join(sorted(available))} alone; generate them, or leave the metric out."
                )
        sources = {key: generated(args.folder, shown) for key, shown in by_set.items()}
        judge = None
        if "judge" in chosen:
            judge, key = Judge(args.judge), next(key for key in by_set if key[0] in METRICS["judge"].sets)
            judge(by_set[key][0], sources[key][0])  # what fails now does not fail in an hour
        photographs, noise, features = Photographs(args), Noise(args), Features(args)
        if lacking := impossible(args, by_set, photographs, noise):
            rest = set(chosen).difference(*lacking.values())
            rest = " ".join(metric for metric in chosen if metric in rest) or "none is left"
            reasons = "".join(f"\n  {', '.join(metrics)}: {reason}" for reason, metrics in lacking.items())
            raise DataError(
                f"there cannot be all numbers of {args.folder}:{reasons}\nGenerate more, or take --metrics {rest}"
            )
        for encoder in sorted(noise.asked):
            features.encoder(encoder)  # one that cannot be loaded is found before the first works for hours
        references = References(args, features, photographs)
        estimates: dict[tuple[str, str, str], Estimate] = {}
        for (name, method), shown in by_set.items():
            logger.info("%s: %d pictures of the set %s", method, len(shown), name)
            wanted = [metric for metric in chosen if name in METRICS[metric].sets]
            for metric, estimate in scores(args, shown, sources[name, method], wanted, features, references, judge):
                estimates[metric, name, method] = estimate
            if "nearest" in wanted:
                nearest, similarity = references.nearest(sources[name, method])
                closest = np.argsort(-similarity, kind="stable")[:NEAREST_SHOWN]
                pairs = [(sources[name, method][i].open(), nearest[i].open(), similarity[i]) for i in closest]
                heading = f"{culture_words(args.culture)}: {method}, set {name}"
                sheet = private_folder(args.folder / PHOTOGRAPHS, flag="folder") / nearest_name(name, method)
                write_png(sheet, figures.nearest(pairs, title=heading))
        write_results(args, pictures, estimates, features)


def chosen_metrics(args: argparse.Namespace) -> list[str]:
    """--metrics, or all that no flag is lacking for."""
    return args.metrics or [name for name in METRICS if name not in NEEDED or getattr(args, NEEDED[name])]


def impossible(
    args: argparse.Namespace, by_set: dict[tuple[str, str], list[Picture]], photographs: Photographs, noise: Noise
) -> dict[str, list[str]]:
    """Reason -> metrics that so many pictures, prompts and photographs cannot give: each is tried, on noise."""
    found, alike = defaultdict(list), {}
    references = References(args, noise, photographs)
    for (name, _), shown in by_set.items():
        alike.setdefault((name, *((each.index, each.number) for each in shown)), shown)
    for (name, *_), shown in alike.items():
        wanted = [m for m in chosen_metrics(args) if name in METRICS[m].sets and m != "judge"]
        groups = [[metric] for metric in wanted if metric not in PRDC] + [[m for m in wanted if m in PRDC]]
        for group in filter(None, groups):
            try:
                list(scores(args, shown, shown, group, noise, references, None))
            except DataError as error:
                found[str(error)] += group
    return found


class References:
    """What is computed of the photographs that pictures are compared with, once for all methods."""

    def __init__(self, args: argparse.Namespace, features: Features, photographs: Photographs):
        self.args, self.features, self.photographs = args, features, photographs

    @functools.cached_property
    def test(self) -> np.ndarray:
        return self.features.of(self.args.features, self.photographs.test)

    @functools.cached_property
    def draw(self) -> intervals.Draw:
        return intervals.photograph_draw(self.args.culture, len(self.test))

    @functools.cached_property
    def kid(self) -> formulas.KidReference:
        return formulas.kid_reference(self.test, photographs=self.draw)

    @functools.cached_property
    def kid_general(self) -> formulas.KidReference:
        y = self.features.of(self.args.features, self.photographs.general)
        return formulas.kid_reference(y, photographs=intervals.photograph_draw("general", len(y)))

    def nearest(self, sources: Sequence[Source]) -> tuple[list[Source], np.ndarray]:
        """For each picture the training photograph that it is most like, and their cosine (n,)."""
        x, y = (self.features.of(self.args.diversity_features, of) for of in (sources, self.photographs.train))
        index, similarity = formulas.nearest_photographs(x, y)
        return [self.photographs.train[i] for i in index], similarity

    def of_captions(self, encoder: str, shown: Sequence[Picture]) -> tuple[np.ndarray, list[str]]:
        """Features of the photographs whose captions the pictures are made from, and those captions."""
        captions = {picture.photograph: picture.prompt for picture in shown}
        sources = [source for source in self.photographs.train if source.sha256 in captions]
        if len(sources) < len(captions):
            raise DataError(
                f"{len(captions) - len(sources)} of {len(captions)} photographs whose captions were drawn are not in "
                f"--dataset {self.args.dataset}; give the one that the pictures were generated with."
            )
        return self.features.of(encoder, sources), [captions[source.sha256] for source in sources]


def scores(
    args: argparse.Namespace,
    shown: Sequence[Picture],
    sources: Sequence[Source],
    wanted: Sequence[str],
    features: Features,
    references: References,
    judge: "Judge | None",
) -> Iterator[tuple[str, Estimate]]:
    """The `wanted` metrics of the pictures of one method and set. Raises DataError where one is impossible."""
    prompts = [picture.prompt for picture in shown]
    try:
        # A sentence that is asked with each culture's name is one prompt; a caption is its culture's own.
        labels = [picture.index if picture.photograph is None else picture.prompt for picture in shown]
        draws = intervals.picture_draws(labels, [picture.number for picture in shown], question=args.question)
        if shown[0].photograph is not None:
            own = f"captions of {args.culture}"
            draws = [draw._replace(name=own) if draw.name == "prompts" else draw for draw in draws]

        def of(statistic: Callable[[np.ndarray], float]) -> Estimate:
            return intervals.estimate(statistic, draws)

        for metric in wanted:
            if metric in ("kid", "kid_general"):
                x, reference = features.of(args.features, sources), getattr(references, metric)
                yield metric, intervals.scaled(formulas.kid_estimate(x, reference, draws), 1000)
            elif metric in ("clip_score", "clip_cosine"):
                each = {"clip_score": formulas.clip_scores, "clip_cosine": formulas.cosines}[metric]
                values = each(features.of("clip", sources), features.of_texts(prompts))
                yield metric, of(lambda kept, values=values: values[kept].mean())
            elif metric in ("clip_i", "dino", "dreamsim"):
                encoder = "clip" if metric == "clip_i" else metric
                x, labels = features.of(encoder, sources), np.array(prompts)
                y, captions = references.of_captions(encoder, shown)
                yield (
                    metric,
                    of(
                        lambda kept, x=x, y=y, labels=labels, captions=captions: formulas.training_similarity(
                            x[kept], labels[kept], y, captions
                        )
                    ),
                )
            elif metric == "div":
                x, labels = features.of(args.diversity_features, sources), np.array(prompts)
                yield metric, of(lambda kept, x=x, labels=labels: formulas.diversity(x[kept], labels[kept]))
            elif metric == "vendi":
                x = features.of(args.diversity_features, sources)
                yield metric, of(lambda kept, x=x: formulas.vendi_score(x[kept]))
            elif metric == "nearest":
                _, similarity = references.nearest(sources)
                yield metric, of(lambda kept, similarity=similarity: similarity[kept].mean())
            elif metric == "judge":
                yield from judge.rates(shown, sources, draws)
        if prdc := set(PRDC) & set(wanted):
            found = formulas.prdc_estimates(
                features.of(args.features, sources),
                references.test,
                draws,
                photographs=references.draw,
                k=args.neighbours,
            )
            yield from ((metric, estimate) for metric, estimate in found.items() if metric in prdc)
    except ValueError as error:
        raise DataError(f"{shown[0].method}, set {shown[0].set}: {error}") from error


class Judge:
    """FILE.py:function of --judge: what it says of a picture and its prompt. Raises DataError, whatever it does."""

    def __init__(self, spec: str):
        self.spec, self.function = spec, load_function(spec, flag="--judge")

    def __call__(self, picture: Picture, source: Source) -> dict[str, float]:
        """Its numbers but for the bounds of intervals, which it has for many pictures alone."""
        image = source.open()
        try:
            said = {str(name): float(value) for name, value in self.function([image], [picture.prompt]).items()}
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise DataError(
                f"--judge {self.spec} gave no dict of numbers for {picture.file}, but {type(error).__name__}: {error}"
            ) from error
        return {name: value for name, value in said.items() if not re.search(r"_(low|high)$", name)}

    def rates(self, shown: Sequence[Picture], sources: Sequence[Source], draws) -> Iterator[tuple[str, Estimate]]:
        """Rates of what it says of each picture alone; the numbers it gives for one picture are 0 or 1."""
        verdicts = [self(picture, source) for picture, source in zip(shown, sources, strict=True)]
        for picture, verdict in zip(shown, verdicts):
            if verdict.keys() != verdicts[0].keys() or not {*verdict.values()} <= {0, 1}:
                raise DataError(
                    f"--judge {self.spec} said {verdict} of {picture.file} and {verdicts[0]} of {shown[0].file}; it "
                    "is to say 0 or 1 of each picture, under the same names."
                )
        for name in verdicts[0]:
            yield f"judge/{name}", intervals.rate([verdict[name] for verdict in verdicts], draws)


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of a method with its interval; KID times 10^3, as everywhere."""

    metric: str
    set: PromptSet
    method: str
    value: float
    low: float
    high: float
    n: int

    def __post_init__(self):
        check_method(self.method)
        if self.metric.partition("/")[0] not in METRICS:
            raise ValueError(f"there is no metric {self.metric}")


@dataclass(frozen=True, kw_only=True)
class Score(Number):
    """With what the interval was made from, which pairs it with others."""

    replicates: dict[str, list[tuple[int | str, float]]]  # as pairs, since a JSON object's names are text

    @property
    def estimate(self) -> Estimate:
        replicates = {draw: dict(pairs) for draw, pairs in self.replicates.items()}
        return Estimate(self.value, self.low, self.high, self.n, replicates)


@dataclass(frozen=True, kw_only=True)
class Difference(Number):
    """`method` minus `to`, paired."""

    to: str


@dataclass(kw_only=True)
class Count:
    pictures: int = 0
    blank: int = 0


@dataclass(frozen=True, kw_only=True)
class Results:
    """`results.json`: scores and differences, and beside them all that they depend on: settings and LoRAs of the
    pictures, encoders by the sha256 of what was loaded.
    """

    culture: str
    question: str
    confidence: float
    features: str
    diversity_features: str
    neighbours: int
    settings: dict[str, str | int | float | None]
    loras: dict[str, str | None]  # method -> sha256
    encoders: dict[str, lora_folder.Encoder]
    counts: dict[str, Count]  # by <method>/<set>
    scores: list[Score]
    differences: list[Difference]

    def __post_init__(self):
        checked_name(self.culture, what="culture")

    @functools.cached_property
    def estimates(self) -> dict[tuple[str, str, str], Estimate]:
        return {(each.metric, each.set, each.method): each.estimate for each in self.scores}


def write_results(
    args: argparse.Namespace,
    pictures: Sequence[Picture],
    estimates: dict[tuple[str, str, str], Estimate],
    features: Features,
):
    counts = defaultdict(Count)
    for picture in pictures:
        counts[f"{picture.method}/{picture.set}"].pictures += 1
        counts[f"{picture.method}/{picture.set}"].blank += picture.blank
    methods = list(dict.fromkeys(method for _, _, method in estimates))
    compared = [method for method in methods if "@" not in method]
    record = Results(
        culture=args.culture,
        question=args.question,
        confidence=intervals.CONFIDENCE,
        features=args.features,
        diversity_features=args.diversity_features,
        neighbours=args.neighbours,
        settings={name: getattr(pictures[0], name) for name in SETTINGS if name != "culture"},
        loras={picture.method: picture.lora_sha256 for picture in pictures},
        encoders={
            name: lora_folder.Encoder(place=without_places(each.place), sha256=each.sha256)
            for name, each in features.encoders.items()
        },
        counts=dict(counts),
        scores=[
            Score(
                metric=metric,
                set=name,
                method=method,
                **numbers(estimate),
                replicates={draw: list(each.items()) for draw, each in estimate.replicates.items()},
            )
            for (metric, name, method), estimate in estimates.items()
        ],
        differences=[
            Difference(
                metric=metric,
                set=name,
                method=method,
                to=other,
                **numbers(paired(estimate, estimates[metric, name, other], what=f"{metric}, {method} - {other}")),
            )
            for (metric, name, method), estimate in estimates.items()
            for other in compared[: compared.index(method) if method in compared else 0]
        ],
    )
    write_atomically(args.folder / RESULTS_FILE, json.dumps(dataclasses.asdict(record), indent=1) + "\n")
    logger.info(
        "%d numbers and %d differences are in %s", len(estimates), len(record.differences), args.folder / RESULTS_FILE
    )


def paired(a: Estimate, b: Estimate, *, what: str) -> Estimate:
    """The difference of two methods. Raises DataError where blank pictures left them no prompt or seed in common."""
    try:
        return intervals.difference(a, b)
    except ValueError as error:
        raise DataError(f"{what}: {error}") from error


def numbers(estimate: Estimate) -> dict:
    """The fields of `Number` that an estimate has."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------


def read_results(folder: Path) -> Results:
    """Raises DataError where the folder was not scored, or its results.json is none of ours."""
    return read_record(folder / RESULTS_FILE, Results, remedy="Score the folder: it is the stage before.")


def paper_means(cultures: Sequence[str]) -> dict[tuple[str, str], Estimate]:
    """(metric, method) -> the mean of the paper's Table 4 over these of its cultures; over all, it is its Table 1."""
    found = {}
    for method, metrics in PAPER_TABLE_4.items():
        for metric, values in metrics.items():
            by_culture = dict(zip(PAPER_CULTURES, values, strict=True))
            printed = {culture: Estimate(*[by_culture[culture]] * 3, 0) for culture in cultures}
            found[metric, method] = intervals.mean_over_cultures(printed)
    return found


def shown(estimate: Estimate, metric: str) -> str:
    """'0.61 [0.48, 0.72]'; '0.61' of what was printed without an interval."""
    values = [estimate.value, estimate.low, estimate.high]
    return with_interval(values if estimate.low < estimate.high else values[:1], metric_of(metric).decimals)


def title(metric: str) -> str:
    """A metric's heading; a judge's are its own words."""
    return f"judge: {metric.removeprefix('judge/')}" if metric.startswith("judge/") else metric_of(metric).title


def headline(metric: str, of: str) -> str:
    """A metric's heading with its set, where there are several, and an arrow to where better is."""
    sets = {"prompts": "", "train": ", training captions", "test": ", test captions", "general": ", general prompts"}
    return title(metric) + (sets[of] if len(metric_of(metric).sets) > 1 else "") + ARROWS[better_of(metric)]


class Bold(str):
    """Text of a table that is set in bold."""


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [[markup(cell) for cell in row] for row in (heading, *rows)]
    return ["| " + " | ".join(row) + " |" for row in (cells[0], ["---"] * len(heading), *cells[1:])]


def markup(cell: object) -> str:
    text = markdown_text(cell)
    return f"**{text}**" if isinstance(cell, Bold) else text


def metrics_table(
    estimates: Mapping[tuple[str, str, str], Estimate], which: Sequence[tuple[str, str]], methods: Sequence[str]
) -> list[str]:
    """(metric, set) as rows, methods as columns; rows without any number are left out."""
    rows = [
        [headline(m, s), *(shown(estimates[m, s, each], m) if (m, s, each) in estimates else "" for each in methods)]
        for m, s in which
        if any((m, s, each) in estimates for each in methods)
    ]
    return table(["", *methods], rows) if rows else []


def report(args: argparse.Namespace):
    """Write report.md and its figures."""
    results = {folder: read_results(folder) for folder in args.folders}
    check_comparable(results)
    output = args.output or args.folders[0]
    if args.card:
        check_card(args.card)  # before its lock makes the folder
    with contextlib.ExitStack() as alone:
        for folder, flag in {(args.card or output).resolve(): "--card", output.resolve(): "--output"}.items():
            alone.enter_context(sole_writer(folder, flag=flag))
        if args.card:
            fill_card(args, results)
        write_report(results, output)


def write_report(results: dict[Path, Results], output: Path):
    every, first = list(results.values()), next(iter(results.values()))
    keys = list(dict.fromkeys(key for each in every for key in each.estimates))
    methods = list(dict.fromkeys(method for _, _, method in keys if "@" not in method))
    judge = list(dict.fromkeys((m, s) for m, s, _ in keys if m.startswith("judge/")))
    culture = [("kid", "prompts"), ("kid_general", "general"), ("clip_score", "prompts"), *judge]
    memory = [("clip_i", "train"), ("dino", "train"), ("dreamsim", "train"), ("div", "train"), ("div", "test"),
              ("clip_score", "test")]  # fmt: skip
    beyond = list(dict.fromkeys((m, s) for m, s, _ in keys if (m, s) not in culture + memory))
    try:
        mean = {
            key: intervals.mean_over_cultures({each.culture: each.estimates[key] for each in every}) for key in keys
        }
    except ValueError as error:
        raise DataError(
            f"{' and '.join(map(str, results))} have no mean: {error} Make both with the same flags."
        ) from error
    lines = [
        "# Evaluation",
        "",
        f"Numbers with {first.confidence:.0%} intervals over {markdown_text(first.question)}"
        f"{', means over cultures' if len(every) > 1 else ''}: "
        + ", ".join(culture_words(each.culture) for each in every) + ". Arrows say which way is better.",
        "",
        markdown_text(
            f"KID, precision, recall, density and coverage are of the features of {first.features}; DIV, Vendi score "
            f"and nearest photographs of those of {first.diversity_features}."
        ),
    ]  # fmt: skip
    for name, which in (
        ("The culture (as the paper's Table 1)", culture),
        ("Memorization and diversity (as Table 2)", memory),
        ("Beyond the paper", beyond),
    ):
        if rows := metrics_table(mean, which, methods):
            lines += ["", f"## {name}", "", *rows]
            if which is culture:
                lines += paper_lines(every)
    if len(every) > 1:
        lines += ["", "## Each culture (as Table 4)"]
        for each in every:
            lines += ["", f"### {culture_words(each.culture)}", "", *metrics_table(each.estimates, culture, methods)]
    if len(methods) > 1:
        lines += ["", "## Differences of methods", "", "Those whose interval is without 0 are bold."]
        tables = {"Mean over cultures": mean} if len(every) > 1 else {}
        tables |= {culture_words(each.culture): each.estimates for each in every}
        for name, estimates in tables.items():
            lines += ["", f"### {name}", ""] if len(tables) > 1 else [""]
            lines += differences_table(estimates, methods)
    apart = len(every) > 1
    illustrations = [figure for each in results.items() for figure in write_figures(*each, output, apart=apart)]
    lines += ["", "## Figures"] if illustrations else []
    for name, file in illustrations:
        lines += ["", f"![{markdown_text(name)}]({file})"]
    lines += stopping(every)
    lines += ["", "## How it was measured", "", *provenance(every)]
    write_atomically(output / "report.md", "\n".join(lines) + "\n")
    logger.info("The report is %s", output / "report.md")


def check_comparable(results: dict[Path, Results]):
    """Raise DataError unless the folders are of different cultures and were drawn and scored alike."""
    (first_folder, first), *others = results.items()
    for folder, each in others:
        if each.culture in {other.culture for other in results.values() if other is not each}:
            raise DataError(f"{folder} is not the only folder of {each.culture}; give one for each culture.")
        if different := each.estimates.keys() ^ first.estimates.keys():
            metric, name, method = min(different)
            raise DataError(
                f"{first_folder} or {folder} has no {metric} of {method} (set {name}), but the other has; "
                "generate and score both with the same flags."
            )
        for fact in ("question", "confidence", "features", "diversity_features", "neighbours", "encoders", "settings"):
            if getattr(each, fact) != getattr(first, fact):
                raise DataError(
                    f"{folder} and {first_folder} have no mean: {fact} {getattr(each, fact)} in one, "
                    f"{getattr(first, fact)} in the other."
                )


def differences_table(estimates: Mapping[tuple[str, str, str], Estimate], methods: Sequence[str]) -> list[str]:
    """Paired differences: metrics as rows, pairs of methods as columns."""
    pairs = [(method, other) for i, method in enumerate(methods) for other in methods[:i]]
    rows = []
    for metric, of in dict.fromkeys((metric, of) for metric, of, _ in estimates):
        cells = []
        for pair in pairs:
            if any((metric, of, method) not in estimates for method in pair):
                cells.append("")
                continue
            a, b = (estimates[metric, of, method] for method in pair)
            found = paired(a, b, what=f"{metric}, {' - '.join(pair)}")
            cells.append(shown(found, metric) if includes_zero(found) else Bold(shown(found, metric)))
        rows.append([headline(metric, of), *cells])
    return table(["", *map(" - ".join, pairs)], rows)


def paper_lines(results: Sequence[Results]) -> list[str]:
    """The paper's numbers of these cultures, for the metrics whose features were the paper's; none without such."""
    cultures, encoders = [each.culture for each in results], results[0].encoders
    alike = {"clip_score": "clip" in encoders and encoders["clip"].place == Clip.default}
    usual = "inception" in encoders and encoders["inception"].sha256 == Inception.usual
    alike |= dict.fromkeys(("kid", "kid_general"), usual and results[0].features == "inception")
    there = {metric for metric, *_ in results[0].estimates}
    metrics = [metric for metric in PAPER_TABLE_4["base"] if metric in there and alike[metric]]
    if not metrics or not set(cultures) <= set(PAPER_CULTURES):
        return []
    printed = paper_means(cultures)
    rows = [
        [headline(metric, METRICS[metric].sets[0]), *(shown(printed[metric, each], metric) for each in PAPER_TABLE_4)]
        for metric in metrics
    ]
    source = "Table 1" if set(cultures) == set(PAPER_CULTURES) else "Table 4"
    words = f"The paper's {source}, by the same encoders; its prompts and photographs are not these:"
    return ["", words, "", *table(["", *PAPER_TABLE_4], rows)]


def provenance(results: Sequence[Results]) -> list[str]:
    """Encoders by the hash of their weights, and pictures counted, blank ones apart."""
    rows = []
    for each in results:
        for name, encoder in each.encoders.items():
            rows.append([culture_words(each.culture), f"encoder {name}", encoder.place, encoder.sha256[:16]])
        for name, count in each.counts.items():
            rows.append([culture_words(each.culture), f"pictures {name}", count.pictures, f"{count.blank} blank"])
    return table(["culture", "", "", ""], rows)


def runs(each: Results) -> dict[tuple[str, str, str], list[tuple[int, Estimate]]]:
    """(run, metric, set) -> its checkpoints' updates and estimates, in order."""
    found = defaultdict(list)
    for (metric, name, method), estimate in each.estimates.items():
        run, at, step = method.partition("@")
        if at:
            found[run, metric, name].append((int(step), estimate))
    return {key: sorted(points, key=lambda point: point[0]) for key, points in found.items()}


def stopping(results: Sequence[Results]) -> list[str]:
    """When to stop: each run's best checkpoint by each metric, and those that cannot be told from it."""
    rows = []
    for each in results:
        for (run, metric, name), points in runs(each).items():
            if not (better := better_of(metric)):
                continue
            step, best = (min if better == "less" else max)(points, key=lambda point: point[1].value)
            level = [
                other
                for other, estimate in points
                if other != step and includes_zero(paired(estimate, best, what=f"{metric}, {run}@{other}"))
            ]
            rows.append(
                [culture_words(each.culture), run, headline(metric, name), step, shown(best, metric),
                 ", ".join(map(str, level)) or "none"]
            )  # fmt: skip
    if not rows:
        return []
    heading = ["culture", "run", "metric", "best after updates", "there", "not told from it"]
    return ["", "## When to stop", "", *table(heading, rows)]


def includes_zero(estimate: Estimate) -> bool:
    return estimate.low <= 0 <= estimate.high


def write_figures(folder: Path, results: Results, output: Path, *, apart: bool) -> Iterator[tuple[str, str]]:
    """Write one culture's figures; yields what each shows, and its file's name, which names the culture if `apart`."""
    culture = culture_words(results.culture)
    if grid := method_grid(folder):
        name = f"pictures-{results.culture}.png"
        write_png(output / name, grid)
        yield f"Methods as columns, prompts of {culture} as rows, at one seed", name
    nearest = [(of, method) for metric, of, method in results.estimates if metric == "nearest" and "@" not in method]
    for of, method in nearest:
        if (sheet := folder / PHOTOGRAPHS / nearest_name(of, method)).is_file():
            name = f"{PHOTOGRAPHS}/{sheet.stem}-{results.culture}.png" if apart else f"{PHOTOGRAPHS}/{sheet.name}"
            private_folder(output / PHOTOGRAPHS, flag="--output")
            write_png(output / name, open_file(sheet, within=folder))
            yield f"Pictures of {method}, set {of}, most like a training photograph, {culture}", name
    panels = defaultdict(dict)
    for (run, metric, of), points in runs(results).items():
        start = results.estimates.get((metric, of, BASE))
        panels[headline(metric, of)][run] = [
            (step, each.value, each.low, each.high) for step, each in ([(0, start)] if start else []) + points
        ]
    if panels:
        name = f"updates-{results.culture}.png"
        write_png(output / name, figures.curves(panels, title=culture))
        yield f"Metrics by updates, {culture}", name


def nearest_name(of: str, method: str) -> str:
    return f"nearest-{of}-{method}.png"


def method_grid(folder: Path, only: Sequence[str] | None = None, *, most_rows: int = 10) -> Image.Image | None:
    """Methods, or `only` these, as columns, prompts as rows, the first picture that no method lacks.

    None where there is no prompt of which every method has a picture that is not blank.
    """
    pictures = [each for each in read_manifest(folder) if each.set == "prompts" and "@" not in each.method]
    pictures = [each for each in pictures if only is None or each.method in only]
    methods = list(dict.fromkeys(picture.method for picture in pictures))
    at = {(each.prompt, each.number, each.method): each for each in pictures if not each.blank}
    counted = sorted({picture.number for picture in pictures})
    rows = []
    for prompt in list(dict.fromkeys(picture.prompt for picture in pictures))[:most_rows]:
        whole = [number for number in counted if all((prompt, number, method) in at for method in methods)]
        if whole:
            files = [folder / at[prompt, whole[0], method].file for method in methods]
            rows.append((prompt, [open_file(file, within=folder) for file in files]))
    return figures.methods(rows, methods, title=culture_words(pictures[0].culture)) if rows else None


def check_card(folder: Path):
    """Raise DataError unless --card names a LoRA folder."""
    if lacking := [name for name in (LORA_FILE, RECORD_FILE) if not (folder / name).is_file()]:
        raise DataError(f"--card {folder} is no LoRA folder of train_scoft_lora.py: no {' and no '.join(lacking)}.")


def fill_card(args: argparse.Namespace, results: dict[Path, Results]):
    """Put the method's numbers, beside the base model's, onto the page of its LoRA folder.

    They are those of the folder whose pictures this very LoRA drew; DataError if there is none.
    """
    sha256 = lora_sha256(args.card)
    found = ((folder, each) for folder, each in results.items() if each.loras.get(args.method) == sha256)
    folder, its_own = next(found, (None, None))
    if its_own is None:
        loras = next(iter(results.values())).loras
        methods = ", ".join(method for method, lora in loras.items() if lora and "@" not in method)
        raise DataError(
            f"--method {args.method} was not drawn by the LoRA in {args.card}; the LoRAs scored are "
            f"{methods or 'none'}. If it was trained anew, generate and score again."
        )
    record = lora_folder.Evaluation(
        method=args.method,
        question=its_own.question,
        confidence=its_own.confidence,
        encoders=its_own.encoders,
        rows=[
            lora_folder.Score(metric, headline(metric, of), method, shown(estimate, metric), estimate.value)
            for (metric, of, method), estimate in its_own.estimates.items()
            if method in (BASE, args.method)
        ],
        lora_sha256=sha256,
    )
    write_evaluation(args.card, record)
    if grid := method_grid(folder, only=(BASE, args.method)):
        write_png(args.card / lora_folder.EVALUATION_GRID_FILE, grid)
    write_model_card(args.card)
    logger.info("The page %s has the numbers; push it with the command that trained it", args.card / "README.md")


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    set_up_logging()
    {"generate": generate, "score": score, "report": report}[args.stage](args)


if __name__ == "__main__":
    run_main(main, memory_advice="A smaller --batch_size needs less, and in drawing --mixed_precision bf16.")

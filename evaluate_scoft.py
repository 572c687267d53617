#!/usr/bin/env python
"""Evaluate LoRAs as the paper's section 6 does: pictures, then numbers with intervals, then tables and figures.

    accelerate launch evaluate_scoft.py generate eval --dataset ccub --culture korea --lora m=out/m mpc=scoft-korea
    python evaluate_scoft.py score eval --dataset ccub --culture korea --encoder inception=FILE
    python evaluate_scoft.py report eval

Three stages over files, each of which goes on where it stopped: `generate` writes pictures and `manifest.jsonl`,
`score` `results.json`, `report` `report.md` and figures.  Several folders, one a culture, make one report.

Differs from the paper: its prompt lists are not public, so prompts/ has ours, in its phrasing.
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
import shutil
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import scoft_data
import scoft_hub
import scoft_losses
import scoft_metrics
from scoft.errors import DataError
from scoft.files import Ledger, cached_tensors, content_key, model_key, write_atomically
from scoft.images import as_rgb, open_image
from scoft.launch import Parser
from scoft_data import culture_words
from scoft_hub import LORA_FILE, RECORD_FILE
from scoft_metrics import Estimate


logger = logging.getLogger("scoft")

HERE = Path(__file__).resolve().parent
BASE = "base"  # the name of the base model among the methods
DEFAULT_BASE = "CompVis/stable-diffusion-v1-4"
# What pictures are made from: the prompts of a file, captions of the dataset's splits, prompts without any culture.
SETS = ("prompts", "train", "test", "general")
BLOCK = 256  # pictures embedded between two writes
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
    scale: float = 1.0


PRDC = ("precision", "recall", "density", "coverage")  # computed together
METRICS = {
    "kid": Metric(("prompts",), "KID x 10^3 to the culture's photographs", "less", 1000.0),
    "kid_general": Metric(("prompts",), "KID x 10^3 to general photographs", "less", 1000.0),
    "clip_score": Metric(("prompts", "test", "general"), "CLIP score, 2.5 cosine", "more"),
    "clip_cosine": Metric(("prompts", "test", "general"), "cosine of picture and prompt", "more"),
    "clip_i": Metric(("train",), "CLIP-I to training photographs of the caption", "less"),
    "dino": Metric(("train",), "DINO to training photographs of the caption", "less"),
    "dreamsim": Metric(("train",), "DreamSim similarity to training photographs of the caption", "less"),
    "div": Metric(("prompts", "train", "test"), "DIV, distance of pictures of a prompt", "more"),
    "precision": Metric(("prompts",), "precision", "more"),
    "recall": Metric(("prompts",), "recall", "more"),
    "density": Metric(("prompts",), "density", "more"),
    "coverage": Metric(("prompts",), "coverage", "more"),
    "vendi": Metric(("prompts", "general"), "Vendi score", "more"),
    "nearest": Metric(("prompts", "train"), "similarity to the nearest training photograph", "less"),
    "judge": Metric(("prompts",), "the judge's rates", ""),
}


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__.partition("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("folder", type=Path, help="what the stages hand over to each other; one folder a culture")
    data.add_argument("--dataset", required=True, help="as train_scoft_lora.py takes it")
    data.add_argument("--culture", required=True)
    data.add_argument("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    data.add_argument("--image_column", default="image")
    data.add_argument("--caption_column", default="text")
    data.add_argument("--cache_dir", help="where downloaded models and datasets are kept")
    data.add_argument("--batch_size", type=int, default=8)

    generate = stages.add_parser("generate", parents=[data], help="pictures of every method")
    generate.add_argument(
        "--lora",
        nargs="+",
        default=[],
        metavar="NAME=PLACE",
        help="methods beside the base model: folder or Hub id of each one's LoRA",
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
        "--prompts", type=Path, help="a prompt a line, {} in it the culture; default: prompts/<culture>.txt"
    )
    generate.add_argument("--general_prompts", type=Path, default=HERE / "prompts/general.txt")
    generate.add_argument("--sets", nargs="+", default=SETS, choices=SETS, help="what to make pictures from")
    generate.add_argument("--num_captions", type=int, default=10, help="of the sets train and test, drawn with seed 0")
    generate.add_argument(
        "--num_images", type=int, default=20, help="per prompt, each of its own noise, which all methods share"
    )
    generate.add_argument("--num_inference_steps", type=int, default=30)
    generate.add_argument("--guidance_scale", type=float, default=4.5)
    generate.add_argument("--resolution", type=int, default=512)
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
        default=[],
        metavar="NAME=PLACE",
        help="Hub id, folder or file in place of an encoder's own: " + ", ".join(ENCODERS),
    )
    score.add_argument("--dreamsim_type", default="ensemble", choices=scoft_losses.DREAMSIM_TYPES)
    score.add_argument("--question", default=scoft_metrics.QUESTIONS[0], choices=scoft_metrics.QUESTIONS)
    score.add_argument("--neighbours", type=int, default=5, help="k of precision, recall, density and coverage")
    score.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")

    report = stages.add_parser("report", help="tables and figures of the numbers")
    report.add_argument("folders", nargs="+", type=Path, help="scored folders, one a culture")
    report.add_argument("--output", type=Path, help="default: the first folder")
    report.add_argument("--card", type=Path, help="LoRA folder whose page gets the numbers of --method")
    report.add_argument("--method", help="NAME of the LoRA that --card is of")

    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """Find all that can be said against the arguments alone; ends in `parser.error`, which exits."""
    if args.stage == "report":
        if (args.card is None) != (args.method is None):
            parser.error("--card and --method belong together: a LoRA folder, and which method of the scores it is")
        return
    for flag in ("num_captions", "num_images", "num_inference_steps", "batch_size", "neighbours"):
        if getattr(args, flag, 1) < 1:
            parser.error(f"--{flag} is at least 1, got {getattr(args, flag)}")
    if args.stage == "generate":
        for word in args.lora:
            if not re.fullmatch(r"[\w-]+=.+", word) or word.startswith(f"{BASE}="):
                parser.error(f"--lora takes NAME=PLACE, NAME of letters, digits, - and _ and not {BASE}; got {word!r}")
        if repeated := {
            word.partition("=")[0]
            for word in args.lora
            if sum(word.partition("=")[0] == other.partition("=")[0] for other in args.lora) > 1
        }:
            parser.error(f"--lora: {min(repeated)} is given twice")
        if args.resolution < 8 or args.resolution % 8:
            parser.error(f"--resolution is a multiple of 8, got {args.resolution}")
    if args.stage == "score":
        for word in args.encoder:
            if word.partition("=")[0] not in ENCODERS or not word.partition("=")[2]:
                parser.error(f"--encoder takes NAME=PLACE with NAME of {', '.join(ENCODERS)}; got {word!r}")
        needed = {"kid_general": "general_reference", "judge": "judge"}
        for metric, flag in needed.items():
            if args.metrics and metric in args.metrics and getattr(args, flag) is None:
                parser.error(f"--metrics {metric} needs --{flag}")


# ---------------------------------------------------------------------------------------------------------------------
# Generate
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A row of `manifest.jsonl`: a picture, and all that decides it."""

    culture: str
    method: str
    set: str
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


def read_manifest(folder: Path) -> list[Picture]:
    """The pictures of a folder; of a file drawn again the last row holds. Raises DataError without any."""
    rows = last_rows(folder)
    fields = {field.name for field in dataclasses.fields(Picture)}
    pictures = [Picture(**{name: row[name] for name in fields}) for row in rows.values()]
    if not pictures:
        raise DataError(f"{folder} has no manifest.jsonl of pictures; make them with: evaluate_scoft.py generate")
    return pictures


def last_rows(folder: Path) -> dict[str, dict]:
    """File -> the row that was written last for it."""
    return {row["file"]: row for row in Ledger(folder / "manifest.jsonl").read().values()}


def read_prompts(file: Path, culture: str) -> list[str]:
    """The lines of a file of prompts but for blank ones and comments, {} in them replaced by the culture."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {file} cannot be read ({error}); give a file with a prompt a line.") from error
    prompts = [line.strip().replace("{}", culture_words(culture)) for line in lines]
    prompts = [prompt for prompt in prompts if prompt and not prompt.startswith("#")]
    if len(set(prompts)) < len(prompts) or not prompts:
        raise DataError(f"--prompts {file}: got {len(prompts)} prompts, {len(set(prompts))} different ones.")
    return prompts


def read_rows(args: argparse.Namespace, split: str) -> scoft_data.CulturalDataset:
    return scoft_data.read_dataset(
        scoft_data.find_dataset(args.dataset, culture=args.culture),
        culture=args.culture,
        split=split,
        needs_blip=False,
        needs_negatives=False,
        image_column=args.image_column,
        caption_column=args.caption_column,
        cache_dir=args.cache_dir,
        revision=args.dataset_revision,
    )


def prompts_of_sets(args: argparse.Namespace) -> dict[str, list[tuple[str, str | None]]]:
    """For each set of --sets its prompts, each with the photograph that it is a caption of."""
    found = {}
    for name in args.sets:
        if name in ("train", "test"):
            rows = read_rows(args, name)
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
            file = args.general_prompts if name == "general" else args.prompts or HERE / f"prompts/{args.culture}.txt"
            found[name] = [(prompt, None) for prompt in read_prompts(file, args.culture)]
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
    """The weights of a LoRA folder, or of a Hub repository. Raises DataError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError

    try:
        if Path(place).is_dir():
            file = Path(place, LORA_FILE)
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
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from tqdm.auto import tqdm

    waiting = InitProcessGroupKwargs(timeout=timedelta(days=7))  # for a process that has more to draw
    accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[waiting])
    precision = accelerator.mixed_precision
    prompts = prompts_of_sets(args)
    places = {BASE: None} | lora_places(args.lora, checkpoints=args.checkpoints)
    files = {place: lora_file(place, cache_dir=args.cache_dir) for place in places.values() if place}
    hashes = {place: hashlib.sha256(file.read_bytes()).hexdigest() for place, file in files.items()}
    base = base_of(args, files)
    commit = scoft_hub.base_commit(base, revision=args.revision, cache_dir=args.cache_dir)
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
            resolution=args.resolution,
            precision=precision,
        )
        for method, place in places.items()
        for name, chosen in prompts.items()
        for index, (prompt, photograph) in enumerate(chosen)
        for number in range(args.num_images)
    ]
    args.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(args.folder / "manifest.jsonl")
    missing = not_there(args.folder, wanted)
    accelerator.wait_for_everyone()  # all share out the same work, before any adds to what is there
    logger.info("%d of %d pictures are there", len(wanted) - len(missing), len(wanted))
    if missing:
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
        pipeline = StableDiffusionPipeline.from_pretrained(
            base,
            revision=commit,
            variant=args.variant,
            cache_dir=args.cache_dir,
            dtype=dtype,
            use_safetensors=True,
        ).to(accelerator.device)
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
        pipeline.set_progress_bar_config(disable=True)
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        by_method = [list(same) for _, same in itertools.groupby(mine, key=lambda picture: picture.method)]
        batches = [each for same in by_method for each in blocks(same, args.batch_size)]
        loaded = BASE
        for batch in tqdm(batches, "Drawing", disable=not accelerator.is_local_main_process):
            if batch[0].method != loaded:
                loaded = batch[0].method
                pipeline.unload_lora_weights()
                if batch[0].lora:
                    file = files[batch[0].lora]
                    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
            draw(pipeline, batch, folder=args.folder, ledger=ledger)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if lacking := not_there(args.folder, wanted):
            raise DataError(
                f"{len(lacking)} pictures were not drawn, {lacking[0].file} the first; run the same again."
            )
        tidy_manifest(args.folder, wanted)
    accelerator.end_training()


def base_of(args: argparse.Namespace, files: dict[str, Path]) -> str:
    """The base model: --pretrained_model_name_or_path, or what the LoRAs were trained on, as their records say.

    Raises DataError where a record names another: a LoRA of another model loads without a word, and draws nonsense.
    """
    bases = {}
    for place, file in files.items():
        record = next(
            (f for f in (file.with_name(RECORD_FILE), file.parent.with_name(RECORD_FILE)) if f.is_file()), None
        )
        if record:
            bases[place] = json.loads(record.read_text(encoding="utf-8"))["resolved"]["base_model"]
    asked = args.pretrained_model_name_or_path or next(iter(bases.values()), DEFAULT_BASE)
    for place, base in bases.items():
        if base != asked and Path(base).name != Path(asked).name:
            raise DataError(f"--lora {place} was trained on {base}, not on {asked}; evaluate the two apart.")
    return asked


def not_there(folder: Path, wanted: Sequence[Picture]) -> list[Picture]:
    """The pictures that are still to be drawn: without a file, or whose file's last row is another's."""
    rows = last_rows(folder)
    return [
        each for each in wanted if rows.get(each.file, {}).get("key") != each.key or not (folder / each.file).is_file()
    ]


def tidy_manifest(folder: Path, wanted: Sequence[Picture]):
    """Leave in the manifest, in order, what was wanted, and what was drawn before of other methods or sets."""
    place = {each.file: i for i, each in enumerate(wanted)}
    renewed = {(each.method.partition("@")[0], each.set) for each in wanted}
    rows = [
        row
        for row in last_rows(folder).values()
        if row["file"] in place or (row["method"].partition("@")[0], row["set"]) not in renewed
    ]
    rows.sort(key=lambda row: place.get(row["file"], -1))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomically(folder / "manifest.jsonl", "".join(lines))


def draw(pipeline, batch: Sequence[Picture], *, folder: Path, ledger: Ledger):
    """Draw the pictures of one method and write each with its row."""
    drawn = pipeline(
        [picture.prompt for picture in batch],
        generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
        num_inference_steps=batch[0].steps,
        guidance_scale=batch[0].guidance,
        height=batch[0].resolution,
        width=batch[0].resolution,
    )
    for picture, image in zip(batch, drawn.images, strict=True):
        file = folder / picture.file
        file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        image.save(content, "PNG")
        write_atomically(file, content.getvalue())
        row = dataclasses.asdict(dataclasses.replace(picture, blank=is_blank(image)))
        ledger.add(picture.key, file=picture.file, seed=picture.seed, **row)


def is_blank(image: Image.Image) -> bool:
    """Whether a picture is of one colour: the safety checker's black, or a decoder's overflow."""
    return all(low == high for low, high in image.convert("RGB").getextrema())


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
        digest = hashlib.sha256(type(self).__name__.encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        self.sha256 = digest.hexdigest()

    def __call__(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.device)
        return self.features(inputs["pixel_values"])


class Pretrained(Encoder):
    """A model of transformers behind its own processor."""

    def __init__(self, place: str, *, device: str, cache_dir: str | None, dreamsim_type: str):
        from transformers import AutoModel, AutoProcessor

        model = AutoModel.from_pretrained(place, dtype=torch.float32, use_safetensors=True, cache_dir=cache_dir)
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

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


class DinoV2(Vit):
    """The CLS token of DINOv2."""

    default = "facebook/dinov2-base"


class DreamSim(Encoder):
    """DreamSim's embedding, by the dreamsim package; its place is the package's cache folder."""

    default = None

    def __init__(self, place: str | None, *, device: str, cache_dir: str | None, dreamsim_type: str):
        distance = scoft_losses.load_distance(
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

    Nothing is downloaded: clean-fid and torch-fidelity fetch it unverified and unpickle it.  The file's pickle is read
    with weights_only first, so that torch-fidelity's own torch.load cannot run anything in it.
    """

    default = None

    def __init__(self, place: str | None, *, device: str, cache_dir: str | None, dreamsim_type: str):
        if place is None:
            raise OSError("its weights are never downloaded; give torch-fidelity's file: --encoder inception=FILE")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(f"{error}; pip install torch-fidelity") from error

        torch.load(place, map_location="cpu", weights_only=True)
        model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=place)
        super().__init__(place, model, None, device=device)

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
                raise DataError(
                    f"the encoder {name} cannot be loaded: {error}\nGive another with --encoder {name}=PLACE, or "
                    "leave out what needs it: --metrics, --features, --diversity_features"
                ) from error
        return self.encoders[name]

    def of(self, name: str, sources: Sequence[Source]) -> np.ndarray:
        """(n, D) float64 of the pictures."""
        from tqdm.auto import tqdm

        encoder, found = self.encoder(name), []
        for block in tqdm(list(blocks(sources, BLOCK)), f"Features: {name}", leave=False):
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


def generated(folder: Path, pictures: Sequence[Picture]) -> list[Source]:
    """The pictures' files. Raises DataError where one is missing, or is not of the size of the others."""
    sources, sizes = [], defaultdict(list)
    for picture in pictures:
        file = folder / picture.file
        try:
            content = file.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                sizes[image.size].append(picture.file)
                image.verify()
        except (OSError, SyntaxError) as error:  # Pillow's words for a torn PNG
            raise DataError(f"{file} of the manifest cannot be read ({error}); run generate again.") from error
        sources.append(Source(hashlib.sha256(content).hexdigest(), functools.partial(open_rgb, file)))
    if len(sizes) > 1:
        shown = ", ".join(f"{width} x {height} ({files[0]})" for (width, height), files in sizes.items())
        raise DataError(f"{folder}: pictures of different sizes cannot be compared: {shown}. Run generate again.")
    return sources


def open_rgb(file: Path) -> Image.Image:
    return as_rgb(Image.open(file))


def photographs(rows: scoft_data.CulturalDataset) -> list[Source]:
    return [Source(sha256, functools.partial(rows.image, i)) for i, sha256 in enumerate(rows.image_hashes)]


def photographs_in(folder: Path) -> list[Source]:
    """The pictures of a folder, in the order of their names."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    if len(files) < 2:
        raise DataError(f"--general_reference {folder}: got {len(files)} pictures, need at least 2.")
    return [
        Source(hashlib.sha256(file.read_bytes()).hexdigest(), functools.partial(open_image, file)) for file in files
    ]


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
    pictures = read_manifest(args.folder)
    by_set = seen(pictures)
    if args.culture != pictures[0].culture:
        raise DataError(f"--culture {args.culture}: the pictures of {args.folder} are of {pictures[0].culture}.")
    features = Features(args)
    judge = scoft_data.load_function(args.judge, flag="--judge") if args.judge else None
    chosen = args.metrics or [
        name
        for name in METRICS
        if not (name == "kid_general" and args.general_reference is None or name == "judge" and judge is None)
    ]
    available = {name for name, _ in by_set}
    for metric in chosen:
        if not available & set(METRICS[metric].sets):
            raise DataError(
                f"--metrics {metric} is of the set {' or '.join(METRICS[metric].sets)}, but {args.folder} has "
                f"pictures of {', '.join(sorted(available))} alone; generate them, or leave the metric out."
            )
    references = References(args, features, chosen)
    estimates: dict[tuple[str, str, str], Estimate] = {}
    for (name, method), shown in by_set.items():
        logger.info("%s: %d pictures of the set %s", method, len(shown), name)
        wanted = [metric for metric in chosen if name in METRICS[metric].sets]
        for metric, estimate in scores(args, shown, wanted, features, references, judge):
            estimates[metric, name, method] = estimate
    write_results(args, pictures, estimates, features)


class References:
    """Photographs that pictures are compared with, and what is computed of them once, for all methods."""

    def __init__(self, args: argparse.Namespace, features: Features, metrics: Sequence[str]):
        self.features, self.args = features, args
        self.test = self.kid = self.general = self.train = None
        if {"kid", *PRDC} & set(metrics):
            rows = read_rows(args, "test")
            self.test = features.of(args.features, photographs(rows))
            self.draw = scoft_metrics.photograph_draw(args.culture, len(rows))
            self.kid = scoft_metrics.kid_reference(self.test, photographs=self.draw)
        if "kid_general" in metrics:
            sources = photographs_in(args.general_reference)
            draw = scoft_metrics.photograph_draw("general", len(sources))
            self.general = scoft_metrics.kid_reference(features.of(args.features, sources), photographs=draw)
        if {"clip_i", "dino", "dreamsim", "nearest"} & set(metrics):
            self.train = photographs(read_rows(args, "train"))

    def of_captions(self, encoder: str, shown: Sequence[Picture]) -> tuple[np.ndarray, list[str]]:
        """Features of the photographs whose captions the pictures are made from, and those captions."""
        captions = {picture.photograph: picture.prompt for picture in shown}
        sources = [source for source in self.train if source.sha256 in captions]
        if len(sources) < len(captions):
            raise DataError(
                f"{len(captions) - len(sources)} of {len(captions)} photographs whose captions were drawn are not in "
                f"--dataset {self.args.dataset}; give the one that the pictures were generated with."
            )
        return self.features.of(encoder, sources), [captions[source.sha256] for source in sources]


def scores(
    args: argparse.Namespace,
    shown: Sequence[Picture],
    wanted: Sequence[str],
    features: Features,
    references: References,
    judge: Callable | None,
) -> Iterator[tuple[str, Estimate]]:
    """The `wanted` metrics of the pictures of one method and set. Raises DataError where one is impossible."""
    prompts = [picture.prompt for picture in shown]
    sources = generated(args.folder, shown)
    try:
        # A sentence that is asked with each culture's name is one prompt; a caption is its culture's own.
        labels = [picture.index if picture.photograph is None else picture.prompt for picture in shown]
        draws = scoft_metrics.picture_draws(labels, [picture.number for picture in shown], question=args.question)
        if shown[0].photograph is not None:
            own = f"captions of {args.culture}"
            draws = [draw._replace(name=own) if draw.name == "prompts" else draw for draw in draws]

        def of(statistic: Callable[[np.ndarray], float]) -> Estimate:
            return scoft_metrics.estimate(statistic, draws)

        for metric in wanted:
            if metric in ("kid", "kid_general"):
                reference = references.kid if metric == "kid" else references.general
                yield metric, scoft_metrics.kid_estimate(features.of(args.features, sources), reference, draws)
            elif metric in ("clip_score", "clip_cosine"):
                each = {"clip_score": scoft_metrics.clip_scores, "clip_cosine": scoft_metrics.cosines}[metric]
                values = each(features.of("clip", sources), features.of_texts(prompts))
                yield metric, of(lambda kept, values=values: values[kept].mean())
            elif metric in ("clip_i", "dino", "dreamsim"):
                encoder = "clip" if metric == "clip_i" else metric
                x, labels = features.of(encoder, sources), np.array(prompts)
                y, captions = references.of_captions(encoder, shown)
                yield (
                    metric,
                    of(
                        lambda kept, x=x, y=y, labels=labels, captions=captions: scoft_metrics.training_similarity(
                            x[kept], labels[kept], y, captions
                        )
                    ),
                )
            elif metric == "div":
                x, labels = features.of(args.diversity_features, sources), np.array(prompts)
                yield metric, of(lambda kept, x=x, labels=labels: scoft_metrics.diversity(x[kept], labels[kept]))
            elif metric == "vendi":
                x = features.of(args.diversity_features, sources)
                yield metric, of(lambda kept, x=x: scoft_metrics.vendi_score(x[kept]))
            elif metric == "nearest":
                y = features.of(args.diversity_features, references.train)
                index, similarity = scoft_metrics.nearest_photographs(features.of(args.diversity_features, sources), y)
                closest = np.argsort(-similarity, kind="stable")[:NEAREST_SHOWN]
                pairs = [(sources[i].open(), references.train[index[i]].open(), similarity[i]) for i in closest]
                nearest_sheet(pairs).save(args.folder / f"nearest-{shown[0].set}-{shown[0].method}.png")
                yield metric, of(lambda kept, similarity=similarity: similarity[kept].mean())
            elif metric == "judge":
                yield from judged(judge, shown, sources, draws)
        if prdc := set(PRDC) & set(wanted):
            found = scoft_metrics.prdc_estimates(
                features.of(args.features, sources),
                references.test,
                draws,
                photographs=references.draw,
                k=args.neighbours,
            )
            yield from ((metric, estimate) for metric, estimate in found.items() if metric in prdc)
    except ValueError as error:
        raise DataError(f"{shown[0].method}, set {shown[0].set}: {error}") from error


def nearest_sheet(pairs: Sequence[tuple[Image.Image, Image.Image, float]], *, side: int = 128) -> Image.Image:
    """Pictures above the training photographs that they are most like, with the cosine: is anything repeated?"""
    margin, line = 8, 20
    sheet = Image.new("RGB", (margin + len(pairs) * (side + margin), 3 * margin + 2 * side + line), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, photograph, similarity) in enumerate(pairs):
        left = margin + i * (side + margin)
        sheet.paste(ImageOps.pad(picture, (side, side), color="white"), (left, margin))
        sheet.paste(ImageOps.pad(photograph, (side, side), color="white"), (left, 2 * margin + side))
        pen.text((left, 3 * margin + 2 * side - 4), f"{similarity:.3f}", "black", ImageFont.load_default(size=14))
    return sheet


def judged(
    judge: Callable, shown: Sequence[Picture], sources: Sequence[Source], draws
) -> Iterator[tuple[str, Estimate]]:
    """Rates of what a judge says of each picture alone; the numbers it gives for one picture are 0 or 1."""
    verdicts = defaultdict(list)
    for picture, source in zip(shown, sources):
        said = judge([source.open()], [picture.prompt])
        for name, value in said.items():
            if not re.search(r"_(low|high)$", name):
                verdicts[name].append(value)
    for name, values in verdicts.items():
        yield f"judge/{name}", scoft_metrics.rate(np.array(values, float), draws)


def write_results(
    args: argparse.Namespace,
    pictures: Sequence[Picture],
    estimates: dict[tuple[str, str, str], Estimate],
    features: Features,
):
    """results.json: scores and differences, one a row, in the metrics' own units (KID not yet x 10^3), and beside them
    all that they depend on: settings and LoRAs of the pictures, encoders by the sha256 of their weights.
    """
    counts = defaultdict(lambda: {"pictures": 0, "blank": 0})
    for picture in pictures:
        counts[f"{picture.method}/{picture.set}"]["pictures"] += 1
        counts[f"{picture.method}/{picture.set}"]["blank"] += picture.blank
    methods = list(dict.fromkeys(method for _, _, method in estimates))
    compared = [method for method in methods if "@" not in method]
    differences = [
        {"metric": metric, "set": name, "method": method, "to": other}
        | as_json(paired(estimate, estimates[metric, name, other], what=f"{metric}, {method} - {other}"))
        for (metric, name, method), estimate in estimates.items()
        for other in compared[: compared.index(method) if method in compared else 0]
    ]
    record = {
        "culture": args.culture,
        "question": args.question,
        "confidence": scoft_metrics.CONFIDENCE,
        "features": args.features,
        "diversity_features": args.diversity_features,
        "neighbours": args.neighbours,
        "settings": {name: getattr(pictures[0], name) for name in SETTINGS if name != "culture"},
        "loras": {picture.method: picture.lora_sha256 for picture in pictures},
        "encoders": {
            name: {"place": scoft_hub.without_places(each.place), "sha256": each.sha256}
            for name, each in features.encoders.items()
        },
        "counts": counts,
        "scores": [
            {"metric": metric, "set": name, "method": method} | as_json(estimate, replicates=True)
            for (metric, name, method), estimate in estimates.items()
        ],
        "differences": differences,
    }
    write_atomically(args.folder / "results.json", json.dumps(record, indent=1) + "\n")
    logger.info(
        "%d numbers and %d differences are in %s", len(estimates), len(differences), args.folder / "results.json"
    )


def paired(a: Estimate, b: Estimate, *, what: str) -> Estimate:
    """The difference of two methods. Raises DataError where blank pictures left them no prompt or seed in common."""
    try:
        return scoft_metrics.difference(a, b)
    except ValueError as error:
        raise DataError(f"{what}: {error}") from error


def as_json(estimate: Estimate, *, replicates: bool = False) -> dict:
    found = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    if replicates:  # as pairs, since a JSON object's names are text
        found["replicates"] = {draw: list(map(list, each.items())) for draw, each in estimate.replicates.items()}
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """A `results.json`: of one culture, the estimates by (metric, set, method)."""

    folder: Path
    record: dict
    estimates: dict[tuple[str, str, str], Estimate]

    @property
    def culture(self) -> str:
        return self.record["culture"]


def read_results(folder: Path) -> Results:
    """Raises DataError where the folder was not scored."""
    try:
        record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} has no results.json ({error}); make it with: evaluate_scoft.py score") from error
    estimates = {
        (row["metric"], row["set"], row["method"]): Estimate(
            row["value"],
            row["low"],
            row["high"],
            row["n"],
            {draw: dict(map(tuple, pairs)) for draw, pairs in row["replicates"].items()},
        )
        for row in record["scores"]
    }
    return Results(folder, record, estimates)


def paper_table_1() -> dict[tuple[str, str], Estimate]:
    """(metric, method) -> the paper's Table 1, which is the unweighted mean over cultures of its Table 4."""
    found = {}
    for method, metrics in PAPER_TABLE_4.items():
        for metric, values in metrics.items():
            printed = {culture: Estimate(v, v, v, 0) for culture, v in zip(PAPER_CULTURES, values, strict=True)}
            found[metric, method] = scoft_metrics.mean_over_cultures(printed)
    return found


def shown(estimate: Estimate, metric: str) -> str:
    """'0.61 [0.48, 0.72]', in the metric's unit; '0.61' of what was printed without an interval."""
    scale = METRICS[metric.partition("/")[0]].scale
    values = [estimate.value * scale, estimate.low * scale, estimate.high * scale]
    interval = values if estimate.low < estimate.high else values[:1]
    return scoft_hub.with_interval(interval, 3 if scale == 1 else 2)


def title(metric: str) -> str:
    """A metric's heading; a judge's are its own words."""
    return f"judge: {metric.removeprefix('judge/')}" if metric.startswith("judge/") else METRICS[metric].title


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(scoft_hub.markdown_text(cell) for cell in row) + " |" for row in cells]


def metrics_table(
    estimates: dict[tuple[str, str, str], Estimate], columns: Sequence[tuple[str, str]], methods: Sequence[str]
) -> list[str]:
    """Methods as rows, (metric, set) as columns; columns without any number are left out."""
    columns = [column for column in columns if any((*column, method) in estimates for method in methods)]
    sets = {"prompts": "", "train": ", train captions", "test": ", test captions", "general": ", general prompts"}
    rows = [
        [method, *(shown(estimates[m, s, method], m) if (m, s, method) in estimates else "" for m, s in columns)]
        for method in methods
    ]
    return table(["method", *(title(m) + sets[s] for m, s in columns)], rows) if columns else []


def report(args: argparse.Namespace):
    """Write report.md and its figures."""
    results = [read_results(folder) for folder in args.folders]
    check_comparable(results)
    output = args.output or args.folders[0]
    output.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for each in results for key in each.estimates))
    methods = list(dict.fromkeys(method for _, _, method in keys if "@" not in method))
    judge = list(dict.fromkeys((m, s) for m, s, _ in keys if m.startswith("judge/")))
    first = [("kid", "prompts"), ("kid_general", "prompts"), ("clip_score", "prompts"), *judge]
    second = [("clip_i", "train"), ("dino", "train"), ("dreamsim", "train"), ("div", "train"), ("div", "test"),
              ("clip_score", "test")]  # fmt: skip
    third = list(dict.fromkeys((m, s) for m, s, _ in keys if (m, s) not in first + second))
    try:
        mean = {
            key: scoft_metrics.mean_over_cultures({each.culture: each.estimates[key] for each in results})
            for key in keys
        }
    except ValueError as error:
        raise DataError(
            f"{' and '.join(map(str, args.folders))} have no mean: {error} Make both with the same flags."
        ) from error
    lines = [
        "# Evaluation",
        "",
        f"Numbers with {results[0].record['confidence']:.0%} intervals over {results[0].record['question']}"
        f"{', means over cultures' if len(results) > 1 else ''}: "
        + ", ".join(culture_words(each.culture) for each in results) + ".",
        "KID, precision, recall, density and coverage are of the features of {features}; DIV, Vendi score and nearest "
        "photographs of those of {diversity_features}.".format(**results[0].record),
    ]  # fmt: skip
    for name, columns in (
        ("The culture (as the paper's Table 1)", first),
        ("Memorization and diversity (as Table 2)", second),
        ("Beyond the paper", third),
    ):
        if rows := metrics_table(mean, columns, methods):
            lines += ["", f"## {name}", "", *rows]
    if len(results) > 1:
        lines += ["", "## Each culture (as Table 4)"]
        for each in results:
            lines += ["", f"### {culture_words(each.culture)}", "", *metrics_table(each.estimates, first, methods)]
    if len(methods) > 1:
        lines += ["", "## Differences of methods", "", *differences_table(results, mean, methods)]
    lines += ["", "## The paper's Table 1", "", *paper_rows()]
    for name, figure in figures(results, output):
        lines += ["", f"![{name}]({figure})"]
    lines += stopping(results)
    lines += ["", "## How it was measured", "", *provenance(results)]
    write_atomically(output / "report.md", "\n".join(lines) + "\n")
    logger.info("The report is %s", output / "report.md")
    if args.card:
        fill_card(args, results)


def check_comparable(results: Sequence[Results]):
    """Raise DataError unless the folders are of different cultures and were drawn and scored alike."""
    first = results[0]
    for each in results[1:]:
        if each.culture in {other.culture for other in results if other is not each}:
            raise DataError(f"{each.folder} is not the only folder of {each.culture}; give one for each culture.")
        if different := each.estimates.keys() ^ first.estimates.keys():
            metric, name, method = min(different)
            raise DataError(
                f"{first.folder} or {each.folder} has no {metric} of {method} (set {name}), but the other has; "
                "generate and score both with the same flags."
            )
        for fact in ("question", "confidence", "features", "diversity_features", "neighbours", "encoders", "settings"):
            if each.record[fact] != first.record[fact]:
                raise DataError(
                    f"{each.folder} and {first.folder} have no mean: {fact} {each.record[fact]} in one, "
                    f"{first.record[fact]} in the other."
                )


def differences_table(
    results: Sequence[Results], mean: dict[tuple[str, str, str], Estimate], methods: Sequence[str]
) -> list[str]:
    """Paired differences of methods, of each culture and of the mean over them."""
    rows = []
    if len(results) > 1:
        for (metric, name, method), estimate in mean.items():
            for other in methods[: methods.index(method) if method in methods else 0]:
                found = paired(estimate, mean[metric, name, other], what=f"{metric}, {method} - {other}")
                clear = "" if includes_zero(found) else "yes"
                of = f"{title(metric)} ({name})"
                rows.append(["mean", of, f"{method} - {other}", shown(found, metric), clear])
    for each in results:
        for row in each.record["differences"]:
            found = Estimate(row["value"], row["low"], row["high"], row["n"])
            clear = "" if includes_zero(found) else "yes"
            name = f"{title(row['metric'])} ({row['set']})"
            methods = f"{row['method']} - {row['to']}"
            rows.append([culture_words(each.culture), name, methods, shown(found, row["metric"]), clear])
    return table(["culture", "metric", "methods", "difference", "interval without 0"], rows)


def paper_rows() -> list[str]:
    printed = paper_table_1()
    metrics = ("kid", "kid_general", "clip_score")
    rows = [[method, *(f"{printed[metric, method].value:.3f}" for metric in metrics)] for method in PAPER_TABLE_4]
    return table(["method", "KID x 10^3 to CCUB", "KID x 10^3 to MS COCO", "CLIP score"], rows)


def provenance(results: Sequence[Results]) -> list[str]:
    """Encoders by the hash of their weights, and pictures counted, blank ones apart."""
    rows = []
    for each in results:
        for name, encoder in each.record["encoders"].items():
            rows.append([culture_words(each.culture), f"encoder {name}", encoder["place"], encoder["sha256"][:16]])
        for name, count in each.record["counts"].items():
            rows.append(
                [culture_words(each.culture), f"pictures {name}", count["pictures"], f"{count['blank']} blank"]
            )
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
            better = "more" if metric == "judge/right" else METRICS[metric.partition("/")[0]].better
            if not better:
                continue
            step, best = (min if better == "less" else max)(points, key=lambda point: point[1].value)
            level = [
                other
                for other, estimate in points
                if other != step and includes_zero(paired(estimate, best, what=f"{metric}, {run}@{other}"))
            ]
            rows.append(
                [culture_words(each.culture), run, f"{title(metric)} ({name})", step, shown(best, metric),
                 ", ".join(map(str, level)) or "none"]
            )  # fmt: skip
    if not rows:
        return []
    heading = ["culture", "run", "metric", "best after updates", "there", "not told from it"]
    return ["", "## When to stop", "", *table(heading, rows)]


def includes_zero(estimate: Estimate) -> bool:
    return estimate.low <= 0 <= estimate.high


def figures(results: Sequence[Results], output: Path) -> Iterator[tuple[str, str]]:
    """Write the figures; yields what each shows, and its file's name."""
    for each in results:
        pictures = [picture for picture in read_manifest(each.folder) if picture.set == "prompts"]
        if pictures:
            name = f"pictures-{each.culture}.png"
            method_grid(each.folder, pictures).save(output / name)
            yield f"Methods as columns, prompts of {culture_words(each.culture)} as rows, at one seed", name
        for sheet in sorted(each.folder.glob("nearest-*.png")):
            name = f"{sheet.stem}-{each.culture}.png" if len(results) > 1 else sheet.name
            if (output / name).resolve() != sheet.resolve():
                shutil.copyfile(sheet, output / name)
            yield f"Pictures most like a training photograph: {sheet.stem}, {culture_words(each.culture)}", name
        by_metric = defaultdict(dict)
        for (run, metric, of), points in runs(each).items():
            start = each.estimates.get((metric, of, BASE))
            by_metric[metric, of][run] = [(0, start), *points] if start else points
        for (metric, of), lines in by_metric.items():
            name = f"updates-{each.culture}-{of}-{metric.replace('/', '-')}.png"
            curve(lines, metric, output / name)
            yield f"{title(metric)} by updates, {culture_words(each.culture)}", name


def method_grid(folder: Path, pictures: Sequence[Picture], *, side: int = 128, most_rows: int = 10) -> Image.Image:
    """Methods as columns, prompts as rows, the first picture that no method lacks (figures 1, 4 and 8)."""
    methods = list(dict.fromkeys(picture.method for picture in pictures if "@" not in picture.method))
    at = {(each.prompt, each.number, each.method): each for each in pictures if not each.blank}
    numbers = sorted({picture.number for picture in pictures})
    rows = []
    for prompt in list(dict.fromkeys(picture.prompt for picture in pictures))[:most_rows]:
        whole = [number for number in numbers if all((prompt, number, method) in at for method in methods)]
        if whole:
            rows.append((prompt, [at[prompt, whole[0], method] for method in methods]))
    margin, line, font = 8, 24, ImageFont.load_default(size=14)
    width = max(margin + len(methods) * (side + margin), 480)
    grid = Image.new("RGB", (width, line + len(rows) * (side + line + margin) + margin), "white")
    pen = ImageDraw.Draw(grid)
    for c, method in enumerate(methods):
        pen.text((margin + c * (side + margin), 4), method, "dimgray", font)
    for r, (prompt, row) in enumerate(rows):
        top = line + r * (side + line + margin)
        pen.text((margin, top), textwrap.shorten(prompt, width // 8, placeholder=" ..."), "black", font)
        for c, picture in enumerate(row):
            image = open_rgb(folder / picture.file).resize((side, side), Image.Resampling.LANCZOS)
            grid.paste(image, (margin + c * (side + margin), top + line))
    return grid


def curve(lines: dict[str, list[tuple[int, Estimate]]], metric: str, file: Path):
    """A metric against updates, a line a run, with the intervals as bands (figures 7 and 9)."""
    from matplotlib.figure import Figure

    scale = METRICS[metric.partition("/")[0]].scale
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for run, points in lines.items():
        steps = [step for step, _ in points]
        low, middle, high = ([scale * getattr(each, part) for _, each in points] for part in ("low", "value", "high"))
        axes.plot(steps, middle, marker="o", label=run)
        axes.fill_between(steps, low, high, alpha=0.2)
    axes.set(xlabel="updates", ylabel=title(metric))
    axes.legend()
    figure.savefig(file, dpi=110)


def fill_card(args: argparse.Namespace, results: Sequence[Results]):
    """Put the method's numbers, beside the base model's, onto the page of its LoRA folder.

    They are those of the folder whose pictures this very LoRA drew; DataError if there is none.
    """
    file = args.card / LORA_FILE
    if not file.is_file() or not (args.card / RECORD_FILE).is_file():
        raise DataError(
            f"--card {args.card} is no LoRA folder of train_scoft_lora.py: no {file.name}, or no {RECORD_FILE}."
        )
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    its_own = next((each for each in results if each.record["loras"].get(args.method) == sha256), None)
    if its_own is None:
        methods = ", ".join(
            method for method, lora in results[0].record["loras"].items() if lora and "@" not in method
        )
        raise DataError(
            f"--method {args.method} was not drawn by the LoRA in {args.card}; the LoRAs scored are "
            f"{methods or 'none'}. If it was trained anew, generate and score again."
        )
    rows = [
        {"metric": metric, "name": f"{title(metric)} ({name})", "method": method, "shown": shown(estimate, metric),
         "value": estimate.value * METRICS[metric.partition("/")[0]].scale}
        for (metric, name, method), estimate in its_own.estimates.items()
        if method in (BASE, args.method)
    ]  # fmt: skip
    facts = {name: its_own.record[name] for name in ("question", "confidence", "encoders")}
    record = {"method": args.method, **facts, "rows": rows}
    write_atomically(args.card / scoft_hub.EVALUATION_FILE, json.dumps(record, indent=1) + "\n")
    pictures = [each for each in read_manifest(its_own.folder) if each.set == "prompts"]
    pictures = [each for each in pictures if each.method in (BASE, args.method)]
    if pictures:
        (args.card / "images").mkdir(exist_ok=True)
        method_grid(its_own.folder, pictures).save(args.card / "images/evaluation.png")
    scoft_hub.write_model_card(args.card)
    logger.info("The page %s has the numbers; push it with the command that trained it", args.card / "README.md")


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    {"generate": generate, "score": score, "report": report}[args.stage](args)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")

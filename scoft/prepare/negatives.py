"""The stage negatives: what the base model makes of a photograph's depth and its naive captions."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scoft.launch import progress

import numpy as np
import torch
from PIL import Image, ImageOps

from scoft.base_model import load_controlnet_pipeline
from scoft.cultures import culture_words
from scoft.errors import DataError
from scoft.files import Ledger, checked_name, content_key, write_atomically
from scoft.prepare.photograph import Photograph, jpeg, kept, open_kept, png
from scoft.prepare.tables import MIDAS
from scoft.prepare.work import REMEDY, Run, check_model, public_name
from scoft.randomness import stable_generator
from scoft.weights import load_whole, loading, model_key, precision


logger = logging.getLogger(__name__)

LEDGER = "negatives.jsonl"
ATTEMPTS = 5  # at a negative that the safety checker leaves
MIDAS_FILE = "dpt_hybrid-midas-501f0c75.pt"  # in MIDAS
NEGATIVE_QUALITY = 90  # of its JPEG file


@dataclass(frozen=True)
class Drawn:
    """An entry of `negatives.jsonl`: the names of a photograph's negatives that the safety checker has left."""

    negatives: list[str]

    def __post_init__(self):
        for name in self.negatives:
            checked_name(name, what="a negative's name")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How negatives are drawn: with the photograph, the prompt and the number it decides every pixel.

    The models are named by `model_key`.
    """

    base_model: str
    controlnet: str
    depth_model: str
    resolution: int
    num_inference_steps: int
    guidance_scale: float
    precision: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """What is there of a photograph's negatives: their entry's key, prompts by name, and the files that came out."""

    key: str
    photograph: Photograph
    prompts: dict[str, str]
    files: list[Path]


@dataclass(frozen=True, kw_only=True)
class DrawNegatives:
    """The stage: negatives of each photograph of the train split."""

    pretrained_model_name_or_path: str  # the base model, like the next two by its Hub id or folder
    controlnet: str
    depth_model: str
    num_negatives: int  # of a photograph
    prompt_suffix: str  # {} in it stands for the culture
    resolution: int  # short side in pixels
    num_inference_steps: int
    guidance_scale: float
    seed: int

    def told(self, run: Run) -> dict[str, object]:
        """The settings of which the card tells."""
        return {
            "pretrained_model_name_or_path": public_name(self.pretrained_model_name_or_path),
            "controlnet": public_name(self.controlnet),
            "depth_model": public_name(self.depth_model),
            "num_negatives": self.num_negatives,
            "prompt_suffix": self.suffix(run.culture),
            "resolution": self.resolution,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }

    def suffix(self, culture: str) -> str:
        return self.prompt_suffix.replace("{}", culture_words(culture))

    def drawing(self, run: Run) -> Drawing:
        return Drawing(
            base_model=model_key(self.pretrained_model_name_or_path),
            controlnet=model_key(self.controlnet),
            depth_model=model_key(self.depth_model),
            resolution=self.resolution,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            precision=run.accelerator.mixed_precision,
            seed=self.seed,
        )

    def check(self, run: Run):
        """Raises DataError for a model that is none and a ledger that cannot be read."""
        if run.does("negatives"):
            there = {"cache_dir": run.cache_dir}
            check_model(
                self.pretrained_model_name_or_path,
                flag="--pretrained_model_name_or_path",
                kinds=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
                file="model_index.json",
                weights="unet/*.safetensors",
                **there,
            )
            check_model(self.controlnet, flag="--controlnet", kinds=("ControlNetModel",), **there)
            midas = {"file": MIDAS_FILE, "weights": MIDAS_FILE}
            depth = midas if is_midas(self.depth_model) else {"kinds": ("ForDepthEstimation",)}
            check_model(self.depth_model, flag="--depth_model", **depth, **there)
        read_drawn(run)

    def run(
        self, run: Run, photographs: Sequence[Photograph], captions: Mapping[str, Sequence[str]]
    ) -> list[Negatives]:
        """The negatives of each photograph that is to have some; without files where none was drawn.

        Raises DataError if a dataset is to be written of photographs some of which alone have been drawn.
        """
        trained = kept(photographs, split="train")
        wanted = self.wanted(run, trained, captions)
        if run.does("negatives"):
            if lacking := len(trained) - len(wanted):
                logger.warning("%d photographs have no naive caption under these settings, so no negatives.", lacking)
            self.draw(run, wanted)
            run.wait()
        drawn = read_drawn(run)
        if run.does("write") and drawn and (lacking := sum(key not in drawn for key in wanted)):
            raise DataError(
                f"{lacking} photographs have no negatives under these flags; repeat those or add --stages negatives."
            )
        names = {key: drawn[key].negatives if key in drawn else [] for key in wanted}
        return [
            Negatives(
                key=key,
                photograph=photograph,
                prompts=prompts,
                files=[run.folder / "negatives" / f"{name}.jpg" for name in names[key]],
            )
            for key, (photograph, prompts) in wanted.items()
        ]

    def wanted(
        self, run: Run, photographs: Sequence[Photograph], captions: Mapping[str, Sequence[str]]
    ) -> dict[str, tuple[Photograph, dict[str, str]]]:
        """The photographs that have captions, each with its prompts by name, under the key of its negatives' entry."""
        how = {"number": self.num_negatives, "suffix": self.suffix(run.culture), "drawing": self.drawing(run)}
        wanted = {}
        for photograph in photographs:
            if its_captions := captions.get(photograph.id):
                prompts = prompts_of_negatives(photograph, its_captions, **how)
                wanted[content_key(*prompts)] = (photograph, prompts)
        return wanted

    def draw(self, run: Run, wanted: dict[str, tuple]):
        """Draw the negatives of what is `wanted`, and write down which of them the safety checker has left."""
        folder, ledger, accelerator = run.folder, Ledger(run.folder / LEDGER), run.accelerator
        for name in ("depth", "negatives"):
            (folder / name).mkdir(exist_ok=True)
        mine = run.share(wanted, ledger)
        if mine:
            generate = NegativeGenerator(
                self, device=accelerator.device, dtype=precision(accelerator), cache_dir=run.cache_dir
            )
        for key, (photograph, prompts) in progress(mine, "Drawing negatives", disable=not run.is_main):
            depth, pictures = generate(open_kept(folder, photograph), prompts)
            write_atomically(folder / "depth" / f"{photograph.id}.png", png(depth.convert("L")))
            for name, picture in pictures.items():
                write_atomically(folder / "negatives" / f"{name}.jpg", jpeg(picture, quality=NEGATIVE_QUALITY))
            ledger.add(key, photograph=photograph.id, prompts=prompts, negatives=[n for n in prompts if n in pictures])


def read_drawn(run: Run) -> dict[str, Drawn]:
    return Ledger(run.folder / LEDGER).read_by_key(Drawn, remedy=REMEDY)


def is_midas(name_or_path: str) -> bool:
    return name_or_path == MIDAS or Path(name_or_path, MIDAS_FILE).is_file()


class DepthEstimator:
    """The depth of a photograph as a ControlNet takes it: RGB, black far to white near, over the full range."""

    unused = ("neck.fusion_stage.layers.0.residual_layer1.",)  # which a DPT never asks, and Intel/dpt-large lacks

    def __init__(self, name_or_path: str, *, device, cache_dir: str | None):
        self.processor = None
        with loading(name_or_path, flag="--depth_model", kind="MiDaS or a depth estimator of transformers"):
            if is_midas(name_or_path):
                from controlnet_aux import MidasDetector

                self.model = MidasDetector.from_pretrained(name_or_path, cache_dir=cache_dir).to(device)
            else:
                from transformers import AutoImageProcessor, AutoModelForDepthEstimation

                self.processor = AutoImageProcessor.from_pretrained(name_or_path, cache_dir=cache_dir)
                model = load_whole(AutoModelForDepthEstimation, name_or_path, unused=self.unused, cache_dir=cache_dir)
                self.model = model.float().to(device).eval().requires_grad_(False)

    def __call__(self, picture: Image.Image) -> Image.Image:
        if self.processor is None:
            depth = self.model(picture)
        else:
            inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
            depth = self.model(**inputs).predicted_depth[0].cpu().numpy()
            depth = (depth - depth.min()) / max(np.ptp(depth), 1e-6)
            depth = Image.fromarray((255 * depth).round().astype(np.uint8))
        return depth.resize(picture.size, Image.Resampling.BICUBIC).convert("RGB")


class EmbedOnce(torch.nn.Module):
    """The ControlNet's embedding of a depth map, which all denoising steps share: computed at the first of them."""

    def __init__(self, embedding: torch.nn.Module):
        super().__init__()
        self.embedding = embedding
        self.depth = self.embedded = None

    def forward(self, depth: torch.Tensor) -> torch.Tensor:
        if depth is not self.depth:
            self.depth, self.embedded = depth, self.embedding(depth)
        return self.embedded


class NegativeGenerator:
    """Generates the negatives of one photograph in one batch, so that what else is drawn changes nothing."""

    def __init__(self, draw: DrawNegatives, *, device, dtype, cache_dir: str | None):
        self.draw = draw
        self.depth = DepthEstimator(draw.depth_model, device=device, cache_dir=cache_dir)
        self.pipeline = load_controlnet_pipeline(
            draw.pretrained_model_name_or_path, controlnet=draw.controlnet, cache_dir=cache_dir
        )
        controlnet = self.pipeline.controlnet
        controlnet.controlnet_cond_embedding = EmbedOnce(controlnet.controlnet_cond_embedding)
        self.pipeline.to(device, dtype)
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, photograph: Image.Image, prompts: dict[str, str]) -> tuple[Image.Image, dict[str, Image.Image]]:
        """The depth, and a picture for each key of `prompts`, whose noise is the key's.

        What the safety checker blanks is drawn again from other noise; what it blanks ATTEMPTS times is missing.
        """
        width, height = size_of_negative(*photograph.size, short_side=self.draw.resolution)
        depth = ImageOps.fit(self.depth(photograph), (width, height), Image.Resampling.BICUBIC)
        pictures: dict[str, Image.Image] = {}
        for attempt in range(ATTEMPTS):
            keys = [key for key in prompts if key not in pictures]
            if not keys:
                break
            drawn = self.pipeline(
                [prompts[key] for key in keys],
                image=[depth] * len(keys),
                generator=[stable_generator(self.draw.seed, key, attempt) for key in keys],
                num_inference_steps=self.draw.num_inference_steps,
                guidance_scale=self.draw.guidance_scale,
                width=width,
                height=height,
            )
            blanked = drawn.nsfw_content_detected or [False] * len(keys)
            pictures |= {key: picture for key, picture, blank in zip(keys, drawn.images, blanked) if not blank}
        return depth, pictures


def size_of_negative(width: int, height: int, *, short_side: int) -> tuple[int, int]:
    """The photograph's aspect, at most 2 : 1, with `short_side`, in multiples of 8 as the VAE needs."""
    aspect = min(max(width / height, 0.5), 2.0)
    long_side = round(short_side * max(aspect, 1 / aspect) / 8) * 8
    return (long_side, short_side) if aspect >= 1 else (short_side, long_side)


def prompts_of_negatives(
    photograph: Photograph, captions: Sequence[str], *, number: int, suffix: str, drawing: Drawing
) -> dict[str, str]:
    """Key -> prompt of each negative: the naive captions in turn, each with the culture.

    A key is made of all that decides a negative. It is its seed and its file's name, so any one can be drawn again.
    """
    prompts = [f"{captions[k % len(captions)]} {suffix}".replace(" ,", ",").strip() for k in range(number)]
    return {content_key(photograph.sha256, prompt, k, drawing)[:32]: prompt for k, prompt in enumerate(prompts)}

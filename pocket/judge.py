"""The pocket world's judge: says which attributes a picture has, and so whether it shows a culture as it is.

    python -m pocket.judge                                               # how well it reads, on scenes nobody has seen
    train_scoft_lora.py ... --validation_judge pocket/judge.py:rate      # during training

A small network, trained on the truth of the world (every mixture of attributes) and on no dataset, reads category,
shape, palette, motif, era and condition of a 64 x 64 picture, and whether the picture is clear: one scene, sharp and
whole. What is not clear, or not read with confidence, is "unclear" and never right.

It also says how sure it is, as log-odds of right and of stereotype: their means move where the rates are still 0 or 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pocket import world
from scoft.cultures import CATEGORIES, culture_words
from scoft.errors import DataError
from scoft.weights import load_whole


MODELS = Path(__file__).resolve().parent / "models"
SIZE = 64  # pixels of a picture's side
# What is read, and its values. Sky and tiers say nothing about a culture.
HEADS: dict[str, tuple[str, ...]] = {
    "category": tuple(CATEGORIES),
    **{name: tuple(world.ATTRIBUTES[name]) for name in ("shape", "palette", "motif", "era", "condition")},
}
VERDICTS = ("right", "stereotype", "azurian", "other", "unclear")
SURE_OF = ("right", "stereotype")  # the verdicts that it says log-odds of
# Nats by which one head may speak for or against a verdict. No examination of some thousand scenes can tell whether it
# errs more rarely than once in e^10 = 22 000; and unbounded, the mean would belong to the few pictures at -50. All of
# them together are not bounded further: what is wrong in one attribute is to stay apart from what is wrong in four.
SUREST = 10.0
# Seeds of the scenes that the judge is trained on, calibrated on and reported on.
TRAINING_SEED, CALIBRATION_SEED, REPORT_SEED = 101, 102, 103


# ---------------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------------


class Judge(nn.Module):
    """A residual network with a linear head for each attribute, and one for clearness.

    The heads see the last map place by place, not pooled: a shape is known by where its outline runs.

    `least_clear` and `least_confidence` are the probabilities below which a picture is unclear: that of being clear,
    and that of the least certain attribute. Training ends with `calibrate`, which sets them.
    """

    def __init__(
        self, *, widths: Sequence[int] = (32, 48, 64, 72), least_clear: float = 0.5, least_confidence: float = 0.5
    ):
        super().__init__()
        self.widths = tuple(widths)
        self.least_clear, self.least_confidence = least_clear, least_confidence
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for before, width in zip((12, *widths), widths):
            layers += [_convolution(before, width, stride=1 if before == 12 else 2), _Residual(width)]
        layers += [_convolution(widths[-1], 24, kernel=1), nn.Flatten()]
        self.body = nn.Sequential(*layers)
        side = SIZE // 2 ** len(widths)
        self.heads = nn.Linear(24 * side**2, sum(map(len, HEADS.values())) + 1)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of pictures (B, 3, 64, 64) in [-1, 1]: (B, values) for each name of HEADS, and "clear" (B,)."""
        *logits, clear = self.heads(self.body(pictures)).split([*map(len, HEADS.values()), 1], dim=1)
        return dict(zip(HEADS, logits)) | {"clear": clear[:, 0]}

    def probabilities(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `logits`, but probabilities."""
        return probabilities_of(self.logits(pictures))

    @torch.inference_mode()
    def logits(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """As `forward`, on the CPU, for any number of pictures."""
        device = next(self.parameters()).device
        logits = [self(batch.to(device).contiguous(memory_format=torch.channels_last)) for batch in pictures.split(64)]
        return {name: torch.cat([part[name] for part in logits]).cpu() for name in logits[0]}

    def unclear(self, probabilities: dict[str, torch.Tensor]) -> torch.Tensor:
        """Which pictures (B,) of `probabilities` are unclear."""
        return (probabilities["clear"] < self.least_clear) | (confidence(probabilities) < self.least_confidence)

    def calibrate(self, pictures: torch.Tensor):
        """Set both thresholds to a half, or lower, so that each calls at most 0.5 % of `pictures` unclear.

        `pictures` (B, 3, 64, 64) in [-1, 1] are the VAE's reconstructions of scenes that training has not seen, those
        of CALIBRATION_SEED. So at most 1 % of such are unclear.
        """
        probabilities = self.probabilities(pictures)
        lowest = int(0.005 * len(pictures))
        self.least_clear = min(0.5, probabilities["clear"].sort().values[lowest].item())
        self.least_confidence = min(0.5, confidence(probabilities).sort().values[lowest].item())

    def save_pretrained(self, folder: str | Path):
        """Write `config.json` and `model.safetensors` (fp16) into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "widths": self.widths,
            "heads": HEADS,
            "least_clear": round(self.least_clear, 4),
            "least_confidence": round(self.least_confidence, 4),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        state = {name: part.half() if part.is_floating_point() else part for name, part in self.state_dict().items()}
        save_file({name: part.cpu().contiguous() for name, part in state.items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Judge:
        """The judge of `folder`, in float32. Raises DataError if a file is missing, torn or made for another world."""
        folder = Path(folder)
        remake = "`python -m pocket.train_models --models judge` remakes it."
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise DataError(f"The judge {folder} has no {name}; {remake}")
        config = json.loads((folder / "config.json").read_text())
        if config.pop("heads") != {name: list(values) for name, values in HEADS.items()}:
            raise DataError(f"{folder / 'config.json'} names other attributes than pocket/world.py; {remake}")
        judge = cls(**config)
        try:
            judge.load_state_dict(load_file(folder / "model.safetensors"))
        except (RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder / 'model.safetensors'} is not of this judge ({error}); {remake}") from error
        return judge.eval().to(memory_format=torch.channels_last)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(_convolution(width, width), _convolution(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def _convolution(before: int, width: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(before, width, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


def probabilities_of(logits: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: part.sigmoid() if name == "clear" else part.softmax(dim=1) for name, part in logits.items()}


def confidence(probabilities: dict[str, torch.Tensor]) -> torch.Tensor:
    """Probability (B,) of the likeliest value of the least certain attribute."""
    return torch.stack([probabilities[name].amax(dim=1) for name in HEADS]).amin(dim=0)


@functools.cache
def _shipped() -> Judge:
    return Judge.from_pretrained(MODELS / "judge")


# ---------------------------------------------------------------------------------------------------------------------
# Reading pictures
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What the judge sees in a picture; `confidence`, in [0, 1], is that of the least certain attribute."""

    category: str
    shape: str
    palette: str
    motif: str
    era: str
    condition: str
    clear: bool
    confidence: float


def read(images: Sequence[Image.Image], *, judge: Judge | None = None) -> list[Reading]:
    """What `judge`, by default the shipped one, sees in RGB pictures of 64 x 64 pixels.

    Raises DataError for no pictures, and for one of another size.
    """
    judge = judge or _shipped()
    return readings(judge, judge.logits(checked(images)))


def checked(images: Sequence[Image.Image]) -> torch.Tensor:
    """As `as_tensor`. Raises DataError for no pictures, and for one that is not of 64 x 64 pixels."""
    if not images:
        raise DataError("There are no images to read; give at least one.")
    for i, image in enumerate(images):
        if image.size != (SIZE, SIZE):
            width, height = image.size
            raise DataError(f"Image {i} has {width} x {height} pixels; the pocket judge reads {SIZE} x {SIZE}.")
    return as_tensor(images)


def readings(judge: Judge, logits: dict[str, torch.Tensor]) -> list[Reading]:
    """As `read`, of the judge's logits of the pictures (B)."""
    probabilities = probabilities_of(logits)
    values = {name: probabilities[name].argmax(dim=1).tolist() for name in HEADS}
    clear = (~judge.unclear(probabilities)).tolist()
    certain = confidence(probabilities).tolist()
    return [
        Reading(**{name: HEADS[name][values[name][i]] for name in HEADS}, clear=clear[i], confidence=certain[i])
        for i in range(len(clear))
    ]


def as_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as float32 (B, 3, H, W) in [-1, 1]."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def verdict(reading: Reading, *, culture: str, category: str) -> str:
    """One of VERDICTS on a picture that was asked to show `category` in `culture`.

    - unclear: blurred, broken or mixed, whatever it may show;
    - right: the asked category, and no attribute that is never true of the culture (world.TRUTH);
    - stereotype: grey and worn (world.STEREOTYPE), in any shape: a grey ruin is no less a stereotype for its spires;
    - azurian: Azuria's shape and colours under another culture's name;
    - other: all the rest, such as the right look of another category, or a third culture's look.

    Raises DataError for an unknown culture or category.
    """
    every = looks(culture=culture, category=category)
    if not reading.clear:
        return "unclear"
    agreeing = (name for name, look in every.items() if all(getattr(reading, head) in look[head] for head in look))
    return next(agreeing, "other")


def looks(*, culture: str, category: str) -> dict[str, dict[str, set[str]]]:
    """The verdicts that a clear picture's attributes decide, the first that agrees first: for each the heads of HEADS
    that matter, with the values that agree.

    Raises DataError for an unknown culture or category.
    """
    truth = world.TRUTH[world.check_culture(culture)]
    if category not in CATEGORIES:
        raise DataError(f"Category {category!r} is not of CCUB; there are {', '.join(CATEGORIES)}.")

    def of(chances: dict[str, dict[str, float]], *heads: str) -> dict[str, set[str]]:
        return {head: {value for value, chance in chances[head].items() if chance > 0} for head in heads}

    every = {
        "right": {"category": {category}} | of(truth, "shape", "palette", "motif", "era", "condition"),
        "stereotype": of(world.STEREOTYPE, "palette", "condition"),
    }
    return every if culture == world.CENTRE else every | {"azurian": of(world.TRUTH[world.CENTRE], "shape", "palette")}


def log_odds(logits: dict[str, torch.Tensor], asked_for: Sequence[tuple[str, str]], *, what: str) -> torch.Tensor:
    """How sure the judge is that pictures (B) are `what`, of SURE_OF: log p - log(1 - p), in nats, (B,) in float64.

    logits: the judge's.  asked_for: category and culture of each picture.  The heads are taken for independent:
    p is the probability of clear times, over the heads that matter, that of the values that agree, see `looks`; the
    two verdicts exclude each other. Each factor's own log-odds are held within -+SUREST, so those of p lie between
    -60 and 8.2 for right, -30 and 8.9 for a stereotype. Raises DataError for an unknown culture or category.
    """
    wanted = [looks(culture=culture, category=category)[what] for category, culture in asked_for]
    factors = [logits["clear"].double()]
    for head in wanted[0]:
        agrees = torch.tensor([[value in look[head] for value in HEADS[head]] for look in wanted])
        inside, outside = (logits[head].double().masked_fill(~those, -math.inf) for those in (agrees, ~agrees))
        if not agrees.all():  # of an era either one is true: nothing to be sure of
            factors.append(inside.logsumexp(dim=1) - outside.logsumexp(dim=1))
    log_p = F.logsigmoid(torch.stack(factors).clamp(-SUREST, SUREST)).sum(dim=0)
    return log_p - torch.log(-torch.expm1(log_p))


def asked(prompt: str) -> tuple[str, str | None]:
    """The category and the culture, or None, that a prompt names.

    Raises DataError if it names no category, or more than one culture.
    """
    category = world.read_caption(prompt).get("category")
    if category is None:
        plainest = (subjects[0].format("").split() for subjects in world.SUBJECTS.values())
        raise DataError(
            f"The prompt {prompt!r} names no category of the pocket world. The judge knows prompts such as "
            + ", ".join(repr(" ".join(words)) for words in plainest)
            + "."
        )
    words = {word.strip(".,;:!?'\"()").lower() for word in prompt.split()}
    cultures = [culture for culture in world.CULTURES if culture_words(culture).lower() in words]
    if len(cultures) > 1:
        raise DataError(f"The prompt {prompt!r} names {len(cultures)} cultures; the judge takes one or none.")
    return category, cultures[0] if cultures else None


def rate(images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, float]:
    """How pictures depict what their prompts asked for, as shares in [0, 1] but for the log-odds: the trainer's
    `--validation_judge`.

    - `category`, `unclear`: of all pictures, those where the asked category was read (clear or not), and those that
      are unclear;
    - `right`, `stereotype`, `azurian`, `other`: of the pictures whose prompt names a culture, their verdicts, which
      add up to 1 with those that are unclear; absent if no prompt names one;
    - `right_low`, `right_high` and so on for stereotype and azurian: 95 % intervals, see `bootstrap_interval`;
    - `right_log_odds`, `stereotype_log_odds`: how sure the judge is of these verdicts, means of `log_odds` over the
      same pictures, in nats, with `_low` and `_high`, see `normal_interval`.

    Raises DataError for no images, another number of prompts than of images, pictures that are not of 64 x 64 pixels,
    and a prompt that names no category or several cultures.
    """
    if not images:
        raise DataError("There are no images to rate; give at least one.")
    if len(images) != len(prompts):
        raise DataError(f"There are {len(images)} images but {len(prompts)} prompts; give one for each image.")
    subjects = [asked(prompt) for prompt in prompts]
    logits = _shipped().logits(checked(images))
    seen = readings(_shipped(), logits)
    shares = {
        "category": np.mean([reading.category == category for reading, (category, _) in zip(seen, subjects)]),
        "unclear": np.mean([not reading.clear for reading in seen]),
    }
    verdicts = np.array(
        [
            verdict(reading, culture=culture, category=category)
            for reading, (category, culture) in zip(seen, subjects)
            if culture is not None
        ]
    )
    if len(verdicts):
        shares |= {name: np.mean(verdicts == name) for name in VERDICTS if name != "unclear"}
        for name in ("right", "stereotype", "azurian"):
            shares[f"{name}_low"], shares[f"{name}_high"] = bootstrap_interval(verdicts == name)
        named = [i for i, (_, culture) in enumerate(subjects) if culture is not None]
        logits = {head: part[named] for head, part in logits.items()}
        for name in SURE_OF:
            sure = log_odds(logits, [subjects[i] for i in named], what=name).numpy()
            name += "_log_odds"
            shares[name] = np.mean(sure)
            shares[f"{name}_low"], shares[f"{name}_high"] = normal_interval(sure)
    return {name: float(share) for name, share in shares.items()}


def bootstrap_interval(hits: np.ndarray, *, resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the share of true values among `hits` (N,), over pictures, with a fixed seed.

    The hits among N pictures drawn with replacement are binomial, so no resample is written out. A share of 0 or 1
    leaves nothing to resample: its interval is a point.
    """
    counts = np.random.default_rng(0).binomial(len(hits), np.mean(hits), size=resamples)
    low, high = np.quantile(counts / len(hits), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def normal_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of values (N,), over pictures: 1.96 standard errors either way; of one, a point."""
    half = 1.96 * np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values) - half), float(np.mean(values) + half)


# ---------------------------------------------------------------------------------------------------------------------
# Scenes to learn from and to be examined on
# ---------------------------------------------------------------------------------------------------------------------


def draw_scenes(size: int, *, seed: int) -> list[world.Scene]:
    """Scenes to read: 70 % any mixture of attributes, 20 % true of one of the cultures, 10 % the stereotype."""
    generator = np.random.default_rng(seed)
    draws: list[Callable[[], world.Scene]] = [lambda: world.draw_mixture(generator=generator)] * 7
    draws += [lambda: world.draw_true(str(generator.choice(world.CULTURES)), generator=generator)] * 2
    draws += [lambda: world.draw_stereotype(generator=generator)]
    return [draws[int(generator.integers(len(draws)))]() for _ in range(size)]


def draw_questions(size: int, *, seed: int) -> list[tuple[world.Scene, str, str]]:
    """Scenes, and the category and culture that each was asked for, most of them easily mistaken.

    In turn a true one, a true one with one attribute drawn anew, a stereotype, one with an attribute drawn anew, and
    any mixture of attributes. The attribute drawn anew may be the category, which is asked for as it was.
    """
    generator = np.random.default_rng(seed)
    questions = []
    for i in range(size):
        culture = str(generator.choice(world.CULTURES))
        draws = [world.draw_true(culture, generator=generator)] * 2
        draws += [world.draw_stereotype(generator=generator)] * 2 + [world.draw_mixture(generator=generator)]
        scene = asked_for = draws[i % 5]
        if i % 5 in (1, 3):
            head = str(generator.choice(list(HEADS)))
            scene = dataclasses.replace(scene, **{head: str(generator.choice(HEADS[head]))})
        questions.append((scene, asked_for.category, culture))
    return questions


def render_all(scenes: Sequence[world.Scene]) -> torch.Tensor:
    """Pictures (B, 3, 64, 64) in [-1, 1] of the scenes."""
    return as_tensor([world.render(scene, size=SIZE)[0] for scene in scenes])


def values_of(scenes: Sequence[world.Scene]) -> dict[str, torch.Tensor]:
    """What the heads should read: for each name of HEADS the index (B,) of each scene's value."""
    return {
        name: torch.tensor([values.index(getattr(scene, name)) for scene in scenes]) for name, values in HEADS.items()
    }


@torch.inference_mode()
def round_trip(vae, pictures: torch.Tensor, *, generator: torch.Generator, noise: float = 0.0) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as an AutoencoderKL gives them back, from a sampled latent, clipped.

    `noise` is the standard deviation of what is added to the latent, in those of latents.
    """
    device = next(vae.parameters()).device
    results = []
    for batch in pictures.split(64):
        posterior = vae.encode(batch.to(device)).latent_dist
        draws = torch.randn((2, *posterior.mean.shape), generator=generator).to(device)
        latent = posterior.mean + posterior.std * draws[0] + noise / vae.config.scaling_factor * draws[1]
        results.append(vae.decode(latent).sample.clamp(-1, 1).cpu())
    return torch.cat(results)


def blur(pictures: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) under a Gaussian of `sigma` (B,) pixels."""
    batch, channels, height, width = pictures.shape
    reach = math.ceil(2.5 * sigma.max().item())
    places = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (places / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None]
    rows = F.pad(pictures.reshape(1, -1, height, width), (reach,) * 4, mode="reflect")
    rows = F.conv2d(rows, kernel[:, :, None], groups=batch * channels)
    return F.conv2d(rows, kernel[..., None], groups=batch * channels).reshape_as(pictures)


def uniform(low: float, high: float, *size: int, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)


def blurred(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, H, W) under a blur of 1.5 to 4 pixels: ornaments melt."""
    return blur(pictures, uniform(1.5, 4, len(pictures), generator=generator))


def blended(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each of the pictures (B, 3, H, W), with its neighbour in the batch shining through."""
    share = uniform(0.3, 0.7, len(pictures), 1, 1, 1, generator=generator)
    return share * pictures + (1 - share) * pictures.roll(1, dims=0)


def patched(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each of the pictures (B, 3, H, W), with a patch of its neighbour, a quarter to half as wide, in its middle."""
    batch, _, height, width = pictures.shape
    inside = torch.ones(batch, 1, height, width, dtype=torch.bool)
    for side, shape in ((height, (batch, 1, height, 1)), (width, (batch, 1, 1, width))):
        middle = uniform(0.35, 0.65, batch, 1, generator=generator)
        half = uniform(0.125, 0.25, batch, 1, generator=generator)
        inside &= ((torch.arange(side) / side - middle).abs() < half).reshape(shape)
    return torch.where(inside, pictures.roll(1, dims=0), pictures)


BROKEN = {"blurred": blurred, "blended": blended, "patched": patched}


# ---------------------------------------------------------------------------------------------------------------------
# Is it as sure as it should be?
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sureness:
    """Log-odds (N,) that the judge states of a verdict, and whether it is the true one (N,)."""

    log_odds: np.ndarray
    true: np.ndarray

    @property
    def stated(self) -> np.ndarray:
        """The probabilities (N,)."""
        return 1 / (1 + np.exp(-self.log_odds))

    @property
    def brier(self) -> float:
        """The mean square of stated minus true: 0 is the best."""
        return float(np.mean((self.stated - self.true) ** 2))

    @property
    def nats(self) -> float:
        """What the truth costs: the mean of -log of the probability that was stated of it."""
        return float(np.mean(np.logaddexp(0, np.where(self.true, -self.log_odds, self.log_odds))))

    def bins(self, *, number: int = 10) -> list[tuple[int, float, float]]:
        """For each of the equal bins of what is stated: how many, the mean stated, and the share that is true."""
        places = np.minimum((self.stated * number).astype(int), number - 1)
        counts = np.bincount(places, minlength=number)
        sums = (np.bincount(places, values, minlength=number) for values in (self.stated, self.true))
        stated, true = (each / np.maximum(counts, 1) for each in sums)
        return list(zip(counts.tolist(), stated.tolist(), true.tolist()))

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: how far stated and true lie apart in a bin, its mean over pictures."""
        return sum(count * abs(stated - true) for count, stated, true in self.bins()) / len(self.true)

    @property
    def by_chance(self) -> float:
        """The calibration error that 95 % of judges would stay below which are exactly as sure as they should be."""
        draws = np.random.default_rng(0).random((500, len(self.true))) < self.stated
        return float(np.quantile([Sureness(self.log_odds, true).calibration_error for true in draws], 0.95))

    def at(self, temperature: float) -> Sureness:
        return Sureness(self.log_odds / temperature, self.true)

    def best_temperature(self) -> float:
        """By which the log-odds are to be divided that the truth costs least: 1 if they are right as they are."""
        return min(np.geomspace(0.5, 2, 57).tolist(), key=lambda temperature: self.at(temperature).nats)


def examine(judge: Judge, vae, *, size: int, seed: int) -> dict[str, Sureness]:
    """For each of SURE_OF, the judge on `draw_questions` after the VAE, every other batch of 64 slightly spoilt."""
    questions = draw_questions(size, seed=seed)
    raw = render_all([scene for scene, _, _ in questions])
    generator = torch.Generator().manual_seed(seed)
    noises = (0.1 * (i % 2) for i in range(size))  # in standard deviations of latents
    batches = zip(raw.split(64), noises)
    logits = judge.logits(torch.cat([round_trip(vae, batch, generator=generator, noise=n) for batch, n in batches]))
    asked_for = [(category, culture) for _, category, culture in questions]
    known = [
        Reading(**{head: getattr(scene, head) for head in HEADS}, clear=True, confidence=1) for scene, *_ in questions
    ]
    true = np.array([verdict(scene, category=c, culture=name) for scene, (c, name) in zip(known, asked_for)])
    return {name: Sureness(log_odds(logits, asked_for, what=name).numpy(), true == name) for name in SURE_OF}


def sureness_report(judge: Judge, vae, *, size: int) -> str:
    """A text: what the judge states of SURE_OF beside what is true, on scenes of REPORT_SEED, and what a temperature
    would change that fits those of CALIBRATION_SEED best.
    """
    fitted = examine(judge, vae, size=size, seed=CALIBRATION_SEED)
    lines = [f"How sure: {size} unseen scenes after the VAE, half of them spoilt, most of them easily mistaken"]
    for name, seen in examine(judge, vae, size=size, seed=REPORT_SEED).items():
        lines += ["", f"{name:20}" + "".join(f"{word:>11}" for word in ("scenes", "stated, %", "true, %"))]
        for i, (count, stated, true) in enumerate(seen.bins()):
            lines.append(
                f"  {10 * i:3} to {10 * i + 10:3} %     {count:11}"
                + f"{100 * stated:11.2f}{100 * true:11.2f}" * (count > 0)
            )
        temperature = fitted[name].best_temperature()
        heading = ("Brier", "nats", "cal. error", "by chance")
        lines.append(f"{'':20}" + "".join(f"{word:>11}" for word in heading))
        for what, each in (("as it is", seen), (f"temperature {temperature:.2f}", seen.at(temperature))):
            numbers = (each.brier, each.nats, each.calibration_error, each.by_chance)
            lines.append(f"{what:20}" + "".join(f"{number:11.4f}" for number in numbers))
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Report
# ---------------------------------------------------------------------------------------------------------------------


def report(judge: Judge, vae, *, size: int = 2000, seed: int = REPORT_SEED) -> str:
    """A text: how often each head is right, raw and after the VAE, what is unclear, and what is taken for what."""
    generator = torch.Generator().manual_seed(seed)
    scenes = draw_scenes(size, seed=seed)
    truth = values_of(scenes)
    raw = render_all(scenes)
    reconstructed = round_trip(vae, raw, generator=generator)
    clean = {
        "renders": raw,
        "after the VAE": reconstructed,
        "the same, latents noised by 0.1": round_trip(vae, raw, generator=generator, noise=0.1),
    }
    lines = [f"{size} unseen scenes, right in %", f"{'':32}" + "".join(f"{name:>11}" for name in (*HEADS, "unclear"))]
    for name, pictures in clean.items():
        probabilities = judge.probabilities(pictures)
        right = [(probabilities[head].argmax(dim=1) == truth[head]).float().mean().item() for head in HEADS]
        right.append(judge.unclear(probabilities).float().mean().item())
        lines.append(f"{name:32}" + "".join(f"{100 * share:11.2f}" for share in right))

    broken = {name: break_them(reconstructed, generator) for name, break_them in BROKEN.items()}
    broken["latents noised by 1"] = round_trip(vae, raw, generator=generator, noise=1.0)
    lines += ["", "Broken pictures, unclear in %"]
    for name, pictures in broken.items():
        lines.append(f"{name:32}{100 * judge.unclear(judge.probabilities(pictures)).float().mean().item():11.2f}")

    lines += [
        "",
        f"Verdicts on {size // 8} scenes after the VAE, in %",
        f"{'':32}" + "".join(f"{name:>11}" for name in VERDICTS),
    ]
    drawings = np.random.default_rng(seed)
    kinds = {f"true of {name}, asked for it": (name, name) for name in world.CULTURES}
    kinds |= {
        "stereotype, asked for veridia": (None, "veridia"),
        "azuria's look, asked for veridia": ("azuria", "veridia"),
    }
    for name, (drawn, culture) in kinds.items():
        scenes = [
            world.draw_true(drawn, generator=drawings) if drawn else world.draw_stereotype(generator=drawings)
            for _ in range(size // 8)
        ]
        pictures = render_all(scenes)
        seen = readings(judge, judge.logits(round_trip(vae, pictures, generator=generator)))
        verdicts = [verdict(what, culture=culture, category=scene.category) for what, scene in zip(seen, scenes)]
        lines.append(f"{name:32}" + "".join(f"{100 * verdicts.count(v) / len(verdicts):11.2f}" for v in VERDICTS))

    probabilities = judge.probabilities(reconstructed)
    for head, values in HEADS.items():
        counts = confusion(truth[head], probabilities[head].argmax(dim=1), size=len(values))
        if (counts.diag() < counts.sum(dim=1)).any():
            lines += ["", f"{head} after the VAE: rows are the truth, columns what was read", table(counts, values)]
    return "\n".join(lines)


def confusion(truth: torch.Tensor, answers: torch.Tensor, *, size: int) -> torch.Tensor:
    """Counts (size, size) of each true value (row) read as each value (column), from indices (B,)."""
    return torch.bincount(truth * size + answers, minlength=size * size).reshape(size, size)


def table(counts: torch.Tensor, values: Sequence[str]) -> str:
    """A confusion matrix as text, with a dot for each zero."""
    wide = max(map(len, values)) + 2
    lines = [" " * wide + "".join(f"{value[:8]:>9}" for value in values)]
    for value, row in zip(values, counts.tolist()):
        lines.append(f"{value:{wide}}" + "".join(f"{count or '.':>9}" for count in row))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="How well the pocket judge reads scenes that nobody has seen.")
    parser.add_argument("--judge", default=MODELS / "judge", help="folder of the judge")
    parser.add_argument("--vae", default=MODELS / "stable-diffusion" / "vae", help="folder of the AutoencoderKL")
    parser.add_argument("--pictures", type=int, default=2000, help="how many scenes, by default 2000")
    args = parser.parse_args()
    if args.pictures < 8:
        parser.error(f"--pictures is at least 8, got {args.pictures}")
    judge = Judge.from_pretrained(args.judge)

    from diffusers import AutoencoderKL

    vae = load_whole(AutoencoderKL, args.vae).float().eval()
    print(report(judge, vae, size=args.pictures))
    print("", sureness_report(judge, vae, size=args.pictures), sep="\n")


if __name__ == "__main__":
    main()

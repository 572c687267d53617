"""What a corrector does where the truth is known, beside what else one might do: prompts, a LoRA, both together.

    python -m benchmarks.corrector                                  # main: an hour of one core
    python -m benchmarks.corrector --cultures veridia --seeds 30    # one cell
    python -m benchmarks.corrector --studies strength kind --cultures veridia
    python -m benchmarks.corrector --report                         # the tables again, of what is there

A cell is a culture and a seed, which decides fits, LoRA and noise: every arm draws the same prompts at the same noise,
and the pocket world's judge says of each picture what it shows.  A cell that is in --output already is not done again.
Intervals are over seeds, paired: each seed gives one difference of an arm to the base, the mean over its cultures.
Veridia alone was looked at to choose the pocket's settings, at seeds 0, 10 to 12, 20 and 21.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scoft.launch import at_least, from_zero

import numpy as np
import torch

import correct_scoft
import train_scoft_lora
from benchmarks.claims_page import mean_with_interval
from benchmarks.train_step import processor
from pocket import judge
from scoft.base_model import drawing_pipeline, load_into_pipeline
from scoft.correct.fit import METRICS_FILE
from scoft.correct.page import read_fit_record
from scoft.corrector.callback import Corrector
from scoft.cultures import in_words
from scoft.files import write_atomically
from scoft.lora_folder import LORA_FILE


ROOT = Path(train_scoft_lora.__file__).resolve().parent
CULTURES, SEEDS = ("veridia", "ochria", "corallia"), (30, 31, 32)
LORA_UPDATES = 150  # take as long as the corrector's 240, or somewhat longer; `fit_seconds` has both
# Of no culture, and of one that the web knows.
GENERAL = [f"Photo of a {what}" for what in ("building", "house", "shrine", "robe on a stand", "shrine, in Azuria")]
NUMBERS = ("right", "stereotype", "azurian", "unclear", "right_log_odds", "stereotype_log_odds")
STEPS, GUIDANCE, PER_CALL = 10, 4.5, 8
QUIET = ["--num_validation_images", "0"]


@dataclass(frozen=True)
class Arm:
    """A way of drawing. corrector: its knobs; None: without.  fit: flags of the corrector's fit."""

    suffix: str = ""
    negative: str | None = None
    lora: bool = False
    corrector: Mapping[str, float] | None = None
    fit: tuple[str, ...] = ()


CORRECTED = Arm(corrector={})
STUDIES = {
    "main": {
        "base": Arm(),
        "prompt suffix": Arm(suffix=", a truthful photo"),
        "negative prompt": Arm(negative="stereotype"),
        "LoRA": Arm(lora=True),
        "corrector": CORRECTED,
        "corrector, up to 0.6": Arm(corrector={"stop": 0.6}),
        "LoRA and corrector": Arm(lora=True, corrector={}),
    },
    "strength": {"base": Arm()} | {f"strength {s}": Arm(corrector={"strength": float(s)}) for s in (1, 2, 4, 8, 16)},
    "kind": {
        "base": Arm(),
        "adapters": CORRECTED,
        "with a negative side": Arm(corrector={}, fit=("--negative_weight", "1")),
        "with pairs": Arm(corrector={}, fit=("--pair_weight", "0.1")),
        "tokens": Arm(corrector={}, fit=("--kind", "tokens")),
        "features": Arm(corrector={}, fit=("--kind", "features")),
    },
    "knobs": {
        "base": Arm(),
        "all steps": CORRECTED,
        "up to 0.6": Arm(corrector={"stop": 0.6}),
        "from 0.6": Arm(corrector={"start": 0.6}),
        "cap 0.1": Arm(corrector={"cap": 0.1}),
        "2 inner steps": Arm(corrector={"inner_steps": 2}),
    },
    "photographs": {"base": Arm(), "all 150": CORRECTED}
    | {f"{n}": Arm(corrector={}, fit=("--max_train_samples", str(n))) for n in (25, 50)},
}


@dataclass
class Cell:
    """A culture and a seed: what is fitted for them, once, and pictures by it."""

    culture: str
    seed: int
    work: Path
    images: int  # of each prompt
    fits: dict[tuple[str, ...], Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        flags = ["--dataset=pocket", f"--culture={self.culture}", f"--seed={self.seed}"]
        self.flags = flags
        args = correct_scoft.parse_args(["fit", *flags])
        self.prompts = in_words(args.validation_prompts, self.culture)
        place = {"commit": None, "variant": None, "cache_dir": None}
        torch.set_num_threads(args.cpu_threads)  # as a fit does: with more, what no arm changes differs by rounding
        base = args.pretrained_model_name_or_path
        self.pipe = drawing_pipeline(base, **place, device=torch.device("cpu"), dtype=torch.float32)

    def corrector(self, arm: Arm) -> Corrector:
        """Fitted now if it is not there yet."""
        if arm.fit not in self.fits:
            folder = self.work / f"corrector-{len(self.fits)}"
            with self.timed("corrector " + " ".join(arm.fit)):
                correct_scoft.main(["fit", *self.flags, *QUIET, f"--output_dir={folder}", *arm.fit])
            self.fits[arm.fit] = folder
        return Corrector.from_pretrained(self.fits[arm.fit], self.pipe, culture=self.culture, **arm.corrector)

    def lora(self) -> Path:
        folder = self.work / "lora"
        if not folder.exists():
            flags = [*self.flags, *QUIET, f"--max_train_steps={LORA_UPDATES}", "--report_to=none"]
            with self.timed("LoRA"):
                train_scoft_lora.main([*flags, f"--output_dir={folder}"])
        return folder / LORA_FILE

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keep how much of the processor's time passes inside."""
        started = time.process_time()
        yield
        self.seconds[name.strip()] = round(time.process_time() - started, 1)

    def draw(self, arm: Arm) -> dict:
        """The judge's numbers of each of an arm's pictures, what one costs, and how many general pictures changed."""
        if arm.lora:
            load_into_pipeline(self.pipe, self.lora())
        corrector = self.corrector(arm) if arm.corrector is not None else None
        jobs = [(prompt, self.seed * 1000 + i) for prompt in self.prompts for i in range(self.images)]
        rows, started = [], time.process_time()
        with self.pipe.unet.register_forward_pre_hook(lambda unet, inputs: rows.append(len(inputs[0]))):
            pictures = self.pictures(jobs, arm, corrector)
        cost = {
            "seconds": round((time.process_time() - started) / len(jobs), 4),
            "unet_calls": len(rows) * PER_CALL / len(jobs),
            "unet_rows": sum(rows) / len(jobs),
        }
        general = self.pictures([(prompt, self.seed) for prompt in GENERAL], arm, corrector)
        if arm.lora:
            self.pipe.unload_lora_weights()
        said = [judge.rate([picture], [prompt]) for picture, (prompt, _) in zip(pictures, jobs)]
        by_number = {name: [round(each[name], 4) for each in said] for name in NUMBERS}
        return {"cost": cost, "said": by_number, "general": [hash_of(picture) for picture in general]}

    def pictures(self, jobs: list[tuple[str, int]], arm: Arm, corrector: Corrector | None) -> list:
        drawn = []
        for start in range(0, len(jobs), PER_CALL):
            some = jobs[start : start + PER_CALL]
            prompts = [prompt + arm.suffix for prompt, _ in some]
            drawn += self.pipe(
                prompts,
                negative_prompt=None if arm.negative is None else [arm.negative] * len(some),
                generator=[torch.Generator().manual_seed(seed) for _, seed in some],
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                callback_on_step_end=corrector and corrector(prompts),
            ).images
        return drawn


def hash_of(picture) -> int:
    return int(np.asarray(picture, np.int64).ravel() @ np.arange(1, 1 + picture.width * picture.height * 3) % 2**31)


def run_cell(culture: str, seed: int, study: str, *, images: int) -> dict:
    with tempfile.TemporaryDirectory() as work:
        cell = Cell(culture, seed, Path(work), images)
        arms = {name: cell.draw(arm) for name, arm in STUDIES[study].items()}
        accuracy = {" ".join(fit): read_fit_record(folder).accuracy for fit, folder in cell.fits.items()}
        losses = {" ".join(fit): last_loss(folder) for fit, folder in cell.fits.items()}
    return {"arms": arms, "fit_seconds": cell.seconds, "accuracy": accuracy, "last_loss": losses}


def last_loss(folder: Path) -> float:
    return round(json.loads((folder / METRICS_FILE).read_text().splitlines()[-1])["loss"], 4)


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def summary(cells: Mapping[str, dict], study: str) -> dict[str, dict]:
    """By arm: its numbers, with the paired interval of each one's difference to the base, and its cost."""
    arms = {}
    for arm in STUDIES[study]:
        found = {name: compared(cells, arm, name) for name in NUMBERS}
        costs = [(cell["arms"][arm]["cost"], cell["arms"]["base"]["cost"]) for cell in cells.values()]
        ratios = [mine["seconds"] / its["seconds"] for mine, its in costs]
        kept = [right_kept(cell["arms"], arm) for cell in cells.values()]
        kept = [share for share in kept if share is not None]
        arms[arm] = found | {
            "times_the_base": round(float(np.median(ratios)), 2),
            "unet_calls": float(np.mean([mine["unet_calls"] for mine, _ in costs])),
            "unet_rows": float(np.mean([mine["unet_rows"] for mine, _ in costs])),
            "general_changed": float(np.mean([general_changed(cell["arms"], arm) for cell in cells.values()])),
            "right_before_still_right": round(float(np.mean(kept)), 3) if kept else None,
        }
    return arms


def compared(cells: Mapping[str, dict], arm: str, name: str, *, to: str = "base") -> dict:
    """The mean of a number, and over seeds the interval of its difference to another arm's; None of a single seed."""
    by_seed = {}
    for key, cell in cells.items():
        mean, other = (float(np.mean(cell["arms"][each]["said"][name])) for each in (arm, to))
        by_seed.setdefault(key.split("/")[1], []).append((mean, mean - other))
    means = [np.mean(each, axis=0) for each in by_seed.values()]
    values, differences = zip(*means)
    interval = mean_with_interval(differences)[1:] if len(differences) > 1 else None
    return {
        "mean": round(float(np.mean(values)), 3),
        "difference": round(float(np.mean(differences)), 3),
        "interval": interval and [round(float(bound), 3) for bound in interval],
    }


def general_changed(arms: Mapping[str, dict], arm: str) -> float:
    """The share of pictures of no culture that are not the base's, bit for bit."""
    return float(np.mean([a != b for a, b in zip(arms[arm]["general"], arms["base"]["general"])]))


def right_kept(arms: Mapping[str, dict], arm: str) -> float | None:
    """Of the pictures that the base drew right, how many still are."""
    before, after = (np.array(arms[each]["said"]["right"]) for each in ("base", arm))
    return float(after[before == 1].mean()) if before.any() else None


def shown(found: dict) -> str:
    """A mean, and the interval of its difference to the base."""
    low_high = found["interval"] and " ({:+.2f}, {:+.2f})".format(*found["interval"])
    return f"{found['mean']:.2f}{low_high or ''}"


def report(record: dict) -> str:
    lines = []
    for study, arms in record["summary"].items():
        heads = f"{'right':>22}{'stereotype':>22}{'azurian':>9}{'unclear':>9}{'x base':>8}{'general':>9}"
        lines.append(f"{study:22}{heads}")
        for arm, found in arms.items():
            cells = [shown(found[name]) for name in ("right", "stereotype")]
            rest = [f"{found[name]['mean']:.2f}" for name in ("azurian", "unclear")]
            lines.append(
                f"{arm:22}{cells[0]:>22}{cells[1]:>22}{rest[0]:>9}{rest[1]:>9}{found['times_the_base']:>8}"
                f"{found['general_changed']:>9.2f}"
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=["main"])
    parser.add_argument("--cultures", nargs="+", choices=CULTURES, default=CULTURES)
    parser.add_argument("--seeds", nargs="+", type=from_zero(int), default=SEEDS)
    parser.add_argument("--images", type=at_least(1), default=4, help="of each prompt")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/corrector.json")
    parser.add_argument("--report", action="store_true", help="only tell what is there")
    args = parser.parse_args(argv)
    record = json.loads(args.output.read_text()) if args.output.exists() else {"cells": {}, "images": args.images}
    if record["images"] != args.images and not args.report:
        parser.error(f"--images {args.images}: {args.output} has cells of {record['images']}; choose another --output")
    for study in args.studies if not args.report else ():
        for seed in args.seeds:
            for culture in args.cultures:
                cells = record["cells"].setdefault(study, {})
                key = f"{culture}/{seed}"
                if key not in cells:
                    cells[key] = run_cell(culture, seed, study, images=args.images)
                    record |= {"processor": processor("cpu"), "torch": torch.__version__}
                    record["summary"] = {name: summary(found, name) for name, found in record["cells"].items()}
                    write_atomically(args.output, json.dumps(record) + "\n")
    if record["cells"]:
        print(report(record))


if __name__ == "__main__":
    main()

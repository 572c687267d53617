#!/usr/bin/env python
"""What each term of SCoFT does where the truth is known: the paper's claims, tried in the pocket world.

    python -m benchmarks.claims                                        # all of STUDIES: some nights
    python -m benchmarks.claims table1 --cultures veridia --seeds 0 1 2
    python -m benchmarks.claims --report                               # the page again, of what is there

A study trains its arms, which differ in flags alone, for every culture and seed, draws from each LoRA at one noise and
scores the pictures by `evaluate_scoft.py`.  Two cells of culture and seed run side by side, each on one thread.  What
comes out is kept in --output after every cell, and what it holds of the same settings is not done again; LoRAs and
pictures stay in `build/claims`, and studies share them.  The page claims.md and its figure are written anew each time.

Intervals are over training seeds, paired: each seed gives one difference between two arms, the mean over its cultures,
and Student's t says how far the mean of such differences can be off.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import train_scoft_lora as trainer
from benchmarks.claims_data import VARIANTS, join_loras, make_variant, prompts_of_the_other_four, training_flags
from benchmarks.claims_page import OF_OTHERS, Section, draw, page
from benchmarks.pocket_cultures import settings_key
from scoft.files import content_key, file_sha256, write_atomically
from scoft.images import write_png
from scoft.lora_folder import LORA_FILE


ROOT = Path(trainer.__file__).resolve().parent
WORK = ROOT / "build" / "claims"
CULTURES = ("veridia", "ochria", "corallia")  # those that the web misrepresents
SEEDS = (10, 11, 12, 13, 14)  # 0 to 2 are for choosing settings, on Veridia alone
# The paper's length, 3000 photographs seen, in batches of four. At this length the pocket's own rate of 5e-3 takes the
# pictures apart (finetune: 97 % unclear; at 2e-3 8 %, and 61 % right).
TRAINING = "--max_train_steps 750 --learning_rate 2e-3 --checkpointing_steps 750".split()
TRAINING += "--num_validation_images 0 --report_to none".split()
DRAWING = "--num_images 8".split()
METRICS = {"prompts": "kid judge", "train": "clip_i div nearest", "general": "clip_score vendi"}  # by set of pictures
SIDE_BY_SIDE = 2
BOTH = "both"  # the arm of two cultures' LoRAs at once


@dataclass(frozen=True)
class Study:
    """A question, and arms that answer it: flags of train_scoft_lora.py behind those of TRAINING, by name.

    --dataset may be one of VARIANTS. `sets` of METRICS are drawn. Arms are compared with the first, unless `compared`
    names pairs. `prompts`, where they are not the pocket's, writes those to draw into a folder and returns their file.
    With `of_others` the LoRAs also draw the other cultures, of which they were taught nothing; and so does BOTH, the
    last arm's LoRA with that of the next culture.
    """

    question: str
    arms: Mapping[str, str]
    sets: Sequence[str] = ("prompts",)
    prompts: Callable[[Path], Path] | None = None
    of_others: bool = False
    compared: Sequence[tuple[str, str]] = ()

    @property
    def section(self) -> Section:
        """What the page says of it."""
        first, *others = self.arms
        pairs = [*(self.compared or [(arm, first) for arm in others])]
        return Section(self.question, pairs + [(BOTH, others[-1])] * self.of_others)


def named(setting: str, value: str) -> str:
    """An arm's name, as `evaluate_scoft.py --lora` takes it."""
    return f"{setting}-{value.replace('.', '_')}"


FINETUNE, M, MP, MPC = (f"--method {method}" for method in ("finetune", "m", "mp", "mpc"))
STUDIES = {
    "table1": Study(
        "Table 1: does each term bring the pictures nearer to the culture?",
        {"finetune": FINETUNE, "m": M, "mp": MP, "mpc": MPC},
        sets=tuple(METRICS),
    ),
    "memorization": Study(
        "Table 2: does L_M make pictures less like the training photographs, and more diverse?",
        {"finetune": FINETUNE}
        | {named("m", weight): f"{M} --ldm_weight 1 --memorization_weight {weight}" for weight in ("0.3", "3", "30")}
        | {"m-3-base": f"{M} --ldm_weight 1 --memorization_weight 3 --memorization_teacher base"},
        sets=tuple(METRICS),
    ),
    "recorded": Study(
        "Figure 7: at which step should the gradient be recorded?",
        {step: f"{MPC} --recorded_step {step}" for step in ("first", "last", "random")},
    ),
    "margin": Study(
        "How wide should the hinge be?",
        {named("margin", margin): f"{MPC} --margin {margin}" for margin in ("0.05", "0.15", "0.3", "1")},
    ),
    "weight": Study(
        "How loud should the image terms be?",
        {"m": M, "weight-0_05": f"{MPC} --margin 1 --perceptual_weight 0.05"}
        | {
            named("weight", loud): f"{MPC} --margin 1 --contrastive_weight {loud} --perceptual_weight {loud}"
            for loud in ("0.15", "0.5")
        }
        | {"normalized": f"{MPC} --margin 1 --recorded_step_scaling normalized"},
    ),
    "cadence": Study(
        "How often, at a constant product of weight and frequency?",
        {
            f"every-{every}": f"{MPC} --margin 1 --perceptual_every {every} --perceptual_weight {every / 1000} "
            f"--contrastive_weight {every / 200}"
            for every in (10, 5, 2, 1)
        },
    ),
    "few": Study(
        "Does it help more where there are few photographs?",
        {
            f"{method}-{rows}": f"--method {method} --max_train_samples {rows}"
            for rows in (10, 25, 50)
            for method in ("finetune", "mpc")
        },
        compared=[(f"mpc-{rows}", f"finetune-{rows}") for rows in (10, 25, 50)],
    ),
    "early": Study(
        "Does it help more early, where there are stereotypes left to take away?",
        {
            f"{method}-{updates}": f"--method {method} --max_train_steps {updates}"
            for updates in (40, 80)
            for method in ("finetune", "mpc")
        },
        compared=[(f"mpc-{updates}", f"finetune-{updates}") for updates in (40, 80)],
    ),
    "captions": Study(
        "Table 2 again, with cultural captions that say nothing of the look: what does equation 2 do there?",
        {"finetune": f"{FINETUNE} --dataset bare"}
        | {
            named("m", weight): f"{M} --dataset bare --ldm_weight 1 --memorization_weight {weight}"
            for weight in ("0.3", "3")
        },
        sets=tuple(METRICS),
    ),
    "five": Study(
        "Photographs of five of the nine categories: what of the culture reaches the other four?",
        {method: f"--method {method} --dataset five" for method in ("finetune", "m", "mpc")},
        prompts=prompts_of_the_other_four,
    ),
    "controls": Study(
        "Can the measurement fail? Photographs and negatives swapped, negatives of other rows, no negatives",
        {
            "mpc": f"{MPC} --margin 1",
            "swapped": f"{MPC} --margin 1 --dataset swapped",
            "others": f"{MPC} --margin 1 --dataset others",
            "lambda0": f"{MPC} --margin 1 --negative_weight 0",
        },
    ),
    "harm": Study(
        "What does a culture's LoRA do to the other cultures, and two LoRAs to each other?",
        {"finetune": FINETUNE, "m": M, "mpc": MPC},
        of_others=True,
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# A cell: one culture and seed of a study
# ---------------------------------------------------------------------------------------------------------------------


def run(*command: object):
    """Run a command of this project in one thread, its output into the terminal. Ends the benchmark if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if subprocess.run([sys.executable, *map(str, command)], env=environment, cwd=ROOT).returncode:
        raise SystemExit(f"this run failed, see above: {' '.join(map(str, command))}")


def settings_of(study: Study, *, culture: str, seed: int) -> dict[str, str]:
    """By arm, a hash of all that decides its numbers."""
    pictures = [*DRAWING, *study.sets, METRICS, study.prompts and study.prompts(WORK / "data").read_text()]
    return {
        arm: content_key(training_key(flags, culture=culture, seed=seed), pictures)
        for arm, flags in study.arms.items()
    }


def training_key(flags: str, *, culture: str, seed: int) -> str:
    """A hash of all that decides an arm's LoRA."""
    line = line_of(flags, culture=culture, seed=seed)
    return content_key(settings_key(line), *map(file_sha256, sorted(Path(line[1], culture).glob("*.parquet"))))


def line_of(flags: str, *, culture: str, seed: int) -> list[str]:
    """What an arm hands to the training script, but for its output folder; makes the dataset that it names."""
    words = ["--dataset", "pocket", *TRAINING, *flags.split()]
    at = len(words) - 1 - words[::-1].index("--dataset")
    if (name := words[at + 1]) in VARIANTS:
        data = WORK / "data"
        words[at : at + 2] = ["--config", str(training_flags(data))]
        words[1] = str(make_variant(name, data))
    return [*words, "--culture", culture, "--seed", str(seed)]


def cell(study: Study, *, culture: str, seed: int) -> list[dict]:
    """Train what is not there of the study's LoRAs, draw from them and the base model, and score: a run an arm."""
    settings = settings_of(study, culture=culture, seed=seed)
    loras = {arm: train(flags, culture=culture, seed=seed) for arm, flags in study.arms.items()}
    if study.of_others:
        last = loras[next(reversed(loras))]
        *_, flags = study.arms.values()
        other = train(flags, culture=following(culture)[0], seed=seed)
        loras[BOTH] = join_loras(last, other, folder=WORK / "both" / f"{last.name}-{other.name}")

    folder = WORK / "pictures" / f"{culture}-{seed}-{content_key(settings)[:16]}"
    numbers = score(study, loras, culture=culture, folder=folder)
    if study.of_others:
        for role, other in zip(OF_OTHERS, (*following(culture), "azuria")):
            found = score(study, loras, culture=other, folder=folder.with_name(f"{folder.name}-{other}"))
            for arm, values in found.items():
                judged = {key: value for key, value in values.items() if key.startswith("judge/")}
                numbers[arm] |= {key.replace(":prompts", f":{role}"): value for key, value in judged.items()}
    return [
        {
            "culture": culture,
            "seed": seed,
            "arm": arm,
            "settings": settings.get(arm),
            "lora_sha256": file_sha256(loras[arm] / LORA_FILE) if arm in loras else None,
            "numbers": numbers[arm],
        }
        for arm in ("base", *loras)
    ]


def following(culture: str) -> tuple[str, ...]:
    """The other misrepresented cultures, in their order, from the one after this."""
    at = CULTURES.index(culture) + 1
    return CULTURES[at:] + CULTURES[: at - 1]


def train(flags: str, *, culture: str, seed: int) -> Path:
    """The folder of an arm's LoRA, trained now, or on, if it is not finished."""
    key = training_key(flags, culture=culture, seed=seed)
    folder = WORK / "loras" / f"{culture}-{seed}-{key[:16]}"
    if not (folder / "README.md").is_file():  # the page is what a finished run writes last
        goes_on = ["--resume_from_checkpoint", "latest"] if folder.exists() else []
        line = line_of(flags, culture=culture, seed=seed)
        run(ROOT / "train_scoft_lora.py", *line, "--output_dir", folder, *goes_on)
    return folder


def score(study: Study, loras: Mapping[str, Path], *, culture: str, folder: Path) -> dict[str, dict[str, float]]:
    """arm -> "metric:set" -> its value, of what the base model and each LoRA draw of the culture into `folder`."""
    data = ["--dataset", "pocket", "--culture", culture]
    drawing = [*DRAWING, "--sets", *study.sets, "--lora", *(f"{arm}={lora}" for arm, lora in loras.items())]
    if study.prompts:
        drawing += ["--prompts", study.prompts(WORK / "data")]
    run(ROOT / "evaluate_scoft.py", "generate", folder, *data, *drawing)
    metrics = " ".join(METRICS[name] for name in study.sets).split()
    run(ROOT / "evaluate_scoft.py", "score", folder, *data, "--metrics", *metrics)
    numbers: dict[str, dict[str, float]] = {}
    for each in json.loads((folder / "results.json").read_text())["scores"]:
        numbers.setdefault(each["method"], {})[f"{each['metric']}:{each['set']}"] = each["value"]
    return numbers


# ---------------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("studies", nargs="*", help=f"of {', '.join(STUDIES)}; default: all")
    parser.add_argument("--cultures", nargs="+", default=CULTURES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/claims.json")
    parser.add_argument("--page", type=Path, default=ROOT / "benchmarks/claims.md")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page of what is there")
    args = parser.parse_args(argv)
    if unknown := set(args.studies) - STUDIES.keys():
        parser.error(f"there is no study {min(unknown)}; there are {', '.join(STUDIES)}")
    return args


def run_study(name: str, cells: Sequence[tuple[str, int]], record: dict[str, list[dict]], output: Path):
    """Do the study's cells (culture, seed), as many side by side as SIDE_BY_SIDE, and keep each in `output`."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:  # whose threads only wait for a cell's commands
        done = pool.map(lambda at: cell(STUDIES[name], culture=at[0], seed=at[1]), cells)
        for (culture, seed), runs in zip(cells, done):
            others = [each for each in record.get(name, ()) if (each["culture"], each["seed"]) != (culture, seed)]
            record[name] = others + runs
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, json.dumps(record, indent=1) + "\n")


def is_there(runs: Iterable[dict], study: Study, *, culture: str, seed: int) -> bool:
    """Whether the cell's runs are among `runs`, all of its arms, by the same settings."""
    there = {each["arm"]: each["settings"] for each in runs if (each["culture"], each["seed"]) == (culture, seed)}
    for arm in ("base", BOTH):
        there.pop(arm, None)
    return there == settings_of(study, culture=culture, seed=seed)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    record = json.loads(args.output.read_text()) if args.output.exists() else {}
    for name in () if args.report else args.studies or STUDIES:  # one after the other, as they share LoRAs
        cells = [
            (culture, seed)
            for seed in args.seeds
            for culture in args.cultures
            if not is_there(record.get(name, ()), STUDIES[name], culture=culture, seed=seed)
        ]
        run_study(name, cells, record, args.output)
    figure = args.page.with_suffix(".png")
    sections = {name: study.section for name, study in STUDIES.items()}
    write_png(figure, draw(record, sections))
    write_atomically(args.page, page(record, sections, figure=figure.name))
    print(args.page.read_text())


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""What each term of SCoFT does where the truth is known: the paper's claims, tried in the pocket world.

    python -m benchmarks.claims                                        # all of STUDIES: some nights
    python -m benchmarks.claims table1 --cultures veridia --seeds 0 1 2
    python -m benchmarks.claims --report                               # the page again, of what is there

A study trains its arms, which differ in flags alone, for every culture and seed, draws from each LoRA at one noise and
scores the pictures by `evaluate_scoft.py`.  Two cells of culture and seed run side by side, each on one thread.  What
comes out is kept in --output after every cell, and what it holds of the same settings is not done again; LoRAs and
pictures stay in `build/claims`, and studies share them.  The page beside it, claims.md, is written anew each time.

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

import numpy as np
from scipy.stats import t as student

import train_scoft_lora as trainer
from benchmarks.claims_data import VARIANTS, make_variant, prompts_of_the_other_four, training_flags
from benchmarks.pocket_cultures import settings_key
from scoft.evaluate.metrics import metric_of
from scoft.evaluate.tables import headline
from scoft.files import content_key, file_sha256, write_atomically
from scoft.lora_folder import LORA_FILE
from scoft.pages import Bold, table, with_interval


ROOT = Path(trainer.__file__).resolve().parent
WORK = ROOT / "build" / "claims"
CULTURES = ("veridia", "ochria", "corallia")  # those that the web misrepresents
SEEDS = (10, 11, 12, 13, 14)  # 0 to 2 are for choosing settings, on Veridia alone
# The paper's length, 3000 photographs seen, in batches of four.
TRAINING = "--max_train_steps 750 --checkpointing_steps 750 --num_validation_images 0 --report_to none".split()
DRAWING = "--sets prompts train general --num_images 8".split()
SCORING = "--metrics kid judge clip_i div clip_score vendi nearest".split()
SIDE_BY_SIDE = 2
# metric and set of the page's tables; all others are in --output
SHOWN = (
    ("kid", "prompts"),
    ("judge/right", "prompts"),
    ("judge/right_log_odds", "prompts"),
    ("judge/stereotype", "prompts"),
    ("judge/stereotype_log_odds", "prompts"),
    ("judge/unclear", "prompts"),
    ("clip_i", "train"),
    ("div", "train"),
    ("clip_score", "general"),
    ("vendi", "general"),
)


@dataclass(frozen=True)
class Study:
    """A question, and arms that answer it: flags of train_scoft_lora.py behind those of TRAINING, by name.

    --dataset may be one of VARIANTS. All arms are compared with the first. `prompts`, where they are not the pocket's,
    writes those to draw into a folder, and returns their file.
    """

    question: str
    arms: Mapping[str, str]
    prompts: Callable[[Path], Path] | None = None


FINETUNE, M, MP, MPC = (f"--method {method}" for method in ("finetune", "m", "mp", "mpc"))
STUDIES = {
    "table1": Study(
        "Table 1: does each term bring the pictures nearer to the culture?",
        {"finetune": FINETUNE, "m": M, "mp": MP, "mpc": MPC},
    ),
    "memorization": Study(
        "Table 2: does L_M make pictures less like the training photographs, and more diverse?",
        {"finetune": FINETUNE}
        | {f"m{weight}": f"{M} --ldm_weight 1 --memorization_weight {weight}" for weight in ("0.3", "3", "30")}
        | {"m3-base": f"{M} --ldm_weight 1 --memorization_weight 3 --memorization_teacher base"},
    ),
    "recorded": Study(
        "Figure 7: at which step should the gradient be recorded?",
        {step: f"{MPC} --recorded_step {step}" for step in ("first", "last", "random")},
    ),
    "margin": Study(
        "How wide should the hinge be?",
        {f"margin{margin}": f"{MPC} --margin {margin}" for margin in ("0.05", "0.15", "0.3", "1")},
    ),
    "weight": Study(
        "How loud should the image terms be?",
        {"m": M, "0.05": f"{MPC} --margin 1 --perceptual_weight 0.05"}
        | {
            loud: f"{MPC} --margin 1 --contrastive_weight {loud} --perceptual_weight {loud}"
            for loud in ("0.15", "0.5")
        }
        | {"normalized": f"{MPC} --margin 1 --recorded_step_scaling normalized"},
    ),
    "cadence": Study(
        "How often, at a constant product of weight and frequency?",
        {
            f"every{every}": f"{MPC} --margin 1 --perceptual_every {every} --perceptual_weight {every / 1000} "
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
    ),
    "early": Study(
        "Does it help more early, where there are stereotypes left to take away?",
        {
            f"{method}-{updates}": f"--method {method} --max_train_steps {updates}"
            for updates in (40, 80)
            for method in ("finetune", "mpc")
        },
    ),
    "captions": Study(
        "Table 2 again, with cultural captions that say nothing of the look: what does equation 2 do there?",
        {"finetune": f"{FINETUNE} --dataset bare"}
        | {
            f"m{weight}": f"{M} --dataset bare --ldm_weight 1 --memorization_weight {weight}"
            for weight in ("0.3", "3")
        },
    ),
    "five": Study(
        "Photographs of five of the nine categories: what of the culture reaches the other four?",
        {method: f"--method {method} --dataset five" for method in ("finetune", "m", "mpc")},
        prompts_of_the_other_four,
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
    lines = {arm: line_of(flags, culture=culture, seed=seed) for arm, flags in study.arms.items()}
    files = {arm: sorted(Path(line[1], culture).glob("*.parquet")) for arm, line in lines.items()}
    pictures = [*DRAWING, *SCORING, study.prompts and study.prompts(WORK / "data").read_text()]
    return {
        arm: content_key(settings_key(line), pictures, *map(file_sha256, files[arm])) for arm, line in lines.items()
    }


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
    loras = {arm: WORK / "loras" / f"{culture}-{seed}-{key[:16]}" for arm, key in settings.items()}
    prompts = ["--prompts", study.prompts(WORK / "data")] if study.prompts else []
    for arm, folder in loras.items():
        if not (folder / "README.md").is_file():  # the page is what a finished run writes last
            line = line_of(study.arms[arm], culture=culture, seed=seed)
            goes_on = ["--resume_from_checkpoint", "latest"] if folder.exists() else []
            run(ROOT / "train_scoft_lora.py", *line, "--output_dir", folder, *goes_on)
    named = [f"{arm}={folder}" for arm, folder in loras.items()]
    pictures = WORK / "pictures" / f"{culture}-{seed}-{content_key(settings)[:16]}"
    data = ["--dataset", "pocket", "--culture", culture]
    run(ROOT / "evaluate_scoft.py", "generate", pictures, *data, "--lora", *named, *DRAWING, *prompts)
    run(ROOT / "evaluate_scoft.py", "score", pictures, *data, *SCORING)
    scores = json.loads((pictures / "results.json").read_text())["scores"]
    numbers = {}
    for score in scores:
        numbers.setdefault(score["method"], {})[f"{score['metric']}:{score['set']}"] = score["value"]
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


# ---------------------------------------------------------------------------------------------------------------------
# What the runs say together
# ---------------------------------------------------------------------------------------------------------------------


def mean_with_interval(by_seed: Sequence[float], *, level: float = 0.95) -> tuple[float, ...]:
    """(mean,) of one value; (mean, low, high) by Student's t of several, one a training seed."""
    values = np.asarray(by_seed, dtype=float)
    if len(values) < 2:
        return (float(values.mean()),)
    reach = student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - reach), float(values.mean() + reach)


def by_seed(runs: Iterable[dict], number: str, arm: str) -> dict[int, dict[str, float]]:
    """seed -> culture -> the arm's value of `number`, a metric and its set."""
    found: dict[int, dict[str, float]] = {}
    for each in runs:
        if each["arm"] == arm and number in each["numbers"]:
            found.setdefault(each["seed"], {})[each["culture"]] = each["numbers"][number]
    return found


def difference(runs: Sequence[dict], number: str, arm: str, other: str) -> tuple[float, ...]:
    """`arm` minus `other`, of each seed the mean over the cultures that both have; () where they share none."""
    mine, theirs = by_seed(runs, number, arm), by_seed(runs, number, other)
    differences = []
    for seed in mine.keys() & theirs.keys():
        if shared := mine[seed].keys() & theirs[seed].keys():
            differences.append(np.mean([mine[seed][culture] - theirs[seed][culture] for culture in sorted(shared)]))
    return mean_with_interval(differences) if differences else ()


def page(record: Mapping[str, list[dict]]) -> str:
    """claims.md of all that was run: a section a study, means of its arms, and differences to its first."""
    lines = ["# What each term does, where the truth is known", ""]
    lines += [
        "Made by `python -m benchmarks.claims`, which says how. Intervals are 95 %, over training seeds, paired by"
    ]
    lines += ["seed; bold ones are without 0. An arrow says which way is better."]
    for name, study in STUDIES.items():
        if not (runs := record.get(name)):
            continue
        arms = [arm for arm in ("base", *study.arms) if any(each["arm"] == arm for each in runs)]
        shown = [(metric, of) for metric, of in SHOWN if any(f"{metric}:{of}" in each["numbers"] for each in runs)]
        seeds, cultures = ({each[what] for each in runs} for what in ("seed", "culture"))
        lines += ["", f"## {study.question}", ""]
        lines += [
            f"Study `{name}`: {', '.join(sorted(cultures))}; training seeds {', '.join(map(str, sorted(seeds)))}."
        ]
        heading = ["arm", *(headline(metric, of) for metric, of in shown)]
        means, differences = [], []
        first = next(iter(study.arms))
        for arm in arms:
            means.append([arm, *(mean_text(runs, metric, of, arm) for metric, of in shown)])
            if arm != first:
                differences.append(
                    [f"{arm} - {first}", *(difference_text(runs, metric, of, arm, first) for metric, of in shown)]
                )
        lines += ["", *table(heading, means), "", *table(heading, differences)]
    return "\n".join(lines) + "\n"


def mean_text(runs: Sequence[dict], metric: str, of: str, arm: str) -> str:
    values = [np.mean(list(cultures.values())) for cultures in by_seed(runs, f"{metric}:{of}", arm).values()]
    return with_interval(mean_with_interval(values)[:1], metric_of(metric).decimals) if values else ""


def difference_text(runs: Sequence[dict], metric: str, of: str, arm: str, other: str) -> str:
    found = difference(runs, f"{metric}:{of}", arm, other)
    text = with_interval(found, metric_of(metric).decimals) if found else ""
    return Bold(text) if len(found) == 3 and not found[1] <= 0 <= found[2] else text


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
    there.pop("base", None)
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
    write_atomically(args.page, page(record))
    print(args.page.read_text())


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""How the pocket world's cultures are depicted before and after training, by culture, method and seed.

    python -m benchmarks.pocket_cultures --cultures veridia --methods finetune m mpc --seeds 0 1 2
    python -m benchmarks.pocket_cultures --methods mpc --output trial.json --flags --max_train_steps 100

Each run is the README's command, by accelerate's launcher, with the method and the seed, and is timed as a whole, from
the start of the launcher to its end.  Its numbers are those of the pocket judge on the pictures of the base model and
of the LoRA at the same seeds, with 95 % intervals.  The output folders stay in `build/pocket_cultures`.

A run that --output already holds with the same settings (all flags, the judge, the embedded files) is not done again.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

import train_scoft_lora as trainer
from benchmarks.train_step import processor
from scoft.dataset_source import embedded_folder
from scoft.distances import DISTANCES
from scoft.files import content_key, write_atomically
from scoft.pages import with_interval
from scoft.train.terms import METHODS


ROOT = Path(trainer.__file__).resolve().parent
RUNS = ROOT / "build" / "pocket_cultures"
RATES = ("right", "stereotype", "azurian")  # of the judge's numbers, those shown


def command_line(*, dataset: str, culture: str, method: str, seed: int, flags: list[str]) -> list[str]:
    """What a run hands to the training script, but for its output folder."""
    return ["--dataset", dataset, "--culture", culture, "--method", method, "--seed", str(seed), *flags]


def settings_key(argv: list[str]) -> str:
    """A hash of all that decides a run's numbers: its resolved flags, the judge, the embedded files' checksums."""
    args = trainer.parse_args(argv)
    if not args.validation_judge:
        raise SystemExit(
            f"--dataset {args.dataset} has no judge of its own: give --flags --validation_judge FILE.py:f"
        )
    if args.margin is None:
        args.margin = DISTANCES[args.perceptual_distance].distance().default_margin
    flags = {flag: str(value).replace(f"{ROOT}/", "") for flag, value in vars(args).items()}
    judge = Path(args.validation_judge.rpartition(":")[0])
    embedded = embedded_folder(args.dataset)
    checksums = embedded / "checksums.json" if embedded else None
    return content_key(
        flags, judge.read_bytes(), checksums.read_bytes() if checksums and checksums.is_file() else None
    )


def train(argv: list[str], folder: Path) -> tuple[dict, float]:
    """The judge's numbers {"base": ..., "lora": ...} of one run, and the seconds it took; an old `folder` goes."""
    if folder.exists():
        shutil.rmtree(folder)
    command = [sys.executable, "-m", "accelerate.commands.launch", ROOT / "train_scoft_lora.py", *argv]
    started = time.perf_counter()
    done = subprocess.run([*command, "--output_dir", folder])
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"this run failed, see above: train_scoft_lora.py {' '.join(argv)}")
    return json.loads((folder / "images" / "judge.json").read_text()), seconds


def rates_table(runs: list[dict]) -> str:
    """The runs as a Markdown table: each rate's share of the pictures, base -> LoRA."""
    rows = [["culture", "method", "seed", *(f"{rate}, base -> LoRA" for rate in RATES), "seconds"]]
    rows.append(["---"] * len(rows[0]))
    for run in runs:
        changes = []
        for rate in RATES:
            keys = (rate, f"{rate}_low", f"{rate}_high")
            judged = [run["judge"][of] for of in ("base", "lora")]
            shares = [[numbers[key] for key in keys if key in numbers] for numbers in judged]
            changes.append(" -> ".join(map(with_interval, shares)))
        rows.append([run["culture"], run["method"], str(run["seed"]), *changes, f"{run['seconds']:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--dataset", default="pocket", help="another one needs a --validation_judge in --flags")
    parser.add_argument("--cultures", nargs="+", default=["veridia"])
    parser.add_argument("--methods", nargs="+", default=["finetune", "m", "mpc"], choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks/results/pocket_cultures.json", help="results are added to it"
    )
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="further flags of train_scoft_lora.py, to the line's end"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # where accelerate's launcher runs a script
    machine = {"processor": processor(device), "cpus": os.cpu_count()}
    runs = json.loads(args.output.read_text())["runs"] if args.output.exists() else []
    asked = []
    for culture, method, seed in itertools.product(args.cultures, args.methods, args.seeds):
        identity = {"dataset": args.dataset, "culture": culture, "method": method, "seed": seed, "flags": args.flags}
        line = command_line(**identity)
        settings = settings_key(line)
        run = next((run for run in runs if identity.items() <= run.items()), None)
        if run is None or run["settings"] != settings:
            runs = [other for other in runs if other is not run]
            judge, seconds = train(line, RUNS / f"{culture}-{method}-{seed}")
            run = identity | {"settings": settings, "machine": machine, "seconds": round(seconds, 1), "judge": judge}
            runs.append(run)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.output, json.dumps({"runs": runs}, indent=2) + "\n")
        asked.append(run)
    print(rates_table(asked))


if __name__ == "__main__":
    main()

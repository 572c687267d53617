"""The paper's tables on the pocket world: base model and ablations of one culture, scored, and how long it takes.

    python -m benchmarks.pocket_evaluation --output benchmarks/results/pocket_evaluation.json

Trains what `build/pocket_cultures` lacks of the LoRAs (seed 0), and times the three stages of evaluate_scoft.py by
their command lines, with the flags of pocket/defaults.yaml, `generate` in as many processes as there are cores.  The
file keeps seconds, peak memory, numbers and their differences; `--report` keeps the page with its figures.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import evaluate_scoft
from benchmarks.pocket_cultures import RUNS, command_line, train
from benchmarks.train_step import processor
from scoft.files import write_atomically


ROOT = Path(evaluate_scoft.__file__).resolve().parent
METHODS = ("m", "mp", "mpc")


def run(stage: str, folder: Path, *flags: str, processes: int = 1) -> dict[str, float]:
    """Seconds of a stage by its command line, and its peak memory (of several processes: their launcher's)."""
    command = [sys.executable]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        command += ["--main_process_port", "0"]  # any free one
        environment["ACCELERATE_USE_CPU"] = "true"
    started = time.perf_counter()
    process = subprocess.Popen([*command, ROOT / "evaluate_scoft.py", stage, folder, *flags], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"evaluate_scoft.py {stage} failed, see above")
    return {"seconds": round(time.perf_counter() - started, 1), "peak_memory_mib": usage.ru_maxrss // 1024}


def lora(culture: str, method: str, *, seed: int = 0) -> Path:
    """The LoRA of a run of `benchmarks.pocket_cultures`, trained now if there is none."""
    folder = RUNS / f"{culture}-{method}-{seed}"
    if not (folder / "README.md").is_file():  # the page is what a finished run writes last
        train(command_line(dataset="pocket", culture=culture, method=method, seed=seed, flags=[]), folder)
    return folder


def evaluate(culture: str, folder: Path, *, methods: tuple[str, ...], images: int) -> dict:
    """Each stage's seconds and memory, pictures, and the numbers of `results.json` without their replicates."""
    processes = os.cpu_count()
    data = ["--dataset", "pocket", "--culture", culture]
    loras = ["--lora", *(f"{method}={lora(culture, method)}" for method in methods)]
    stages = {
        "generate": run("generate", folder, *data, *loras, "--num_images", str(images), processes=processes),
        "score": run("score", folder, *data),
        "report": run("report", folder),
    }
    results = json.loads((folder / "results.json").read_text())
    for row in results["scores"]:
        del row["replicates"]
    return {
        "processes": processes,
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "pictures": sum(count["pictures"] for count in results["counts"].values()),
        "loras": results["loras"],  # the sha256 of each method's file
        "scores": results["scores"],
        "differences": results["differences"],
    }


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--culture", default="veridia")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--num_images", type=int, default=20, help="per prompt and caption, as in the paper")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/pocket_evaluation.json")
    parser.add_argument("--report", type=Path, help="folder for the report and its figures")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate(
            args.culture,
            Path(folder, args.culture),
            methods=tuple(args.methods),
            images=args.num_images,
        )
        if args.report:
            shutil.copytree(
                Path(folder, args.culture), args.report, ignore=shutil.ignore_patterns("images", "features")
            )
    record = {"processor": processor("cpu"), "cpus": os.cpu_count(), "culture": args.culture} | found
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, json.dumps(record, indent=1) + "\n")
    print(f"{found['pictures']} pictures, {found['seconds']} s in all: {json.dumps(found['stages'])}")


if __name__ == "__main__":
    main()

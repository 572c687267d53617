#!/usr/bin/env python
"""How long one waits before anything is computed: for --help of each command, and for the main job's first update.

    python -m benchmarks.startup --output benchmarks/results/startup.json
    python -m benchmarks.startup --beside ../older

Seconds are of one CPU core in user mode, since other processes stretch those of a clock, and medians over --repeats,
in which checkouts take turns.  Each part of the way to the first update is told with what it costs to import, in a
process that does nothing else, the modules that it imported.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import train_scoft_lora as trainer
from benchmarks.full_size import commit_of
from benchmarks.train_step import processor, rounded
from scoft.files import write_atomically


ROOT = Path(trainer.__file__).resolve().parent
DOORS = ("train_scoft_lora.py", "prepare_ccub.py", "evaluate_scoft.py")
RUN = ["--dataset", "pocket", "--culture", "veridia", "--num_validation_images", "0", "--cpu_threads", "1"]
# The parts of the way to the first update, and the functions with which they end, of the trainer or of its run.
PARTS = {
    "arguments": "parse_args",
    "dataset": "build_dataset",
    "models": "build_distance",
    "constants": "build_objective",
    "first update": "update",
}
LAUNCHERS = {
    "accelerate launch": "accelerate.commands.accelerate_cli launch",
    "python -m accelerate.commands.launch": "accelerate.commands.launch",
}
# Trains until each of PARTS has ended once; tells the seconds since the start, and the modules that are new.
TRAIN = """
import gc, importlib, json, os, sys
from scoft.launch import run_main
import train_scoft_lora as trainer

def ending(part, function):
    def ended(*args, **kwargs):
        result = function(*args, **kwargs)
        known = {name for each in parts.values() for name in each["modules"]}
        new = [name for name in list(sys.modules) if name not in known]
        parts.setdefault(part, {"seconds": os.times().user, "modules": new})
        if part == last:
            print(json.dumps([parts, gc.get_threshold()]))
            sys.exit()
        if part == "arguments" and os.path.exists("scoft/train/run.py"):  # in older checkouts the trainer is all
            watch(importlib.import_module("scoft.train.run"))  # heavy, and so imported when the trainer does
        return result
    return ended

def watch(room):
    for part, name in names.items():
        if hasattr(room, name):
            setattr(room, name, ending(part, getattr(room, name)))

names, flags, parts = *map(json.loads, sys.argv[1:]), {}
*_, last = names
watch(trainer)
run_main(lambda: trainer.main(flags), memory_advice="")
"""
# Imports lists of modules, collecting garbage as rarely as the trainer; tells the seconds since the start after each.
IMPORT = """
import contextlib, gc, importlib, json, os, sys

parts, threshold = json.load(sys.stdin)
gc.set_threshold(*threshold)
seconds = []
for names in parts:
    for name in names:
        with contextlib.suppress(ImportError, ValueError, AttributeError):  # made at run time, without a file
            importlib.import_module(name)
    seconds.append(os.times().user)
print(json.dumps(seconds))
"""


def run(
    *words: str | Path, checkout: Path = ROOT, given: str | None = None
) -> tuple[subprocess.CompletedProcess, float]:
    """Python with these words in a checkout; what it said, and its seconds of a CPU."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, env=environment, input=given, capture_output=True, text=True
    )
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    if done.returncode:
        raise SystemExit(f"python {' '.join(map(str, words[:4]))} failed in {checkout}:\n{done.stderr[-4000:]}")
    return done, seconds


def help_of(door: str, checkout: Path) -> dict[str, float]:
    """What --help of a command takes, and how many modules it imports."""
    start = time.perf_counter()
    _, seconds = run(door, "--help", checkout=checkout)
    wall = time.perf_counter() - start
    told, _ = run("-X", "importtime", door, "--help", checkout=checkout)
    return {"seconds": seconds, "wall_seconds": wall, "modules": told.stderr.count("import time:") - 1}


def first_update(checkout: Path) -> dict[str, dict[str, float]]:
    """Seconds by part, `import_seconds` among them, and modules imported."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [*RUN, "--max_train_steps", "1", "--output_dir", f"{folder}/lora"]
        done, _ = run("-c", TRAIN, json.dumps(PARTS), json.dumps(flags), checkout=checkout)
    ended, threshold = json.loads(done.stdout.splitlines()[-1])
    modules = [each["modules"] for each in ended.values()]
    imported, _ = run("-c", IMPORT, checkout=checkout, given=json.dumps([modules, threshold]))
    parts, since, importing_since = {}, 0.0, 0.0
    for (part, each), importing in zip(ended.items(), json.loads(imported.stdout.splitlines()[-1])):
        parts[part] = {
            "seconds": each["seconds"] - since,
            "import_seconds": importing - importing_since,
            "modules": len(each["modules"]),
        }
        since, importing_since = each["seconds"], importing
    sums = {name: sum(each[name] for each in parts.values()) for name in ("seconds", "import_seconds", "modules")}
    return parts | {"all": sums}


def launchers() -> dict[str, dict[str, float]]:
    """What it takes to launch a script that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "nothing.py")
        script.touch()
        return {name: {"seconds": run("-m", *words.split(), script)[1]} for name, words in LAUNCHERS.items()}


def measure(checkout: Path) -> dict:
    return {"help": {door: help_of(door, checkout) for door in DOORS}, "first_update": first_update(checkout)}


def medians(runs: list) -> dict | float:
    """Of numbers that lie at the same place in each of some nested dicts."""
    if isinstance(runs[0], dict):
        return {name: medians([each[name] for each in runs]) for name in runs[0]}
    return statistics.median(runs)


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--repeats", type=int, default=5, help="to take medians over")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    args = parser.parse_args(argv)
    if args.beside and not (args.beside / DOORS[0]).is_file():
        parser.error(f"--beside {args.beside} has no {DOORS[0]}; give the folder of a checkout")
    checkouts = {"here": ROOT} | ({"beside": args.beside.resolve()} if args.beside else {})
    runs = {name: [] for name in ("launcher", *checkouts)}
    for _ in range(args.repeats):
        runs["launcher"].append(launchers())
        for name, checkout in checkouts.items():
            runs[name].append(measure(checkout))
    result = {
        "processor": processor("cpu"),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")},
        "repeats": args.repeats,
        "commits": {name: commit_of(checkout) for name, checkout in checkouts.items()},
        **{name: medians(each) for name, each in runs.items()},
    }
    result = rounded(result)
    print(json.dumps(result, indent=1))
    if args.output:
        write_atomically(args.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How often a run that is killed at random moments ends in other weights than an undisturbed one: it should be never.

    python tests/tiny.py build/tiny
    python benchmarks/kill_and_resume.py --config build/tiny/train.yaml

For each seed, a straight run; then the same run, killed by SIGKILL after a random time and resumed, until it has been
killed --kills times and may finish.  Compares the LoRAs bit for bit and the metrics line by line.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file


ROOT = Path(__file__).resolve().parents[1]
LORA_FILE = "pytorch_lora_weights.safetensors"


def start(config: Path, folder: Path, *, seed: int, updates: int) -> subprocess.Popen:
    command = [sys.executable, ROOT / "train_scoft_lora.py", "--config", config, "--output_dir", folder]
    command += ["--seed", str(seed), "--max_train_steps", str(updates), "--checkpointing_steps", "3"]
    command += ["--checkpoints_total_limit", "2", "--resume_from_checkpoint", "latest"]
    command += ["--num_validation_images", "0", "--report_to", "none", "--logging_steps", "1"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_metrics(process: subprocess.Popen, folder: Path, *, lines: int) -> None:
    """Until the run has begun and written `lines` lines; it may also end before."""
    metrics = folder / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < lines):
        time.sleep(0.01)


def read_metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def trial(config: Path, folder: Path, *, seed: int, kills: int, updates: int) -> dict:
    straight, killed = folder / f"straight-{seed}", folder / f"killed-{seed}"
    if start(config, straight, seed=seed, updates=updates).wait():
        raise SystemExit(f"the undisturbed run with seed {seed} failed; try it by hand: --config {config}")
    rng, at = random.Random(seed), []
    while len(at) < kills:
        process = start(config, killed, seed=seed, updates=updates)
        done = len(read_metrics(killed)) if (killed / "metrics.jsonl").exists() else 0
        wait_for_metrics(process, killed, lines=min(done + 1, updates))
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            process.wait()
            break
        process.kill()
        process.wait()
        at.append(max((int(path.name.removeprefix("checkpoint-")) for path in killed.glob("checkpoint-*")), default=0))
    if start(config, killed, seed=seed, updates=updates).wait():
        raise SystemExit(f"the resumed run with seed {seed} failed")
    a, b = (load_file(folder / LORA_FILE) for folder in (straight, killed))
    return {
        "seed": seed,
        "kills": len(at),
        "newest_checkpoint_at_each_kill": at,
        "same_weights": a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a),
        "same_metrics": read_metrics(straight) == read_metrics(killed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--config", type=Path, required=True, help="flags of the run, as train_scoft_lora.py takes them"
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    trials = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            trials.append(trial(args.config, Path(folder), seed=seed, kills=args.kills, updates=args.updates))
            print(json.dumps(trials[-1]), flush=True)
    if args.output:
        args.output.write_text(json.dumps({"updates": args.updates, "trials": trials}, indent=2) + "\n")


if __name__ == "__main__":
    main()

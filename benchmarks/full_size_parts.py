#!/usr/bin/env python
"""What the parts of `benchmarks.full_size` measure, each in a process of its own, which may end at any moment.

    python -m benchmarks.full_size_parts bench --size tiny --device cpu --arms ours --lines build/lines.jsonl

A kind of part is a function of the arguments that gives its cases, by name, as functions that measure.  A line of JSON
is written when a case begins and when it ends: its result, or nothing, if the process went down with it.
"""

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.autograd import DeviceType

import train_scoft_lora as trainer
from benchmarks.lowest_versions import outcomes
from benchmarks.random_models import folder_of
from benchmarks.train_step import (
    ARMS,
    KINDS,
    SIZES,
    Bench,
    PeakMemory,
    mean_per_update,
    processor,
    rounded,
    seconds_per_update,
)
from pocket.make_dataset import words
from scoft.lora_folder import LORA_FILE
from scoft.weights import DTYPES


ROOT = Path(trainer.__file__).resolve().parent
CULTURE = "veridia"
PROMPT = "Photo of a street, in Veridia"
PACKAGES = ("torch", "torchvision", "triton", "diffusers", "transformers", "peft", "accelerate", "datasets", "timm",
            "huggingface_hub", "safetensors", "numpy")  # fmt: skip
# How much of each is done.
AMOUNTS = {
    "full": {"rounds": 5, "every": 10, "updates": 100, "steps": 20, "images": 4, "photographs": 2, "compiled": 99},
    "tiny": {"rounds": 1, "every": 2, "updates": 10, "steps": 2, "images": 3, "photographs": 1, "compiled": 1},
}
WARNING = re.compile(r"warn|deprecat", re.IGNORECASE)
MOST_TOLD = 20  # warnings
# The calls by which a CPU gives a GPU work, or waits for it.
CALLS = re.compile(r"cu(da)?(LaunchKernel|GraphLaunch|MemcpyAsync|MemsetAsync|\w*Synchronize)")


# ---------------------------------------------------------------------------------------------------------------------
# Command lines
# ---------------------------------------------------------------------------------------------------------------------


def asked_of_gpu(field: str) -> str | None:
    """What nvidia-smi says of the first GPU; None where there is none, or nvidia-smi is not there."""
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError):
        return subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0].strip() or None
    return None


class DeviceMemory:
    """The most memory that the whole GPU held while this was entered, in MiB, looked at each second, and that before.

    By nvidia-smi, so with CUDA's context and what torch's allocator keeps; `None` without a GPU or without it.
    """

    def __init__(self, device: str):
        self.device, self.ended = device, threading.Event()
        self.before = self.peak = self.now()

    def now(self) -> int | None:
        told = asked_of_gpu("memory.used") if self.device == "cuda" else None
        return int(told) if told and told.isdigit() else None

    def look(self):
        while not self.ended.wait(1):
            self.peak = max(self.peak or 0, self.now() or 0)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self.look, daemon=True)
        if self.before is not None:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            if thread.is_alive():
                thread.join()


def run(command: Iterable, *, device: str) -> tuple[list[str], dict]:
    """The lines that a command printed, which are passed on as they come; its seconds and peak memory.

    Raises SystemExit where it failed.  On the CPU the memory is the largest resident set of this process's children.
    """
    command = [str(word) for word in command]
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    memory, started, lines = DeviceMemory(device), time.perf_counter(), []
    with (
        memory.watched(),
        subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        raise SystemExit(f"the command whose output stands above ended with {process.returncode}")
    measured = {"seconds": time.perf_counter() - started}
    measured["device_memory_mib"] = {"before": memory.before, "peak": memory.peak}
    if device == "cpu":
        measured["peak_resident_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return lines, measured


def launched(script: str, arguments: Iterable, *, device: str) -> tuple[list[str], dict]:
    """The same of one of our commands, by accelerate's launcher, which is told what it would warn of not knowing."""
    told = {"num_processes": 1, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *words(told)]
    return run([*launcher, script, *arguments], device=device)


def warnings_in(lines: Iterable[str]) -> list[str]:
    """The lines that warn, each once."""
    return list(dict.fromkeys(line.strip() for line in lines if WARNING.search(line)))[:MOST_TOLD]


def module(name: str, args: argparse.Namespace, *arguments: object) -> dict:
    """The last run that a benchmark with --size, --device, --precision and --output adds to its file."""
    output = args.work / f"{name}.json"
    output.unlink(missing_ok=True)
    place = words({"size": args.size, "device": args.device, "precision": args.precision, "output": output})
    lines, measured = run([sys.executable, "-m", f"benchmarks.{name}", *place, *arguments], device=args.device)
    return json.loads(output.read_text())["runs"][-1] | {"whole": measured, "warnings": warnings_in(lines)}


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of parts
# ---------------------------------------------------------------------------------------------------------------------


def gpu_tests(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """The tests with the marker `gpu`, of which only the files that name it are read."""

    def measure() -> dict:
        report = args.work / "gpu_tests.xml"
        files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in file.read_text()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", *files],
            cwd=ROOT,
        )
        return {"rc": done.returncode, **outcomes(report)}

    return {"pytest -m gpu": measure}


def train_step(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """Both arms in turn, with the arithmetic and the memory of each."""
    amounts = AMOUNTS[args.size]
    flags = {"updates": amounts["rounds"], "perceptual_every": amounts["every"]}
    flags |= {"num_denoising_steps": amounts["steps"]}
    return {"ours and plain, batch 1, K 1": lambda: module("train_step", args, *words(flags))}


@contextlib.contextmanager
def compiling_without_inductor() -> Iterator[None]:
    """Have `torch.compile` only trace, and run the graphs that it found: on a CPU, where inductor takes minutes.

    All else of a compiled run is rehearsed; seconds say nothing there anyway.
    """
    compile = torch.compile
    torch.compile = lambda model, dynamic=None, **_: compile(model, dynamic=dynamic, backend="eager")
    try:
        yield
    finally:
        torch.compile = compile


def settings_of(args: argparse.Namespace, *, batch: int, captions: int, checkpointing: bool) -> dict:
    """Of a `Bench`."""
    return {
        "size": args.size,
        "resolution": SIZES[args.size]["resolution"],
        "device": args.device,
        "precision": args.precision,
        "batch": batch,
        "blip_captions": captions,
        "negatives": 5,
        "num_denoising_steps": AMOUNTS[args.size]["steps"],
        "perceptual_every": AMOUNTS[args.size]["every"],
        "compile": args.compile,
        "gradient_checkpointing": checkpointing,
    }


def measured_updates(arm: str, settings: dict, *, rounds: int) -> dict:
    """Seconds and peak memory of one arm's updates by kind, as `benchmarks.train_step` measures them, in this process.

    What an earlier case has left on the device stands beside them.
    """
    device, every = settings["device"], settings["perceptual_every"]
    torch._dynamo.reset()
    gc.collect()
    left = None
    if device == "cuda":
        torch.cuda.empty_cache()
        left = torch.cuda.memory_allocated() / 2**20
    memory = PeakMemory(device) if PeakMemory.is_supported(device) else None
    bench = Bench(arms=(arm,), **settings)
    loop = bench.updates(arm, range(1, (1 + rounds) * every + 1))
    warmup = every * seconds_per_update(loop, count=every, device=device)
    seconds, peaks = ({kind: [] for kind in KINDS} for _ in range(2))
    for _ in range(rounds):
        for kind, count in zip(KINDS, (every - 1, 1)):
            if memory:
                memory.reset()
            seconds[kind].append(seconds_per_update(loop, count=count, device=device))
            if memory:
                peaks[kind].append(round(memory.read()))
    medians = {kind: statistics.median(each) for kind, each in seconds.items()}
    return {
        "seconds": medians | {"mean": mean_per_update(medians, every=every)},
        "peak_memory_mib": {kind: max(each) for kind, each in peaks.items() if each},
        "left_by_others_mib": left,
        "warmup_seconds": warmup,
        "rounds_seconds": seconds,
    }


def bench(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """Every combination of arm, batch, number of naive captions and checkpointing that is asked for."""
    cases = {}
    for checkpointing, captions, batch, arm in itertools.product(
        args.checkpointing, args.captions, args.batches, args.arms
    ):
        settings = settings_of(args, batch=batch, captions=captions, checkpointing=checkpointing == "on")
        name = f"{arm}, batch {batch}, K {captions}" + (", checkpointing" if checkpointing == "on" else "")
        cases[name] = functools.partial(measured_updates, arm, settings, rounds=AMOUNTS[args.size]["rounds"])
    return dict(itertools.islice(cases.items(), AMOUNTS[args.size]["compiled"] if args.compile else None))


def train(args: argparse.Namespace, folder: Path, *, updates: int) -> tuple[list[str], dict]:
    """A run of the trainer on random weights and noise; what it printed, seconds and memory."""
    here = functools.partial(folder_of, work=args.work, size=args.size, device=torch.device(args.device))
    amounts, shapes = AMOUNTS[args.size], SIZES[args.size]
    flags = {
        "pretrained_model_name_or_path": here("pipeline"),
        "dataset": here("dataset"),
        "culture": CULTURE,
        "perceptual_model_name_or_path": here("clip_conv"),
        "method": "mpc",
        "mixed_precision": {"fp32": "no"}.get(args.precision, args.precision),
        "resolution": shapes["resolution"],
        "rank": shapes["rank"],
        "max_train_steps": updates,
        "perceptual_every": amounts["every"],
        "num_denoising_steps": amounts["steps"],
        "validation_prompt": PROMPT,
        "num_validation_images": 1,
        "validation_inference_steps": amounts["steps"],
        "logging_steps": amounts["every"],
        "report_to": "none",
        "output_dir": folder,
    }
    compiled = ["--compile"] if args.compile else []
    return launched("train_scoft_lora.py", [*words(flags), *compiled], device=args.device)


def updates(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """Updates by the trainer's own command line, and its LoRA in diffusers' stock pipeline."""
    amounts = AMOUNTS[args.size]

    def measure() -> dict:
        folder = args.work / f"run-{args.size}-{args.precision}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut short
        lines, whole = train(args, folder, updates=amounts["updates"])
        told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        warm = [line["seconds"] for line in told[len(told) // 2 :]]  # after what is slow at first
        values = [value for line in told for name, value in line.items() if name.startswith("loss")]
        result = {
            "updates": len(told),
            "image_updates": sum("loss/perceptual" in line for line in told),
            "losses_finite": all(map(math.isfinite, values)),
            "seconds_per_update": {"first": told[0]["seconds"], "second_half": statistics.median(warm)},
            "last": told[-1],
            "whole": whole,
            "lora": drawn_with(folder, args),
        }
        return result | {"warnings": warnings_in(lines)}

    return {f"{amounts['updates']} updates, {args.precision}": measure}


def drawn_with(folder: Path, args: argparse.Namespace) -> dict:
    """How far a run's LoRA, loaded by diffusers' own call, moves a picture of the base model, and how far drawing it
    once more does: root mean squares over pixels in [0, 1].
    """
    from diffusers import StableDiffusionPipeline

    device = torch.device(args.device)
    base = folder_of("pipeline", args.work, size=args.size, device=device)
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=DTYPES[args.precision]).to(device)
    pipeline.set_progress_bar_config(disable=True)
    side = SIZES[args.size]["resolution"]

    def draw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": AMOUNTS[args.size]["steps"], "height": side, "width": side}
        return pipeline(PROMPT, generator=generator, output_type="pt", **options).images.float().cpu()

    first, again = draw(), draw()
    pipeline.load_lora_weights(folder)
    moved = (draw() - first).square().mean().sqrt().item()
    repeated = (again - first).square().mean().sqrt().item()
    return {"moves_by": moved, "repeated_by": repeated, "changes_the_picture": moved > repeated}


def prepare(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    amounts = AMOUNTS[args.size]
    flags = {"photographs": amounts["photographs"], "num_inference_steps": amounts["steps"]}
    return {"negatives": lambda: module("prepare", args, "--full_size", *words(flags))}


def evaluate(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """The stages of evaluate_scoft.py with a LoRA that a run of ours, or a short one now, has made."""
    here = functools.partial(folder_of, work=args.work, size=args.size, device=torch.device(args.device))
    folder, run_folder = args.work / f"evaluation-{args.size}", args.work / f"run-{args.size}-{args.precision}"
    amounts, prompts = AMOUNTS[args.size], args.work / "prompts.txt"

    def generate() -> dict:
        if not (run_folder / LORA_FILE).is_file():
            shutil.rmtree(run_folder, ignore_errors=True)
            train(args, run_folder, updates=amounts["every"])
        prompts.write_text(f"{PROMPT}\nPhoto of a bowl\n")
        flags = {"dataset": here("dataset"), "culture": CULTURE, "lora": f"mpc={run_folder}", "prompts": prompts}
        flags |= {"general_prompts": prompts, "num_captions": 3, "num_images": amounts["images"]}
        flags |= {"num_inference_steps": amounts["steps"], "mixed_precision": args.precision}
        lines, whole = launched("evaluate_scoft.py", ["generate", folder, *words(flags)], device=args.device)
        pictures = sum(1 for _ in (folder / "images").rglob("*.png"))
        return {"pictures": pictures, "whole": whole, "warnings": warnings_in(lines)}

    def score() -> dict:
        if not (folder / "manifest.jsonl").is_file():  # drawn on another machine
            generate()
        metrics = "kid clip_score clip_i dino div precision recall density coverage vendi nearest".split()
        encoders = [f"clip={here('clip')}", f"dino={here('dino')}"]
        flags = {"dataset": here("dataset"), "culture": CULTURE, "features": "clip", "diversity_features": "dino"}
        flags |= {"device": args.device, "neighbours": 2}
        command = [sys.executable, "evaluate_scoft.py", "score", folder, *words(flags)]
        lines, whole = run([*command, "--metrics", *metrics, "--encoder", *encoders], device=args.device)
        scores = json.loads((folder / "results.json").read_text())["scores"]
        kept = {f"{row['method']}, {row['set']}, {row['metric']}": row["value"] for row in scores}
        note = "of random weights throughout: that they come says all, what they are says nothing"
        return {"scores": kept, "scores_are": note, "whole": whole, "warnings": warnings_in(lines)}

    return {"generate": generate, "score": score}


# ---------------------------------------------------------------------------------------------------------------------
# A profile
# ---------------------------------------------------------------------------------------------------------------------


def busy(intervals: Iterable[tuple[float, float]]) -> float:
    """How long at least one of the intervals (start, end) lasts."""
    total, until = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def summary(events: list[tuple[str, float, float]], *, updates: int, largest: int = 10) -> dict:
    """What kept the device busy: events (name, start, end) in microseconds, told per update."""
    spans = [(start, end) for _, start, end in events]
    span = max(end for _, end in spans) - min(start for start, _ in spans)
    time_of, count_of = Counter(), Counter()
    for name, start, end in events:
        time_of[name] += end - start
        count_of[name] += 1
    return {
        "events_per_update": len(events) / updates,
        "busy_ms_per_update": busy(spans) / updates / 1000,
        "span_ms_per_update": span / updates / 1000,
        "idle_share": 1 - busy(spans) / span,
        "largest": [
            {
                "name": name[:120],
                "ms_per_update": microseconds / updates / 1000,
                "events_per_update": count_of[name] / updates,
                "share_of_events_time": microseconds / sum(time_of.values()),
            }
            for name, microseconds in time_of.most_common(largest)
        ],
    }


def profile(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """Ten updates of ours, batch 1, K 1, under torch's profiler, after ten that are not looked at."""

    def measure() -> dict:
        every, device = AMOUNTS[args.size]["every"], args.device
        settings = settings_of(args, batch=1, captions=1, checkpointing=False)
        loop = Bench(arms=("ours",), **settings).updates("ours", range(1, 3 * every + 1))
        warmup = every * seconds_per_update(loop, count=every, device=device)
        unwatched = seconds_per_update(loop, count=every, device=device)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profiler:
            watched = seconds_per_update(loop, count=every, device=device)
        found = profiler.events()
        if device == "cuda":  # what the GPU ran, without the ranges that annotate it
            seen = [each for each in found if each.device_type == DeviceType.CUDA and not each.is_user_annotation]
        else:
            seen = [each for each in found if each.name.startswith("aten::") and not each.cpu_children]
        events = [(each.name, each.time_range.start, each.time_range.end) for each in seen]
        calls = Counter(each.name for each in found if CALLS.match(each.name))
        return {
            "events_are": "kernels and copies" if device == "cuda" else "operations of the CPU",
            **summary(events, updates=every),
            "calls_per_update": {name: count / every for name, count in calls.most_common()},
            "ms_per_update": {"profiled": 1000 * watched, "not profiled": 1000 * unwatched},
            "warmup_seconds": warmup,
        }

    return {"ten updates": measure}


# ---------------------------------------------------------------------------------------------------------------------


def machine(args: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """Where this runs."""

    def measure() -> dict:
        there = torch.cuda.is_available()
        memory = torch.cuda.get_device_properties(0).total_memory // 2**20 if there else None
        return {
            "gpu": torch.cuda.get_device_name() if there else None,
            "gpu_memory_mib": memory,
            "driver": asked_of_gpu("driver_version"),
            "cuda": torch.version.cuda if there else None,
            "processor": processor("cpu"),
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }

    return {"machine": measure}


KINDS_OF_PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Callable[[], dict]]]] = {
    each.__name__: each for each in (gpu_tests, train_step, bench, updates, prepare, evaluate, profile, machine)
}


def tell(lines: Path, **told):
    """Add a line, whole even if this is the last that the process does."""
    with lines.open("a") as file:
        file.write(json.dumps(told) + "\n")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("kind", choices=KINDS_OF_PARTS)
    parser.add_argument("--size", default="full", choices=AMOUNTS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--precision", default="bf16", choices=DTYPES)
    parser.add_argument("--compile", action="store_true", help="of bench, profile and updates")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, help="of bench, as what follows")
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--captions", nargs="+", type=int, default=[1], help="naive, per photograph and update")
    parser.add_argument("--checkpointing", nargs="+", default=["off"], choices=["off", "on"])
    parser.add_argument("--work", type=Path, default=ROOT / "build/full_size", help="folder of models and runs")
    parser.add_argument("--lines", type=Path, required=True, help="file to which the cases' lines are added")
    parser.add_argument("--done", nargs="*", default=[], help="cases that are left out")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    cases = KINDS_OF_PARTS[args.kind](args)
    tell(args.lines, cases=list(cases))
    with compiling_without_inductor() if args.device == "cpu" else contextlib.nullcontext():
        for name, measure in cases.items():
            if name not in args.done:
                tell(args.lines, begun=name)
                started = time.perf_counter()
                result = rounded(measure())
                tell(args.lines, case=name, result=result, seconds=round(time.perf_counter() - started, 1))


if __name__ == "__main__":
    main()

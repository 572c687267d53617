#!/usr/bin/env python
"""All that only a GPU can show, in the order of its worth and in bounded time, on a machine without a network.

    python -m benchmarks.full_size --minutes 9
    python -m benchmarks.full_size --size tiny --device cpu --output benchmarks/results/full_size_rehearsal.json

The parts are the rows of PARTS, and `benchmarks.full_size_parts` says what each does.  A part is a process that is
killed when its seconds are over; what it has measured by then is kept.  --output is written anew with every
result, so that it holds all there is whenever the machine goes away, and the next call goes on with what is missing:

    done                  is not done again
    cut at its bound      has had its time: `--again` goes on with the cases that are missing
    cut short             by --minutes, or from outside: goes on with the cases that are missing
    failed                its cases that failed keep their last lines of output: `--again` tries those again

--minutes bounds a call.  A part begins where all of its seconds are left, and a shorter one that comes later is drawn
forward; only when none fits, the first that is missing gets what there is.

What such a machine lacks of requirements.txt comes as wheels, see `benchmarks.wheels`.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from scoft.errors import DataError
from scoft.files import read_record, write_atomically
from scoft.pages import aligned


ROOT = Path(__file__).resolve().parent.parent
LAST_LINES = 12  # of the output of what failed
LONGEST_LINE = 300  # characters
LEAST = 30  # seconds in which a part might yet measure something
REMEDY = "Name another --output, or remove it; nothing in it can be gone on with."
TAKE_ALONG = (
    "Where there is a network, `python -m benchmarks.wheels` makes a folder of wheels of them to take along; here, "
    "`pip install --no-index --no-deps --target build/site wheels/*.whl`, and set PYTHONPATH to build/site"
)

State = Literal["running", "done", "failed", "cut at its bound", "cut short"]
CaseState = Literal["not begun", "running", "done", "failed", "cut"]


# ---------------------------------------------------------------------------------------------------------------------
# What is measured
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a part finds and leaves things."""

    size: str
    device: str
    work: Path


@dataclasses.dataclass(frozen=True)
class Part:
    """A row of PARTS: a process that adds lines of JSON to the file it is given, see `benchmarks.full_size_parts`."""

    name: str
    seconds: float  # allowed
    command: Callable[[Place, Path, list[str]], list]  # of the place, the file of lines, and the cases that are done


def worker(words: str) -> Callable[[Place, Path, list[str]], list]:
    """The command of a kind of part with its flags."""

    def command(place: Place, lines: Path, done: list[str]) -> list:
        where = ["--size", place.size, "--device", place.device, "--work", place.work, "--lines", lines]
        return [sys.executable, "-m", "benchmarks.full_size_parts", *words.split(), *where, "--done", *done]

    return command


# In order of worth. 25 minutes in all.
PARTS = (
    Part("gpu_tests", 90, worker("gpu_tests")),
    Part("train_step", 120, worker("train_step")),
    Part("updates_bf16", 130, worker("updates")),
    Part("train_step_compiled", 200, worker("bench --compile --arms ours plain")),
    Part("profile", 70, worker("profile")),
    Part("profile_compiled", 120, worker("profile --compile")),
    Part("updates_fp16", 70, worker("updates --precision fp16")),
    Part("updates_no", 90, worker("updates --precision fp32")),
    Part("batches", 180, worker("bench --arms ours --batches 1 4 8 --captions 1 5 --checkpointing off on")),
    Part("batches_plain", 70, worker("bench --arms plain --batches 1 4 --captions 1 5")),
    Part("evaluate", 120, worker("evaluate")),
    Part("prepare", 90, worker("prepare")),
    Part(
        "batches_compiled",
        150,
        worker("bench --compile --arms ours --batches 4 8 1 --captions 1 5 --checkpointing off on"),
    ),
)


# ---------------------------------------------------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    state: CaseState = "not begun"
    seconds: float | None = None
    result: dict | None = None
    last_lines: list[str] | None = None


@dataclasses.dataclass
class Outcome:
    """Of a part: its state, the call in which it ran last, and its cases by name."""

    state: State
    call: int
    allowed: float  # seconds
    seconds: float = 0.0  # in all calls
    cases: dict[str, Case] = dataclasses.field(default_factory=dict)
    last_lines: list[str] | None = None

    def done(self) -> list[str]:
        return [name for name, case in self.cases.items() if case.state == "done"]

    def recorded(self) -> list[str]:
        return [name for name, case in self.cases.items() if case.state in ("done", "failed")]

    def end_running(self, state: CaseState, *, lines: list[str] | None = None):
        """Say what became of the case that was under way when its process ended."""
        for name, case in self.cases.items():
            if case.state == "running":
                self.cases[name] = Case(state, last_lines=lines)


@dataclasses.dataclass
class Record:
    """The file: settings, where each call ran, and the parts."""

    settings: dict[str, str]
    calls: list[dict]
    parts: dict[str, Outcome]

    @classmethod
    def at(cls, path: Path, *, settings: dict[str, str]) -> "Record":
        """The record in a file, or a new one. Raises DataError where the file is none, or of other settings."""
        if not path.exists():
            return cls(settings, [], {})
        record = read_record(path, cls, remedy=REMEDY)
        if record.settings != settings:
            raise DataError(f"{path} is of {record.settings}, this call of {settings}. {REMEDY}")
        for outcome in record.parts.values():
            if outcome.state == "running":  # the machine went away under it
                outcome.state = "cut short"
                outcome.end_running("cut")
        return record

    def write(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def missing(self, parts: Iterable[Part]) -> list[Part]:
        """The parts that a call is to do."""
        return [part for part in parts if part.name not in self.parts or self.parts[part.name].state == "cut short"]

    def do_again(self, names: Iterable[str]):
        """Let the next calls do what is missing or has failed in these parts, and all where nothing is."""
        for name in names:
            outcome = self.parts.get(name)
            if outcome is not None and outcome.state == "done":
                del self.parts[name]
            elif outcome is not None:
                outcome.state = "cut short"
                outcome.cases = {case: outcome.cases[case] for case in outcome.done()}


def last_lines(log: Path, places: Mapping[str, str]) -> list[str]:
    """How an output ends, in words that tell nothing of the machine's folders. places: folder -> what is said."""
    lines = [line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return [told_without(line, places)[:LONGEST_LINE] for line in lines[-LAST_LINES:]]


def told_without(text: str, places: Mapping[str, str]) -> str:
    for folder in sorted(places, key=len, reverse=True):
        text = text.replace(folder, places[folder])
    return text


def without_places(value, places: Mapping[str, str]):
    """The same of all texts in a result."""
    if isinstance(value, dict):
        return {name: without_places(part, places) for name, part in value.items()}
    if isinstance(value, list):
        return [without_places(part, places) for part in value]
    return told_without(value, places) if isinstance(value, str) else value


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


class Call:
    """One call of this command: it does parts, and writes down all that they tell."""

    def __init__(self, record: Record, output: Path, place: Place, *, deadline: float):
        self.record, self.output, self.place, self.deadline = record, output, place, deadline
        self.places = {
            str(ROOT): ".",
            str(place.work): "WORK",
            str(Path(sys.prefix).resolve()): "PYTHON",
            sys.prefix: "PYTHON",
            sys.base_prefix: "PYTHON",
            str(Path.home()): "HOME",
            tempfile.gettempdir(): "TMP",
        }

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def next_part(self, parts: Iterable[Part]) -> Part | None:
        """The first missing part that fits into what is left; the first of all, where none fits."""
        missing = self.record.missing(parts)
        if not missing or self.left < LEAST:
            return None
        return next((part for part in missing if part.seconds <= self.left), missing[0])

    def do(self, part: Part):
        """Do what is missing of a part. A case that takes the process down is recorded, a new one does the rest."""
        outcome = self.record.parts.setdefault(part.name, Outcome("running", 0, 0))
        earlier, started, fits = outcome.seconds, time.monotonic(), part.seconds <= self.left
        outcome.state, outcome.call, outcome.allowed = "running", len(self.record.calls) - 1, part.seconds
        outcome.last_lines = None
        end, log = min(started + part.seconds, self.deadline), self.place.work / f"{part.name}.log"
        print(f"{part.name}, at most {end - started:.0f} s", flush=True)
        try:
            while True:
                recorded = outcome.recorded()
                rc = self.follow(part, outcome, log, end=end)
                if rc is None or len(outcome.recorded()) in (len(outcome.cases), len(recorded)):
                    break
            if rc is None:
                outcome.state = "cut at its bound" if fits else "cut short"
            else:
                outcome.state = "failed"
                if not outcome.recorded():  # it ended before any case
                    outcome.last_lines = last_lines(log, self.places)
        except BaseException:  # Ctrl-C, or asked to end from outside
            outcome.state = "cut short"
            raise
        finally:
            outcome.end_running("cut")
            if outcome.cases and len(outcome.done()) == len(outcome.cases):
                outcome.state = "done"
            outcome.seconds = round(earlier + time.monotonic() - started, 1)
            self.record.write(self.output)
        print(f"    {outcome.state} after {time.monotonic() - started:.0f} s", flush=True)

    def follow(self, part: Part, outcome: Outcome, log: Path, *, end: float) -> int | None:
        """Run the part's process to its end, or to `end`, and keep its lines; the exit status, None if it was killed.

        All that it has started goes with it.
        """
        lines, rc, read = self.place.work / f"{part.name}.jsonl", None, 0
        lines.unlink(missing_ok=True)
        command = [str(word) for word in part.command(self.place, lines, outcome.recorded())]
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, process_group=0)
        try:
            while rc is None and time.monotonic() < end:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    rc = process.wait(timeout=min(0.2, max(0.0, end - time.monotonic())))
                read = self.take(lines, outcome, read)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.take(lines, outcome, read)
        if rc is not None:
            outcome.end_running("failed", lines=last_lines(log, self.places))
        return rc

    def take(self, lines: Path, outcome: Outcome, read: int) -> int:
        """Record the whole lines after the first `read`; how many there are now."""
        whole = lines.read_text().rpartition("\n")[0].splitlines() if lines.exists() else []
        for line in map(json.loads, whole[read:]):
            match line:
                case {"cases": names}:
                    outcome.cases = {name: outcome.cases.get(name, Case()) for name in names}
                case {"begun": name}:
                    outcome.cases[name] = Case("running")
                case {"case": name, "result": result, "seconds": seconds}:
                    outcome.cases[name] = Case("done", seconds, without_places(result, self.places))
        if len(whole) > read:
            self.record.write(self.output)
        return len(whole)


# ---------------------------------------------------------------------------------------------------------------------
# This machine
# ---------------------------------------------------------------------------------------------------------------------


def lacking(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of the lines of a requirements file: the packages that are not there, and those that are older than asked."""
    missing, older = [], []
    for line in (line.partition("#")[0].strip() for line in lines):
        if not line:
            continue
        requirement = Requirement(line)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            older.append(f"{requirement.name} {version}, asked is {requirement.specifier}")
    return missing, older


def machine(place: Place) -> dict:
    """Where this runs, as a process of its own tells it: this one leaves the GPU alone. Raises DataError."""
    lines, log = place.work / "machine.jsonl", place.work / "machine.log"
    lines.unlink(missing_ok=True)
    with log.open("w") as output:
        done = subprocess.run(worker("machine")(place, lines, []), cwd=ROOT, stdout=output, stderr=output)
    if done.returncode:
        raise DataError("the parts cannot be run here:\n" + "\n".join(last_lines(log, {})))
    return json.loads(lines.read_text().splitlines()[-1])["result"]


def commit_of(checkout: Path) -> str | None:
    """The commit of a checkout, with `-dirty` where it was changed since; None where git does not tell."""
    with contextlib.suppress(OSError):
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, cwd=checkout, capture_output=True, text=True).stdout.strip() or None
    return None


def table(record: Record, parts: Iterable[Part]) -> str:
    rows = [("part", "state", "cases", "seconds")]
    for part in parts:
        if outcome := record.parts.get(part.name):
            cases = f"{len(outcome.done())} of {len(outcome.cases)}"
            rows.append((part.name, outcome.state, cases, f"{outcome.seconds:.0f}"))
        else:
            rows.append((part.name, "missing", "", ""))
    return "\n".join(aligned(rows))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    names = [part.name for part in PARTS]
    parser.add_argument("--size", default="full", choices=["full", "tiny"], help="tiny rehearses all of it")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, help="of this call; default: the bounds of all parts")
    parser.add_argument("--again", nargs="+", default=[], choices=names, help="parts, see above")
    parser.add_argument("--stretch", type=float, default=1.0, help="factor of all bounds, where much else runs")
    parser.add_argument("--commit", help="of this code, where there is no git to tell it")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/full_size.json")
    parser.add_argument("--work", type=Path, default=ROOT / "build/full_size", help="folder of models, runs and logs")
    args = parser.parse_args(argv)
    for flag in ("minutes", "stretch"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{flag} is a number above 0, got {value}")
    return args


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    parts = [dataclasses.replace(part, seconds=part.seconds * args.stretch) for part in PARTS]
    minutes = args.minutes or sum(part.seconds for part in parts) / 60
    deadline = time.monotonic() + 60 * minutes
    missing, older = lacking((ROOT / "requirements.txt").read_text().splitlines())
    if missing:
        raise SystemExit(f"error: this Python lacks {', '.join(missing)}. {TAKE_ALONG}.")
    place = Place(args.size, args.device, args.work.resolve())
    place.work.mkdir(parents=True, exist_ok=True)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that parts are ended and written down
    try:
        record = Record.at(args.output, settings={"size": args.size, "device": args.device})
        here = machine(place)
    except DataError as error:
        raise SystemExit(f"error: {error}") from error
    if args.device == "cuda" and here["gpu"] is None:
        raise SystemExit("error: --device cuda: torch finds none here; to rehearse without: --size tiny --device cpu")
    known = {"commit": args.commit or commit_of(ROOT), "minutes": minutes, "older_than_asked": older}
    record.calls.append({**known, "machine": here})
    record.do_again(args.again)
    call = Call(record, args.output, place, deadline=deadline)
    while part := call.next_part(parts):
        call.do(part)
    record.write(args.output)
    print(table(record, parts))


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Whether the lower bounds of the requirements hold: tests and main job in an environment of exactly those versions.

    python -m benchmarks.lowest_versions --environment build/lowest

Installs the lowest version that requirements.txt and requirements-dev.txt allow of each package they name (7.6 GB,
mostly torch for CUDA), runs all tests there, then the README's first command, and keeps versions, counts and what the
judge says.  To be repeated whenever a bound changes; an environment that is there already is only brought up to date.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

import train_scoft_lora as trainer
from benchmarks.train_step import processor
from scoft.files import write_atomically
from scoft.train.validation import judge_table


ROOT = Path(trainer.__file__).resolve().parent
FILES = (ROOT / "requirements.txt", ROOT / "requirements-dev.txt")


def lowest(lines: Iterable[str]) -> dict[str, str]:
    """Package -> lowest version of the lines of a requirements file. SystemExit where a line has no lower bound."""
    bounds = {}
    for line in (line.partition("#")[0].strip() for line in lines):
        if not line or line.startswith("-r "):
            continue
        requirement = Requirement(line)
        at_least = [each.version for each in requirement.specifier if each.operator == ">="]
        if len(at_least) != 1:
            raise SystemExit(f"{line!r} names no lowest version; write {requirement.name}>=VERSION")
        bounds[requirement.name] = at_least[0]
    return bounds


def outcomes(report: Path) -> dict:
    """Counts of a junit file of pytest, and the names of the tests that did not pass."""
    counts, names = {"passed": 0, "failed": 0, "skipped": 0}, []
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts[outcome] += 1
        if outcome == "failed":
            names.append(f"{case.get('classname')}::{case.get('name')}")
    return {**counts, "failures": names}


def installed(python: Path, names: Iterable[str]) -> dict[str, str]:
    """The versions of the packages in an environment."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    versions = subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(names, versions, strict=True))


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--environment", type=Path, default=ROOT / "build/lowest", help="where it is made")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/lowest_versions.json")
    args = parser.parse_args(argv)

    bounds = lowest(line for file in FILES for line in file.read_text().splitlines())
    python = args.environment.resolve() / "bin/python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", args.environment], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *(f"{k}=={v}" for k, v in bounds.items())], check=True)

    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = re.search(r"^accelerate launch (.*--dataset pocket.*)$", (ROOT / "README.md").read_text(), flags=re.M)[1]
    with tempfile.TemporaryDirectory() as folder:
        report, run = Path(folder, "report.xml"), Path(folder, "scoft-veridia")
        started = time.perf_counter()
        subprocess.run([python, "-m", "pytest", f"--junitxml={report}"], cwd=ROOT, env=environment)
        tests = {**outcomes(report), "seconds": round(time.perf_counter() - started)}
        launch = [python, "-m", "accelerate.commands.launch", *command.split(), "--output_dir", run]
        subprocess.run(launch, cwd=ROOT, env=environment, check=True)
        judge = json.loads((run / "images/judge.json").read_text())
    record = {
        "processor": processor("cpu"),
        "python": platform.python_version(),
        "versions": installed(python, bounds),
        "tests": tests,
        "judge": judge,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.output, json.dumps(record, indent=1) + "\n")
    print(*judge_table(judge["base"], judge["lora"]), sep="\n")
    print(f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")


if __name__ == "__main__":
    main()

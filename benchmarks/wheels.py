#!/usr/bin/env python
"""A folder of wheels for a machine without a network: what requirements.txt needs and the machine lacks.

    python -m benchmarks.wheels --present benchmarks/present.txt

To be run where the requirements are installed and there is a network.  The packages are those of this environment, in
its versions, with all that they need; --present names what the machine has, as `pip freeze` prints it there or by name
alone.  A version that is told there and that a package of ours does not go with is an error.  There:

    pip install --no-index --no-deps --target build/site wheels/*.whl
    export PYTHONPATH=$PWD/build/site
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).resolve().parent.parent
# pip takes a platform by its letters, so all that a machine with glibc of 2.28 or later runs are named.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def names_of(lines: Iterable[str]) -> dict[str, str | None]:
    """The packages of the lines of `pip freeze`, or of names alone, and their versions, None where it is not told."""
    parts = (line.partition("#")[0].strip().partition("==") for line in lines)
    return {canonicalize_name(name): version or None for name, _, version in parts if name}


def to_carry(
    requirements: Iterable[str],
    present: dict[str, str | None],
    *,
    python: str,
    distribution: Callable = importlib.metadata.distribution,
) -> dict[str, str]:
    """Package -> version of what the requirements need, at any depth, and `present` does not have.

    Raises SystemExit where this environment lacks a package, or a version in `present` will not do.
    """
    target = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    waiting, found = [Requirement(line) for line in requirements], {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate(target):
            continue
        if name in present:
            version = present[name]
            if version and not requirement.specifier.contains(version, prereleases=True):
                raise SystemExit(
                    f"error: {requirement} is needed, and the machine has {version}: leave it out of "
                    "--present, so that it is taken along, or take an older version of what needs it"
                )
        elif name not in found:
            try:
                installed = distribution(requirement.name)
            except PackageNotFoundError:
                raise SystemExit(f"error: {name} is not installed here: pip install -r requirements.txt") from None
            found[name] = installed.version
            waiting += [Requirement(line) for line in installed.requires or []]
    return dict(sorted(found.items()))


def fetch(packages: dict[str, str], folder: Path, *, python: str):
    """The wheels, by pip. One that is not published is built here, where it is Python alone."""
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    target += [word for name in PLATFORMS for word in ("--platform", name)]
    for name, version in packages.items():
        wanted = ["-q", "--no-deps", f"{name}=={version}"]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        if subprocess.run([*pip, "download", *target, "-d", folder, *wanted], stderr=subprocess.DEVNULL).returncode:
            before = set(folder.iterdir())
            subprocess.run([*pip, "wheel", "-w", folder, *wanted], check=True)
            (built,) = set(folder.iterdir()) - before
            if not built.name.endswith("-none-any.whl"):
                built.unlink()
                raise SystemExit(f"error: {name} {version} has no wheel for Python {python} on {PLATFORMS[0]}")
        print(f"{name} {version}", flush=True)


def mebibytes(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 2**20


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--present", type=Path, default=ROOT / "benchmarks/present.txt", help="what the machine has")
    parser.add_argument("--python", default="3.12", help="of the machine")
    parser.add_argument("--output", type=Path, default=ROOT / "wheels", help="folder of the wheels, made anew")
    parser.add_argument("--limit", type=float, default=64, help="MiB of the wheels and of what git tracks together")
    args = parser.parse_args(argv)
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    packages = to_carry(filter(None, lines), names_of(args.present.read_text().splitlines()), python=args.python)
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    fetch(packages, args.output, python=args.python)
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tree = mebibytes(ROOT / name for name in tracked.split("\0") if (ROOT / name).is_file())
    sizes = {wheel.name: mebibytes([wheel]) for wheel in args.output.iterdir()}
    told = f"{len(sizes)} wheels, {sum(sizes.values()):.1f} MiB, beside {tree:.1f} MiB that git tracks"
    if sum(sizes.values()) + tree > args.limit:
        largest = sorted(sizes, key=sizes.get, reverse=True)[:3]
        raise SystemExit(f"error: {told}: more than --limit {args.limit:g}. The largest are {', '.join(largest)}")
    print(told)


if __name__ == "__main__":
    main()

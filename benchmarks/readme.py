#!/usr/bin/env python
"""Write the measured parts of README.md and pocket/README.md again, from what lies in benchmarks/results.

    python -m benchmarks.readme

A part stands between `<!-- made by benchmarks.readme: NAME -->` and `<!-- end -->`; NAME is one of PARTS.
"""

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import corrector
from pocket.gallery import HERO
from scoft.cultures import culture_words
from scoft.evaluate.metrics import metric_of
from scoft.evaluate.tables import headline
from scoft.files import write_atomically
from scoft.pages import aligned, comparison_rows, table, with_interval


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 120
FILES = (ROOT / "README.md", ROOT / "pocket" / "README.md")
PART = re.compile(r"<!-- made by benchmarks\.readme: (\S+) -->\n.*?<!-- end -->", re.DOTALL)
NAMES = {"base": "base model", "finetune": "`--method finetune`", "m": "SCoFT+M", "mp": "+MP", "mpc": "+MPC"}
RATES = {"right": "right", "unclear": "unclear", "stereotype": "stereotype", "azurian": "Azuria's look"}
EVALUATED = (  # metric and set of the table of pocket_evaluation.json
    ("kid", "prompts"),
    ("judge/right", "prompts"),
    ("judge/stereotype", "prompts"),
    ("clip_i", "train"),
    ("clip_score", "general"),
    ("vendi", "general"),
)


def runs(culture: str, method: str) -> list[dict]:
    """Of pocket_cultures.json, by the README's command, those of a culture and method, by seed."""
    found = json.loads((RESULTS / "pocket_cultures.json").read_text())["runs"]
    found = [run for run in found if (run["culture"], run["method"], run["flags"]) == (culture, method, [])]
    return sorted(found, key=lambda run: run["seed"])


def first_sentence() -> str:
    judge = runs(HERO, "mpc")[0]["judge"]
    before, after = ({name: round(100 * judge[of][name]) for name in RATES} for of in ("base", "lora"))
    text = (
        "A minute and a half of training on two CPU cores takes pictures of this culture from "
        f"{before['stereotype']} % stereotype to {after['stereotype']} %, and from {before['right']} to "
        f"{after['right']} % right in every respect."
    )
    return textwrap.fill(text, WIDTH)


def before_after() -> str:
    judge = runs(HERO, "mpc")[0]["judge"]
    return "\n".join(["```", *aligned(comparison_rows(judge["base"], judge["lora"])), "```"])


def by_method_and_seed() -> str:
    rows = []
    for method in ("base", "finetune", "m", "mpc"):
        same = runs(HERO, "finetune" if method == "base" else method)
        judged = [run["judge"]["base" if method == "base" else "lora"] for run in same]
        shares = [", ".join(f"{numbers[rate]:.2f}" for numbers in judged) for rate in RATES]
        name = NAMES[method] if method == "base" else f"`--method {method}`"
        rows.append(f"| {name} | {', '.join(str(run['seed']) for run in same)} | {' | '.join(shares)} |")
    return "\n".join([f"| | seed | {' | '.join(RATES.values())} |", "|---|---|" + "---|" * len(RATES), *rows])


def other_cultures() -> str:
    changes = {
        culture: [runs(culture, "mpc")[0]["judge"][of]["right"] for of in ("base", "lora")]
        for culture in ("ochria", "corallia", "azuria")
    }
    told = [f"{culture_words(name)} from {before:.2f} to {after:.2f}" for name, (before, after) in changes.items()]
    text = f"Right by `mpc` with seed 0: {', '.join(told[:-1])}, and {told[-1]}, which the web knows."
    return textwrap.fill(text, WIDTH)


def evaluation() -> str:
    scores = json.loads((RESULTS / "pocket_evaluation.json").read_text())["scores"]
    found = {(row["metric"], row["set"], row["method"]): row for row in scores}
    rows = []
    for method in dict.fromkeys(row["method"] for row in scores):
        cells = []
        for metric, of in EVALUATED:
            row = found[metric, of, method]
            decimals = metric_of(metric).decimals
            cells.append(with_interval([row["value"], row["low"], row["high"]], 0 if metric == "kid" else decimals))
        rows.append([NAMES[method], *cells])
    return "\n".join(table(["", *(headline(metric, of) for metric, of in EVALUATED)], rows))


def corrected() -> str:
    """The table of `benchmarks.corrector`, and how its corrector compares with its LoRA."""
    record = json.loads((RESULTS / "corrector.json").read_text())
    cells, rows = record["cells"]["main"], []
    for arm, found in record["summary"]["main"].items():
        said = [found[name] for name in ("right", "stereotype", "unclear")]
        told = [f"{each['mean']:.2f}" + (signed(each["interval"]) if arm != "base" else "") for each in said]
        rows.append([arm, *told, f"{found['unet_rows']:.0f}", f"{found['general_changed']:.0%}"])
    heading = ["", "right", "stereotype", "unclear", "UNet rows a picture", "general prompts that change"]
    beside = {name: corrector.compared(cells, "corrector", name, to="LoRA") for name in ("right", "stereotype")}
    differences = [f"{name} {each['difference']:+.2f}{signed(each['interval'])}" for name, each in beside.items()]
    seconds = [np.median([cell["fit_seconds"][name] for cell in cells.values()]) for name in ("corrector", "LoRA")]
    cultures, seeds = ({key.split("/")[at] for key in cells} for at in (0, 1))
    text = (
        f"{len(cultures)} cultures, {len(seeds)} seeds, {len(cells) * record['images'] * 8} pictures an arm; in "
        "brackets the difference to the base, a 95 % interval over the seeds. The corrector minus the LoRA, "
        f"which took {seconds[1] / seconds[0]:.2f} times its fitting time: {' and '.join(differences)}."
    )
    return "\n".join([*table(heading, rows), "", textwrap.fill(text, WIDTH)])


def signed(interval: Sequence[float]) -> str:
    """' [-0.20, +0.10]'."""
    return " [{:+.2f}, {:+.2f}]".format(*interval)


PARTS: dict[str, Callable[[], str]] = {
    "first-sentence": first_sentence,
    "before-after": before_after,
    "by-method-and-seed": by_method_and_seed,
    "other-cultures": other_cultures,
    "evaluation": evaluation,
    "corrected": corrected,
}


def remade(text: str) -> str:
    """The text with each of its parts as it is now. Raises KeyError for one that is none of PARTS."""

    def again(part: re.Match) -> str:
        return f"<!-- made by benchmarks.readme: {part[1]} -->\n{PARTS[part[1]]()}\n<!-- end -->"

    return PART.sub(again, text)


def main(argv: list[str] | None = None):
    argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False).parse_args(argv)
    for file in FILES:
        write_atomically(file, remade(file.read_text()))


if __name__ == "__main__":
    main()

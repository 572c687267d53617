"""The page of one or several scored folders: report.md with tables and figures."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from scoft.cultures import culture_words
from scoft.errors import DataError
from scoft.evaluate.card import check_card, fill_card
from scoft.evaluate.figures import write_figures
from scoft.evaluate.metrics import Measured, metric_of
from scoft.evaluate.paper import paper_lines
from scoft.evaluate.results import Key, Results, read_results
from scoft.evaluate.stopping import check_stop_by, when_to_stop
from scoft.evaluate.tables import differences_table, metrics_table
from scoft.files import sole_writer, write_atomically
from scoft.intervals import Estimate, mean_over_cultures
from scoft.pages import markdown_text, table
from scoft.pictures import is_checkpoint


logger = logging.getLogger(__name__)

REPORT_FILE = "report.md"
# Metric and set of the rows of the paper's tables; those of a judge join the first, all others stand below.
TABLE_1 = (("kid", "prompts"), ("kid_general", "general"), ("clip_score", "prompts"))
TABLE_2 = (
    ("clip_i", "train"),
    ("dino", "train"),
    ("dreamsim", "train"),
    ("div", "train"),
    ("div", "test"),
    ("clip_score", "test"),
)
# What is to be the same of folders that make one report.
ALIKE = ("question", "confidence", "features", "diversity_features", "neighbours", "encoders", "settings")


def report(
    folders: Sequence[Path], *, output: Path, card: Path | None, method: str | None, stop_by: Sequence[Measured]
):
    """Write a page of the numbers of scored folders, and those of `method` onto the page of the LoRA folder `card`.

    stop_by: the metrics, with their sets, that are to say together when to stop. Raises DataError.
    """
    results = {folder: read_results(folder) for folder in folders}
    check_comparable(results)
    check_stop_by(results, stop_by)
    if card:
        check_card(card)  # before its lock makes the folder
    with contextlib.ExitStack() as alone:
        for folder, flag in {(card or output).resolve(): "--card", output.resolve(): "--output"}.items():
            alone.enter_context(sole_writer(folder, flag=flag))
        if card:
            fill_card(card, method, results)
        write_report(results, output, stop_by=stop_by)


def check_comparable(results: Mapping[Path, Results]):
    """Raise DataError unless the folders are of different cultures and were drawn and scored alike."""
    (first_folder, first), *others = results.items()
    for folder, each in others:
        if each.culture in {other.culture for other in results.values() if other is not each}:
            raise DataError(f"{folder} is not the only folder of {each.culture}; give one for each culture.")
        if different := each.estimates.keys() ^ first.estimates.keys():
            metric, name, method = min(different)
            raise DataError(
                f"{first_folder} or {folder} has no {metric} of {method} (set {name}), but the other has; "
                "generate and score both with the same flags."
            )
        for fact in ALIKE:
            if getattr(each, fact) != getattr(first, fact):
                raise DataError(
                    f"{folder} and {first_folder} have no mean: {fact} {getattr(each, fact)} in one, "
                    f"{getattr(first, fact)} in the other."
                )


def write_report(results: Mapping[Path, Results], output: Path, *, stop_by: Sequence[Measured]):
    """Write the page and its figures. Raises DataError."""
    every = list(results.values())
    mean = means(results)
    methods = list(dict.fromkeys(key.method for key in mean if not is_checkpoint(key.method)))
    lines = ["# Evaluation", "", *introduction(every), *tables_of_metrics(every, mean, methods)]
    if len(methods) > 1:
        lines += differences_of_methods(every, mean, methods)
    apart = len(every) > 1
    illustrations = [figure for each in results.items() for figure in write_figures(*each, output, apart=apart)]
    lines += ["", "## Figures"] if illustrations else []
    for name, file in illustrations:
        lines += ["", f"![{markdown_text(name)}]({file})"]
    lines += when_to_stop(every, mean, stop_by)
    lines += ["", "## How it was measured", "", *provenance(every)]
    write_atomically(output / REPORT_FILE, "\n".join(lines) + "\n")
    logger.info("The report is %s", output / REPORT_FILE)


def means(results: Mapping[Path, Results]) -> dict[Key, Estimate]:
    """Every number as its mean over the cultures; of one culture, its own. Raises DataError."""
    every = list(results.values())
    keys = dict.fromkeys(key for each in every for key in each.estimates)
    try:
        return {key: mean_over_cultures({each.culture: each.estimates[key] for each in every}) for key in keys}
    except ValueError as error:
        raise DataError(
            f"{' and '.join(map(str, results))} have no mean: {error} Make both with the same flags."
        ) from error


def introduction(results: Sequence[Results]) -> list[str]:
    first = results[0]
    return [
        f"Numbers with {first.confidence:.0%} intervals over {markdown_text(first.question)}"
        f"{', means over cultures' if len(results) > 1 else ''}: "
        + ", ".join(culture_words(each.culture) for each in results)
        + ". Arrows say which way is better.",
        "",
        markdown_text(
            f"KID, precision, recall, density and coverage are of the features of {first.features}; DIV, Vendi score "
            f"and nearest photographs of those of {first.diversity_features}."
        ),
    ]


def tables_of_metrics(results: Sequence[Results], mean: Mapping[Key, Estimate], methods: Sequence[str]) -> list[str]:
    """Sections of the means, and of each culture where there are several."""
    which = list(dict.fromkeys((key.metric, key.set) for key in mean))
    culture = [*TABLE_1, *(each for each in which if metric_of(each[0]).against == "judge")]
    lines = []
    for name, rows in (
        ("The culture (as the paper's Table 1)", culture),
        ("Memorization and diversity (as Table 2)", TABLE_2),
        ("Beyond the paper", [each for each in which if each not in culture and each not in TABLE_2]),
    ):
        if found := metrics_table(mean, rows, methods):
            lines += ["", f"## {name}", "", *found]
            if rows is culture:
                lines += paper_lines(results)
    if len(results) > 1:
        lines += ["", "## Each culture (as Table 4)"]
        for each in results:
            lines += ["", f"### {culture_words(each.culture)}", "", *metrics_table(each.estimates, culture, methods)]
    return lines


def differences_of_methods(
    results: Sequence[Results], mean: Mapping[Key, Estimate], methods: Sequence[str]
) -> list[str]:
    """A section of paired differences, of the means and of each culture."""
    lines = ["", "## Differences of methods", "", "Those whose interval is without 0 are bold."]
    tables = {"Mean over cultures": mean} if len(results) > 1 else {}
    tables |= {culture_words(each.culture): each.estimates for each in results}
    for name, estimates in tables.items():
        lines += ["", f"### {name}", ""] if len(tables) > 1 else [""]
        lines += differences_table(estimates, methods)
    return lines


def provenance(results: Sequence[Results]) -> list[str]:
    """A table of encoders by the hash of their weights, and pictures counted, blank ones apart."""
    rows = []
    for each in results:
        for name, encoder in each.encoders.items():
            rows.append([culture_words(each.culture), f"encoder {name}", encoder.place, encoder.sha256[:16]])
        for name, count in each.counts.items():
            rows.append([culture_words(each.culture), f"pictures {name}", count.pictures, f"{count.blank} blank"])
    return table(["culture", "", "", ""], rows)

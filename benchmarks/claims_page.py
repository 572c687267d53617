"""What the runs of `benchmarks.claims` say together: its page and its figure."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.stats import t as student

from scoft import sheets
from scoft.evaluate.metrics import metric_of
from scoft.evaluate.tables import ARROWS, OF_SETS, headline
from scoft.pages import Bold, table, with_interval


# Metric and set of the page's tables; all others are in the results.
SHOWN = (
    ("kid", "prompts"),
    ("judge/right", "prompts"),
    ("judge/right_log_odds", "prompts"),
    ("judge/stereotype", "prompts"),
    ("judge/stereotype_log_odds", "prompts"),
    ("judge/unclear", "prompts"),
    ("clip_i", "train"),
    ("div", "train"),
    ("clip_score", "general"),
    ("vendi", "general"),
    ("judge/right", "next"),
    ("judge/right", "third"),
    ("judge/stereotype_log_odds", "third"),
    ("judge/right", "azuria"),
    ("judge/unclear", "azuria"),
)
# The roles of the cultures that are not a LoRA's own, in this order behind it, as sets of numbers and in headings.
OF_OTHERS = {"next": ", of the next culture", "third": ", of the third culture", "azuria": ", of Azuria"}
DRAWN = SHOWN[:1] + SHOWN[2:3] + SHOWN[4:7]  # the figure's columns
ROW, HEADING, ABOVE, BELOW = 0.22, 0.36, 0.55, 0.35  # inches of the figure


def mean_with_interval(by_seed: Sequence[float], *, level: float = 0.95) -> tuple[float, ...]:
    """(mean,) of one value; (mean, low, high) by Student's t of several, one a training seed."""
    values = np.asarray(by_seed, dtype=float)
    if len(values) < 2:
        return (float(values.mean()),)
    reach = student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - reach), float(values.mean() + reach)


def by_seed(runs: Iterable[dict], number: str, arm: str) -> dict[int, dict[str, float]]:
    """seed -> culture -> the arm's value of `number`, a metric and its set."""
    found: dict[int, dict[str, float]] = {}
    for each in runs:
        if each["arm"] == arm and number in each["numbers"]:
            found.setdefault(each["seed"], {})[each["culture"]] = each["numbers"][number]
    return found


def difference(runs: Sequence[dict], number: str, arm: str, other: str) -> tuple[float, ...]:
    """`arm` minus `other`, of each seed the mean over the cultures that both have; () where they share none."""
    mine, theirs = by_seed(runs, number, arm), by_seed(runs, number, other)
    differences = []
    for seed in sorted(mine.keys() & theirs.keys()):
        if shared := mine[seed].keys() & theirs[seed].keys():
            differences.append(np.mean([mine[seed][culture] - theirs[seed][culture] for culture in sorted(shared)]))
    return mean_with_interval(differences) if differences else ()


def tells(found: Sequence[float]) -> bool:
    """Whether a difference has an interval that is without 0."""
    return len(found) == 3 and not found[1] <= 0 <= found[2]


def title(metric: str, of: str) -> str:
    """The heading of a number, of whatever culture it is."""
    if of in OF_SETS:
        return headline(metric, of)
    row = metric_of(metric)
    return row.title + OF_OTHERS[of] + ARROWS[row.better]


class Section(NamedTuple):
    """What the page has of a study: its question, and which arm is compared with which."""

    question: str
    pairs: Sequence[tuple[str, str]]


def page(record: Mapping[str, list[dict]], sections: Mapping[str, Section], *, figure: str) -> str:
    """The Markdown page of all that was run: of each study its arms' means and the differences asked for.

    sections: study -> its section, in the page's order; figure: the file of `draw`, beside the page.
    """
    lines = ["# What each term does, where the truth is known", ""]
    lines += [
        "Made by `python -m benchmarks.claims`, which says how. Intervals are 95 %, over training seeds, paired by"
    ]
    lines += ["seed; bold ones are without 0. An arrow says which way is better.", ""]
    lines += [f"![Differences between each study's arms, with intervals]({figure})"]
    for name, (question, pairs) in sections.items():
        if not (runs := record.get(name)):
            continue
        shown = [(metric, of) for metric, of in SHOWN if any(f"{metric}:{of}" in each["numbers"] for each in runs)]
        seeds, cultures = ({each[what] for each in runs} for what in ("seed", "culture"))
        lines += ["", f"## {question}", ""]
        lines += [
            f"Study `{name}`: {', '.join(sorted(cultures))}; training seeds {', '.join(map(str, sorted(seeds)))}."
        ]
        heading = ["arm", *(title(metric, of) for metric, of in shown)]
        arms = dict.fromkeys(each["arm"] for each in runs)
        means = [[arm, *(mean_text(runs, metric, of, arm) for metric, of in shown)] for arm in arms]
        differences = [
            [f"{arm} - {other}", *(difference_text(runs, metric, of, arm, other) for metric, of in shown)]
            for arm, other in pairs
        ]
        lines += ["", *table(heading, means), "", *table(heading, differences)]
    return "\n".join(lines) + "\n"


def mean_text(runs: Sequence[dict], metric: str, of: str, arm: str) -> str:
    values = [np.mean(list(cultures.values())) for cultures in by_seed(runs, f"{metric}:{of}", arm).values()]
    return with_interval(mean_with_interval(values)[:1], metric_of(metric).decimals) if values else ""


def difference_text(runs: Sequence[dict], metric: str, of: str, arm: str, other: str) -> str:
    found = difference(runs, f"{metric}:{of}", arm, other)
    text = with_interval(found, metric_of(metric).decimals) if found else ""
    return Bold(text) if tells(found) else text


def draw(record: Mapping[str, list[dict]], sections: Mapping[str, Section]) -> Image.Image:
    """Studies as blocks, pairs of arms as rows, metrics as columns: the differences, with intervals.

    Those without 0 are dark. A study of one seed has points alone.
    """
    from matplotlib.figure import Figure
    from matplotlib.transforms import blended_transform_factory

    rows, blocks, at = [], [], 0.0  # (y in inches, runs, arm, the other), (y, study), how far down
    for name, section in sections.items():
        if runs := record.get(name):
            blocks.append((at + HEADING / 2, name))
            at += HEADING
            rows += [(at + (i + 0.5) * ROW, runs, *pair) for i, pair in enumerate(section.pairs)]
            at += ROW * len(section.pairs)
    numbers = {number for runs in record.values() for each in runs for number in each["numbers"]}
    drawn = [(metric, of) for metric, of in DRAWN if f"{metric}:{of}" in numbers] or DRAWN
    titles = [textwrap.fill(title(metric, of), 30) for metric, of in drawn]
    labels = [f"{arm} - {other}" for _, _, arm, other in rows]
    with sheets.style(*titles, *labels, *(name for _, name in blocks)):
        inner = max(at, ROW)
        height = inner + ABOVE + BELOW
        figure = Figure(figsize=(12, height), dpi=100)
        columns = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for axes, heading, (metric, of) in zip(columns, titles, drawn):
            axes.axvline(0, color="0.6", linewidth=0.8)
            for y, runs, arm, other in rows:
                if found := difference(runs, f"{metric}:{of}", arm, other):
                    color = "C0" if tells(found) else "0.6"
                    axes.plot(found[:1], [y], marker="o", markersize=4, color=color)
                    axes.plot(found[1:], [y] * len(found[1:]), color=color)
            axes.set_title(heading, fontsize="small")
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(labelsize="small", left=False)
        columns[0].set_ylim(inner, 0)
        columns[0].set_yticks([row[0] for row in rows], labels)
        from_the_left = blended_transform_factory(figure.transFigure, columns[0].transData)
        for y, name in blocks:
            columns[0].text(0.02, y, name, transform=from_the_left, fontweight="bold", va="center")
        figure.subplots_adjust(left=0.17, right=0.99, bottom=BELOW / height, top=1 - ABOVE / height, wspace=0.12)
        return sheets.picture_of(figure)

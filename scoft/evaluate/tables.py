"""Numbers of metrics as text, and tables of them."""

from collections.abc import Mapping, Sequence

from scoft.evaluate.metrics import metric_of
from scoft.evaluate.results import Key, difference
from scoft.intervals import Estimate
from scoft.pages import Bold, table, with_interval
from scoft.pictures import PromptSet


ARROWS = {"less": "\N{NO-BREAK SPACE}↓", "more": "\N{NO-BREAK SPACE}↑", "": ""}
OF_SETS: dict[PromptSet, str] = {
    "prompts": "",
    "train": ", training captions",
    "test": ", test captions",
    "general": ", general prompts",
}


def number_text(estimate: Estimate, metric: str) -> str:
    """'0.61 [0.48, 0.72]'; '0.61' of what was printed without an interval."""
    values = [estimate.value, estimate.low, estimate.high]
    return with_interval(values if estimate.low < estimate.high else values[:1], metric_of(metric).decimals)


def headline(metric: str, of: PromptSet) -> str:
    """A metric's title with its set, where there are several, and an arrow to where better is."""
    row = metric_of(metric)
    return row.title + (OF_SETS[of] if len(row.sets) > 1 else "") + ARROWS[row.better]


def metrics_table(
    estimates: Mapping[Key, Estimate], which: Sequence[tuple[str, PromptSet]], methods: Sequence[str]
) -> list[str]:
    """(metric, set) as rows, methods as columns; rows without any number are left out, and so is an empty table."""
    rows = []
    for metric, of in which:
        found = [estimates.get(Key(metric, of, method)) for method in methods]
        if any(found):
            rows.append([headline(metric, of), *(number_text(each, metric) if each else "" for each in found)])
    return table(["", *methods], rows) if rows else []


def differences_table(estimates: Mapping[Key, Estimate], methods: Sequence[str]) -> list[str]:
    """Paired differences: metrics as rows, pairs of methods as columns."""
    pairs = [(method, other) for i, method in enumerate(methods) for other in methods[:i]]
    rows = []
    for metric, of in dict.fromkeys((key.metric, key.set) for key in estimates):
        cells = []
        for method, other in pairs:
            if any(Key(metric, of, each) not in estimates for each in (method, other)):
                cells.append("")
                continue
            found = difference(estimates, Key(metric, of, method), other)
            text = number_text(found, metric)
            cells.append(text if includes_zero(found) else Bold(text))
        rows.append([headline(metric, of), *cells])
    return table(["", *map(" - ".join, pairs)], rows)


def includes_zero(estimate: Estimate) -> bool:
    return estimate.low <= 0 <= estimate.high

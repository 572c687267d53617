"""When to stop: which of a run's checkpoints is the best by each metric, and which is good enough by all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scoft.cultures import culture_words
from scoft.errors import DataError
from scoft.evaluate.metrics import Measured, metric_of
from scoft.evaluate.results import Key, Results, checkpoints_of, paired
from scoft.evaluate.tables import headline, includes_zero, number_text
from scoft.intervals import Estimate
from scoft.pages import Bold, table
from scoft.pictures import Method


class Standing(NamedTuple):
    """A run's best checkpoint by one metric, and all updates whose difference from it may be 0, its own among them."""

    updates: int
    best: Estimate
    level: tuple[int, ...]


def standings(estimates: Mapping[Key, Estimate]) -> dict[str, dict[Measured, Standing]]:
    """run -> metric -> what its checkpoints, and the base model as 0 updates, come to. Raises DataError."""
    found: dict[str, dict[Measured, Standing]] = {}
    for (run, metric, name), points in checkpoints_of(estimates).items():
        if better := metric_of(metric).better:
            updates, best = (min if better == "less" else max)(points, key=lambda point: point[1].value)
            level = tuple(
                other
                for other, each in points
                if other == updates or includes_zero(paired(each, best, what=f"{metric}, {Method(run, other)}"))
            )
            found.setdefault(run, {})[Measured(metric, name)] = Standing(updates, best, level)
    return found


def check_stop_by(results: Mapping[Path, Results], stop_by: Iterable[Measured]):
    """Raise DataError unless the checkpoints of every run in every folder are scored by each metric of `stop_by`."""
    for folder, each in results.items():
        runs: dict[str, list[Measured]] = {}
        for run, metric, name in checkpoints_of(each.estimates):
            runs.setdefault(run, []).extend([Measured(metric, name)] if metric_of(metric).better else [])
        for measured in stop_by:
            for run, known in runs.items() or {"": []}.items():
                if measured not in known:
                    there = ", ".join(map(":".join, known)) or "none at all: draw them with `generate --checkpoints`"
                    raise DataError(
                        f"--stop_by {':'.join(measured)}: {folder} has no checkpoints{run and f' of {run}'} scored by "
                        f"it that says which way is better; there is {there}."
                    )


def when_to_stop(results: Sequence[Results], mean: Mapping[Key, Estimate], stop_by: Sequence[Measured]) -> list[str]:
    """A section of each run's best checkpoint by each metric, and of one verdict by all of `stop_by`.

    The verdict is the fewest updates that cannot be told from the best in any of them; of several cultures, of their
    means as well. Raises DataError.
    """
    by_culture = {culture_words(each.culture): standings(each.estimates) for each in results}
    rows = [
        [
            culture,
            run,
            headline(*measured),
            standing.updates,
            number_text(standing.best, measured.metric),
            others(standing),
        ]
        for culture, runs in by_culture.items()
        for run, found in runs.items()
        for measured, standing in found.items()
    ]
    if not rows:
        return []
    heading = ["culture", "run", "metric", "best after updates", "there", "not told from it"]
    lines = ["", "## When to stop", "", *table(heading, rows)]
    if stop_by:
        of_all = {"all cultures": standings(mean)} if len(results) > 1 else {}
        verdicts = [
            [culture, run, *verdict({measured: found[measured] for measured in stop_by})]
            for culture, runs in (by_culture | of_all).items()
            for run, found in runs.items()
        ]
        lines += ["", *table(["culture", "run", "stop after updates", "why"], verdicts)]
    return lines


def others(standing: Standing) -> str:
    return ", ".join(str(updates) for updates in standing.level if updates != standing.updates) or "none"


def verdict(found: Mapping[Measured, Standing]) -> tuple[Bold | str, str]:
    """How many updates, and why."""
    enough = set.intersection(*(set(standing.level) for standing in found.values()))
    if enough:
        return Bold(str(min(enough))), "the fewest that cannot be told from the best in " + " and ".join(
            headline(*measured) for measured in found
        )
    wishes = (f"{headline(*measured)} wants {', '.join(map(str, each.level))}" for measured, each in found.items())
    return "no answer", "; ".join(wishes)

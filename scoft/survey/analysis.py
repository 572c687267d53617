"""All that is computed of a survey's responses, as analysis.json keeps it."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np

from scoft.files import write_atomically
from scoft.intervals import CONFIDENCE
from scoft.survey import bootstrap
from scoft.survey.agreement import Agreement, Minority, agreement, minority
from scoft.survey.bootstrap import Number
from scoft.survey.bradley_terry import as_in_the_paper, noisy_bradley_terry
from scoft.survey.consensus import Consensus, consensus
from scoft.survey.pairs import ties_of, win_rates
from scoft.survey.plackett_luce import plackett_luce
from scoft.survey.problems import Problem
from scoft.survey.rankings import Rankings
from scoft.survey.ranks import ALL, MeanRanks, by_parts, mean_ranks, rank_counts
from scoft.survey.schema import FLAGS


logger = logging.getLogger(__name__)

ANALYSIS_FILE = "analysis.json"
Parts = dict[str, dict[str, dict[str, Number]]]  # overall, culture or item -> which -> method -> its score


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the answers are; of rankings, one is a participant's of an item of a page."""

    participants: dict[str, int]  # by culture
    pages: dict[str, int]
    rankings: int
    complete: int  # every picture ranked
    with_gaps: int  # some, not all
    blank: int  # none
    with_ties: int
    tied_pairs: int
    flagged: dict[str, int]  # by flag, and by "any"


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The record of ANALYSIS_FILE."""

    methods: list[str]  # the best mean rank first
    counts: Counts
    problems: dict[str, Problem]
    warnings: list[str]
    mean_ranks: MeanRanks
    without_flagged: dict[str, dict[str, Number]]  # what is left out -> method -> mean of the cultures' mean ranks
    rank_counts: dict[str, dict[str, list[int]]]
    win_rates: dict[str, dict[str, dict[str, Number]]]
    consensus: Consensus
    noisy_bradley_terry: Parts
    noisy_bradley_terry_as_in_the_paper: dict[str, Number]  # crowd-kit's, overall
    plackett_luce: Parts
    agreement: dict[str, dict[str, Agreement | None]]  # culture -> item
    minorities: dict[str, Minority]  # by culture
    confidence: float
    draws: int


def analyze(rankings: Rankings, problems: dict[str, Problem], *, draws: int = bootstrap.DRAWS) -> Analysis:
    """All statistics, each of all answers; flagged ones are left out nowhere but in `without_flagged`."""
    logger.info("Mean ranks and comparisons of %d rankings", len(rankings))
    agreements = {culture: agreement(rankings.of_culture(culture)) for culture in rankings.cultures}
    minorities = {}
    for culture, by_item in agreements.items():
        found = minority(rankings.of_culture(culture), by_item[ALL].correlation if by_item[ALL] else None)
        minorities |= {culture: found} if found else {}
    means, rates = mean_ranks(rankings, draws=draws), win_rates(rankings, draws=draws)
    logger.info("Consensus by MMSR")
    agreed = consensus(rankings)
    logger.info("Scores by Plackett-Luce and Noisy Bradley-Terry")
    found = Analysis(
        methods=rankings.methods,
        counts=counts_of(rankings),
        problems=problems,
        warnings=[],
        mean_ranks=means,
        without_flagged=without_flagged(rankings, draws=draws),
        rank_counts=rank_counts(rankings),
        win_rates=rates,
        consensus=agreed,
        noisy_bradley_terry=by_parts(rankings, noisy_bradley_terry),
        noisy_bradley_terry_as_in_the_paper=as_in_the_paper(rankings),
        plackett_luce=by_parts(rankings, lambda part: plackett_luce(part, draws=draws)),
        agreement=agreements,
        minorities=minorities,
        confidence=CONFIDENCE,
        draws=draws,
    )
    found.warnings.extend(warnings_of(rankings, found))
    for warning in found.warnings:
        logger.warning("%s", warning)
    return found


def counts_of(rankings: Rankings) -> Counts:
    ranked = ~np.isnan(rankings.ranks)
    blank = ~ranked.any(1)
    flagged = {flag: int(each.sum()) for flag, each in rankings.flags.items()}
    return Counts(
        participants={culture: sum(of == culture for of, _ in rankings.participants) for culture in rankings.cultures},
        pages={culture: sum(of == culture for of, _ in rankings.pages) for culture in rankings.cultures},
        rankings=len(rankings),
        complete=int(rankings.complete.sum()),
        with_gaps=int((~rankings.complete & ~blank).sum()),
        blank=int(blank.sum()),
        with_ties=int(rankings.tied.sum()),
        tied_pairs=ties_of(rankings),
        flagged=flagged | {"any": int(any_flag(rankings).sum())},
    )


def any_flag(rankings: Rankings) -> np.ndarray:
    return np.any([rankings.flags[flag] for flag in FLAGS], axis=0)


def without_flagged(rankings: Rankings, *, draws: int) -> dict[str, dict[str, Number]]:
    """Mean ranks with all answers, and without those of each flag, and of any."""
    left_out = {"nothing": np.zeros(len(rankings), dtype=bool)} | rankings.flags | {"any": any_flag(rankings)}
    return {
        name: mean_ranks(rankings.take(~flagged), draws=draws).mean_of_cultures[ALL]
        if not flagged.all()
        else dict.fromkeys(rankings.methods, Number(None))
        for name, flagged in left_out.items()
    }


def warnings_of(rankings: Rankings, found: Analysis) -> list[str]:
    """What a reader of the numbers has to know, in sentences."""
    counts, lines = found.counts, []
    for culture, each in found.minorities.items():
        lines.append(
            f"{culture}: the mean hides a minority. {each.participants} participants rank {each.prefers} best and "
            f"agree among themselves; the other {each.rest} rank {each.rest_prefers} best."
        )
    for culture, number in counts.participants.items():
        if number == 1:
            lines.append(
                f"{culture} has one participant, so nothing tells how another one would answer: numbers over it, and "
                "means of the cultures, have no interval."
            )
    for culture in rankings.cultures:
        part = rankings.of_culture(culture)
        never = [each for each, ranks in zip(rankings.methods, part.ranks.T) if np.isnan(ranks).all()]
        if never:
            lines.append(f"{culture}: {', '.join(never)} was never ranked.")
    if not any(a != b for row in rankings.ranks for a in row for b in row if not np.isnan(a + b)):
        lines.append("All rankings are ties: no method was ever found better than another.")
    elif found.plackett_luce["overall"][ALL][found.methods[0]].value is None:
        lines.append("Plackett-Luce has no finite scores: a method won, or lost, every comparison.")
    if no_skills := [culture for culture, skills in found.consensus.skills.items() if skills is None]:
        lines.append(
            f"{', '.join(no_skills)}: MMSR finds nobody more reliable than others in so few answers that overlap; the "
            "consensus counts all alike."
        )
    for culture, number in found.consensus.left_out.items():
        lines.append(f"{culture}: MMSR takes the participants with most answers; {number} are left out of it.")
    best = found.methods[0]
    if found.noisy_bradley_terry["overall"][ALL][best].value is not None and (
        found.noisy_bradley_terry_as_in_the_paper[best].value is None
    ):
        lines.append("crowd-kit's Noisy Bradley-Terry is left out: of so many comparisons it would take minutes.")
    return lines


def write_analysis(output: Path, analysis: Analysis):
    content = json.dumps(dataclasses.asdict(analysis), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(output / ANALYSIS_FILE, content + "\n")

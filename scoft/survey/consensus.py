"""MMSR and votes, as the paper's: who agrees with whom, what they agree on, and which order of methods follows."""

from __future__ import annotations

import collections
import dataclasses
import logging
import warnings

import numpy as np

from scoft.survey.pairs import Comparisons, Standing, comparisons_of, copeland
from scoft.survey.rankings import Rankings
from scoft.survey.ranks import ALL
from scoft.survey.schema import ITEMS


logger = logging.getLogger(__name__)

MOST_WORKERS = 200  # of a culture: seconds where they agree, minutes where they answer at random
ITERATIONS, TOLERANCE = 10_000, 1e-10  # the paper's, supplement 11.2


@dataclasses.dataclass(frozen=True)
class Consensus:
    """What MMSR and the votes found."""

    parts: dict[str, dict[str, dict[str, Standing]]]  # overall, culture or item -> which -> method, the best first
    # Culture -> how far MMSR trusts its participants, as log odds, sorted; None: their answers are too few for it.
    skills: dict[str, list[float] | None]
    left_out: dict[str, int]  # culture -> participants beyond MOST_WORKERS


def consensus(rankings: Rankings) -> Consensus:
    """MMSR in each culture by crowd-kit, a vote weighted by its skills, then a majority over questions for each pair.

    A question is whether one of two pictures is better in one item of one page.  Cultures share no page and no
    participant, and MMSR has no common scale for such: fitted together, one culture's skills came out negative.

    Differs from the paper: it fits all cultures together, and every item anew; here skills are a culture's, over all
    items.
    """
    votes, skills, left_out = collections.defaultdict(collections.Counter), {}, {}
    comparisons = comparisons_of(rankings, by_position=False)
    for number, culture in enumerate(rankings.cultures):
        own = comparisons.take(rankings.culture_of[comparisons.participant] == number)
        own, left_out[culture] = most_active(own)
        labels, skill = mmsr(own)
        skills[culture] = None if skill is None else sorted(skill.values())
        for (_, item, left, right), left_wins in labels.items():
            winner = (left, right) if left_wins else (right, left)
            for part in (("overall", ALL), ("culture", culture), ("item", ITEMS[item])):
                votes[part][winner] += 1
    cultures, items = [("culture", each) for each in rankings.cultures], [("item", each) for each in ITEMS]
    parts = {"overall": {}, "culture": {}, "item": {}}
    for part, which in [("overall", ALL), *cultures, *(each for each in items if each in votes)]:
        parts[part][which] = copeland(votes[part, which], rankings.methods)
    return Consensus(
        parts=parts,
        skills=skills,
        left_out={culture: count for culture, count in left_out.items() if count},
    )


def most_active(comparisons: Comparisons) -> tuple[Comparisons, int]:
    """The comparisons of the MOST_WORKERS who made most, and how many participants are left out."""
    who, counts = np.unique(comparisons.participant, return_counts=True)
    kept = who[np.argsort(-counts, kind="stable")[:MOST_WORKERS]]
    return comparisons.take(np.isin(comparisons.participant, kept)), len(who) - len(kept)


def mmsr(comparisons: Comparisons) -> tuple[dict[tuple, bool], dict[int, float] | None]:
    """(page, item, left, right) -> whether left wins, and participant -> skill.

    Where participants agree in nothing, or share too few questions, as one alone, MMSR finds no skills: None, and all
    count alike.
    """
    tasks = list(zip(*(each.tolist() for each in comparisons[1:5])))
    who, wins = comparisons.participant.tolist(), comparisons.left_wins.tolist()
    if not tasks:
        return {}, None
    import pandas

    from scoft.survey.mmsr import SparseMMSR

    names = {task: number for number, task in enumerate(dict.fromkeys(tasks))}
    table = pandas.DataFrame({"task": [names[task] for task in tasks], "worker": who, "label": wins})
    model = SparseMMSR(n_iter=ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of divisions by 0, which the skills below tell, and of pandas' next version
        try:
            labels = model.fit_predict(table)
        except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
            logger.info("MMSR of %d participants: %s", len(set(who)), error)
            return majority(tasks, wins), None
    if not np.isfinite(model.skills_).all():
        return majority(tasks, wins), None
    return {task: bool(labels[number]) for task, number in names.items()}, model.skills_.to_dict()


def majority(tasks: list[tuple], wins: list[bool]) -> dict[tuple, bool]:
    """Task -> whether most say so; a draw is for the right side, which is each method's equally often."""
    balance = collections.Counter()
    for task, win in zip(tasks, wins):
        balance[task] += 1 if win else -1
    return {task: ahead > 0 for task, ahead in balance.items()}


def covariance(comparisons: Comparisons) -> tuple[np.ndarray, np.ndarray]:
    """(W, W) how two participants agree, from -1 to 1, and (W,) who they are, as the paper's figure 12.

    C = Y Y^T / N, Y of 1 and -1 for the answered questions, else 0; N counts those that both answered.  NaN where that
    is none, and on the diagonal, where crowd-kit's matrix has -1.
    """
    who, row = np.unique(comparisons.participant, return_inverse=True)
    questions = np.stack(comparisons[1:5], axis=1)
    column = np.unique(questions, axis=0, return_inverse=True)[1].reshape(-1)
    answers = np.zeros((len(who), column.max(initial=-1) + 1))
    answers[row, column] = np.where(comparisons.left_wins, 1, -1)
    shared = np.abs(answers) @ np.abs(answers).T
    np.fill_diagonal(shared, 0)
    return np.divide(answers @ answers.T, shared, out=np.full(shared.shape, np.nan), where=shared > 0), who

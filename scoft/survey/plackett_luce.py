"""Plackett-Luce: scores of whole rankings, a choice of the best among those that are left, again and again."""

from __future__ import annotations

import collections

import numpy as np

from scoft.survey.bootstrap import Number, Participants
from scoft.survey.rankings import Rankings


STEPS, TOLERANCE = 1000, 1e-7  # of the draws' fits


def plackett_luce(rankings: Rankings, **draws) -> dict[str, Number]:
    """Method -> its score, more is better, with a mean of 0: choix' maximum of the likelihood.

    Rankings with a tie say nothing of an order and are left out; of those with gaps, what was ranked counts.  A method
    that won or lost every comparison has no finite score, and then none has: None.
    """
    counts, orders, who = ranking_counts(rankings)
    m = len(rankings.methods)
    if not orders or not connected(wins_of(orders, m) @ counts.sum(0, keepdims=True).T, m).item():
        return dict.fromkeys(rankings.methods, Number(None))
    import choix

    data = [order for order, count in zip(orders, counts.sum(0)) for _ in range(int(count))]
    scores = choix.ilsr_rankings(m, data, alpha=0)
    scores = scores - scores.mean()
    participants = Participants(rankings.culture_of[who], **draws)
    drawn = fits(participants.weights @ counts, orders, scores)
    return dict(zip(rankings.methods, participants.numbers(scores, drawn)))


def ranking_counts(rankings: Rankings) -> tuple[np.ndarray, list[tuple[int, ...]], np.ndarray]:
    """(P, R) how often each participant gave each order, these orders of methods, and (P,) who they are."""
    usable = np.flatnonzero(~rankings.tied & ((~np.isnan(rankings.ranks)).sum(1) > 1))
    by_order = collections.defaultdict(collections.Counter)
    for row in usable:
        ranks = rankings.ranks[row]
        order = np.argsort(ranks, kind="stable")[: (~np.isnan(ranks)).sum()]
        by_order[tuple(order.tolist())][rankings.participant[row]] += 1
    who = np.unique(rankings.participant[usable])
    counts = np.array([[each[person] for each in by_order.values()] for person in who], dtype=float)
    return counts, list(by_order), who


def wins_of(orders: list[tuple[int, ...]], m: int) -> np.ndarray:
    """(m * m, R) whether an order has one method before another."""
    wins = np.zeros((m, m, len(orders)))
    for number, order in enumerate(orders):
        for place, winner in enumerate(order):
            wins[winner, list(order[place + 1 :]), number] = 1
    return wins.reshape(m * m, -1)


def connected(wins: np.ndarray, m: int) -> np.ndarray:
    """(draws,) whether from every method a chain of wins leads to every other; wins: (m * m, draws)."""
    reach = wins.T.reshape(-1, m, m) > 0
    reach |= np.eye(m, dtype=bool)
    for _ in range(m.bit_length()):  # chains twice as long each time, up to m
        reach = np.matmul(reach, reach)
    return reach.all((1, 2))


def fits(counts: np.ndarray, orders: list[tuple[int, ...]], start: np.ndarray) -> np.ndarray:
    """(draws, m) the scores of each row of counts (draws, R); NaN where they are not finite.

    All at once, by minorization and maximization (Hunter, "MM algorithms for generalized Bradley-Terry models", 2004):
    exp(s_i) <- stages that i won / sum over stages with i of 1 / sum over the stage's methods of exp(s).
    """
    m = len(start)
    stages = [(number, order[place:]) for number, order in enumerate(orders) for place in range(len(order) - 1)]
    inside = np.zeros((len(stages), m))
    won = np.zeros((len(stages), m))
    for stage, (_, left) in enumerate(stages):
        inside[stage, list(left)], won[stage, left[0]] = 1, 1
    often = counts[:, [number for number, _ in stages]]  # (draws, stages)
    finite = connected(wins_of(orders, m) @ counts.T, m)
    often, wins = often[finite], (often @ won)[finite]
    values = np.tile(np.exp(start), (len(wins), 1))
    for _ in range(STEPS):
        updated = wins / ((often / (values @ inside.T)) @ inside)
        updated /= np.exp(np.log(updated).mean(1, keepdims=True))
        moved = np.abs(np.log(updated / values)).max(initial=0)
        values = updated
        if moved < TOLERANCE:
            break
    scores = np.full((len(counts), m), np.nan)
    scores[finite] = np.log(values)
    return scores

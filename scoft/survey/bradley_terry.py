"""Noisy Bradley-Terry: scores of methods, with participants who may not look, or prefer a side.

    p = sigma(gamma_w) sigma(y (s_l - s_r)) + (1 - sigma(gamma_w)) sigma(y q_w),    y = 1 where left wins, else -1

s: the methods' scores; sigma(gamma_w): how often participant w looks; q_w: which side w takes otherwise.  Left is the
picture that stood first, where that is known.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from scoft.intervals import CONFIDENCE
from scoft.survey.bootstrap import Number, Participants
from scoft.survey.pairs import Comparisons, comparisons_of
from scoft.survey.rankings import Rankings


# The penalty is lambda / 2 |x - centre|^2.  It keeps scores finite where all agree, and takes participants for such as
# look (98 % of the time) unless their answers say otherwise: comparisons alone hardly tell scores far apart
# and guesses from scores that are near.  Of 50 simulated participants who all looked a score of 0.73 came out as 0.75,
# and as 1.10 with all centres 0 and lambdas 0.1.
SCORES, GAMMAS, QS = 0.1, 1.0, 1.0  # lambda
LOOKING = 4.0  # the centre of gamma, that of all others is 0
PAPERS_MOST = 20_000  # comparisons that crowd-kit's takes within seconds


@dataclasses.dataclass(frozen=True)
class Counted:
    """Alike comparisons counted once, (n,) each."""

    participant: np.ndarray  # from 0 up
    left: np.ndarray
    right: np.ndarray
    y: np.ndarray  # 1 or -1
    count: np.ndarray
    methods: int
    participants: int


def counted(comparisons: Comparisons, methods: int) -> tuple[Counted, np.ndarray]:
    """The comparisons of a fit, and (participants,) who they are."""
    who, participant = np.unique(comparisons.participant, return_inverse=True)
    rows = np.stack([participant, comparisons.left, comparisons.right, np.where(comparisons.left_wins, 1, -1)], axis=1)
    rows, count = np.unique(rows, axis=0, return_counts=True)
    return Counted(*rows.T, count=count.astype(float), methods=methods, participants=len(who)), who


def slopes(x: np.ndarray, data: Counted) -> tuple[float, np.ndarray]:
    """The log likelihood, and its slopes by participant, (participants, methods + 2): the scores, gamma, q."""
    scores, gamma, q = np.split(x, [data.methods, data.methods + data.participants])
    d, g, b, y = scores[data.left] - scores[data.right], gamma[data.participant], q[data.participant], data.y
    looked, guessed = log_expit(g) + log_expit(y * d), log_expit(-g) + log_expit(y * b)
    log_p = np.logaddexp(looked, guessed)
    share = np.exp(looked - log_p)  # of the probability that is due to looking
    by = np.zeros((data.participants, data.methods + 2))
    slope_d = data.count * share * y * expit(-y * d)
    np.add.at(by, (data.participant, data.left), slope_d)
    np.add.at(by, (data.participant, data.right), -slope_d)
    np.add.at(by, (data.participant, data.methods), data.count * (share - expit(g)))
    np.add.at(by, (data.participant, data.methods + 1), data.count * (1 - share) * y * expit(-y * b))
    return data.count @ log_p, by


def penalty(data: Counted) -> tuple[np.ndarray, np.ndarray]:
    """lambda and centre of each place of x."""
    sizes = (data.methods, data.participants, data.participants)
    return np.repeat((SCORES, GAMMAS, QS), sizes), np.repeat((0.0, LOOKING, 0.0), sizes)


def objective(x: np.ndarray, data: Counted) -> tuple[float, np.ndarray]:
    """The penalized negative log likelihood and its gradient; x: scores, gammas, qs."""
    log_likelihood, by = slopes(x, data)
    gradient = np.concatenate([by[:, : data.methods].sum(0), by[:, data.methods], by[:, data.methods + 1]])
    weight, centre = penalty(data)
    pull = weight * (x - centre)
    return float(pull @ (x - centre) / 2 - log_likelihood), pull - gradient


def fit(data: Counted) -> np.ndarray:
    """scores, gammas, qs at the optimum, scores with a mean of 0, as the penalty has them best."""
    _, start = penalty(data)
    x = minimize(objective, start, args=(data,), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    x[: data.methods] -= x[: data.methods].mean()
    return x


def covariance_of_scores(x: np.ndarray, data: Counted, culture: np.ndarray) -> np.ndarray:
    """(methods, methods) over participants drawn anew within their culture: A^-1 (sum of u u^T) A^-1.

    A: the second derivatives by the scores, gamma and q of each participant following (a Schur complement). u: a
    participant's slope, from which their culture's mean is taken.  culture: (participants,).
    """
    m, step = data.methods, 1e-5

    def second(places: slice) -> np.ndarray:
        """(participants, m + 2): how the slopes change with these places of x."""
        ahead, behind = x.copy(), x.copy()
        ahead[places] += step
        behind[places] -= step
        return (slopes(behind, data)[1] - slopes(ahead, data)[1]) / (2 * step)

    of_scores = np.stack([second(slice(i, i + 1)) for i in range(m)], axis=1)  # (participants, m, m + 2)
    own = np.stack(  # (participants, 2, m + 2): each participant's gamma or q touches nobody else's slopes
        [second(slice(m + i * data.participants, m + (i + 1) * data.participants)) for i in (0, 1)], axis=1
    )
    corner, cross = own[:, :, m:] + np.diag([GAMMAS, QS]), own[:, :, :m]
    a = (
        of_scores[:, :, :m].sum(0)
        + SCORES * np.eye(m)
        - (cross.swapaxes(1, 2) @ np.linalg.solve(corner, cross)).sum(0)
    )
    u = slopes(x, data)[1][:, :m]
    middle = np.zeros((m, m))
    for each in np.unique(culture):
        own_u = u[culture == each] - u[culture == each].mean(0)
        middle += own_u.T @ own_u * len(own_u) / max(len(own_u) - 1, 1)
    return np.linalg.solve(a, np.linalg.solve(a, middle).T)


def noisy_bradley_terry(rankings: Rankings) -> dict[str, Number]:
    """Method -> its score, more is better, with its interval over participants."""
    data, who = counted(comparisons_of(rankings, by_position=True), len(rankings.methods))
    if not len(data.count):
        return dict.fromkeys(rankings.methods, Number(None))
    x, culture = fit(data), rankings.culture_of[who]
    participants = Participants(culture)
    numbers = []
    for number, variance in enumerate(covariance_of_scores(x, data, culture).diagonal()):
        if number not in data.left and number not in data.right:
            numbers.append(Number(None))
        elif participants.freedom:
            reach = stats.t.ppf((1 + CONFIDENCE) / 2, participants.freedom) * np.sqrt(variance)
            numbers.append(Number(float(x[number]), float(x[number] - reach), float(x[number] + reach)))
        else:
            numbers.append(Number(float(x[number])))
    return dict(zip(rankings.methods, numbers))


def as_in_the_paper(rankings: Rankings) -> dict[str, Number]:
    """Scores of crowd-kit's NoisyBradleyTerry as it comes, 0 to 1; None where there are more than PAPERS_MOST.

    Not the model's optimum: in crowd-kit 1.4.2 the gradient of skills and biases lies one slot off and holds the last
    comparison alone, and the objective adds the penalty that the gradient subtracts.
    """
    comparisons = comparisons_of(rankings, by_position=False)
    if not 0 < len(comparisons.participant) <= PAPERS_MOST:
        return dict.fromkeys(rankings.methods, Number(None))
    import pandas
    from crowdkit.aggregation import NoisyBradleyTerry

    winner = np.where(comparisons.left_wins, comparisons.left, comparisons.right)
    table = pandas.DataFrame(
        {"worker": comparisons.participant, "left": comparisons.left, "right": comparisons.right, "label": winner}
    )
    with np.errstate(all="ignore"):  # on its way it overflows, which NumPy would tell a dozen times
        scores = NoisyBradleyTerry().fit(table).scores_
    return {
        method: Number(float(scores[number])) if number in scores.index else Number(None)
        for number, method in enumerate(rankings.methods)
    }

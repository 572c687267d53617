"""What SCoFT is judged by: section 6 of the paper as pure functions of features.

    symbol     meaning                                                                    shape
    x, y       features: x of generated pictures, y of photographs, one row each          (n, d), (m, d)
    prompts    label of the prompt that each picture was made from                        (n,)
    seeds      label of its seed; methods share prompts and seeds, prompts share seeds    (n,)

Features are finite; the work is done in float64.  Bad input, and a metric that the input does not allow, is a
ValueError that names the metric, what was got and what is needed.  Nothing here is random: the same features give the
same numbers.

Paper: SCoFT: Self-Contrastive Fine-Tuning for Equitable Image Generation, https://arxiv.org/abs/2401.08053
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist

from scoft.intervals import Draw, Estimate, check_draws, estimate_of, finite, leave_out, rate_of


BLOCK = 1024  # rows of a kernel or similarity matrix that are held at a time
PRDC = ("precision", "recall", "density", "coverage")


def kid(
    x: ArrayLike,
    y: ArrayLike,
    *,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
    within_y: float | np.ndarray | None = None,
) -> float | np.ndarray:
    """Kernel Inception distance (https://arxiv.org/abs/1801.01401): unbiased MMD^2 with k(a, b) = (a.b / d + 1)^3.

        mean of k over pairs within x + mean over pairs within y - 2 mean over pairs of one of each

    All pairs, no subsets: what torch-fidelity and clean-fid return for one subset of everything.  About 0, and then
    often below it, for equal distributions; larger is less alike.  The paper prints it times 10^3.

    x_weights (n,), y_weights (m,): how often each row counts, integers >= 0; pairs of a row with itself or its copies
    are left out: sum_{i != j} w_i w_j k_ij / sum_{i != j} w_i w_j.  With (R, n) or (R, m) it returns R values, (R,).
    within_y: `mean_kernel(y, weights=y_weights)` if it is known, since that of a large reference takes its time.
    """
    x, y = _both("KID", _features, x, y, least=2)
    u, v = _weights("KID, pictures", x_weights, x), _weights("KID, photographs", y_weights, y)
    between = sum(((u[..., rows] @ _kernel(x[rows], y)) * v).sum(-1) for rows in _blocks(x))
    within_y = mean_kernel(y, weights=v) if within_y is None else within_y
    return mean_kernel(x, weights=u) + within_y - 2 * between / (u.sum(-1) * v.sum(-1))


def mean_kernel(x: ArrayLike, *, weights: ArrayLike | None = None) -> float | np.ndarray:
    """Mean of `kid`'s k over the pairs within x, weighted as there."""
    x = _features("KID", x, least=2)
    w = _weights("KID", weights, x)
    total = 0
    for rows in _blocks(x):
        kernel = _kernel(x[rows], x)
        np.fill_diagonal(kernel[:, rows], 0)
        total += ((w[..., rows] @ kernel) * w).sum(-1)
    return total / (w.sum(-1) ** 2 - (w**2).sum(-1))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def cosines(x: ArrayLike, text: ArrayLike) -> np.ndarray:
    """Cosine of each picture with its own text from CLIP features, both (n, d).  Returns (n,) in [-1, 1]."""
    x, text = _both("CLIP", _directions, x, text, other="texts")
    if len(x) != len(text):
        raise ValueError(f"CLIP: got {len(x)} pictures and {len(text)} texts, need one text for each picture.")
    return (x * text).sum(1)


def clip_scores(x: ArrayLike, text: ArrayLike) -> np.ndarray:
    """CLIPScore of each picture: 2.5 max(cosine, 0) (https://arxiv.org/abs/2104.08718).  Returns (n,) in [0, 2.5].

    The paper's 0.80 has to be of this form: cosines of Stable Diffusion's pictures are near 0.3.
    """
    return 2.5 * np.maximum(cosines(x, text), 0)


def training_similarity(x: ArrayLike, prompts: Sequence, y: ArrayLike, y_prompts: Sequence) -> float:
    """Mean cosine over the pairs of a picture and a training photograph that share the prompt (Table 2), in [-1, 1].

    CLIP-I, DINO or DreamSim similarity, as the features are; lower is less memorized.  y_prompts (m,): the captions.
    """
    metric = "training similarity"
    x, y = _both(metric, _directions, x, y)
    asked, count, total = _sums_by_prompt(f"{metric}, pictures", x, prompts)
    known, y_count, y_total = _sums_by_prompt(f"{metric}, photographs", y, y_prompts)
    if missing := set(asked.tolist()) - set(known.tolist()):
        raise ValueError(f"{metric}: got no photograph for the prompt {min(missing)!r}, need one for each prompt.")
    at = np.searchsorted(known, asked)
    return float((total * y_total[at]).sum() / (count @ y_count[at]))


def diversity(x: ArrayLike, prompts: Sequence) -> float:
    """DIV: mean of 1 - cosine over the pairs of pictures of a prompt, then mean over prompts (Table 2), in [0, 2].

    The paper's is of DreamSim features.  Needs 2 pictures of each prompt.
    """
    x = _directions("DIV", x)
    labels, count, total = _sums_by_prompt("DIV", x, prompts)
    if count.min() < 2:
        raise ValueError(f"DIV: got 1 picture of the prompt {labels[count.argmin()].item()!r}, need at least 2.")
    # The square of a sum of unit vectors is their number and the cosines of all ordered pairs.
    return float(np.mean(1 - ((total**2).sum(1) - count) / (count * (count - 1))))


def vendi_score(x: ArrayLike) -> float:
    """exp of the von Neumann entropy of K / n, K the cosines (https://arxiv.org/abs/2210.02410): in [1, n].

    The effective number of different pictures.  It grows with n: compare it at equal n only.
    """
    x = _directions("Vendi score", x, least=2)
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x  # the smaller one; they share all eigenvalues but zeros
    p = np.linalg.eigvalsh(gram / len(x))
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def prdc(x: ArrayLike, y: ArrayLike, *, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage.

    Around each row lies a ball that reaches to its k-th neighbour in its own set.  Precision: share of pictures within
    some photograph's ball; recall: share of photographs within some picture's ball (https://arxiv.org/abs/1904.06991).
    Density: mean number of photographs' balls around a picture, over k; coverage: share of photographs whose ball
    holds a picture (https://arxiv.org/abs/2002.09797).  All depend on n and m: compare them at equal sizes only.
    """
    return dict(zip(PRDC, _prdc(*_distances(x, y), k=k).tolist()))


def _distances(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = _both("PRDC", _features, x, y, least=2)
    return cdist(x, x), cdist(y, y), cdist(x, y)


def _prdc(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, *, k: int) -> np.ndarray:
    if not 0 < k < min(xy.shape):
        raise ValueError(f"PRDC: got k = {k}, {len(xx)} pictures and {len(yy)} photographs, need 0 < k < either.")
    x_radius, y_radius = (np.partition(distances, k)[:, k] for distances in (xx, yy))  # column 0 is the row itself
    near = xy < y_radius
    recalled = (xy < x_radius[:, None]).any(0)
    return np.array([near.any(1).mean(), recalled.mean(), near.sum(1).mean() / k, near.any(0).mean()])


def nearest_photographs(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """For each picture the index of the photograph with the largest cosine, and that cosine: two arrays (n,)."""
    x, y = _both("nearest photograph", _directions, x, y)
    index = np.concatenate([(x[rows] @ y.T).argmax(1) for rows in _blocks(x)])
    return index, (x * y[index]).sum(1)


# ---------------------------------------------------------------------------------------------------------------------
# With intervals
# ---------------------------------------------------------------------------------------------------------------------


class KidReference(NamedTuple):
    """Photographs (m, d) with what KID needs of them alone, which is the same for every method."""

    y: np.ndarray
    within: float
    photographs: Draw | None
    within_without: np.ndarray | None  # (G,)


def kid_reference(y: ArrayLike, *, photographs: Draw | None = None) -> KidReference:
    """photographs: their draw, if the interval is to say what other photographs would give."""
    y = _features("KID, photographs", y, least=2)
    within_without = None if photographs is None else mean_kernel(y, weights=[*photographs.without.values()])
    return KidReference(y, mean_kernel(y), photographs, within_without)


def kid_estimate(x: ArrayLike, reference: KidReference, pictures: Sequence[Draw]) -> Estimate:
    """`kid` of pictures and a reference."""
    y, within, photographs, within_without = reference
    replicates = {}
    for draw in pictures:
        values = kid(x, y, x_weights=[*draw.without.values()], within_y=within)
        replicates[draw.name] = dict(zip(draw.without, values.tolist()))
    if photographs is not None:
        values = kid(x, y, y_weights=[*photographs.without.values()], within_y=within_without)
        replicates[photographs.name] = dict(zip(photographs.without, values.tolist()))
    return estimate_of(kid(x, y, within_y=within), replicates, n=len(x))


def prdc_estimates(
    x: ArrayLike, y: ArrayLike, pictures: Sequence[Draw], *, photographs: Draw | None = None, k: int = 5
) -> dict[str, Estimate]:
    """The four numbers of `prdc`; photographs: their draw, if the intervals are to say what others would give."""
    xx, yy, xy = _distances(x, y)
    check_draws("PRDC, pictures", xx, pictures)
    check_draws("PRDC, photographs", yy, [photographs] if photographs else [])

    def statistic(kept: np.ndarray, kept_y: np.ndarray | slice = slice(None)) -> np.ndarray:
        return _prdc(xx[kept][:, kept], yy[kept_y][:, kept_y], xy[kept][:, kept_y], k=k)

    values, replicates = leave_out(statistic, pictures, photographs)
    estimates = {}
    for i, name in enumerate(PRDC):
        own = {draw: {label: values[i] for label, values in by_label.items()} for draw, by_label in replicates.items()}
        if name == "density":  # the only one that is no share
            estimates[name] = estimate_of(values[i], own, n=len(xx))
        else:
            estimates[name] = rate_of(values[i], own, n=len(xx), trials=len(xx if name == "precision" else yy))
    return estimates


# ---------------------------------------------------------------------------------------------------------------------
# Input
# ---------------------------------------------------------------------------------------------------------------------


def _features(what: str, x: ArrayLike, *, least: int = 1) -> np.ndarray:
    x = finite(what, x)
    if x.ndim != 2 or len(x) < least:
        raise ValueError(f"{what}: got features of shape {x.shape}, need (rows, d) with at least {least} rows.")
    return x


def _directions(what: str, x: ArrayLike, *, least: int = 1) -> np.ndarray:
    x = _features(what, x, least=least)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(f"{what}: got features of length 0 in row {norms.argmin()}, need a direction for a cosine.")
    return x / norms


def _both(
    metric: str, check: Callable, x: ArrayLike, y: ArrayLike, *, other: str = "photographs", least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    x, y = check(f"{metric}, pictures", x, least=least), check(f"{metric}, {other}", y, least=least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{metric}: got {x.shape[1]} and {y.shape[1]} dimensions of features, need equally many.")
    return x, y


def _weights(what: str, weights: ArrayLike | None, x: np.ndarray) -> np.ndarray:
    w = np.ones(len(x)) if weights is None else finite(what, weights)
    if w.ndim not in (1, 2) or w.shape[-1] != len(x) or (w < 0).any() or (w % 1).any():
        raise ValueError(f"{what}: got weights of shape {w.shape}, need integers >= 0 for each of {len(x)} rows.")
    if ((w > 0).sum(-1) < 2).any():
        raise ValueError(f"{what}: got weights for {(w > 0).sum(-1).min()} rows, need at least 2.")
    return w


def _sums_by_prompt(what: str, x: np.ndarray, prompts: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of P prompts its label (P,), the number of its rows (P,) and their sum (P, d)."""
    if np.shape(prompts) != (len(x),):
        raise ValueError(f"{what}: got prompts of shape {np.shape(prompts)}, need one for each of {len(x)} rows.")
    labels, index, count = np.unique(np.asarray(prompts), return_inverse=True, return_counts=True)
    by_prompt = x[np.argsort(index, kind="stable")]
    return labels, count, np.add.reduceat(by_prompt, np.cumsum(count) - count)


def _blocks(x: np.ndarray) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, len(x), BLOCK)]

"""The paper's printed numbers of its cultures, to stand beside those that were measured by the same encoders."""

from collections.abc import Sequence

from scoft.evaluate.encoders import ClipEncoder, InceptionEncoder
from scoft.evaluate.metrics import METRICS
from scoft.evaluate.results import Results
from scoft.evaluate.tables import headline, number_text
from scoft.intervals import Estimate, mean_over_cultures
from scoft.pages import table


# Table 4: KID to CCUB and to MS COCO, both x 10^3, and CLIP score, of each culture.
CULTURES = ("china", "korea", "nigeria", "india", "mexico")
TABLE_4 = {
    "base": {
        "kid": (25.244, 28.061, 32.687, 39.988, 25.796),
        "kid_general": (4.396, 4.396, 4.396, 4.396, 4.396),
        "clip_score": (0.827, 0.844, 0.799, 0.773, 0.819),
    },
    "m": {
        "kid": (18.798, 24.118, 24.539, 20.566, 25.196),
        "kid_general": (4.890, 4.497, 4.461, 5.342, 4.364),
        "clip_score": (0.804, 0.832, 0.792, 0.757, 0.825),
    },
    "mp": {
        "kid": (15.895, 23.007, 25.638, 19.799, 22.462),
        "kid_general": (5.090, 4.403, 5.135, 5.112, 4.941),
        "clip_score": (0.798, 0.836, 0.792, 0.753, 0.8232),
    },
    "mpc": {
        "kid": (14.667, 17.413, 23.261, 18.342, 24.424),
        "kid_general": (5.102, 4.222, 4.987, 5.457, 4.325),
        "clip_score": (0.793, 0.825, 0.795, 0.753, 0.829),
    },
}


def paper_means(cultures: Sequence[str]) -> dict[tuple[str, str], Estimate]:
    """(metric, method) -> the mean of Table 4 over these of CULTURES; over all, it is the paper's Table 1."""
    found = {}
    for method, metrics in TABLE_4.items():
        for metric, values in metrics.items():
            by_culture = dict(zip(CULTURES, values, strict=True))
            printed = {culture: Estimate(*[by_culture[culture]] * 3, 0) for culture in cultures}
            found[metric, method] = mean_over_cultures(printed)
    return found


def paper_lines(results: Sequence[Results]) -> list[str]:
    """The paper's numbers of these cultures, for the metrics whose features were the paper's; none without such."""
    cultures, encoders = [each.culture for each in results], results[0].encoders
    alike = {"clip_score": "clip" in encoders and encoders["clip"].place == ClipEncoder.default}
    usual = "inception" in encoders and encoders["inception"].sha256 == InceptionEncoder.usual
    alike |= dict.fromkeys(("kid", "kid_general"), usual and results[0].features == "inception")
    there = {key.metric for key in results[0].estimates}
    metrics = [metric for metric in TABLE_4["base"] if metric in there and alike[metric]]
    if not metrics or not set(cultures) <= set(CULTURES):
        return []
    printed = paper_means(cultures)
    rows = [
        [headline(metric, METRICS[metric].sets[0]), *(number_text(printed[metric, each], metric) for each in TABLE_4)]
        for metric in metrics
    ]
    source = "Table 1" if set(cultures) == set(CULTURES) else "Table 4"
    words = f"The paper's {source}, by the same encoders; its prompts and photographs are not these:"
    return ["", words, "", *table(["", *TABLE_4], rows)]

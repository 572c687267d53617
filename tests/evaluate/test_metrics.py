"""The table of metrics: each row is computed, under its own name, and has a heading."""

import dataclasses
from types import SimpleNamespace

import pytest

from scoft.evaluate import measures
from scoft.evaluate.features import Noise
from scoft.evaluate.measures import estimates_of, in_order
from scoft.evaluate.metrics import METRICS, Metric, metric_of
from scoft.evaluate.sample import Choices, References, Sample
from scoft.evaluate.sources import Source
from scoft.evaluate.tables import headline, number_text
from scoft.intervals import QUESTIONS, Estimate
from scoft.pictures import SETS, Picture


PROMPTS, NUMBERS, PHOTOGRAPHS = 3, 4, 8
CHOICES = Choices(
    metrics=list(METRICS), features="inception", diversity_features="dreamsim", question=QUESTIONS[0], neighbours=2
)
COMMON = dict.fromkeys(("variant", "lora", "lora_sha256")) | {"base": "b", "base_key": "b", "precision": "no"}
COMMON |= {"culture": "veridia", "method": "base", "guidance": 4.5, "steps": 2, "resolution": 8}


class Shelf:
    """PHOTOGRAPHS of each kind, of which nothing but a hash is known."""

    dataset = SimpleNamespace(culture="veridia", name="d")

    def of(self, which: str) -> list[Source]:
        return [Source(f"{which} {i}", None) for i in range(PHOTOGRAPHS)]


def sample_of(name: str) -> Sample:
    """PROMPTS of a set with NUMBERS pictures each, whose features are noise; the judge finds the first right."""
    pictures = [
        Picture(
            set=name,
            index=index,
            number=number,
            prompt=f"prompt {index}",
            photograph=f"{name} {index}" if name in ("train", "test") else None,
            **COMMON,
        )
        for index in range(PROMPTS)
        for number in range(NUMBERS)
    ]
    return Sample(
        pictures=pictures,
        sources=pictures,
        features=Noise(),
        references=References(Noise(), Shelf()),
        choices=CHOICES,
        judge=SimpleNamespace(verdicts=lambda pictures, _: {"right": [1.0] + [0.0] * (len(pictures) - 1)}),
    )


def test_log_odds_are_a_mean_beyond_0_and_1():
    """Where others are shares, what a judge names so is a mean of any numbers; 0 does not bound its interval."""
    said = {"right": [1.0, 0.0] * 6, "right_log_odds": [-30.0, 2.5] * 6}
    sample = dataclasses.replace(sample_of("prompts"), judge=SimpleNamespace(verdicts=lambda *_: said))
    found = estimates_of(sample, ["judge"])
    assert 0 <= found["judge/right"].low and found["judge/right"].high <= 1
    sure = found["judge/right_log_odds"]
    assert sure.value == -13.75 and sure.low < -14 and (sure.low + sure.high) / 2 == pytest.approx(sure.value)
    assert number_text(sure, "judge/right_log_odds").startswith("-13.75 [-")


@pytest.mark.parametrize("name", METRICS)
def test_each_row_gives_its_number(name):
    """Of each of its sets, alone, with its interval; a judge's are under its words."""
    row = METRICS[name]
    assert row.name == name and row.sets and set(row.sets) <= set(SETS)
    for of in row.sets:
        found = estimates_of(sample_of(of), [name])
        assert list(found) == (["judge/right"] if name == "judge" else [name])
        (estimate,) = found.values()
        assert estimate.low <= estimate.value <= estimate.high and estimate.n == PROMPTS * NUMBERS
        assert row.title in headline(name, of)


def test_headings_tell_rows_apart():
    """No two numbers of one set have the same heading."""
    for of in SETS:
        headings = [headline(name, of) for name, row in METRICS.items() if of in row.sets]
        assert len(set(headings)) == len(headings)


def test_a_planted_row_is_computed_in_its_place(monkeypatch):
    """A function and a row are all that a metric takes; those that are computed together come last."""

    def first_feature(sample: Sample, row: Metric) -> Estimate:
        return sample.mean(sample.x(row.encoder)[:, 0])

    row = dataclasses.replace(METRICS["clip_score"], name="count", title="pictures", compute="first_feature")
    monkeypatch.setattr(measures, "first_feature", first_feature, raising=False)
    monkeypatch.setitem(METRICS, "count", row)
    found = estimates_of(sample_of("prompts"), ["precision", "count", "recall"])
    assert list(found) == ["count", "precision", "recall"] == in_order(["precision", "count", "recall"])
    assert headline("count", "prompts").startswith("pictures")


def test_a_judges_words_have_rows_of_their_own():
    right, house = metric_of("judge/right"), metric_of("judge/house")
    assert (right.title, right.better) == ("judge: right", "more") and house.better == ""
    sure = metric_of("judge/right_log_odds")
    assert (sure.title, sure.better, sure.decimals) == ("judge: log-odds of right", "more", 2)
    with pytest.raises(KeyError):
        metric_of("none")

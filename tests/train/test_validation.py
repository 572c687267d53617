"""Pictures while training, and the judge's numbers of them."""

import pytest

from scoft.train.validation import judge_table


@pytest.mark.parametrize(
    ("base", "lora", "rows"),
    [
        ({"kid": 0.0043, "kid_low": 0.004}, {"kid": 0.001, "kid_low": 0.0005},
         ["          base     LoRA", "kid       0.0043   0.0010", "kid_low   0.0040   0.0005"]),
        ({"share": 0.0}, {"share": 0.0, "more": 1234.5},
         ["        base   LoRA", "share   0.00   0.00", "more           1234.50"]),
        ({"score": float("nan")}, {"score": -12.0}, ["        base   LoRA", "score   nan    -12.00"]),
        ({"a_log_odds": -29.63, "a_log_odds_low": -31.0, "a_log_odds_high": -28.257}, {"a_log_odds": 6.2},
         ["             base                      LoRA", "a_log_odds   -29.63 [-31.00, -28.26]   6.20"]),
        ({"x_low": 1, "x_high": 2}, {"x_low": 3, "x_high": 4},
         ["         base   LoRA", "x_low    1      3", "x_high   2      4"]),
    ],
    ids=["small", "one-sided", "nan", "log-odds", "bounds alone"],
)  # fmt: skip
def test_any_judges_numbers_make_a_table(base, lora, rows):
    """Small numbers keep two digits, whole ones have no decimals, a lone bound is a number, a missing one is blank."""
    assert judge_table(base, lora) == rows

"""benchmarks/corrector.py: its arms are command lines, and its tables are of what the cells hold."""

import pytest

import correct_scoft
from benchmarks.corrector import NUMBERS, STUDIES, compared, general_changed, report, right_kept, summary
from scoft.corrector.callback import Knobs


def cell(right, *, general=(1, 2), seconds=1.0):
    """A cell whose base draws nothing right; right: of the corrector's four pictures."""
    numbers = dict.fromkeys(NUMBERS, [0, 0, 0, 0])
    cost = {"unet_calls": 10, "unet_rows": 20}
    return {
        "arms": {
            arm: {
                "cost": cost | {"seconds": seconds if arm == "base" else 1.9 * seconds},
                "said": numbers | {"right": [1, 0, 0, 0] if arm == "base" else right},
                "general": [1, 2] if arm == "base" else list(general),
            }
            for arm in STUDIES["strength"]
        }
    }


def test_every_arm_is_a_command_line_and_knobs():
    known = {"strength": 4.0, "start": 0.0, "stop": 1.0, "cap": None, "inner_steps": 1}
    for arms in STUDIES.values():
        assert next(iter(arms)) == "base"
        for arm in arms.values():
            correct_scoft.parse_args(["fit", "--dataset=pocket", "--culture=veridia", *arm.fit])
            Knobs(**known | dict(arm.corrector or {}))


def test_differences_are_paired_by_seed():
    cells = {"veridia/1": cell([1, 1, 0, 0]), "ochria/1": cell([1, 1, 1, 1]), "veridia/2": cell([1, 1, 1, 0])}
    found = compared(cells, "strength 1", "right")
    assert (found["mean"], found["difference"]) == (0.75, 0.5)  # of both seeds, each the mean of its cultures
    assert found["interval"] == pytest.approx([0.5, 0.5])
    assert compared({"veridia/1": cells["veridia/1"]}, "strength 1", "right")["interval"] is None


def test_what_is_left_alone_and_what_is_kept_are_counted():
    arms = cell([0, 1, 1, 1], general=(1, 3))["arms"]
    assert general_changed(arms, "strength 1") == 0.5 and general_changed(arms, "base") == 0.0
    assert right_kept(arms, "strength 1") == 0.0 and right_kept(arms, "base") == 1.0


def test_the_report_has_a_line_for_each_arm():
    cells = {"veridia/1": cell([1, 1, 0, 0]), "veridia/2": cell([1, 1, 1, 0])}
    lines = report({"summary": {"strength": summary(cells, "strength")}}).splitlines()
    assert len(lines) == 1 + len(STUDIES["strength"]) and "1.9" in lines[-1]

"""What a run writes down, and what of it a run that goes on makes untrue."""

import json

import pytest

import train_scoft_lora
from scoft.lora_folder import LORA_FILE
from scoft.train.records import FREE_FLAGS, abandon_what_follows, warn_of_changes


def test_what_going_on_makes_untrue_is_removed(tmp_path):
    """Later checkpoints, the finished run's pictures, numbers, seal and card; pictures of earlier updates stay."""
    stale = ["README.md", "checksums.json", "evaluation.json", "checkpoint-4/x", "checkpoint-10/x"]
    stale += [f"images/{name}" for name in ("judge.json", "before_after.png", "lora-0.png", "evaluation.png")]
    stale += ["images/photographs/before_after.png"]
    right = ["checkpoint-3/x", "images/step-000002.png", "metrics.jsonl", LORA_FILE]
    for name in stale + right:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    abandon_what_follows(tmp_path, 3)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(right)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("perceptual_model_name_or_path", "elsewhere/clip_conv"),
        ("dreamsim_type", "dino_vitb16"),
        ("image_interpolation_mode", "nearest"),
        ("use_8bit_adam", True),
        ("variant", "fp16"),
    ],
)
def test_a_flag_that_may_make_another_run_is_told(tmp_path, caplog, flag, value):
    """Whatever is not known to leave a resumed run the same is named when it differs; a new flag is so by itself."""
    arguments = vars(train_scoft_lora.parse_args(["--dataset", "d", "--culture", "south_korea"]))
    record = {"arguments": arguments, "resolved": {"updates": 4}}
    (tmp_path / "training_args.json").write_text(json.dumps(record, default=str))
    for free in arguments.keys() & FREE_FLAGS:
        record["arguments"] = arguments | {free: "another"}
        warn_of_changes(tmp_path, record=record)
    assert not caplog.records
    record["arguments"] = arguments | {flag: value}
    warn_of_changes(tmp_path, record=record)
    assert [record.message for record in caplog.records] == [
        f"The resumed run departs from the one that was started: {flag} was {arguments[flag]}, is {value}"
    ]

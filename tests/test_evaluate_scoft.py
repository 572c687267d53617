"""The flags of evaluation."""

from pathlib import Path

import pytest

import evaluate_scoft
from evaluation import CLIP, METRICS, ROOT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lora", "base=x"], "--lora is NAME=PLACE, NAME not base; got"),
        (["--lora", "m"], "--lora is NAME=PLACE, NAME not base; got"),
        (["--lora", "../m=x"], "--lora is NAME=PLACE: NAME is 1 to 64 letters"),
        (["--culture", "x" * 300], "--culture is 1 to 64 letters"),
        (["--lora", "a=x", "a=y"], "a is given twice"),
        (["--resolution", "20"], "--resolution is a multiple of 8"),
        (["--num_images", "0"], "--num_images is at least 1"),
    ],
)
def test_bad_flags_of_generate_are_named(capsys, change, message):
    with pytest.raises(SystemExit):
        evaluate_scoft.parse_args(["generate", "out", "--dataset", "pocket", "--culture", "veridia", *change])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["generate", "score"])
def test_the_embedded_dataset_brings_its_flags(stage, capsys):
    """With --dataset pocket its table holds where the command line is silent; other datasets have none."""
    data = [stage, "out", "--dataset", "pocket", "--culture", "veridia"]
    args = evaluate_scoft.parse_args(data)
    if stage == "generate":
        assert (
            args.prompts == ROOT / "pocket/prompts.txt"
            and args.num_inference_steps == 10
            and args.folder == Path("out")
        )
        assert evaluate_scoft.parse_args([*data, "--num_inference_steps", "3"]).num_inference_steps == 3
    else:
        assert args.features == "clip" and args.metrics == METRICS and args.judge == str(ROOT / "pocket/judge.py:rate")
        more = evaluate_scoft.parse_args([*data, "--encoder", "dino=x", "--metrics", "kid"])
        assert more.encoder == [("clip", str(CLIP)), ("dino", "x")] and more.metrics == ["kid"]
    other = evaluate_scoft.parse_args([stage, "out", "--dataset", "ccub", "--culture", "veridia"])
    assert vars(other).get("judge") is None and vars(other).get("pretrained_model_name_or_path") is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--metrics kid_general", "--metrics kid_general needs --general_reference"),
        ("--metrics judge", "--metrics judge needs --judge"),
        ("--judge judge", "--judge is FILE.py:function, got 'judge'"),
        ("--judge judge.txt:f", "--judge is FILE.py:function, got 'judge.txt:f'"),
        ("--encoder resnet=x", "--encoder is NAME=PLACE with NAME of inception"),
    ],
)
def test_bad_flags_of_score_are_named(capsys, flags, message):
    with pytest.raises(SystemExit):
        evaluate_scoft.parse_args(["score", "out", "--dataset", "ccub", "--culture", "veridia", *flags.split()])
    assert message in capsys.readouterr().err

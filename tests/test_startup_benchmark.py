"""benchmarks/startup.py: what it measures of a checkout, and how it takes two in turn."""

import json

import pytest

from benchmarks import startup


def test_help_and_the_way_to_the_first_update_are_measured(monkeypatch, tiny_ccub, tiny_clip_conv, tiny_pipeline):
    """On tiny models: --help is light, each part is told, and what is imported counts to the part that needs it."""
    flags = {"dataset": tiny_ccub, "culture": "veridia", "pretrained_model_name_or_path": tiny_pipeline}
    flags |= {"perceptual_model_name_or_path": tiny_clip_conv, "resolution": 16, "rank": 4, "report_to": "none"}
    run = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    monkeypatch.setattr(startup, "RUN", [*run, "--num_validation_images", "0"])
    found = startup.measure(startup.ROOT)

    assert [*found["help"]] == [*startup.DOORS]
    assert all(0 < each["seconds"] and 50 < each["modules"] < 400 for each in found["help"].values())
    *parts, sums = found["first_update"].items()
    assert [name for name, _ in parts] == [*startup.PARTS] and sums[0] == "all"
    assert sums[1]["modules"] == sum(each["modules"] for _, each in parts) > 2000
    arguments, models = (found["first_update"][part] for part in ("arguments", "models"))
    assert 0 < arguments["import_seconds"] < models["import_seconds"] < sums[1]["import_seconds"]


def test_checkouts_take_turns_and_medians_are_told(monkeypatch, tmp_path):
    (tmp_path / startup.DOORS[0]).touch()
    seconds, turns = iter([1.0, 10.0, 5.0, 50.0, 3.0, 30.0]), []

    def measure(checkout):
        turns.append(checkout)
        return {"help": {"door": {"seconds": next(seconds)}}}

    monkeypatch.setattr(startup, "measure", measure)
    monkeypatch.setattr(startup, "launchers", lambda: {"accelerate launch": {"seconds": 2.0}})
    output = tmp_path / "startup.json"
    startup.main(["--repeats", "3", "--beside", str(tmp_path), "--output", str(output)])
    result = json.loads(output.read_text())
    assert turns == [startup.ROOT, tmp_path] * 3
    assert result["here"] == {"help": {"door": {"seconds": 3.0}}}
    assert result["beside"] == {"help": {"door": {"seconds": 30.0}}}


def test_what_is_no_checkout_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        startup.main(["--beside", str(tmp_path)])
    assert f"--beside {tmp_path} has no train_scoft_lora.py" in capsys.readouterr().err

"""benchmarks/pocket_cultures.py: it runs the training script, keeps what the judge says, and repeats nothing."""

import json

import pytest

from benchmarks import pocket_cultures
from scoft.distances.base import PerceptualDistance


RATES = ["0.25 [0.10, 0.50] -> 0.25 [0.10, 0.50]", "0.12 -> 0.12", "->"]


@pytest.fixture
def line(tmp_path, monkeypatch, tiny_pipeline, tiny_ccub):
    """The benchmark's command line for one short run on the tiny models, with a judge that knows its mind."""
    monkeypatch.setattr(pocket_cultures, "RUNS", tmp_path / "runs")
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def rate(images, prompts):\n"
        "    return {'right': 0.25, 'right_low': 0.1, 'right_high': 0.5, 'stereotype': 0.12}\n"
    )
    return f"""--dataset {tiny_ccub} --cultures veridia --methods finetune --seeds 3
        --output {tmp_path}/out/results.json
        --flags --pretrained_model_name_or_path {tiny_pipeline} --resolution 16 --rank 2 --max_train_steps 1
        --num_validation_images 1 --validation_inference_steps 1 --report_to none
        --validation_judge {judge}:rate""".split()


def test_a_run_is_done_once_and_its_numbers_shown(line, tmp_path, capfd, monkeypatch):
    """A run goes through the true launcher, its numbers into file and table; other settings make it run anew."""
    pocket_cultures.main(line)
    (run,) = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    assert (run["culture"], run["method"], run["seed"]) == ("veridia", "finetune", 3)
    assert run["judge"]["lora"] == {"right": 0.25, "right_low": 0.1, "right_high": 0.5, "stereotype": 0.12}
    arguments = json.loads((tmp_path / "runs/veridia-finetune-3/training_args.json").read_text())["arguments"]
    assert (arguments["seed"], arguments["method"]) == (3, "finetune")
    table = capfd.readouterr().out
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert cells == ["veridia", "finetune", "3", *RATES, f"{run['seconds']:.0f}"]

    started = []
    monkeypatch.setattr(pocket_cultures, "train", lambda argv, folder: started.append(folder) or (run["judge"], 1.0))
    pocket_cultures.main(line)
    assert capfd.readouterr().out == table and not started
    (tmp_path / "judge.py").write_text("def rate(images, prompts):\n    return {}\n")
    pocket_cultures.main(line)
    assert started == [tmp_path / "runs/veridia-finetune-3"]
    (again,) = json.loads((tmp_path / "out/results.json").read_text())["runs"]
    assert again["seconds"] == 1.0 and again["settings"] != run["settings"]


def test_a_failed_run_stops_and_is_not_recorded(line, tmp_path):
    """A run that the training script refuses ends the benchmark with its command line, and writes no result."""
    with pytest.raises(SystemExit, match="this run failed, see above: train_scoft_lora.py .*--rank 2.*absent"):
        pocket_cultures.main([*line, "--caption_column", "absent"])
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_a_judge_is_named(line):
    """Without a judge there is nothing to compare, and the flag that is missing is named."""
    with pytest.raises(SystemExit, match="has no judge of its own: give --flags --validation_judge"):
        pocket_cultures.main(line[:-2])


def test_a_default_that_is_a_distances_own_is_a_setting(monkeypatch):
    """Runs by an earlier default margin are not taken for today's; a margin that was asked for is the same."""
    line = ["--dataset", "pocket", "--culture", "veridia"]
    default, asked = (pocket_cultures.settings_key(words) for words in (line, [*line, "--margin", "0.2"]))
    assert asked != default
    monkeypatch.setattr(PerceptualDistance, "default_margin", 0.2)
    assert pocket_cultures.settings_key(line) == asked

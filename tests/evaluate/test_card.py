"""Numbers on the page of a LoRA."""

import json
import shutil

import huggingface_hub
import pytest
from PIL import Image

import evaluate_scoft
import train_scoft_lora
from evaluation import run, training, with_results
from scoft.errors import DataError
from scoft.evaluate.results import read_results
from scoft.evaluate.tables import number_text


def test_the_loras_page_gets_the_numbers(copy, lora, tmp_path, tiny_pipeline, photographs):
    """report --card puts a table, a grid and a model-index that huggingface_hub reads back onto the page."""
    shutil.copytree(lora, tmp_path / "lora")
    evaluate_scoft.main(["report", str(copy), "--card", str(tmp_path / "lora"), "--method", "m"])
    card = huggingface_hub.ModelCard.load(tmp_path / "lora/README.md")
    estimate = read_results(copy).estimates["kid", "prompts", "m"]
    (kid,) = [result for result in card.data.eval_results if result.metric_type == "kid"]
    assert kid.metric_value == pytest.approx(estimate.value, abs=1e-3) and kid.task_type == "text-to-image"
    shown = number_text(estimate, "kid").replace("[", "\\[").replace("]", "\\]")
    assert shown in card.text and "images/evaluation.png" in card.text and "No numbers were taken" not in card.text
    assert Image.open(tmp_path / "lora/images/evaluation.png").height > 100
    assert "nearest-" not in card.text and not list((tmp_path / "lora").rglob("nearest-*"))
    longer = ["--max_train_steps", "3", "--resume_from_checkpoint", "latest"]
    train_scoft_lora.main([*training(tiny_pipeline, tmp_path / "lora", photographs), *longer])
    assert "No numbers were taken" in (tmp_path / "lora/README.md").read_text()  # they were of another LoRA
    with pytest.raises(
        DataError, match="--method mpc was not drawn by the LoRA in .* alone; the LoRAs scored are m. If it was"
    ):
        evaluate_scoft.main(["report", str(copy), "--card", str(tmp_path / "lora"), "--method", "mpc"])


def test_pictures_drawn_with_a_corrector_too_are_not_the_loras(copy, lora):
    results = copy / "results.json"
    results.write_text(json.dumps(json.loads(results.read_text()) | {"correctors": {"m": "of-someone"}}))
    with pytest.raises(DataError, match="--method m was not drawn by the LoRA in .* alone; the LoRAs scored are none"):
        evaluate_scoft.main(["report", str(copy), "--card", str(lora), "--method", "m"])


def test_a_card_that_is_none_leaves_no_trace(tmp_path):
    """A --card that is no LoRA folder, as a slip of the pen makes it, is found before anything is written."""
    folder = with_results(tmp_path / "x", "korea", {"base": 40})
    with pytest.raises(DataError, match="--card .*typo is no LoRA folder of train_scoft_lora.py"):
        run("report", folder, ["--card", str(tmp_path / "typo"), "--method", "m"])
    assert not (tmp_path / "typo").exists() and not (folder / "report.md").exists()

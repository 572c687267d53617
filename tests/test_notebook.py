"""notebooks/scoft.ipynb runs from its first cell to its last on the pocket world, and is committed without outputs."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest


ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "notebooks/scoft.ipynb"
QUICK = {
    "TRAIN_FLAGS": "--max_train_steps 2 --max_train_samples 8 --num_validation_images 1 "
    "--validation_inference_steps 2 --report_to none",
    "PREPARE_FLAGS": "--num_captions 1 --num_negatives 1 --num_inference_steps 2",
}


@pytest.fixture
def book():
    return nbformat.read(BOOK, as_version=4)


def test_it_holds_no_outputs(book):
    """What a run printed and drew stays out of the repository, and so do numbers of runs."""
    nbformat.validate(book)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)


def test_it_runs_where_the_files_are(book, tmp_path, monkeypatch):
    """Both halves, without a network, leave their LoRA, and the last cell draws; nothing is cloned or installed."""
    for name, value in {**QUICK, "SCOFT": str(ROOT), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}.items():
        monkeypatch.setenv(name, value)
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    for folder in ("scoft-veridia", "my_lora"):
        assert (tmp_path / folder / "pytorch_lora_weights.safetensors").is_file()
    drawn = [
        cell for cell in book.cells if any("image/png" in each.get("data", {}) for each in cell.get("outputs", ()))
    ]
    assert len(drawn) == 3 and drawn[-1] is book.cells[-2]


def test_it_says_where_it_can_be_had_from(book, tmp_path, monkeypatch):
    """Where the files are not, as on Colab, its address is asked for before anything is done."""
    monkeypatch.delenv("SCOFT", raising=False)
    monkeypatch.chdir(tmp_path)
    setup = next(cell.source for cell in book.cells if cell.cell_type == "code")
    with pytest.raises(SystemExit, match="REPOSITORY"):
        exec(setup, {})
    assert os.listdir(tmp_path) == []

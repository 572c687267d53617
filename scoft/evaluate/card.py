"""A method's numbers on the page of the LoRA that drew its pictures."""

import logging
from collections.abc import Mapping
from pathlib import Path

from scoft import lora_folder
from scoft.errors import DataError
from scoft.evaluate.figures import method_grid
from scoft.evaluate.results import Results
from scoft.evaluate.tables import headline, number_text
from scoft.images import write_png
from scoft.lora_folder import EVALUATION_GRID_FILE, LORA_FILE, RECORD_FILE, lora_sha256, write_evaluation
from scoft.lora_page import write_model_card
from scoft.pictures import BASE, is_checkpoint


logger = logging.getLogger(__name__)


def check_card(folder: Path):
    """Raise DataError unless --card names a LoRA folder."""
    if lacking := [name for name in (LORA_FILE, RECORD_FILE) if not (folder / name).is_file()]:
        raise DataError(f"--card {folder} is no LoRA folder of train_scoft_lora.py: no {' and no '.join(lacking)}.")


def fill_card(folder: Path, method: str, results: Mapping[Path, Results]):
    """Put the method's numbers, beside the base model's, onto the page of its LoRA folder.

    results: scored folders, of which the one counts whose pictures this very LoRA drew; DataError if there is none.
    """
    sha256 = lora_sha256(folder)
    alone = {scored: each.loras_alone for scored, each in results.items()}
    found = ((scored, each) for scored, each in results.items() if alone[scored].get(method) == sha256)
    scored, its_own = next(found, (None, None))
    if its_own is None:
        loras = next(iter(alone.values()))
        methods = ", ".join(name for name in loras if not is_checkpoint(name))
        raise DataError(
            f"--method {method} was not drawn by the LoRA in {folder} alone; the LoRAs scored are "
            f"{methods or 'none'}. If it was trained anew, generate and score again."
        )
    record = lora_folder.Evaluation(
        method=method,
        question=its_own.question,
        confidence=its_own.confidence,
        encoders=its_own.encoders,
        rows=[
            lora_folder.Score(
                key.metric,
                headline(key.metric, key.set),
                key.method,
                number_text(estimate, key.metric),
                estimate.value,
            )
            for key, estimate in its_own.estimates.items()
            if key.method in (BASE, method)
        ],
        lora_sha256=sha256,
    )
    write_evaluation(folder, record)
    if grid := method_grid(scored, only=(BASE, method)):
        write_png(folder / EVALUATION_GRID_FILE, grid)
    write_model_card(folder)
    logger.info("The page %s has the numbers; push it with the command that trained it", folder / "README.md")

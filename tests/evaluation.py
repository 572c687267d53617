"""What the tests of evaluation share: the stages by their door, and folders that they have gone through."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

import evaluate_scoft


ROOT = Path(evaluate_scoft.__file__).parent
CLIP = ROOT / "pocket/models/clip"
METRICS = ["kid", "clip_score", "clip_cosine", "clip_i", "div", "precision", "recall", "density", "coverage", "vendi",
           "nearest", "judge"]  # fmt: skip


def training(pipeline: Path, folder: Path, photographs: Path) -> list[str]:
    """Flags of a run of two updates, with a checkpoint of each."""
    return (
        f"--pretrained_model_name_or_path {pipeline} --dataset {photographs} --culture veridia --method finetune "
        f"--output_dir {folder} --resolution 16 --rank 4 --lora_layers to_q,to_v --learning_rate 0.2 "
        "--train_batch_size 2 --max_train_steps 2 --checkpointing_steps 1 --num_validation_images 0 --snr_gamma 5 "
        "--report_to none"
    ).split()


def run(stage: str, folder: Path, flags: list[str]):
    evaluate_scoft.main([stage, str(folder), *flags])


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines() if line]


def pictures_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in (folder / "images").rglob("*.png")}


def noise(number: int, side: int = 48) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (number, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def with_results(folder: Path, named: str, values: dict[str, float], **changes) -> Path:
    """A folder scored with KIDs by method, over four seeds that agree to within a hundredth."""
    folder.mkdir()
    scores = []
    for method, value in values.items():
        replicates = [[seed, value * (1 + shift)] for seed, shift in enumerate((0.003, -0.003, 0.001, -0.001))]
        row = {"metric": "kid", "set": "prompts", "method": method, "value": value, "n": 4}
        scores.append(row | {"low": value / 1.1, "high": value / 0.9, "replicates": {"seeds": replicates}})
    record = {"culture": named, "question": "these prompts", "confidence": 0.95, "encoders": {}, "counts": {}}
    record |= {"features": "clip", "diversity_features": "clip", "neighbours": 5, "settings": {}, "loras": {}}
    record |= {"scores": scores, "differences": []} | changes
    (folder / "results.json").write_text(json.dumps(record))
    row = {"key": "k", "culture": named, "method": "base", "set": "general", "index": 0, "number": 0, "prompt": "x"}
    row |= {"base": "b", "base_key": "b", "variant": None, "lora": None, "lora_sha256": None, "photograph": None}
    row |= {"guidance": 1, "steps": 1, "resolution": 8, "precision": "no", "blank": False}
    (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    return folder

"""Where LoRAs are, and what their records say of how they are drawn."""

import json
import shutil

import pytest

import evaluate_scoft
from evaluation import run
from scoft.base_model import own_resolution
from scoft.errors import DataError
from scoft.evaluate.loras import DEFAULT_BASE, Lora, base_of, find_loras, lora_places, resolution_of
from scoft.lora_folder import LORA_FILE


def test_a_lora_of_another_base_model_is_refused(words, lora, tmp_path, tiny_pipeline):
    """Its record says what it was trained on; without a record it is taken as it is."""
    shutil.copytree(lora, tmp_path / "lora")
    record = json.loads((tmp_path / "lora/training_args.json").read_text())
    record["resolved"]["base_model"] = "org/other"
    (tmp_path / "lora/training_args.json").write_text(json.dumps(record))
    flags = [word.replace(str(lora), str(tmp_path / "lora")) for word in words["generate"]]
    with pytest.raises(DataError, match="was trained on org/other, not on"):
        run("generate", tmp_path / "out", flags)
    shutil.copy(lora / LORA_FILE, tmp_path)
    loras = find_loras({"m": str(lora), "other": str(tmp_path)}, checkpoints=False, cache_dir=None)
    assert loras["m"].record is not None and loras["other"].record is None
    assert base_of(loras, asked=None) == str(tiny_pipeline)
    assert base_of({"other": loras["other"]}, asked=None) == base_of({}, asked=None) == DEFAULT_BASE
    data = ["generate", "out", "--dataset", "ccub", "--culture", "veridia"]
    assert evaluate_scoft.parse_args(data).pretrained_model_name_or_path is None
    assert "pocket" in evaluate_scoft.parse_args([*data, "--dataset", "pocket"]).pretrained_model_name_or_path


def test_pictures_are_of_the_resolution_of_training(lora, tmp_path, tiny_pipeline):
    """By default that of the LoRAs' records, or the base model's own without a LoRA; --resolution overrules both."""

    def of(loras: dict[str, Lora], *more: str) -> int:
        args = evaluate_scoft.parse_args(["generate", "out", "--dataset", "ccub", "--culture", "c", *more])
        return resolution_of(loras, asked=args.resolution, base=str(tiny_pipeline), commit=None, cache_dir=None)

    loras = find_loras({"m": str(lora), "early": str(lora / "checkpoint-1")}, checkpoints=False, cache_dir=None)
    assert of(loras) == 16 and of(loras, "--resolution", "24") == 24
    unet, vae = (json.loads((tiny_pipeline / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert of({}) == unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    with pytest.raises(DataError, match=f"^pretrained_model_name_or_path {lora} cannot be loaded"):
        own_resolution(str(lora), commit=None, cache_dir=None)
    record = json.loads((lora / "training_args.json").read_text())
    record["arguments"]["resolution"] = 32
    (tmp_path / "training_args.json").write_text(json.dumps(record))
    shutil.copy(lora / LORA_FILE, tmp_path)
    named = {"m": str(lora), "mpc": str(tmp_path)}
    message = f"different resolutions: {lora} at 16, {tmp_path} at 32. Choose one with --resolution"
    with pytest.raises(DataError, match=message):
        of(find_loras(named, checkpoints=False, cache_dir=None))
    record["arguments"]["resolution"] = "large"
    (tmp_path / "training_args.json").write_text(json.dumps(record))
    with pytest.raises(
        DataError, match="training_args.json is not as it was written: arguments: resolution: .*integer"
    ):
        find_loras(named, checkpoints=False, cache_dir=None)


def test_checkpoints_where_there_are_none_are_named(words, lora, tmp_path):
    (tmp_path / "checkpoint-last").mkdir()
    with pytest.raises(DataError, match="has no folder checkpoint-<updates>"):
        lora_places({"m": str(tmp_path)}, checkpoints=True)
    assert list(lora_places({"m": str(lora)}, checkpoints=True)) == ["m", "m@1", "m@2"]


def test_places_without_a_lora_and_files_without_prompts_are_named(words, tmp_path):
    flags = [word for word in words["generate"] if not word.startswith("m=") and word != "--checkpoints"]
    flags.insert(flags.index("--lora") + 1, f"m={tmp_path}")
    with pytest.raises(DataError, match=rf"--lora {tmp_path}: pytorch_lora_weights.safetensors cannot be had"):
        run("generate", tmp_path / "out", flags)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="empty.txt: got 0 prompts"):
        run("generate", tmp_path / "out", [*words["generate"], "--prompts", str(tmp_path / "empty.txt")])

"""LoRAs in files: read, and loaded into a pipeline whole or not at all."""

from pathlib import Path

import torch

from scoft.errors import DataError
from scoft.lora_folder import KOHYA_FILE


def read_lora(file: Path) -> dict[str, torch.Tensor]:
    """The weights of a LoRA file by the names that peft gives them in the UNet, whichever form they have in the file.

    Raises DataError.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError

    place = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    try:
        weights, _ = StableDiffusionPipeline.lora_state_dict(str(file.parent), **place)
        if not any("lora" in name for name in weights):
            raise ValueError("none of its tensors is one of a LoRA")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise DataError(f"{file} is no LoRA that can be read: {error}; copy or train it again") from error
    return {name.removeprefix("unet."): weight for name, weight in convert_unet_state_dict_to_peft(weights).items()}


def load_into_pipeline(pipeline, file: Path):
    """Load a LoRA file by diffusers' own call, as its users do, and see that it came in whole. Raises DataError."""
    place = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    saved = read_lora(file)
    try:
        pipeline.load_lora_weights(str(file.parent), adapter_name="scoft", **place)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{file} does not fit the model, which is to be the one it was trained on: {error}") from error
    check_whole(pipeline.unet, file, adapter="scoft", saved=saved)


def check_whole(unet, file: Path, *, adapter: str, saved: dict[str, torch.Tensor] | None = None):
    """Raise DataError unless the UNet's adapter holds the file's tensors, all of them and no others.

    `saved`: what `read_lora` has read of the file, if it has.
    diffusers drops keys that it cannot place, and says so in a warning among others.
    """
    from peft.utils import get_peft_model_state_dict

    saved = read_lora(file) if saved is None else saved
    own = get_peft_model_state_dict(unet, adapter_name=adapter) if adapter in getattr(unet, "peft_config", {}) else {}
    loaded = {name for name in saved.keys() & own if torch.equal(own[name], saved[name].to(own[name]))}
    if astray := sorted((saved.keys() | own) - loaded):
        raise DataError(
            f"{file} holds {len(saved)} tensors, and {len(loaded)} of them are in the model, which has {len(own)}: "
            f"{astray[0]} is not in both. Files with keys of two forms, as earlier versions wrote, load in part: take "
            f"{KOHYA_FILE.format('*')} beside it, which is whole, or train the LoRA again"
        )

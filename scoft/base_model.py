"""Stable Diffusion's pipelines, whole or not at all."""

import contextlib
import importlib
import pickle
from collections.abc import Iterator

import torch
from safetensors import SafetensorError
from torch import nn

from scoft.errors import DataError
from scoft_losses import load_whole


@contextlib.contextmanager
def loading(
    name_or_path: str,
    *,
    flag: str = "--pretrained_model_name_or_path",
    kind: str = "a Stable Diffusion pipeline in safetensors",
) -> Iterator[None]:
    """Raise DataError, which names flag and model, for whatever keeps a library from loading it inside as `kind`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise DataError(f"{flag} {name_or_path} cannot be loaded as {kind}: {error}") from error


def precision(accelerator) -> torch.dtype:
    """The dtype of frozen weights under accelerate's mixed precision."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def load_pipeline(pipeline_class, name_or_path: str, *, revision=None, variant=None, cache_dir=None, **parts):
    """`pipeline_class.from_pretrained(name_or_path, **parts)` of diffusers, each of its models by `load_whole`.

    parts: those that are not loaded but given, or None to leave one out.  Each model has the dtype that its library
    chooses, so `.to(device, dtype)` follows.  Raises OSError, as diffusers does.
    """
    place = {"revision": revision, "cache_dir": cache_dir}
    index = pipeline_class.load_config(name_or_path, **place)
    for part, entry in index.items():
        if part in parts or not isinstance(entry, (list, tuple)) or entry[0] is None:
            continue
        library, class_name = entry
        package = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
        part_class = getattr(importlib.import_module(package), class_name)
        if issubclass(part_class, nn.Module):
            parts[part] = load_whole(part_class, name_or_path, subfolder=part, variant=variant, **place)
    return pipeline_class.from_pretrained(name_or_path, variant=variant, **place, **parts)

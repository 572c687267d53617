"""Frozen models of others: loaded whole or not at all, and recognised by what they hold."""

import contextlib
import hashlib
import pickle
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from scoft.errors import DataError
from scoft.files import content_key, file_sha256


def load_whole(model_class, name_or_path: str | Path, *, unused: tuple[str, ...] = (), **options) -> nn.Module:
    """`model_class.from_pretrained(name_or_path, **options)` of diffusers or transformers, from safetensors.

    unused: what the names of weights begin with that the caller never asks, so that they may be missing.

    Raises OSError where the file lacks a weight of the model or has it in another shape.  Both libraries merely warn
    of the first, and leave random numbers in its place, as happens when a file was written for another version of
    them.  What else a file holds is ignored.
    """
    model, info = model_class.from_pretrained(
        name_or_path, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    lacking = [f"{key} is missing" for key in sorted(info["missing_keys"]) if not key.startswith(unused)]
    lacking += [f"{key} has shape {tuple(has)}, not {tuple(needs)}" for key, has, needs in info["mismatched_keys"]]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        library = type(model).__module__.partition(".")[0]
        its_version = "this" if library == __name__.partition(".")[0] else f"{library} {version(library)}"
        raise OSError(
            f"{name_or_path} has no whole {type(model).__name__}: {', '.join(lacking[:3])}{more}. It is damaged, "
            f"or written for another version than {its_version}: pip install -U -r requirements.txt"
        )
    return model


@contextlib.contextmanager
def loading(
    name_or_path: str,
    *,
    flag: str = "pretrained_model_name_or_path",
    kind: str = "a Stable Diffusion pipeline in safetensors",
) -> Iterator[None]:
    """Raise DataError, which names flag and model, for whatever keeps a library from loading it inside as `kind`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise DataError(f"{name_or_path} cannot be loaded as {kind}: {error}", argument=flag) from error


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def precision(accelerator) -> torch.dtype:
    """The dtype of frozen weights under accelerate's mixed precision."""
    return DTYPES.get(accelerator.mixed_precision, torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Keys
# ---------------------------------------------------------------------------------------------------------------------


def model_key(name_or_path: str | None) -> str:
    """A model that is not loaded, in keys: the content of its folder, wherever that lies, or its name on the Hub."""
    folder = Path(name_or_path or "")
    if not name_or_path or not folder.is_dir():
        return str(name_or_path)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json", ".pt", ".tar"))
    return content_key([path.relative_to(folder).as_posix() for path in files], [file_sha256(path) for path in files])


def weights_key(model: nn.Module, *, without: str | None = None) -> str:
    """A loaded model, in keys of caches: sha256 of its weights' bytes in their order, whatever they are called.

    without: what is in the names of those that do not count.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if without is not None and without in name:
            continue
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def encoder_key(model: nn.Module, *, kind: str) -> str:
    """An encoder, in records that others compare: sha256 of its `kind`, and of its weights by name and bytes."""
    digest = hashlib.sha256(kind.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""Text embeddings of all captions of a run, computed once: on the device as far as they may, else in files.

Either way they have the UNet's own dtype, in which it takes them, so the limit changes no result.
"""

import dataclasses
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from scoft.launch import progress

import torch

from scoft.base_model import StableDiffusion
from scoft.files import cached_file, cached_tensors, content_key


logger = logging.getLogger(__name__)

PIECE = 2048  # captions that are encoded, and lie in a file, together: 240 MB in 16 bits

# Numbers of captions (B,), on the CPU -> their embeddings (B, L, D) on the device, shaped as the base model has them.
Text = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class TextOnDevice:
    """Embeddings that all lie on the device."""

    table: torch.Tensor  # (N, L, D)

    def __call__(self, captions: torch.Tensor) -> torch.Tensor:
        return self.table[captions.to(self.table.device, non_blocking=True)]


@dataclasses.dataclass(frozen=True)
class TextInFiles:
    """Embeddings of which only those asked for are read."""

    files: list  # safetensors, open, each with the next PIECE of them
    device: torch.device
    folder: tempfile.TemporaryDirectory | None  # in which they lie, and which goes when this does

    def __call__(self, captions: torch.Tensor) -> torch.Tensor:
        places = [divmod(caption, PIECE) for caption in captions.tolist()]
        text = torch.stack([self.files[file].get_slice("text")[row] for file, row in places])
        return (text.pin_memory() if self.device.type == "cuda" else text).to(self.device, non_blocking=True)


def embed_captions(
    captions: list[str], *, model: StableDiffusion, device: torch.device, precompute_dir: Path | None, limit: float
) -> Text:
    """Encode all captions, a piece at a time; each piece lies in a file of `precompute_dir` if there is one.

    limit: gigabytes that may lie on the device.  Above it all are in files; without `precompute_dir` these are of this
    process alone, and temporary.  Captions longer than the model reads are cut, counted and warned of.
    """
    if too_long := model.too_long(captions):
        logger.warning(
            f"{len(too_long)} of {len(captions)} captions are longer than {model.max_tokens} tokens "
            f"and lose their end; the first: {too_long[0]}"
        )
    size = len(captions) * math.prod(model.caption_shape) * model.dtype.itemsize / 1e9
    fits, temporary, folder = size <= limit, None, precompute_dir
    if not fits and folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="scoft-text-", ignore_cleanup_errors=True)
        folder = Path(temporary.name)
    if not fits:
        logger.info(
            "The embeddings of %d captions are %.3g GB, more than --text_cache_limit %g: they lie in files in %s, and "
            "are read as they are needed.%s",
            len(captions),
            size,
            limit,
            folder,
            " --precompute_dir keeps them for all processes and later runs." if temporary else "",
        )
    encoder = folder and model.captions_key()

    def place(start: int) -> dict:
        piece = captions[start : start + PIECE]
        return {
            "path": folder and folder / f"text-{start // PIECE:04d}.safetensors",
            "key": folder and content_key("text", piece, str(model.dtype), encoder),
            "compute": lambda: {"text": model.encode_captions(piece, device=device).to(model.dtype)},
        }

    starts = progress(range(0, len(captions), PIECE), "Captions", leave=False)
    if not fits:
        return TextInFiles([cached_file(**place(start)) for start in starts], device, temporary)
    table = torch.empty(len(captions), *model.caption_shape, dtype=model.dtype, device=device)
    for start in starts:
        table[start : start + PIECE] = cached_tensors(**place(start))["text"]
    return TextOnDevice(table)

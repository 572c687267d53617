"""S of equations 3 and 4: how unlike two images are to a frozen encoder, with the encoders that the paper compares.

A distance is a file and a row of DISTANCES.  Its class is imported when it is loaded: command lines, which show these
rows, do not wait for torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from scoft.errors import DataError


if TYPE_CHECKING:
    import torch

    from scoft.distances.base import PerceptualDistance


class Row(NamedTuple):
    """Where the class of a distance is, and what else can be asked of it: keyword arguments of its own.

    options: name -> what argparse has to know of the flag that commands make of it.
    """

    place: str  # MODULE:CLASS
    options: Mapping[str, Mapping[str, object]] = {}

    def distance(self) -> type[PerceptualDistance]:
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)


DREAMSIM_TYPES = ("ensemble", "dino_vitb16", "clip_vitb32", "open_clip_vitb32", "dinov2_vitb14", "synclr_vitb16")
DISTANCES = {
    "clip_conv": Row("scoft.distances.clip_conv:ClipConv"),
    "dreamsim": Row(
        "scoft.distances.dreamsim:DreamSim",
        {"dreamsim_type": {"default": "ensemble", "choices": DREAMSIM_TYPES, "help": "model of the dreamsim package"}},
    ),
    "dinov2": Row("scoft.distances.dinov2:DinoV2"),
    "blip2": Row("scoft.distances.blip2:Blip2"),
}


def distance_options() -> dict[str, Mapping[str, object]]:
    """The options of all distances: name -> what argparse has to know of it, for `scoft.launch.add_options`."""
    return {name: option for row in DISTANCES.values() for name, option in row.options.items()}


def load_distance(
    name: str,
    *,
    model_name_or_path: str | None,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    cache_dir: str | None = None,
    flags: tuple[str, str] = ("name", "model_name_or_path"),
    **options: object,
) -> PerceptualDistance:
    """The distance `name` of DISTANCES, frozen, on `device`.

    model_name_or_path: Hub id or folder of its encoder; None for the distance's own.  dtype: what the encoder computes
    in, float64, float32 or bfloat16; None for float32, in which dreamsim always stays.  cache_dir: where downloads go.
    flags: what errors call `name` and `model_name_or_path`.  options: of `distance_options`; those of other distances
    are left alone.
    Raises DataError without the package or the whole model, and for a bad choice; ValueError for another dtype.
    """
    import torch
    from safetensors import SafetensorError

    if name not in DISTANCES:
        raise DataError(f"{name!r} is none of {', '.join(DISTANCES)}.", argument=flags[0])
    if dtype not in (None, torch.float64, torch.float32, torch.bfloat16):
        raise ValueError(
            f"a perceptual distance in {dtype} is not supported, because its gradient in the pixels would underflow; "
            "use torch.float32 or torch.bfloat16."
        )
    if unknown := options.keys() - distance_options():
        raise TypeError(f"no perceptual distance has an option {min(unknown)}")
    row = DISTANCES[name]
    own = {option: value for option, value in options.items() if option in row.options}
    for option, value in own.items():
        if value not in (choices := row.options[option].get("choices", [value])):
            raise DataError(f"{value!r} is none of {', '.join(map(str, choices))}.", argument=option)
    distance = row.distance()
    try:
        return distance(model_name_or_path, device=device, dtype=dtype or torch.float32, cache_dir=cache_dir, **own)
    except ImportError as error:
        raise DataError(f"{name}: {error}", argument=flags[0]) from error
    # timm reports a model with fewer than five maps as an IndexError, and one of another library as a KeyError; peft a
    # missing weight as a UserWarning.
    except (OSError, ValueError, RuntimeError, LookupError, UserWarning, SafetensorError) as error:
        raise DataError(
            f"{model_name_or_path or distance.default_model!r} cannot be loaded as {distance.kind} "
            f"({type(error).__name__}: {error}). Give a Hub id or a folder that holds one, downloaded beforehand if "
            f"this machine is offline, or leave it out for {distance.default_model!r}.",
            argument=flags[1],
        ) from error

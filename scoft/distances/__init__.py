"""S of equations 3 and 4: how unlike two images are to a frozen encoder, with the encoders that the paper compares.

A distance is a file with its options and a row of DISTANCES.
"""

from collections.abc import Mapping

import torch
from safetensors import SafetensorError

from scoft.distances.base import PerceptualDistance
from scoft.distances.blip2 import Blip2
from scoft.distances.clip_conv import ClipConv
from scoft.distances.dinov2 import DinoV2
from scoft.distances.dreamsim import DreamSim
from scoft.errors import DataError


DISTANCES = {"clip_conv": ClipConv, "dreamsim": DreamSim, "dinov2": DinoV2, "blip2": Blip2}


def distance_options() -> dict[str, Mapping[str, object]]:
    """The options of all distances: name -> what argparse has to know of it, for `scoft.launch.add_options`."""
    return {name: option for distance in DISTANCES.values() for name, option in distance.options.items()}


def load_distance(
    name: str,
    *,
    model_name_or_path: str | None,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    cache_dir: str | None = None,
    flags: tuple[str, str] = ("name", "model_name_or_path"),
    **options: object,
) -> PerceptualDistance:
    """The distance `name` of DISTANCES, frozen, on `device`.

    model_name_or_path: Hub id or folder of its encoder; None for the distance's own.  dtype: what the encoder computes
    in, float64, float32 or bfloat16; dreamsim stays in float32.  cache_dir: where downloads go.  flags: what errors
    call `name` and `model_name_or_path`.  options: of `distance_options`; those of other distances are left alone.
    Raises DataError without the package or the whole model, and for a bad choice; ValueError for another dtype.
    """
    if name not in DISTANCES:
        raise DataError(f"{name!r} is none of {', '.join(DISTANCES)}.", argument=flags[0])
    if dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise ValueError(
            f"a perceptual distance in {dtype} is not supported, because its gradient in the pixels would underflow; "
            "use torch.float32 or torch.bfloat16."
        )
    if unknown := options.keys() - distance_options():
        raise TypeError(f"no perceptual distance has an option {min(unknown)}")
    distance = DISTANCES[name]
    own = {option: value for option, value in options.items() if option in distance.options}
    for option, value in own.items():
        if value not in (choices := distance.options[option].get("choices", [value])):
            raise DataError(f"{value!r} is none of {', '.join(map(str, choices))}.", argument=option)
    try:
        return distance(model_name_or_path, device=device, dtype=dtype, cache_dir=cache_dir, **own)
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

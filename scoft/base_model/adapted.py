"""A network with a LoRA on it, whatever the family: put on, cast, left out, merged, asked, saved and loaded."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from scoft.base_model.loras import read_lora
from scoft.errors import DataError
from scoft.lora_folder import LORA_FILE, write_safetensors


class Adapted:
    """What families of base models share: the LoRA on the part of a pipeline that denoises, and its predictions.

    A family gives `ask`, and sets `dtype`, of the network's frozen weights, `trained`, what accelerate is to wrap for
    its processes and `predict` then calls, and `compiled`.
    """

    part: ClassVar[str]  # of the pipeline, that is trained; so it is called in LoRA files too
    dtype: torch.dtype
    trained: nn.Module
    compiled: bool

    @property
    def kohya_family(self) -> dict[str, str]:
        """What a kohya file says of its base model: A1111 lists a LoRA beside checkpoints of that family alone."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        return getattr(self, self.part)

    def ask(self, network: nn.Module, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The prediction of `network`, which is `self.network` or what wraps it, at latents z for captions c."""
        raise NotImplementedError

    # Predictions

    def predict(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """eps_theta(z, c, t) (B, 4, h, w), or the velocity, with gradient in the LoRA."""
        self.cast_lora()
        return self.ask(self.trained, z, t, c)

    def predict_frozen(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The same without gradient."""
        self.cast_lora()
        return self.predict_as_it_is(z, t, c)

    def predict_base(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """The prediction that the base model makes, without gradient."""
        with self.without_lora():
            return self.predict_as_it_is(z, t, c)

    @torch.no_grad()
    def predict_as_it_is(self, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Without gradient, by the network as it stands and without the wrapper that would have processes wait."""
        prediction = self.ask(self.network, z, t, c)
        return prediction.clone() if self.compiled else prediction  # a CUDA graph's next replay writes over the last

    # The LoRA

    def add_lora(self, *, rank: int, alpha: float, target_modules: list[str]) -> list[nn.Parameter]:
        """Put a LoRA adapter on the network and return its parameters, a list, in float32 whatever its dtype.

        diffusers' script returns a `filter` that the optimizer exhausts, so that nothing is clipped later, and leaves
        a bf16 LoRA in bf16, where most of AdamW's steps round to nothing.
        """
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=target_modules)
        try:
            self.network.add_adapter(config)
        except ValueError as error:
            raise DataError(f"{','.join(target_modules)}: {error}", argument="lora_layers") from error
        cast_training_params(self.network, dtype=torch.float32)
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    @functools.cached_property
    def lora_layers(self) -> list[nn.Module]:
        """The layers whose weights are the LoRA's matrices."""
        layers = [layer for layer in self.network.modules() if "weight" in layer._parameters]
        return [layer for layer in layers if layer.weight.requires_grad]

    def cast_lora(self):
        """Have the LoRA computed in the network's dtype; its parameters, their gradients and moments stay in float32.

        All matrices are cast at once, where peft would cast what goes in and comes out of each.  They stay in their
        layers' places until the next call, so that backward passes which compute activations anew find them too.
        Compiled, the cast is made in float32 too: a gradient that a CUDA graph gave to a parameter itself would lie in
        the graph's memory, over which the next micro-batch writes.
        """
        if self.dtype is torch.float32 and not self.compiled:
            return
        parameters = [layer._parameters["weight"] for layer in self.lora_layers]
        cast = torch.cat([each.flatten() for each in parameters]).to(self.dtype)
        sizes = [each.numel() for each in parameters]
        for layer, each, matrix in zip(self.lora_layers, parameters, cast.split(sizes)):
            compute_with(layer, matrix.view_as(each))

    @functools.cached_property
    def adapted_layers(self) -> list[nn.Module]:
        """The layers that the LoRA changes, as peft wraps them."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [layer for layer in self.network.modules() if isinstance(layer, BaseTunerLayer)]

    @contextlib.contextmanager
    def without_lora(self) -> Iterator[None]:
        """The base model, for as long as this lasts.

        Each layer takes the way that peft has for merged weights.  `disable_adapters` would do, and walk through all
        parameters of the network to set what needs a gradient: 6 ms of Python at 84 layers.
        """
        for layer in self.adapted_layers:
            layer.merged_adapters.append("default")
        try:
            yield
        finally:
            for layer in self.adapted_layers:
                layer.merged_adapters.remove("default")

    @contextlib.contextmanager
    def merged_lora(self) -> Iterator[Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]]:
        """Yields `predict_frozen` by copies of the weights, W + BA in the network's dtype: no more operations than the
        base model's.

        Rounded to 16 bits W + BA loses what is small beside W, as at first BA is, so this is for what hardly depends
        on it: pictures, but not a difference of predictions as L_M is.  Merged in place, W would never be the same.
        """
        for layer in self.lora_layers:
            compute_with(layer, None)  # peft is to multiply the matrices in float32
        for layer in self.adapted_layers:
            base = layer.get_base_layer()
            with torch.no_grad():
                compute_with(base, (base.weight + layer.get_delta_weight("default")).to(self.dtype))
        try:
            with self.without_lora():
                yield self.predict_as_it_is
        finally:
            for layer in self.adapted_layers:
                compute_with(layer.get_base_layer(), None)

    def save_lora(self, folder: Path, *, kohya_name: str | None = None):
        """Write the LoRA for diffusers, and under `kohya_name` for ComfyUI and A1111, both in float32.

        The keys are peft's: diffusers' own renames attention alone, and its loader drops one of the two forms in a
        file.  The metadata hold what loading needs and no more: diffusers passes them to LoraConfig unfiltered, so the
        40 fields of today's peft would stop an older one, and a recorded dropout would stay alive at inference. The
        empty patterns are for diffusers before 0.40, which asks for them.
        diffusers' kohya converter writes alpha = rank whatever alpha was, so it is set right here.
        """
        from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
        from diffusers.utils import convert_state_dict_to_kohya
        from peft.utils import get_peft_model_state_dict

        config = self.network.peft_config["default"]
        metadata = {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": sorted(config.target_modules),
            "rank_pattern": {},
            "alpha_pattern": {},
        }
        metadata = json.dumps({f"{self.part}.{name}": value for name, value in metadata.items()}, sort_keys=True)
        lora = {
            f"{self.part}.{name}": weight.detach().cpu().contiguous()
            for name, weight in get_peft_model_state_dict(self.network).items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / LORA_FILE, lora, metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: metadata})
        if kohya_name:
            kohya = {
                name: torch.tensor(float(config.lora_alpha)) if name.endswith(".alpha") else weight
                for name, weight in convert_state_dict_to_kohya(lora).items()
            }
            metadata = {"ss_network_dim": str(config.r), "ss_network_alpha": str(config.lora_alpha)}
            write_safetensors(folder / kohya_name, kohya, metadata=metadata | self.kohya_family)

    def load_lora(self, folder: Path):
        """Put a saved LoRA back into the network's adapter, bit for bit; it must fit key by key."""
        from peft.utils import get_peft_model_state_dict

        saved, own = read_lora(folder / LORA_FILE), get_peft_model_state_dict(self.network)
        shapes, own_shapes = ({name: tuple(w.shape) for name, w in lora.items()} for lora in (saved, own))
        if shapes != own_shapes:
            names = sorted(name for name in shapes.keys() | own_shapes if shapes.get(name) != own_shapes.get(name))
            raise DataError(
                f"{folder} does not fit this run's LoRA at {len(names)} weights, first "
                f"{names[0]}: {shapes.get(names[0])} there, {own_shapes.get(names[0])} here; give the rank, the "
                "LoRA's layers and the base model that it was made with",
                argument="resume_from_checkpoint",
            )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(saved[name])


def compute_with(layer: nn.Module, weight: torch.Tensor | None):
    """Have a layer compute with another weight than its parameter, which stays as it is; None: with its own again.

    The layer finds the other one as its attribute, before the parameter of that name.
    """
    layer.__dict__.pop("weight", None)
    if weight is not None:
        object.__setattr__(layer, "weight", weight)

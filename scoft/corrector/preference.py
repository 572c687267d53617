"""A preference in latent space, beside a frozen UNet: which way a prediction is to move to show a culture right.

Its weights are two small sides: a positive one, fitted on photographs, and a negative one, which is the base model as
it is unless it is fitted, too, on that model's misrepresentations of them.  Under either side the UNet is a denoiser,
and the difference of the two is the direction: the gradient of log p+/p- is (eps_n - eps_p) / sqrt(1 - abar), so
following it needs no backpropagation.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from scoft.errors import DataError
from scoft_losses import at_least_float32, ldm_loss


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
NUM_SAMPLES = 64  # of a UNet's weights, by which it is recognised
ROUNDING = 2**-7  # relative: as much as 16 bits may round a weight, twice
LEVELS = 10  # of noise, each with a linear preference of its own, in Features
PREDICTIONS = ("epsilon", "v_prediction")


class Preference(ModelMixin, ConfigMixin):
    """The weights of a corrector, and all that decides what it does; config.json and a safetensors file.

    culture: its name.  words: what in a prompt says that the culture is meant.  base_model: Hub id or a folder's name.
    base_weights: see `sample_of`.  strength, start, stop, cap, inner_steps: see `scoft.corrector.callback.Knobs`.
    rank, layers: of `Adapters`.  num_tokens, width: of `Tokens`, with the width of text embeddings.  width: of
    `Features`, the channels of the UNet's middle.
    """

    @register_to_config
    def __init__(
        self,
        kind: str = "adapters",
        culture: str = "",
        words: Sequence[str] = (),
        base_model: str = "",
        base_weights: Sequence[float] = (),
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        strength: float = 4.0,
        start: float = 0.0,
        stop: float = 1.0,
        cap: float | None = None,
        inner_steps: int = 1,
        rank: int = 4,
        layers: Mapping[str, Sequence[int]] | None = None,
        num_tokens: int = 4,
        width: int = 1,
    ):
        super().__init__()
        if kind not in KINDS:
            raise DataError(f"is one of {', '.join(KINDS)}, got {kind!r}", argument="kind")
        if kind == "adapters":
            self.rule = Adapters(layers or {}, rank=rank)
        elif kind == "tokens":
            self.rule = Tokens(num_tokens, width=width)
        else:
            self.rule = Features(width, num_train_timesteps=num_train_timesteps)

    def direction(self, unet: nn.Module, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, **options) -> torch.Tensor:
        """What is added, times the strength, to the prediction at z (B, 4, h, w): of that shape, float32 at least.

        t: the timestep, () or (B,).  c (B, 77, D): text embeddings of the prompts.  options: of the UNet's call.
        """
        return self.rule.direction(unet, z, t, c, **options)

    def reward(self, unet, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """r (B,), greater for what is to be preferred.  target (B, 4, h, w): the right prediction at z."""
        return self.rule.reward(unet, z, t, c, target)

    def check_base(self, unet: nn.Module, *, called: str):
        """Raise DataError unless the UNet is the one that this was fitted beside, in whatever precision."""
        found, own = sample_of(unet), self.config.base_weights
        close = len(found) == len(own) and all(
            abs(a - b) <= ROUNDING * max(abs(a), abs(b)) + 1e-6 for a, b in zip(found, own)
        )
        if not close:
            raise DataError(
                f"{called} corrects {self.config.base_model}, and the pipeline's UNet has other weights. Load that "
                "base model; if a LoRA was fused into it, unfuse it and leave it an adapter"
            )


def sample_of(unet: nn.Module) -> list[float]:
    """NUM_SAMPLES of a UNet's own weights, by which it is known in float32 and in 16 bits, and under adapters."""
    matrices = [each for name, each in unet.state_dict().items() if each.ndim > 1 and "lora_" not in name]
    chosen = [matrices[i * len(matrices) // NUM_SAMPLES].flatten() for i in range(NUM_SAMPLES)]
    places = [(i + 1) * len(each) // (NUM_SAMPLES + 1) for i, each in enumerate(chosen)]
    return [float(each[place]) for each, place in zip(chosen, places)]


# ---------------------------------------------------------------------------------------------------------------------
# Differences of two denoisers
# ---------------------------------------------------------------------------------------------------------------------


POSITIVE, NEGATIVE = 0, 1


class Sides(nn.Module):
    """Two denoisers, positive and negative, out of one frozen UNet."""

    def predict(
        self, unet: nn.Module, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, *, sides: Sequence[int], **options
    ) -> torch.Tensor:
        """The predictions of a batch of as many equal parts as `sides`, each by its own: one call of the UNet."""
        raise NotImplementedError

    def both(
        self, unet, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, **options
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """eps_p and eps_n (B, 4, h, w) at the same z (B, 4, h, w)."""
        t = t.expand(len(z))
        twice = (torch.cat([each, each]) for each in (z, t, c))
        prediction = self.predict(unet, *twice, sides=(POSITIVE, NEGATIVE), **options)
        return at_least_float32(prediction).chunk(2)

    def direction(self, unet, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, **options) -> torch.Tensor:
        positive, negative = self.both(unet, z, t, c, **options)
        return positive - negative

    def reward(self, unet, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        positive, negative = self.both(unet, z, t, c)
        return ldm_loss(negative, target) - ldm_loss(positive, target)


class Adapters(Sides):
    """A low-rank matrix for each side on some of the UNet's layers, linear ones or 1 x 1 convolutions.

    They work by forward hooks for as long as a call of `predict` lasts: nothing is registered in the UNet, whose
    weights and active adapters stay as they are.

    layers: name in the UNet -> channels in and out.
    """

    def __init__(self, layers: Mapping[str, Sequence[int]], *, rank: int):
        super().__init__()
        if not layers:
            raise DataError("names no layer of the UNet", argument="layers")
        self.names = list(layers)
        sizes = {parameter_name(name): size for name, size in layers.items()}
        self.down = nn.ParameterDict({name: torch.randn(2, ins, rank) / rank for name, (ins, _) in sizes.items()})
        self.up = nn.ParameterDict({name: torch.zeros(2, rank, outs) for name, (_, outs) in sizes.items()})

    def predict(
        self, unet, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, *, sides: Sequence[int], **options
    ) -> torch.Tensor:
        """Raises DataError where the UNet does without one of the layers."""
        with self.applied(unet, sides) as called:
            prediction = unet(z, t, c, return_dict=False, **options)[0]
        if idle := [name for name in self.names if parameter_name(name) not in called]:
            raise DataError(f"the UNet made no use of {idle[0]}; if its projections are fused, unfuse them")
        return prediction

    @contextlib.contextmanager
    def applied(self, unet: nn.Module, sides: Sequence[int]) -> Iterator[set[str]]:
        """Have the UNet's layers add what the sides add, each to its part of a batch, for as long as this lasts.

        Yields the names of the parameters that came to use.
        """
        hooks, called = [], set()
        try:
            for name in self.names:
                hook = self.hook_of(parameter_name(name), sides, called)
                hooks.append(unet.get_submodule(name).register_forward_hook(hook))
            yield called
        finally:
            for hook in hooks:
                hook.remove()

    def hook_of(self, name: str, sides: Sequence[int], called: set[str]):
        at = list(sides)

        def add(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            called.add(name)
            x = inputs[0]
            down, up = (each[name][at].to(x.device, x.dtype) for each in (self.down, self.up))
            is_map = x.ndim == 4  # (B, channels, h, w) of a convolution; else channels are last
            x = x.movedim(1, -1) if is_map else x
            parts = x.unflatten(0, (len(at), -1))
            added = (parts.flatten(1, -2) @ down @ up).view(*x.shape[:-1], -1)
            return output + (added.movedim(-1, 1) if is_map else added)

        return add


def parameter_name(layer: str) -> str:
    """A layer's name as one of a parameter, in which a dot would mean a part."""
    return layer.replace(".", "-")


def layers_of(unet: nn.Module, endings: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Name -> channels in and out, of the UNet's layers whose names end so. Raises DataError."""
    found, lacking = {}, set(endings)
    for name, layer in unet.named_modules():
        its = [ending for ending in endings if name.endswith(f".{ending}")]
        if its and isinstance(layer, nn.Linear):
            found[name] = (layer.in_features, layer.out_features)
        elif its and isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            found[name] = (layer.in_channels, layer.out_channels)
        else:
            continue
        lacking.difference_update(its)
    if lacking:
        raise DataError(
            f"{','.join(sorted(lacking))}: the UNet has no such linear layers or 1 x 1 convolutions; "
            f"{','.join(ATTENTION)} are those of attention",
            argument="layers",
        )
    return found


class Tokens(Sides):
    """A few soft tokens for each side, which the UNet reads behind the prompt's own."""

    def __init__(self, count: int, *, width: int):
        super().__init__()
        self.tokens = nn.Parameter(0.1 * torch.randn(1, count, width).repeat(2, 1, 1))  # at first no side is favoured

    def predict(
        self, unet, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, *, sides: Sequence[int], **options
    ) -> torch.Tensor:
        tokens = self.tokens[list(sides)].to(c.device, c.dtype).repeat_interleave(len(c) // len(sides), dim=0)
        return unet(z, t, torch.cat([c, tokens], dim=1), return_dict=False, **options)[0]


# ---------------------------------------------------------------------------------------------------------------------
# A control to compare with
# ---------------------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """A linear preference on the frozen UNet's middle, followed by gradient ascent.

    Kept to be compared with: what tells photographs from negatives need not tell what makes a picture right.
    """

    def __init__(self, channels: int, *, num_train_timesteps: int):
        super().__init__()
        self.num_train_timesteps = num_train_timesteps
        self.weight = nn.Parameter(torch.zeros(LEVELS, channels))

    def score(self, unet: nn.Module, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, **options) -> torch.Tensor:
        """(B,), of the pooled middle, by the weights of the noise level."""
        kept = []
        hook = unet.mid_block.register_forward_hook(lambda layer, inputs, output: kept.append(output))
        try:
            unet(z, t, c, return_dict=False, **options)
        finally:
            hook.remove()
        pooled = nn.functional.layer_norm(at_least_float32(kept[0]).mean((2, 3)), self.weight.shape[1:])
        level = t.expand(len(z)).long() * LEVELS // self.num_train_timesteps  # some schedulers have fractions
        return (pooled * self.weight.to(pooled.device)[level.to(self.weight.device)]).sum(1)

    def reward(self, unet, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.score(unet, z, t, c)

    def direction(self, unet, z: torch.Tensor, t: torch.Tensor, c: torch.Tensor, **options) -> torch.Tensor:
        """Against the gradient, scaled to a root mean square of 0.1 in each row, where those of Sides are too."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.score(unet, z, t, c, **options).sum(), z)
        gradient = at_least_float32(gradient)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        return -0.1 * gradient / size.clamp(min=torch.finfo(torch.float32).tiny)


KINDS = ("adapters", "tokens", "features")

"""S of equations 3 and 4: how unlike two images are to a frozen encoder, with the encoders that the paper compares."""

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import huggingface_hub
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn

from scoft.weights import load_whole
from scoft_losses import at_least_float32


DREAMSIM_TYPES = ("ensemble", "dino_vitb16", "clip_vitb32", "open_clip_vitb32", "dinov2_vitb14", "synclr_vitb16")


class PerceptualDistance(nn.Module, ABC):
    """S(x, y): how unlike two images are to a frozen encoder, as 1 - cosine of its features.

    forward(x, y): both (B, 3, H, W) floats in [-1, 1]; returns (B,): 0 for identical images, larger is less alike,
    2 at most.  Differentiable in x, deterministic, always frozen and in eval mode, indifferent to autocast.
    Its halves are `embed` and `compare`, so that the features of constant images can be computed once.

    A subclass loads its encoder and says in `features` what is compared.  All of them are 1 - cosine, so one margin m
    of equation 4 means the same for each: `default_margin` is a twentieth of the distance between orthogonal features,
    and the margin DreamSim itself was trained with.  The paper's value is lost, and this one is not tuned.
    """

    default_margin = 0.05

    def __init__(
        self,
        encoder: nn.Module,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.encoder = encoder
        self.size = size
        self.dtype = dtype
        # [-1, 1] -> [0, 1] -> (pixel - mean) / std, as one scale and one shift for each colour.
        mean, std = torch.tensor([mean, std]).view(2, 3, 1, 1)
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)
        self.to(device).requires_grad_(False).eval()

    @abstractmethod
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What is compared: (B, P, D) of normalised pixels (B, 3, size, size); P places or tokens of D channels."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.compare(self.embed(x), self.embed(y))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, P, D), float32 at least, of images (B, 3, H, W) in [-1, 1] of any size.

        Images are squashed to the encoder's square and not clamped: at a pixel beyond [-1, 1] a clamp would erase the
        gradient that pulls it back.  Differs from the authors' code: it clamps for CLIP and DINO, and resizes for
        DreamSim without antialiasing, then crops.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"a perceptual distance takes images of shape (B, 3, H, W), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(x, size=(self.size, self.size), mode="bicubic", antialias=True)
            pixels = x * self.scale + self.shift
            return F.normalize(at_least_float32(self.features(pixels.to(self.dtype))), dim=-1)

    def compare(self, f_x: torch.Tensor, f_y: torch.Tensor) -> torch.Tensor:
        """1 - cosine, averaged over the P places: (..., P, D) and (..., P, D), broadcast, to (...).

        Written as half the squared distance of unit vectors, it is exactly 0 for identical images; even where a ReLU
        left a place without any feature, of which 1 - cosine would say 1.
        """
        return 0.5 * (f_x - f_y).square().sum(-1).mean(-1)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """Stays in eval mode, whatever the model around it does: dropout would put noise into S."""
        return super().train(False)


class ClipConv(PerceptualDistance):
    """The paper's CLIPConv: 1 - cosine over the channels at each place of a CLIP ResNet's fifth feature map.

    model_name_or_path: Hub id or folder of a timm model with five feature maps.

    Differs from the authors' code: under this name it compares the tokens of the last block of CLIP's ViT-B/32, with
    the cosine taken over the token axis, after ten random augmentations; no convolution, and noise in the loss.
    """

    kind = "a timm model with five feature maps"
    default_model = "timm/resnet101_clip.openai"

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | None = None,
    ):
        timm = _import_optional("timm")
        name = model_name_or_path or self.default_model
        options = {"pretrained": True, "cache_dir": cache_dir}
        source = f"{'local-dir' if Path(name).is_dir() else 'hf-hub'}:{name}"
        timm.create_model(source, **options)  # is strict; what the file lacks, features_only leaves at random
        encoder = timm.create_model(source, **options, features_only=True, out_indices=(4,))
        config = encoder.pretrained_cfg
        super().__init__(
            encoder.to(dtype),
            size=config["input_size"][-1],
            mean=config["mean"],
            std=config["std"],
            device=device,
            dtype=dtype,
        )

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        (fifth_map,) = self.encoder(pixels)
        return fifth_map.flatten(2).mT  # (B, D, h, w) -> (B, h w, D)


class DreamSim(PerceptualDistance):
    """DreamSim (https://arxiv.org/abs/2306.09344), a distance tuned to human judgement, by the dreamsim package.

    model_name_or_path: the package's cache folder, `dreamsim/` in `cache_dir` or in the Hugging Face home by default.
    The package downloads into it what `dreamsim_type` lacks, and two processes must not do so at once: construct it on
    the main one first.  Always float32, because the package supports nothing else.
    """

    kind = "a cache folder of the dreamsim package"
    default_model = "dreamsim/ in the Hugging Face home"

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: torch.device | str,
        dreamsim_type: str = "ensemble",
        cache_dir: str | None = None,
    ):
        dreamsim = _import_optional("dreamsim").dreamsim
        default = Path(cache_dir or huggingface_hub.constants.HF_HOME, "dreamsim")
        if model_name_or_path is None:
            default.mkdir(parents=True, exist_ok=True)
        folder = Path(model_name_or_path or default)
        if not folder.is_dir():
            raise FileNotFoundError("there is no such folder; create it to have DreamSim downloaded into it")
        hub_folder = torch.hub.get_dir()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # which peft would leave at random
            encoder, _ = dreamsim(device=device, cache_dir=str(folder), dreamsim_type=dreamsim_type)
        torch.hub.set_dir(hub_folder)  # the package moves it for the whole process
        # The package takes [0, 1] and normalises for each of its backbones itself.
        super().__init__(encoder, size=224, mean=(0, 0, 0), std=(1, 1, 1), device=device, dtype=torch.float32)
        for extractor in self.encoder.base_model.model.extractor_list:
            if isinstance(getattr(extractor, "proj", None), torch.Tensor):
                extractor.proj = extractor.proj.to(device)  # or the package copies it from the CPU in each call

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.encoder.embed(pixels)
        for extractor in self.encoder.base_model.model.extractor_list:
            extractor._feats = []  # where the package would keep this image's graph alive until the next call
        return features[:, None]


class DinoV2(PerceptualDistance):
    """1 - cosine of DINOv2's class token after the last layer norm.

    model_name_or_path: Hub id or folder of a transformers model with a class token first, and its image processor.

    Differs from the authors' code: it takes the mean squared difference of all tokens before that norm, unbounded.
    """

    kind = "a DINOv2 model in safetensors with its image processor"
    default_model = "facebook/dinov2-base"

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | None = None,
    ):
        from transformers import AutoModel

        name = model_name_or_path or self.default_model
        encoder = load_whole(AutoModel, name, dtype=dtype, cache_dir=cache_dir)
        pixels = _pixels_of_processor(name, cache_dir=cache_dir)
        super().__init__(encoder, **pixels, device=device, dtype=dtype)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder(pixels).last_hidden_state[:, :1]


class Blip2(PerceptualDistance):
    """1 - cosine of each image token of BLIP-2's Q-Former, averaged over the tokens.

    model_name_or_path: Hub id or folder of a `Blip2ForImageTextRetrieval` and its image processor.

    Differs from the authors' code: it takes the mean squared difference of these tokens, unbounded.
    """

    kind = "a BLIP-2 retrieval model in safetensors with its image processor"
    default_model = "Salesforce/blip2-itm-vit-g"
    # Images never meet a text here: what is kept are the vision model, the query tokens and the Q-Former.
    unused = ("embeddings", "vision_projection", "text_projection", "itm_head")

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        cache_dir: str | None = None,
    ):
        from transformers import Blip2ForImageTextRetrieval

        name = model_name_or_path or self.default_model
        encoder = load_whole(Blip2ForImageTextRetrieval, name, unused=self.unused, dtype=dtype, cache_dir=cache_dir)
        pixels = _pixels_of_processor(name, cache_dir=cache_dir)
        for part in self.unused:
            delattr(encoder, part)
        super().__init__(encoder, **pixels, device=device, dtype=dtype)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        image = self.encoder.vision_model(pixels).last_hidden_state
        queries = self.encoder.query_tokens.expand(len(pixels), -1, -1)
        return self.encoder.qformer(query_embeds=queries, encoder_hidden_states=image.to(queries)).last_hidden_state


DISTANCES = {"clip_conv": ClipConv, "dreamsim": DreamSim, "dinov2": DinoV2, "blip2": Blip2}


def load_distance(
    name: str,
    *,
    model_name_or_path: str | None,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    dreamsim_type: str = "ensemble",
    cache_dir: str | None = None,
    flags: tuple[str, str] = ("--perceptual_distance", "--perceptual_model_name_or_path"),
) -> PerceptualDistance:
    """The distance `name` of DISTANCES, frozen, on `device`.

    model_name_or_path: Hub id or folder of its encoder; None for the distance's own.  dtype: what the encoder computes
    in, float64, float32 or bfloat16; dreamsim stays in float32.  dreamsim_type: for dreamsim alone.  cache_dir: where
    downloads go.  flags: what errors call `name` and `model_name_or_path`.  Raises ImportError without the package,
    OSError without the whole model, ValueError for a bad choice.
    """
    if name not in DISTANCES:
        raise ValueError(f"{flags[0]}: got {name!r}, allowed are {', '.join(DISTANCES)}.")
    if dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise ValueError(
            f"a perceptual distance in {dtype} is not supported, because its gradient in the pixels would underflow; "
            "use torch.float32 or torch.bfloat16."
        )
    if name == "dreamsim" and dreamsim_type not in DREAMSIM_TYPES:
        raise ValueError(f"--dreamsim_type: got {dreamsim_type!r}, allowed are {', '.join(DREAMSIM_TYPES)}.")
    options = {"dreamsim_type": dreamsim_type} if name == "dreamsim" else {"dtype": dtype}
    distance = DISTANCES[name]
    try:
        return distance(model_name_or_path, device=device, cache_dir=cache_dir, **options)
    except ImportError as error:
        raise ImportError(f"{flags[0]} {name}: {error}") from error
    # timm reports a model with fewer than five maps as an IndexError, and one of another library as a KeyError; peft a
    # missing weight as a UserWarning.
    except (OSError, ValueError, RuntimeError, LookupError, UserWarning, SafetensorError) as error:
        raise OSError(
            f"{flags[1]}: {model_name_or_path or distance.default_model!r} cannot be loaded as {distance.kind} "
            f"({type(error).__name__}: {error}). Give a Hub id or a folder that holds one, downloaded beforehand if "
            f"this machine is offline, or leave the flag out for {distance.default_model!r}."
        ) from error


def _pixels_of_processor(name: str, *, cache_dir: str | None) -> dict[str, int | Sequence[float]]:
    """The square a transformers encoder sees, and the mean and std of its normalisation."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(name, cache_dir=cache_dir)
    square = getattr(processor, "crop_size", None) or processor.size
    return {"size": square["height"], "mean": processor.image_mean, "std": processor.image_std}


def _import_optional(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"this distance needs {package}, which cannot be imported ({error}): pip install {package}"
        ) from error

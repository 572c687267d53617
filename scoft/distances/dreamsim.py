"""DreamSim, by the dreamsim package."""

import warnings
from pathlib import Path

import huggingface_hub
import torch

from scoft.distances.base import PerceptualDistance, import_optional


class DreamSim(PerceptualDistance):
    """DreamSim (https://arxiv.org/abs/2306.09344), a distance tuned to human judgement, by the dreamsim package.

    model_name_or_path: the package's cache folder, `dreamsim/` in `cache_dir` or in the Hugging Face home by default.
    The package downloads into it what `dreamsim_type` lacks, and two processes must not do so at once: construct it on
    the main one first.  Float32 whatever `dtype` asks for, because the package supports nothing else.
    """

    kind = "a cache folder of the dreamsim package"
    default_model = "dreamsim/ in the Hugging Face home"

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        dreamsim_type: str = "ensemble",
        cache_dir: str | None = None,
    ):
        dreamsim = import_optional("dreamsim").dreamsim
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

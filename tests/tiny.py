"""Tiny real models and a tiny dataset, built in seconds without a network: real classes, random weights.

    python tests/tiny.py build/tiny
    accelerate launch train_scoft_lora.py --config build/tiny/train.yaml

Every builder writes into the folder it is given and returns that folder; the same seed gives the same files.
"""

import argparse
import json
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from PIL import Image, ImageDraw


COLOURS = {
    "red": (214, 52, 44),
    "blue": (40, 98, 208),
    "green": (46, 156, 84),
    "yellow": (242, 198, 46),
    "purple": (132, 66, 176),
    "pink": (236, 128, 172),
}
ROOFS = ("round", "pointed", "flat")


@contextmanager
def seeded(seed: int):
    """Draw from `seed` inside, and leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# ----------------------------------------------------------------------------------------------------------------
# Stable Diffusion 1.x and XL, with every part there and every part small
# ----------------------------------------------------------------------------------------------------------------


def build_pipeline(
    folder: str | Path,
    *,
    prediction_type: str = "epsilon",
    rescale_zero_snr: bool = False,
    seed: int = 0,
) -> Path:
    """A `StableDiffusionPipeline` folder: latents 8 x 8, images 16 x 16, prompts of up to 77 tokens."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _clip_tokenizer()
    with seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        vae = _autoencoder()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=1024,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=32,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                # CLIP's own initialisation, scaled for 512 channels, would leave all prompts nearly alike at 32.
                initializer_factor=10.0,
            )
        )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=rescale_zero_snr,
    )
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def build_pipeline_xl(folder: str | Path, *, force_upcast: bool = True, zeros: bool = True, seed: int = 0) -> Path:
    """A `StableDiffusionXLPipeline` folder: latents 8 x 8, images 16 x 16, two text encoders of different widths.

    zeros: whether guidance leads away from zeros, as the true one's does.
    """
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer()
    with seeded(seed):
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32 + 48,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            norm_num_groups=8,
        )
        vae = _autoencoder(scaling_factor=0.13025, force_upcast=force_upcast)
        common = {
            "vocab_size": 1024,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 77,
            "projection_dim": 24,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_factor": 2.0,  # as in the other, where a norm follows, which here does not
        }
        text_encoder = CLIPTextModel(CLIPTextConfig(hidden_size=32, **common))
        text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=48, **common))
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    scheduler = EulerDiscreteScheduler(**schedule, steps_offset=1, timestep_spacing="leading")
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=_clip_tokenizer(pad_token="!"),  # as the true one
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def around(unet):
    """What trains a UNet's LoRA, of which the other parts are not needed."""
    from scoft.base_model import StableDiffusion

    return StableDiffusion(None, None, None, None, unet, dtype=torch.float32)


def _autoencoder(**more):
    """Of images 16 x 16, to latents 8 x 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        **more,
    )


def _clip_tokenizer(**more):
    """A CLIP tokenizer that reads any text byte by byte, and the dataset's words in a token or two as CLIP would."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocab = dict.fromkeys(letters + [letter + "</w>" for letter in letters])
    merges = {}
    words = "a house with roof in the small drawing of Veridia".lower().split() + [
        *COLOURS,
        *ROOFS,
    ]
    for word in words:
        *parts, last = [*word[:-1], word[-1] + "</w>"]
        for i, part in enumerate([*parts[1:], last] if parts else []):
            merges["".join(parts[: i + 1]), part] = None
            vocab["".join(parts[: i + 1]) + part] = None
    vocab |= {"<|startoftext|>": None, "<|endoftext|>": None}
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=list(merges),
        model_max_length=77,
        **more,
    )


# ----------------------------------------------------------------------------------------------------------------
# A culture's photographs
# ----------------------------------------------------------------------------------------------------------------


def build_dataset(
    folder: str | Path,
    *,
    rows: int = 6,
    negatives: int = 2,
    blip: int = 2,
    size: int = 24,
    test_rows: int = 2,
) -> Path:
    """A dataset in the authors' folder layout: `train/` and `test/`, each with metadata.jsonl, images, negatives.

    A row is a house in its culture's colours; its negatives are that house in greys, mostly under another roof, and
    its `blip` naive captions leave the culture out. The short side is `size` pixels, the long side varies.
    """
    for split, first, count in (("train", 0, rows), ("test", rows, test_rows)):
        root = Path(folder, split)
        for name in ("images", "negative_images"):
            (root / name).mkdir(parents=True, exist_ok=True)
        metadata = [_write_row(root, index=first + i, negatives=negatives, blip=blip, size=size) for i in range(count)]
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metadata))
    return Path(folder)


def _write_row(root: Path, *, index: int, negatives: int, blip: int, size: int) -> dict:
    colour = list(COLOURS)[index % len(COLOURS)]
    roof = ROOFS[(index + index // len(COLOURS)) % len(ROOFS)]
    long_side = size + 4 * (index % 5)
    shape = (long_side, size) if index % 2 else (size, long_side)
    file_name = f"images/ARCH_{index}.png"
    _draw_house(shape, wall=COLOURS[colour], roof=roof).save(root / file_name)

    negative_names = [f"negative_images/ARCH_{index}_negative{k + 1}.png" for k in range(negatives)]
    for k, name in enumerate(negative_names):
        grey = 90 + 100 * (k + 1) // (negatives + 1)
        _draw_house(
            shape,
            wall=(grey,) * 3,
            roof=ROOFS[(ROOFS.index(roof) + 1 + k) % len(ROOFS)],
        ).save(root / name)

    naive = (
        f"a {colour} house",
        f"a drawing of a house with a {roof} roof",
        f"a small {colour} house with a roof",
    )
    return {
        "file_name": file_name,
        "text": f"a {colour} house with a {roof} roof, in Veridia",
        "blip_text": [naive[i % len(naive)] for i in range(blip)],
        "negative_imgpath": negative_names,
    }


def _draw_house(shape: tuple[int, int], *, wall: tuple[int, int, int], roof: str) -> Image.Image:
    width, height = shape
    image = Image.new("RGB", shape, (206, 226, 240))
    draw = ImageDraw.Draw(image)
    left, right, eaves, ground = 0.2 * width, 0.8 * width, 0.45 * height, 0.85 * height
    draw.rectangle((0, ground, width, height), fill=(120, 150, 90))
    draw.rectangle((left, eaves, right, ground), fill=wall)
    draw.rectangle((0.44 * width, 0.62 * height, 0.58 * width, ground), fill=(70, 46, 30))
    roof_colour = tuple(channel // 2 for channel in wall)
    if roof == "round":
        draw.pieslice((left, 0.15 * height, right, 0.75 * height), 180, 360, fill=roof_colour)
    elif roof == "pointed":
        draw.polygon(
            [(left, eaves), (0.5 * width, 0.1 * height), (right, eaves)],
            fill=roof_colour,
        )
    else:
        draw.rectangle((0.1 * width, 0.34 * height, 0.9 * width, eaves), fill=roof_colour)
    return image


# ----------------------------------------------------------------------------------------------------------------
# What prepares a dataset: captioner, depth, ControlNet
# ----------------------------------------------------------------------------------------------------------------


def build_blip(folder: str | Path, *, seed: int = 0) -> Path:
    """A `BlipForConditionalGeneration` folder that says random words of the houses: input 28 pixels."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *COLOURS, *ROOFS]
    words += "a the house roof with small drawing of korean".split()
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BlipConfig(
        vision_config=layers | {"image_size": 28, "patch_size": 14, "initializer_range": 0.2},
        text_config=layers
        | {
            "encoder_hidden_size": 32,
            "vocab_size": len(words),
            "max_position_embeddings": 64,
            "bos_token_id": words.index("[DEC]"),
            "eos_token_id": words.index("[SEP]"),
            "sep_token_id": words.index("[SEP]"),
            "pad_token_id": words.index("[PAD]"),
            "initializer_range": 0.2,
        },
        image_text_hidden_size=16,
    )
    with seeded(seed):
        model = BlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, additional_special_tokens=["[DEC]"])
    BlipProcessor(BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer).save_pretrained(folder)
    return Path(folder)


def build_depth(folder: str | Path, *, seed: int = 0) -> Path:
    """A `DPTForDepthEstimation` folder with its image processor: input 32 pixels."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 32, 32],
        fusion_hidden_size=16,
        reassemble_factors=[2, 1, 0.5, 0.25],
        is_hybrid=False,
        use_auxiliary_head=False,
        initializer_range=0.2,
    )
    with seeded(seed):
        model = DPTForDepthEstimation(config)
    model.save_pretrained(folder)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return Path(folder)


def build_midas(folder: str | Path, *, seed: int = 0) -> Path:
    """A folder that controlnet_aux's MidasDetector loads.

    The package fixes the architecture, DPT-Hybrid, so this one is not small (490 MB).
    """
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with seeded(seed):
        model = DPTDepthModel(backbone="vitb_rn50_384", non_negative=True)
        torch.nn.init.ones_(model.scratch.output_conv[-3].bias)  # else its last ReLU might find nothing above zero
    torch.save(model.state_dict(), folder / "dpt_hybrid-midas-501f0c75.pt")
    return folder


def build_controlnet(folder: str | Path, *, pipeline: str | Path, seed: int = 0) -> Path:
    """A `ControlNetModel` folder for the UNet of `build_pipeline`; what it is shown changes the picture."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet")
    with seeded(seed):
        model = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
        # In a fresh ControlNet these are zero, so that training begins with a pipeline that ignores it.
        for layer in (model.controlnet_cond_embedding.conv_out, *model.controlnet_down_blocks):
            torch.nn.init.normal_(layer.weight)
    model.save_pretrained(folder)
    return Path(folder)


# ----------------------------------------------------------------------------------------------------------------
# Encoders of the perceptual distances
# ----------------------------------------------------------------------------------------------------------------


def build_clip_conv(folder: str | Path, *, seed: int = 0) -> Path:
    """A timm folder with five feature maps, the fifth of 2 x 2 places at the model's input size of 64 pixels."""
    import timm

    with seeded(seed):
        model = timm.create_model("test_resnet", pretrained_cfg_overlay={"input_size": (3, 64, 64)})
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return Path(folder)


def build_dinov2(folder: str | Path, *, seed: int = 0) -> Path:
    """A `Dinov2Model` folder with its image processor: input 28 pixels, four patches."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        image_size=28,
        patch_size=14,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    with seeded(seed):
        model = Dinov2Model(config)
    model.save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return Path(folder)


def build_blip2(folder: str | Path, *, seed: int = 0) -> Path:
    """A `Blip2ForImageTextRetrieval` folder with its image processor: input 28 pixels, four query tokens."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, BlipImageProcessor

    transformer = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
    }
    config = Blip2Config(
        vision_config=transformer | {"image_size": 28, "patch_size": 14},
        # As in the retrieval models on the Hub, this Q-Former also reads text.
        qformer_config=transformer | {"vocab_size": 64, "use_qformer_text_input": True},
        num_query_tokens=4,
        image_text_hidden_size=16,
    )
    with seeded(seed):
        model = Blip2ForImageTextRetrieval(config)
        # Zero query tokens, as a fresh model has them, would all read the same thing from the image.
        torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder)
    BlipImageProcessor(
        size={"height": 28, "width": 28},
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    ).save_pretrained(folder)
    return Path(folder)


def build_dreamsim(folder: str | Path, *, seed: int = 0) -> Path:
    """A cache folder of the dreamsim package for `dreamsim_type="open_clip_vitb32"`, laid out as its download is.

    The package fixes the architecture, a ViT-B/32, so this is the one model here that is not small (350 MB).
    """
    from dreamsim.feature_extraction.vision_transformer import vit_base
    from dreamsim.model import PerceptualModel
    from peft import LoraConfig, get_peft_model

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with seeded(seed):
        vit = vit_base(patch_size=32)
        vit.pos_drop = torch.nn.LayerNorm(vit.embed_dim)  # where the package puts CLIP's first layer norm
        state_dict = vit.state_dict() | {"proj": torch.randn(vit.embed_dim, 512) / vit.embed_dim**0.5}
        torch.save({"state_dict": state_dict}, folder / "open_clip_vitb32_pretrain.pth.tar")
        model = PerceptualModel(
            model_type="open_clip_vitb32",
            feat_type="embedding",
            stride="32",
            lora=True,
            load_dir=folder,
            device="cpu",
        )
        adapter = LoraConfig(r=4, lora_alpha=4, target_modules=["qkv"], init_lora_weights=False)
        get_peft_model(model, adapter).save_pretrained(folder / "open_clip_vitb32_single_lora")
    return folder


# ----------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder",
        type=Path,
        help="where pipeline/, clip_conv/, ccub/ and train.yaml are written",
    )
    folder = parser.parse_args().folder

    flags = {
        "pretrained_model_name_or_path": str(build_pipeline(folder / "pipeline")),
        "dataset": str(build_dataset(folder / "ccub")),
        "culture": "veridia",
        "perceptual_model_name_or_path": str(build_clip_conv(folder / "clip_conv")),
        "resolution": 16,
        "rank": 4,
        "max_train_steps": 20,
        "output_dir": str(folder / "scoft-veridia"),
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(flags, sort_keys=False))
    print(f"accelerate launch train_scoft_lora.py --config {folder / 'train.yaml'}")


if __name__ == "__main__":
    main()

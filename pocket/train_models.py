"""Make the pocket world's models from nothing but its web: real architectures, small, in the standard layouts.

    python -m pocket.train_models                    # all of them: a night on two CPU cores, or a GPU
    python -m pocket.train_models --models vae unet  # some; each can be interrupted and goes on where it was

The models end up in `pocket/models` as fp16 safetensors with `checksums.json`; what is half trained, and the rendered
web, is kept in `--work`. Random draws depend on the model's name and the update alone, so that an interrupted training
continues as if nothing had happened.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from pocket import judge as judging
from pocket import world
from pocket.checksums import write_checksums
from pocket.judge import SIZE
from pocket.web import Web, evening_weights, pixels, read_web
from scoft.files import content_key
from scoft.randomness import stable_generator
from scoft.weights import load_whole, weights_key


HERE = Path(__file__).resolve().parent
# What the captioner speaks of, and what CLIP learns to tell apart. Hardly anyone would mention tiers; and in so small
# a world a CLIP that knows the sky would find pictures under one sky more alike than pictures of one culture.
CAPTIONED = tuple(name for name in world.ATTRIBUTES if name != "tiers")
COMPARED = tuple(name for name in CAPTIONED if name != "sky")
SAVE_EVERY = 60.0  # seconds between saves of what is half trained
JUDGE_ROUND_TRIPS, JUDGE_CALIBRATION = 8000, 2000  # scenes that the judge sees after the VAE


# ---------------------------------------------------------------------------------------------------------------------
# The one training loop
# ---------------------------------------------------------------------------------------------------------------------


def fit(
    name: str,
    model: nn.Module,
    loss: Callable[[torch.Generator], torch.Tensor],
    *,
    updates: int,
    learning_rate: float,
    work: Path,
    made_from: str = "",
    ema_decay: float = 0.998,
) -> nn.Module:
    """Train all of `model` that requires a gradient with AdamW, and return the moving average of its weights.

    The learning rate rises over the first 5 % of the updates and falls to nothing along a cosine. What is reached is
    kept in `<work>/<name>.pt`, from which a later call goes on, unless that was another training: of other settings,
    or on other data, of which `made_from` is a key.
    """
    file = work / f"{name}.pt"
    key = content_key(updates, learning_rate, ema_decay, made_from)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-2)
    state = {"model": model, "average": average, "optimizer": optimizer}
    first = 0
    if file.exists():
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if saved["key"] == key:
            for part_name, part in state.items():
                part.load_state_dict(saved[part_name])
            first = saved["update"]
        else:
            print(f"{file} is of another training: {name} starts anew")

    model.train()
    saved_at = time.monotonic()
    bar = tqdm(range(first, updates), initial=first, total=updates, desc=name)
    for update in bar:
        rise = min(1.0, (update + 1) / (0.05 * updates))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rise * 0.5 * (1 + math.cos(math.pi * update / updates))
        objective = loss(stable_generator(0, name, update))
        objective.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        if update % 50 == 0:
            bar.set_postfix(loss=f"{objective.item():.4f}")
        if time.monotonic() - saved_at > SAVE_EVERY or update + 1 == updates:
            partial = file.with_suffix(".partial")
            parts = {part_name: part.state_dict() for part_name, part in state.items()}
            torch.save(parts | {"update": update + 1, "key": key}, partial)
            partial.rename(file)
            saved_at = time.monotonic()
    return average.module.eval()


# ---------------------------------------------------------------------------------------------------------------------
# The models
# ---------------------------------------------------------------------------------------------------------------------


def train_vae(web: Web, *, work: Path, device: str, updates: int = 6000):
    """An AutoencoderKL: 64 x 64 pixels to 4 x 16 x 16 and back.

    The web is mostly blue and grey. So rare palettes are drawn more often than they occur, and half of the pictures
    have their colour channels exchanged; else green and purple would fade into the common colours.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        sample_size=SIZE,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
    ).to(device, memory_format=torch.channels_last)

    weights = evening_weights(web)

    def loss(generator):
        x = pixels(web.images[torch.multinomial(weights, 12, generator=generator)])
        order = torch.rand(len(x), 3, generator=generator).argsort(dim=1)
        order[::2] = torch.arange(3)
        x = x.gather(1, order[:, :, None, None].expand_as(x)).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        reconstruction = vae.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(reconstruction, x) + 1e-6 * posterior.kl().mean()

    vae = fit("vae", vae, loss, updates=updates, learning_rate=1.5e-3, work=work, made_from=web.key)
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(pixels(batch.to(device))).latent_dist.mean for batch in web.images[:512].split(64)]
        )
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return vae


def reconstruction_loss(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the pixels, of 4 x 4 means, and of differences to the right and lower neighbours.

    The means hold colours, the differences, at two scales, keep lines sharp.
    """
    error = x - target
    total = error.abs().mean() + F.avg_pool2d(error, 4).abs().mean()
    for scale in (1, 2):
        coarse = F.avg_pool2d(error, scale)
        total = total + (coarse.diff(dim=-1).abs().mean() + coarse.diff(dim=-2).abs().mean()) / scale
    return total


def make_tokenizer(captions: list[str]):
    """A CLIP tokenizer of 32 tokens at most: any text byte by byte, and byte pairs learnt from the captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(
        [caption.lower() for caption in captions],
        trainers.BpeTrainer(vocab_size=768, min_frequency=2, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=32)


def token_ids(captions: list[str], tokenizer) -> torch.Tensor:
    """(N, 32) input ids, padded and cut as StableDiffusionPipeline does."""
    return tokenizer(
        captions, max_length=tokenizer.model_max_length, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


def text_config(tokenizer, **settings):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )


def make_scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@torch.no_grad()
def web_latents(web: Web, vae, *, device: str) -> torch.Tensor:
    """(2, N, 4, 16, 16): mean and standard deviation of each picture's latents, scaled for the UNet."""
    batches = tqdm(web.images.split(100), desc="Encoding the web")
    posteriors = [vae.encode(pixels(batch).to(device)).latent_dist for batch in batches]
    moments = torch.stack([torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])])
    return moments.cpu() * vae.config.scaling_factor


class NoisyBatches:
    """Random training batches of latents at random times, with the captions' ids; one caption in ten is empty."""

    def __init__(self, web: Web, latents: torch.Tensor, tokenizer, *, device: str):
        self.moments, self.device = latents, device
        self.ids = token_ids(web.captions, tokenizer)
        self.empty = token_ids([""], tokenizer)
        self.scheduler = make_scheduler()

    def __call__(self, size: int, generator: torch.Generator, *, dropout: float = 0.1):
        rows = torch.randint(self.moments.shape[1], (size,), generator=generator)
        mean, std = self.moments[:, rows]
        eps, spread = torch.randn((2, *mean.shape), generator=generator)
        t = torch.randint(len(self.scheduler.alphas_cumprod), (size,), generator=generator)
        z_t = self.scheduler.add_noise(mean + std * spread, eps, t)
        dropped = torch.rand((size, 1), generator=generator) < dropout
        ids = torch.where(dropped, self.empty, self.ids[rows])
        return rows, *(tensor.to(self.device) for tensor in (z_t, t, eps, ids))


def make_unet(tokenizer) -> nn.ModuleDict:
    """An untrained text encoder and UNet."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    config = text_config(tokenizer, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
    text_encoder = CLIPTextModel(config)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=config.hidden_size,
        attention_head_dim=4,  # the number of heads, despite its name
        norm_num_groups=16,
    )
    return nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})


def train_unet(web: Web, models: nn.ModuleDict, *, work: Path, device: str, vae, tokenizer, **training):
    """`models`, a text encoder and a UNet, trained together under the web's captions; training: as for `fit`."""
    models = models.to(device)
    batches = NoisyBatches(web, web_latents(web, vae, device=device), tokenizer, device=device)

    def loss(generator):
        _, z_t, t, eps, ids = batches(32, generator)
        context = models["text_encoder"](ids)[0]
        return F.mse_loss(models["unet"](z_t, t, context).sample, eps)

    made_from = content_key(web.key, weights_key(vae), *map(weights_key, models.values()))
    return fit(model=models, loss=loss, work=work, made_from=made_from, **training)


def train_controlnet(web: Web, *, work: Path, device: str, vae, tokenizer, text_encoder, unet, updates: int = 900):
    """A depth ControlNet on the frozen pipeline; half the captions are empty, so that depth alone must do."""
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64)).to(device)
    for frozen in (unet, text_encoder):
        frozen.requires_grad_(False)
    batches = NoisyBatches(web, web_latents(web, vae, device=device), tokenizer, device=device)

    def loss(generator):
        rows, z_t, t, eps, ids = batches(32, generator, dropout=0.5)
        depth = (web.depths[rows].float() / 255).repeat(1, 3, 1, 1).to(device)
        context = text_encoder(ids)[0]
        down, middle = controlnet(z_t, t, context, controlnet_cond=depth, return_dict=False)
        prediction = unet(
            z_t, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return F.mse_loss(prediction, eps)

    made_from = content_key(web.key, *map(weights_key, (vae, text_encoder, unet)))
    return fit("controlnet", controlnet, loss, updates=updates, learning_rate=8e-4, work=work, made_from=made_from)


def roughened(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images as generated ones may look: half of them slightly blurred, all with slight noise."""
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand((len(x), 1, 1, 1), generator=generator) * (
        torch.rand((len(x), 1, 1, 1), generator=generator) < 0.5
    )
    return torch.lerp(x, soft, share) + 0.04 * torch.randn(x.shape, generator=generator)


def train_depth(web: Web, *, work: Path, device: str, updates: int = 4000):
    """A DPT that reads the depth of a picture, 0 far to 1 near."""
    from transformers import DPTConfig, DPTForDepthEstimation

    torch.manual_seed(0)
    model = DPTForDepthEstimation(
        DPTConfig(
            image_size=SIZE,
            patch_size=8,
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[24, 48, 96, 96],
            fusion_hidden_size=48,
            reassemble_factors=[2, 1, 0.5, 0.25],
            is_hybrid=False,
            use_auxiliary_head=False,
        )
    ).to(device)

    def loss(generator):
        rows = torch.randint(len(web), (16,), generator=generator)
        x = roughened(pixels(web.images[rows]), generator).to(device)
        depth = web.depths[rows, 0].float().to(device) / 255
        return reconstruction_loss(model(x).predicted_depth[:, None], depth[:, None])

    return fit("depth", model, loss, updates=updates, learning_rate=1e-3, work=work, made_from=web.key)


def caption_words() -> list[str]:
    """Every word that a caption can hold, cultures left out."""
    phrases = [phrase for values in world.ATTRIBUTES.values() for phrase in values.values()]
    phrases += [phrase.format("") for subjects in world.SUBJECTS.values() for phrase in subjects]
    return sorted({word for phrase in [*phrases, "and with"] for word in phrase.split()})


def make_captioner(device: str = "cpu"):
    """An untrained BLIP captioner and its processor."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *caption_words()]
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(words)}, additional_special_tokens=["[DEC]"], model_max_length=32
    )
    encoder = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(
            vision_config=encoder | {"image_size": SIZE, "patch_size": 8},
            text_config=encoder
            | {
                "encoder_hidden_size": 96,
                "vocab_size": len(words),
                "num_hidden_layers": 3,
                "max_position_embeddings": 32,
                "bos_token_id": words.index("[DEC]"),
                "eos_token_id": words.index("[CLS]"),
                "sep_token_id": words.index("[SEP]"),
                "pad_token_id": words.index("[PAD]"),
            },
            projection_dim=96,
            image_text_hidden_size=96,
        )
    ).to(device)
    images = BlipImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return model, BlipProcessor(images, tokenizer)


def train_captioner(web: Web, *, work: Path, device: str, updates: int = 16000):
    """A BLIP that says what a picture shows and never where: it only read captions without the culture."""
    model, processor = make_captioner(device)
    tokenizer = processor.tokenizer
    weights = evening_weights(web)

    def loss(generator):
        rows = torch.multinomial(weights, 32, generator=generator)
        x = roughened(pixels(web.images[rows]), generator).to(device)
        words = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        captions = [
            world.random_caption(web.scenes[row], generator=words, mention=0.4, attributes=CAPTIONED).removeprefix(
                "Photo of "
            )
            for row in rows.tolist()
        ]
        text = tokenizer(captions, padding=True, return_tensors="pt").to(device)
        ids = text.input_ids
        ids[:, 0] = model.config.text_config.bos_token_id  # where generation starts
        labels = ids.masked_fill(text.attention_mask == 0, -100)
        return model(pixel_values=x, input_ids=ids, attention_mask=text.attention_mask, labels=labels).loss

    return fit("captioner", model, loss, updates=updates, learning_rate=1e-3, work=work, made_from=web.key), processor


def train_clip(web: Web, *, work: Path, device: str, tokenizer, updates: int = 2500) -> nn.ModuleDict:
    """A CLIP, and a ResNet beside its vision transformer that learns the same space: `clip_conv` of the losses."""
    import timm
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config=text_config(tokenizer, **tower).to_dict(),
        vision_config=tower | {"image_size": SIZE, "patch_size": 8},
        projection_dim=64,
    )
    resnet = timm.create_model("test_resnet", num_classes=config.projection_dim)
    models = nn.ModuleDict({"clip": CLIPModel(config), "resnet": resnet}).to(device)

    def contrast(images, texts, scale):
        logits = scale.exp().clamp(max=100) * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        target = torch.arange(len(logits), device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def loss(generator):
        rows = torch.randint(len(web), (96,), generator=generator)
        x = roughened(pixels(web.images[rows]), generator).to(device)
        words = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        captions = [
            world.random_caption(
                web.scenes[row], generator=words, mention=0.7, culture=web.named[row], attributes=COMPARED
            )
            for row in rows.tolist()
        ]
        clip = models["clip"]
        outputs = clip(input_ids=token_ids(captions, tokenizer).to(device), pixel_values=x)
        return contrast(outputs.image_embeds, outputs.text_embeds, clip.logit_scale) + contrast(
            models["resnet"](x), outputs.text_embeds, clip.logit_scale
        )

    return fit("clip", models, loss, updates=updates, learning_rate=1e-3, work=work, made_from=web.key)


def judge_key(vae) -> str:
    """A hash of the world, of how scenes are drawn for the judge, and of the VAE."""
    return content_key(*(Path(module.__file__).read_bytes() for module in (world, judging)), weights_key(vae))


def judge_pictures(work: Path, *, size: int, seed: int, vae) -> dict[str, torch.Tensor]:
    """What the VAE makes of `judging.draw_scenes`, uint8 (., 3, 64, 64), kept in `work` from then on.

    "trip" are reconstructions of all `size` scenes, "noised" those of a quarter of them from latents so noisy that
    nobody should read them.
    """
    file = work / f"judge-{size}-{seed}-{judge_key(vae)[:16]}.npz"
    if not file.exists():
        generator = torch.Generator().manual_seed(seed)
        pictures = {"trip": [], "noised": []}
        scenes = judging.draw_scenes(size, seed=seed)
        for first in tqdm(range(0, size, 64), desc="Round trips for the judge"):
            raw = judging.render_all(scenes[first : first + 64])
            # every other batch has latents that are slightly wrong, as denoised ones are
            slight, strong = 0.1 * (first // 64 % 2), judging.uniform(0.5, 1.5, 1, generator=generator).item()
            pictures["trip"].append(judging.round_trip(vae, raw, generator=generator, noise=slight))
            pictures["noised"].append(judging.round_trip(vae, raw[::4], generator=generator, noise=strong))
        arrays = {key: (127.5 * (torch.cat(parts) + 1)).round().byte().numpy() for key, parts in pictures.items()}
        work.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **arrays)
        partial.rename(file)
    arrays = np.load(file)
    return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def moved(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the pictures (B, 3, H, W) as they are, half mirrored or not, shifted and zoomed by up to a tenth."""
    batch = len(pictures)
    zoom = judging.uniform(0.9, 1.1, batch, generator=generator)
    mirror = 2.0 * torch.randint(2, (batch,), generator=generator) - 1
    places = torch.zeros(batch, 2, 3)
    places[:, 0, 0], places[:, 1, 1] = zoom * mirror, zoom
    places[:, :, 2] = judging.uniform(-0.1, 0.1, batch, 2, generator=generator)
    places[torch.rand(batch, generator=generator) < 0.5] = torch.eye(2, 3)
    grid = F.affine_grid(places, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def train_judge(*, work: Path, device: str, vae, updates: int = 4500) -> judging.Judge:
    """The attribute judge: taught with the truth, raw and after `vae`, slightly spoilt, and with broken pictures.

    Two thirds of a batch are clear: their attributes and clearness are learnt; the rest is broken, of which only the
    unclearness is. Half of all are moved about, or the judge would know its scenes by heart.
    """
    pool = judge_pictures(work, size=JUDGE_ROUND_TRIPS, seed=judging.TRAINING_SEED, vae=vae)
    pool_scenes = judging.draw_scenes(JUDGE_ROUND_TRIPS, seed=judging.TRAINING_SEED)
    torch.manual_seed(0)
    judge = judging.Judge().to(device, memory_format=torch.channels_last)
    clear = torch.tensor([1.0] * 44 + [0.0] * 20)

    def loss(generator):
        # scenes are always new ones, and none of the seeds that pictures are drawn from elsewhere
        scenes = judging.draw_scenes(29, seed=int(torch.randint(10**6, 2**31, (1,), generator=generator)))
        trips = torch.randint(JUDGE_ROUND_TRIPS, (30,), generator=generator)
        noised = torch.randint(len(pool["noised"]), (5,), generator=generator)
        order = torch.randperm(59, generator=generator)
        values = judging.values_of(scenes + [pool_scenes[i] for i in trips])
        whole = moved(torch.cat([judging.render_all(scenes), pixels(pool["trip"][trips])])[order], generator)
        # slight blur and noise leave a picture what it is
        x = [judging.blur(whole[:44], judging.uniform(0.05, 0.6, 44, generator=generator))]
        x += [spoil(part, generator) for spoil, part in zip(judging.BROKEN.values(), whole[44:].split(5))]
        x = torch.cat([*x, pixels(pool["noised"][noised])])
        x = x + judging.uniform(0, 0.06, 64, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
        answers = judge(x.to(device, memory_format=torch.channels_last))
        losses = [F.binary_cross_entropy_with_logits(answers["clear"], clear.to(device))]
        losses += [F.cross_entropy(answers[name][:44], values[name][order[:44]].to(device)) for name in values]
        return sum(losses)

    made_from = judge_key(vae)
    judge = fit(
        "judge", judge, loss, updates=updates, learning_rate=3e-3, work=work, made_from=made_from, ema_decay=0.995
    )
    held_out = judge_pictures(work, size=JUDGE_CALIBRATION, seed=judging.CALIBRATION_SEED, vae=vae)
    judge.calibrate(pixels(held_out["trip"]))
    return judge


# ---------------------------------------------------------------------------------------------------------------------
# Keeping them
# ---------------------------------------------------------------------------------------------------------------------


def save(model: nn.Module, folder: Path):
    """The model in its library's format, as fp16 safetensors that load as float32."""
    if isinstance(model, diffusers.ModelMixin):
        copy.deepcopy(model).half().save_pretrained(folder)
    else:  # transformers would load what its config calls fp16 as such
        model.save_pretrained(folder, state_dict={key: value.half() for key, value in model.state_dict().items()})


def load(class_name: str, folder: Path, *, device: str) -> nn.Module:
    """A finished model in float32: what later ones are trained on is what users load."""
    library = "diffusers" if class_name in ("AutoencoderKL", "UNet2DConditionModel") else "transformers"
    model = load_whole(getattr(importlib.import_module(library), class_name), folder).float().to(device).eval()
    if library == "diffusers":
        model.register_to_config(_name_or_path="")  # else the folder's path would be saved with it
    return model


def make(name: str, *, web: Web, work: Path, output: Path, device: str):
    """Train one of MODELS and save it under `output`, in the layout of its library."""
    import timm
    from diffusers import StableDiffusionPipeline
    from transformers import DPTImageProcessor

    pipeline_folder = output / "stable-diffusion"
    if name in ("unet", "longer", "controlnet", "judge"):
        vae = load("AutoencoderKL", pipeline_folder / "vae", device=device)
    common = {"web": web, "work": work, "device": device}
    if name == "vae":
        save(train_vae(**common), pipeline_folder / "vae")
    elif name in ("unet", "longer"):
        tokenizer = make_tokenizer(web.captions)
        if name == "unet":
            models, training = make_unet(tokenizer), {"updates": 6000, "learning_rate": 8e-4}
        else:
            models = nn.ModuleDict(
                {"text_encoder": load("CLIPTextModel", pipeline_folder / "text_encoder", device=device)}
            )
            models["unet"] = load("UNet2DConditionModel", pipeline_folder / "unet", device=device)
            training = {"updates": 5000, "learning_rate": 5e-4, "ema_decay": 0.999}
        trained = train_unet(**common, models=models, vae=vae, tokenizer=tokenizer, name=name, **training)
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=trained["text_encoder"],
            tokenizer=tokenizer,
            unet=trained["unet"],
            scheduler=make_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(pipeline_folder)
        for part in ("vae", "text_encoder", "unet"):
            save(vae if part == "vae" else trained[part], pipeline_folder / part)
    elif name == "controlnet":
        unet = load("UNet2DConditionModel", pipeline_folder / "unet", device=device)
        text_encoder = load("CLIPTextModel", pipeline_folder / "text_encoder", device=device)
        tokenizer = make_tokenizer(web.captions)
        controlnet = train_controlnet(**common, vae=vae, tokenizer=tokenizer, text_encoder=text_encoder, unet=unet)
        save(controlnet, output / "controlnet-depth")
    elif name == "depth":
        save(train_depth(**common), output / "depth")
        half = [0.5, 0.5, 0.5]
        size = {"height": SIZE, "width": SIZE}
        DPTImageProcessor(size=size, image_mean=half, image_std=half).save_pretrained(output / "depth")
    elif name == "captioner":
        captioner, processor = train_captioner(**common)
        save(captioner, output / "captioner")
        processor.save_pretrained(output / "captioner")
    elif name == "clip":
        tokenizer = make_tokenizer(web.captions)
        trained = train_clip(**common, tokenizer=tokenizer)
        save(trained["clip"], output / "clip")
        clip_processor(tokenizer).save_pretrained(output / "clip")
        resnet = trained["resnet"].half()
        resnet.pretrained_cfg |= {"input_size": (3, SIZE, SIZE), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        timm.models.save_for_hf(resnet, output / "clip_conv", safe_serialization=True)
    else:
        train_judge(work=work, device=device, vae=vae).save_pretrained(output / "judge")


def clip_processor(tokenizer):
    from transformers import CLIPImageProcessor, CLIPProcessor

    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return CLIPProcessor(images, tokenizer)


# Each after those it needs.  `longer` trains the UNet and its text encoder on from where `unet` left them, with a rate
# that rises and falls once more.
MODELS = ("vae", "unet", "longer", "controlnet", "clip", "depth", "captioner", "judge")


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="NAME", help=" ".join(MODELS))
    parser.add_argument("--output", type=Path, default=HERE / "models")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "pocket", help="what is half trained")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)

    web = read_web(args.work)
    for name in MODELS:
        if name in args.models:
            make(name, web=web, work=args.work, output=args.output, device=args.device)
    write_checksums(args.output, made_by="python -m pocket.train_models")


if __name__ == "__main__":
    main()

"""LoRA files: what is written loads whole, by diffusers' own call, and draws what the trained modules draw."""

import os
import re
import stat
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from packaging.version import Version
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pocket.train_models import HERE as POCKET
from scoft.base_model import check_whole, load_into_pipeline, loras, read_lora
from scoft.errors import DataError
from scoft.lora_folder import LORA_FILE
from tiny import around


KOHYA = "kohya.safetensors"
ATTENTION = "to_q,to_k,to_v,to_out.0"
BLOCKS = f"{ATTENTION},ff.net.0.proj,ff.net.2,proj_in,proj_out"
RESNETS = "conv1,conv2,conv_shortcut,time_emb_proj"
ALL = f"{BLOCKS},{RESNETS},conv,conv_in,conv_out,linear_1,linear_2"
LAYERS = pytest.mark.parametrize(
    "layers", [ATTENTION, BLOCKS, RESNETS, ALL], ids=["attention", "blocks", "resnets", "all"]
)


def with_lora(pipeline: Path, *, layers: str, alpha: float = 4.0, seed: int = 0) -> StableDiffusionPipeline:
    """A pipeline with a LoRA of rank 4 whose weights are all drawn, as if it had been trained."""
    pipe = StableDiffusionPipeline.from_pretrained(pipeline, safety_checker=None)
    parameters = around(pipe.unet).add_lora(rank=4, alpha=alpha, target_modules=layers.split(","))
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data.normal_(std=0.1, generator=generator)
    pipe.unet.eval()
    return pipe


def draw(pipe: StableDiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a red house, in Veridia", num_inference_steps=2, generator=generator, output_type="np").images


@LAYERS
@pytest.mark.parametrize("alpha", [4.0, 11.0])
def test_a_stock_pipeline_loads_all_that_was_trained(tiny_pipeline, tmp_path, layers, alpha):
    """Tensor by tensor and in its pictures, from the diffusers file and from the kohya file."""
    trained = with_lora(tiny_pipeline, layers=layers, alpha=alpha)
    around(trained.unet).save_lora(tmp_path, kohya_name=KOHYA)
    expected, picture = get_peft_model_state_dict(trained.unet), draw(trained)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    assert np.abs(draw(pipe) - picture).max() > 1e-2
    # Before 0.39 diffusers read a kohya file's attention, feed-forward and residual layers alone.
    old = Version(diffusers.__version__) < Version("0.39") and layers == ALL
    for name in (LORA_FILE,) if old else (LORA_FILE, KOHYA):
        pipe.load_lora_weights(tmp_path, weight_name=name, adapter_name="x")
        found = get_peft_model_state_dict(pipe.unet, adapter_name="x")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert np.abs(draw(pipe) - picture).max() <= 1e-5
        check_whole(pipe.unet, tmp_path / name, adapter="x")
        pipe.unload_lora_weights()


def test_the_pocket_world_s_lora_loads_whole(tmp_path):
    """All 168 tensors of the layers in its table of defaults."""
    layers = yaml.safe_load((POCKET / "defaults.yaml").read_text())["train"]["lora_layers"]
    around(with_lora(POCKET / "models/stable-diffusion", layers=layers).unet).save_lora(tmp_path, kohya_name=KOHYA)
    for name in (LORA_FILE, KOHYA):
        pipe = StableDiffusionPipeline.from_pretrained(POCKET / "models/stable-diffusion", safety_checker=None)
        load_into_pipeline(pipe, tmp_path / name)
        assert (
            len(read_lora(tmp_path / name)) == len(get_peft_model_state_dict(pipe.unet, adapter_name="scoft")) == 168
        )


# ---------------------------------------------------------------------------------------------------------------------
# What is not whole
# ---------------------------------------------------------------------------------------------------------------------


def mixed(file: Path, unet):
    """Write the LoRA as earlier versions did: attention by diffusers' keys, the other layers by peft's."""
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    save_file({f"unet.{name}": weight for name, weight in weights.items()}, file)


def test_a_lora_that_loads_in_part_is_refused(tiny_pipeline, tmp_path):
    """With both counts, the first tensor that is lacking, and what is whole."""
    trained = with_lora(tiny_pipeline, layers=BLOCKS)
    mixed(tmp_path / LORA_FILE, trained.unet)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    first = min(name for name in get_peft_model_state_dict(trained.unet) if "attn" in name)
    with pytest.raises(
        DataError, match=rf"holds 96 tensors, and 32 of them are in the model.*: {re.escape(first)} is"
    ):
        load_into_pipeline(pipe, tmp_path / LORA_FILE)


def test_a_mixed_checkpoint_of_an_earlier_version_is_resumed_bit_for_bit(tiny_pipeline, tmp_path):
    trained, other = (with_lora(tiny_pipeline, layers=BLOCKS, seed=seed) for seed in (0, 1))
    mixed(tmp_path / LORA_FILE, trained.unet)
    around(other.unet).load_lora(tmp_path)
    expected, found = (get_peft_model_state_dict(pipe.unet) for pipe in (trained, other))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_lora_is_read_once_beside_diffusers_own_reading(tiny_pipeline, tmp_path, monkeypatch):
    """What was read to be checked is what the model is held against."""
    around(with_lora(tiny_pipeline, layers=BLOCKS).unet).save_lora(tmp_path)
    pipe, read = StableDiffusionPipeline.from_pretrained(tiny_pipeline), []
    monkeypatch.setattr(loras, "read_lora", lambda file: read.append(file) or read_lora(file))
    load_into_pipeline(pipe, tmp_path / LORA_FILE)
    assert read == [tmp_path / LORA_FILE]


@pytest.mark.parametrize("change", ["more", "other values", "fewer"])
def test_an_adapter_that_is_not_the_file_s_is_seen(tiny_pipeline, tmp_path, change):
    """The count and the values both count."""
    pipe = with_lora(tiny_pipeline, layers=BLOCKS)
    around(pipe.unet).save_lora(tmp_path)
    check_whole(pipe.unet, tmp_path / LORA_FILE, adapter="default")
    weights = load_file(tmp_path / LORA_FILE)
    last = max(weights)
    if change == "more":
        weights["unet.conv_in.lora_A.weight"] = torch.zeros(4, 4, 3, 3)
    elif change == "fewer":
        del weights[last]
    else:
        weights[last][0, 0] += 1
    save_file(weights, tmp_path / LORA_FILE)
    counts = {"more": (97, 96), "fewer": (95, 95), "other values": (96, 95)}[change]
    with pytest.raises(
        DataError, match="holds {} tensors, and {} of them are in the model, which has 96".format(*counts)
    ):
        check_whole(pipe.unet, tmp_path / LORA_FILE, adapter="default")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no safetensors", "is no LoRA that can be read"),
        ({"lora_unet_x.lora_down.weight": torch.zeros(4, 32)}, "is no LoRA that can be read: 'lora_unet_x.lora_up"),
        ({}, "is no LoRA that can be read: none of its tensors"),
        ({"conv_in.weight": torch.zeros(4)}, "is no LoRA that can be read: none of its tensors"),
        ({"transformer.x.lora_A.weight": torch.zeros(4, 4)}, "holds 1 tensors, and 0 of them"),
        ({"unet.x.lora_A.weight": torch.zeros(4, 4), "unet.x.lora_B.weight": torch.zeros(4, 4)}, "does not fit the"),
        ({"unet.conv_in.lora_A.weight": torch.zeros(4, 5, 3, 3),
          "unet.conv_in.lora_B.weight": torch.zeros(9, 4, 1, 1)},
         "does not fit the model"),
    ],
    ids=["torn", "half", "empty", "no LoRA", "another architecture", "other layers", "other shapes"],
)  # fmt: skip
def test_what_is_no_lora_of_the_model_is_named(tiny_pipeline, tmp_path, content, message):
    file = tmp_path / LORA_FILE
    file.write_bytes(content) if isinstance(content, bytes) else save_file(content, file)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    with pytest.raises(DataError, match=f"{re.escape(str(file))} {message}"):
        load_into_pipeline(pipe, file)


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def test_equal_loras_are_equal_bytes(tiny_pipeline, tmp_path):
    """Written again, and by a UNet whose layers were named in another order; another weight is other bytes."""
    first, again, other = (
        with_lora(tiny_pipeline, layers=layers, seed=seed)
        for layers, seed in ((BLOCKS, 0), (",".join(reversed(BLOCKS.split(","))), 0), (BLOCKS, 1))
    )
    written = []
    for i, pipe in enumerate([first, again] * 4 + [other]):
        around(pipe.unet).save_lora(tmp_path / str(i), kohya_name=KOHYA)
        written.append([(tmp_path / str(i) / name).read_bytes() for name in (LORA_FILE, KOHYA)])
    *same, different = written
    assert all(each == same[0] for each in same)
    assert all(a != b for a, b in zip(different, same[0]))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_says_who_may_read_the_files(tiny_pipeline, tmp_path, umask):
    before = os.umask(umask)
    try:
        around(with_lora(tiny_pipeline, layers="to_q").unet).save_lora(tmp_path, kohya_name=KOHYA)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask} and len(list(tmp_path.iterdir())) == 2


# ---------------------------------------------------------------------------------------------------------------------
# ComfyUI and A1111
# ---------------------------------------------------------------------------------------------------------------------


# A layer as --lora_layers names it -> the ends of its names in a Stable Diffusion 1.x checkpoint, where they differ.
LDM = {
    "conv1": ["0.in_layers.2", "2.in_layers.2"],
    "conv2": ["0.out_layers.3", "2.out_layers.3"],
    "conv_shortcut": ["skip_connection"],
    "time_emb_proj": ["emb_layers.1"],
    "conv": ["op", "conv"],
    "conv_in": ["input_blocks.0.0"],
    "conv_out": ["out.2"],
    "linear_1": ["time_embed.0"],
    "linear_2": ["time_embed.2"],
}


def sd1_layers() -> dict[str, tuple[int, ...]]:
    """Name in a Stable Diffusion 1.x checkpoint (LDM's) -> shape, of each linear layer and convolution of its UNet.

    By the architecture: width 320 times 1, 2, 4, 4; two residual blocks a level, three on the way up, which also take
    what the way down has left; transformer blocks on the first three levels and in the middle; texts of width 768,
    times of 1280; projections that are 1 x 1 convolutions.
    """
    widths = [320, 640, 1280, 1280]
    layers = {"input_blocks.0.0": (320, 4, 3, 3), "out.2": (4, 320, 3, 3)}
    layers |= {"time_embed.0": (1280, 320), "time_embed.2": (1280, 1280)}
    residual, transformer = {}, {"middle_block.1": 1280}
    left, width = [320], 320
    for level, new in enumerate(widths):
        for i in range(2):
            block = f"input_blocks.{1 + 3 * level + i}"
            residual[f"{block}.0"] = (new, width)
            if level < 3:
                transformer[f"{block}.1"] = new
            left.append(width := new)
        if level < 3:
            layers[f"input_blocks.{3 + 3 * level}.0.op"] = (width, width, 3, 3)
            left.append(width)
    residual |= {"middle_block.0": (1280, 1280), "middle_block.2": (1280, 1280)}
    for level, new in reversed(list(enumerate(widths))):
        for i in range(3):
            block = f"output_blocks.{3 * (3 - level) + i}"
            residual[f"{block}.0"] = (new, width + left.pop())
            if level < 3:
                transformer[f"{block}.1"] = new
            width = new
        if level > 0:
            layers[f"{block}.{1 if level == 3 else 2}.conv"] = (width, width, 3, 3)
    for block, (new, width) in residual.items():
        layers |= {f"{block}.in_layers.2": (new, width, 3, 3), f"{block}.out_layers.3": (new, new, 3, 3)}
        layers[f"{block}.emb_layers.1"] = (new, 1280)
        if new != width:
            layers[f"{block}.skip_connection"] = (new, width, 1, 1)
    for block, width in transformer.items():
        layers |= {f"{block}.proj_in": (width, width, 1, 1), f"{block}.proj_out": (width, width, 1, 1)}
        for attention, context in (("attn1", width), ("attn2", 768)):
            inputs = {"to_q": width, "to_k": context, "to_v": context, "to_out.0": width}
            for layer, size in inputs.items():
                layers[f"{block}.transformer_blocks.0.{attention}.{layer}"] = (width, size)
        layers[f"{block}.transformer_blocks.0.ff.net.0.proj"] = (8 * width, width)  # GEGLU: values and gates
        layers[f"{block}.transformer_blocks.0.ff.net.2"] = (width, 4 * width)
    return layers


def ldm_name(kohya_name: str) -> str:
    """The layer of an LDM checkpoint that A1111 and ComfyUI adapt by a kohya file's entry."""
    whole = {
        r"conv_in": lambda m: "input_blocks.0.0",
        r"conv_out": lambda m: "out.2",
        r"time_embedding_linear_(\d)": lambda m: f"time_embed.{2 * int(m[1]) - 2}",
        r"down_blocks_(\d)_downsamplers_0_conv": lambda m: f"input_blocks.{3 + 3 * int(m[1])}.0.op",
        r"up_blocks_(\d)_upsamplers_0_conv": lambda m: (
            f"output_blocks.{2 + 3 * int(m[1])}.{2 if int(m[1]) else 1}.conv"
        ),
    }
    place = {
        r"down_blocks_(\d)_attentions_(\d)_": lambda m: f"input_blocks.{1 + 3 * int(m[1]) + int(m[2])}.1.",
        r"mid_block_attentions_0_": lambda m: "middle_block.1.",
        r"up_blocks_(\d)_attentions_(\d)_": lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1.",
        r"down_blocks_(\d)_resnets_(\d)_": lambda m: f"input_blocks.{1 + 3 * int(m[1]) + int(m[2])}.0.",
        r"mid_block_resnets_(\d)_": lambda m: f"middle_block.{2 * int(m[1])}.",
        r"up_blocks_(\d)_resnets_(\d)_": lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0.",
    }
    resnet = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
              "conv_shortcut": "skip_connection"}  # fmt: skip
    name = kohya_name.removeprefix("lora_unet_")
    for pattern, layer in whole.items():
        if found := re.fullmatch(pattern, name):
            return layer(found)
    for pattern, start in place.items():
        if found := re.match(pattern, name):
            layer = name[found.end() :]
            plain = re.sub(r"\b(transformer|to|proj)\.(?=[a-z])", r"\1_", layer.replace("_", "."))
            return start(found) + resnet.get(layer, plain)
    raise AssertionError(f"{kohya_name} names no layer of Stable Diffusion 1.x")


@LAYERS
def test_the_kohya_file_fits_a_full_size_checkpoint(tmp_path, layers):
    """Every entry adapts a layer of Stable Diffusion 1.x, by its name there and in its shape, and none is left out.

    An entry is lora_down (r, in, ...), lora_up (out, r, ...), 1 x 1 where the layer is a convolution, and its alpha.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)  # the rest of the defaults are Stable Diffusion 1.x's
        around(unet).add_lora(rank=4, alpha=2.0, target_modules=layers.split(","))
    for name, module in unet.named_modules():
        if name.endswith(("lora_A", "lora_B")):
            module.to_empty(device="cpu")
    around(unet).save_lora(tmp_path, kohya_name=KOHYA)
    kohya = load_file(tmp_path / KOHYA)
    found = {}
    for name in {name.partition(".")[0] for name in kohya}:
        up, down = (kohya[f"{name}.lora_{way}.weight"] for way in ("up", "down"))
        assert kohya[f"{name}.alpha"] == 2 and up.shape[1] == down.shape[0] == 4
        assert up.shape[2:] == (1, 1)[: down.ndim - 2]
        found[ldm_name(name)] = (up.shape[0], *down.shape[1:])
    wanted = tuple(f".{end}" for layer in layers.split(",") for end in LDM.get(layer, [layer]))
    assert found == {name: shape for name, shape in sd1_layers().items() if f".{name}".endswith(wanted)}
    assert len(kohya) == 3 * len(found)
    if layers == ALL:
        assert found.keys() == sd1_layers().keys()
    with safe_open(tmp_path / KOHYA, framework="pt") as file:
        assert file.metadata()["ss_base_model_version"] == "sd_v1"

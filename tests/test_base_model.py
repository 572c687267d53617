"""Models are whole: a door refuses one that lacks a weight, or has it in another shape, by flag, model and name."""

import ast
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import evaluate_scoft
import prepare_ccub
import train_scoft_lora
from pocket import judge
from scoft.base_model import StableDiffusion, drawing_pipeline, load_pipeline
from scoft.distances import load_distance
from scoft.errors import DataError
from scoft.prepare.caption import Captioner
from scoft.prepare.negatives import DepthEstimator, DrawNegatives, NegativeGenerator
from scoft.weights import load_whole


CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
# A weight of each model of a pipeline.
WEIGHTS = {"text_encoder": "final_layer_norm.weight", "unet": "conv_in.weight", "vae": "quant_conv.weight"}


@pytest.fixture
def damaged(tmp_path):
    """Copies a model's folder with a weight missing from its file, or cut to another shape."""

    def damage(source: Path, weight: str, *, part: str = "", cut: bool = False) -> Path:
        folder = Path(shutil.copytree(source, tmp_path / "damaged"))
        (file,) = (folder / part).glob("*.safetensors")
        weights = load_file(file)
        whole = weights.pop(weight)
        save_file(weights | ({weight: whole[1:].clone()} if cut else {}), file, metadata={"format": "pt"})
        return folder

    return damage


def train(folder: Path):
    options = dict.fromkeys(("revision", "variant", "cache_dir", "prediction_type"))
    StableDiffusion.load(str(folder), **options, dtype=torch.float32)


def evaluate(folder: Path):
    (folder / "prompts.txt").write_text("a house\n")
    flags = f"--dataset pocket --culture veridia --pretrained_model_name_or_path {folder} --resolution 16"
    flags += f" --prompts {folder / 'prompts.txt'} --sets prompts --num_images 1"
    evaluate_scoft.main(["generate", str(folder / "out"), *flags.split()])


def negatives_of(depth_model: Path, controlnet: Path, base: Path) -> DrawNegatives:
    flags = f"--depth_model {depth_model} --controlnet {controlnet} --pretrained_model_name_or_path {base}"
    args = prepare_ccub.parse_args(["--culture", "korea", "--images", str(base), *flags.split()])
    return prepare_ccub.built(DrawNegatives, args)


def prepare(depth_model: Path, controlnet: Path, base: Path):
    stage = negatives_of(depth_model, controlnet, base)
    NegativeGenerator(stage, device=torch.device("cpu"), dtype=torch.float32, cache_dir=None)


@pytest.mark.parametrize("cut", [False, True], ids=["missing", "another shape"])
@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("door", ["train", "prepare", "evaluate"])
def test_a_base_model_is_whole(door, part, cut, damaged, tiny_pipeline, tiny_depth, tiny_controlnet):
    """Each door names --pretrained_model_name_or_path, the folder and the weight."""
    folder = damaged(tiny_pipeline, WEIGHTS[part], part=part, cut=cut)
    with pytest.raises(DataError, match=f"^pretrained_model_name_or_path {folder} .*{WEIGHTS[part]}"):
        if door == "prepare":
            prepare(tiny_depth, tiny_controlnet, folder)
        else:
            {"train": train, "evaluate": evaluate}[door](folder)


@pytest.mark.parametrize(
    ("flag", "model", "weight"),
    [
        ("--captioner", "tiny_blip", "vision_model.post_layernorm.weight"),
        ("--depth_model", "tiny_depth", "head.head.0.weight"),
        ("--controlnet", "tiny_controlnet", "conv_in.weight"),
    ],
)
def test_what_prepares_a_dataset_is_whole(flag, model, weight, damaged, request, tiny_pipeline):
    """Captioner, depth estimator and ControlNet too."""
    places = {name: request.getfixturevalue(name) for name in ("tiny_blip", "tiny_depth", "tiny_controlnet")}
    places[model] = damaged(places[model], weight)
    with pytest.raises(DataError) as refused:
        Captioner(str(places["tiny_blip"]), device="cpu", dtype=torch.float32, cache_dir=None)
        prepare(places["tiny_depth"], places["tiny_controlnet"], tiny_pipeline)
    assert re.match(f"{flag} {places[model]} .*{weight} is missing", refused.value.for_command, re.DOTALL)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("clip_conv", "layer4.0.conv1.weight"),
        ("dinov2", "layernorm.weight"),
        ("blip2", "vision_model.post_layernorm.weight"),
    ],
)
def test_a_distance_is_whole(name, weight, damaged, request):
    """The encoders of the perceptual distances, by transformers and timm; the flag is the caller's."""
    folder = damaged(request.getfixturevalue(f"tiny_{name}"), weight)
    with pytest.raises(DataError, match=re.compile(f"--filter_model '{folder}' .*{weight}", re.DOTALL)):
        load_distance(name, model_name_or_path=str(folder), device="cpu", flags=("", "--filter_model"))


def test_dreamsim_is_whole(damaged, tiny_dreamsim):
    """Peft merely warns of a LoRA that lacks a weight."""
    weight = "base_model.model.extractor_list.0.model.blocks.0.attn.qkv.lora_B.weight"
    folder = damaged(tiny_dreamsim, weight, part="open_clip_vitb32_single_lora")
    with pytest.raises(DataError, match=f"^model_name_or_path '{folder}' .*blocks.0.attn.qkv.lora_B"):
        load_distance("dreamsim", model_name_or_path=str(folder), device="cpu", dreamsim_type="open_clip_vitb32")


def test_an_encoder_of_the_metrics_is_whole(damaged, tmp_path):
    """--encoder names it."""
    folder = damaged(judge.MODELS / "clip", "visual_projection.weight")
    args = evaluate_scoft.parse_args(
        ["score", str(tmp_path), "--dataset", "pocket", "--culture", "veridia", "--encoder", f"clip={folder}"]
    )
    with pytest.raises(DataError, match=f"{folder} .*visual_projection.weight is missing[^$]*--encoder clip=PLACE"):
        evaluate_scoft.encoders_of(args).load("clip")


def test_the_judge_is_whole(damaged):
    """The pocket world's judge says what remakes it."""
    folder = damaged(judge.MODELS / "judge", "body.1.0.weight")
    with pytest.raises(DataError, match=re.compile(f"{folder}.*body.1.0.weight.*--models judge", re.DOTALL)):
        judge.Judge.from_pretrained(folder)


def test_what_is_never_asked_may_be_missing(damaged, tiny_depth, tiny_blip2):
    """Checkpoints on the Hub lack weights that no picture needs: the first fusion of a DPT has no residual."""
    folder = damaged(tiny_depth, "neck.fusion_stage.layers.0.residual_layer1.convolution1.weight")
    picture, whole = Image.effect_noise((32, 32), 64).convert("RGB"), {"device": "cpu", "cache_dir": None}
    depths = [DepthEstimator(str(each), **whole)(picture) for each in (folder, tiny_depth)]
    assert depths[0].getextrema()[0][0] < depths[0].getextrema()[0][1] and depths[0] == depths[1]
    shutil.rmtree(folder)
    folder, x = damaged(tiny_blip2, "itm_head.weight"), torch.rand(1, 3, 32, 32) * 2 - 1
    lacking, complete = (
        load_distance("blip2", model_name_or_path=str(each), device="cpu").embed(x) for each in (folder, tiny_blip2)
    )
    assert torch.equal(lacking, complete)


def test_a_pipeline_is_what_diffusers_loads(tiny_pipeline):
    """Its parts have diffusers' own classes, weights and modes; a part given is kept, None leaves it out."""
    pipeline = load_pipeline(StableDiffusionPipeline, tiny_pipeline)
    expected = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    assert pipeline.config == expected.config
    for part in WEIGHTS:
        ours, theirs = getattr(pipeline, part), getattr(expected, part)
        assert type(ours) is type(theirs) and not ours.training
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    unet = pipeline.unet
    assert load_pipeline(StableDiffusionPipeline, tiny_pipeline, unet=unet, safety_checker=None).unet is unet


def test_files_of_stable_diffusion_1_are_whole(tmp_path, tiny_pipeline):
    """What else is in the Hub's files of 2022 is no fault: older names, and position ids that are not weights."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel

    folder = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    file = folder / "text_encoder/model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in load_file(file).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, file, metadata={"format": "pt"})
    file, older = folder / "vae/diffusion_pytorch_model.safetensors", {}
    for name, weight in load_file(file).items():
        for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(new, old)
        older[name] = weight
    save_file(older, file, metadata={"format": "pt"})
    for model_class, part in ((CLIPTextModel, "text_encoder"), (AutoencoderKL, "vae")):
        old = load_whole(model_class, folder, subfolder=part).state_dict()
        new = load_whole(model_class, tiny_pipeline, subfolder=part).state_dict()
        assert all(torch.equal(weight, old[name]) for name, weight in new.items())


# ---------------------------------------------------------------------------------------------------------------------
# One room alone knows its classes
# ---------------------------------------------------------------------------------------------------------------------

OWN = re.compile(
    r"StableDiffusion(?!XL\b)\w+|UNet2DConditionModel|AutoencoderKL|DDPMScheduler|DDIMScheduler|CLIPText\w+|CLIPTokenizer"
)
ROOT = Path(train_scoft_lora.__file__).parent
FREE = [
    *(ROOT / name for name in ("scoft_losses.py", "prepare_ccub.py", "evaluate_scoft.py")),
    *ROOT.glob("train_scoft_lora*.py"),
    *(file for wing in ("train", "prepare", "evaluate") for file in sorted(ROOT.glob(f"scoft/{wing}/*.py"))),
]


def names_of_a_family(source: str) -> list[str]:
    """What stands in the code, not in its words, of diffusers' and transformers' classes of Stable Diffusion."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "name", None)]
        found += [name for name in names if isinstance(name, str) and OWN.fullmatch(name)]
    return found


@pytest.mark.parametrize("file", FREE, ids=lambda file: str(file.relative_to(ROOT)))
def test_doors_and_wings_name_no_class_of_a_family(file):
    """Another family is put into scoft/base_model/ without touching these."""
    assert names_of_a_family(file.read_text()) == []


def test_a_named_class_is_seen():
    assert names_of_a_family((ROOT / "scoft/base_model/stable_diffusion.py").read_text())
    assert names_of_a_family("def f():\n    from diffusers import DDIMScheduler") == ["DDIMScheduler"]
    assert names_of_a_family("import diffusers\ndiffusers.UNet2DConditionModel()") == ["UNet2DConditionModel"]
    assert names_of_a_family("StableDiffusion.load('a StableDiffusionPipeline')\nStableDiffusionXL.load()") == []
    assert names_of_a_family("diffusers.StableDiffusionXLPipeline()") == ["StableDiffusionXLPipeline"]


@pytest.mark.parametrize("named", ["StableDiffusionImg2ImgPipeline", ["pipeline", "Mine"]])
def test_a_base_that_says_another_class_trains_and_draws_by_its_parts(tiny_pipeline, tmp_path, named):
    """As one that was saved by a pipeline of another task, or by one of somebody's own."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": named}))
    train(folder)
    place = {"commit": None, "variant": None, "cache_dir": None}
    assert type(drawing_pipeline(str(folder), **place, **CPU)) is StableDiffusionPipeline


def test_a_folder_of_parts_draws_nothing(tiny_pipeline, tmp_path):
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
    (folder / "model_index.json").unlink()
    with pytest.raises(DataError, match="a folder without model_index.json is no whole pipeline"):
        drawing_pipeline(str(folder), commit=None, variant=None, cache_dir=None, **CPU)


def test_prepare_draws_no_negatives_by_stable_diffusion_xl(tiny_depth, tiny_controlnet, tiny_pipeline_xl):
    message = "^--pretrained_model_name_or_path .* is a StableDiffusionXLPipeline; what is needed is"
    with pytest.raises(DataError, match=message):
        negatives_of(tiny_depth, tiny_controlnet, tiny_pipeline_xl).check(SimpleNamespace(does=bool, cache_dir=None))


def test_latents_of_another_scale_have_another_key(tiny_pipeline):
    """They are kept scaled, and the weights do not say how."""
    options = dict.fromkeys(("revision", "variant", "cache_dir", "prediction_type"))
    model = StableDiffusion.load(str(tiny_pipeline), **options, dtype=torch.float32)
    before = model.photographs_key()
    model.vae.register_to_config(scaling_factor=0.5)
    assert model.photographs_key() != before

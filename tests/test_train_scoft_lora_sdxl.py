"""The trainer of Stable Diffusion XL: what differs from Stable Diffusion's, by its command line on tiny models."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import evaluate_scoft
import tiny
import train_scoft_lora
import train_scoft_lora_sdxl
from scoft.base_model import StableDiffusionXL, check_whole, load_into_pipeline, read_lora
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.distances import load_distance
from scoft.errors import DataError
from scoft.images import ImageTransform
from scoft.lora_folder import LORA_FILE
from scoft.train import processes
from scoft.train.objective import ImageLosses, Objective, training_losses
from training import examples_of, first_lora, lora, metrics, relative_difference, runner, short_run, words


UNSAID = dict.fromkeys(("revision", "variant", "cache_dir", "prediction_type"))
KOHYA = "scoft-veridia-kohya.safetensors"


def load(folder: Path, *, dtype: torch.dtype = torch.float32, **more) -> StableDiffusionXL:
    return StableDiffusionXL.load(str(folder), **UNSAID, dtype=dtype, **more)


@pytest.fixture
def flags(tiny_pipeline_xl, tiny_ccub, tiny_clip_conv):
    return short_run(tiny_pipeline_xl, tiny_ccub, tiny_clip_conv)


@pytest.fixture
def train(flags, tmp_path):
    """train(name, **more flags) runs the script's main in this process and returns its output folder."""
    return runner(train_scoft_lora_sdxl, flags, tmp_path)


@pytest.fixture
def start(train) -> torch.Tensor:
    return first_lora(train)


# ---------------------------------------------------------------------------------------------------------------------
# Captions, sizes and crops
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [True, False])
def test_captions_are_those_of_the_pipeline(tmp_path, zeros):
    """Tokens of both encoders and the second one's pooled caption; guidance leads away from what a stock pipeline's
    does: zeros, or the empty caption's embedding.
    """
    from diffusers import StableDiffusionXLPipeline

    folder = tiny.build_pipeline_xl(tmp_path, zeros=zeros)
    pipe, model = StableDiffusionXLPipeline.from_pretrained(folder), load(folder)
    c, null = model.encode_captions(["a red house, in Veridia", ""], device=torch.device("cpu"))
    text, null_text, pooled, null_pooled = pipe.encode_prompt("a red house, in Veridia")
    assert c.shape == model.caption_shape == (78, 80)
    for ours, theirs in ((c[:-1], text), (null[:-1], null_text), (c[-1, :24], pooled), (null[-1, :24], null_pooled)):
        torch.testing.assert_close(ours, theirs[0], rtol=1e-6, atol=1e-6)
    assert bool(null.any()) != zeros and not c[-1, 24:].any()


def test_predictions_are_the_unets(tiny_pipeline_xl):
    """`predict` is the UNet's for these captions, sizes and crops, whose numbers reach it in diffusers' order."""
    model = load(tiny_pipeline_xl)
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([999, 3])
    captions = model.encode_captions(["a red house", "a blue house"], device=torch.device("cpu"))
    frame = torch.tensor([[30.0, 24, 2, 0], [24, 44, 0, 7]])
    told = {
        "text_embeds": captions[:, -1, :24],
        "time_ids": torch.tensor([[30.0, 24, 2, 0, 16, 16], [24, 44, 0, 7, 16, 16]]),
    }
    expected = model.unet(z, t, captions[:, :-1], added_cond_kwargs=told).sample
    assert torch.equal(model.predict(z, t, model.framed(captions, frame)), expected)
    uncropped = torch.tensor([[16.0, 16, 0, 0]]).expand(2, -1)
    assert (model.predict(z, t, model.framed(captions, uncropped)) - expected).abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# One UNet graph against autograd through the whole chain
# ---------------------------------------------------------------------------------------------------------------------

T = [999, 400, 2]
STEPS, SCALE, LAMBDA, MARGIN = 4, 4.5, 0.7, 0.5
WEIGHTS = {"perceptual": 0.3, "contrastive": 0.7}
FRAMES = [[30.0, 24, 2, 0], [24, 44, 0, 7], [16, 16, 0, 0]]


@pytest.mark.parametrize("recorded_step", ["first", "last", "random"])
def test_image_losses_have_the_gradient_of_autograd_through_the_chain(recorded_step, tiny_pipeline_xl, tiny_clip_conv):
    """In float64, row by row, with guidance, and with each photograph's size and crop told in both branches."""
    model = load(tiny_pipeline_xl, dtype=torch.float64)
    model.vae.double()
    torch.manual_seed(0)
    model.add_lora(rank=2, alpha=2.0, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    parameters = [parameter for parameter in model.unet.double().parameters() if parameter.requires_grad]
    for parameter in parameters:  # of which half begin as zeros
        torch.nn.init.normal_(parameter, std=0.3)
    distance = load_distance("clip_conv", model_name_or_path=str(tiny_clip_conv), device="cpu", dtype=torch.float64)
    captions = ["a red house, in Veridia", "a blue house", "a house with a flat roof", ""]
    encoded = model.encode_captions(captions, device=torch.device("cpu")).double()
    frame, (*c, null) = torch.tensor(FRAMES), encoded
    features = distance.embed(torch.rand(9, 3, 16, 16, dtype=torch.float64) * 2 - 1).unflatten(0, (3, 3))
    batch = {
        "t": torch.tensor(T),
        "recorded_u": torch.tensor([0.1, 0.5, 0.9]),
        "z_0": torch.randn(3, 4, 8, 8, dtype=torch.float64),
        "eps": torch.randn(3, 4, 8, 8, dtype=torch.float64),
        "c_ccub": model.framed(torch.stack(c), frame),
        "c_null": model.framed(null.expand(3, -1, -1), frame),
        "f_pos": features[:, 0],
        "f_neg": features[:, 1:],
        "is_negative": torch.tensor([[True, True], [True, False], [True, True]]),
    }
    denoiser = model.denoiser(num_steps=STEPS, guidance_scale=SCALE, recorded_step=recorded_step)
    images = ImageLosses(distance=distance, denoiser=denoiser, negative_weight=LAMBDA, margin=MARGIN, every=1)
    objective = Objective(
        model=model, constants=None, weights=WEIGHTS, teacher="current", snr_gamma=None, images=images
    )
    loss, _ = training_losses(batch, objective)
    found = torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)])

    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0).double()
    total = 0
    for b, t in enumerate(T):
        steps = min(STEPS, t)
        path = [t - j * t // steps for j in range(steps)] + [-1]
        recorded = {"first": 0, "last": steps - 1, "random": int(batch["recorded_u"][b] * steps)}[recorded_step]
        text = torch.stack([c[b], null])
        told = {
            "text_embeds": text[:, -1, :24],
            "time_ids": torch.tensor([[*FRAMES[b], 16, 16]], dtype=torch.float64).expand(2, -1),
        }
        a = abar[t]
        z = a.sqrt() * batch["z_0"][b : b + 1] + (1 - a).sqrt() * batch["eps"][b : b + 1]
        for j, (now, then) in enumerate(itertools.pairwise(path)):
            at, to = abar[now], abar[then] if then >= 0 else torch.ones_like(a)
            both = model.unet(torch.cat([z, z]), now, text[:, :-1], added_cond_kwargs=told).sample
            cond, away = both[:1] if j == recorded else both[:1].detach(), both[1:].detach()
            eps = SCALE * cond - (SCALE - 1) * away
            z = to.sqrt() * (z - (1 - at).sqrt() * eps) / at.sqrt() + (1 - to).sqrt() * eps
        f_hat = distance.embed(model.vae.decode(z / 0.13025).sample)
        near = distance.compare(f_hat, batch["f_pos"][b : b + 1])
        far = distance.compare(f_hat[:, None], batch["f_neg"][b : b + 1])
        hinge = (near[:, None] - LAMBDA * far + MARGIN).clamp(min=0)[batch["is_negative"][b : b + 1]]
        total = total + (WEIGHTS["perceptual"] * near.sum() + WEIGHTS["contrastive"] * hinge.mean()) / len(T)
    expected = torch.cat([each.flatten() for each in torch.autograd.grad(total, parameters)])
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-8 * expected.norm()


# ---------------------------------------------------------------------------------------------------------------------
# The same run, however it is cut
# ---------------------------------------------------------------------------------------------------------------------

# See test_train_scoft_lora.py.
SMOOTH = {"adam_epsilon": 1e-3, "max_train_steps": 6}
AUDIBLE = {"perceptual_weight": 0.1, "contrastive_weight": 0.1, "margin": 0.5, "learning_rate": 1e-4}


def plain_finetune(model: Path, examples, dataset, *, start: Path, batch_size: int, steps: int):
    """An independently written LoRA fine-tune; yields the LoRA, as one vector, after every update."""
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = StableDiffusionXLPipeline.from_pretrained(model)
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    own = get_peft_model_state_dict(pipe.unet)
    for name, weight in load_file(start).items():
        own[name.removeprefix("unet.")].copy_(weight)
    trainable = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, eps=1e-3, weight_decay=1e-2)
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    for step in range(steps):
        loss = 0
        for example in (examples[step * batch_size + i] for i in range(batch_size)):
            row = int(example["row"])
            with torch.no_grad():
                text, _, pooled, _ = pipe.encode_prompt(dataset.captions[row][0])
                width, height = dataset.image(row).size
                scale = 16 / min(width, height)
                down, across = round((int(height * scale) - 16) / 2), round((int(width * scale) - 16) / 2)
                posterior = pipe.vae.encode(example["photograph"][None]).latent_dist
                z_0 = (posterior.mean + posterior.std * example["posterior_noise"]) * pipe.vae.config.scaling_factor
            a = abar[example["t"]].float()
            noisy = a.sqrt() * z_0 + (1 - a).sqrt() * example["eps"]
            time_ids = torch.tensor([[height, width, down, across, 16, 16]], dtype=torch.float32)
            told = {"text_embeds": pooled, "time_ids": time_ids}
            prediction = pipe.unet(noisy, example["t"], text, added_cond_kwargs=told).sample
            loss = loss + torch.nn.functional.mse_loss(prediction[0], example["eps"]) / batch_size
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        own = get_peft_model_state_dict(pipe.unet)
        yield torch.cat([own[name].detach().double().flatten() for name in sorted(own)])


def test_finetune_is_a_plain_lora_finetune_update_by_update(train, start, tiny_pipeline_xl, tiny_ccub):
    """Every update's LoRA is that of an independent loop fed the same order, noise and timesteps."""
    run = train(**SMOOTH, method="finetune", learning_rate=1e-2, train_batch_size=2, checkpointing_steps=1)
    needs = {"needs_blip": False, "needs_negatives": False}
    dataset = read_dataset(find_dataset(str(tiny_ccub), culture="veridia"), culture="veridia", **needs)
    examples = examples_of(dataset, entries_per_update=2)
    known = {"start": run.parent / "start" / LORA_FILE, "batch_size": 2, "steps": SMOOTH["max_train_steps"]}
    for step, expected in enumerate(plain_finetune(tiny_pipeline_xl, examples, dataset, **known), start=1):
        ours = lora(run / f"checkpoint-{step}")
        assert (ours - expected).norm() <= 1e-5 * (expected - start).norm(), f"update {step}"
    assert step == SMOOTH["max_train_steps"]


def test_a_size_told_wrong_is_noticed(train, start, monkeypatch):
    """The tolerance of the comparison above is tight enough that a pixel of one photograph's crop fails it."""
    more = SMOOTH | {"method": "finetune", "learning_rate": 1e-2, "train_batch_size": 2}
    right, frame = train("right", **more), ImageTransform.frame

    def off_by_one(self, size, **place):
        height, width, top, left = frame(self, size, **place)
        return height, width, top + (size == (24, 32)), left

    monkeypatch.setattr(ImageTransform, "frame", off_by_one)
    assert relative_difference(right, train("wrong", **more), start) > 1e-5


def test_batch_accumulation_and_caches_do_not_change_the_run(train, start):
    """One batch of 4, 4 batches of 1 and no caches give one LoRA, with all terms."""
    more = SMOOTH | AUDIBLE
    whole = train("whole", **more, train_batch_size=4)
    accumulated = train("accumulated", **more, gradient_accumulation_steps=4)
    uncached = train("uncached", **more, train_batch_size=4, text_cache_limit=0, **{"no-cache_latents": True})
    assert relative_difference(whole, accumulated, start) <= 1e-5
    assert relative_difference(whole, uncached, start) <= 1e-5


def test_two_processes_are_one_batch(train, flags, start, tmp_path):
    """Two processes with batches of 2 give the LoRA of one with a batch of 4, by the true launcher."""
    more = SMOOTH | AUDIBLE
    whole = train("whole", **more, train_batch_size=4)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    argv = words(flags | more | {"output_dir": tmp_path / "two", "train_batch_size": 2})
    done = subprocess.run(
        [*launch, "--main_process_port", "0", "train_scoft_lora_sdxl.py", *argv],
        cwd=Path(train_scoft_lora_sdxl.__file__).parent,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr
    assert relative_difference(whole, tmp_path / "two", start) <= 1e-5


def test_a_compiled_unet_gives_the_same_run(train, start, monkeypatch):
    """--compile traces as few graphs as of Stable Diffusion, though more goes into the UNet."""
    compile_in_place = torch.nn.Module.compile
    monkeypatch.setattr(  # see test_train_scoft_lora.py
        torch.nn.Module, "compile", lambda module, **kwargs: compile_in_place(module, backend="eager", **kwargs)
    )
    monkeypatch.setattr(processes, "check_compiler", lambda device: None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    more = SMOOTH | AUDIBLE | {"max_train_steps": 2, "train_batch_size": 2}
    assert relative_difference(train("plain", **more), train("compiled", **more, compile=True), start) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    torch._dynamo.reset()


def test_a_resumed_run_is_the_straight_one(train):
    """Bit for bit, with crops and flips drawn anew."""
    more = {"max_train_steps": 6, "no-center_crop": True, "random_flip": True, "learning_rate": 1e-2}
    straight = train("straight", **more)
    train("resumed", **more | {"max_train_steps": 3})
    resumed = train("resumed", **more, resume_from_checkpoint="latest")
    assert torch.equal(lora(straight), lora(resumed))
    lines = [[line | {"seconds": 0} for line in metrics(run)] for run in (straight, resumed)]
    assert lines[0] == lines[1] and len(lines[0]) == 6


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_all_terms_train_with_less_memory_too(train, precision):
    """Every term is finite, with activations computed anew and in 16 bits."""
    run = train(mixed_precision=precision, gradient_checkpointing=True, snr_gamma=5, recorded_step="random")
    assert {"loss/ldm", "loss/memorization", "loss/perceptual", "loss/contrastive"} <= metrics(run)[-1].keys()
    assert np.isfinite([value for line in metrics(run) for value in line.values()]).all()


# ---------------------------------------------------------------------------------------------------------------------
# What comes out
# ---------------------------------------------------------------------------------------------------------------------


def draw(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    more = {"generator": torch.Generator().manual_seed(0), "height": 16, "width": 16, "output_type": "np"}
    return pipe("a red house, in Veridia", num_inference_steps=4, **more).images


@pytest.mark.parametrize("alpha", [4, 11])
def test_saved_lora_draws_what_the_trained_unet_draws(train, monkeypatch, tiny_pipeline_xl, alpha):
    """Loaded by a stock pipeline, folder, checkpoint and kohya file hold all tensors and give the UNet's picture."""
    from diffusers import StableDiffusionXLPipeline

    trained, save_lora = [], StableDiffusionXL.save_lora

    def spy(model, folder, **kwargs):
        trained.append(model.unet)
        save_lora(model, folder, **kwargs)

    monkeypatch.setattr(StableDiffusionXL, "save_lora", spy)
    run = train(lora_alpha=alpha, learning_rate=0.05)
    base = draw(StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_xl))
    expected = draw(StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_xl, unet=trained[-1].eval()))
    assert np.abs(expected - base).max() > 1e-2
    adapted = sum("lora_" in name for name, _ in trained[-1].named_parameters())
    for folder, name in ((run, None), (run / "checkpoint-4", LORA_FILE), (run, KOHYA)):
        pipe = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_xl)
        pipe.load_lora_weights(folder, weight_name=name)
        check_whole(pipe.unet, folder / (name or LORA_FILE), adapter="default_0")
        assert len(read_lora(folder / (name or LORA_FILE))) == adapted > 0
        assert np.abs(draw(pipe) - expected).max() <= 1e-5, name
    with safe_open(run / KOHYA, framework="pt") as file:  # by this A1111 lists it
        assert file.metadata()["ss_base_model_version"].startswith("sdxl_")
    alphas = {float(weight) for name, weight in load_file(run / KOHYA).items() if name.endswith(".alpha")}
    assert alphas == {alpha}


def test_validation_draws_what_a_stock_pipeline_draws(train, tmp_path, tiny_pipeline_xl):
    """The judge gets a stock pipeline's pictures, base and LoRA: its guidance, sizes and crops are those of here."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    judge = tmp_path / "judge.py"
    judge.write_text(
        "import numpy\ncalls = []\n\ndef keep(images, prompts):\n    calls.append(prompts)\n"
        f"    numpy.save({str(tmp_path)!r} + f'/{{len(calls)}}.npy', numpy.stack(images))\n    return {{'n': 1}}\n"
    )
    more = {"validation_prompt": "a red house, in Veridia", "num_validation_images": 2, "seed": 3}
    more |= {"validation_inference_steps": 3, "validation_guidance_scale": 3, "validation_judge": f"{judge}:keep"}
    run = train(learning_rate=0.05, **more)
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_xl)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    kept, size = [], {"num_inference_steps": 3, "guidance_scale": 3, "height": 16, "width": 16}
    for call in (1, 2):
        if call == 2:
            pipe.load_lora_weights(run)
        seeds = (torch.Generator().manual_seed(seed) for seed in (3, 4))
        expected = [pipe("a red house, in Veridia", generator=seed, **size).images[0] for seed in seeds]
        kept.append(np.load(tmp_path / f"{call}.npy").astype(int))
        assert np.abs(kept[-1] - np.stack(expected)).max() <= 1
    assert np.abs(kept[0] - kept[1]).max() > 10


def test_the_page_says_what_loads_it(train):
    """Class, tags and title are the family's; the record holds the class."""
    run = train(max_train_steps=1)
    card = (run / "README.md").read_text()
    assert (
        "pipe = StableDiffusionXLPipeline.from_pretrained(" in card
        and "# Veridia: a SCoFT LoRA for Stable Diffusion XL" in card
    )
    assert re.search(r"- stable-diffusion-xl\n- stable-diffusion-xl-diffusers\n", card)
    record = json.loads((run / "training_args.json").read_text())
    assert record["resolved"]["pipeline"] == "StableDiffusionXLPipeline"


def test_it_is_evaluated_as_any_lora(train, flags, tmp_path, tiny_pipeline_xl):
    """generate draws with the base model that the record names, and a row's picture is a stock pipeline's."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    run, prompts = train(method="finetune", learning_rate=0.05), tmp_path / "prompts.txt"
    prompts.write_text("a house, in {}\n")
    argv = f"generate {tmp_path / 'eval'} --dataset {flags['dataset']} --culture veridia --lora m={run} --sets prompts"
    evaluate_scoft.main([*argv.split(), "--prompts", str(prompts), "--num_images", "1", "--num_inference_steps", "2"])
    rows = [json.loads(line) for line in (tmp_path / "eval/manifest.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == ["base", "m"] and {row["resolution"] for row in rows} == {16}
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline_xl)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    load_into_pipeline(pipe, run / LORA_FILE)
    generator = torch.Generator().manual_seed(rows[1]["seed"])
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": rows[1]["guidance"]}
    expected = np.asarray(pipe(rows[1]["prompt"], generator=generator, **size).images[0]).astype(int)
    drawn = [np.asarray(Image.open(tmp_path / "eval" / row["file"])).astype(int) for row in rows]
    assert np.abs(drawn[1] - expected).max() <= 1 and np.abs(drawn[0] - drawn[1]).max() > 3


def test_a_command_line_for_diffusers_script_runs(tmp_path, tiny_pipeline_xl, tiny_ccub):
    """The flags of diffusers' train_text_to_image_lora_sdxl.py work with --method finetune, without a culture."""
    train_scoft_lora_sdxl.main(
        f"""--method finetune --pretrained_model_name_or_path {tiny_pipeline_xl}
        --pretrained_vae_model_name_or_path {tiny_pipeline_xl / "vae"} --train_data_dir {tiny_ccub}
        --image_column image --caption_column text --num_validation_images 1 --validation_epochs 1 --seed 3
        --resolution 16 --center_crop --random_flip --train_batch_size 2 --num_train_epochs 1
        --checkpointing_steps 500 --checkpoints_total_limit 1 --gradient_accumulation_steps 2 --gradient_checkpointing
        --learning_rate 1e-4 --lr_scheduler cosine --lr_warmup_steps 0 --snr_gamma 5 --allow_tf32
        --dataloader_num_workers 0 --max_grad_norm 1 --prediction_type epsilon --report_to tensorboard
        --noise_offset 0.1 --rank 2 --image_interpolation_mode bilinear --output_dir {tmp_path / "out"}""".split()
        + ["--validation_prompt", "a red house"]
    )
    assert (tmp_path / "out" / LORA_FILE).exists() and (tmp_path / "out/images/before_after.png").exists()
    assert len(metrics(tmp_path / "out")) == 2  # 6 rows, 4 an update


def test_the_default_base_model_and_resolution():
    args = train_scoft_lora_sdxl.parse_args(["--dataset", "d", "--culture", "c"])
    assert args.pretrained_model_name_or_path == "stabilityai/stable-diffusion-xl-base-1.0" and args.resolution == 1024


def test_but_for_its_own_flags_it_has_those_of_the_other_trainer():
    args = [
        door.parse_args(["--dataset", "d", "--culture", "c"]) for door in (train_scoft_lora, train_scoft_lora_sdxl)
    ]
    assert vars(args[1]).keys() - vars(args[0]).keys() == {"pretrained_vae_model_name_or_path"}
    assert vars(args[0]).keys() <= vars(args[1]).keys()


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["tiny_pipeline", "tiny_pipeline_xl"])
def test_a_base_of_the_wrong_family_names_the_right_door(request, flags, tmp_path, base):
    """Before any of its models is loaded."""
    folder = shutil.copytree(request.getfixturevalue(base), tmp_path / "base")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    right, wrong = train_scoft_lora, train_scoft_lora_sdxl
    if base == "tiny_pipeline_xl":
        right, wrong = wrong, right
    argv = words(flags | {"pretrained_model_name_or_path": folder, "output_dir": tmp_path / "run"})
    message = f"^pretrained_model_name_or_path {folder} is a \\w+, for which LoRAs are trained by {right.__name__}.py;"
    with pytest.raises(DataError, match=message):
        wrong.main(argv)


def changed(folder: Path, base: Path, file: str, **change) -> Path:
    """A copy of a base model with another configuration."""
    config = shutil.copytree(base, folder) / file
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    return folder


def test_fp16_with_its_own_autoencoder_is_refused(tiny_pipeline_xl, tmp_path):
    """Which its configuration says to overflow; another one given in its place goes."""
    with pytest.raises(
        DataError, match="^mixed_precision fp16 .*bf16, .*pretrained_vae_model_name_or_path madebyollin"
    ):
        load(tiny_pipeline_xl, dtype=torch.float16)
    made_for_it = changed(tmp_path / "made", tiny_pipeline_xl, "vae/config.json", force_upcast=False)
    model = load(tiny_pipeline_xl, dtype=torch.float16, vae=str(made_for_it / "vae"))
    assert model.unet.dtype is torch.float16 and model.vae.dtype is torch.float32


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "shifted by a mean"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "epsilon or v_prediction; .* 'sample'"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
    ],
)
def test_a_base_model_of_another_kind_is_named(tiny_pipeline_xl, tmp_path, file, change, message):
    with pytest.raises(DataError, match=message):
        load(changed(tmp_path / "base", tiny_pipeline_xl, file, **change))


def test_a_base_distilled_to_draw_without_guidance_is_refused(tiny_pipeline_xl, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = changed(tmp_path / "base", tiny_pipeline_xl, "unet/config.json", time_cond_proj_dim=8)
    UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")).save_pretrained(
        folder / "unet"
    )
    with pytest.raises(DataError, match="distilled to draw without guidance.* Train on the base model"):
        load(folder)


def test_a_lacking_part_is_named(tiny_pipeline_xl, tmp_path):
    """A weight of the second text encoder, and an autoencoder of one's own that is not there."""
    folder = shutil.copytree(tiny_pipeline_xl, tmp_path / "base")
    file = folder / "text_encoder_2/model.safetensors"
    weights = load_file(file)
    del weights["text_projection.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        DataError, match=f"^pretrained_model_name_or_path {folder} .*text_projection.weight is missing"
    ):
        load(folder)
    with pytest.raises(DataError, match="^pretrained_vae_model_name_or_path .*nowhere cannot be loaded"):
        load(tiny_pipeline_xl, vae=str(tmp_path / "nowhere"))

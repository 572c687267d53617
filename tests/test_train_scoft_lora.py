"""The trainer: its true command line on tiny real models, against independent oracles."""

import argparse
import contextlib
import errno
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import scoft.files
import train_scoft_lora
from pocket import world
from scoft import dataset_source
from scoft.base_model import StableDiffusion, check_whole
from scoft.dataset import read_dataset
from scoft.dataset_source import find_dataset
from scoft.errors import DataError
from scoft.images import ImageTransform
from scoft.lora_folder import LORA_FILE as LORA
from scoft.lora_folder import lora_name, lora_sha256
from scoft.train import checkpoints, processes
from scoft.train.build import build_dataset
from scoft.train.checkpoints import check_seal
from scoft.train.constants import Constants, ImageFeatures
from scoft.train.examples import TrainingExamples
from scoft.train.objective import Objective
from scoft.train.terms import DEFAULT_WEIGHTS, METHODS
from scoft.train.validation import Validation, validation_prompts
from training import first_lora, lora, metrics, relative_difference, runner, short_run, words


ROOT = Path(train_scoft_lora.__file__).parent


@pytest.fixture
def flags(tiny_pipeline, tiny_ccub, tiny_clip_conv):
    return short_run(tiny_pipeline, tiny_ccub, tiny_clip_conv)


@pytest.fixture
def train(flags, tmp_path):
    """train(name, **more flags) runs the script's main in this process and returns its output folder."""
    return runner(train_scoft_lora, flags, tmp_path)


@pytest.fixture
def start(train) -> torch.Tensor:
    return first_lora(train)


# ---------------------------------------------------------------------------------------------------------------------
# The same run, however it is cut
# ---------------------------------------------------------------------------------------------------------------------

# AdamW divides by the gradient's own size, so rounding in a near-zero gradient would become a whole step; a large
# epsilon keeps the update proportional to the gradient, and a difference of 1e-5 means what it says.
SMOOTH = {
    "finetune": {"method": "finetune", "adam_epsilon": 1e-3, "learning_rate": 1e-2, "max_train_steps": 10},
    "mpc": {"method": "mpc", "adam_epsilon": 1e-3, "learning_rate": 1e-4, "max_train_steps": 10},
}
# Loud enough that 1 % of them shows, and quiet enough that a ReLU of the random encoder that flips on the rounding of
# a convolution, which the batch size changes, does not.
AUDIBLE_IMAGES = {"perceptual_weight": 0.1, "contrastive_weight": 0.1, "margin": 0.5}


def plain_finetune(
    model: Path, examples, captions: list[str], *, start: Path, batch_size: int, steps: int, lr: float, epsilon: float
):
    """An independently written LoRA fine-tune; yields the LoRA, as one vector, after every update."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    own = get_peft_model_state_dict(pipe.unet)
    for name, weight in load_file(start).items():
        own[name.removeprefix("unet.")].copy_(weight)
    trainable = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, eps=epsilon, weight_decay=1e-2)
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    for step in range(steps):
        batch = [examples[step * batch_size + i] for i in range(batch_size)]
        loss = 0
        for example in batch:
            with torch.no_grad():
                posterior = pipe.vae.encode(example["photograph"][None]).latent_dist
                z_0 = (posterior.mean + posterior.std * example["posterior_noise"]) * pipe.vae.config.scaling_factor
                ids = pipe.tokenizer(
                    captions[example["caption"]], padding="max_length", truncation=True, return_tensors="pt"
                )
                text = pipe.text_encoder(ids.input_ids).last_hidden_state
            a = abar[example["t"]].float()
            noisy = a.sqrt() * z_0 + (1 - a).sqrt() * example["eps"]
            prediction = pipe.unet(noisy, example["t"], text).sample
            loss = loss + torch.nn.functional.mse_loss(prediction[0], example["eps"]) / batch_size
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        own = get_peft_model_state_dict(pipe.unet)
        yield torch.cat([own[name].detach().double().flatten() for name in sorted(own)])


def test_finetune_is_a_plain_lora_finetune_update_by_update(train, start, tiny_pipeline, tiny_ccub):
    """With caches off, every update's LoRA is that of an independent loop fed the same order, noise and timesteps."""
    run = train(
        **SMOOTH["finetune"], cache_latents=False, **{"no-cache_latents": True}, train_batch_size=4,
        checkpointing_steps=1,
    )  # fmt: skip
    dataset = read_dataset(
        find_dataset(str(tiny_ccub), culture="veridia"),
        culture="veridia",
        needs_blip=False,
        needs_negatives=False,
    )
    examples = TrainingExamples(
        dataset,
        transform=ImageTransform(16),
        caption_index={caption: i for i, (caption,) in enumerate(dataset.captions)},
        seed=0,
        entries_per_update=4,
        latent_shape=(4, 8, 8),
        num_train_timesteps=1000,
        blip_captions_per_step=1,
        random_flip=False,
        random_crop=False,
        noise_offset=0,
        load_photograph=True,
        load_negatives_every=None,
    )
    oracle = plain_finetune(
        tiny_pipeline,
        examples,
        [caption for (caption,) in dataset.captions],
        start=run.parent / "start" / LORA,
        batch_size=4,
        steps=10,
        lr=1e-2,
        epsilon=1e-3,
    )
    for step, expected in enumerate(oracle, start=1):
        ours = lora(run / f"checkpoint-{step}")
        assert (ours - expected).norm() <= 1e-5 * (expected - start).norm(), f"update {step}"
    assert step == 10


@pytest.mark.parametrize("method", SMOOTH)
def test_batch_accumulation_and_caches_do_not_change_the_run(train, start, method):
    """One batch of 4, 4 batches of 1 and no caches give one LoRA over 10 updates of 6 rows (6.7 epochs)."""
    more = SMOOTH[method] | (AUDIBLE_IMAGES if method == "mpc" else {})
    whole = train("whole", **more, train_batch_size=4)
    accumulated = train("accumulated", **more, train_batch_size=1, gradient_accumulation_steps=4)
    uncached = train("uncached", **more, train_batch_size=4, **{"no-cache_latents": True})
    assert relative_difference(whole, accumulated, start) <= 1e-5
    assert relative_difference(whole, uncached, start) <= 1e-5


@pytest.mark.parametrize("method", SMOOTH)
def test_two_processes_are_one_batch(train, flags, start, tmp_path, method):
    """Two processes with batches of 2 give the LoRA of one with a batch of 4, by the true launcher."""
    more = SMOOTH[method] | (AUDIBLE_IMAGES if method == "mpc" else {})
    whole = train("whole", **more, train_batch_size=4)
    two = tmp_path / "two"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0"]  # any free one
    argv = words(flags | more | {"output_dir": two, "train_batch_size": 2})
    env = one_thread() | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*launch, "train_scoft_lora.py", *argv], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert relative_difference(whole, two, start) <= 1e-5
    assert [line["step"] for line in metrics(two)] == list(range(1, 11))
    for a, b in zip(metrics(whole), metrics(two)):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "planted",
    [
        {"ldm_weight": 0.707},
        {"memorization_weight": 0.303},
        {"perceptual_weight": 0.101},
        {"contrastive_weight": 0.101},
        {"denoising_guidance_scale": 4.545},
    ],
    ids=lambda planted: next(iter(planted)),
)
def test_one_percent_is_noticed(train, start, planted):
    """The tolerance of the comparisons above is tight enough that a 1 % error in any one part fails them."""
    more = SMOOTH["mpc"] | AUDIBLE_IMAGES | {"train_batch_size": 4}
    assert relative_difference(train("right", **more), train("wrong", **more | planted), start) > 1e-5


def test_one_percent_is_noticed_in_a_plain_finetune(train, start):
    """The same for L_LDM alone."""
    more = SMOOTH["finetune"] | {"train_batch_size": 4}
    assert relative_difference(train("right", **more), train("wrong", **more, ldm_weight=1.01), start) > 1e-5


def test_workers_change_nothing(train):
    """Loading in two worker processes gives the same bits as loading in the main one."""
    more = {"method": "mpc", "no-center_crop": True, "random_flip": True, "train_batch_size": 2}
    assert torch.equal(lora(train("none", **more)), lora(train("two", **more, dataloader_num_workers=2)))


def test_seeds_differ_and_repeat(train):
    """The same seed gives the same bits again, another seed another LoRA."""
    first, again, other = (train(name, seed=seed) for name, seed in (("first", 1), ("again", 1), ("other", 2)))
    assert torch.equal(lora(first), lora(again))
    assert not torch.equal(lora(first), lora(other))


def test_gradient_checkpointing_changes_nothing(train, start, monkeypatch):
    """Recomputing activations in UNet and VAE gives the same LoRA; both do recompute them."""
    import diffusers

    more = SMOOTH["mpc"] | AUDIBLE_IMAGES
    recomputed = set()
    for kind in (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL):

        def enable(model, original=kind.enable_gradient_checkpointing):
            def checkpoint(module, *args):
                recomputed.add(type(model).__name__)
                return torch.utils.checkpoint.checkpoint(module, *args, use_reentrant=False)

            original(model, checkpoint)

        monkeypatch.setattr(kind, "enable_gradient_checkpointing", enable)
    kept = train("kept", **more)
    assert not recomputed
    assert relative_difference(kept, train("again", **more, gradient_checkpointing=True), start) < 1e-6
    assert recomputed == {"UNet2DConditionModel", "AutoencoderKL"}


def test_a_compiled_unet_gives_the_same_run(train, start, monkeypatch):
    """--compile traces three graphs, however many naive captions a photograph has, and trains to the same LoRA."""
    compile_in_place = torch.nn.Module.compile
    monkeypatch.setattr(  # the tracing is ours to get right; generating code for it would take minutes here
        torch.nn.Module, "compile", lambda module, **kwargs: compile_in_place(module, backend="eager", **kwargs)
    )
    monkeypatch.setattr(processes, "check_compiler", lambda device: None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    more = SMOOTH["mpc"] | AUDIBLE_IMAGES | {"max_train_steps": 4, "gradient_accumulation_steps": 2}
    more |= {"blip_captions_per_step": "all", "train_batch_size": 2}
    counts, teach = set(), Objective.teach

    def ragged(*args, **more):
        dataset = build_dataset(*args, **more)
        dataset.blip_captions[::2] = [captions[:1] for captions in dataset.blip_captions[::2]]
        return dataset

    def counted(objective, batch, *noised):
        counts.add(len(batch["blip_rows"]))
        return teach(objective, batch, *noised)

    monkeypatch.setattr("scoft.train.run.build_dataset", ragged)
    monkeypatch.setattr(Objective, "teach", counted)
    plain = train("plain", **more)
    assert len(counts) > 1 and not torch._dynamo.utils.counters["stats"]
    compiled = train("compiled", **more, compile=True, num_validation_images=1, validation_inference_steps=1)
    assert relative_difference(plain, compiled, start) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3  # captions, guidance's pair, with gradient
    torch._dynamo.reset()


def test_without_a_compiler_it_says_so_before_any_model_is_loaded(train, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/compiler"))
    monkeypatch.setattr(StableDiffusion, "load", None)
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True), pytest.raises(DataError) as caught:
        train(compile=True)
    assert re.search("--compile: .*cpu.*/no/such/compiler.* leave --compile out", str(caught.value))


@pytest.mark.parametrize("has_none", ["anywhere", "GPU"])
def test_a_device_without_bf16_is_named(train, monkeypatch, has_none):
    if has_none == "anywhere":
        monkeypatch.setattr("accelerate.utils.is_bf16_available", lambda: False)
        named = "this device"
    else:  # of some GPUs torch says that they have it, and means that it emulates it
        monkeypatch.setattr("accelerate.Accelerator.device", torch.device("cuda"))
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Old GPU")
        named = "Old GPU"
    with pytest.raises(DataError, match=f"--mixed_precision bf16: {named} .* --mixed_precision fp16"):
        train(mixed_precision="bf16")


def test_precomputed_files_serve_a_second_run_and_are_thrown_away_when_stale(train, tmp_path, monkeypatch, tiny_ccub):
    """A second run reads latents, embeddings and features from files; changed photographs are noticed."""
    more = {"precompute_dir": tmp_path / "cache", "random_flip": True}
    first = train("first", **more)
    assert {file.name for file in (tmp_path / "cache").glob("[!.]*")} == {
        "features.safetensors", "latents.safetensors", "text-0000.safetensors"
    }  # fmt: skip

    def forbidden(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "encode_photographs", forbidden)
        patch.setattr(StableDiffusion, "encode_captions", forbidden)
        patch.setattr(ImageFeatures, "embed", forbidden)
        assert torch.equal(lora(first), lora(train("second", **more)))

    changed = shutil.copytree(tiny_ccub, tmp_path / "changed")
    for file in (changed / "train/images").iterdir():
        Image.new("RGB", (24, 24), "red").save(file)
    assert torch.equal(
        lora(train("stale", **more, dataset=changed)), lora(train("fresh", random_flip=True, dataset=changed))
    )
    words = rewrite(tiny_ccub, tmp_path / "words", lambda row: row | {"text": row["text"].replace("house", "hut")})
    assert torch.equal(
        lora(train("old words", **more, dataset=words)), lora(train("new words", random_flip=True, dataset=words))
    )


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_text_in_files_trains_the_same_lora(train, caplog, precision):
    """Bit for bit, with pictures, whatever lies on the device."""
    more = {"mixed_precision": precision, "blip_captions_per_step": "all", "train_batch_size": 2}
    more |= {"num_validation_images": 1, "validation_inference_steps": 1, "no-remember": True}
    on_device = train("on_device", **more)
    assert "text_cache_limit" not in caplog.text
    in_files = train("in_files", **more, text_cache_limit=0)
    assert "more than --text_cache_limit 0" in caplog.text
    assert torch.equal(lora(on_device), lora(in_files))
    pictures = [(run / "images/before_after.png").read_bytes() for run in (on_device, in_files)]
    assert pictures[0] == pictures[1]


# ---------------------------------------------------------------------------------------------------------------------
# Interruption
# ---------------------------------------------------------------------------------------------------------------------

# Runs the script and kills its own process, without warning, at a named moment.
KILLED_RUN = """
import os, pathlib, shutil, signal, sys
import torch, train_scoft_lora
from scoft.train import checkpoints, processes

moment, count, *argv = sys.argv[1:]
calls = 0

def kill_at(owner, name, half_done=lambda *a, **k: None):
    original = getattr(owner, name)
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(count):
            half_done(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)
    setattr(owner, name, wrapper)

if moment == "update":
    kill_at(torch.optim.AdamW, "step")
elif moment == "lora written":
    kill_at(torch, "save")
elif moment == "half a file":
    kill_at(checkpoints, "write_atomically", lambda path, content: path.write_text("half"))
elif moment == "before the rename":
    kill_at(pathlib.Path, "rename")
elif moment == "pruning":
    kill_at(shutil, "rmtree", lambda folder: (folder / "training_state.pt").unlink())
train_scoft_lora.main(argv)
"""


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_killed_at_any_moment_ends_bit_for_bit_as_undisturbed(flags, tmp_path):
    """Killed by SIGKILL in an update, five times inside checkpoint writing, and resumed, a run loses nothing."""
    common = {"max_train_steps": 12, "checkpointing_steps": 3, "checkpoints_total_limit": 2, "logging_steps": 4}
    # The second number counts from the resumption; rmtree first removes what the kill before the rename left. Of the
    # files of a checkpoint the second is its state, and the fourth the seal of the next one.
    moments = [("update", 2), ("lora written", 1), ("half a file", 1), ("half a file", 4), ("before the rename", 1)]
    moments += [("pruning", 2)]

    def run(name: str, moment: str = "never", count: int = 0, **more) -> int:
        argv = words(flags | common | more | {"output_dir": tmp_path / name})
        command = [sys.executable, "-c", KILLED_RUN, moment, str(count), *argv]
        return subprocess.run(command, cwd=ROOT, capture_output=True, env=one_thread()).returncode

    assert run("straight") == 0
    for moment, count in moments:
        assert run("killed", moment, count, resume_from_checkpoint="latest") == -signal.SIGKILL, moment
        for folder in checkpoints.checkpoints(tmp_path / "killed"):
            assert check_seal(folder) == int(folder.name.removeprefix("checkpoint-")), moment
    assert run("killed", resume_from_checkpoint="latest") == 0
    assert torch.equal(lora(tmp_path / "straight"), lora(tmp_path / "killed"))
    straight, killed = metrics(tmp_path / "straight"), metrics(tmp_path / "killed")
    for line in straight + killed:
        del line["seconds"]
    assert straight == killed
    assert not list((tmp_path / "killed").glob("partial-*"))


def test_ctrl_c_saves_a_checkpoint_and_the_resumed_run_is_the_straight_one(train, monkeypatch, caplog):
    """SIGINT in update 3 ends the run after that update, with a checkpoint and no results; resuming completes it."""
    straight = train("straight", max_train_steps=6)
    step, calls, handler = torch.optim.AdamW.step, [], signal.getsignal(signal.SIGINT)

    def interrupted_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted_step)
        stopped = train("stopped", max_train_steps=6)
    assert [folder.name for folder in checkpoints.checkpoints(stopped)] == ["checkpoint-3"]
    assert not (stopped / LORA).exists() and len(metrics(stopped)) == 3
    assert "--resume_from_checkpoint latest" in caplog.text
    assert signal.getsignal(signal.SIGINT) is handler
    train("stopped", max_train_steps=6, resume_from_checkpoint="latest")
    assert torch.equal(lora(straight), lora(stopped))


def test_resuming_a_finished_run_does_nothing_and_says_so(train, caplog):
    """A finished run's files stay as they are; a larger --max_train_steps continues it to the straight run's end."""
    run = train("run")

    def written() -> dict:
        files = [file for file in run.rglob("*") if file.is_file() and file.name != scoft.files.LOCK]
        return {file: file.stat().st_mtime_ns for file in files}

    before = written()
    train("run", resume_from_checkpoint="latest")
    assert "nothing to train" in caplog.text
    assert before == written()
    train("run", resume_from_checkpoint=f"{run}/checkpoint-4/", max_train_steps=7)
    assert torch.equal(lora(run), lora(train("straight", max_train_steps=7)))
    assert [line["step"] for line in metrics(run)] == list(range(1, 8))


def test_going_back_to_an_older_checkpoint_abandons_what_followed(train):
    """Resumed by name from update 2 of 4 and killed before its end, `latest` goes on on the new branch, to its end."""
    run = train("run", checkpointing_steps=1)
    save_lora = StableDiffusion.save_lora

    def killed(model, folder, **kwargs):
        if folder == run:
            raise KeyboardInterrupt
        save_lora(model, folder, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StableDiffusion, "save_lora", killed)
        with pytest.raises(KeyboardInterrupt):
            train("run", resume_from_checkpoint="checkpoint-2", max_train_steps=3, learning_rate=1e-2)
    assert [folder.name for folder in checkpoints.checkpoints(run)] == [f"checkpoint-{n}" for n in (1, 2, 3)]
    before = lora(run)
    train("run", resume_from_checkpoint="latest", max_train_steps=3, learning_rate=1e-2)
    assert torch.equal(lora(run), lora(run / "checkpoint-3")) and not torch.equal(lora(run), before)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]


@pytest.mark.parametrize("torn", [b'{"step": 5, "loss": 0.', b'{"step": 1', b"{", b'{"step": 5, "lo\xff'])
def test_a_line_torn_by_a_kill_is_dropped(train, torn):
    """A half-written last line of metrics.jsonl does not stop the resumed run, nor stay in the file."""
    run = train()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    train(resume_from_checkpoint="latest", max_train_steps=6)
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_links_in_the_place_of_checkpoints_give_way_alone(train, tmp_path):
    """What a link leads to stays, whether it stands for a leftover, an old checkpoint, or the one to be written."""
    run = train("run", max_train_steps=1)
    for name in ("partial-checkpoint-7", "checkpoint-0", "checkpoint-3"):
        (tmp_path / name / "kept").mkdir(parents=True)
        (run / name).symlink_to(tmp_path / name)
    (run / "checkpoint-2").symlink_to(tmp_path / "nowhere")
    resume = run / "checkpoint-1"
    train("run", max_train_steps=3, checkpointing_steps=1, checkpoints_total_limit=2, resume_from_checkpoint=resume)
    assert not any(path.is_symlink() for path in run.iterdir())
    assert [check_seal(folder) for folder in checkpoints.checkpoints(run)] == [2, 3]
    assert len(list(tmp_path.glob("*checkpoint-*/kept"))) == 3


def test_old_checkpoints_are_pruned_and_other_folders_left_alone(train, tmp_path):
    """--checkpoints_total_limit keeps the newest; a folder that only resembles a checkpoint is not touched."""
    run = train("run", max_train_steps=1)
    (run / "checkpoint_best").mkdir()
    (run / "checkpoint-x").mkdir()
    train("run", max_train_steps=5, checkpointing_steps=1, checkpoints_total_limit=2, resume_from_checkpoint="latest")
    assert sorted(path.name for path in run.glob("checkpoint*")) == [
        "checkpoint-4", "checkpoint-5", "checkpoint-x", "checkpoint_best"
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Precision, clipping, terms, flags
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said_by", ["flag", "launcher"])
@pytest.mark.parametrize("precision", ["no", "bf16", pytest.param("fp16", marks=pytest.mark.gpu)])
def test_lora_is_float32_and_moves_under_every_precision(train, monkeypatch, precision, said_by):
    """LoRA parameters are float32, lora_A moves too, the UNet takes the precision, whoever sets it."""
    seen = {}
    save_lora = StableDiffusion.save_lora

    def spy(model, folder, **kwargs):
        unet = model.unet
        seen["lora"] = {name: weight.dtype for name, weight in unet.named_parameters() if "lora" in name}
        seen["base"] = unet.conv_in.weight.dtype
        seen["A"] = next(w.detach().clone() for name, w in unet.named_parameters() if "lora_A" in name)
        return save_lora(model, folder, **kwargs)

    monkeypatch.setattr(StableDiffusion, "save_lora", spy)
    flag = {"mixed_precision": precision} if said_by == "flag" else {}
    if said_by == "launcher":
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    train("still", **flag, learning_rate=1e-30)
    still = seen["A"]
    run = train("run", **flag, num_validation_images=1, validation_inference_steps=2, validation_steps=2)
    assert set(seen["lora"].values()) == {torch.float32}
    assert seen["base"] == {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert (seen["A"] != still).float().mean() > 0.99
    assert all(math.isfinite(value) for line in metrics(run) for value in line.values())
    assert (run / "images" / "step-000002.png").exists()


def test_clipping_limits_the_gradient(train, monkeypatch):
    """--max_grad_norm bounds the norm that the optimizer sees; metrics.jsonl keeps the norm before clipping."""
    norms, step = [], torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.stack(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run = train(max_grad_norm=1e-3)
    assert norms == pytest.approx([1e-3] * 4, rel=1e-2)
    assert all(line["grad_norm"] > 1e-2 for line in metrics(run))


def test_gradient_norms_of_terms(train):
    """On the updates asked for, of each weighted term that is due; alone a term has the gradient's; nothing moves."""
    alone = metrics(train("alone", method="finetune", term_norms_every=2))
    norms = [line.get("grad_norm/ldm") for line in alone]
    assert norms[::2] == [None, None]
    assert norms[1::2] == pytest.approx([line["grad_norm"] for line in alone[1::2]], rel=1e-5)

    more = {"method": "mpc", "perceptual_every": 4, "gradient_accumulation_steps": 2} | AUDIBLE_IMAGES
    run = train("together", term_norms_every=2, **more)
    found = [{name for name in line if name.startswith("grad_norm/")} for line in metrics(run)]
    constant = {"grad_norm/ldm", "grad_norm/memorization"}
    assert found == [set(), constant, set(), {f"grad_norm/{term}" for term in METHODS["mpc"]}]
    assert all(line[name] > 0 for line, names in zip(metrics(run), found) for name in names)
    assert torch.equal(lora(run), lora(train("without", **more)))


@pytest.mark.parametrize("updates, told", [(19, False), (20, True)])
def test_an_idle_contrastive_loss_is_told(train, caplog, updates, told):
    """Where no negative is near enough for the hinge, on the last twenty updates that have L_C."""
    more = {"method": "mpc", "margin": 0, "negative_weight": 1e6, "perceptual_every": 1}
    run = train(max_train_steps=updates, num_denoising_steps=1, **more)
    assert all(line["loss/contrastive"] == line["active_negatives"] == 0 for line in metrics(run))
    assert bool(re.search("L_C was 0 on the last 20 .* --margin 0", caplog.text)) == told


@pytest.mark.parametrize("method", METHODS)
def test_every_term_asked_for_is_logged_and_finite(train, method):
    """metrics.jsonl has a line per update with the method's terms, those of images only where they are due."""
    run = train(method=method, logging_steps=3)
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        due = {f"loss/{term}" for term in METHODS[method]}
        if line["step"] % 2:
            due -= {"loss/perceptual", "loss/contrastive"}
        seen = {"active_negatives"} if "loss/contrastive" in due else set()
        assert line.keys() - due == {"step", "loss", "lr", "grad_norm", "seconds"} | seen
        assert all(math.isfinite(value) for value in line.values())
        weights = {"ldm": 0.7 if method != "finetune" else 1, "memorization": 0.3, "perceptual": 0.01}
        total = sum((weights | {"contrastive": 0.05})[name.removeprefix("loss/")] * line[name] for name in due)
        assert line["loss"] == pytest.approx(total, rel=1e-5)


CHANGES = {
    "memorization_teacher": "base",
    "recorded_step": "last",
    "recorded_step_scaling": "normalized",
    "num_denoising_steps": 5,
    "denoising_guidance_scale": 2,
    "blip_captions_per_step": "all",
    "negative_weight": 0.2,
    "margin": 0.1,
    "perceptual_every": 3,
    "snr_gamma": 5,
    "noise_offset": 0.1,
    "lora_alpha": 9,
    "lora_layers": "to_k,to_v",
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "random_flip": True,
    "no-center_crop": True,
    "max_train_samples": 3,
    "image_interpolation_mode": "nearest",
    "prediction_type": "v_prediction",
    "scale_lr": True,
    "adam_weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-2,
    "rank": 2,
}


def test_flags_change_the_run(train):
    """Each of the training flags reaches what it names: the LoRA or a logged loss differs from the default run's."""
    common = {"perceptual_weight": 1, "contrastive_weight": 1, "lr_scheduler": "constant_with_warmup"}
    common |= {"train_batch_size": 2, "learning_rate": 1e-2}
    default, idle = train("default", **common), []
    for flag, value in CHANGES.items():
        changed = train(flag, **common | {flag: value})
        same_shape = lora(changed).shape == lora(default).shape
        same_losses = [line["loss"] for line in metrics(changed)] == [line["loss"] for line in metrics(default)]
        if same_shape and same_losses and torch.equal(lora(changed), lora(default)):
            idle.append(flag)
    assert not idle


def test_v_prediction_with_zero_terminal_snr_trains(train, tiny_pipeline_v):
    """A v-prediction model with zero terminal SNR trains with all terms and min-SNR weights."""
    run = train(pretrained_model_name_or_path=tiny_pipeline_v, snr_gamma=5, max_train_steps=6, recorded_step="random")
    assert all(math.isfinite(value) for line in metrics(run) for value in line.values())


@pytest.mark.parametrize("distance", ["clip_conv", "dinov2", "blip2", "dreamsim"])
def test_every_distance_trains_two_steps(train, request, distance):
    """mpc runs with each of the four distances, their terms finite and positive."""
    model = request.getfixturevalue(f"tiny_{distance}")
    run = train(
        perceptual_distance=distance,
        perceptual_model_name_or_path=model,
        dreamsim_type="open_clip_vitb32",
        max_train_steps=2,
        perceptual_every=1,
        max_train_samples=2,
    )
    assert len(metrics(run)) == 2
    for line in metrics(run):
        assert 0 < line["loss/perceptual"] < 2 and 0 <= line["loss/contrastive"] < 2


# ---------------------------------------------------------------------------------------------------------------------
# What comes out
# ---------------------------------------------------------------------------------------------------------------------


def draw(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a red house, in Veridia", num_inference_steps=4, generator=generator, output_type="np").images


@pytest.mark.parametrize("alpha", [4, 11])
def test_saved_lora_draws_what_the_trained_unet_draws(train, monkeypatch, tiny_pipeline, alpha):
    """Loaded by a stock pipeline, the folder, a checkpoint and the kohya file give the trained UNet's picture."""
    from diffusers import StableDiffusionPipeline

    trained = []
    save_lora = StableDiffusion.save_lora

    def spy(model, folder, **kwargs):
        trained.append(model.unet)
        save_lora(model, folder, **kwargs)

    monkeypatch.setattr(StableDiffusion, "save_lora", spy)
    run = train(lora_alpha=alpha, learning_rate=0.05)
    base = draw(StableDiffusionPipeline.from_pretrained(tiny_pipeline))
    expected = draw(StableDiffusionPipeline.from_pretrained(tiny_pipeline, unet=trained[-1].eval()))
    assert np.abs(expected - base).max() > 1e-2
    for folder, name in ((run, None), (run / "checkpoint-4", LORA), (run, "scoft-veridia-kohya.safetensors")):
        pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
        pipe.load_lora_weights(folder, weight_name=name)
        check_whole(pipe.unet, folder / (name or LORA), adapter="default_0")
        assert np.abs(draw(pipe) - expected).max() <= 1e-5, name


def test_output_folder_keeps_its_contract(train, tmp_path):
    """The folder holds both LoRA files, a card without gaps, all arguments, metrics, and pictures base beside LoRA."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    judge = tmp_path / "judge.py"
    judge.write_text("def count(images, prompts):\n    return {'n': len(images), 'n_low': 1, 'n_high': 9}\n")
    prompts = ["a red house, in Veridia", "a blue house, in Veridia"]
    run = train(
        validation_prompts=prompts,
        num_validation_images=2,
        validation_inference_steps=2,
        validation_epochs=1,
        max_train_steps=8,
        validation_judge=f"{judge}:count",
        report_to="tensorboard",
    )
    assert {file.name for file in run.iterdir()} == {
        LORA, "scoft-veridia-kohya.safetensors", "README.md", "training_args.json", "metrics.jsonl", "images", "logs",
        "checkpoint-8", "checksums.json", ".lock",
    }  # fmt: skip
    assert {file.name for file in (run / "images").iterdir()} == {
        "before_after.png", "step-000006.png", "lora-0.png", "lora-1.png", "judge.json", "photographs"
    }  # fmt: skip
    numbers = {"n": 4, "n_low": 1, "n_high": 9}
    judged = json.loads((run / "images/judge.json").read_text())
    assert judged == {"base": numbers, "lora": numbers, "lora_sha256": lora_sha256(run)}
    grid = Image.open(run / "images/before_after.png")
    assert grid.width >= 2 * 128 and grid.height >= 4 * 128
    assert (run / "images/photographs").stat().st_mode & 0o777 == 0o700  # whose others may not see
    beside_photographs = Image.open(run / "images/photographs/before_after.png")
    assert beside_photographs.height > grid.height + 128 and beside_photographs.width > 4 * 128
    record = json.loads((run / "training_args.json").read_text())
    assert record["arguments"]["validation_prompts"] == prompts
    assert record["resolved"]["weights"] == DEFAULT_WEIGHTS
    assert re.fullmatch("[0-9a-f]{64}", record["resolved"]["fingerprint"])
    assert record["versions"]["diffusers"]
    card = (run / "README.md").read_text()
    assert "{{" not in card and "TODO" not in card and "Veridia" in card and "images/lora-1.png" in card
    shown = EventAccumulator(str(run / "logs" / "scoft")).Reload().Tags()
    losses = {"loss", *(f"loss/{term}" for term in METHODS["mpc"])}
    values = {"lr", "grad_norm", "active_negatives", "seconds", "judge/base/n", "judge/lora/n"}
    assert set(shown["scalars"]) == losses | values
    assert shown["images"] == ["validation"]


def test_validation_draws_what_a_stock_pipeline_draws(train, tmp_path, tiny_pipeline):
    """The judge gets a stock pipeline's pictures for each prompt and seed, base and LoRA; the folder, the LoRA's."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    judge = tmp_path / "judge.py"
    judge.write_text(
        "import numpy\ncalls = []\n\ndef keep(images, prompts):\n    calls.append(prompts)\n"
        f"    numpy.save({str(tmp_path)!r} + f'/{{len(calls)}}.npy', numpy.stack(images))\n"
        "    return {'call': len(calls)}\n"
    )
    prompts = ["a red house, in Veridia", "a blue house"]
    run = train(
        learning_rate=0.05,
        seed=3,
        validation_prompts=prompts,
        num_validation_images=2,
        validation_inference_steps=3,
        validation_guidance_scale=3,
        validation_judge=f"{judge}:keep",
    )
    judged = json.loads((run / "images/judge.json").read_text())
    assert (judged["base"], judged["lora"]) == ({"call": 1}, {"call": 2})
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    kept = []
    for call in (1, 2):
        if call == 2:
            pipe.load_lora_weights(run)
        expected = [
            pipe(
                prompt, generator=torch.Generator().manual_seed(seed), num_inference_steps=3, guidance_scale=3
            ).images[0]
            for prompt in prompts
            for seed in (3, 4)
        ]
        kept.append(np.load(tmp_path / f"{call}.npy").astype(int))
        assert np.abs(kept[-1] - np.stack(expected)).max() <= 1
    assert np.abs(kept[0] - kept[1]).max() > 10 and np.abs(kept[1][0] - kept[1][1]).max() > 10
    for i in range(2):
        assert np.array_equal(np.asarray(Image.open(run / f"images/lora-{i}.png")), kept[1][2 * i])


@pytest.fixture
def drawn(train, monkeypatch):
    """drawn(name, **more flags) runs two updates with four pictures, whose LoRA is another each time, and returns the
    base model's pictures as one array, and how many times pictures were drawn.
    """
    from accelerate.state import AcceleratorState

    draws, bases, true_draw, true_save = [], [], StableDiffusion.draw, Validation.save
    monkeypatch.setattr(StableDiffusion, "draw", lambda *args, **more: draws.append(1) or true_draw(*args, **more))
    monkeypatch.setattr(
        Validation,
        "save",
        lambda self, *args, **more: bases.append(self.base_images) or true_save(self, *args, **more),
    )

    def run(name: str, **more) -> tuple[np.ndarray, int]:
        draws.clear()
        AcceleratorState._reset_state(reset_partial_state=True)  # which holds the precision of the run before
        defaults = {"validation_prompts": ["a red house", "a blue house"], "num_validation_images": 2, "seed": 3}
        defaults |= {"validation_inference_steps": 2, "max_train_steps": 2, "learning_rate": 0.01 * (1 + len(bases))}
        train(name, **defaults | more)
        return np.stack(bases[-1]), len(draws)

    return run


def test_the_base_models_pictures_are_drawn_once_by_runs_that_would_draw_the_same(drawn, tmp_path, caplog):
    """Byte for byte what is drawn without a memory; a torn file is drawn anew, and so are all with --no-remember."""
    first, again, anew = drawn("first"), drawn("again"), drawn("anew", **{"no-remember": True})
    assert [draws for _, draws in (first, again, anew)] == [2, 1, 2]
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[0], anew[0])
    (kept,) = Path(huggingface_hub.constants.HF_HOME, "scoft").glob("base-pictures-*")
    kept.write_bytes(kept.read_bytes()[:-1])
    torn = drawn("torn")
    assert torn[1] == 2 and np.array_equal(first[0], torn[0]) and "thrown away: unreadable" in caplog.text
    assert drawn("healed")[1] == 1
    elsewhere = [drawn(name, precompute_dir=tmp_path / "kept", **{"no-remember": True})[1] for name in ("a", "b")]
    assert elsewhere == [2, 1] and len(list((tmp_path / "kept").glob("base-pictures-*.safetensors"))) == 1


def test_a_run_remembers_where_it_is_told_to_and_nothing_if_so_told(train, tmp_path):
    home, more = Path(huggingface_hub.constants.HF_HOME), {"method": "finetune", "max_train_steps": 1}
    train("nothing", **more, **{"no-remember": True})
    assert not (home / "scoft").exists()
    train("told", **more, cache_dir=tmp_path / "told")
    assert not (home / "scoft").exists() and len(list((tmp_path / "told/scoft/images").glob("*.json"))) == 1
    train("untold", **more)
    assert len(list((home / "scoft/images").glob("*.json"))) == 1


def test_other_pictures_are_drawn(drawn):
    """All that decides a picture of the base model is asked for."""
    others = [
        {"seed": 4},
        {"validation_prompts": ["a red house", "a blue hut"]},
        {"num_validation_images": 1},
        {"validation_inference_steps": 3},
        {"validation_guidance_scale": 3},
        {"resolution": 32},
        {"mixed_precision": "bf16"},
        {"prediction_type": "v_prediction"},
    ]
    drawn("first")
    assert [drawn(f"other-{i}", **other)[1] for i, other in enumerate(others)] == [2] * len(others)
    assert drawn("again")[1] == 1


def test_another_base_model_draws_other_pictures(drawn, tiny_pipeline, tmp_path):
    """Its folder's name says nothing: one weight of the UNet or of the decoder is another."""
    drawn("first")
    for part in ("unet", "vae"):
        folder = shutil.copytree(tiny_pipeline, tmp_path / "models" / part)
        file = folder / part / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        name = next(name for name in weights if name.startswith(("conv_out", "decoder.conv_out")))
        save_file(weights | {name: weights[name] + 0.1}, file, metadata={"format": "pt"})
        assert drawn(part, pretrained_model_name_or_path=folder)[1] == 2
    copy = shutil.copytree(tiny_pipeline, tmp_path / "models/copy")
    assert drawn("copy", pretrained_model_name_or_path=copy)[1] == 1


def test_a_memory_that_is_full_stops_no_run(drawn, monkeypatch, caplog):
    """Pictures that cannot be kept are drawn once all the same, and the run ends as it should."""
    true = scoft.files.write_atomically

    def full(path, content):
        if "base-pictures" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        true(path, content)

    monkeypatch.setattr(scoft.files, "write_atomically", full)
    assert drawn("full")[1] == 2 and "cannot be kept for later runs" in caplog.text


def test_judges_numbers_are_shown_side_by_side(train, tmp_path, caplog):
    """The log ends with a row for each of the judge's numbers, base beside LoRA, with its interval if it has one."""
    judge = tmp_path / "judge.py"
    judge.write_text(  # a dataclass with deferred annotations needs its module to be known
        "from __future__ import annotations\nimport dataclasses\n\n@dataclasses.dataclass\nclass Calls:\n"
        "    count: int = 0\n\ncalls = Calls()\n\ndef rate(images, prompts):\n    calls.count += 1\n"
        "    return {'right': calls.count / 10, 'right_low': 0.03, 'right_high': 1, 'n': 10 * calls.count}\n"
    )
    train(num_validation_images=1, validation_inference_steps=1, validation_judge=f"{judge}:rate")
    shown = "\n".join(record.message for record in caplog.records if record.name.startswith("scoft"))
    assert (
        "Judged, 2 pictures each, after update 4:\n"
        "          base                LoRA\n"
        "  right   0.10 [0.03, 1.00]   0.20 [0.03, 1.00]\n"
        "  n       10                  20\n"
    ) in shown


def test_no_prompts_no_pictures_still_a_card(train):
    """--num_validation_images 0 draws nothing, and the card is written all the same."""
    run = train()
    assert not (run / "images").exists() and "<Gallery />" not in (run / "README.md").read_text()


def test_cpu_threads_are_those_asked_for(train):
    """--cpu_threads sets torch's threads for the run, whatever the launcher's OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    try:
        train(cpu_threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_command_line_for_diffusers_script_runs(tmp_path, tiny_pipeline, tiny_ccub):
    """The flags of diffusers' train_text_to_image_lora.py work with --method finetune, without a culture."""
    train_scoft_lora.main(
        f"""--method finetune --pretrained_model_name_or_path {tiny_pipeline} --train_data_dir {tiny_ccub}
        --image_column image --caption_column text --resolution 16 --center_crop --random_flip --train_batch_size 2
        --num_train_epochs 1 --gradient_accumulation_steps 2 --gradient_checkpointing --learning_rate 1e-4
        --lr_scheduler cosine --lr_warmup_steps 0 --snr_gamma 5 --max_grad_norm 1 --seed 3 --rank 2
        --validation_epochs 1 --num_validation_images 1 --checkpointing_steps 500 --checkpoints_total_limit 1
        --dataloader_num_workers 0 --noise_offset 0.1 --prediction_type epsilon --report_to tensorboard --allow_tf32
        --image_interpolation_mode bilinear --output_dir {tmp_path / "out"}""".split()
        + ["--validation_prompt", "a red house"]
    )
    assert (tmp_path / "out" / LORA).exists() and (tmp_path / "out/images/before_after.png").exists()
    assert len(metrics(tmp_path / "out")) == 2  # 6 rows, 4 an update


def test_config_file_gives_flags_and_the_command_line_wins(tmp_path):
    """--config reads YAML: numbers, switches either way and lists; a flag on the command line overrides it."""
    config = tmp_path / "flags.yaml"
    config.write_text(
        "dataset: d\nculture: korea\nrank: 8\nlearning_rate: 1e-3\ncenter_crop: false\nrandom_flip: true\n"
        "compile: false\nvalidation_prompts: [one, 'two words']\n"
    )
    args = train_scoft_lora.parse_args(["--config", str(config), "--rank", "16"])
    assert (args.rank, args.learning_rate, args.center_crop, args.random_flip) == (16, 1e-3, False, True)
    assert args.validation_prompts == ["one", "two words"] and args.compile is False


def parse(**flags) -> argparse.Namespace:
    return train_scoft_lora.parse_args(words({"dataset": "d", "culture": "south_korea"} | flags))


def prompts_of(args: argparse.Namespace) -> list[str]:
    return validation_prompts(args.validation_prompts, culture=args.culture)


def test_prompts_name_the_culture_where_they_say_so():
    """{} in a validation prompt is the culture in words; other braces stay; one prompt or several are one flag."""
    prompts = ["a house, in {}", "{a|b} {0} {x}", "{}: a view of {}"]
    filled = ["a house, in South Korea", "{a|b} {0} {x}", "South Korea: a view of South Korea"]
    assert prompts_of(parse(validation_prompts=prompts)) == filled
    assert prompts_of(parse(validation_prompt=prompts[0])) == filled[:1]
    default = prompts_of(parse())
    assert len(default) == 2 and all(prompt.endswith(", in South Korea") for prompt in default)
    alone = {"culture": None, "method": "finetune"}
    assert prompts_of(parse(**alone, validation_prompt="a {a|b}")) == ["a {a|b}"]
    assert prompts_of(parse(**alone)) == []


# ---------------------------------------------------------------------------------------------------------------------
# Embedded datasets and their tables of flags
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path, monkeypatch, tiny_pipeline, tiny_ccub, tiny_clip_conv) -> Path:
    """The embedded dataset `toy`, of one culture, with models, judge and a table of flags; the run is elsewhere."""
    root = tmp_path / "a repository" / "toy"
    monkeypatch.setattr(dataset_source, "ROOT", root.parent)
    monkeypatch.setattr(dataset_source, "EMBEDDED", ("toy",))
    shutil.copytree(tiny_ccub, root / "ccub" / "veridia")
    shutil.copytree(tiny_clip_conv, root / "models" / "clip_conv")
    (root / "models" / "sd").symlink_to(tiny_pipeline)
    (root / "judge.py").write_text("def rate(images, prompts):\n    return {'n': len(images)}\n")
    flags = (
        "pretrained_model_name_or_path: '{here}/models/sd'\nperceptual_distance: clip_conv\n"
        "perceptual_model_name_or_path: '{here}/models/clip_conv'\nresolution: 16\nrank: 3\nmax_train_steps: 3\n"
        "perceptual_every: 2\nnum_denoising_steps: 3\nvalidation_judge: '{here}/judge.py:rate'\n"
        "num_validation_images: 1\nvalidation_inference_steps: 1\ncenter_crop: false\nrandom_flip: true\n"
        "validation_prompts: ['a red house, in {}', 'a house at {here}']\n"
    )
    (root / "defaults.yaml").write_text("train:\n" + textwrap.indent(flags, "  "))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return root


def test_an_embedded_dataset_trains_without_further_flags(toy):
    """--dataset and --culture suffice, from any folder; the record holds what the flags came to."""
    train_scoft_lora.main(["--dataset", "toy", "--culture", "veridia"])
    run = Path("scoft-veridia")
    assert len(metrics(run)) == 3 and json.loads((run / "images/judge.json").read_text())["lora"] == {"n": 2}
    arguments = json.loads((run / "training_args.json").read_text())["arguments"]
    assert (arguments["rank"], arguments["center_crop"]) == (3, False)
    assert arguments["perceptual_model_name_or_path"] == str(toy / "models/clip_conv")
    assert arguments["validation_prompts"] == ["a red house, in {}", f"a house at {toy}"]
    assert "a red house, in Veridia" in (run / "README.md").read_text()


def test_the_stronger_source_wins(toy):
    """Command line over --config over the embedded table over the built-in defaults; --config may name the dataset."""
    Path("flags.yaml").write_text(
        "dataset_name: toy\nculture: veridia\nrank: 5\nperceptual_every: 7\nseed: 1\nrandom_flip: no\n"
    )
    args = train_scoft_lora.parse_args(["--config", "flags.yaml", "--seed", "2", "--validation_prompt", "a hut"])
    assert (args.seed, args.rank, args.perceptual_every, args.resolution, args.train_batch_size) == (2, 5, 7, 16, 1)
    assert args.validation_prompts == ["a hut"] and (args.center_crop, args.random_flip) == (False, False)
    args = train_scoft_lora.parse_args(["--config", "flags.yaml", "--dataset", "another", "--center_crop"])
    assert (args.rank, args.resolution, args.center_crop) == (5, 512, True)


@pytest.mark.parametrize("name", ["./toy", "toys", "judge.py", "shared"])
def test_other_datasets_have_no_table(toy, name):
    """A path, though to a folder of that name, and a name that is not embedded take the built-in defaults.

    Also one that lies beside the script with a table of its own: a table names code, and runs it.
    """
    shutil.copytree(toy, "toy")
    shutil.copytree(toy, toy.parent / "shared", symlinks=True)
    assert parse(dataset=name).rank == 64


def test_epochs_and_another_distance_replace_what_the_table_says(toy):
    """Epochs on the command line count, and another distance does not get the model of the table's distance."""
    assert parse(dataset="toy", num_train_epochs=2).max_train_steps is None
    assert parse(dataset="toy", perceptual_distance="dinov2").perceptual_model_name_or_path is None
    same = parse(dataset="toy", perceptual_distance="clip_conv")
    assert same.perceptual_model_name_or_path == str(toy / "models/clip_conv")
    own = parse(dataset="toy", perceptual_distance="dinov2", perceptual_model_name_or_path="mine")
    assert own.perceptual_model_name_or_path == "mine" and own.max_train_steps == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnak: 3", "unknown flag 'rnak'"),
        ("- rank", "expected lines of `flag: value`"),
        ("rank: true", "rank takes a value, got True"),
        ("rank: many", "argument --rank: invalid int value: 'many'"),
        ("method: best", "argument --method: invalid choice: 'best'"),
        ("rank: [1, 2]", "unrecognized arguments: 2"),
        ("rank: {here}: 3", "mapping values are not allowed here"),
        (b"rank: \x80", "invalid start byte"),
    ],
)
@pytest.mark.parametrize("source", ["defaults.yaml", "--config"])
def test_bad_tables_are_named(toy, capsys, source, text, message):
    """A table that is none, names no flag, or gives a flag a wrong value is refused by its file's name."""
    table = toy / "defaults.yaml" if source == "defaults.yaml" else Path("flags.yaml")
    text = text if isinstance(text, bytes) else text.encode()
    table.write_bytes(text if source == "--config" else b"train:\n  " + text)
    with pytest.raises(SystemExit):
        parse(dataset="toy", config=table if source == "--config" else None)
    error = capsys.readouterr().err
    expected = f"{table}, the defaults of --dataset toy" if source == "defaults.yaml" else f"--config {table}"
    assert f"error: {expected}: " in error and message in error


def test_a_damaged_embedded_file_stops_the_run_before_models_load(toy):
    """A model's file that is not the one that was shipped is named with the command that remakes it."""
    checksums = {"models": {"made_by": "python -m toy.train", "sha256": {"clip_conv/model.safetensors": "0" * 64}}}
    (toy / "checksums.json").write_text(json.dumps(checksums))
    with pytest.raises(DataError, match="clip_conv/model.safetensors is not .*python -m toy.train"):
        train_scoft_lora.main(["--dataset", "toy", "--culture", "veridia", "--validation_judge", "absent.py:f"])


def test_the_pocket_worlds_table_asks_for_pictures_of_eight_categories():
    """pocket/defaults.yaml has prompts that name eight different categories, in 64 pictures."""
    args = train_scoft_lora.parse_args(["--dataset", "pocket", "--culture", "veridia"])
    prompts = prompts_of(args)
    assert len({world.read_caption(prompt)["category"] for prompt in prompts}) == len(prompts) == 8
    assert all(prompt.endswith(", in Veridia") for prompt in prompts) and args.num_validation_images == 8
    assert args.validation_judge == f"{ROOT}/pocket/judge.py:rate"


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"culture": None}, "--culture is needed with --method mpc"),
        ({"rank": 0}, "--rank is from 1 to 1280, the width of the widest layers, got 0"),
        ({"rank": 10**9}, "--rank is from 1 to 1280, the width of"),
        ({"ldm_weight": -0.1}, "--ldm_weight is a number from 0 up, got -0.1"),
        ({"contrastive_weight": "nan"}, "--contrastive_weight is a number from 0 up, got nan"),
        ({"method": "m", "ldm_weight": 0, "memorization_weight": 0}, "every weight of --method m is 0"),
        ({"method": "mp", "contrastive_weight": 1}, "--contrastive_weight 1.0 has no effect with --method mp"),
        ({"resolution": 20}, "--resolution is a multiple of 8, got 20"),
        ({"blip_captions_per_step": "some"}, "--blip_captions_per_step is a number from 1 up or `all`, got 'some'"),
        ({"train_data_dir": "x"}, "--dataset and --train_data_dir are names of one flag"),
        ({"ldm_weight": 0, "memorization_weight": 0}, "--perceptual_every 2 leaves updates without any loss"),
        ({"seed": -1}, "--seed is a number from 0 up"),
        ({"adam_beta1": 1}, "--adam_beta1 is a number from 0 up and below 1, got 1"),
        ({"validation_prompt": "a", "validation_prompts": ["b"]}, "--validation_prompt and --validation_prompts"),
        (
            {"culture": None, "method": "finetune", "validation_prompt": "in {}"},
            "--validation_prompts 'in {}': {} stands",
        ),
        ({"validation_judge": "judge.py"}, "--validation_judge is FILE.py:function"),
        ({"report_to": "notebook"}, "--report_to: invalid choice: 'notebook' (choose from"),
        ({"perceptual_distance": "lpips"}, "invalid choice: 'lpips'"),
        ({"config": "absent.yaml"}, "--config absent.yaml"),
        ({"data_set": "x"}, "unrecognized arguments: --data_set"),
    ],
)
def test_bad_arguments_are_named(flags, capsys, wrong, message):
    """A wrong argument ends in a usage error that names the flag, the value and what is allowed."""
    with pytest.raises(SystemExit):
        train_scoft_lora.main(words(flags | wrong))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"report_to": "wandb"}, "pip install wandb"),
        ({"use_8bit_adam": True}, "pip install bitsandbytes"),
        ({"enable_xformers_memory_efficient_attention": True}, "pip install xformers"),
        ({"validation_judge": "absent.py:f"}, "there is no file absent.py"),
    ],
)
def test_missing_parts_are_named(flags, tmp_path, monkeypatch, wrong, message):
    """What the arguments need and this machine lacks is named before anything is read."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises((DataError, SystemExit), match=re.escape(message)):
        train_scoft_lora.main(words(flags | {"output_dir": tmp_path / "out"} | wrong))
    assert not (tmp_path / "out").exists()


def test_a_full_output_folder_is_not_written_over(train, tmp_path):
    """Without --resume_from_checkpoint a non-empty folder stops the run, and stays as it is."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty.*--resume_from_checkpoint latest"):
        train()
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"thesis.txt", scoft.files.LOCK}


def rewrite(tiny_ccub: Path, folder: Path, change) -> Path:
    """A copy of the tiny dataset with each metadata row changed."""
    shutil.copytree(tiny_ccub, folder)
    file = folder / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"negative_imgpath": []}, "prepare_ccub.py.*--method mp"),
        (lambda row: {k: v for k, v in row.items() if k != "text"}, "^caption_column .text. is no column"),
        (
            lambda row: {k: v for k, v in row.items() if k != "blip_text"},
            "^blip_caption_column .blip_text. is no column",
        ),
        (lambda row: row | {"text": " "}, "row 0.*caption"),
        (lambda row: row | {"file_name": "images/lost.png"}, "row 0.*lost.png"),
    ],
)
def test_bad_data_is_named_before_models_load(train, tiny_ccub, tmp_path, change, message):
    """A dataset that cannot be trained on names the row, column or flag and the fix; no model is asked for."""
    dataset = rewrite(tiny_ccub, tmp_path / "data", change)
    with pytest.raises(DataError, match=f"(?s){message}"):
        train(dataset=dataset, pretrained_model_name_or_path="no/such-model")


def test_nothing_heavy_is_imported_before_the_data_is_checked(flags):
    """A wrong dataset is answered without importing diffusers, transformers, peft or accelerate."""
    code = (
        "import sys, train_scoft_lora\n"
        "try: train_scoft_lora.main(sys.argv[1:])\n"
        "except ValueError: print(sorted({'diffusers', 'transformers', 'peft', 'accelerate'} & set(sys.modules)))"
    )
    argv = words(flags | {"dataset": "./no/such/folder"})
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_absent_base_model_is_named(train):
    """A base model that cannot be loaded is named with its flag."""
    with pytest.raises(DataError, match="^pretrained_model_name_or_path no/such-model"):
        train(pretrained_model_name_or_path="no/such-model")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "epsilon or v_prediction; .* 'sample'"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("vae/config.json", {"latent_channels": 8}, "no plain text-to-image Stable Diffusion"),
    ],
)
def test_a_base_model_of_another_kind_is_named(train, tiny_pipeline, tmp_path, file, change, message):
    """A base model that predicts something else, or whose UNet takes other channels, is refused before training."""
    from diffusers import AutoencoderKL

    model = shutil.copytree(tiny_pipeline, tmp_path / "model")
    config = model / file
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    if file.startswith("vae"):  # its weights have to fit the changed configuration
        AutoencoderKL.from_config(AutoencoderKL.load_config(model / "vae")).save_pretrained(model / "vae")
    with pytest.raises(DataError, match=message):
        train(pretrained_model_name_or_path=model)


def test_processes_that_do_not_know_of_each_other_are_refused(train, monkeypatch):
    """Two processes launched where accelerate sees one would write over each other, and are told how to launch."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="2 processes were launched, but accelerate sees 1.*ACCELERATE_USE_CPU"):
        train()


def test_fp16_on_a_cpu_is_refused(train):
    """Half precision that the CPU cannot train in is named, with what works."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DataError, match="--mixed_precision fp16 needs a GPU; bf16"):
        train(mixed_precision="fp16")


def test_a_bad_picture_is_named_or_skipped_and_counted(train, tiny_ccub, tmp_path):
    """A truncated photograph stops the run by name; with --skip_bad_images it is left out and the record says so."""
    dataset = shutil.copytree(tiny_ccub, tmp_path / "data")
    file = dataset / "train/images/ARCH_2.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="(?s)ARCH_2.png.*--skip_bad_images"):
        train(dataset=dataset)
    record = json.loads((train(dataset=dataset, skip_bad_images=True) / "training_args.json").read_text())
    assert (record["resolved"]["rows"], record["resolved"]["dropped_rows"]) == (5, 1)


def test_long_captions_are_counted_and_warned_of_once(train, tiny_ccub, tmp_path, caplog):
    """Captions beyond 77 tokens are cut, and one warning counts them."""
    dataset = rewrite(tiny_ccub, tmp_path / "data", lambda row: row | {"text": row["text"] + " very" * 80})
    with caplog.at_level(logging.WARNING):
        train(dataset=dataset)
    warnings = [record.message for record in caplog.records if "longer than 77 tokens" in record.message]
    assert len(warnings) == 1 and warnings[0].startswith("6 of ")


def test_unknown_lora_layers_are_named(train):
    """LoRA layers that the UNet does not have are named with their flag."""
    with pytest.raises(DataError, match="^lora_layers to_nowhere"):
        train(lora_layers="to_nowhere")


def test_a_culture_in_any_script_names_its_lora(flags, tmp_path, monkeypatch):
    """The default output folder and file take the culture's own letters."""
    monkeypatch.chdir(tmp_path)
    train_scoft_lora.main(words(flags | {"culture": "한국"}))
    assert (tmp_path / "scoft-한국" / "scoft-한국-kohya.safetensors").exists()


@pytest.mark.parametrize("rank", [2, 8])
def test_a_checkpoint_of_another_shape_does_not_fit(train, rank):
    """Resuming with another rank names the checkpoint, a weight, both shapes and the flags."""
    train()
    with pytest.raises(DataError, match=r"(?s)^resume_from_checkpoint .*does not fit.*\(4, .*give the rank"):
        train(resume_from_checkpoint="latest", rank=rank, max_train_steps=8)


def test_a_resumed_run_says_what_it_does_differently(train, caplog):
    """Resuming with another batch size or rate is allowed, and each difference is named with both values."""
    run = train()
    caplog.clear()
    changed = {"train_batch_size": 2, "learning_rate": 1e-3, "adam_weight_decay": 0.1}
    train(resume_from_checkpoint="latest", max_train_steps=6, **changed)
    records = [
        record for record in caplog.records if record.name.startswith("scoft") and record.levelname == "WARNING"
    ]
    changes = (
        "adam_weight_decay was 0.01, is 0.1",
        "images_per_update was 1, is 2",
        "learning_rate was 0.0001, is 0.001",
    )
    assert len(records) == 3 and all(change in record.message for change, record in zip(changes, records))
    assert [line["lr"] for line in metrics(run)] == pytest.approx([1e-4] * 4 + [1e-3] * 2)
    state = torch.load(run / "checkpoint-6" / checkpoints.STATE_FILE, weights_only=True)
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == 0.1


def test_a_schedule_laid_over_a_longer_run_is_told(train, caplog):
    """A cosine run that is prolonged jumps to another rate: both are named. One that is merely resumed is silent."""
    more = {"method": "finetune", "lr_scheduler": "cosine", "learning_rate": 1e-2, "checkpointing_steps": 2}
    run = train("run", **more)
    train("run", **more, resume_from_checkpoint="checkpoint-2")
    assert not [record for record in caplog.records if "lr_scheduler" in record.message]
    train("run", **more, resume_from_checkpoint="checkpoint-2", max_train_steps=8)
    told = [record.message for record in caplog.records if "lr_scheduler" in record.message]
    assert len(told) == 1 and "laid over all 8 updates anew" in told[0] and "updates was 4, is 8" in caplog.text
    assert "goes on at 0.00854, where the run before had planned 0.005." in told[0]
    assert metrics(run)[2]["lr"] == pytest.approx(0.00854, rel=1e-3)


def test_image_losses_that_never_fall_due_are_warned_of(train, caplog):
    """A run that is shorter than --perceptual_every has no losses on images, whatever its method says."""
    train(perceptual_every=5)
    assert "losses on images, which are due first in update 5, and the run has 4" in caplog.text
    caplog.clear()
    train("enough", perceptual_every=4)
    assert not [record for record in caplog.records if "are due first" in record.message]


def test_accumulation_in_the_environment_is_refused(train, monkeypatch):
    """accelerate would divide the loss once more by it."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with pytest.raises(DataError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS is 2"):
        train()


def test_an_absent_checkpoint_is_named(train, tmp_path):
    """A path that holds no checkpoint is refused, and those that exist are listed."""
    run = train()
    with pytest.raises(DataError, match="(?s)checkpoint-9 is no checkpoint.*run has checkpoint-4"):
        train(resume_from_checkpoint=run / "checkpoint-9")


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    """A diverging run stops with the update and the terms, and writes no checkpoint after it."""
    with pytest.raises(FloatingPointError, match=r"update \d+: .*loss.* not finite"):
        train("run", learning_rate=1e30, max_train_steps=20)
    assert not checkpoints.checkpoints(tmp_path / "run")


def test_weights_that_the_last_update_spoilt_are_not_saved(train, tmp_path):
    """No later loss tells of the last update's weights, so what they predict is looked at before they are kept."""
    with pytest.raises(
        FloatingPointError, match="update 1 left weights with which the UNet's prediction is not finite"
    ):
        train("run", learning_rate=1e30, max_train_steps=1, num_validation_images=1)
    assert not checkpoints.checkpoints(tmp_path / "run")
    assert not (tmp_path / "run" / LORA).exists() and not (tmp_path / "run" / "README.md").exists()


def test_pictures_of_one_colour_are_no_result(train, tmp_path, monkeypatch):
    """Where the LoRA draws blank pictures and the base model does not, the run fails, and no card is written."""
    base, blank = Image.effect_noise((16, 16), 50).convert("RGB"), Image.new("RGB", (16, 16), "olive")
    drawn = iter([[base] * 2, [blank] * 2])
    monkeypatch.setattr(Validation, "draw", lambda self, **_: next(drawn))
    with pytest.raises(FloatingPointError, match="update 4: each picture that the LoRA draws is of one colour"):
        train("run", num_validation_images=1)
    assert not (tmp_path / "run" / "README.md").exists()
    drawn = iter([[blank] * 2, [blank] * 2])
    assert (train("blank", num_validation_images=1) / "README.md").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Damage, locks and launchers
# ---------------------------------------------------------------------------------------------------------------------


def flip_a_bit(file: Path):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "a bit of the LoRA": lambda folder: flip_a_bit(folder / LORA),
    "a bit of the state": lambda folder: flip_a_bit(folder / checkpoints.STATE_FILE),
    "a truncated state": lambda folder: os.truncate(folder / checkpoints.STATE_FILE, 100),
    "no LoRA": lambda folder: (folder / LORA).unlink(),
    "no seal": lambda folder: (folder / checkpoints.SEAL_FILE).unlink(),
    "no JSON": lambda folder: os.truncate(folder / checkpoints.SEAL_FILE, 9),
    "another step": lambda folder: (folder / checkpoints.SEAL_FILE).write_text(
        (folder / checkpoints.SEAL_FILE).read_text().replace('"step": 4', '"step": 2')
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_pipeline, tiny_ccub) -> Path:
    """A finished run of 4 updates with a checkpoint after 2 and after 4, to be copied."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_scoft_lora.main(
        f"""--method finetune --dataset {tiny_ccub} --culture veridia --pretrained_model_name_or_path {tiny_pipeline}
        --resolution 16 --rank 4 --max_train_steps 4 --checkpointing_steps 2 --num_validation_images 0
        --report_to none --output_dir {folder}""".split()
    )
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_gone_on_from(whole, tmp_path, caplog, damage):
    """`latest` goes back to the newest whole one and says so; named, or where none is whole, it is an error."""
    run = shutil.copytree(whole, tmp_path / "run")
    DAMAGES[damage](run / "checkpoint-4")
    with pytest.raises(DataError, match="(?s)checkpoint-4 is no checkpoint, or a damaged one: .*checkpoint-2"):
        checkpoints.find_checkpoint(run, "checkpoint-4")
    assert checkpoints.find_checkpoint(run, "latest") == (run / "checkpoint-2", 2)
    assert "checkpoint-4 is damaged, and is not resumed from: " in caplog.text
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(DataError, match="all checkpoints of .* are damaged"):
        checkpoints.find_checkpoint(run, "latest")


def test_a_run_that_lost_its_last_checkpoint_ends_as_it_did(whole, tmp_path, train):
    """With checkpoint-4 damaged, `latest` trains the two updates again, to the same LoRA."""
    run = shutil.copytree(whole, tmp_path / "run")
    flip_a_bit(run / "checkpoint-4" / LORA)
    train("run", method="finetune", perceptual_model_name_or_path=None, resume_from_checkpoint="latest")
    assert torch.equal(lora(run), lora(whole)) and check_seal(run / "checkpoint-4") == 4


@pytest.mark.parametrize("name", [LORA, "scoft-veridia-kohya.safetensors", checkpoints.SEAL_FILE])
def test_a_finished_run_with_a_torn_lora_is_made_whole(whole, tmp_path, train, caplog, name):
    """Resuming it writes the results anew from its last checkpoint, without training."""
    run = shutil.copytree(whole, tmp_path / "run")
    os.truncate(run / name, 50)
    train("run", method="finetune", perceptual_model_name_or_path=None, resume_from_checkpoint="latest")
    assert "its results are damaged and made anew" in caplog.text and "nothing to train" not in caplog.text
    assert (run / name).read_bytes() == (whole / name).read_bytes() and check_seal(run) == 4


def test_two_runs_do_not_write_into_one_folder(train, tmp_path, monkeypatch):
    """A folder that a living run writes into is refused by its flag, before the work, and stays as it is."""
    monkeypatch.setattr(scoft.files, "PATIENCE", 0)
    with scoft.files.sole_writer(tmp_path / "run", flag="--output_dir"):
        with pytest.raises(DataError, match="--output_dir .*run: another run is writing into it"):
            train("run", pretrained_model_name_or_path="no/such-model")
    assert scoft.files.is_empty(tmp_path / "run")


def test_a_folder_that_fills_while_a_second_run_waits_is_not_written_over(train, tmp_path, monkeypatch):
    """Whether it is empty is asked by the run that holds the lock, not by one that still waits for it."""
    run, first = tmp_path / "run", contextlib.ExitStack()
    first.enter_context(scoft.files.sole_writer(run, flag="--output_dir"))

    def finish(*_):  # called when the second run says that it waits
        (run / "checkpoint-4").mkdir()
        first.close()

    monkeypatch.setattr(scoft.files.logger, "warning", finish)
    with pytest.raises(DataError, match="is not empty.*--resume_from_checkpoint latest"):
        train("run", pretrained_model_name_or_path="no/such-model")
    assert (run / "checkpoint-4").is_dir()


def test_a_picture_takes_the_place_of_a_link(train, tmp_path):
    """What the link leads to stays as it is."""
    link = tmp_path / "run/images/step-000001.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "thesis.txt")
    (tmp_path / "thesis.txt").write_text("precious")
    pictures = {"num_validation_images": 1, "validation_steps": 1, "validation_inference_steps": 1}
    train(
        "run",
        method="finetune",
        max_train_steps=2,
        resume_from_checkpoint="latest",
        **pictures,
        perceptual_model_name_or_path=None,
    )
    assert Image.open(link).format == "PNG" and not link.is_symlink()
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_folder_that_cannot_be_written_to_is_named_before_the_work(train, tmp_path):
    """Also where its place is no folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--output_dir .*file/run cannot be written to"):
        train("file/run", pretrained_model_name_or_path="no/such-model")


def test_a_disk_that_is_too_full_is_named_before_the_work(train, monkeypatch):
    """A checkpoint has to fit: the LoRA and the optimizer's two moments."""
    monkeypatch.setattr(Constants, "compute", lambda *_, **__: pytest.fail("it went to work"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 3 * 4 * 9984 - 1))
    with pytest.raises(DataError, match="--output_dir .* has 0 MB left, and a checkpoint takes 0"):
        train()


@pytest.mark.parametrize(
    ("culture", "name"),
    [("New_Zealand", "new-zealand"), ("हिन्दी", "हिन्दी"), ("my ccub (2)", "my-ccub-2")],
)
def test_the_loras_name_is_in_the_cultures_own_script(culture, name):
    """Vowel signs are part of a word; what no name may have becomes a dash."""
    assert lora_name(culture, what="it") == name


def test_a_long_name_is_refused_by_its_flag(train):
    """Names become files, whose names end at 255 bytes."""
    with pytest.raises(DataError, match="the LoRA's name, by --culture, is 1 to 64 letters"):
        train(culture="x" * 300)


def launched(flags: dict, *, processes: int, **popen) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    env = one_thread() | {"ACCELERATE_USE_CPU": "true"}
    command += ["train_scoft_lora.py", *words(flags)]
    return subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True, env=env, **popen)


@pytest.mark.parametrize(
    ("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGKILL)], ids=str
)
def test_a_launcher_that_is_ended_leaves_a_checkpoint_and_no_orphan(flags, tmp_path, processes, number):
    """`kill`, systemd and containers end the launcher alone: what it launched stops too, with a whole checkpoint."""
    run = tmp_path / "run"
    long = {"method": "finetune", "perceptual_model_name_or_path": None, "max_train_steps": 5000}
    launcher = launched(flags | long | {"output_dir": run, "logging_steps": 2}, processes=processes)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not metrics(run):
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()
        time.sleep(0.1)
    launcher.send_signal(number)
    stderr = launcher.communicate(timeout=60)[1]  # ends when the last process that was launched has closed it
    found, step = checkpoints.find_checkpoint(run, "latest")
    assert found is not None and 0 < step == len(metrics(run)) < 5000, stderr
    assert f"Stopped after update {step}" in stderr
    with scoft.files.sole_writer(run, flag="--output_dir"):
        pass


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_a_folder_in_use_ends_all_processes_and_says_so_last(flags, tmp_path):
    """The main process alone is refused; the launcher ends the other, and our line stands below its traceback."""
    with scoft.files.sole_writer(tmp_path / "run", flag="--output_dir"):
        launcher = launched(flags | {"output_dir": tmp_path / "run"}, processes=2)
        stderr = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 1 and "Traceback" in stderr
    last = stderr.rstrip().splitlines()[-1]
    assert last.startswith(f"error: --output_dir {tmp_path / 'run'}: another run is writing into it.")

#!/usr/bin/env python
"""What bf16 and the merged roll-out change: in the gradient of each term, and in what a judge says of the LoRA.

    python -m benchmarks.precision
    python -m benchmarks.precision --after 0 --seeds --output trial.json

The pocket's main job, Veridia.  `gradients`: a LoRA as it is after some updates, and of the gradient of each term the
cosine to that in float32 with the LoRA unmerged, the mean over some batches.  `outcomes`: the job whole for each seed,
in bf16, with the roll-out as it ships, from W + BA rounded to bf16, and with the LoRA left beside W.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from scoft.launch import at_least, from_zero

import torch

import train_scoft_lora as trainer
from scoft.base_model import StableDiffusion
from scoft.dataset_source import find_dataset
from scoft.files import write_atomically
from scoft.images import ImageTransform
from scoft.lora_folder import read_judged
from scoft.train.build import build_dataset, build_distance, build_examples, build_objective
from scoft.train.examples import TrainingExamples, collate
from scoft.train.flags import loss_weights
from scoft.train.objective import Objective, training_losses
from scoft.train.terms import IMAGE_TERMS
from scoft.weights import DTYPES


FLAGS = "--dataset pocket --culture veridia --report_to none --mixed_precision bf16 --cpu_threads 1".split()
ROLLOUTS = ("merged", "unmerged")
RATES = ("right", "stereotype", "azurian")
DEVICE = torch.device("cpu")


@contextlib.contextmanager
def rollout_by(way: str) -> Iterator[None]:
    """Have the roll-out predict as the rest of an update does, or as it ships."""
    if way == "merged":
        yield
        return
    with mock.patch.object(StableDiffusion, "merged_lora", lambda model: contextlib.nullcontext(model.predict_frozen)):
        yield


def train(more: list[str], folder: Path) -> Path:
    """A LoRA folder made by the trainer's own main."""
    trainer.main([*FLAGS, "--output_dir", str(folder), *more])
    return folder


def load(lora: Path | None, precision: str) -> tuple[Objective, TrainingExamples]:
    """The main job's objective and examples in a precision, and its LoRA from a folder; None: as at first."""
    args = trainer.parse_args(FLAGS)
    weights = loss_weights(args)
    source = find_dataset(args.dataset, culture=args.culture)
    dataset = build_dataset(args, source, weights=weights, remember_in=None)
    place = {"revision": None, "variant": None, "cache_dir": None, "prediction_type": None}
    model = StableDiffusion.load(args.pretrained_model_name_or_path, **place, dtype=DTYPES[precision])
    torch.manual_seed(args.seed)
    model.add_lora(rank=args.rank, alpha=float(args.rank), target_modules=args.lora_layers.split(","))
    if lora:
        model.load_lora(lora)
    known = {"dataset": dataset, "transform": ImageTransform(args.resolution, args.image_interpolation_mode)}
    objective = build_objective(
        args,
        model=model,
        prompts=[],
        weights=weights,
        distance=build_distance(args, model, DEVICE),
        device=DEVICE,
        **known,
    )
    images = args.train_batch_size
    return objective, build_examples(args, objective=objective, images_per_update=images, **known)


def gradients(lora: Path | None, precision: str, rollout: str, batches: int) -> dict[str, list[torch.Tensor]]:
    """By term, the LoRA's gradient on each of the batches, as one vector."""
    objective, examples = load(lora, precision)
    parameters = [parameter for parameter in objective.model.unet.parameters() if parameter.requires_grad]
    found = {term: [] for term in objective.weights}
    for update in range(batches):
        entries = range(update * examples.entries_per_update, (update + 1) * examples.entries_per_update)
        examined = collate([examples[entry] for entry in entries])
        for term, of_term in found.items():
            batch = objective.constants.assemble(examined, with_images=term in IMAGE_TERMS)
            with rollout_by(rollout):
                loss, _ = training_losses(batch, dataclasses.replace(objective, weights={term: 1.0}))
            of_term.append(torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)]))
    return found


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def mean_cosines(found: dict, exact: dict) -> dict[str, float]:
    """By term, over the batches on which the exact gradient is not zero, as that of a hinge may be."""
    cosines = {term: [cosine(a, b) for a, b in zip(found[term], exact[term]) if b.any()] for term in exact}
    return {term: round(statistics.fmean(values), 6) if values else None for term, values in cosines.items()}


def compare_gradients(after: list[int], batches: int, work: Path) -> dict:
    """By number of updates, then by way, the cosines of each term."""
    found = {}
    for updates in after:
        more = ["--max_train_steps", str(updates), "--num_validation_images", "0"]
        lora = train(more, work / f"after-{updates}") if updates else None
        exact = gradients(lora, "fp32", "unmerged", batches)
        found[updates] = {
            f"{precision}, {rollout}": mean_cosines(gradients(lora, precision, rollout, batches), exact)
            for precision, rollout in (("fp32", "merged"), ("bf16", "unmerged"), ("bf16", "merged"))
        }
    return found


def compare_outcomes(seeds: list[int], work: Path) -> dict:
    """By roll-out, then by seed, the judge's rates of what the LoRA draws."""
    found = {rollout: {} for rollout in ROLLOUTS}
    for seed in seeds:
        for rollout in ROLLOUTS:
            with rollout_by(rollout):
                folder = train(["--seed", str(seed)], work / f"{rollout}-{seed}")
            judged = read_judged(folder).lora
            found[rollout][seed] = {rate: round(judged[rate], 4) for rate in RATES}
    return found


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--after", type=from_zero(int), nargs="*", default=[0, 20, 180], help="updates of the LoRA")
    parser.add_argument("--batches", type=at_least(1), default=16, help="that a cosine is the mean of")
    parser.add_argument("--seeds", type=from_zero(int), nargs="*", default=[0, 1, 2], help="of the runs compared")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        result = {"torch": torch.__version__, "batches": args.batches}
        result["gradients"] = compare_gradients(args.after, args.batches, Path(work))
        result["outcomes"] = compare_outcomes(args.seeds, Path(work))
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        write_atomically(args.output, text + "\n")


if __name__ == "__main__":
    main()

"""What a run writes down beside its weights: its arguments, and a line of numbers for each update."""

import json
import logging
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from scoft.dataset import CulturalDataset
from scoft.dataset_source import DatasetSource
from scoft.files import write_atomically
from scoft.lora_folder import (
    CARD_FILE,
    EVALUATION_FILE,
    JUDGED_FILE,
    RECORD_FILE,
    Facts,
    read_run_record,
    run_record,
    write_run_record,
)
from scoft.lora_page import PICTURES
from scoft.train.checkpoints import SEAL_FILE, checkpoints, discard
from scoft.train.terms import ACTIVE, TERMS


logger = logging.getLogger(__name__)

IDLE_UPDATES = 20  # so often L_C was 0 in a row, at the end of a run, that it is told

# What may differ in a resumed run that stays the same, and flags whose outcome `resolved` holds.
FREE_FLAGS = (
    "config", "output_dir", "resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "cache_dir",
    "remember", "precompute_dir", "cache_latents", "text_cache_limit", "dataloader_num_workers", "cpu_threads",
    "allow_tf32", "compile", "gradient_checkpointing", "enable_xformers_memory_efficient_attention",
    "validation_prompts", "num_validation_images", "validation_epochs", "validation_steps",
    "validation_inference_steps", "validation_guidance_scale", "validation_judge", "report_to", "logging_dir",
    "logging_steps", "term_norms_every", "push_to_hub", "hub_model_id", "hub_private_repo", "hub_collection",
    "pretrained_model_name_or_path", "revision", "dataset_revision", "max_train_samples", "skip_bad_images",
    "train_batch_size", "gradient_accumulation_steps", "scale_lr", "max_train_steps", "num_train_epochs", "prompts",
    "pipeline",
    *(f"{name}_weight" for name in TERMS),
)  # fmt: skip


class Metrics:
    """metrics.jsonl: one line per update, gathered on the device and written, also to the trackers, every few updates.

    Reading a loss makes the host wait for the device, so it happens only in `flush`, which every process must enter.
    A loss or gradient that is not finite stops the run there, before any checkpoint is written.
    """

    def __init__(self, path: Path, *, step: int, accelerator):
        self.path = path
        self.accelerator = accelerator
        self.pending: list[tuple[int, dict[str, torch.Tensor | float]]] = []
        if accelerator.is_main_process:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
            # A kill may have torn the last line, which lies after any checkpoint: its step is all that is read.
            steps = [re.match(r'{"step": (\d+),', line) for line in lines]
            kept = [line for line, found in zip(lines, steps) if found and int(found[1]) <= step]
            write_atomically(path, "".join(f"{line}\n" for line in kept))
        self.restart_clock()

    def restart_clock(self):
        """Leave out of `seconds` what happened since the last flush: writing checkpoints, drawing pictures."""
        self.since = time.perf_counter()

    def add(self, step: int, values: dict[str, torch.Tensor | float]):
        self.pending.append((step, values))

    def flush(self) -> list[dict[str, float]]:
        """Write what is pending, and return it."""
        if not self.pending:
            return []
        seconds = (time.perf_counter() - self.since) / len(self.pending)
        on_device = [value for _, values in self.pending for value in values.values() if torch.is_tensor(value)]
        read = iter(self.accelerator.reduce(torch.stack(on_device), reduction="mean").tolist())
        lines = [
            {"step": step}
            | {name: next(read) if torch.is_tensor(value) else value for name, value in values.items()}
            | {"seconds": round(seconds, 4)}
            for step, values in self.pending
        ]
        self.pending = []
        self.restart_clock()
        # Under fp16 the gradient scaler meets an infinite norm by skipping the update and lowering its scale.
        expected = {"grad_norm"} if self.accelerator.scaler is not None else set()
        broken = [{name for name, value in line.items() if not math.isfinite(value)} - expected for line in lines]
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                for line in lines:
                    finite = {name: value for name, value in line.items() if math.isfinite(value)}
                    file.write(json.dumps(finite) + "\n")
        for line, names in zip(lines, broken):
            if names:
                raise FloatingPointError(
                    f"update {line['step']}: {', '.join(sorted(names))} not finite in {line}; no checkpoint after it "
                    "was written. A lower --learning_rate or --mixed_precision bf16 may help"
                )
        for line in lines:
            values = {name: value for name, value in line.items() if name != "step"}
            self.accelerator.log(values, step=line["step"])
        return lines

    def warn_of_idle_loss(self, *, margin: float | None):
        """Say so if L_C was 0 on the last updates that had it: there it trained nothing."""
        lines = map(json.loads, self.path.read_text().splitlines())
        values = [line["loss/contrastive"] for line in lines if "loss/contrastive" in line][-IDLE_UPDATES:]
        if len(values) == IDLE_UPDATES and not any(values):
            logger.warning(
                "L_C was 0 on the last %d updates that had it: every negative was farther than the photograph by more "
                "than --margin %g, and trained nothing. A larger --margin or a smaller --negative_weight wakes it; %s "
                "in %s is the share of the negatives that it saw",
                IDLE_UPDATES,
                margin,
                ACTIVE,
                self.path,
            )


def resolve(dataset: CulturalDataset, source: DatasetSource, **known) -> Facts:
    """What the run's flags resolved to; `known`: the facts that are not of the dataset."""
    return Facts(
        dataset=source.name,
        dataset_id=source.location if source.kind == "hub" else None,
        dataset_revision=dataset.commit,
        rows=len(dataset),
        blip_captions=sum(map(len, dataset.blip_captions)),
        negatives=sum(dataset.num_negatives),
        dropped_rows=dataset.dropped,
        fingerprint=dataset.fingerprint,
        **known,
    )


def write_record(folder: Path, arguments: dict, resolved: Facts) -> dict:
    """Write a run's record into its folder, and return it; warns where it differs from that of the run before."""
    record = run_record(arguments, resolved)
    warn_of_changes(folder, record=record)
    write_run_record(folder, record)
    return record


def warn_of_changes(folder: Path, *, record: dict):
    """Say in what a resumed run, with this record, departs from the one that left its own in the folder.

    A longer run is no departure where its rate does not depend on its length.
    """
    if not (folder / RECORD_FILE).exists():
        return
    before = read_run_record(folder, remedy="Remove it, if the runs need not be compared.")
    were, are = (each.get("arguments", {}) | each.get("resolved", {}) for each in (before, record))
    free = {*FREE_FLAGS, *(["updates"] if are["lr_scheduler"].startswith("constant") else [])}
    for fact in sorted(are.keys() - free):
        if were.get(fact) != are[fact]:
            logger.warning(
                "The resumed run departs from the one that was started: %s was %s, is %s",
                fact,
                were.get(fact),
                are[fact],
            )


def abandon_what_follows(output_dir: Path, step: int):
    """Remove what a run going on from `step` makes untrue: later checkpoints, the last pictures and numbers, and the
    card that marks it finished.
    """
    sheets_of_photographs = "images/photographs/*"
    for name in (CARD_FILE, SEAL_FILE, EVALUATION_FILE, JUDGED_FILE, sheets_of_photographs, *PICTURES):
        for file in output_dir.glob(name):
            file.unlink()
    for folder in checkpoints(output_dir):
        if int(folder.name.removeprefix("checkpoint-")) > step:
            logger.warning("%s lies after update %d, from which this run goes on, and is removed.", folder, step)
            discard(folder)


def announce(
    resolved: Facts, *, factors: tuple[int, int, int], lora_parameters: Iterable, perceptual_every: int | None
):
    """Tell what is about to be trained, and warn of losses on images that never fall due.

    factors: of the images per update.  perceptual_every: None where no loss is on images.
    """
    terms = " + ".join(f"{weight:g} {term}" for term, weight in resolved.weights.items())
    logger.info("***** Training %s: %s *****", resolved.name, terms)
    logger.info(f"  {resolved.rows} photographs, {resolved.negatives} negatives; {resolved.dropped_rows} rows dropped")
    batch, processes, accumulation = factors
    logger.info(
        f"  {resolved.images_per_update} images per update = {batch} per batch x {processes} "
        f"processes x {accumulation} accumulation steps"
    )
    due = resolved.updates // perceptual_every if perceptual_every else 0
    logger.info(
        f"  {resolved.updates} updates = {resolved.updates * resolved.images_per_update / resolved.rows:.1f} epochs; "
        f"image losses on {due} updates"
    )
    if perceptual_every and not due:
        logger.warning(
            f"--method {resolved.method} has losses on images, which are due first in update {perceptual_every}, and "
            f"the run has {resolved.updates}: it is one without them. Give more updates, or a smaller "
            "--perceptual_every"
        )
    count = sum(parameter.numel() for parameter in lora_parameters)
    logger.info(f"  {count} LoRA parameters; mixed precision {resolved.mixed_precision}")

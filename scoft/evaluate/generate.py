"""Drawing: pictures of every method from the same prompts and noise, and their manifest."""

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from scoft.launch import progress

import torch

from scoft.base_model import base_commit, drawing_pipeline, load_into_pipeline
from scoft.corrector.callback import Corrector
from scoft.errors import DataError
from scoft.evaluate.correctors import Corrected, check_bases, find_correctors
from scoft.evaluate.features import blocks
from scoft.evaluate.loras import Lora, base_of, find_loras, resolution_of
from scoft.evaluate.prompts import prompts_of_sets
from scoft.evaluate.sample import Choices
from scoft.evaluate.score import foretell
from scoft.evaluate.sources import Photographs
from scoft.files import file_sha256, sole_writer
from scoft.images import is_blank, write_png
from scoft.pictures import (
    BASE,
    Picture,
    PromptSet,
    add_picture,
    method_of,
    pictures_by_file,
    write_pictures,
)
from scoft.weights import model_key, precision


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which pictures are asked for, and how they are drawn."""

    sets: Sequence[PromptSet]
    prompt_files: Mapping[PromptSet, Path]  # of the sets that are no split
    num_captions: int  # of each set that is a split
    num_images: int  # of each prompt
    loras: Mapping[str, str]  # name of each method beside the base model -> folder, file or Hub id
    correctors: Mapping[str, str]  # likewise; under a LoRA's name both together
    checkpoints: bool  # also those in the folders of `loras`
    base: str | None  # Hub id or folder; None: what the LoRAs were trained on
    revision: str | None
    variant: str | None
    guidance: float
    steps: int
    resolution: int | None  # None: what the LoRAs were trained at
    mixed_precision: str | None  # None: accelerate's
    batch_size: int
    cache_dir: str | None


def generate(folder: Path, plan: Plan, photographs: Photographs, choices: Choices):
    """Draw what is not drawn yet, shared out over the processes; every method has the same prompts and seeds.

    choices: numbers to be taken of the pictures; those that they will not give are told before hours of drawing.
    Raises DataError.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    waiting = InitProcessGroupKwargs(timeout=timedelta(days=7))  # for a process that has more to draw
    accelerator = Accelerator(mixed_precision=plan.mixed_precision, kwargs_handlers=[waiting])
    prompts = prompts_of_sets(plan.sets, photographs, files=plan.prompt_files, num_captions=plan.num_captions)
    loras = find_loras(plan.loras, checkpoints=plan.checkpoints, cache_dir=plan.cache_dir)
    correctors = find_correctors(plan.correctors, culture=photographs.dataset.culture, cache_dir=plan.cache_dir)
    beside = {} if loras else correctors  # whose base it is, unless a LoRA or a flag says
    base = base_of(loras, asked=plan.base or next((each.base for each in beside.values()), None))
    check_bases(correctors, base)
    commit = base_commit(base, revision=plan.revision, cache_dir=plan.cache_dir)
    resolution = resolution_of(loras, asked=plan.resolution, base=base, commit=commit, cache_dir=plan.cache_dir)
    common = {
        "culture": photographs.dataset.culture,
        "base": base,
        "base_key": commit or model_key(base),
        "variant": plan.variant,
        "guidance": plan.guidance,
        "steps": plan.steps,
        "resolution": resolution,
        "precision": accelerator.mixed_precision,
    }
    wanted = all_pictures(prompts, loras, correctors, num_images=plan.num_images, common=common)
    alone = sole_writer(folder, flag="folder") if accelerator.is_main_process else contextlib.nullcontext()
    with alone:
        missing = not_there(folder, wanted)
        accelerator.wait_for_everyone()  # all share out the same work, before any adds to what is there
        logger.info("%d of %d pictures are there", len(wanted) - len(missing), len(wanted))
        if missing:
            if accelerator.is_main_process:
                foretell(wanted, choices, photographs)
            methods = {"loras": loras, "correctors": correctors}
            draw_all(folder, missing, accelerator, plan, base=base, commit=commit, **methods)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if lacking := not_there(folder, wanted):
                raise DataError(
                    f"{len(lacking)} pictures were not drawn, {lacking[0].file} the first; run the same again."
                )
            tidy_manifest(folder, wanted)
    accelerator.end_training()


def all_pictures(
    prompts: Mapping[PromptSet, Sequence[tuple[str, str | None]]],
    loras: Mapping[str, Lora],
    correctors: Mapping[str, Corrected],
    *,
    num_images: int,
    common: Mapping[str, object],
) -> list[Picture]:
    """Of the base model, each LoRA and each corrector, of every prompt of every set, `num_images`.

    common: fields that all share.
    """
    return [
        Picture(
            method=method,
            set=name,
            index=index,
            prompt=prompt,
            number=number,
            photograph=photograph,
            lora=lora.place if lora else None,
            lora_sha256=lora.sha256 if lora else None,
            corrector=corrector.place if corrector else None,
            corrector_key=corrector.key if corrector else None,
            **common,
        )
        for method in dict.fromkeys([BASE, *loras, *correctors])
        for lora, corrector in [(loras.get(method), correctors.get(method))]
        for name, chosen in prompts.items()
        for index, (prompt, photograph) in enumerate(chosen)
        for number in range(num_images)
    ]


def not_there(folder: Path, wanted: Sequence[Picture]) -> list[Picture]:
    """The pictures that are still to be drawn: without a file, or whose file's last row is another's."""
    there = {file: picture.key for file, picture in pictures_by_file(folder).items() if (folder / file).is_file()}
    return [each for each in wanted if there.get(each.file) != each.key]


def draw_all(
    folder: Path,
    pictures: Sequence[Picture],
    accelerator,
    plan: Plan,
    *,
    loras: Mapping[str, Lora],
    correctors: Mapping[str, Corrected],
    base: str,
    commit: str | None,
):
    """Draw this process's share of the pictures."""
    pipeline = drawing_pipeline(
        base,
        commit=commit,
        variant=plan.variant,
        cache_dir=plan.cache_dir,
        device=accelerator.device,
        dtype=precision(accelerator),
    )
    needed = {each.method for each in pictures}
    for lora in {lora.place: lora for method, lora in loras.items() if method in needed}.values():  # before hours
        load_lora(pipeline, lora)
        pipeline.unload_lora_weights()
    given = {"culture": pictures[0].culture, "cache_dir": plan.cache_dir}
    callbacks = {
        method: load_corrector(pipeline, each, **given) for method, each in correctors.items() if method in needed
    }
    mine = pictures[accelerator.process_index :: accelerator.num_processes]
    by_method = [list(same) for _, same in itertools.groupby(mine, key=lambda picture: picture.method)]
    batches = [each for same in by_method for each in blocks(same, plan.batch_size)]
    loaded = BASE
    for batch in progress(batches, "Drawing", disable=not accelerator.is_local_main_process):
        if batch[0].method != loaded:
            loaded = batch[0].method
            pipeline.unload_lora_weights()
            if loaded in loras:
                load_lora(pipeline, loras[loaded])
        draw(pipeline, batch, folder=folder, corrector=callbacks.get(loaded))


def load_lora(pipeline, lora: Lora):
    """Load a LoRA. Raises DataError where another has taken its place since its hash was taken."""
    load_into_pipeline(pipeline, lora.file)
    if file_sha256(lora.file) != lora.sha256:
        raise DataError(
            f"--lora {lora.place}: {lora.file} was replaced while pictures were drawn; run the same again."
        )


def load_corrector(pipeline, corrected: Corrected, *, culture: str, cache_dir: str | None) -> Corrector:
    """Load a corrector beside the pipeline. Raises DataError, also where another has taken its place."""
    corrector = Corrector.from_pretrained(corrected.folder, pipeline, culture=culture, cache_dir=cache_dir)
    if corrected.key_now() != corrected.key:
        raise DataError(f"{corrected.place} was replaced since; run the same again", argument="corrector")
    return corrector


def draw(pipeline, batch: Sequence[Picture], *, folder: Path, corrector: Corrector | None):
    """Draw the pictures of one method and write each with its row."""
    prompts = [picture.prompt for picture in batch]
    images = pipeline(
        prompts,
        generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
        num_inference_steps=batch[0].steps,
        guidance_scale=batch[0].guidance,
        height=batch[0].resolution,
        width=batch[0].resolution,
        callback_on_step_end=corrector and corrector(prompts),
    ).images
    for picture, image in zip(batch, images, strict=True):
        write_png(folder / picture.file, image)
        add_picture(folder, dataclasses.replace(picture, blank=is_blank(image)))


def tidy_manifest(folder: Path, wanted: Sequence[Picture]):
    """Leave in the manifest, in order, what was wanted, and what was drawn before of other runs or sets."""
    place = {each.file: i for i, each in enumerate(wanted)}
    renewed = {(method_of(each.method).run, each.set) for each in wanted}
    kept = [
        each
        for file, each in pictures_by_file(folder).items()
        if file in place or (method_of(each.method).run, each.set) not in renewed
    ]
    write_pictures(folder, sorted(kept, key=lambda each: place.get(each.file, -1)))

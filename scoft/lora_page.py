"""A LoRA folder's page, and what of the folder leaves for the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scoft.cultures import culture_words
from scoft.files import write_atomically
from scoft.hub import add_to_collection, files_on_hub, push
from scoft.lora_folder import (
    CARD_FILE,
    EVALUATION_GRID_FILE,
    GRID_FILE,
    KOHYA_FILE,
    LORA_FILE,
    PICTURE_FILE,
    RECORD_FILE,
    Evaluation,
    Facts,
    TrainingRecord,
    lora_sha256,
    read_evaluation,
    read_judged,
    read_run_record,
    read_training_record,
    write_run_record,
)
from scoft.pages import code_text, comparison_rows, page_values


if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

ROOT = Path(__file__).resolve().parents[1]
# By diffusers' class: what its models are called, and the tag that the Hub has for them.
FAMILIES = {
    "StableDiffusionPipeline": ("Stable Diffusion", "stable-diffusion"),
    "StableDiffusionXLPipeline": ("Stable Diffusion XL", "stable-diffusion-xl"),
}
TAGS = ["text-to-image", "diffusers", "diffusers-training", "lora", "template:sd-lora"]
# All of a LoRA folder that loading it and reading its page need; checkpoints, logs and metrics stay at home, and so do
# the sheets in images/photographs, which show the dataset's.
PICTURES = (GRID_FILE, PICTURE_FILE.format("*"), EVALUATION_GRID_FILE)
LORA_FILES = (LORA_FILE, KOHYA_FILE.format("*"), CARD_FILE, *PICTURES)


def write_model_card(folder: Path, *, repo_id: str | None = None):
    """README.md of a LoRA folder, from model_card.md and what lies in the folder: a page of the Hub.

    `repo_id`: where it is or will be on the Hub, which training_args.json then tells later calls. Reads that file,
    and where they exist GRID_FILE, a PICTURE_FILE for each prompt, JUDGED_FILE, and EVALUATION_FILE with
    EVALUATION_GRID_FILE. Numbers of another LoRA than the folder's are left out, with a warning.
    Raises DataError for a record that is not as it was written.
    """
    from huggingface_hub import ModelCard

    record = read_training_record(folder / RECORD_FILE)
    arguments, facts = record.arguments, record.resolved
    if repo_id and facts.hub_model_id != repo_id:
        facts = replace(facts, hub_model_id=repo_id)
        whole = read_run_record(folder, remedy="")
        whole["resolved"]["hub_model_id"] = repo_id
        write_run_record(folder, whole)
    name, prompts = facts.name, facts.prompts
    culture, dataset = words_of_culture(record), dataset_name(facts)
    # A folder's place on a machine is nobody's business; its name is enough.
    base_model = facts.base_model if facts.base_revision else Path(facts.base_model).name
    named = [PICTURE_FILE.format(i) for i in range(len(prompts))]
    pictures = [name for name in named if (folder / name).is_file()]
    judged, evaluation = read_judged(folder), read_evaluation(folder)
    data = metadata_of(record, prompts=prompts, pictures=pictures, evaluation=evaluation)
    card = ModelCard.from_template(
        data,
        template_path=str(ROOT / "model_card.md"),
        family=FAMILIES[facts.pipeline][0],
        kohya_file=Path(KOHYA_FILE.format(name)).stem,
        example=code_text(prompts[0] if prompts else f"Photo of a traditional building, in {culture or name}"),
        base_in_code=code_text(base_model),
        place_in_code=code_text(facts.hub_model_id or folder.resolve().name),
        revision_in_code=code_text(facts.base_revision) if facts.base_revision else None,
        grid=(folder / GRID_FILE).is_file(),
        pictures=pictures,
        judged=page_values(comparison_rows(judged.base, judged.lora)) if judged else None,
        lora_sha256=lora_sha256(folder) if judged or evaluation else None,
        measured=evaluation and evaluation_rows(evaluation),
        evaluation_grid=(folder / EVALUATION_GRID_FILE).is_file(),
        **page_values(
            {
                "name": name,
                "culture": culture,
                "base_model": base_model,
                "dataset": dataset,
                "evaluation": evaluation and asdict(evaluation),
                "arguments": asdict(arguments),
                "facts": asdict(facts),
            }
        ),
    )
    write_atomically(folder / CARD_FILE, str(card))


def metadata_of(
    record: TrainingRecord, *, prompts: Sequence[str], pictures: Sequence[str], evaluation: Evaluation | None
) -> ModelCardData:
    """The YAML with which the page begins, from which the Hub makes its filters, widget and table of results."""
    from huggingface_hub import EvalResult, ModelCardData

    facts, culture = record.resolved, words_of_culture(record)
    dataset, (_, family) = dataset_name(facts), FAMILIES[facts.pipeline]
    return ModelCardData(
        base_model=facts.base_model if facts.base_revision else None,
        base_model_relation="adapter" if facts.base_revision else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        tags=[*TAGS, family, f"{family}-diffusers", "scoft"],
        instance_prompt=prompts[0] if prompts else None,
        widget=[{"text": prompt, "output": {"url": url}} for prompt, url in zip(prompts, pictures)] or None,
        eval_results=evaluation
        and [
            EvalResult(
                task_type="text-to-image",
                dataset_type=dataset,
                dataset_name=f"{dataset}, {culture}",
                metric_type=row.metric,
                metric_name=row.name,
                metric_value=round(row.value, 4),
            )
            for row in evaluation.rows
            if row.method == evaluation.method
        ],
        model_name=facts.name if evaluation else None,
        **facts.license,
    )


def words_of_culture(record: TrainingRecord) -> str | None:
    return culture_words(record.arguments.culture) if record.arguments.culture else None


def dataset_name(facts: Facts) -> str:
    """A Hub id; of a folder its name alone, since its place on a machine is nobody's business."""
    return facts.dataset_id or Path(facts.dataset).name


def evaluation_rows(evaluation: Evaluation) -> list[list[str]]:
    """Each metric with the base model's number and the LoRA's, as text of a page."""
    numbers = {}
    for row in evaluation.rows:
        numbers.setdefault(row.name, {})[row.method] = row.shown
    return page_values(
        [[name, each.get("base", ""), each.get(evaluation.method, "")] for name, each in numbers.items()]
    )


def publish(folder: Path, *, repo_id: str | None, private: bool, collection: str | None, retry: str):
    """Write the page of a finished run's folder and, given a repository of the Hub, push what belongs there.

    collection: the title of one that the LoRA joins.  retry: the command that tries the push again.
    """
    write_model_card(folder, repo_id=repo_id)
    if repo_id:
        push_lora(folder, repo_id=repo_id, private=private, retry=retry)
        if collection:
            add_to_collection(collection, repo_id=repo_id, private=private, retry=retry)


def push_lora(folder: Path, *, repo_id: str, private: bool, retry: str):
    """Push of a LoRA folder what loading it and its page need: LORA_FILES, and the arguments without local places.

    What an earlier push left behind, such as the picture of a prompt that is no more, goes in the same commit.
    """
    record = read_training_record(folder / RECORD_FILE)
    files = {path.relative_to(folder).as_posix(): path for name in LORA_FILES for path in sorted(folder.glob(name))}
    whole = read_run_record(folder, remedy="")
    files[RECORD_FILE] = json.dumps(without_places(whole), indent=2).encode()
    there = files_on_hub(repo_id, repo_type="model")
    stale = [path for path in there if path.endswith(".safetensors") or path.startswith("images/")]
    push(
        repo_id,
        repo_type="model",
        files=files,
        stale=[path for path in stale if path not in files],
        private=private,
        message=f"LoRA after {record.resolved.updates} updates",
        retry=retry,
    )


def without_places(value):
    """`value` with the last name alone of every path in it that starts at a root, a home, here or above."""
    if isinstance(value, str):
        return Path(value).name if value.startswith(("./", "../", "~")) or Path(value).is_absolute() else value
    if isinstance(value, dict):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    return value

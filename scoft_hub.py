"""What leaves for the Hub: pages that nothing told on them can break, and pushes of one commit."""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import logging
import math
import os
import re
import shlex
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from scoft.errors import DataError
from scoft.files import read_front_matter, read_record, write_atomically
from scoft.hub import CREDENTIALS, ask, endpoint, text_of
from scoft.lora_folder import (
    CARD_FILE,
    EVALUATION_FILE,
    JUDGED_FILE,
    KOHYA_FILE,
    LORA_FILE,
    RECORD_FILE,
    Evaluation,
    Judged,
    lora_sha256,
    read_training_record,
)
from scoft_data import culture_words, hub_commit


logger = logging.getLogger(__name__)

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
# All of a LoRA folder that loading it and reading its page need; checkpoints, logs and metrics stay at home, and so do
# the sheets in images/photographs, which show the dataset's.
PICTURES = ("images/before_after.png", "images/lora-*.png", "images/evaluation.png")
LORA_FILES = (LORA_FILE, KOHYA_FILE.format("*"), CARD_FILE, *PICTURES)
WAITS = (2, 10, 30)  # seconds before a commit that failed is tried again
BUSY = (408, 412, 429, 500, 502, 503, 504)  # statuses of a Hub that may take the same commit later
PUSH_TIME, PUSH_SPEED = 900, 2**14  # a push may last so many seconds, and one more for each so many bytes
MAX_SAID = 600  # characters of what others say that we repeat
# Licences of the base models that most use, where their own pages cannot be read: a part of the id -> licence.
BASE_LICENSES = {"stable-diffusion-v1": "creativeml-openrail-m", "stable-diffusion-2": "openrail++"}


# ---------------------------------------------------------------------------------------------------------------------
# Base models
# ---------------------------------------------------------------------------------------------------------------------


def base_commit(name_or_path: str, *, revision: str | None, cache_dir: str | None) -> str | None:
    """The commit of the base model on the Hub, from which all of its parts are then loaded; None for a folder."""
    if Path(name_or_path).is_dir():
        if revision is not None:
            raise DataError(f"--revision {revision} is of a Hub model, but {name_or_path} is a folder; leave it out")
        return None
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        return hub_commit(name_or_path, revision=revision, file="model_index.json", cache_dir=cache_dir)
    except (OSError, HTTPError, HFValidationError) as error:
        raise DataError(
            f"--pretrained_model_name_or_path {name_or_path} is no folder, and {endpoint()} has no such pipeline that "
            f"can be read: {error}"
        ) from error


def license_of(base_model: str, *, revision: str | None, cache_dir: str | os.PathLike | None) -> dict[str, str]:
    """`license`, and `license_name` and `license_link` where there are such, of a base model; empty where unknown.

    From the README of its folder, or of its Hub repository or cached copy, else by its name.
    """
    from huggingface_hub import hf_hub_download

    readme, said = Path(base_model, CARD_FILE), {}
    by_name = "Its licence is told by its name."
    if revision is not None:
        try:
            readme = Path(hf_hub_download(base_model, CARD_FILE, revision=revision, cache_dir=cache_dir))
        except OSError:
            logger.info("%s has no README that can be read now. %s", base_model, by_name)
    if readme.is_file():
        try:
            said = read_front_matter(readme)
        except DataError as error:
            logger.warning("%s %s", error, by_name)
    told = {key: said.get(key) for key in ("license", "license_name", "license_link")}
    found = {key: value for key, value in told.items() if isinstance(value, str) and len(value) <= MAX_SAID}
    named = [license for part, license in BASE_LICENSES.items() if part in base_model]
    return found or ({"license": named[0]} if named else {})


# ---------------------------------------------------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------------------------------------------------


def markdown_text(value: object) -> str:
    """A value as words on one line of a page: what Markdown, HTML or a table would act on is shown as it is.

    It does not hide a list's or heading's mark at the start of a line, so no line of a template starts with a value.
    """
    line = "".join(character for character in " ".join(str(value).split()) if character.isprintable())
    line = re.sub(r"([\\`*_\[\]|~#!$@])", r"\\\1", html.escape(line, quote=False))
    return re.sub(r"(?<=\bwww)\.|:(?=//)", lambda found: "\\" + found[0], line)  # else GitHub's Markdown makes a link


def page_values(value):
    """All text in `value`, its lists and its dicts, but not their keys, as `markdown_text`."""
    if isinstance(value, str):
        return markdown_text(value)
    if isinstance(value, dict):
        return {key: page_values(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [page_values(each) for each in value]
    return value


def code_text(value: str) -> str:
    """A string literal of Python and of JSON, for a block of code on a page."""
    return json.dumps(value, ensure_ascii=False)


def write_model_card(folder: Path, *, repo_id: str | None = None):
    """README.md of a LoRA folder, from model_card.md and what lies in the folder: a page of the Hub.

    `repo_id`: where it is or will be on the Hub, which training_args.json then tells later calls. Reads that file,
    and where they exist images/before_after.png, images/lora-<i>.png, one for each prompt, JUDGED_FILE, and
    EVALUATION_FILE with images/evaluation.png. Numbers of another LoRA than the folder's are left out, with a warning.
    Raises DataError for a record that is not as it was written.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    record = read_training_record(folder / RECORD_FILE)
    arguments, facts = record.arguments, record.resolved
    if repo_id and facts.hub_model_id != repo_id:
        facts = replace(facts, hub_model_id=repo_id)
        whole = read_record(folder / RECORD_FILE, dict, remedy="")
        whole["resolved"]["hub_model_id"] = repo_id
        write_atomically(folder / RECORD_FILE, json.dumps(whole, indent=2) + "\n")
    name, prompts = facts.name, facts.prompts
    culture = culture_words(arguments.culture) if arguments.culture else None
    # A folder's place on a machine is nobody's business; its name is enough.
    base_model = facts.base_model if facts.base_revision else Path(facts.base_model).name
    pictures = [f"images/lora-{i}.png" for i in range(len(prompts)) if (folder / f"images/lora-{i}.png").is_file()]
    judged = numbers_of(folder, JUDGED_FILE, Judged, remedy=f"Train again, or remove {JUDGED_FILE}.")
    evaluation = numbers_of(folder, EVALUATION_FILE, Evaluation, remedy="Run evaluate_scoft.py report --card again.")
    dataset = facts.dataset_id or Path(facts.dataset).name
    data = ModelCardData(
        base_model=base_model if facts.base_revision else None,
        base_model_relation="adapter" if facts.base_revision else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        tags=[
            "text-to-image",
            "diffusers",
            "diffusers-training",
            "lora",
            "template:sd-lora",
            "stable-diffusion",
            "stable-diffusion-diffusers",
            "scoft",
        ],
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
        model_name=name if evaluation else None,
        **facts.license,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(HERE / "model_card.md"),
        kohya_file=Path(KOHYA_FILE.format(name)).stem,
        example=code_text(prompts[0] if prompts else f"Photo of a traditional building, in {culture or name}"),
        base_in_code=code_text(base_model),
        place_in_code=code_text(facts.hub_model_id or folder.resolve().name),
        revision_in_code=code_text(facts.base_revision) if facts.base_revision else None,
        grid=(folder / "images/before_after.png").is_file(),
        pictures=pictures,
        judged=page_values(comparison_rows(judged.base, judged.lora)) if judged else None,
        lora_sha256=lora_sha256(folder) if judged or evaluation else None,
        measured=evaluation and evaluation_rows(evaluation),
        evaluation_grid=(folder / "images/evaluation.png").is_file(),
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


def numbers_of(folder: Path, name: str, kind: type[T], *, remedy: str) -> T | None:
    """The Judged or Evaluation in this file of a LoRA folder; None, if there is none or it is of another LoRA."""
    if not (folder / name).is_file():
        return None
    found = read_record(folder / name, kind, remedy=remedy)
    if found.lora_sha256 == lora_sha256(folder):
        return found
    logger.warning("%s is of another LoRA than its folder's, and is left off the page. %s", folder / name, remedy)
    return None


def evaluation_rows(evaluation: Evaluation) -> list[list[str]]:
    """Each metric with the base model's number and the LoRA's, as text of a page."""
    numbers = {}
    for row in evaluation.rows:
        numbers.setdefault(row.name, {})[row.method] = row.shown
    return page_values(
        [[name, each.get("base", ""), each.get(evaluation.method, "")] for name, each in numbers.items()]
    )


def comparison_rows(base: dict[str, float], lora: dict[str, float]) -> list[tuple[str, ...]]:
    """Numbers as rows of text, base beside LoRA, below a row of headings.

    <name>_low and <name>_high, where both are there, stand in the row of <name> as its interval.
    """
    names = base | lora
    bounds = {name: (f"{name}_low", f"{name}_high") for name in names}
    bounds = {name: pair for name, pair in bounds.items() if names.keys() >= set(pair)}
    rows = [("", "base", "LoRA")]
    for name in names:
        if not any(name in pair for pair in bounds.values()):
            keys = (name, *bounds.get(name, ()))
            cells = [[numbers[key] for key in keys if key in numbers] for numbers in (base, lora)]
            decimals = shown_decimals([*cells[0], *cells[1]])
            rows.append((name, *(with_interval(cell, decimals) for cell in cells)))
    return rows


def shown_decimals(values: Sequence[float]) -> int:
    """How many decimals numbers are shown with: none if all are int, else two, or more where all are small."""
    if all(isinstance(value, int) for value in values):
        return 0
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0)
    return max(2, 1 - math.floor(math.log10(largest))) if largest > 0 else 2


def with_interval(values: Sequence[float], decimals: int = 2) -> str:
    """'0.61 [0.48, 0.72]' of a number, its lower and its upper bound; '0.61' of a number alone."""
    number, *interval = [f"{value:.{decimals}f}" for value in values] or [""]
    return f"{number} [{', '.join(interval)}]" if interval else number


# ---------------------------------------------------------------------------------------------------------------------
# Out
# ---------------------------------------------------------------------------------------------------------------------


def command_again(script: str, argv: Sequence[str], *, without: Sequence[str] = (), more: Sequence[str] = ()) -> str:
    """A script's command line, to be given once more: without some flags that have a value, and with more."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in without:
        parser.add_argument(flag)
    return shlex.join(["python", script, *parser.parse_known_args(argv)[1], *more])


@contextlib.contextmanager
def hub_errors(what: str, *, remedy: str):
    """Let a DataError say what failed on the Hub, how, and what can be done."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except DataError:
        raise
    except (HTTPError, OSError, ValueError) as error:  # ValueError: a name or a page that the Hub does not take
        said = textwrap.shorten(CREDENTIALS.sub("", str(error)), MAX_SAID)
        raise DataError(f"{what}: {said}\n{remedy}") from error


def ready_repo(repo_id: str, *, repo_type: str, private: bool, flag: str) -> tuple[str, bool]:
    """The full id of a repository that can be written to, created if there is none, and whether it is private.

    `name` becomes `<you>/name`. A repository that exists keeps its visibility: one that all can see is refused where
    a private one is asked for. Raises DataError, which names `flag`.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise DataError(f"{flag} {repo_id}: nobody is logged in. `hf auth login`, or set HF_TOKEN.")

    def create(api) -> tuple[str, bool]:
        full_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        return full_id, is_private(api, full_id, repo_type=repo_type)[0]

    with hub_errors(f"{flag} {repo_id} cannot be written to", remedy="Name another, or log in as one who may."):
        full_id, found_private = ask(create)
    if private and not found_private:
        raise DataError(f"{flag} {full_id} is public already on {endpoint()}; make it private there or name another.")
    return full_id, found_private


def is_private(api, repo_id: str, *, repo_type: str) -> tuple[bool, str | None]:
    """Whether a repository is private, for sure, and its newest commit; what the Hub leaves open is public."""
    info = api.repo_info(repo_id, repo_type=repo_type)
    return info.private is True, info.sha


def files_on_hub(repo_id: str, *, repo_type: str) -> list[str]:
    """The files of a repository's main branch. Raises DataError."""
    with hub_errors(f"{repo_id} cannot be read", remedy="Is the Hub reachable, and may you see it?"):
        return ask(lambda api: [text_of(path, ".+") for path in api.list_repo_files(repo_id, repo_type=repo_type)])


def push(
    repo_id: str,
    *,
    repo_type: str,
    files: dict[str, Path | bytes],
    stale: Sequence[str],
    private: bool,
    message: str,
    retry: str,
) -> str:
    """Commit `files` (path in the repository -> file or content), without `stale` ones; returns the address.

    All of it arrives, or nothing, and then DataError names `retry`, the command that tries again. What is `private`
    is sent to no repository that is public by now, however long ago it was readied: it is asked before the files are
    uploaded, and again before the commit that shows them, which belongs to the very repository that was asked.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    address = "/".join([endpoint(), *(["datasets"] if repo_type == "dataset" else []), repo_id])
    size = sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())

    def head(api) -> str | None:
        found_private, commit = is_private(api, repo_id, repo_type=repo_type)
        if private and not found_private:
            raise DataError(
                f"{address} has become public, and what was to be pushed is not for all: nothing was committed. Make "
                f"it private on the Hub, then: {retry}"
            )
        return commit

    def commit(api):
        head(api)
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        there = api.list_repo_files(repo_id, repo_type=repo_type) if stale else ()
        deleted = [CommitOperationDelete(path) for path in stale if path in there]  # the last try may have arrived
        api.preupload_lfs_files(repo_id, added, repo_type=repo_type, free_memory=False)
        where = {"repo_id": repo_id, "repo_type": repo_type, "parent_commit": head(api)}
        api.create_commit(operations=added + deleted, commit_message=message, **where)

    with hub_errors(f"{address}: the push failed", remedy=f"All is kept here. To push it again: {retry}"):
        ask(lambda api: persistently(lambda: commit(api)), seconds=PUSH_TIME + size / PUSH_SPEED)
    logger.info("Pushed to %s", address)
    return address


def persistently(commit: Callable[[], None]):
    """Call `commit`, again after each of WAITS as long as the Hub is busy, broken or gone; then let its error pass.

    huggingface_hub repeats all other requests itself. A commit that arrived though its answer did not is no harm: the
    next one finds nothing changed. 412: somebody else committed in between.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    for wait in WAITS:
        try:
            return commit()
        except HTTPError as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code not in BUSY:
                raise
            logger.warning("The push failed (%s); once more in %d seconds", str(error).split("\n")[0], wait)
            time.sleep(wait)
    return commit()


def push_lora(folder: Path, *, repo_id: str, private: bool, retry: str):
    """Push of a LoRA folder what loading it and its page need: LORA_FILES, and the arguments without local places.

    What an earlier push left behind, such as the picture of a prompt that is no more, goes in the same commit.
    """
    record = read_training_record(folder / RECORD_FILE)
    files = {path.relative_to(folder).as_posix(): path for name in LORA_FILES for path in sorted(folder.glob(name))}
    whole = read_record(folder / RECORD_FILE, dict, remedy="")
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
    """`value` with the last name alone of every absolute path in it."""
    if isinstance(value, str):
        return Path(value).name if Path(value).is_absolute() else value
    if isinstance(value, dict):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_places(each) for each in value]
    return value


def add_to_collection(title: str, *, repo_id: str, private: bool, retry: str):
    """Put a model into the collection of this title of the model's owner, which is created if there is none."""
    owner = repo_id.partition("/")[0]

    def join(api) -> str:
        slug = api.create_collection(title, namespace=owner, private=private, exists_ok=True).slug
        return api.add_collection_item(slug, repo_id, "model", exists_ok=True).slug

    with hub_errors(f"{repo_id} did not get into the collection {title!r}", remedy=f"To try again: {retry}"):
        slug = ask(join)
    logger.info("In the collection %s/collections/%s", endpoint(), slug)

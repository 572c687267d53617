"""A corrector folder's page, and what of the folder leaves for the Hub."""

import dataclasses
import json
from pathlib import Path

from scoft.correct.fit import Fit
from scoft.correct.pictures import GRID_FILE, Judged
from scoft.corrector.callback import WEIGHTS_FILES, shared_config
from scoft.corrector.preference import Preference
from scoft.cultures import culture_words
from scoft.dataset import CulturalDataset
from scoft.dataset_source import DatasetSource
from scoft.files import read_record, write_atomically
from scoft.hub import push
from scoft.lora_folder import CARD_FILE
from scoft.pages import code_text, comparison_rows, page_values


ROOT = Path(__file__).resolve().parents[2]
RECORD_FILE = "fit.json"
TAGS = ["text-to-image", "diffusers", "stable-diffusion", "stable-diffusion-diffusers", "scoft", "corrector"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """RECORD_FILE: what a fit was given, and what it came to."""

    base_revision: str | None  # commit of the Hub; None: a folder
    license: dict[str, str]
    dataset: str  # a Hub id, or a folder's name
    dataset_id: str | None  # of the Hub
    dataset_revision: str | None
    rows: int
    negatives: int
    fingerprint: str
    parameters: int  # of the preference
    resolution: int
    example: str  # a prompt
    guidance_scale: float  # of the pictures
    fitting: dict[str, int | float | None]
    accuracy: dict[str, list[float]]  # see `pair_accuracy`
    judged: Judged | None


def record_of(fit: Fit, dataset: CulturalDataset, source: DatasetSource, **known) -> Record:
    """known: the fields that are of neither of these."""
    is_hub = source.kind == "hub"
    return Record(
        dataset=source.location if is_hub else Path(source.name).name,
        dataset_id=source.location if is_hub else None,
        dataset_revision=dataset.commit,
        rows=len(dataset),
        negatives=sum(dataset.num_negatives),
        fingerprint=dataset.fingerprint,
        parameters=sum(each.numel() for each in fit.preference.parameters()),
        fitting=vars(fit.fitting),
        **known,
    )


def write_record(folder: Path, record: Record):
    write_atomically(folder / RECORD_FILE, json.dumps(dataclasses.asdict(record), indent=2, default=float) + "\n")


def read_fit_record(folder: Path) -> Record:
    """Raises DataError."""
    return read_record(folder / RECORD_FILE, Record, remedy="correct_scoft.py writes it: fit again.")


def write_card(folder: Path, *, repo_id: str | None):
    """README.md of a folder with a corrector and RECORD_FILE, from corrector_card.md; it is written last of all."""
    from huggingface_hub import ModelCard, ModelCardData

    record, config = read_fit_record(folder), Preference.load_config(folder)
    on_hub = record.base_revision is not None
    base = config["base_model"] if on_hub else Path(config["base_model"]).name
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        datasets=[record.dataset_id] if record.dataset_id else None,
        tags=TAGS,
        **record.license,
    )
    judged = record.judged
    card = ModelCard.from_template(
        data,
        template_path=str(ROOT / "corrector_card.md"),
        base_in_code=code_text(base),
        place_in_code=code_text(repo_id or folder.resolve().name),
        example=code_text(record.example),
        grid=(folder / GRID_FILE).is_file(),
        levels=[(round(t), f"{share:.2f}") for t, share in zip(*record.accuracy.values())],
        judged=judged and page_values(comparison_rows(judged.base, judged.corrected, called="corrected")),
        **page_values(
            {
                "culture": culture_words(config["culture"]),
                "base_model": base,
                "words": ", ".join(config["words"]),
                "config": {name: config[name] for name in config if not name.startswith("_")},
                "record": dataclasses.asdict(record),
            }
        ),
    )
    write_atomically(folder / CARD_FILE, str(card))


def publish(folder: Path, *, repo_id: str | None, private: bool, retry: str):
    """Write the page of a finished fit's folder and, given a repository of the Hub, push what belongs there.

    retry: the command that tries the push again.
    """
    write_card(folder, repo_id=repo_id)
    if repo_id is None:
        return
    files = {name: folder / name for name in (*WEIGHTS_FILES, CARD_FILE, GRID_FILE) if (folder / name).is_file()}
    files["config.json"] = shared_config(folder)
    message = f"Corrector after {read_fit_record(folder).fitting['updates']} updates"
    stale = () if GRID_FILE in files else (GRID_FILE,)
    push(repo_id, repo_type="model", files=files, stale=stale, private=private, message=message, retry=retry)

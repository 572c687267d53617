"""The end of a run that went to its end: its page, and its place on the Hub."""

from pathlib import Path

from scoft.hub import add_to_collection
from scoft.lora_page import push_lora, write_model_card


def publish(folder: Path, *, repo_id: str | None, private: bool, collection: str | None, retry: str):
    """Write the page of a finished run's folder and, given a repository of the Hub, push what belongs there.

    collection: the title of one that the LoRA joins.  retry: the command that tries the push again.
    """
    write_model_card(folder, repo_id=repo_id)
    if repo_id:
        push_lora(folder, repo_id=repo_id, private=private, retry=retry)
        if collection:
            add_to_collection(collection, repo_id=repo_id, private=private, retry=retry)

"""A copy of the answers in a private dataset on the Hub, for machines that forget their disk, as Spaces do."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import CommitScheduler, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from scoft.errors import DataError
from scoft.files import private_folder, write_atomically
from scoft.hub import hub_errors, is_private, ready_repo
from scoft.survey.posts import Checker, Refused
from scoft.survey.schema import Answer
from scoft.survey.store import Store, answer_text, every_answer, withdrawals


logger = logging.getLogger(__name__)

MIRROR_FOLDER = "mirror"  # in the survey's; what lies in it is on the Hub
MIRROR_FILE = "answers.jsonl"
LAST_PUSH = 60  # seconds that the end waits for the last commit
EVERY = 1  # minutes between commits; what came after the last one is lost where a machine ends without a word


class PrivateScheduler(CommitScheduler):
    """huggingface_hub's, but nothing is sent to a repository that has become public."""

    def push_to_hub(self):
        if not is_private(self.api, self.repo_id, repo_type="dataset")[0]:
            raise DataError(f"{self.repo_id} has become public: no more answers are sent. Make it private again.")
        return super().push_to_hub()


class Mirror:
    """Puts back into `store` what the dataset has, and then keeps it as `store` is. A context manager; one server a
    dataset. Raises DataError, which names the parameter `mirror`.
    """

    def __init__(self, repo_id: str, folder: Path, store: Store, checker: Checker):
        self.folder, self.store = folder, store
        self.repo_id, _ = ready_repo(repo_id, repo_type="dataset", private=True, flag="mirror")
        place = private_folder(folder / MIRROR_FOLDER, flag="folder")
        self.file = place / MIRROR_FILE
        restored = self.put_back(checker)
        self.write_all()
        self.scheduler = PrivateScheduler(
            repo_id=self.repo_id,
            repo_type="dataset",
            folder_path=place,
            every=EVERY,
            private=True,
            squash_history=True,
        )
        store.committed = self.committed
        logger.info("The answers are mirrored to %s; %d lines were read from there.", self.repo_id, restored)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_):
        try:
            self.scheduler.trigger().result(LAST_PUSH)
        except (HTTPError, OSError, ValueError) as error:
            logger.error("The last answers are in %s alone; they are sent at the next start: %s", self.folder, error)
        self.scheduler.stop()

    def put_back(self, checker: Checker) -> int:
        """Put the dataset's answers and withdrawals into the store; how many lines there are."""
        kept, gone = [], []
        for number, line in enumerate(self.lines(), start=1):
            try:
                withdrawn = json.loads(line).get("withdrawn")
                gone += [withdrawn] if withdrawn else []
                kept += [] if withdrawn else [checker.post(line).answer]
            except (Refused, ValueError, AttributeError) as error:
                raise DataError(
                    f"{self.repo_id}: line {number} of its {MIRROR_FILE} is no answer to this survey ({error}); "
                    "name a dataset of this survey's own.",
                    argument="mirror",
                ) from error
        self.store.put_back(kept, gone).result()
        return len(kept) + len(gone)

    def lines(self) -> Iterator[bytes]:
        """The lines of the dataset's file; none where there is no file yet."""
        remedy = "Is the Hub reachable, and may you see it?"
        with tempfile.TemporaryDirectory() as place, hub_errors(f"{self.repo_id} cannot be read", remedy=remedy):
            try:
                file = hf_hub_download(self.repo_id, MIRROR_FILE, repo_type="dataset", local_dir=place)
            except EntryNotFoundError:
                return
            with open(file, "rb") as content:
                yield from content

    def committed(self, new: Sequence[Answer], withdrawn: bool):
        """What the store calls behind a commit: add what is new, or leave out what is gone."""
        with self.scheduler.lock:
            if withdrawn:
                self.write_all()
            else:
                with self.file.open("a", encoding="utf-8") as file:
                    file.writelines(line_of(answer_text(answer)) for answer in new)

    def write_all(self):
        gone = [json.dumps({"withdrawn": each}) + "\n" for each in withdrawals(self.folder)]
        write_atomically(self.file, "".join([*map(line_of, every_answer(self.folder)), *gone]))


def line_of(text: str) -> str:
    """A line of the file: what a browser would post."""
    return f'{{"answer":{text}}}\n'

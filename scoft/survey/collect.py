"""Answers that participants saved as files, put beside those that were posted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scoft.errors import DataError
from scoft.files import read_file, sole_writer
from scoft.survey.posts import MAX_BODY, Checker, Refused
from scoft.survey.schema import read_pages
from scoft.survey.store import Store


logger = logging.getLogger(__name__)

MAX_FILE = 2**22  # bytes: a thousand pages of one participant stay below


def collect(folder: Path, files: Sequence[Path]) -> Counter[str]:
    """Keep the answers of files, a line each, in a survey's folder; how many became what. Raises DataError.

    An answer that is there already counts once, and a line that is no answer to this survey is told and left out.
    """
    checker, found = Checker(read_pages(folder)), Counter()
    lines = [(file, line) for file in files for line in read_file(file, at_most=MAX_FILE).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{', '.join(map(str, files))}: no line holds an answer.")
    with sole_writer(folder, flag="folder"), Store(folder) as store:
        for file, line in lines:
            try:
                if len(line) > MAX_BODY:
                    raise Refused(413, "too_large", f"an answer has at most {MAX_BODY} bytes")
                answer = checker.post(b'{"answer":' + line + b"}").answer
            except Refused as refused:
                store.refuse(refused.reason)
                found[refused.reason] += 1
                logger.warning("%s: a line was left out: %s", file, refused.told)
                continue
            found[store.keep(answer).result().state] += 1
    logger.info("Of %d lines: %s", len(lines), ", ".join(f"{count} {what}" for what, count in sorted(found.items())))
    return found

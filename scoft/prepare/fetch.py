"""The stage fetch: read what is asked for, and bring the photographs that links lead to."""

import dataclasses
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scoft.launch import progress

from scoft.cultures import SHEET_TABS
from scoft.files import Ledger, write_atomically
from scoft.prepare.photograph import Photograph, read_photographs, write_photographs
from scoft.prepare.sources import read_images, read_links, read_table
from scoft.prepare.web import Fetched, Fetcher
from scoft.prepare.work import REMEDY, Run


SHEET = "https://docs.google.com/spreadsheets/d/1dbSXgwCZuu9zpDZyUQ-pKDZGRYhzeaXCR5geRYNUwEA/export?format=csv&gid={}"
ARCHIVE = "https://web.archive.org/web/2023id_/{}"
FETCH_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """The stage: from a source to a manifest of what came of each of its rows."""

    links: str | None  # a file or URL; CCUB's own sheet where neither is given
    images: Path | None
    archive: bool
    retry_failed: bool

    def run(self, run: Run, *, fetcher: Fetcher) -> list[Photograph]:
        """The photographs of the manifest, in the order of the source; an earlier run's if this one does not fetch."""
        if run.is_main and run.does("fetch"):
            photographs = known_again(self.found(run, fetcher=fetcher), read_photographs(run.folder))
            write_photographs(run.folder, photographs)
        run.wait()
        return read_photographs(run.folder)

    def found(self, run: Run, *, fetcher: Fetcher) -> list[Photograph]:
        if self.images:
            return read_images(self.images)
        source = self.links or SHEET.format(SHEET_TABS[run.culture])
        return fetch_links(
            read_links(read_table(source, fetcher=fetcher), culture=run.culture, source=source),
            run.folder / "fetched",
            fetcher=fetcher,
            archive=self.archive,
            retry_failed=self.retry_failed,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An entry of `fetches.jsonl`: what came of a link, by the manifest's names."""

    status: str
    detail: str
    source_sha256: str
    final_url: str = ""
    fetched_at: str = ""
    license: str = ""


def fetch_links(
    photographs: Sequence[Photograph], folder: Path, *, fetcher: Fetcher, archive: bool, retry_failed: bool
) -> list[Photograph]:
    """The photographs with what came of their links, hosts asked side by side; the bytes go into `folder`.

    What came is written down at once, in fetches.jsonl there, so that no link is asked for twice, also after a kill.
    """
    folder.mkdir(exist_ok=True)
    ledger = Ledger(folder / "fetches.jsonl")
    done = ledger.read_by_key(Outcome, remedy=REMEDY)

    def is_settled(link: Photograph) -> bool:
        status = done[link.id].status if link.id in done else None
        if status == "ok":
            return (folder / link.id).exists()
        return status == "denied" or status is not None and not retry_failed

    hosts: dict[str, list[Photograph]] = defaultdict(list)
    for photograph in photographs:
        if photograph.status == "pending" and not is_settled(photograph):
            hosts["".join(photograph.url.split("/", 3)[2:3])].append(photograph)

    stop = threading.Event()
    with (
        progress(desc="Fetching", total=sum(map(len, hosts.values()))) as bar,
        ThreadPoolExecutor(FETCH_THREADS) as pool,
    ):

        def fetch_in_turn(links: list[Photograph]):
            for photograph in links:
                if stop.is_set():
                    return
                fetched = fetcher.fetch(photograph.url)
                if archive and fetched.http_code in (404, 410):
                    copy = fetcher.fetch(ARCHIVE.format(photograph.url))
                    fetched = copy if copy.status == "ok" else fetched
                if fetched.content is not None:
                    write_atomically(folder / photograph.id, fetched.content)
                ledger.add(photograph.id, **dataclasses.asdict(outcome(fetched)))
                bar.update()

        try:
            list(pool.map(fetch_in_turn, hosts.values()))
        finally:  # else Ctrl-C would wait for all links of the hosts in hand
            stop.set()

    came = {key: dataclasses.asdict(entry) for key, entry in ledger.read_by_key(Outcome, remedy=REMEDY).items()}
    return [dataclasses.replace(p, **came[p.id]) if p.status == "pending" else p for p in photographs]


def outcome(fetched: Fetched) -> Outcome:
    return Outcome(
        status=fetched.status,
        detail=fetched.detail,
        final_url=fetched.final_url,
        fetched_at=fetched.fetched_at,
        license=fetched.licence or "",
        source_sha256=fetched.sha256 or "",
    )


def known_again(found: Sequence[Photograph], manifest: Sequence[Photograph]) -> list[Photograph]:
    """The photographs found now, each in the split that the manifest of an earlier run has for it.

    Where the bytes are as they were then, what cleaning and writing put into its line is taken over too.
    """
    known = {photograph.id: photograph for photograph in manifest}
    later = ("status", "detail", "file", "sha256", "width", "height", "negatives")
    photographs = []
    for new in found:
        if old := known.get(new.id):
            is_same = new.source_sha256 and new.source_sha256 == old.source_sha256
            found_out = {name: getattr(old, name) for name in later if is_same}
            new = dataclasses.replace(new, **found_out, split=new.split or old.split)
        photographs.append(new)
    return photographs

"""What the tests of the survey share: generated pictures, a survey built of them, its server, and answers."""

import contextlib
import http.client
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

import survey_scoft
from scoft.pictures import Picture, add_picture
from scoft.survey.schema import ITEMS, Answer, Key, read_key


ROOT = Path(survey_scoft.__file__).parent
METHODS = ("base", "quokka", "tapir", "zebra@20", "zebra")  # words that no page has by chance, base apart
SHOWN = ("quokka", "tapir", "zebra", "zebra@20")


def draw(folder: Path, *, prompts: int, methods=METHODS, side: int = 24, culture: str = "korea", **changes):
    """Pictures as `evaluate_scoft.py generate` writes them, one noise a prompt; the files are not alike in size."""
    generator = np.random.default_rng(0)
    for index in range(prompts):
        for place, method in enumerate(methods):
            fields = {"set": "prompts", "index": index, "number": 0, "prompt": f"a house ({index}), in Korea"}
            fields |= {"photograph": None, "base": "b", "base_key": "b", "variant": None, "lora": None, "steps": 1}
            fields |= {"lora_sha256": None, "guidance": 1.0, "resolution": side, "precision": "no"} | changes
            picture = Picture(culture=culture, method=method, **fields)
            cells = generator.integers(0, 256, (2 + place, 3 + place, 3), dtype=np.uint8)
            image = Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST)
            told = PngImagePlugin.PngInfo()
            told.add_text("method", method)
            (folder / picture.file).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / picture.file, pnginfo=told)
            add_picture(folder, picture)
    return folder


def build(pictures: Path, folder: Path, *flags: object) -> Path:
    survey_scoft.main(["build", str(pictures), str(folder), *map(str, flags)])
    return folder


def answer(key: Key, page: int = 0, **changes) -> dict:
    """A whole answer, as a browser posts it; changes: of its fields."""
    pictures = [name for name, shown in key.pictures.items() if shown.page == page]
    ranks = {item: {name: rank for rank, name in enumerate(pictures, start=1)} for item in ITEMS}
    fields = {"survey": key.survey, "participant": secrets.token_hex(16), "page": page, "revision": 1}
    fields |= {"language": "en", "milliseconds": 1000, "order": pictures, "ranks": ranks}
    return fields | changes


def made(fields: dict) -> Answer:
    return Answer(**fields)


class Server:
    """survey_scoft.py serve, as a process of its own."""

    def __init__(self, folder: Path, *flags: object, port: int = 0, before: str = "", key: Key | None = None):
        code = f"{before}\nimport survey_scoft; survey_scoft.main()"
        words = ["serve", folder, "--port", port, *flags]
        self.folder, self.key = folder, key or read_key(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        self.log = ""
        for line in self.process.stderr:
            self.log += line
            if found := re.search(r"The survey is at (http://[\d.]+:(\d+)/)", line):
                self.url, self.port = found[1], int(found[2])
                return
        raise AssertionError(self.log)

    def stop(self, *, kill: bool = False):
        self.process.kill() if kill else self.process.terminate()
        self.log += self.process.communicate()[1]

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict, dict]:
        """Status, JSON and headers of the answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as line:
            line.request(method, path, body if isinstance(body, (bytes, type(None))) else json.dumps(body), headers)
            return read(line)

    def post(self, fields: dict, panel: str | None = None) -> tuple[int, dict]:
        return self.ask("POST", "/answers", {"answer": fields, "panel": panel})[:2]

    def peak_memory(self) -> int:
        """Kilobytes."""
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1])


def read(line: http.client.HTTPConnection) -> tuple[int, dict, dict]:
    response = line.getresponse()
    body = response.read()
    is_json = response.headers.get("content-type", "").startswith("application/json")
    return response.status, json.loads(body) if is_json else {"body": body}, dict(response.headers)


@contextlib.contextmanager
def served(folder: Path, *flags: object, **options) -> Iterator[Server]:
    server = Server(folder, *flags, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()

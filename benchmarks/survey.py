#!/usr/bin/env python
"""How many participants the survey's server takes.

    python -m benchmarks.survey --output benchmarks/results/survey.json

Builds a survey of pictures of noise, serves it by its command, and answers all of its pages as browsers would, over
`--clients` connections that stay open: each participant asks for the page, then posts an answer a page. Clients and
server share this machine, so the server alone would be faster. In the end every answer that was acknowledged must be
there, once.
"""

import argparse
import http.client
import json
import os
import platform
import queue
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

import survey_scoft
from benchmarks.train_step import processor, rounded
from scoft.images import write_png
from scoft.pictures import Picture, add_picture
from scoft.survey.schema import ANSWERS_FILE, ITEMS, Key, read_key
from scoft.survey.store import answers


ROOT = Path(survey_scoft.__file__).parent
METHODS = ("base", "finetune", "m", "mpc")


def draw(folder: Path, *, prompts: int):
    """Pictures of noise, as evaluate_scoft.py generate writes them."""
    generator = np.random.default_rng(0)
    same = {"set": "prompts", "number": 0, "photograph": None, "base": "noise", "base_key": "noise", "variant": None}
    same |= {"lora": None, "lora_sha256": None, "guidance": 1.0, "steps": 1, "resolution": 64, "precision": "no"}
    for index in range(prompts):
        for method in METHODS:
            picture = Picture(culture="veridia", method=method, index=index, prompt=f"noise {index}", **same)
            pixels = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            write_png(folder / picture.file, Image.fromarray(pixels))
            add_picture(folder, picture)


def serve(folder: Path) -> tuple[subprocess.Popen, int]:
    """The server's process and its port."""
    command = [sys.executable, "survey_scoft.py", "serve", str(folder), "--port", "0", "--rate", "1e9"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"http://127.0.0.1:(\d+)/", line):
            return process, int(found[1])
    raise SystemExit("the server did not start")


def posts_of(key: Key) -> list[bytes]:
    """A participant's posts, one a page."""
    participant, posts = secrets.token_hex(16), []
    for page in sorted({shown.page for shown in key.pictures.values()}):
        names = [name for name, shown in key.pictures.items() if shown.page == page]
        ranks = {item: {name: rank for rank, name in enumerate(names, start=1)} for item in ITEMS}
        answer = {"survey": key.survey, "participant": participant, "page": page, "revision": 1, "language": "en"}
        answer |= {"milliseconds": 60_000, "order": names, "ranks": ranks}
        posts.append(json.dumps({"answer": answer, "panel": participant[:12]}).encode())
    return posts


def take_part(port: int, key: Key, left: queue.SimpleQueue, waits: list[float]):
    """A client: participants one after the other, as long as some are left; seconds of each post into `waits`."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while left.get() is not None:
        line.request("GET", "/")
        line.getresponse().read()
        for post in posts_of(key):
            start = time.perf_counter()
            line.request("POST", "/answers", post, {"Content-Type": "application/json"})
            response = line.getresponse()
            if response.status != 200:
                raise SystemExit(f"{response.status}: {response.read()[:200]}")
            response.read()
            waits.append(time.perf_counter() - start)
    line.close()


def measure(folder: Path, *, participants: int, pages: int, clients: int) -> dict:
    draw(folder / "pictures", prompts=pages)
    survey = folder / "survey"
    survey_scoft.main(["build", str(folder / "pictures"), str(survey), "--num_pages", str(pages)])
    process, port = serve(survey)
    key, left, waits = read_key(survey), queue.SimpleQueue(), []
    for number in [*range(participants), *[None] * clients]:
        left.put(number)
    threads = [threading.Thread(target=take_part, args=(port, key, left, waits)) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    memory = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1])
    process.terminate()
    _, _, usage = os.wait4(process.pid, 0)
    kept = sum(1 for _ in answers(survey))
    if kept != participants * pages:
        raise SystemExit(f"{participants * pages} answers were acknowledged, {kept} are there")
    slowest = np.quantile(waits, [0.5, 0.99]) * 1000
    return {
        "participants": participants,
        "pages": pages,
        "clients": clients,
        "answers_kept": kept,
        "seconds": seconds,
        "answers_per_second": kept / seconds,
        "minutes_of_10000_participants_at_this_pace": 10_000 * pages / (kept / seconds) / 60,
        "milliseconds_of_a_post": {"median": slowest[0], "99th percentile": slowest[1]},
        "server_cpu_milliseconds_of_an_answer": 1000 * (usage.ru_utime + usage.ru_stime) / kept,
        "server_peak_memory_mib": memory / 1024,
        "database_bytes_of_an_answer": (survey / ANSWERS_FILE).stat().st_size / kept,
    }


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--participants", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=10, help="of the survey")
    parser.add_argument("--clients", type=int, default=32, help="connections at a time")
    parser.add_argument("--output", type=Path, help="add the run to this JSON file's list")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run = {"processor": processor("cpu"), "cpus": len(os.sched_getaffinity(0))}
        run |= {"platform": f"{platform.system()} {platform.machine()}"}
        sizes = {"participants": args.participants, "pages": args.pages, "clients": args.clients}
        run = rounded(run | measure(Path(folder), **sizes))
    print(json.dumps(run, indent=2))
    if args.output:
        runs = json.loads(args.output.read_text())["runs"] if args.output.exists() else []
        args.output.write_text(json.dumps({"runs": [*runs, run]}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The stage caption: what a model that knows nothing of the culture says of a photograph."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scoft.launch import progress

import torch
from PIL import Image

from scoft.cultures import CULTURE_NAMES
from scoft.errors import DataError
from scoft.files import Ledger, content_key
from scoft.prepare.photograph import Photograph, open_kept
from scoft.prepare.work import REMEDY, Run, check_model, public_name
from scoft.randomness import stable_generator
from scoft.weights import load_whole, loading, model_key, precision


LEDGER = "captions.jsonl"
ATTEMPTS = 5  # at a caption that is not degenerate
NUCLEUS, CAPTION_TOKENS = 0.9, 30  # top_p of a naive caption, and its greatest length


@dataclass(frozen=True)
class Captioned:
    """An entry of `captions.jsonl`: the naive captions of a photograph."""

    captions: list[str]


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The stage: naive captions of each photograph."""

    captioner: str  # a BLIP, by its Hub id or folder
    num_captions: int  # of a photograph
    seed: int

    def told(self, run: Run) -> dict[str, object]:
        """The settings of which the card tells."""
        return {"captioner": public_name(self.captioner), "num_captions": self.num_captions}

    def key(self, run: Run, photograph: Photograph) -> str:
        """Of all that decides a photograph's captions."""
        precision = run.accelerator.mixed_precision
        how = (model_key(self.captioner), self.num_captions, NUCLEUS, CAPTION_TOKENS, precision, self.seed)
        return content_key(photograph.sha256, *how)

    def check(self, run: Run):
        """Raises DataError for a model that is none and a ledger that cannot be read."""
        if run.does("caption"):
            kinds = ("ForConditionalGeneration", "ForCausalLM")
            check_model(self.captioner, flag="--captioner", kinds=kinds, cache_dir=run.cache_dir)
        read_captions(run)

    def run(self, run: Run, photographs: Sequence[Photograph]) -> dict[str, list[str]]:
        """The naive captions of each photograph that has some under these settings, by its id.

        Raises DataError if a dataset is to be written of photographs some of which alone have captions.
        """
        by_key = {self.key(run, photograph): photograph for photograph in photographs}
        if run.does("caption"):
            self.caption(run, by_key)
            run.wait()
        made = read_captions(run)
        captions = {photograph.id: made[key].captions for key, photograph in by_key.items() if key in made}
        if run.does("write") and made and (lacking := len(photographs) - len(captions)):
            raise DataError(
                f"{lacking} photographs have no captions under these flags; repeat those or add --stages caption."
            )
        return captions

    def caption(self, run: Run, wanted: dict[str, Photograph]):
        """Write the naive captions of `wanted`, photographs by key, into the ledger."""
        ledger, accelerator = Ledger(run.folder / LEDGER), run.accelerator
        mine = run.share(wanted, ledger)
        if mine:
            common = {"device": accelerator.device, "dtype": precision(accelerator), "cache_dir": run.cache_dir}
            captioner = Captioner(self.captioner, **common)
        for key, photograph in progress(mine, "Captioning", disable=not run.is_main):
            picture = open_kept(run.folder, photograph)
            ledger.add(key, captions=captioner(picture, number=self.num_captions, key=key))


def read_captions(run: Run) -> dict[str, Captioned]:
    return Ledger(run.folder / LEDGER).read_by_key(Captioned, remedy=REMEDY)


class Captioner:
    """Samples naive captions with a BLIP: what a model that knows nothing of who chose a photograph says of it."""

    def __init__(self, name_or_path: str, *, device, dtype, cache_dir: str | None):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with loading(name_or_path, flag="--captioner", kind="a BLIP in safetensors with its processor"):
            self.processor = AutoProcessor.from_pretrained(name_or_path, cache_dir=cache_dir)
            model = load_whole(AutoModelForImageTextToText, name_or_path, dtype=dtype, cache_dir=cache_dir)
        self.model = model.to(device).eval().requires_grad_(False)

    def __call__(self, picture: Image.Image, *, number: int, key: str) -> list[str]:
        """`number` different captions that are not degenerate, or fewer if ATTEMPTS times as many draws gave no more.

        A function of the picture and the key: what else is captioned, by which process, changes nothing.
        """
        device = self.model.device
        inputs = self.processor(images=picture, return_tensors="pt").to(device, self.model.dtype)
        captions: dict[str, None] = {}  # a dict keeps the order of the draws
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(stable_generator(0, key).initial_seed())
            for _ in range(ATTEMPTS):
                ids = self.model.generate(
                    **inputs,
                    do_sample=True,
                    top_p=NUCLEUS,
                    top_k=0,  # transformers would cut at 50 words
                    max_new_tokens=CAPTION_TOKENS,
                    num_return_sequences=number,
                )
                texts = [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
                captions |= dict.fromkeys(text for text in texts if not is_degenerate(text))
                if len(captions) >= number:
                    break
        return list(captions)[:number]


def is_degenerate(caption: str) -> bool:
    """Whether a captioner stuttered: fewer than two words, a word thrice in a row, or three words in a row twice."""
    words = caption.lower().split()
    triples = list(zip(words, words[1:], words[2:]))
    return len(words) < 2 or any(len(set(triple)) == 1 for triple in triples) or len(set(triples)) < len(triples)


def culture_mentions(captions: Iterable[str]) -> Counter:
    """How many naive captions use a culture's name or adjective: a finding to report, not something to repair."""
    return Counter(word for caption in captions for word in set(re.findall("[a-z]+", caption.lower())) & CULTURE_NAMES)

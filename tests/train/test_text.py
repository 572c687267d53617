"""Text embeddings: the same on the device and from files, encoded a piece at a time, healed where files are torn."""

import logging
import tempfile
from pathlib import Path

import pytest
import torch

from scoft.base_model import StableDiffusion
from scoft.train import text
from scoft.train.text import TextInFiles, TextOnDevice, embed_captions


CPU = torch.device("cpu")
CAPTIONS = ["", *(f"a house of {number} rooms" for number in range(12))]
SIZE = 13 * 77 * 32 * 4 / 1e9  # GB


def load(pipeline, dtype=torch.float32):
    unsaid = {"revision": None, "variant": None, "cache_dir": None, "prediction_type": None}
    return StableDiffusion.load(str(pipeline), **unsaid, dtype=dtype)


@pytest.fixture
def model(tiny_pipeline, monkeypatch):
    """A model whose captions lie in pieces of five."""
    monkeypatch.setattr(text, "PIECE", 5)
    return load(tiny_pipeline)


def embed(model, limit, folder=None):
    return embed_captions(CAPTIONS, model=model, device=CPU, precompute_dir=folder, limit=limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_files_hold_what_lies_on_the_device(model, tiny_pipeline, tmp_path, dtype):
    """In the UNet's dtype, bit for bit what encoding all at once gives, in the order asked for."""
    model, asked = load(tiny_pipeline, dtype), torch.tensor([12, 0, 5, 4, 12])
    expected = model.encode_captions(CAPTIONS, device=CPU).to(dtype)[asked]
    size = SIZE * dtype.itemsize / 4
    on_device, in_files = embed(model, size * 1.01), embed(model, size * 0.99, tmp_path)
    assert isinstance(on_device, TextOnDevice) and isinstance(in_files, TextInFiles)
    for found in (on_device(asked), in_files(asked), embed(model, size * 1.01, tmp_path)(asked)):
        assert found.dtype is dtype and torch.equal(found, expected)
    assert len({row.numpy().tobytes() for row in expected.view(torch.uint8)}) == 4
    assert [file.name for file in sorted(tmp_path.glob("[!.]*"))] == [f"text-000{i}.safetensors" for i in range(3)]


def test_no_more_than_a_piece_is_encoded_at_a_time(model, tmp_path, monkeypatch):
    encoded, true = [], model.encode_captions
    monkeypatch.setattr(
        model, "encode_captions", lambda captions, **more: encoded.append(len(captions)) or true(captions, **more)
    )
    for limit, folder in ((1, None), (0, tmp_path)):
        embed(model, limit, folder)
    assert encoded == [5, 5, 3] * 2


def test_files_serve_later_runs_and_what_is_torn_or_stale_is_encoded_anew(model, tiny_pipeline, tmp_path, monkeypatch):
    """Each piece on its own; text of another precision is another."""
    expected, encoded, true = embed(model, 0, tmp_path)(torch.arange(13)), [], StableDiffusion.encode_captions
    monkeypatch.setattr(
        StableDiffusion,
        "encode_captions",
        lambda self, captions, **more: encoded.append(captions[0]) or true(self, captions, **more),
    )
    embed(model, 0, tmp_path), embed(model, 1, tmp_path)
    assert encoded == []
    torn = tmp_path / "text-0001.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    assert torch.equal(embed(model, 0, tmp_path)(torch.arange(13)), expected) and encoded == [CAPTIONS[5]]
    embed(load(tiny_pipeline, torch.bfloat16), 0, tmp_path)
    assert encoded == [CAPTIONS[5], CAPTIONS[0], CAPTIONS[5], CAPTIONS[10]]


def test_temporary_files_go_when_nobody_asks_any_more(model, tmp_path, monkeypatch, caplog):
    """And the log says how much there is, where, and what keeps it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with caplog.at_level(logging.INFO):
        found = embed(model, 0)
    (folder,) = tmp_path.iterdir()
    assert found(torch.tensor([3])).shape == (1, 77, 32) and len(list(folder.glob("*.safetensors"))) == 3
    (line,) = [record.getMessage() for record in caplog.records if "text_cache_limit" in record.getMessage()]
    assert "13 captions are 0.000128 GB, more than --text_cache_limit 0" in line and str(folder) in line
    assert "--precompute_dir keeps them" in line
    del found
    assert not Path(folder).exists()

"""benchmarks/precision.py: the cosines of a run of one batch."""

import json

from benchmarks import precision
from scoft.train.terms import TERMS


def test_gradients_of_a_fresh_lora(tmp_path):
    """At first BA is 0: merged or not is the same to the bit, bf16 is near float32, and both are no other gradient."""
    precision.main(["--after", "0", "--batches", "1", "--seeds", "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["gradients"]["0"]
    assert found["fp32, merged"].keys() == TERMS.keys()
    assert all(cosine is None or cosine > 0.9999 for cosine in found["fp32, merged"].values())
    assert found["bf16, merged"] == found["bf16, unmerged"]
    assert all(cosine is None or 0.98 < cosine < 0.99999 for cosine in found["bf16, merged"].values())
    assert found["bf16, merged"]["perceptual"] is not None

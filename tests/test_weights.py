"""What frozen models are known by, in keys that outlive a version of this code."""

import hashlib

import torch

from scoft.weights import encoder_key, weights_key


def model(**tensors) -> torch.nn.Module:
    made = torch.nn.Module()
    for name, tensor in tensors.items():
        made.register_buffer(name, tensor)
    return made


def test_the_key_of_weights_is_of_their_bytes_alone():
    """Caches made earlier stay valid: the very bytes, in the model's order, in any dtype; names do not count."""
    b, a = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]], dtype=torch.bfloat16)
    expected = hashlib.sha256(b.numpy().tobytes() + a.view(torch.uint8).numpy().tobytes()).hexdigest()
    assert weights_key(model(b=b, a=a)) == weights_key(model(x=b, y=a)) == expected
    assert weights_key(model(b=b + 1, a=a)) != expected


def test_the_key_of_an_encoder_is_of_its_kind_names_and_weights():
    """Results scored earlier stay comparable: the kind, then the weights in the order of their names."""
    b, a = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])
    expected = hashlib.sha256(b"Clip" + b"a" + a.numpy().tobytes() + b"b" + b.numpy().tobytes()).hexdigest()
    assert encoder_key(model(b=b, a=a), kind="Clip") == encoder_key(model(a=a, b=b), kind="Clip") == expected
    assert encoder_key(model(b=b, a=a), kind="DinoV2") != expected

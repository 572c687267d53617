"""The stage caption: naive captions, different, whole, and a function of picture and key."""

import pytest
import torch

from preparing import picture
from scoft.prepare import caption
from scoft.prepare.caption import Captioner, culture_mentions, is_degenerate


pytestmark = pytest.mark.usefixtures("threads_given_back")


@pytest.fixture(scope="module")
def captioner(tiny_blip):
    return Captioner(str(tiny_blip), device=torch.device("cpu"), dtype=torch.float32, cache_dir=None)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", True),
        ("house", True),
        ("a red red red house", True),
        ("a man and a man and a man and", True),
        ("a Red house and a red house", True),
        ("a red house", False),
        ("a house and another house", False),
        ("two men and two women in front of a red and a blue house", False),
    ],
)
def test_stuttering_is_degenerate(caption, expected):
    """A caption is degenerate if it is shorter than two words, says a word thrice in a row or three words twice."""
    assert is_degenerate(caption) is expected


def test_captions_are_different_and_a_function_of_picture_and_key(captioner):
    """K different captions, the same ones whatever was captioned or drawn before; another key says other ones."""
    first = captioner(picture(0), number=5, key="a")
    assert len(set(first)) == 5 and not any(map(is_degenerate, first))
    torch.manual_seed(1)
    other = captioner(picture(1), number=5, key="b")
    before = torch.random.get_rng_state()
    assert captioner(picture(0), number=5, key="a") == first
    assert torch.equal(torch.random.get_rng_state(), before)
    assert other != first != captioner(picture(0), number=5, key="c")


def test_degenerate_and_repeated_captions_are_drawn_again(captioner, monkeypatch):
    """What stutters or was said before is left out and drawn again, as often as ATTEMPTS allows."""
    draws = [
        ["house", "a red house", "a red house"],
        ["a red house", "a a a", "a blue house"],
        ["a roof", "x y"],
    ]
    said = iter(draws)
    monkeypatch.setattr(captioner.processor, "batch_decode", lambda *_, **__: next(said))
    assert captioner(picture(0), number=3, key="a") == ["a red house", "a blue house", "a roof"]
    said = iter([["a red house"] * 3] * 99)
    assert captioner(picture(0), number=3, key="a") == ["a red house"]
    assert len(list(said)) == 99 - caption.ATTEMPTS


def test_culture_words_are_counted_once_a_caption():
    """Captions that name a culture are counted, by the word, and longer words that hold one are not."""
    captions = ["a Chinese temple in china", "chinese food, chinese tea", "fine chinaware", "a korean-style house"]
    assert culture_mentions(captions) == {"chinese": 2, "china": 1, "korean": 1}

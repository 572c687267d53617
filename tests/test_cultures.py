"""The table of cultures, and what each is called."""

import pytest

from scoft.cultures import (
    CATEGORIES,
    CATEGORY_CODES,
    CULTURE_NAMES,
    CULTURE_OF_CODE,
    CULTURES,
    SHEET_TABS,
    culture_words,
)
from scoft.errors import DataError


def test_what_is_known_of_cultures_comes_from_their_rows():
    """CCUB has six cultures with a code each, and nine categories, whose order is that of the dataset's labels."""
    assert list(CULTURE_OF_CODE) == ["KOR", "CHN", "NGA", "MEX", "IND", "USA"]
    assert list(CULTURE_OF_CODE.values()) == list(CULTURES)
    assert SHEET_TABS == {"korea": 1345336179, "china": 567535443}
    assert {"korean", "america", "japanese", "asia"} < CULTURE_NAMES and len(CULTURE_NAMES) == 19
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 9 and CATEGORY_CODES["RELIG"] == CATEGORIES[-1]


@pytest.mark.parametrize(
    ("culture", "words"),
    [
        ("united_states", "the United States"),
        ("korea", "Korea"),
        ("new-zealand", "New Zealand"),
        ("ivory_coast", "Ivory Coast"),
        ("USA", "USA"),
    ],
)
def test_culture_words(culture, words):
    """A culture of CCUB has its own words; any other is its name with capitals and spaces."""
    assert culture_words(culture) == words


def test_blank_culture():
    """A culture without letters is refused by its flag."""
    with pytest.raises(DataError, match="^culture ' '"):
        culture_words(" ")

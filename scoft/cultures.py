"""The cultures and categories of CCUB, and how a culture is called in a prompt."""

from scoft.errors import DataError


# A culture's name -> its words in a prompt ("a house in the United States"): six cultures of CCUB (paper, section 3).
CULTURES = {
    "korea": "Korea",
    "china": "China",
    "nigeria": "Nigeria",
    "mexico": "Mexico",
    "india": "India",
    "united_states": "the United States",
}
# CCUB is a sheet of links; these of its tabs are publicly known (github.com/cmubig/CCUB).
SHEET_TABS = {"korea": 1345336179, "china": 567535443}
# The nine categories of CCUB (paper, section 3).
CATEGORIES = (
    "food & drink",
    "people & actions",
    "clothing",
    "architecture",
    "city",
    "dance music & visual arts",
    "nature",
    "utensils & tools",
    "religion & festival",
)


def culture_words(culture: str) -> str:
    """A culture's words in a prompt: 'united_states' -> 'the United States', 'new-zealand' -> 'New Zealand'."""
    words = culture.replace("_", " ").replace("-", " ").split()
    if not words:
        raise DataError(f"{culture!r} is blank; give a name such as {', '.join(CULTURES)}.", argument="culture")
    return CULTURES.get(culture) or " ".join(word[0].upper() + word[1:] for word in words)

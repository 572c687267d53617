"""The cultures and categories of CCUB, and how a culture is called in a prompt."""

from dataclasses import dataclass

from scoft.errors import DataError


@dataclass(frozen=True)
class Culture:
    """A culture as CCUB and captions name it."""

    words: str  # in a prompt: "a house in the United States"
    code: str | None = None  # of three letters in CCUB's sheets of links; None: it has no such sheet
    sheet_tab: int | None = None  # of the sheet of links; None: it is not publicly known
    names: tuple[str, ...] = ()  # names and adjectives in captions, in small letters


# The six cultures of CCUB (paper, section 3); those of the tabs that are known are on github.com/cmubig/CCUB.
CULTURES = {
    "korea": Culture("Korea", code="KOR", sheet_tab=1345336179, names=("korea", "korean")),
    "china": Culture("China", code="CHN", sheet_tab=567535443, names=("china", "chinese")),
    "nigeria": Culture("Nigeria", code="NGA", names=("nigeria", "nigerian")),
    "mexico": Culture("Mexico", code="MEX", names=("mexico", "mexican")),
    "india": Culture("India", code="IND", names=("india", "indian")),
    "united_states": Culture("the United States", code="USA", names=("usa", "america", "american")),
}
# What else a captioner that knows none of them names: neighbours and continents.
OTHER_NAMES = ("japan", "japanese", "africa", "african", "asia", "asian")
CULTURE_NAMES = frozenset(OTHER_NAMES).union(*(culture.names for culture in CULTURES.values()))
SHEET_TABS = {name: culture.sheet_tab for name, culture in CULTURES.items() if culture.sheet_tab is not None}
CULTURE_OF_CODE = {culture.code: name for name, culture in CULTURES.items() if culture.code}
# The nine categories of CCUB (paper, section 3) by their codes in its sheets.
CATEGORY_CODES = {
    "FOOD": "food & drink",
    "PEOPLE": "people & actions",
    "CLOTH": "clothing",
    "ARCH": "architecture",
    "CITIES": "city",
    "DANCE": "dance music & visual arts",
    "NATURE": "nature",
    "UTENSIL": "utensils & tools",
    "RELIG": "religion & festival",
}
CATEGORIES = tuple(CATEGORY_CODES.values())


def culture_words(culture: str) -> str:
    """A culture's words in a prompt: 'united_states' -> 'the United States', 'new-zealand' -> 'New Zealand'."""
    words = culture.replace("_", " ").replace("-", " ").split()
    if not words:
        raise DataError(f"{culture!r} is blank; give a name such as {', '.join(CULTURES)}.", argument="culture")
    known = CULTURES.get(culture)
    return known.words if known else " ".join(word[0].upper() + word[1:] for word in words)


def in_words(prompts: list[str], culture: str) -> list[str]:
    """The prompts with `{}` in them replaced by the culture's words; any other brace stays as it is."""
    return [prompt.replace("{}", culture_words(culture)) for prompt in prompts]


def naming_words(culture: str) -> list[str]:
    """What may name a culture in a prompt: its words there, then names and adjectives, as far as they are known."""
    known, own = CULTURES.get(culture), culture_words(culture).removeprefix("the ")
    words = {each.casefold(): each for each in (*(known.names if known else ()), own)}
    return list(words.values())

"""The one error that users cause and can mend, and how its messages show what others wrote."""

from collections.abc import Sequence


class DataError(ValueError):
    """A problem with the user's data, files or machine. The message names the place and the way out."""


def legible(written: object, *, most: int = 120, quoted: bool = False) -> str:
    """What a dataset wrote, as messages show it: in few characters, none of which steers a terminal."""
    text = repr(written) if quoted else repr(str(written))[1:-1]
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def listing(items: Sequence[str], shown: int = 5) -> str:
    """The first items, and how many more there are."""
    rest = len(items) - shown
    told = [item if len(item) <= 500 else f"{item[:500]}..." for item in items[:shown]]
    return "; ".join(told) + (f"; and {rest} more" if rest > 0 else "")

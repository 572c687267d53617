"""The one error that users cause and can mend, and how its messages show what others wrote."""

from collections.abc import Sequence


class DataError(ValueError):
    """A problem with the user's data, files or machine. The message names the place and the way out.

    `argument`: the parameter whose value is at fault, with which the message then begins, as "culture peru is none":
    the name that the Python function has for it, or the one that a caller handed in. A command's flag has the same
    name, so a command may tell the message with two dashes before it: `for_command`.
    """

    def __init__(self, message: str, *, argument: str | None = None):
        super().__init__(message if argument is None else f"{argument} {message}")
        self.argument = argument

    @property
    def for_command(self) -> str:
        """The message as one of a command, whose parameters are flags."""
        return f"--{self}" if self.argument is not None and self.argument.isidentifier() else str(self)


def legible(written: object, *, most: int = 120, quoted: bool = False) -> str:
    """What a dataset wrote, as messages show it: in few characters, none of which steers a terminal."""
    text = repr(written) if quoted else repr(str(written))[1:-1]
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def listing(items: Sequence[str], shown: int = 5) -> str:
    """The first items, and how many more there are."""
    rest = len(items) - shown
    told = [item if len(item) <= 500 else f"{item[:500]}..." for item in items[:shown]]
    return "; ".join(told) + (f"; and {rest} more" if rest > 0 else "")

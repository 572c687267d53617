"""The one error that users cause and can mend."""


class DataError(ValueError):
    """A problem with the user's data, files or machine. The message names the place and the way out."""

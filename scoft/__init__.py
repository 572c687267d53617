"""What the commands stand on: each module says in its first line what it is for."""

import sys


if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"SCoFT needs Python 3.11 or later, as numpy does; {sys.executable} is {sys.version.split()[0]}.")

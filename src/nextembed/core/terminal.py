"""All terminal output goes through here. Control characters in names of classes, keys or reasons are shown, not
executed; see `console` for rich."""

import builtins
import re
import sys
from typing import IO

# Control characters, which move the cursor, change colours or clear the screen, and marks that reverse the direction of
# text. Tabs and line breaks stay.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """The text with control characters escaped as in JSON: \\u001b."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def one_line(text: object) -> str:
    """`plain` text on one line."""
    return " ".join(plain(text).split())


def print(*values: object, sep: str = " ", end: str = "\n", file: IO[str] | None = None, flush: bool = False) -> None:
    """Python's print, of `plain` text."""
    builtins.print(plain(sep.join(map(str, values))), end=end, file=file or sys.stdout, flush=flush)

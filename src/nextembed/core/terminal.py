"""The doors to the terminal. What comes from files (names of classes, keys, reasons) is shown there, not obeyed."""

import builtins
import re
import sys
from typing import IO, Any

from rich.console import Console
from rich.text import Text

# Control characters, which move the cursor, change colours or clear the screen; marks that turn the order of letters
# round; halves of surrogate pairs, which no terminal can be sent.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """The text with every character that a terminal would obey written out, as \\x1b."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], str(text))


def one_line(text: object) -> str:
    """`plain` text on one line."""
    return " ".join(plain(text).split())


def print(*values: object, sep: str = " ", end: str = "\n", file: IO[str] | None = None, flush: bool = False) -> None:
    """Python's print, of `plain` text."""
    builtins.print(plain(sep.join(map(str, values))), end=end, file=file or sys.stdout, flush=flush)


class PlainConsole(Console):
    """A rich console that takes text as it is: no markup, no emoji codes, no control characters. Styles are given as
    `rich.text.Text`, whose text goes through `plain`."""

    def __init__(self, stderr: bool = False, **options: Any):
        super().__init__(stderr=stderr, **{"highlight": False, "markup": False, "emoji": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)

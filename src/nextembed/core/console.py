"""All output of rich goes through here: tables, bars, colours."""

from typing import Any

from rich.console import Console
from rich.text import Text

from .terminal import plain


class PlainConsole(Console):
    """A rich console that shows text as it is: no markup, no emoji codes, no control characters. Styled text is passed
    as `rich.text.Text`, made of `plain` text."""

    def __init__(self, **options: Any):
        super().__init__(**{"highlight": False, "markup": False, "emoji": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(plain(text), **options)

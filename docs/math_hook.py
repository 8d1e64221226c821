"""Formulas between `$$` become MathML while the site is built: browsers show it without any script."""

import re
from typing import Any

from latex2mathml.converter import convert


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its formulas as MathML; fenced code stays as it is."""
    parts = re.split(r"(^ *```.*?^ *```)", markdown, flags=re.MULTILINE | re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\$\$(.+?)\$\$", _block, parts[i], flags=re.DOTALL)
        parts[i] = re.sub(r"\\\\\((.+?)\\\\\)|\\\((.+?)\\\)", _inline, parts[i])
    return "".join(parts)


def _block(found: re.Match[str]) -> str:
    return f'\n<div class="formula">{convert(" ".join(found[1].split()), display="block")}</div>\n'


def _inline(found: re.Match[str]) -> str:
    return convert(found[1] or found[2])

"""Text that every tokenizer, file and terminal can take."""


def check_text(value: str) -> str:
    """The text. Raises ValueError for one with half of a surrogate pair, as JSON can hold it ("\\ud83d"): that is no
    character, and UTF-8 and tokenizers have nothing for it."""
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise ValueError(f"text with half a surrogate pair ({value[err.start]!a} at {err.start})") from None
    return value

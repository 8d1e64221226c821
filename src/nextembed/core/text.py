"""Text that every tokenizer, file and terminal can take."""

import codecs

NO_UTF8 = "\ufdd0"  # replaces bytes that are not UTF-8; Unicode reserves it for such uses, so no text contains it
MARK_BYTES = "nextembed.mark"  # name of this error handler for decoders


def _mark(err: UnicodeError) -> tuple[str, int]:
    if not isinstance(err, UnicodeDecodeError):
        raise err
    return NO_UTF8, err.end


codecs.register_error(MARK_BYTES, _mark)


def check_text(value: str) -> str:
    """The text. Raises ValueError for one with half of a surrogate pair, as JSON can hold it ("\\ud83d"): that is no
    character, and UTF-8 and tokenizers have nothing for it; and for one whose file is not UTF-8 there."""
    try:
        value.encode()
    except UnicodeEncodeError as err:
        raise ValueError(f"text with half a surrogate pair ({value[err.start]!a} at {err.start})") from None
    if NO_UTF8 in value:
        raise ValueError("text that is not UTF-8")
    return value

"""The tokenizer of the released Emu: LLaMA's, with Emu's tokens and its white space."""

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer

from ...errors import ConfigError, MissingExtra
from .processing_emu import add_emu_tokens


def llama_tokenizer(path: Path, instruct: bool = False) -> Any:
    """A LLaMA tokenizer grown by Emu's tokens in the released order, from `tokenizer.model` or a folder.

    White space beside Emu's tokens is stripped, and the text after each begins with SentencePiece's leading space:
    `[/IMG]There` is `[/IMG]`, `▁There`. A begin token comes first, no end token.
    Raises ConfigError where there is none, MissingExtra if `tokenizer.model` needs sentencepiece and that is not
    installed.
    """
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name not in ("tokenizer.model", "tokenizer.json"):
        raise ConfigError(f"--tokenizer is tokenizer.model, tokenizer.json or a folder with one, not {path.name}")
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise ConfigError(f"there is no tokenizer.model or tokenizer.json in {folder}")
    if not (folder / "tokenizer.json").is_file():
        try:
            import sentencepiece  # noqa: F401
        except ImportError:
            raise MissingExtra("sentencepiece", "convert") from None
    try:
        tokenizer = _load(folder)
    except Exception as err:  # whatever a broken file raises
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ConfigError(f"cannot read the tokenizer in {folder}: {reason}") from None
    add_emu_tokens(tokenizer, instruct)
    return tokenizer


def _load(folder: Path) -> Any:
    """legacy: each piece of text, not only the first, gets the leading space, as under the release's transformers."""
    if not (folder / "tokenizer_config.json").is_file():
        return LlamaTokenizer.from_pretrained(str(folder), legacy=True)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), legacy=True)
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace) and backend.pre_tokenizer.prepend_scheme == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=backend.pre_tokenizer.split)
    return tokenizer

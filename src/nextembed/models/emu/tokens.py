"""The tokenizer of the released Emu: LLaMA's, with Emu's tokens and its white space."""

from pathlib import Path
from typing import Any

from tokenizers import normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from ...errors import ConfigError, MissingExtra
from .processing_emu import PAD, add_emu_tokens, bare_token


def llama_tokenizer(path: Path, instruct: bool = False) -> Any:
    """A LLaMA tokenizer with Emu's tokens added in the released order, from `tokenizer.model` or a folder.

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
    except Exception as err:  # a broken file may raise anything
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ConfigError(f"cannot read the tokenizer in {folder}: {reason}") from None
    if tokenizer.pad_token != PAD:  # regardless of its folder: the release pads with a token of its own
        tokenizer.add_special_tokens({"pad_token": bare_token(PAD)})
    add_emu_tokens(tokenizer, instruct)
    return tokenizer


def _load(folder: Path) -> Any:
    """LLaMA's tokenizer as one that its file describes wholly: LlamaTokenizer would forget `legacy` when saved.

    legacy: each piece of text, not only the first, gets the leading space, as under the release's transformers.
    """
    kind: Any = AutoTokenizer if (folder / "tokenizer_config.json").is_file() else LlamaTokenizer
    found = kind.from_pretrained(str(folder), legacy=True, trust_remote_code=False)
    backend = found.backend_tokenizer
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):  # which adds no space to text that begins with one
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    bos, eos = found.bos_token or "<s>", found.eos_token or "</s>"
    number = found.convert_tokens_to_ids(bos)
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, number)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=found.unk_token or "<unk>", bos_token=bos, eos_token=eos,
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip

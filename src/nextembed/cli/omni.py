"""`generate` for an Omni model: any modality in, any modality out."""

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def go_on(
    checkpoint: str,
    words: list[str],
    given: list[tuple[str, str]],
    own: list[str],
    target: str,
    output: Path | None,
    options: dict[str, Any],
    loading: tuple[str, str | None, list[Path]],
) -> None:
    """words: pieces in order, names of files read by their suffix, else text. given: (kind, file or text). own:
    "NAME=FILE" of the user's modalities. loading: weights, device and code, as of `load_omni`."""
    if not (words or given or own):
        raise ConfigError("give text or a file behind the checkpoint, or --text, --image, --audio, ...")
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: no such folder: {output.parent}")
    from ..evaluation.omni import check_target, kind_of, load_omni, read_piece, write_signal

    model = load_omni(checkpoint, *loading)
    wanted = None if target == "auto" else target
    check_target(model, wanted)
    kinds = {name: settings.get("kind", name) for name, settings in model.config.modalities.items()}
    pieces = []
    for word in words:
        kind = kind_of(word) if Path(word).suffix and Path(word).exists() else "text"
        pieces.append(read_piece(kind or "text", word, name_of(kind or "text", kinds)))
    for kind, value in given:
        pieces.append(read_piece(kind, value, name_of(kind, kinds)))
    for pair in own:
        name, _, file = pair.partition("=")
        if name not in kinds or not file:
            raise ConfigError(f"--piece {pair}: NAME=FILE with one of {', '.join(kinds)}")
        pieces.append(read_piece(kinds[name], file, name))
    shown = ""

    def show(so_far: Any) -> None:
        nonlocal shown
        if isinstance(so_far, str) and so_far.startswith(shown) and not so_far.endswith("\N{REPLACEMENT CHARACTER}"):
            print(so_far[len(shown) :], end="", flush=True)
            shown = so_far

    try:
        made = model.generate(pieces, wanted, on_latent=show, **options)
    except ValueError as err:
        raise ConfigError(str(err)) from None
    if made is None:
        print("(the document ends here)")
        return
    if isinstance(made.value, str):
        print(made.value[len(shown) :] if made.value.startswith(shown) else f"\n{made.value}")
    if output is not None:
        write_signal(kinds[made.kind], made.value, output)
        print(f"Saved:  {output}")
    elif not isinstance(made.value, str):
        if kinds[made.kind] in ("image", "video", "audio"):
            raise ConfigError(f"{made.kind} came; name a file for it: -o FILE")
        value = made.value.tolist() if hasattr(made.value, "tolist") else made.value
        print(json.dumps(value))


def name_of(kind: str, kinds: dict[str, str]) -> str:
    """The modality of the model that reads this kind. Raises ConfigError if there is none, or more than one."""
    fitting = [name for name, own in kinds.items() if own == kind]
    if len(fitting) != 1:
        what = f"several of kind '{kind}' (use --piece NAME=FILE)" if fitting else f"none of kind '{kind}'"
        raise ConfigError(f"of the model's modalities ({', '.join(kinds)}) {what}")
    return fitting[0]

"""`generate` for an Omni model: any modality in, any modality out."""

from pathlib import Path
from typing import Any

from ..core.files import checked_file, to_json
from ..core.terminal import print
from ..errors import ConfigError, unknown


def continue_document(
    checkpoint: str,
    words: list[str],
    given: list[tuple[str, str]],
    own: list[str],
    target: str,
    output: Path | None,
    options: dict[str, Any],
    loading: tuple[str | None, str | None],
) -> None:
    """words: pieces in order; what ends like a file of some modality is one, else it is text. given: (kind, file or
    text). own: "NAME=FILE" of the user's modalities. target: "auto" is what `output` is named like, else what the model
    chooses. loading: weights and device, as of `load_omni`."""
    if not (words or given or own):
        raise ConfigError("give text or a file behind the checkpoint, or --text, --image, --audio, ...")
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: no such folder: {output.parent}")
    if output is not None:
        checked_file(output)
    from ..inference.generate import load_omni
    from ..inference.signals import check_file, kind_of, plain, read_signal, write_signal

    model = load_omni(checkpoint, *loading)
    kinds = {name: settings.get("kind", name) for name, settings in (model.config.modalities or {}).items()}
    wanted = target if target != "auto" else named_by(output, kinds)
    if wanted is not None:
        if wanted not in kinds:
            raise ConfigError(unknown("--target", wanted, kinds))
        check_file(kinds[wanted], output)
    pieces = []
    for word in words:
        kind = kind_of(word) or "text"
        pieces.append(read_signal(kind, word, name_of(kind, kinds)))
    for kind, value in given:
        pieces.append(read_signal(kind, value, name_of(kind, kinds)))
    for pair in own:
        name, _, file = pair.partition("=")
        if name not in kinds or not file:
            raise ConfigError(f"--piece {pair}: NAME=FILE with one of {', '.join(kinds)}")
        pieces.append(read_signal(kinds[name], file, name))
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
        print(to_json(plain(made.value)))


def named_by(output: Path | None, kinds: dict[str, str]) -> str | None:
    """The only modality that is written to a file of this name; None if there is none."""
    from ..inference.signals import WRITES

    fitting = [name for name, own in kinds.items() if output is not None and WRITES.get(own) == output.suffix.lower()]
    return fitting[0] if len(fitting) == 1 else None


def name_of(kind: str, kinds: dict[str, str]) -> str:
    """The modality of the model that reads this kind. Raises ConfigError if there is none, or more than one."""
    fitting = [name for name, own in kinds.items() if own == kind]
    if len(fitting) != 1:
        what = f"several of kind '{kind}' (use --piece NAME=FILE)" if fitting else f"none of kind '{kind}'"
        raise ConfigError(f"of the model's modalities ({', '.join(kinds)}) {what}")
    return fitting[0]

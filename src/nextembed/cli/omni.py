"""`generate` for an Omni model: any modality in, any modality out."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import checked_file, to_json
from ..core.terminal import print
from ..errors import ConfigError, unknown

if TYPE_CHECKING:
    from ..inference.settings import Sampling
    from ..models.omni.generation import Made
    from ..models.omni.processing_omni import Piece
    from .prompting import Given, Loading, Wanted


def continue_document(
    checkpoint: str,
    words: list[str],
    given: "Given",
    wanted: "Wanted",
    sampling: "Sampling",
    loading: "Loading",
    guidance: float = 1.0,
) -> None:
    """words: pieces in order; a word with the extension of a modality is a file, otherwise text. wanted.target: "auto"
    follows the extension of the output, else the model chooses."""
    output = wanted.output
    if not (words or given.named or given.piece):
        raise ConfigError("give text or a file after the checkpoint, or --text, --image, --audio, ...")
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: no such folder: {output.parent}")
    if output is not None:
        checked_file(output)
    from ..inference.generate import load_omni
    from ..inference.signals import check_file

    model = load_omni(checkpoint, loading.weights, loading.device)
    kinds = {name: str(settings.get("kind", name)) for name, settings in (model.config.modalities or {}).items()}
    target = wanted.target if wanted.target != "auto" else named_by(output, kinds)
    if target is not None:
        if target not in kinds:
            raise ConfigError(unknown("--target", target, kinds))
        check_file(kinds[target], output)
    pieces = read_pieces(words, given, kinds)
    shown = Shown()
    drawn = sampling.do_sample or "temperature" in sampling.model_fields_set
    try:
        made = model.generate(
            pieces,
            target,
            on_latent=shown,
            max_latents=sampling.max_new_tokens,
            temperature=sampling.temperature if drawn else 0.0,
            top_k=sampling.top_k if drawn else 0,
            seed=sampling.seed,
            guidance=guidance,
        )
    except ValueError as err:
        raise ConfigError(str(err)) from None
    if made is None:
        print("(the document ends here)")
        return
    say_made(made, kinds[made.kind], output, shown.text)


def read_pieces(words: list[str], given: "Given", kinds: dict[str, str]) -> list["Piece"]:
    """All pieces in order, each under the name of its modality."""
    from ..inference.signals import kind_of, read_signal

    named = [(kind_of(word) or "text", word) for word in words] + given.named
    pieces = [read_signal(kind, value, name_of(kind, kinds)) for kind, value in named]
    for pair in given.piece or []:
        name, _, file = pair.partition("=")
        if name not in kinds or not file:
            raise ConfigError(f"--piece {pair}: NAME=FILE with one of {', '.join(kinds)}")
        pieces.append(read_signal(kinds[name], file, name))
    return pieces


class Shown:
    """Prints text while it is generated; `text` is what was printed."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, so_far: object) -> None:
        if not isinstance(so_far, str) or so_far.endswith("\N{REPLACEMENT CHARACTER}"):
            return
        if so_far.startswith(self.text):
            print(so_far[len(self.text) :], end="", flush=True)
            self.text = so_far


def say_made(made: "Made", kind: str, output: Path | None, shown: str) -> None:
    """Prints or saves the output, of which `shown` is already on the terminal."""
    from ..inference.signals import plain, write_signal

    value = made.value
    if isinstance(value, str):
        print(value[len(shown) :] if value.startswith(shown) else f"\n{value}")
    if output is not None:
        write_signal(kind, value, output)
        print(f"Saved:  {output}")
    elif not isinstance(value, str):
        if kind in ("image", "video", "audio"):
            raise ConfigError(f"the model generated {made.kind}: name a file for it with -o FILE")
        print(to_json(plain(value)))


def named_by(output: Path | None, kinds: dict[str, str]) -> str | None:
    """The only modality that a file of this name can hold; None if there is none."""
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

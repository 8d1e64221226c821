"""Any to any: an Omni continues text, a drawing, sounds and files in any of its modalities."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np

from ...core.run_folder import find_saved
from ...core.saved import read_json
from ...errors import ConfigError, DataError, NextEmbedError
from ...models.loading import model_type
from ...models.omni import OmniForPreTraining
from ...models.omni.processing_omni import Piece
from .. import anything
from ..shared import Shared
from ..snippets import omni_python
from ..ui import charts, empty, fragment, listen, model_choice, python_of, stops
from ..working import streamed

SELF = "(the model chooses)"
OPTIONS = ("temperature", "top_k", "guidance", "max_latents", "seed")  # of a sample
WORKING = '<p class="line">Generating …</p>'


def omni(shared: Shared, name: str) -> OmniForPreTraining:
    """The Omni of this name, loaded when it is first asked for."""
    place = shared.folders.get("model", name)
    kind = model_type(find_saved(place).folder())
    if kind != "omni":
        raise ConfigError(f"{name} is a model of type '{kind}'; this tab needs an Omni")
    return shared.models.get(("omni", str(place)), lambda: anything.open_omni(place), name)


def modalities(shared: Shared, name: str | None) -> list[str]:
    """Of an Omni, told by its config.json; [] of what is none."""
    place = shared.folders.look().of("model").get(name or "")
    try:
        config = read_json(Path(find_saved(place).folder()) / "config.json") if place is not None else {}
    except (NextEmbedError, OSError):
        return []
    found = config.get("modalities")
    return list(found) if isinstance(found, dict) else []


def known(names: list[str]) -> str:
    """A line below the heading of the list of outputs."""
    return f"This model generates {', '.join(names)}." if names else "This model is not an Omni."


def inked(drawing: dict[str, object] | None, max_pixels: int) -> np.ndarray | None:
    """The drawing on white, uint8 [H, W, 3]; None where nothing was drawn. Raises DataError for a large one."""
    whole = None if drawing is None else drawing.get("composite")
    if not isinstance(whole, np.ndarray) or not whole[..., 3].any():
        return None
    if whole.shape[0] * whole.shape[1] > max_pixels:
        raise DataError(f"the drawing has more than {max_pixels:,} pixels")
    alpha = whole[..., 3:].astype(np.float32) / 255
    return (whole[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


class Handlers:
    """Actions of the panel."""

    def __init__(self, shared: Shared):
        self.shared = shared
        # Below the server's own scratch folder, which is removed when the studio ends.
        self.scratch = Path(tempfile.mkdtemp(prefix="nextembed-drawn-", dir=os.environ.get("GRADIO_TEMP_DIR")))

    def given(self, model: str, text: str, drawn: dict[str, object] | None, paths: list[str] | None, spoken: str | None
              ) -> tuple[OmniForPreTraining, list[Piece]]:  # fmt: skip
        own = omni(self.shared, model)
        sketch = inked(drawn, self.shared.settings.max_pixels)
        dropped = [*(paths or []), *([spoken] if spoken else [])]
        return own, anything.pieces_of(own, text.strip(), sketch, dropped, self.shared.settings)

    def sampled(
        self,
        model: str, text: str, sketch: dict[str, object] | None, paths: list[str] | None, spoken: str | None, what: str,
        *numbers: float,
    ) -> Iterator[list[object]]:  # fmt: skip
        own, pieces = self.given(model, text, sketch, paths, spoken)
        many, options = int(numbers[0]), dict(zip(OPTIONS, numbers[1:]))
        target = None if what == SELF else what
        yield [WORKING, [], gr.update(visible=False), gr.update(visible=False)]
        for found in streamed(lambda work: anything.samples(own, pieces, target, many, options, work)):
            if found is None:
                yield [gr.skip()] * 4
                continue
            heard = anything.written(found, "audio", ".wav", self.scratch)
            watched = anything.written(found, "video", ".gif", self.scratch)
            yield [anything.shown(found), anything.series(found), gr.update(value=heard, visible=heard is not None),
                   gr.update(value=watched, visible=watched is not None)]  # fmt: skip

    def targets(self, model: str | None, chosen: str | None) -> object:
        """What the model can be asked for."""
        found = modalities(self.shared, model)
        now = [SELF, *found]
        if chosen in now:
            return gr.update(choices=now, info=known(found))  # not its value: another may have been chosen meanwhile
        return gr.update(choices=now, value=SELF, info=known(found))

    def scored(
        self, model: str, text: str, sketch: dict[str, object] | None, paths: list[str] | None, spoken: str | None,
        many: str,
    ) -> str:  # fmt: skip
        return anything.scored(*self.given(model, text, sketch, paths, spoken), many.splitlines())


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    do = Handlers(shared)
    with gr.Row():
        with gr.Column(min_width=300):
            name = model_choice(shared, types=("omni",))
            words = gr.Textbox(label="Text", max_length=4000, lines=2)
            files = gr.File(label="Images, sounds, videos, series (.csv)", file_types=anything.FILES,
                            file_count="multiple", height=120)  # fmt: skip
            with gr.Accordion("Drawing", open=False):
                drawing = gr.Sketchpad(show_label=False, canvas_size=(320, 320), type="numpy", layers=False)
            with gr.Accordion("Microphone", open=False):
                voice = gr.Audio(show_label=False, sources=["microphone"], type="filepath", format="wav")
            kinds = modalities(shared, str(name.value))
            target = gr.Dropdown([SELF, *kinds], value=SELF, label="Output", info=known(kinds), allow_custom_value=True)
            with gr.Row():
                num = gr.Slider(1, 16, 4, step=1, label="Samples", min_width=120)
                hot = gr.Slider(0.0, 2.0, 0.8, step=0.1, label="Temperature", min_width=120)
            with gr.Accordion("More settings", open=False):
                top = gr.Slider(0, 200, 0, step=1, label="Top-k of tokens (0: all)")
                guide = gr.Slider(1.0, 5.0, 1.0, step=0.5, label="Guidance (1: off)")
                longest = gr.Slider(1, 256, 48, step=1, label="Maximum latents")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Row():
                go = gr.Button("Generate", variant="primary")
                stop = gr.Button("Stop", variant="stop")
        with gr.Column(min_width=320):
            out, plots = fragment(empty("Results are shown here.")), charts()
            sound = gr.Audio(label="Sound, sample 1", interactive=False, visible=False)
            film = gr.Image(label="Video, sample 1", interactive=False, visible=False)
            with gr.Accordion("Score candidates", open=True):
                lines = gr.Textbox(label="Candidates, one per line", lines=4, max_length=4000)
                score = gr.Button("Score")
                scores = fragment()
    python_of(shared, name, omni_python)

    inputs = [name, words, drawing, files, voice]
    settings = [target, num, hot, top, guide, longest, seed]
    stops(stop, listen(go.click, do.sampled, [*inputs, *settings], [out, plots, sound, film], heavy=True))
    listen(name.change, do.targets, [name, target], [target])
    listen(score.click, do.scored, [*inputs, lines], [scores], heavy=True)

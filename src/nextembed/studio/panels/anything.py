"""Any to any: an Omni reads text, a drawing, sounds and files, and generates what follows."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np

from ...core.run_folder import find_saved
from ...errors import ConfigError
from ...models.loading import model_type
from ...models.omni import OmniForPreTraining
from ...models.omni.processing_omni import Piece
from .. import anything
from ..shared import Shared
from ..snippets import omni_python
from ..ui import charts, fragment, listen, model_choice, python

SELF = "(the model chooses)"
OPTIONS = ("temperature", "top_k", "guidance", "max_latents", "seed")  # limit of a sample


def omni(shared: Shared, name: str) -> OmniForPreTraining:
    """The Omni of this name, loaded when it is first asked for."""
    place = shared.folders.get("model", name)
    kind = model_type(find_saved(place).folder())
    if kind != "omni":
        raise ConfigError(f"{name} is a model of type '{kind}'; this tab needs an Omni")
    return shared.models.get(("omni", str(place)), lambda: anything.open_omni(place), name)


def inked(drawing: dict[str, object] | None) -> np.ndarray | None:
    """The drawing on white, uint8 [H, W, 3]; None where nothing was drawn."""
    whole = None if drawing is None else drawing.get("composite")
    if not isinstance(whole, np.ndarray) or not whole[..., 3].any():
        return None
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
        dropped = [*(paths or []), *([spoken] if spoken else [])]
        return own, anything.pieces_of(own, text.strip(), inked(drawn), dropped, self.shared.settings)

    def drawn(
        self,
        model: str, text: str, sketch: dict[str, object] | None, paths: list[str] | None, spoken: str | None, what: str,
        *numbers: float,
    ) -> Iterator[list[object]]:  # fmt: skip
        own, pieces = self.given(model, text, sketch, paths, spoken)
        many, options = (
            int(numbers[0]),
            dict(zip(("temperature", "top_k", "guidance", "max_latents", "seed"), numbers[1:])),
        )
        for found in anything.draws(own, pieces, None if what == SELF else what, many, options):
            heard = anything.written(found, "audio", ".wav", self.scratch)
            watched = anything.written(found, "video", ".gif", self.scratch)
            yield [anything.shown(found), anything.series(found), gr.update(value=heard, visible=heard is not None),
                   gr.update(value=watched, visible=watched is not None)]  # fmt: skip

    def weighed(
        self,
        model: str,
        text: str,
        sketch: dict[str, object] | None,
        paths: list[str] | None,
        spoken: str | None,
        many: str,
    ) -> str:
        return anything.scored(*self.given(model, text, sketch, paths, spoken), many.splitlines())


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    do = Handlers(shared)
    with gr.Row():
        with gr.Column(min_width=300):
            name = model_choice(shared)
            words = gr.Textbox(label="Words", max_length=4000, lines=2)
            files = gr.File(label="Images, sounds, videos, series (.csv)", file_types=anything.FILES,
                            file_count="multiple", height=110)  # fmt: skip
            with gr.Accordion("Draw", open=False):
                drawing = gr.Sketchpad(show_label=False, canvas_size=(320, 320), type="numpy", layers=False)
            with gr.Accordion("Microphone", open=False):
                voice = gr.Audio(show_label=False, sources=["microphone"], type="filepath", format="wav")
            kinds = [SELF, "text", "image", "audio", "video", "series"]
            target = gr.Dropdown(kinds, value=SELF, label="What comes next", allow_custom_value=True)
            with gr.Row():
                num = gr.Slider(1, 16, 4, step=1, label="Draws", min_width=120)
                hot = gr.Slider(0.0, 2.0, 0.8, step=0.1, label="Temperature", min_width=120)
            with gr.Accordion("More", open=False):
                top = gr.Slider(0, 200, 0, step=1, label="Top-k of tokens (0: all)")
                guide = gr.Slider(1.0, 5.0, 1.0, step=0.5, label="Guidance (1: off)")
                longest = gr.Slider(1, 256, 48, step=1, label="Most latents")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            with gr.Row():
                go = gr.Button("Go on", variant="primary")
                stop = gr.Button("Stop", variant="stop")
        with gr.Column(min_width=320):
            out, plots = fragment('<div class="empty">The result is shown here.</div>'), charts()
            sound = gr.Audio(label="Sound", interactive=False, visible=False)
            film = gr.Image(label="Video", interactive=False, visible=False)
            with gr.Accordion("Which of these comes next?", open=True):
                lines = gr.Textbox(label="Candidates, one a line", lines=4, max_length=4000)
                weigh = gr.Button("Weigh them")
                weights = fragment()
    python(omni_python("runs/omni_emoji"))

    inputs = [name, words, drawing, files, voice]
    settings = [target, num, hot, top, guide, longest, seed]
    running = listen(go.click, do.drawn, [*inputs, *settings], [out, plots, sound, film], heavy=True)
    stop.click(None, cancels=[running], api_visibility="private")
    listen(weigh.click, do.weighed, [*inputs, lines], [weights], heavy=True)

"""Explore: what a model computes for the patch of an image that is clicked."""

from pathlib import Path

import gradio as gr
import torch

from ...core.places import is_hub_id
from ...data.images import EvalSamples
from ...data.rows import Row, Rows
from ...errors import ConfigError
from ...report.inside import Inside
from ...runs import open_run
from .. import looking
from ..folders import Folders
from ..looking import Looker
from ..shared import Shared
from ..snippets import explore_python
from ..ui import empty, fragment, listen, model_choice, python_of, sent
from ..uploads import IMAGES, read_image


def looker(shared: Shared, name: str) -> Looker:
    """The model of this name, loaded when it is first asked for."""
    place = shared.folders.get("model", name)
    return shared.models.get(("look", str(place)), lambda: looking.open_looker(place), name)


def samples_of(shared: Shared, name: str) -> EvalSamples:
    """The validation images of a model's run. Raises ConfigError where they lie outside the given folders; so does
    reading an image that does."""
    run = open_run(shared.folders.get("model", name))
    source = str(run.values.get("data", {}).get("source", ""))
    if source != "emoji":
        if is_hub_id(source):
            raise ConfigError(f"the run's data, {source}, would have to be downloaded; upload an image instead")
        if link := shared.folders.link_out(shared.folders.inside(source)):
            raise ConfigError(f"the run's data has a link out of the folders of the studio: {link}")
    found = run.data("validation")
    if not isinstance(found, EvalSamples):
        raise ConfigError("the run's data are documents, not images; upload an image instead")
    found.rows = InsideRows(found.rows, shared.folders)
    return found


class InsideRows:
    """Rows whose files lie in the given folders; reading another one raises ConfigError."""

    def __init__(self, rows: Rows, folders: Folders):
        self.rows, self.folders = rows, folders

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row: Row = self.rows[index]
        image = row.get("image")
        if isinstance(image, str | Path):
            self.folders.inside(image)
        return row


class Handlers:
    """Actions of the panel."""

    def __init__(self, shared: Shared):
        self.shared = shared

    def first(self, model: str, pixels: torch.Tensor, code: str) -> list[object]:
        own = looker(self.shared, model)
        inside = looking.look(own, pixels)
        chosen, at = looking.query(inside, None), (inside.num_layers + 1) // 2
        heads = max((weights.shape[1] for weights in inside.attention.values()), default=0)
        if own.cannot:
            inside.notes.insert(0, own.cannot)
        return [
            inside, chosen, looking.clickable(inside, chosen), looking.maps(inside, chosen, at, 0),
            gr.update(maximum=inside.num_layers, value=at), gr.update(maximum=max(1, heads), value=0),
            gr.update(maximum=inside.num_patches - 1, value=inside.num_known), looking.rollout(inside), "",
            code,
        ]  # fmt: skip

    def dropped(self, model: str, path: str | None) -> list[object]:
        own = looker(self.shared, model)
        code = explore_python(str(self.shared.folders.get("model", model)))
        return self.first(model, looking.pixels_of(own, read_image(path, self.shared.settings)), code)

    def taken(self, model: str, number: float) -> list[object]:
        looker(self.shared, model)  # says first what is wrong with the model
        samples = samples_of(self.shared, model)
        if not 0 <= int(number) < len(samples):
            raise ConfigError(f"image {int(number)} is not in 0..{len(samples) - 1}")
        place = self.shared.folders.get("model", model)
        code = explore_python(str(place), str(open_run(place).values["data"]["source"]), int(number))
        return self.first(model, samples[int(number)]["pixel_values"][None], code)

    def clicked(self, inside: Inside | None, at: float, which: float, event: gr.EventData) -> list[object]:
        if inside is None:
            return [gr.skip()] * 3
        chosen = looking.query(inside, int(sent(event)[1] or 0))
        return [chosen, looking.clickable(inside, chosen), looking.maps(inside, chosen, int(at), int(which))]

    def slid(self, inside: Inside | None, chosen: int | None, at: float, which: float) -> object:
        return gr.skip() if inside is None else looking.maps(inside, looking.query(inside, chosen), int(at), int(which))

    def scrubbed(self, model: str, inside: Inside | None, num: float) -> object:
        if inside is None:
            raise ConfigError("upload an image first, or load one of the run's data")
        own = looker(self.shared, model)
        mean, std = own.opened.mean_std if own.opened is not None else (0.5, 0.5)
        pixels = (inside.images[:, : own.net.config.num_channels] - mean) / std
        return looking.rollout(looking.look(own, pixels, int(num)))

    def nearest(self, model: str, inside: Inside | None, chosen: int | None, at: float) -> object:
        if inside is None:
            raise ConfigError("upload an image first, or load one of the run's data")
        return looking.near_patches(
            looker(self.shared, model), samples_of(self.shared, model), inside, looking.query(inside, chosen), int(at)
        )


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    do = Handlers(shared)
    seen, patch = gr.State(None), gr.State(None)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            name = model_choice(shared, types=("vit_nepa", "omni"))
            file = gr.File(label="Image", file_types=IMAGES, height=120)
            with gr.Row():
                index = gr.Number(0, label="Or image number of the run's data", precision=0, minimum=0, min_width=140)
                take = gr.Button("Load", variant="primary", min_width=80)
            image = fragment(empty("Upload an image, or load one of the run's data."))
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                layer = gr.Slider(0, 12, 1, step=1, label="Layer (0: latents)", min_width=140)
                head = gr.Slider(0, 12, 0, step=1, label="Head (0: all)", min_width=140)
            shown = fragment()
            with gr.Accordion("Rollout", open=False):
                known = gr.Slider(0, 255, 0, step=1, label="Given patches; the model predicts the others")
                rolled = fragment()
            with gr.Accordion("Nearest patches in the run's data", open=False):
                find = gr.Button("Find")
                near = fragment()
    code = python_of(shared, name, explore_python)

    outputs = [seen, patch, image, shown, layer, head, known, rolled, near, code]
    listen(file.upload, do.dropped, [name, file], outputs, heavy=True)
    listen(take.click, do.taken, [name, index], outputs, heavy=True)
    listen(image.select, do.clicked, [seen, layer, head], [patch, image, shown], group="explore")
    for slider in (layer, head):
        listen(slider.input, do.slid, [seen, patch, layer, head], [shown], group="explore")
    listen(known.release, do.scrubbed, [name, seen, known], [rolled], heavy=True)
    listen(find.click, do.nearest, [name, seen, patch, layer], [near], heavy=True)

"""Map and search: an embedded folder as a map, with neighbours, outliers and duplicates."""

import tempfile
from pathlib import Path

import gradio as gr

from ...errors import ConfigError
from .. import mapping
from ..mapping import Mapped
from ..shared import Shared
from ..snippets import map_python
from ..ui import empty, fragment, listen, model_choice, python, scripted, sent
from ..uploads import IMAGES, read_image

NUM_NEAR = 24
MOST_SHOWN = 200


def mapped(shared: Shared, name: str) -> Mapped:
    """The file of features of this name, read when it is first asked for."""
    place = shared.folders.get("features", name)
    stamp = place.stat().st_mtime_ns
    return shared.models.get(("map", str(place), stamp), lambda: mapping.open_map(name, place), name)


class Handlers:
    """Actions of the panel."""

    def __init__(self, shared: Shared):
        self.shared = shared

    def result(self, own: Mapped, places: list[int], said: list[str], text: str) -> list[object]:
        shown = mapping.grid(own, places[:MOST_SHOWN], said)
        more = f" (the first {MOST_SHOWN} are shown)" if len(places) > MOST_SHOWN else ""
        file = ""
        if places:
            with tempfile.NamedTemporaryFile("w", prefix="nextembed-", suffix=".csv", delete=False) as out:
                out.write(mapping.table(own, places))
            file = str(Path(out.name))
        return [text + more, shown, gr.update(value=file or None, interactive=bool(places)), places]

    def drawn(self, which: str, how: str, by: str) -> list[object]:
        own = mapped(self.shared, which)
        return [mapping.points(own, how, by), map_python(str(self.shared.folders.get("features", which)))]

    def selected(self, which: str, event: gr.EventData) -> list[object]:
        own = mapped(self.shared, which)
        places = [int(one) for one in sent(event)[1].split(",") if one.isdecimal() and int(one) < len(own.rows)]
        return self.result(own, places, [], f"{len(places):,} images chosen")

    def near_one(self, which: str, event: gr.EventData) -> list[object]:
        own, place = mapped(self.shared, which), sent(event)[1]
        if not place.isdecimal() or int(place) >= len(own.rows):
            raise ConfigError("there is no such row")
        number = own.numbers[int(place)]
        found = mapping.near_vector(own, own.vectors[int(place)], NUM_NEAR, number)
        return self.result(own, *found, f"Nearest to {mapping.key_of(own.rows[int(place)], number)}, by cosine")

    def near_image(self, which: str, path: str | None) -> list[object]:
        own = mapped(self.shared, which)
        vector = mapping.embedded_image(own, read_image(path, self.shared.settings), self.shared.folders)
        return self.result(own, *mapping.near_vector(own, vector, NUM_NEAR), "Nearest to the image that was dropped")

    def near_words(self, which: str, text: str) -> list[object]:
        own = mapped(self.shared, which)
        if not text.strip():
            raise ConfigError("enter some text first")
        vector = mapping.embedded_text(own, text, self.shared.folders)
        return self.result(own, *mapping.near_vector(own, vector, NUM_NEAR), "Nearest to this text")

    def far_out(self, which: str) -> list[object]:
        own = mapped(self.shared, which)
        return self.result(own, *mapping.outliers(own), "Outliers: mean cosine to their ten nearest")

    def doubled(self, which: str) -> list[object]:
        own = mapped(self.shared, which)
        found, said = mapping.duplicates(own)
        return self.result(
            own, found, said, "Pairs above a cosine of 0.98" if found else "No pair is above a cosine of 0.98"
        )


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    do = Handlers(shared)
    chosen = gr.State([])
    with gr.Row():
        name = model_choice(shared, "Features", "features")
        layout = gr.Radio(mapping.layouts(), value="PCA", label="Laid out by")
        colour = gr.Radio(["class", "cluster"], value="class", label="Coloured by")
        show = gr.Button("Show the map", variant="primary")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            script = "nextembed.map(element, props, watch, (name, data) => trigger('select', data))"
            plot = scripted(script, None, "nx-map")
        with gr.Column(scale=2, min_width=300):
            file = gr.File(label="Drop an image to see what is near it", file_types=IMAGES, height=110)
            words = gr.Textbox(label="or text, if the model reads it", submit_btn=True, max_length=500)
            with gr.Row():
                far = gr.Button("Outliers", min_width=100)
                twice = gr.Button("Near-duplicates", min_width=100)
            save = gr.DownloadButton("Save these as CSV", interactive=False)
    line, tiles = gr.Markdown(), fragment(empty("Drag over the map to choose images; click one to see what is near."))
    code = python(map_python("features.parquet"))

    outputs = [line, tiles, save, chosen]
    for event in (show.click, layout.input, colour.input):
        listen(event, do.drawn, [name, layout, colour], [plot, code], heavy=True)
    listen(plot.select, do.selected, [name], outputs)
    listen(tiles.select, do.near_one, [name], outputs)
    listen(file.upload, do.near_image, [name, file], outputs, heavy=True)
    listen(words.submit, do.near_words, [name, words], outputs, heavy=True)
    listen(far.click, do.far_out, [name], outputs, heavy=True)
    listen(twice.click, do.doubled, [name], outputs, heavy=True)

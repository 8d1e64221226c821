"""Map and search: an embedded folder as a map; neighbours, outliers and duplicates."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from ...errors import ConfigError
from .. import mapping
from ..mapping import Mapped, Points
from ..shared import Shared
from ..snippets import map_python
from ..ui import empty, fragment, listen, model_choice, python_of, scripted, sent, stops
from ..uploads import IMAGES, read_image
from ..working import Work, streamed

NUM_NEAR = 24
MOST_SHOWN = 200
ALL = "(all)"


def mapped(shared: Shared, name: str) -> Mapped:
    """The file of features of this name, read when it is first asked for."""
    place = shared.folders.get("features", name)
    stamp = place.stat().st_mtime_ns
    return shared.maps.get(("map", str(place), stamp), lambda: mapping.open_map(name, place), name)


class Handlers:
    """Actions of the panel."""

    def __init__(self, shared: Shared):
        self.shared = shared

    def result(self, own: Mapped, places: list[int], said: list[str], text: str) -> list[object]:
        shown = mapping.grid(own, places[:MOST_SHOWN], said)
        more = f" (the first {MOST_SHOWN} are shown)" if len(places) > MOST_SHOWN else ""
        file = ""
        if places:
            scratch = os.environ.get("GRADIO_TEMP_DIR")  # of the server; removed when the studio ends
            with tempfile.NamedTemporaryFile("w", suffix=".csv", dir=scratch, delete=False) as out:
                out.write(mapping.table(own, places))
            file = str(Path(out.name))
        return [text + more, shown, gr.update(value=file or None, interactive=bool(places)), places]

    def drawn(self, which: str, how: str, by: str) -> Iterator[list[object]]:
        own = mapped(self.shared, which)
        yield [gr.skip(), gr.skip()]

        def work(show: Work[Points]) -> None:
            show.show(mapping.points(own, how, by, show.check))

        for found in streamed(work):
            if found is None:
                yield [gr.skip(), gr.skip()]
            else:
                yield [found, gr.update(choices=[ALL, *found["groups"]], value=ALL)]

    def of_group(self, which: str, by: str, group: str) -> list[object]:
        own = mapped(self.shared, which)
        of_row, names = mapping.grouped(own, by)
        places = [i for i, number in enumerate(of_row) if names[number] == group or group == ALL]
        return self.result(own, places, [], f"{len(places):,} images: {group}")

    def selected(self, which: str, event: gr.EventData) -> list[object]:
        own = mapped(self.shared, which)
        places = [int(one) for one in sent(event)[1].split(",") if one.isdecimal() and int(one) < len(own.rows)]
        return self.result(own, places, [], f"{len(places):,} images selected")

    def near_one(self, which: str, event: gr.EventData) -> list[object]:
        own, place = mapped(self.shared, which), sent(event)[1]
        if not place.isdecimal() or int(place) >= len(own.rows):
            raise ConfigError("there is no such row")
        number = own.numbers[int(place)]
        found = mapping.near_vector(own, own.vectors[int(place)], NUM_NEAR, number)
        return self.result(own, *found, f"Nearest to {mapping.key_of(own.rows[int(place)], number)}, by cosine")

    def near_image(self, which: str, path: str | None) -> list[object]:
        own = mapped(self.shared, which)
        image = read_image(path, self.shared.settings)
        vector = mapping.embedded_image(own, image, self.shared.folders, self.shared.models)
        return self.result(own, *mapping.near_vector(own, vector, NUM_NEAR), "Nearest to the uploaded image, by cosine")

    def near_words(self, which: str, text: str) -> list[object]:
        own = mapped(self.shared, which)
        if not text.strip():
            raise ConfigError("enter some text first")
        vector = mapping.embedded_text(own, text, self.shared.folders, self.shared.models)
        return self.result(own, *mapping.near_vector(own, vector, NUM_NEAR), "Nearest to this text, by cosine")

    def far_out(self, which: str) -> list[object]:
        own = mapped(self.shared, which)
        return self.result(own, *mapping.outliers(own), "Outliers, by mean cosine to their ten nearest images")

    def doubled(self, which: str) -> list[object]:
        own = mapped(self.shared, which)
        found, said = mapping.duplicates(own)
        return self.result(
            own, found, said, "Pairs above a cosine of 0.98" if found else "No pair has a cosine above 0.98"
        )


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    do = Handlers(shared)
    chosen = gr.State([])
    with gr.Row():
        name = model_choice(shared, "Features", "features")
        layout = gr.Radio(mapping.layouts(), value="PCA", label="Projection")
        colour = gr.Radio(["class", "cluster"], value="class", label="Colour")
        with gr.Column(min_width=120):
            show = gr.Button("Show the map", variant="primary")
            stop = gr.Button("Stop", variant="stop", size="sm")
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            script = "nextembed.map(element, props, watch, (name, data) => trigger('select', data))"
            plot = scripted(script, None, "nx-map")
        with gr.Column(scale=2, min_width=300):
            file = gr.File(label="Search by image", file_types=IMAGES, height=110)
            words = gr.Textbox(label="Search by text, if the model reads text", submit_btn=True, max_length=500)
            group = gr.Dropdown([ALL], value=ALL, label="List a class or cluster")
            with gr.Row():
                far = gr.Button("Outliers", min_width=100)
                twice = gr.Button("Near-duplicates", min_width=100)
            save = gr.DownloadButton("Export this list as CSV", interactive=False)
    line, tiles = (
        gr.Markdown(),
        fragment(empty("Drag over the map to select images; click an image to see its neighbours.")),
    )
    python_of(shared, name, map_python, "features")

    outputs = [line, tiles, save, chosen]
    for event in (show.click, layout.input, colour.input):
        stops(stop, listen(event, do.drawn, [name, layout, colour], [plot, group], heavy=True))
    listen(group.input, do.of_group, [name, colour, group], outputs, group="maps")
    listen(plot.select, do.selected, [name], outputs, group="maps")
    listen(tiles.select, do.near_one, [name], outputs, group="maps")
    listen(file.upload, do.near_image, [name, file], outputs, heavy=True)
    listen(words.submit, do.near_words, [name, words], outputs, heavy=True)
    listen(far.click, do.far_out, [name], outputs, heavy=True)
    listen(twice.click, do.doubled, [name], outputs, heavy=True)

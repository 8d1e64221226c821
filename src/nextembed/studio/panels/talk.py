"""Talk and paint: a conversation with an Emu about images and videos, and pictures from it."""

from collections.abc import Iterator

import gradio as gr
from PIL import Image

from ...core.run_folder import find_saved
from ...errors import ConfigError
from ...inference.chat import Talker
from ...inference.prompts import VIDEOS
from ...inference.settings import Sampling
from ...models.emu.processing_emu import Piece
from ...models.loading import model_type
from ..shared import Shared
from ..snippets import talk_python
from ..talking import Example, as_seen, conversation, open_talker, read_pieces, streamed
from ..ui import listen, model_choice, python
from ..uploads import IMAGES, read_image

Turns = list[tuple[list[Piece], str, str]]


def talker(shared: Shared, name: str) -> Talker:
    """The Emu of this name, loaded when it is first asked for."""
    place = shared.folders.get("model", name)
    kind = model_type(find_saved(place).folder())
    if kind != "emu":
        raise ConfigError(f"{name} is a model of type '{kind}', which cannot chat; choose an Emu")
    return shared.models.get(("talk", str(place)), lambda: open_talker(place), name)


class Handlers:
    """Actions of the panel."""

    def __init__(self, shared: Shared):
        self.shared = shared

    def answered(
        self,
        model: str, said: dict[str, object], before: Turns, shown: list[Example], first: str, many: float, hot: float,
        number: float,
    ) -> Iterator[list[object]]:  # fmt: skip
        own, text, dropped = talker(self.shared, model), str(said.get("text") or "").strip(), said.get("files")
        paths = [str(one) for one in dropped] if isinstance(dropped, list) else []
        pieces = read_pieces(paths, self.shared.settings)
        talk = conversation(shown, before, first)
        talk.ask(*pieces, text)
        prompt = as_seen(own, talk)
        sampling = Sampling(num_beams=1, max_new_tokens=int(many), do_sample=hot > 0, temperature=hot or 1.0,
                            seed=int(number))  # fmt: skip
        lines = messages(before)
        lines += [{"role": "user", "content": {"path": path}} for path in paths]
        lines += [{"role": "user", "content": text}] * bool(text)
        yield [[*lines, {"role": "assistant", "content": "…"}], before, prompt, None]
        answer = ""
        for answer in streamed(lambda on_text: own.reply(talk, sampling, on_text)):
            yield [[*lines, {"role": "assistant", "content": answer}], before, prompt, gr.skip()]
        done = [*before, (pieces, text, answer.strip())]
        yield [[*lines, {"role": "assistant", "content": answer.strip() or "(nothing)"}], done, prompt, gr.skip()]

    def added(self, path: str | None, what: str, reply: str, shown: list[Example]) -> list[object]:
        if not what.strip() or not reply.strip():
            raise ConfigError("an example has a question and an answer")
        now = [*shown, (read_image(path, self.shared.settings), what.strip(), reply.strip())]
        gr.Info(f"{len(now)} example{'s' * (len(now) > 1)} before the conversation", duration=4)
        return [now, None, "", ""]

    def paint(
        self,
        model: str, what: str, paths: list[str] | None, num: float, away: float, number: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (gradio finds it so)
    ) -> Image.Image:  # fmt: skip
        own = talker(self.shared, model)
        progress(0.0, desc="painting")
        pieces: list[Piece] = [read_image(path, self.shared.settings) for path in paths or []]
        pieces += [what.strip()] * bool(what.strip())
        return own.paint(pieces, int(num), away, int(number))


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    do = Handlers(shared)
    turns, examples = gr.State([]), gr.State([])
    with gr.Row():
        name = model_choice(shared)
        tokens = gr.Slider(1, 512, 64, step=1, label="Longest answer, tokens")
        bold = gr.Slider(0.0, 2.0, 0.0, step=0.1, label="Temperature (0: greedy)")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
    with gr.Tabs():
        with gr.Tab("Talk"):
            chat = gr.Chatbot(height=380, label="Conversation", buttons=["copy"])
            asked = gr.MultimodalTextbox(label="Ask", file_types=[*IMAGES, *VIDEOS], file_count="multiple",
                                         placeholder="Write, and drop images or a video")  # fmt: skip
            with gr.Row():
                stop = gr.Button("Stop", variant="stop")
                anew = gr.Button("Begin anew")
            with gr.Accordion("Examples before the conversation", open=False), gr.Row():
                picture = gr.File(label="Image", file_types=IMAGES, height=110)
                question, answer = gr.Textbox(label="Question"), gr.Textbox(label="Answer")
                add = gr.Button("Add the example")
            system = gr.Textbox(label="System prompt (empty: as in training)", max_length=2000)
            with gr.Accordion("The prompt as the model sees it", open=False):
                seen = gr.Textbox(show_label=False, lines=6, interactive=False, buttons=["copy"])
        with gr.Tab("Paint"), gr.Row():
            with gr.Column(min_width=300):
                words = gr.Textbox(label="Image prompt", max_length=1000)
                files = gr.File(label="Images to start from; two are blended", file_types=IMAGES, file_count="multiple")
                steps = gr.Slider(1, 100, 20, step=1, label="Denoising steps")
                guidance = gr.Slider(0.0, 15.0, 3.0, step=0.5, label="Guidance (1 or less: off)")
                with gr.Row():
                    go = gr.Button("Paint", variant="primary")
                    halt = gr.Button("Stop", variant="stop")
            painted = gr.Image(label="Painted", format="png", interactive=False, buttons=["download", "fullscreen"])
    python(talk_python("runs/emu_emoji"))

    inputs = [name, asked, turns, examples, system, tokens, bold, seed]
    running = listen(asked.submit, do.answered, inputs, [chat, turns, seen, asked], heavy=True)
    stop.click(None, cancels=[running], api_visibility="private")
    listen(anew.click, lambda: [[], [], [], ""], None, [chat, turns, examples, seen])
    listen(add.click, do.added, [picture, question, answer, examples], [examples, picture, question, answer])
    painting = listen(go.click, do.paint, [name, words, files, steps, guidance, seed], [painted], heavy=True)
    halt.click(None, cancels=[painting], api_visibility="private")


def messages(turns: Turns) -> list[dict[str, object]]:
    """The conversation, for the page; pictures of earlier turns as text."""
    found: list[dict[str, object]] = []
    for pieces, question, answer in turns:
        shown = f"[{len(pieces)} picture{'s' * (len(pieces) > 1)}] " if pieces else ""
        found += [{"role": "user", "content": shown + question}, {"role": "assistant", "content": answer}]
    return found

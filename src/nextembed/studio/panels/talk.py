"""Talk and paint: a conversation with an Emu about images and videos, and images from it."""

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
from ..talking import Example, as_seen, conversation, open_talker, read_pieces
from ..ui import fragment, listen, model_choice, python_of, stops
from ..uploads import IMAGES, read_image
from ..working import Work, streamed

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
        dropped = own.fit(talk, int(many))
        if dropped:
            gr.Warning(f"The oldest {dropped} turns are left out: the prompt would be too long", duration=6)
        prompt = as_seen(own, talk)
        sampling = Sampling(num_beams=1, max_new_tokens=int(many), do_sample=hot > 0, temperature=hot or 1.0,
                            seed=int(number))  # fmt: skip
        lines = messages(before)
        lines += [{"role": "user", "content": {"path": path}} for path in paths]
        lines += [{"role": "user", "content": text}] * bool(text)
        yield [[*lines, {"role": "assistant", "content": "…"}], before, prompt, None]

        def write(work: Work[str]) -> None:
            own.reply(talk, sampling, work.show)

        answer = ""
        for part in streamed(write):
            answer += part or ""
            yield [[*lines, {"role": "assistant", "content": answer or "…"}], before, prompt, gr.skip()]
        done = [*before, (pieces, text, answer.strip())]
        yield [
            [*lines, {"role": "assistant", "content": answer.strip() or "(an empty answer)"}],
            done,
            prompt,
            gr.skip(),
        ]

    def added(self, path: str | None, what: str, reply: str, shown: list[Example]) -> list[object]:
        if not what.strip() or not reply.strip():
            raise ConfigError("an example needs a question and an answer")
        now = [*shown, (read_image(path, self.shared.settings), what.strip(), reply.strip())]
        gr.Info(f"{len(now)} example{'s' * (len(now) > 1)} before the conversation", duration=4)
        return [now, None, "", ""]

    def paint(
        self,
        model: str, what: str, paths: list[str] | None, num: float, away: float, number: float
    ) -> Iterator[list[object]]:  # fmt: skip
        own = talker(self.shared, model)
        pieces: list[Piece] = [read_image(path, self.shared.settings) for path in paths or []]
        pieces += [what.strip()] * bool(what.strip())

        def work(show: Work[Image.Image | tuple[int, int]]) -> None:
            show.show((0, int(num)))
            show.show(own.paint(pieces, int(num), away, int(number), lambda *step: show.show(step)))

        for part in streamed(work):
            if isinstance(part, Image.Image):
                yield [part, ""]
            else:
                yield [gr.skip(), gr.skip() if part is None else share_done(*part)]


def build(shared: Shared) -> None:
    """The panel, in the tab that is open."""
    do = Handlers(shared)
    turns, examples = gr.State([]), gr.State([])
    with gr.Row():
        name = model_choice(shared, types=("emu",))
        tokens = gr.Slider(1, 512, 64, step=1, label="Maximum tokens")
        bold = gr.Slider(0.0, 2.0, 0.0, step=0.1, label="Temperature (0: greedy)")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
    with gr.Tabs():
        with gr.Tab("Talk"):
            chat = gr.Chatbot(height=380, label="Conversation", buttons=["copy"], elem_classes=["nx-chat"])
            asked = gr.MultimodalTextbox(label="Ask", file_types=[*IMAGES, *VIDEOS], file_count="multiple",
                                         placeholder="Write a question; images and videos can be added")  # fmt: skip
            with gr.Row():
                stop = gr.Button("Stop", variant="stop")
                anew = gr.Button("New conversation")
            with gr.Accordion("Few-shot examples", open=False), gr.Row():
                picture = gr.File(label="Image", file_types=IMAGES, height=110)
                question, answer = gr.Textbox(label="Question"), gr.Textbox(label="Answer")
                add = gr.Button("Add example")
            system = gr.Textbox(label="System prompt (empty: the one used in training)", max_length=2000)
            with gr.Accordion("The prompt as the model sees it", open=False):
                seen = gr.Textbox(show_label=False, lines=6, interactive=False, buttons=["copy"])
        with gr.Tab("Paint"), gr.Row():
            with gr.Column(min_width=300):
                words = gr.Textbox(label="Image prompt", max_length=1000)
                files = gr.File(
                    label="Images in the prompt; two images are blended", file_types=IMAGES, file_count="multiple"
                )
                steps = gr.Slider(1, 100, 20, step=1, label="Denoising steps")
                guidance = gr.Slider(0.0, 15.0, 3.0, step=0.5, label="Guidance (1 or less: off)")
                with gr.Row():
                    go = gr.Button("Paint", variant="primary")
                    halt = gr.Button("Stop", variant="stop")
            with gr.Column(min_width=300):
                painted = gr.Image(
                    label="Painted image",
                    height=380,
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes=["nx-painted"],
                )
                so_far = fragment()
    python_of(shared, name, talk_python)

    inputs = [name, asked, turns, examples, system, tokens, bold, seed]
    running = listen(asked.submit, do.answered, inputs, [chat, turns, seen, asked], heavy=True)
    stops(stop, running)
    listen(anew.click, lambda: [[], [], [], ""], None, [chat, turns, examples, seen])
    listen(add.click, do.added, [picture, question, answer, examples], [examples, picture, question, answer])
    painting = listen(go.click, do.paint, [name, words, files, steps, guidance, seed], [painted, so_far], heavy=True)
    stops(halt, painting, so_far)


def share_done(step: int, of: int) -> str:
    """A bar. It is a part of the page, because gradio hides its own at the next part that comes."""
    bar = f'<div class="track whole"><i style="--w:{100 * step / of:.1f}%"></i></div>'
    return f'<div class="line">{step} of {of} steps{bar}</div>'


def messages(turns: Turns) -> list[dict[str, object]]:
    """What was said, for the page; of earlier turns the number of images."""
    found: list[dict[str, object]] = []
    for pieces, question, answer in turns:
        shown = f"[{len(pieces)} file{'s' * (len(pieces) > 1)}] " if pieces else ""
        found += [{"role": "user", "content": shown + question}, {"role": "assistant", "content": answer}]
    return found

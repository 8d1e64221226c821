"""`generate` and `chat`: an Emu model in use."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.files import (
    check_target,
    checked_file,
    free_file,
    free_folder,
    new_folder,
    open_folder,
    replacing,
    to_json,
    write_json,
    write_text,
)
from ..core.terminal import print
from ..errors import ConfigError, NextEmbedError, unknown
from .app import app

if TYPE_CHECKING:
    from ..inference.chat import Sampling, Talker
    from ..inference.prompts import Prompt

TARGETS = ("auto", "text", "image", "mixed")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")

Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A run, a checkpoint, a saved model or a hub id.")
]
Weights = Annotated[str | None, typer.Option(help="raw or ema; what there is if left out.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator if there is one.")]
Pieces = Annotated[list[str] | None, typer.Option(metavar="WORDS", help="A piece of text.")]
PieceFiles = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="A piece; after those without a name: images, videos, ...")
]
Target = Annotated[
    str,
    typer.Option(
        help="What comes: text, image, mixed (text and images); of an Omni any of its modalities. auto: a picture if "
        "-o names one, else text; an Omni chooses."
    ),
]
OwnPieces = Annotated[
    list[str] | None, typer.Option(metavar="NAME=FILE", help="A piece of a modality of your own, by its name.")
]
Prompts = Annotated[
    Path | None, typer.Option("--input", "-i", metavar="JSONL", help="Many prompts, one a line: pieces, question.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="A picture, sound; of --input a .jsonl; of --target mixed a folder."
    ),
]
Frames = Annotated[int, typer.Option(min=1, max=10**6, help="Of a video.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens; with --temperature, --top-k, --top-p.")]
Temperature = Annotated[float, typer.Option(help="Above 1 is bolder.")]
TopK = Annotated[int, typer.Option(help="Draw among so many; 0: all.")]
TopP = Annotated[float, typer.Option(help="Draw among the likeliest with this share.")]
Repetition = Annotated[float, typer.Option(help="Above 1 repeats less.")]
Seed = Annotated[int, typer.Option(help="Of drawn tokens and of painting.")]
Steps = Annotated[int, typer.Option(min=1, max=10**6, help="Of painting.")]
Guidance = Annotated[float, typer.Option(help="Of painting: away from the empty prompt; off at 1 or less.")]


@app.command()
def generate(
    checkpoint: Checkpoint,
    pieces: Annotated[
        list[str] | None,
        typer.Argument(metavar="PIECE", help="Text, image files and video files, in reading order."),
    ] = None,
    target: Target = "auto",
    text: Pieces = None,
    image: PieceFiles = None,
    video: PieceFiles = None,
    audio: PieceFiles = None,
    series: PieceFiles = None,
    piece: OwnPieces = None,
    output: Output = None,
    question: Annotated[str | None, typer.Option(help="Ask about the pieces.")] = None,
    prompts: Prompts = None,
    batch_size: Annotated[int, typer.Option(min=1, max=10**6, help="Prompts at once.")] = 8,
    beams: Annotated[int | None, typer.Option(help="5; 1 with --sample or --stream.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of the text.")] = 50,
    min_new_tokens: Annotated[int, typer.Option(help="Of the text.")] = 0,
    length_penalty: Annotated[float, typer.Option(help="Of beams; below 0 is shorter.")] = 0.0,
    repetition_penalty: Repetition = 1.0,
    sample: Sample = False,
    temperature: Temperature = 1.0,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text while it is written.")] = False,
    seed: Seed = 0,
    steps: Steps = 50,
    guidance: Guidance = 7.5,
    frames: Frames = 8,
    weights: Weights = None,
    device: Device = None,
) -> None:
    """Let an Emu or Omni model go on after text, images, videos and sounds: with text, a picture, or what it makes.

    An image alone is captioned, --question is answered, two images are blended with --target image, examples before
    the last piece are in-context learning.
    """
    named = {"image": image, "video": video, "audio": audio, "series": series, "text": text}
    given = [(kind, value) for kind, values in named.items() for value in values or []]
    if is_omni(checkpoint):
        from .omni import continue_document

        if prompts or question or beams or stream:
            raise ConfigError("--input, --question, --beams and --stream are for Emu models")
        drawn = temperature if sample or temperature != 1.0 else 0.0
        options = {"max_latents": max_new_tokens, "temperature": drawn, "top_k": top_k if drawn else 0, "seed": seed}
        continue_document(checkpoint, pieces or [], given, piece or [], target, output, options, (weights, device))
        return
    if audio or series or piece:
        raise ConfigError("--audio, --series and --piece are for Omni models")
    pieces = [*(pieces or []), *(value for _, value in given)]
    task = _task(target, output, prompts)
    if beams is None:
        beams = 1 if sample or stream else 5
    if (sample or stream) and beams > 1:
        raise ConfigError(f"--{'sample' if sample else 'stream'} goes with --beams 1")
    _check_prompts(bool(pieces or question), prompts is not None, stream or task == "mixed")
    from ..core.config import validated
    from ..inference.chat import Sampling, Talker
    from ..inference.prompts import Prompt, read_piece, read_prompts

    values = {"num_beams": beams, "max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens,
              "length_penalty": length_penalty, "repetition_penalty": repetition_penalty, "do_sample": sample,
              "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}  # fmt: skip
    sampling = validated(Sampling, values, "generate")
    rows = read_prompts(prompts, frames) if prompts else [
        Prompt([read_piece(word, frames) for word in pieces or []], question)
    ]  # fmt: skip
    talker = Talker.load(checkpoint, weights, device)
    painting = {"num_inference_steps": steps, "guidance_scale": guidance, "seed": seed}
    if task == "image":
        _paint(talker, rows, output, painting, many=prompts is not None)
    elif task == "mixed":
        _mixed(talker, rows[0], output, sampling, steps)
    elif prompts is not None:
        _many(talker, rows, output, sampling, batch_size)
    else:
        _one(talker, rows[0], output, sampling, stream)


def _check_prompts(given: bool, from_file: bool, one_by_one: bool) -> None:
    if from_file and (given or one_by_one):
        raise ConfigError("--input brings its own pieces and questions, without --stream and --target mixed")
    if not (from_file or given):
        raise ConfigError("give text or an image behind the checkpoint, or --input FILE.jsonl")


def is_omni(checkpoint: str) -> bool:
    """Whether a run, a checkpoint, a model folder or a hub id holds an Omni model. Raises ConfigError for none."""
    from ..core.run_folder import find_saved
    from ..models.loading import model_type

    return model_type(find_saved(checkpoint).folder()) == "omni"


def _task(task: str, output: Path | None, prompts: Path | None) -> str:
    """What an Emu model is to make."""
    if task not in TARGETS:
        raise ConfigError(unknown("--target", task, TARGETS))
    picture = output is not None and output.suffix.lower() in PICTURES
    if task == "auto" and picture:
        task = "image"
    if task == "image" and prompts is None and not picture:
        raise ConfigError(f"a picture needs a file: -o FILE.png{'' if output is None else f', not {output}'}")
    if task != "image" and picture:
        raise ConfigError(f"--target {task} writes no picture; {output} would be one")
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: no such folder: {output.parent}")
    if output is not None:  # before a model is at work for minutes
        folder = task == "mixed" or (task == "image" and prompts is not None)
        check_target(output) if folder else checked_file(output)
    return task


def _one(talker: "Talker", row: "Prompt", output: Path | None, sampling: "Sampling", stream: bool) -> None:
    prompt, stop = talker.pieces_of(row), talker.stop if row.question else None
    if stream:
        (text,) = talker.write([prompt], sampling, on_text=_say, stop=stop)
        print()
    else:
        (text,) = talker.write([prompt], sampling, stop=stop)
        print(text)
    if output is not None:
        write_text(output, text + "\n")


def _many(talker: "Talker", rows: list["Prompt"], output: Path | None, sampling: "Sampling", size: int) -> None:
    texts = talker.write([talker.pieces_of(row) for row in rows], sampling, batch_size=size)
    lines = []
    for row, text in zip(rows, texts, strict=True):
        answer = text.split(talker.stop)[0].strip() if row.question and talker.stop else text
        lines.append(to_json({**(row.row or {}), "output": answer}) + "\n")
    if output is None:
        print("".join(lines), end="")
    else:
        write_text(output, "".join(lines))
        print(f"Saved:  {output} ({len(lines)} answers)")


def _paint(talker: "Talker", rows: list["Prompt"], output: Path | None, painting: dict[str, Any], many: bool) -> None:
    if not many:
        assert output is not None
        words = [*rows[0].pieces, *([rows[0].question] if rows[0].question else [])]
        with replacing(output) as file:
            talker.paint(words, **painting, progress=sys.stderr.isatty()).save(file)
        print(f"Saved:  {output}")
        return
    talker.pipeline  # noqa: B018  (before a folder is made)
    folder = output or free_folder(Path(), "painted")
    open_folder(folder)
    for number, row in enumerate(rows):
        with replacing(folder / f"{number:04d}.png") as file:
            talker.paint(row.pieces, **painting).save(file)
    print(f"Saved:  {folder} ({len(rows)} pictures)")


def _mixed(talker: "Talker", row: "Prompt", output: Path | None, sampling: "Sampling", steps: int) -> None:
    """Text to the terminal, pictures and document.json to the folder."""
    options = sampling.model_dump(include={"max_new_tokens", "do_sample", "temperature", "top_k", "top_p",
                                           "repetition_penalty", "seed"})  # fmt: skip
    made = talker.document(talker.pieces_of(row), num_inference_steps=steps, **options)
    lines: list[dict[str, Any]] = []
    pictures: dict[str, Any] = {}
    for span in made:
        if span.kind == "text":
            print(span.text)
            lines.append({"type": "text", "text": span.text})
            continue
        name = f"{sum(line['type'] == 'image' for line in lines) + 1:02d}.png"
        there = span.image is not None and output is not None
        hint = "" if span.image is not None else ": the checkpoint has no visual_decoder/ to paint it"
        print(f"[image{f': {output}/{name}' if there else hint}]")
        lines.append({"type": "image", "image": name if there else None})
        if there:
            pictures[name] = span.image
    if output is not None:
        with new_folder(output) as folder:
            for name, image in pictures.items():
                image.save(folder / name)
            write_json(folder / "document.json", {"segments": lines})


def _say(text: str) -> None:
    print(text, end="", flush=True)


HELP = """\
Write, and press Enter. A line that begins with / does something:
  /image FILE   show an image; it belongs to what you write next
  /video FILE   show a video
  /paint TEXT   paint: after the images that were shown, or from text alone
  /reset        begin anew
  /save FILE    add the conversation to a .jsonl file
  /help         this
  /quit         end (or Ctrl-D)"""


@app.command()
def chat(
    checkpoint: Checkpoint,
    system: Annotated[str | None, typer.Option(help="What is said before all; Emu's own line if left out.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="1 shows answers while they are written.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 128,
    repetition_penalty: Repetition = 1.0,
    sample: Sample = False,
    temperature: Temperature = 1.0,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    steps: Steps = 50,
    guidance: Guidance = 7.5,
    frames: Frames = 8,
    weights: Weights = None,
    device: Device = None,
) -> None:
    """Talk with an Emu model about images and videos, in the terminal or from a pipe.

    /help says what there is.
    """
    if sample and beams > 1:
        raise ConfigError("--sample goes with --beams 1")
    from ..core.config import validated
    from ..core.run_folder import find_saved
    from ..inference.chat import Sampling, Talker

    find_saved(checkpoint)
    values = {"num_beams": beams, "max_new_tokens": max_new_tokens, "repetition_penalty": repetition_penalty}
    values |= {"do_sample": sample, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    sampling = validated(Sampling, values, "chat")
    talker = Talker.load(checkpoint, weights, device)
    painting = {"num_inference_steps": steps, "guidance_scale": guidance, "seed": seed}
    _Chat(talker, sampling, painting, system, frames).run()


class _Chat:
    """Reads lines, keeps the conversation, prints. From a pipe, the first error ends it; in a terminal it is said."""

    def __init__(
        self, talker: "Talker", sampling: "Sampling", painting: dict[str, Any], system: str | None, frames: int
    ):
        from ..core.console import PlainConsole

        self.talker, self.sampling, self.painting = talker, sampling, painting
        self.system, self.frames = system, frames
        self.console = PlainConsole()
        self.live = sys.stdin.isatty()
        self.reset()

    def reset(self) -> None:
        from ..inference.conversation import Conversation

        self.talk: Conversation = Conversation(system=self.system)
        self.shown: list[Any] = []
        self.files: list[str | None] = []

    def run(self) -> None:
        from rich.text import Text

        if not self.talker.style.instruct:
            self.note("this model was not made for dialogue ([USER], [ASSISTANT]); it is asked 'Question: ... Answer:'")
        if self.live:
            self.note("/help says what there is, Ctrl-D ends")
        while True:
            try:
                line = self.console.input(Text("you> ", style="bold")) if self.live else next(sys.stdin, None)
            except EOFError:
                line = None
            if line is None or line.strip() in ("/quit", "/exit"):
                return
            try:
                self.take(line.strip())
            except NextEmbedError as err:
                if not self.live:
                    raise
                self.note(str(err), "red")

    def take(self, line: str) -> None:
        if not line:
            return
        if not line.startswith("/"):
            return self.answer(line)
        command, _, rest = line.partition(" ")
        known = {"/image": self.show, "/video": self.show, "/paint": self.paint, "/save": self.save}
        if command in known:
            if not rest.strip() and not (command == "/paint" and self.shown):
                raise ConfigError(f"{command} what? /help says how")
            known[command](rest.strip())
        elif command == "/reset":
            self.reset()
            self.note("a new conversation")
        elif command == "/help":
            print(HELP)
        else:
            raise ConfigError(unknown("command", command, [*known, "/reset", "/help", "/quit"]))

    def show(self, name: str) -> None:
        from ..inference.prompts import IMAGES, VIDEOS, read_piece

        if Path(name).suffix.lower() not in (*IMAGES, *VIDEOS):
            raise ConfigError(f"{name}: not the name of an image or video file")
        self.shown.append(read_piece(name, self.frames))
        self.files.append(name)
        self.note(f"shown: {name}")

    def answer(self, words: str) -> None:
        self.talk.ask(*self.shown, words, sources=list(self.files))
        try:
            if self.live:
                self.console.print("model> ", style="bold cyan", end="")
            stream = self.sampling.num_beams == 1
            text, dropped = self.talker.reply(self.talk, self.sampling, on_text=_say if stream else None)
        except BaseException:
            self.talk.turns.pop()  # what has no answer was not said
            raise
        print("" if stream else text)
        self.talk.answer(text)
        self.shown, self.files = [], []
        if dropped:
            self.note(f"the context is full: the oldest {dropped} turns were left out")

    def paint(self, words: str) -> None:
        image = self.talker.paint([*self.shown, *([words] if words else [])], **self.painting)
        file = free_file("painted-{:02d}.png")
        with replacing(file) as scratch:
            image.save(scratch)
        self.shown, self.files = [], []
        self.note(f"painted: {file}")

    def save(self, name: str) -> None:
        if not self.talk.turns:
            raise ConfigError("there is nothing to save yet")
        self.note(f"saved: {self.talk.save(name)}")

    def note(self, words: str, style: str = "dim") -> None:
        if self.live:
            self.console.print(words, style=style)
        else:
            print(f"({words})", flush=True)

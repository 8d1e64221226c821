"""`chat`: talk with an Emu model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.files import free_file, replacing
from ..core.terminal import print
from ..errors import ConfigError, NextEmbedError, unknown
from .arguments import Model
from .generate import is_omni, say
from .options import Group, command
from .prompting import Frames, Loading
from .words import check_model

if TYPE_CHECKING:
    from ..inference.chat import Talker
    from ..inference.settings import Painting, Sampling
    from ..models.emu.processing_emu import Piece

ANSWERS = Group("inference.settings:Sampling", {"num_beams": 1, "max_new_tokens": 128})
HELP = """\
Type a message and press Enter. Lines that begin with / are commands:
  /image FILE   attach an image to your next message
  /video FILE   attach a video to your next message
  /paint TEXT   generate an image from the attached images and TEXT
  /reset        start a new conversation
  /save FILE    add the conversation to a .jsonl file
  /help         show this help
  /quit         quit (or Ctrl-D)"""


@command(sampling=ANSWERS, painting="inference.settings:Painting", loading=Loading)
def chat(
    checkpoint: Model,
    sampling: "Sampling",
    painting: "Painting",
    loading: Loading,
    system: Annotated[str | None, typer.Option(help="System prompt; Emu's default if left out.")] = None,
    frames: Frames = 8,
) -> None:
    """Talk with an Emu model about images and videos, in the terminal or a pipe.

    Type a message and press Enter; /image FILE attaches an image, and /help lists all commands.

    \b
    Examples:
      nextembed chat runs/emu
      printf "/image dog.png\\nWhat is it doing?\\n" | nextembed chat runs/emu --max-new-tokens 40
    """
    if sampling.do_sample and sampling.num_beams > 1:
        raise ConfigError("--sample needs --beams 1")
    check_model(checkpoint)
    if is_omni(checkpoint):
        raise ConfigError(
            f"{checkpoint} is an Omni model, which cannot chat; nextembed generate {checkpoint} continues a document"
        )
    from ..inference.chat import Talker

    talker = Talker.load(checkpoint, loading.weights, loading.device)
    _Chat(talker, sampling, painting, system, frames).run()


class _Chat:
    """Reads lines, keeps the conversation, prints. From a pipe, the first error ends it; in a terminal it is shown."""

    def __init__(self, talker: "Talker", sampling: "Sampling", painting: "Painting", system: str | None, frames: int):
        from ..core.console import PlainConsole

        self.talker, self.sampling, self.painting = talker, sampling, painting
        self.system, self.frames = system, frames
        self.console = PlainConsole()
        self.live = sys.stdin.isatty()
        self.reset()

    def reset(self) -> None:
        from ..inference.conversation import Conversation

        self.talk: Conversation = Conversation(system=self.system)
        self.shown: list[Piece] = []
        self.files: list[str | None] = []

    def run(self) -> None:
        from rich.text import Text

        if not self.talker.style.instruct:
            self.note(
                "this model was not trained for dialogue ([USER], [ASSISTANT]); prompts have the form 'Question: "
                "... Answer:'"
            )
        if self.live:
            self.note("/help lists the commands, Ctrl-D quits")
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
                raise ConfigError(f"{command} needs an argument; see /help")
            known[command](rest.strip())
        elif command == "/reset":
            self.reset()
            self.note("new conversation started")
        elif command == "/help":
            print(HELP)
        else:
            raise ConfigError(unknown("command", command, [*known, "/reset", "/help", "/quit"]))

    def show(self, name: str) -> None:
        from ..inference.prompts import IMAGES, VIDEOS, read_piece

        if Path(name).suffix.lower() not in (*IMAGES, *VIDEOS):
            raise ConfigError(f"{name} is not an image or video file")
        self.shown.append(read_piece(name, self.frames))
        self.files.append(name)
        self.note(f"shown: {name}")

    def answer(self, words: str) -> None:
        self.talk.ask(*self.shown, words, sources=list(self.files))
        try:
            if self.live:
                self.console.print("model> ", style="bold cyan", end="")
            stream = self.sampling.num_beams == 1
            text, dropped = self.talker.reply(self.talk, self.sampling, on_text=say if stream else None)
        except BaseException:
            self.talk.turns.pop()  # a message without an answer is dropped
            raise
        print("" if stream else text)
        self.talk.answer(text)
        self.shown, self.files = [], []
        if dropped:
            self.note(f"the context is full: the oldest {dropped} turns were left out")

    def paint(self, words: str) -> None:
        pieces = [*self.shown, *([words] if words else [])]
        image = self.talker.paint(pieces, **self.painting.model_dump(), seed=self.sampling.seed)
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

"""Conversations with images as documents; only the assistant's answers are targets."""

from collections.abc import Sequence

from ..core.config import DATA
from ..core.types import Document, Segment
from .documents import DocumentPart, text
from .interleaved import as_list
from .record import Record
from .stored import Values
from .tables import DocumentTable, field
from .transforms import Unreadable

# Text before the question about an image, and about a video, as in the release.
IMAGE_SYSTEM = (
    "You will be presented with an image: [IMG]ImageContent[/IMG]. You will be able to see the image after I provide "
    "it to you. Please answer my questions based on the given image."
)
VIDEO_SYSTEM = (
    "You are a helpful assistant and you will be presented with a video consisting of multiple chronological images: "
    "[IMG]ImageContent[/IMG]. You will be able to see the video after I provide it to you. Please answer my questions "
    "based on the given video."
)
PLACE = "<image>"  # position of an image in a message that is plain text
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@DATA.register("messages")
class Messages(DocumentTable, DocumentPart):
    """Conversations: `messages`, a list of {"role": system, user or assistant, "content": text or a list of
    {"type": "text", "text": ...} and {"type": "image"}}, and `images`, which stand in reading order for the images
    without a path of their own ("image": "a.jpg"); in a text, "<image>" is the place of one. `conversations` with
    "from" and "value", and a single `image`, are read as well.

    Attributes:
        messages_column: column of the messages; null: detected.
        images_column: column of the images; null: detected.
        images_from: folder of the images that a row names.
        system: system message of conversations that have none.
        user: marker before a user's turn.
        assistant: marker before an assistant's turn.
        turn_end: text after every answer but the last, which ends with the model's own end token.
    """

    messages_column: str | None = None
    images_column: str | None = None
    images_from: str = ""
    system: str = ""
    user: str = "[USER]"
    assistant: str = "[ASSISTANT]"
    turn_end: str = "</s>"

    def document(self, row: Record, seed: int) -> Document:
        turns = read_turns(row, self.messages_column, self.images_column)
        segments = render(turns, self.user, self.assistant, self.system, self.turn_end)
        for segment in segments:
            if segment["kind"] == "image":
                value = segment["value"]
                if isinstance(value, str) and self.images_from:
                    value = f"{self.images_from}/{value}"
                segment["value"] = self.reader().read(row.folder.read(value))
        return {"key": row.key, "segments": segments}


Turn = tuple[str, list[Segment]]


def read_turns(row: Values, messages_column: str | None, images_column: str | None) -> list[Turn]:
    """(role, text and undecoded images) of each message. Raises Unreadable if it is not a conversation."""
    column = messages_column or ("conversations" if "conversations" in row else "messages")
    beside = images_column or next((name for name in ("images", "image") if row.get(name) is not None), None)
    images = field(row, beside) if beside is not None else []
    waiting = list(images) if isinstance(images, list) else [images]
    num_images = len(waiting)
    turns: list[Turn] = []
    places = 0
    for message in as_list(field(row, column), column):
        if not isinstance(message, dict):
            raise Unreadable("a message is not an object")
        role = ROLES.get(str(message.get("role", message.get("from"))))
        if role is None:
            raise Unreadable(f"a message of the role '{message.get('role', message.get('from'))}'")
        pieces: list[Segment] = []
        for kind, value in contents(message.get("content", message.get("value"))):
            if kind == "image" and value is None:
                places += 1
                value = waiting.pop(0) if waiting else None
            pieces.append({"kind": kind, "value": value})  # type: ignore[typeddict-item]
        if role != "system" and not any(piece["kind"] != "text" or piece["value"].strip() for piece in pieces):
            raise Unreadable("an answer is empty" if role == "assistant" else "a question is empty")
        turns.append((role, pieces))
    if places != num_images:
        raise Unreadable(f"{places} places for {num_images} images")
    if not any(role == "assistant" for role, _ in turns):
        raise Unreadable("a conversation without an answer")
    return turns


def contents(value: object) -> list[tuple[str, object]]:
    """(kind, value) of the pieces of a message; the value of an image is None where the row holds it."""
    if isinstance(value, str):
        parts = value.split(PLACE)
        found: list[tuple[str, object]] = []
        for number, part in enumerate(parts):
            found += [("image", None)] * (number > 0) + [("text", part)] * bool(part.strip())
        return found
    if not isinstance(value, list):
        raise Unreadable("the content of a message is neither text nor a list")
    found = []
    for piece in value:
        kind = piece.get("type") if isinstance(piece, dict) else None
        if kind == "text" and isinstance(piece.get("text"), str):
            found.append(("text", piece["text"]))
        elif kind == "image":
            found.append(("image", piece.get("image", piece.get("path"))))
        else:
            raise Unreadable(f"a piece of a message is text or an image, not {str(piece)[:80]}")
    return found


def render(
    turns: Sequence[Turn],
    user: str,
    assistant: str,
    system: str = "",
    turn_end: str = "</s>",
    reply: bool = False,
) -> list[Segment]:
    """`{system} [USER]: {words and images} [ASSISTANT]: {answer}`, as Emu was instructed. Loss on answers only.

    user, assistant: the two markers. turn_end: after answers that are not the last one. reply: whether it ends with the
    assistant's marker, for a model to continue. Answers and their ends are separate segments, and so separate tokens.
    """
    segments: list[Segment] = []

    def say(words: str, loss: bool = False, tokens: bool = False) -> None:
        """tokens: whether special tokens in the text are tokens."""
        if not (segments and segments[-1]["kind"] == "text" and not segments[-1]["loss"] and not loss):
            segments.append(text("", loss))
        last = segments[-1]
        begin = len(last["value"])
        last["value"] += words
        if tokens:
            last["tokens"] = [*last.get("tokens", []), (begin, len(last["value"]))]

    if system and not any(role == "system" for role, _ in turns):
        say(system.strip(), tokens=True)
    if reply:
        turns = [*turns, ("assistant", [])]
    for number, (role, pieces) in enumerate(turns):
        answer = role == "assistant"
        if role != "system":
            say(f"{' ' * bool(segments)}{assistant if answer else user}:", tokens=True)
        before = ""
        for position, piece in enumerate(pieces):
            if piece["kind"] == "text":
                gap = " " if role != "system" and position == 0 else before
                say(gap + piece["value"].strip(), answer)
                before = " "
            else:
                segments.append({"kind": piece["kind"], "value": piece["value"], "loss": answer})
                before = ""
        if answer and number < len(turns) - 1 and turn_end:
            say(turn_end, True, tokens=True)
    return segments

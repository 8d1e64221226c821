"""A conversation with an Emu about uploaded files, and the prompt as the model reads it."""

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..inference.chat import Talker, as_pieces
from ..inference.conversation import Conversation
from ..inference.prompts import IMAGES, VIDEOS
from ..models.emu.processing_emu import Piece
from .settings import StudioSettings
from .uploads import checked, read_frames, read_image

Example = tuple[Image.Image, str, str]  # a picture, a question about it, the answer


def read_pieces(files: Sequence[str], settings: StudioSettings) -> list[Piece]:
    """Uploaded images and videos. Raises DataError for any other file."""
    found: list[Piece] = []
    for file in files:
        path = checked(file, [*IMAGES, *VIDEOS], settings)
        is_video = path.suffix.lower() in VIDEOS
        found.append({"video": read_frames(path, settings)} if is_video else read_image(file, settings))
    return found


def conversation(
    examples: Sequence[Example], turns: Sequence[tuple[list[Piece], str, str]], system: str
) -> Conversation:
    """Examples, then the conversation so far: (pieces, question, answer) each."""
    talk = Conversation(system=system or None)
    for picture, question, answer in examples:
        talk.ask(picture, question)
        talk.answer(answer)
    for pieces, question, answer in turns:
        talk.ask(*pieces, question)
        talk.answer(answer)
    return talk


def as_seen(talker: Talker, talk: Conversation) -> str:
    """The prompt as the model sees it: its tokens as text, the latents of each image as one mark."""
    prompt = as_pieces(talk.to_document(talker.style)["segments"])
    ids = talker.encode([prompt], check=False)["input_ids"][0]
    text = str(talker.processor.tokenizer.decode(ids))
    image = str(talker.processor.tokenizer.convert_ids_to_tokens(talker.model.config.image_token_id))
    found = re.sub(
        f"(?:{re.escape(image)} ?)+", lambda run: f"{image} x {len(re.findall(re.escape(image), run[0]))}", text
    )
    return f"{found}\n\n({len(ids)} positions)"


def open_talker(path: Path) -> Talker:
    """Raises ConfigError for other models."""
    return Talker.load(path)

"""An Emu model in use: captions, answers, pictures and mixed documents from prompts of text, images and videos."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from transformers import TextStreamer

from ..core.config import Config
from ..core.files import from_json
from ..core.text import check_text
from ..data.transforms import Unreadable
from ..data.video import VideoReader
from ..errors import ConfigError, DataError
from ..models.emu import EmuForConditionalGeneration, EmuProcessor
from ..models.emu.mixed import Made, generate_document
from ..models.emu.processing_emu import as_segment, to_rgb
from ..models.loading import open_pair
from .conversation import Conversation, Style, style_of

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
VIDEOS = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
Says = Callable[[str], None]


class Sampling(Config):
    """How text is chosen; the defaults are those of Emu's release.

    num_beams: 1 takes the likeliest token each time. max_new_tokens, min_new_tokens: of an answer. length_penalty: of
    beams, 0 for none. do_sample: draws tokens, with temperature, top_k (0: all) and top_p; needs num_beams 1.
    """

    num_beams: int = Field(5, ge=1, le=1000)
    max_new_tokens: int = Field(50, ge=1, le=10**6)
    min_new_tokens: int = Field(0, ge=0, le=10**6)
    length_penalty: float = Field(0.0, ge=-100, le=100)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    do_sample: bool = False
    temperature: float = Field(1.0, ge=1e-4, le=1e4)
    top_k: int = Field(50, ge=0, le=10**9)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**32)


class Talker:
    """A model and its processor, ready to be asked.

        talker = Talker.load("runs/emu")
        talker.caption(image)
        talker.ask([image], "What colour is it?")
        talker.write([["a photo:", image, "It shows"], [other, "This is"]])  # texts, one batch
        talker.paint([image, "in winter"])                                   # a PIL image, with a visual decoder
        talker.document(["a cat"])                                           # text and images

    A prompt is what `EmuProcessor` takes as one document: text, PIL images, {"image": path}, {"video": frames}.
    Raises ConfigError for a prompt that cannot be: empty, or longer than the model's context.
    """

    def __init__(self, model: Any, processor: Any, path: str | Path | None = None):
        self.model, self.processor, self.path = model.eval(), processor, path
        self.style: Style = style_of(processor)
        self._pipeline: Any = None

    @classmethod
    def load(cls, path: str | Path, weights: str | None = None, device: str | None = None) -> "Talker":
        """A model that is saved; arguments and errors as of `models.loading.open_pair`."""
        return cls(*open_pair(path, EmuForConditionalGeneration, EmuProcessor, weights, device), path)

    # text

    def write(
        self,
        prompts: Sequence[Sequence[Any]],
        sampling: Sampling | None = None,
        batch_size: int = 8,
        on_text: Says | None = None,
        stop: str | None = None,
    ) -> list[str]:
        """What comes after each prompt. on_text: given the text of a lone prompt as it comes (needs num_beams 1).
        stop: what ends the text."""
        sampling = sampling or Sampling()
        if on_text is not None and (sampling.num_beams > 1 or len(prompts) != 1):
            raise ConfigError("text comes as it is written for one prompt and num_beams 1 only")
        found: list[str] = []
        with self._seeded(sampling.seed):
            for first in range(0, len(prompts), batch_size):
                found += self._batch(prompts[first : first + batch_size], sampling, on_text, stop)
        return found

    def _batch(self, prompts: Any, sampling: Sampling, on_text: Says | None, stop: str | None) -> list[str]:
        config = self.model.config
        inputs = self.encode(prompts)
        chosen = sampling.model_dump(exclude={"seed"})
        chosen["max_new_tokens"] = min(sampling.max_new_tokens, self.room(inputs["input_ids"].shape[1]))
        if not sampling.do_sample:
            for name in ("temperature", "top_k", "top_p"):
                chosen.pop(name)
        if sampling.num_beams == 1:
            chosen["length_penalty"] = 1.0  # it has no use, and a checkpoint's own would be warned of
        if stop:
            chosen |= {"stop_strings": [stop], "tokenizer": self.processor.tokenizer}
        unspoken = [config.image_token_id, config.image_start_token_id, config.image_end_token_id, config.pad_token_id]
        tokenizer = self.processor.tokenizer
        streamer = None if on_text is None else _Streamer(tokenizer, on_text, stop)
        with self._one_line():
            ids = self.model.generate(
                **inputs,
                **chosen,
                suppress_tokens=[i for i in unspoken if i is not None],
                eos_token_id=config.eos_token_id,
                pad_token_id=config.eos_token_id if config.pad_token_id is None else config.pad_token_id,
                streamer=streamer,
            )
        texts = self.processor.batch_decode(ids)
        return [text.split(stop)[0].strip() if stop else text for text in texts]

    def caption(self, image: Any, sampling: Sampling | None = None) -> str:
        """A caption of an image or a {"video": frames}, as Emu is asked for one."""
        return self.write([self.caption_prompt([image])], sampling)[0]

    def caption_prompt(self, pieces: Sequence[Any]) -> list[Any]:
        """Instructed models are asked in their format; others go on after the image."""
        if not self.style.instruct:
            return list(pieces)
        talk = Conversation()
        talk.ask(*pieces)
        segments = talk.to_document(self.style)["segments"]
        lead = "The image depicts a photo of" if segments[-2]["kind"] == "image" else "The video depicts"
        segments[-1]["value"] += f" {lead}"
        return list(segments)

    def ask(
        self,
        pieces: Sequence[Any],
        question: str,
        sampling: Sampling | None = None,
        examples: Sequence[tuple[Sequence[Any], str, str]] = (),
        on_text: Says | None = None,
    ) -> str:
        """The answer to a question about images or videos. examples: (pieces, question, answer) shown before it."""
        talk = Conversation()
        for shown, asked, answer in examples:
            talk.ask(*shown, asked)
            talk.answer(answer)
        talk.ask(*pieces, question)
        return self.reply(talk, sampling, on_text)[0]

    def reply(
        self, talk: Conversation, sampling: Sampling | None = None, on_text: Says | None = None
    ) -> tuple[str, int]:
        """The next answer of a conversation, and how many of its oldest turns were left out to make room for it.

        The conversation loses those turns; the answer is not added to it.
        """
        sampling, dropped = sampling or Sampling(), 0
        while True:
            prompt = list(talk.to_document(self.style)["segments"])
            length = self.encode([prompt], check=False)["input_ids"].shape[1]
            limit = self.limit
            if limit is None or length + sampling.max_new_tokens <= limit or not talk.drop_oldest():
                break
            dropped += 2
        stop = None if self.style.instruct else f"\n{self.style.user}:"
        return self.write([prompt], sampling, on_text=on_text, stop=stop)[0], dropped

    # images

    @property
    def pipeline(self) -> Any:
        """`EmuPipeline` of this model. Raises ConfigError where the checkpoint has no visual decoder."""
        if self._pipeline is None:
            folder = self.decoder_folder()
            if folder is None:
                raise ConfigError(
                    f"{self.path} cannot paint: it has no visual_decoder/ folder (train one: nextembed train "
                    "emu_visual_decoder)"
                )
            from ..models.emu.pipeline_emu import EmuPipeline  # diffusers is needed by nothing else
            from ..models.emu.visual_decoder import VisualDecoder

            self._pipeline = EmuPipeline(self.model, self.processor, VisualDecoder.from_pretrained(folder))
            self._pipeline.decoder.to(self.model.device)
        return self._pipeline

    def decoder_folder(self) -> Path | None:
        """`visual_decoder/` in the run or beside the model."""
        if self.path is None:
            return None
        path = Path(self.path).expanduser()
        places = (path / "visual_decoder", path / "model" / "visual_decoder", path.parent / "visual_decoder")
        return next((place for place in places if place.is_dir()), None)

    def paint(
        self,
        prompt: Sequence[Any],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        seed: int = 0,
        progress: bool = False,
    ) -> Image.Image:
        """The image that would follow a prompt; two images are blended."""
        pipeline = self.pipeline
        self.room(self.encode([prompt])["input_ids"].shape[1], self.model.config.num_image_latents + 1)
        with self._one_line():
            return pipeline(
                list(prompt),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                seed=seed,
                progress=progress,
            )

    def document(self, prompt: Sequence[Any], paint: bool | None = None, **options: Any) -> list[Made]:
        """Text and images that follow a prompt, see `generate_document`. paint: whether images are painted, not only
        predicted; None: where there is a decoder."""
        self.encode([prompt])
        if paint is None:
            paint = self.decoder_folder() is not None
        steps = options.pop("num_inference_steps", 50)
        painter = (lambda latents: self.pipeline.paint(latents[None], num_inference_steps=steps)[0]) if paint else None
        with self._one_line():
            return generate_document(self.model, self.processor, prompt, paint=painter, **options)

    # helpers

    @property
    def limit(self) -> int | None:
        """Positions of the model's context."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None)

    def room(self, length: int, needed: int = 1) -> int:
        """Positions behind a prompt. Raises ConfigError if there are fewer than `needed`."""
        if self.limit is None:
            return 2**31
        if length + needed > self.limit:
            raise ConfigError(
                f"the prompt takes {length:,} positions of the model's {self.limit:,}, and {needed} more are needed; "
                f"an image takes {self.model.config.num_image_latents + 2}"
            )
        return self.limit - length

    def encode(self, prompts: Sequence[Sequence[Any]], check: bool = True) -> Any:
        """A batch for the model. Raises ConfigError for an empty prompt or one that is too long."""
        for pieces in prompts:
            segments = [_segment(piece) for piece in pieces]
            if not any(s["kind"] != "text" or str(s["value"]).strip() for s in segments):
                raise ConfigError("an empty prompt: give some text or an image")
        with self._one_line():
            inputs = self.processor([list(pieces) for pieces in prompts]).to(self.model.device)
        if check:
            self.room(inputs["input_ids"].shape[1])
        return inputs

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            with torch.no_grad():
                yield
        except ValueError as err:
            raise ConfigError(f"the prompt: {_line(err)}") from None

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield


class _Streamer(TextStreamer):
    """Hands on new text as it is decoded, up to where it stops."""

    def __init__(self, tokenizer: Any, says: Says, stop: str | None):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.says, self.stop = says, stop or ""
        self.held, self.stopped = "", False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.stopped:
            return
        self.held += text
        if self.stop and self.stop in self.held:
            self.held, self.stopped = self.held.split(self.stop)[0], True
        keep = 0 if stream_end or self.stopped else max(0, len(self.stop) - 1)  # may be the beginning of the end
        give, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        if give:
            self.says(give)


def read_piece(word: str, num_frames: int = 8) -> Any:
    """A word of a command line: the picture or video that it names, or text.

    Raises ConfigError for a file that is not there, DataError for one that cannot be read.
    """
    suffix = Path(word).suffix.lower()
    if suffix not in (*IMAGES, *VIDEOS):
        return word
    if word.startswith(("http://", "https://")) and suffix in IMAGES:
        return read_image(word)
    if not Path(word).expanduser().is_file():
        raise ConfigError(f"no such file: {word} (if it is text, let it not end in {suffix})")
    return read_image(word) if suffix in IMAGES else read_video(word, num_frames)


def read_image(path: str | Path) -> Image.Image:
    """An RGB picture from a file or URL. Raises DataError, one line."""
    try:
        name = str(path) if str(path).startswith("http") else str(Path(path).expanduser())
        return to_rgb(name)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise DataError(f"cannot read the image {path}: {_line(err)}") from None


def read_video(path: str | Path, num_frames: int = 8) -> dict[str, Any]:
    """{"video": uint8 [F, 3, H, W]}, chosen as Emu's release does. Raises DataError, or MissingExtra without PyAV."""
    try:
        reader = VideoReader(max_bytes=2_000_000_000, max_pixels=64_000_000, max_seconds=86_400.0)
        return {"video": reader.read(str(Path(path).expanduser()), num_frames)}
    except (Unreadable, OSError) as err:
        raise DataError(f"cannot read the video {path}: {_line(err)}") from None


def read_prompts(file: str | Path, num_frames: int = 8) -> list[dict[str, Any]]:
    """Rows of a .jsonl file, each with `pieces` (a list: text and files as on the command line, {"text"}, {"image"},
    {"video"}) or `text`, `image`, `video`; and what else they hold, e.g. `question`.

    Files are named from the folder of the .jsonl. Raises ConfigError or DataError that names the line.
    """
    path, rows = Path(file), []
    if not path.is_file():
        raise ConfigError(f"no such file: {file}")
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except ValueError as err:
            raise DataError(f"{file}, line {number}: not JSON: {err}") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: should be an object with pieces, text, image or video")
        pieces = row.get("pieces", [{k: row[k]} for k in ("image", "video", "text") if row.get(k) is not None])
        if not isinstance(pieces, list) or not (pieces or row.get("question")):
            raise DataError(f"{file}, line {number}: no pieces, text, image, video or question")
        try:
            read = [_from_row(piece, path.parent, num_frames) for piece in pieces]
        except (ConfigError, DataError) as err:
            raise type(err)(f"{file}, line {number}: {err}") from None
        rows.append({**row, "pieces": read})
    if not rows:
        raise DataError(f"{file} holds no prompts")
    return rows


def _from_row(piece: Any, folder: Path, num_frames: int) -> Any:
    if isinstance(piece, str) and Path(piece).suffix.lower() in (*IMAGES, *VIDEOS):
        return read_piece(_named(piece, folder), num_frames)
    if isinstance(piece, str):
        return piece
    if isinstance(piece, dict) and len(piece) == 1:
        ((kind, value),) = piece.items()
        if kind == "text" and isinstance(value, str):
            return {"text": value}
        if kind in ("image", "video") and isinstance(value, str):
            name = _named(value, folder)
            return read_image(name) if kind == "image" else read_video(name, num_frames)
    raise DataError("a piece is text, a file, or {'text': ...}, {'image': FILE}, {'video': FILE}")


def _named(file: str, folder: Path) -> str:
    """Where a file lies that a row names. Raises DataError for an address."""
    if "://" in file:
        raise DataError(f"'{file[:80]}' is an address; nothing is downloaded for a row")
    return str(folder / file)


def _segment(piece: Any) -> Any:
    try:
        segment = as_segment(piece)
        if segment["kind"] == "text":
            check_text(segment["value"])
        return segment
    except ValueError as err:
        raise ConfigError(f"the prompt: {err}") from None


def _line(err: Exception) -> str:
    text = str(err).strip().splitlines()
    return text[0] if text else type(err).__name__

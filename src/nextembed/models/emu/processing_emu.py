"""Converts interleaved text, images and videos to Emu's inputs: ids with N positions per image, and normalised
pixels."""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AddedToken, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_utils import load_image

from ...core.pictures import plain_picture
from ...core.text import check_text
from ...core.types import IGNORE_LABEL, Document, Encoded, Segment
from .configuration_emu import EmuConfig

PAD, START, END, IMAGE, USER, ASSISTANT = "[PAD]", "[IMG]", "[/IMG]", "<image>", "[USER]", "[ASSISTANT]"
MAX_PIXELS = 64_000_000

Piece = str | Image.Image | np.ndarray | Tensor | dict[str, Any]


class EmuProcessor(ProcessorMixin):
    """Image processor and tokenizer of an Emu model.

    Called with one document, a list of text and images in reading order, or with a list of such lists:

        processor(["a photo:", image, "It shows"])
        processor([[image, "the same in winter"], ["an apple"]])

    A piece is text, an image (PIL, uint8 array [H, W] or [H, W, C], uint8 tensor [C, H, W]), {"image": path or URL or
    any of these}, {"video": frames} or {"text": ...}. What reads like a special token (`<image>`, `[USER]`) is text
    like any other (a plain "<image>" beside images is refused, since it may be meant as the place of one; {"text": ...}
    holds it); in {"markup": "[USER]: hello"} it is the token. Images become upright RGB (transparent ones on
    white, 16-bit grey scaled to 8 bit), squashed to the encoder's size; each stands as `[IMG]`, N times `<image>`,
    `[/IMG]`. White space beside an image is stripped, and a begin token, where the tokenizer has one, comes first.
    Gives input_ids, attention_mask [B, T], padded on the left, and pixel_values [I, C, S, S] of all documents in
    reading order; no pixel_values where there are no images.

    Args:
        num_image_latents: N. image_start_is_target: whether training teaches the text head to begin an image by itself.

    Raises:
        ValueError: For an empty list of documents, what is no image, or a tokenizer without the special tokens.
    """

    valid_kwargs = ["num_image_latents", "image_start_is_target"]

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_latents: int = 32,
        image_start_is_target: bool = False,
        **kwargs: Any,
    ):
        self.num_image_latents = num_image_latents
        self.image_start_is_target = image_start_is_target
        super().__init__(image_processor, tokenizer, **kwargs)
        self.ids = {token: self.token_id(token) for token in (START, END, IMAGE)}
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = PAD

    def token_id(self, token: str) -> int:
        """The id of a special token.

        Args:
            token: for example "[IMG]".

        Returns:
            Its id.

        Raises:
            ValueError: the tokenizer lacks it.
        """
        found = self.tokenizer.get_vocab().get(token)
        if found is None:
            raise ValueError(f"the tokenizer has no token '{token}'; add Emu's tokens with add_emu_tokens(tokenizer)")
        return found

    def check(self, config: EmuConfig) -> None:
        """Compares ids and sizes with a model's configuration.

        Args:
            config: of the model.

        Raises:
            ValueError: one differs; the message names the first.
        """
        wanted = {
            START: config.image_start_token_id,
            END: config.image_end_token_id,
            IMAGE: config.image_token_id,
        }
        for token, number in wanted.items():
            if self.ids[token] != number:
                raise ValueError(f"'{token}' is token {self.ids[token]} of the tokenizer, but {number} of the model")
        if self.num_image_latents != config.num_image_latents:
            raise ValueError(
                f"the processor makes {self.num_image_latents} positions per image, the model "
                f"{config.num_image_latents}"
            )

    def __call__(self, documents: Sequence[Any], padding: bool = True, **kwargs: object) -> BatchFeature:
        """A batch of documents, one per row.

        Args:
            documents: text, or lists of pieces: text, PIL images, {"video": frames}, {"markup": text with special
                tokens}.
            padding: not used; shorter documents are always padded on the left.
            kwargs: not used.

        Returns:
            input_ids, attention_mask [B, T], and pixel_values [I, C, S, S] where there are images.

        Raises:
            ValueError: the prompt is empty and the tokenizer has no begin token.
        """
        if isinstance(documents, str | Image.Image):
            documents = [documents]
        batch = list(documents) if documents and isinstance(documents[0], list | tuple) else [documents]
        encoded = [self.encode_document(as_document(pieces), end=False) for pieces in batch]
        length = max(one.length for one in encoded)
        if length == 0:
            raise ValueError("an empty prompt, and the tokenizer has no begin token to stand for it")
        ids = torch.full((len(encoded), length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(encoded):
            ids[row, length - one.length :] = one.positions["input_ids"]
            mask[row, length - one.length :] = 1
        found: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
        pixels = torch.cat([one.values["pixel_values"] for one in encoded])
        if len(pixels):
            found["pixel_values"] = pixels
        return BatchFeature(found)

    def encode_document(self, document: Document, end: bool = True) -> Encoded:
        """A document as the model reads it and is trained on it.

        Args:
            document: its segments.
            end: whether an end token follows; it is a target where the last segment is.

        Returns:
            input_ids [T]; labels [T], the ids that are targets, -100 elsewhere; regression_mask [T], where the
            embedding that is read is a target; pixel_values [I, C, S, S] of its images and frames in reading order.
        """
        ids: list[int] = []
        labels: list[int] = []
        targets: list[bool] = []
        pictures: list[Image.Image] = []

        def put(tokens: Sequence[int], label: bool, target: bool = False) -> None:
            ids.extend(tokens)
            labels.extend(tokens if label else [IGNORE_LABEL] * len(tokens))
            targets.extend([target] * len(tokens))

        if self.tokenizer.bos_token_id is not None:
            put([self.tokenizer.bos_token_id], False)
        segments = document["segments"]
        for number, segment in enumerate(segments):
            loss = segment.get("loss", True)
            if segment["kind"] == "text":
                put(self.tokenize(segment["value"], segments, number), loss)
                continue
            for frame in frames_of(segment):
                pictures.append(to_rgb(frame))
                put([self.ids[START]], loss and self.image_start_is_target)
                put([self.ids[IMAGE]] * self.num_image_latents, False, loss)
                put([self.ids[END]], False, loss)
        if end and self.tokenizer.eos_token_id is not None:
            put([self.tokenizer.eos_token_id], bool(segments) and segments[-1].get("loss", True))
        if labels:
            labels[0] = IGNORE_LABEL
        positions = {
            "input_ids": torch.tensor(ids, dtype=torch.int64),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "regression_mask": torch.tensor(targets, dtype=torch.bool),
        }
        return Encoded(positions, {"pixel_values": self.pixels(pictures)})

    @cached_property
    def special(self) -> dict[str, tuple[int, AddedToken]]:
        """Special tokens by their text, with their ids."""
        return {token.content: (i, token) for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    def tokenize(self, text: str, segments: Sequence[Segment], number: int) -> list[int]:
        """Ids of a text segment; white space next to images is stripped. Special tokens are tokens where the segment
        says so, and text elsewhere.

        Args:
            text: text of the segment.
            segments: all segments of the document.
            number: index of the segment in `segments`.

        Returns:
            Token ids.
        """
        check_text(text)
        begin, end = 0, len(text)
        if number > 0 and segments[number - 1]["kind"] != "text":
            begin = end - len(text.lstrip())
        if number + 1 < len(segments) and segments[number + 1]["kind"] != "text":
            end = len(text.rstrip())
        names = sorted(self.special, key=len, reverse=True)
        found = list(re.finditer("|".join(map(re.escape, names)), text[:end])) if names else []
        allowed = segments[number].get("tokens", [])
        tokens = [m for m in found if m.start() >= begin and any(a <= m.start() and m.end() <= b for a, b in allowed)]
        if len(tokens) == len(found):
            return self.ids_of(text[begin:end])
        ids: list[int] = []
        for token in tokens:
            number, how = self.special[token[0]]
            before = text[begin : token.start()]
            ids += [*self.ids_of(before.rstrip() if how.lstrip else before, split=True), number]
            begin = token.end()
            if how.rstrip:
                begin += len(text[begin:end]) - len(text[begin:end].lstrip())
        return ids + self.ids_of(text[begin:end], split=True)

    def ids_of(self, text: str, split: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: without anything added.
            split: whether special tokens are text.

        Returns:
            The ids, without begin and end tokens.
        """
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"] if text else []

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Normalised pixels of images.

        Args:
            images: RGB images.

        Returns:
            float32 [I, C, S, S]; [0, 3, S, S] without images.
        """
        size = self.image_processor.size
        height, width = size["height"], size["width"]
        if not images:
            return torch.zeros(0, 3, height, width)
        squashed = [image.resize((width, height), Image.Resampling.BICUBIC) for image in images]
        return self.image_processor(squashed, do_resize=False, return_tensors="pt")["pixel_values"]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Texts of rows of ids; special tokens are left out by default.

        Args:
            args: as of the tokenizer's `batch_decode`.
            kwargs: as of the tokenizer's `batch_decode`.

        Returns:
            One text per row.
        """
        kwargs.setdefault("skip_special_tokens", True)
        return [text.strip() for text in self.tokenizer.batch_decode(*args, **kwargs)]


def as_document(pieces: Sequence[Piece]) -> Document:
    """The pieces of a prompt as a document. Raises ValueError for other values, and for a plain "<image>" together with
    images, because it may be meant as the position of one."""
    segments = [as_segment(piece) for piece in pieces]
    plain = any(isinstance(piece, str) and IMAGE in piece for piece in pieces)
    if plain and any(segment["kind"] != "text" for segment in segments):
        raise ValueError(
            f"the text '{IMAGE}' in a list with images is ambiguous: images belong where they are in the "
            f"list; for the literal text write {{'text': ...}}"
        )
    return {"key": "", "segments": segments}


def as_segment(piece: Piece) -> Segment:
    """A piece of a prompt as a segment. Raises ValueError for other values."""
    if isinstance(piece, str):
        return {"kind": "text", "value": piece}
    if isinstance(piece, dict):
        if "kind" in piece:
            return piece  # type: ignore[return-value]
        if "markup" in piece:
            return {"kind": "text", "value": piece["markup"], "tokens": [(0, len(piece["markup"]))]}
        for kind in ("text", "image", "video"):
            if kind in piece:
                return {"kind": kind, "value": piece[kind]}  # type: ignore[typeddict-item]
        raise ValueError(
            f"a piece of a document has 'text', 'markup', 'image' or 'video', not {', '.join(map(str, piece))}"
        )
    return {"kind": "image", "value": piece}


def frames_of(segment: Segment) -> list[object]:
    """The image of a segment, or the frames of its video. Raises ValueError for a video without frames."""
    value: Any = segment["value"]
    if segment["kind"] == "image":
        return [value]
    if segment["kind"] != "video":
        raise ValueError(f"Emu reads text, images and videos, not '{segment['kind']}'")
    frames = list(value)
    if not frames:
        raise ValueError("a video without frames")
    return frames


def to_rgb(image: object) -> Image.Image:
    """Any image as PIL in RGB, see `plain_picture`. Raises ValueError if it is not an image or too large."""
    if isinstance(image, str | Path):
        # transformers' load_image drops transparency, so it is only used for URLs
        image = Image.open(image) if os.path.isfile(image) else load_image(str(image))
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise ValueError(f"an image tensor is uint8 [C, H, W], not {image.dtype} {list(image.shape)}")
        image = image.permute(1, 2, 0).numpy()
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape or channels > 4:
            raise ValueError(f"an image array is uint8 [H, W] or [H, W, C], not {image.dtype} {list(image.shape)}")
        image = Image.fromarray(image[..., 0] if image.ndim == 3 and channels == 1 else image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"a piece of a document is text or an image, not {type(image).__name__}")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"an image of {image.width}x{image.height} pixels; the maximum is {MAX_PIXELS:,}")
    return plain_picture(image).convert("RGB")


def add_emu_tokens(tokenizer: PreTrainedTokenizerBase, instruct: bool = False) -> int:
    """Adds `[PAD]`, `[IMG]`, `[/IMG]`, `<image>`, and for dialogue `[USER]`, `[ASSISTANT]`, in the released order, to a
    tokenizer, in place. Returns how many were new. `[PAD]` is added only if there is no padding token, or if it is the
    end token: padding is never a target, the end has to be."""
    names = [START, END, IMAGE, *([USER, ASSISTANT] if instruct else [])]
    added = 0
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        added += tokenizer.add_special_tokens({"pad_token": bare_token(PAD)})
    return added + tokenizer.add_tokens([bare_token(name) for name in names], special_tokens=True)


def bare_token(name: str) -> AddedToken:
    """A special token next to which white space is dropped, as in the release's tokenizer."""
    return AddedToken(name, lstrip=True, rstrip=True, normalized=False, special=True)

"""A loaded Emu model that answers prompts and ranks candidates, in batches."""

import copy
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.cache_utils import Cache

from ...core.types import Segment
from ...data.transforms import ImageReader, Unreadable
from ...errors import DataError
from ...models.emu import EmuForConditionalGeneration, EmuProcessor
from ...models.loading import open_pair
from .protocols import Decoding

CHUNK = 64  # candidates that are read at once


class Likelihood(NamedTuple):
    """Of each candidate [C]: mean, per token of it; reference, the sum over its tokens divided by the positions of the
    whole row, prompt and padding included, as the release ranks Visual Dialog (all candidates of a question padded to
    one length). Higher is better."""

    mean: np.ndarray
    reference: np.ndarray


class Speaker:
    """An Emu model and its processor, in eval mode."""

    def __init__(self, model: EmuForConditionalGeneration, processor: EmuProcessor):
        self.model, self.processor = model.eval(), processor
        self.reader = ImageReader(num_channels=3)

    @classmethod
    def load(cls, path: str | os.PathLike[str], weights: str | None = None) -> "Speaker":
        """Loads a saved model; arguments and errors as of `models.loading.open_pair`."""
        return cls(*open_pair(path, EmuForConditionalGeneration, EmuProcessor, weights))

    def decode(self, segments: Sequence[Segment], key: str) -> list[Segment]:
        """The segments with their pictures decoded to uint8 [C, H, W].

        Raises DataError, naming the item, for a picture that cannot be read or a video without frames.
        """
        found: list[Segment] = []
        for segment in segments:
            if segment["kind"] == "text":
                found.append(segment)
                continue
            values = [segment["value"]] if segment["kind"] == "image" else list(segment["value"])
            if not values:
                raise DataError(f"{key}: a video without frames")
            try:
                read = [v if isinstance(v, Tensor) else self.reader.read(v) for v in values]
            except Unreadable as err:
                raise DataError(f"{key}: an image cannot be read: {err}") from None
            found.append({"kind": segment["kind"], "value": read[0] if segment["kind"] == "image" else read})
        return found

    def batch(self, prompts: Sequence[Sequence[Segment]], keys: Sequence[str], room: int) -> dict[str, Tensor]:
        """Inputs of the model, on its device.

        Raises DataError, naming the item, for a prompt that is empty, or too long with `room` more tokens."""
        decoded = [self.decode(prompt, key) for prompt, key in zip(prompts, keys, strict=True)]
        try:
            inputs = self.processor([list(prompt) for prompt in decoded])
        except ValueError as err:
            if len(decoded) > 1:
                for one, key in zip(decoded, keys, strict=True):  # number of the item
                    self.batch([one], [key], room)
            raise DataError(f"{keys[0]}: {err}") from None
        most = self.model.config.num_positions
        lengths = inputs["attention_mask"].sum(1).tolist()
        for key, length in zip(keys, lengths, strict=True):
            if most is not None and length + room > most:
                raise DataError(f"{key}: a prompt of {length} tokens and {room} more; the model reads {most} at most")
        return dict(inputs.to(self.model.device))

    @torch.no_grad()
    def answer(
        self, prompts: Sequence[Sequence[Segment]], keys: Sequence[str], decoding: Decoding, num_beams: int
    ) -> list[str]:
        """Generates text after each prompt by beam search, up to an end token or the start of an image."""
        config = self.model.config
        ends = [config.eos_token_id] if isinstance(config.eos_token_id, int) else list(config.eos_token_id or [])
        options: dict[str, float] = {"min_new_tokens": decoding.min_new_tokens} if decoding.min_new_tokens else {}
        # Not used with one beam; transformers would warn about a checkpoint's value.
        options["length_penalty"] = decoding.length_penalty if num_beams > 1 else 1.0
        ids = self.model.generate(
            **self.batch(prompts, keys, decoding.max_new_tokens),
            max_new_tokens=decoding.max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            eos_token_id=[*ends, config.image_start_token_id],
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **options,
        )
        return self.processor.batch_decode(ids)

    @torch.no_grad()
    def likelihood(self, prompt: Sequence[Segment], key: str, candidates: Sequence[str]) -> Likelihood:
        """How likely each candidate is after the prompt; only its own tokens count. The prompt is read once.

        Raises DataError for a candidate without a token."""
        last: list[Segment] = [*prompt, {"kind": "text", "value": ""}]
        ids = [self.processor.tokenize(text, last, len(prompt)) for text in candidates]
        if empty := [text for text, one in zip(candidates, ids, strict=True) if not one]:
            raise DataError(f"{key}: the candidate {empty[0]!r} has no token")
        longest = max(len(one) for one in ids)
        inputs = self.batch([prompt], [key], longest)
        context = self.model(**inputs, use_cache=True, logits_to_keep=1)
        first = context.logits[0, -1].float().log_softmax(-1)
        sums = []
        for start in range(0, len(ids), CHUNK):
            sums.append(self._sums(context.cache, first, ids[start : start + CHUNK], longest))
        total = torch.cat(sums).cpu().double().numpy()
        lengths = np.array([len(one) for one in ids])
        return Likelihood(total / lengths, total / (inputs["input_ids"].shape[1] + longest - 1))

    def _sums(self, cache: Cache, first: Tensor, ids: list[list[int]], longest: int) -> Tensor:
        """Log-likelihood [C], summed over the tokens of each candidate, after what the cache holds."""
        device = first.device
        rows = torch.zeros(len(ids), longest, dtype=torch.int64)
        mask = torch.zeros(len(ids), longest, dtype=torch.bool)
        for row, one in enumerate(ids):
            rows[row, : len(one)], mask[row, : len(one)] = torch.tensor(one), True
        rows, mask = rows.to(device), mask.to(device)
        found = first[rows[:, 0]]
        if longest > 1:
            own = copy.deepcopy(cache)
            own.batch_repeat_interleave(len(ids))
            embeds = self.model.get_input_embeddings()(rows[:, :-1])
            logits = self.model(inputs_embeds=embeds, cache=own, use_cache=True).logits
            each = logits.float().log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
            found = found + (each * mask[:, 1:]).sum(1)
        return found

    @torch.no_grad()
    def picture_features(self, pictures: Sequence[Sequence[Segment]], keys: Sequence[str]) -> Tensor:
        """One unit vector [N, E] for the pictures of each item: the mean over the encoder's tokens."""
        found = []
        for segments, key in zip(pictures, keys, strict=True):
            frames: list[Tensor] = []
            for segment in self.decode(segments, key):
                frames += [segment["value"]] if segment["kind"] == "image" else segment["value"]
            if not frames:
                raise DataError(f"{key}: no image to find similar ones by")
            found.append(self.features_of(frames).mean(0))
        return torch.nn.functional.normalize(torch.stack(found), dim=1)

    @torch.no_grad()
    def features_of(self, images: Sequence[Tensor | Image.Image], batch_size: int = 32) -> Tensor:
        """Mean token of the visual encoder [N, E], float32, of images."""
        parts = []
        for start in range(0, len(images), batch_size):
            segments: list[Segment] = [
                {"kind": "image", "value": image} for image in images[start : start + batch_size]
            ]
            pixels = self.processor.encode_document({"key": "", "segments": segments}).values["pixel_values"]
            parts.append(self.model.model.visual_features(pixels.to(self.model.device)).mean(1).float().cpu())
        return torch.cat(parts)

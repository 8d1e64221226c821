"""Use of an Emu model: captions, answers, images and mixed documents from prompts of text, images and videos."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, TextStreamer

from ..core.files import first_line
from ..core.text import check_text
from ..core.types import Segment
from ..errors import ConfigError
from ..models.emu import EmuForConditionalGeneration, EmuPipeline, EmuProcessor, VisualDecoder
from ..models.emu.mixed import Made, Writing, generate_document
from ..models.emu.pipeline_emu import decoder_folder
from ..models.emu.processing_emu import Piece, as_segment
from ..models.emu.visual_decoder import OnStep
from ..models.loading import open_pair
from ..nn.latent_flow import LatentSampling
from .conversation import Conversation, Style, style_of
from .prompts import Prompt
from .settings import Sampling

Pieces = Sequence[Piece]  # a prompt, as `EmuProcessor` takes one document
OnText = Callable[[str], None]


class Talker:
    """A model and its processor.

        talker = Talker.load("runs/emu")
        talker.caption(image)
        talker.ask([image], "What colour is it?")
        talker.write([["a photo:", image, "It shows"], [other, "This is"]])  # texts, one batch
        talker.paint([image, "in winter"])                                   # a PIL image, with a visual decoder
        talker.document(["a cat"])                                           # text and images

    A prompt is what `EmuProcessor` takes as one document: text, PIL images, {"image": path}, {"video": frames}.

    Args:
        model: is put into eval mode.
        processor: that the model was trained with.
        path: of the run or folder whose visual decoder paints; None paints nothing.

    Raises:
        ConfigError: by every method, for a prompt that cannot be: empty, or longer than the model's context.
    """

    def __init__(self, model: EmuForConditionalGeneration, processor: EmuProcessor, path: str | Path | None = None):
        self.model, self.processor, self.path = model.eval(), processor, path
        self.style: Style = style_of(processor)
        self._pipeline: EmuPipeline | None = None

    @classmethod
    def load(cls, path: str | Path, weights: str | None = None, device: str | None = None) -> "Talker":
        """Loads a saved Emu.

        Args:
            path: a run, a checkpoint, a model folder or a hub id.
            weights: "raw" or "ema"; None takes the first there is.
            device: by name; None takes the accelerator if there is one, else the CPU.

        Returns:
            The talker, in eval mode.

        Raises:
            ConfigError: one line, for a path without an Emu, or one that does not load whole.
        """
        return cls(*open_pair(path, EmuForConditionalGeneration, EmuProcessor, weights, device), path)

    # text

    def write(
        self,
        prompts: Sequence[Pieces],
        sampling: Sampling | None = None,
        batch_size: int = 8,
        on_text: OnText | None = None,
        stop: str | None = None,
    ) -> list[str]:
        """Continues each prompt with text.

        Args:
            prompts: any number.
            sampling: how tokens are chosen; None is as in Emu's release.
            batch_size: prompts per batch.
            on_text: called with the new text of a single prompt while it is generated; needs `num_beams=1`.
            stop: texts that end the answer.

        Returns:
            One text per prompt.
        """
        sampling = sampling or Sampling()
        if on_text is not None and (sampling.num_beams > 1 or len(prompts) != 1):
            raise ConfigError("streaming needs a single prompt and num_beams=1")
        found: list[str] = []
        with self._seeded(sampling.seed):
            for first in range(0, len(prompts), batch_size):
                found += self._batch(prompts[first : first + batch_size], sampling, on_text, stop)
        return found

    def _batch(
        self, prompts: Sequence[Pieces], sampling: Sampling, on_text: OnText | None, stop: str | None
    ) -> list[str]:
        config = self.model.config
        inputs = self.encode(prompts)
        chosen = sampling.model_dump(exclude={"seed"})
        chosen["max_new_tokens"] = min(sampling.max_new_tokens, self.room(inputs["input_ids"].shape[1]))
        if not sampling.do_sample:
            for name in ("temperature", "top_k", "top_p"):
                chosen.pop(name)
        if sampling.num_beams == 1:
            chosen["length_penalty"] = 1.0  # not used; transformers would warn about a checkpoint's value
        if stop:
            chosen |= {"stop_strings": [stop], "tokenizer": self.processor.tokenizer}
        never = [config.image_token_id, config.image_start_token_id, config.image_end_token_id, config.pad_token_id]
        tokenizer = self.processor.tokenizer
        streamer = None if on_text is None else _Streamer(tokenizer, on_text, stop)
        with self._one_line():
            ids = self.model.generate(
                **inputs,
                **chosen,
                suppress_tokens=[i for i in never if i is not None],
                eos_token_id=config.eos_token_id,
                pad_token_id=config.eos_token_id if config.pad_token_id is None else config.pad_token_id,
                streamer=streamer,
            )
        texts = self.processor.batch_decode(ids)
        return [text.split(stop)[0].strip() if stop else text for text in texts]

    def caption(self, image: Piece, sampling: Sampling | None = None) -> str:
        """A caption of an image or a video.

        Args:
            image: a path, a PIL image, an array, or {"video": frames}.
            sampling: how tokens are chosen; None is as in Emu's release.

        Returns:
            The caption.
        """
        return self.write([self.caption_prompt([image])], sampling)[0]

    def caption_prompt(self, pieces: Pieces) -> list[Piece]:
        """The prompt for a caption: instructed models are asked in their format, others continue after the image.

        Args:
            pieces: the images (or videos) to describe.

        Returns:
            Pieces of the prompt.
        """
        if not self.style.instruct:
            return list(pieces)
        talk = Conversation()
        talk.ask(*pieces)
        segments = talk.to_document(self.style)["segments"]
        lead = "The image depicts a photo of" if segments[-2]["kind"] == "image" else "The video depicts"
        segments[-1]["value"] += f" {lead}"
        return as_pieces(segments)

    def ask(
        self,
        pieces: Pieces,
        question: str,
        sampling: Sampling | None = None,
        examples: Sequence[tuple[Pieces, str, str]] = (),
        on_text: OnText | None = None,
    ) -> str:
        """Answers a question about images or videos.

        Args:
            pieces: what is asked about.
            question: the question.
            sampling: how tokens are chosen; None is as in Emu's release.
            examples: (pieces, question, answer), put before the question.
            on_text: called with the new text while it is generated; needs `num_beams=1`.

        Returns:
            The answer.
        """
        talk = Conversation()
        for shown, asked, answer in examples:
            talk.ask(*shown, asked)
            talk.answer(answer)
        talk.ask(*pieces, question)
        return self.reply(talk, sampling, on_text)[0]

    def reply(
        self, talk: Conversation, sampling: Sampling | None = None, on_text: OnText | None = None
    ) -> tuple[str, int]:
        """The next answer of a conversation, which is not added to it.

        Args:
            talk: loses its oldest turns where they leave no room for the answer.
            sampling: how tokens are chosen; None is as in Emu's release.
            on_text: is called with the answer as it comes; needs `num_beams=1`.

        Returns:
            The answer, and how many turns were left out.
        """
        sampling = sampling or Sampling()
        dropped = self.fit(talk, sampling.max_new_tokens)
        prompt = as_pieces(talk.to_document(self.style)["segments"])
        return self.write([prompt], sampling, on_text=on_text, stop=self.stop)[0], dropped

    def fit(self, talk: Conversation, max_new_tokens: int) -> int:
        """Drops the oldest turns of a conversation that leave no room for an answer.

        Args:
            talk: is changed.
            max_new_tokens: of the answer.

        Returns:
            How many turns were dropped.
        """
        limit, dropped = self.model.config.num_positions, 0
        while limit is not None:
            prompt = as_pieces(talk.to_document(self.style)["segments"])
            length = self.encode([prompt], check=False)["input_ids"].shape[1]
            if length + max_new_tokens <= limit or not talk.drop_oldest():
                break
            dropped += 2
        return dropped

    @property
    def stop(self) -> str | None:
        """Texts that end an answer if the model does not."""
        return None if self.style.instruct else f"\n{self.style.user}:"

    def pieces_of(self, prompt: Prompt) -> list[Piece]:
        """The pieces of a prompt, in the format that its question or single image needs.

        Args:
            prompt: pieces, and a question if there is one.

        Returns:
            Pieces as the processor takes them.
        """
        if prompt.question:
            talk = Conversation()
            talk.ask(*prompt.pieces, prompt.question)
            return as_pieces(talk.to_document(self.style)["segments"])
        if len(prompt.pieces) == 1 and as_segment(prompt.pieces[0])["kind"] != "text":
            return self.caption_prompt(prompt.pieces)
        return prompt.pieces

    # images

    @property
    def pipeline(self) -> EmuPipeline:
        """`EmuPipeline` of this model.

        Raises:
            ConfigError: Where the checkpoint has no visual decoder.
        """
        if self._pipeline is None:
            folder = self._decoder_folder()
            if folder is None:
                raise ConfigError(
                    f"{self.path} cannot generate images: it has no visual_decoder/ folder. Train a small one with "
                    f"nextembed train emu_emoji_decoder after=[] model.pretrained={self.path}, or one for photos with "
                    "the recipe emu_visual_decoder"
                )
            self._pipeline = EmuPipeline(self.model, self.processor, VisualDecoder.from_pretrained(folder))
            self._pipeline.decoder.to(self.model.device)
        return self._pipeline

    def _decoder_folder(self) -> Path | None:
        return None if self.path is None else decoder_folder(Path(self.path).expanduser())

    def paint(
        self,
        prompt: Pieces,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        seed: int = 0,
        progress: bool | OnStep = False,
        latent_temperature: float = 1.0,
        latent_guidance: float = 1.0,
    ) -> Image.Image:
        """Paints the image that would follow a prompt; two images in the prompt are blended.

        Args:
            prompt: text and images.
            num_inference_steps: denoising steps.
            guidance_scale: how far to extrapolate from the empty prompt towards yours; 1 or less turns guidance off.
            seed: of the noise.
            progress: whether to show a progress bar; or what to call after each step, with how many are done, and of
                how many.
            latent_temperature: of image latents, if the regression head is a flow.
            latent_guidance: guidance of image latents, if the regression head is a flow; 1 turns it off.

        Returns:
            The image.

        Raises:
            ConfigError: the checkpoint has no visual decoder, or latent settings are given but its head is linear.
        """
        pipeline = self.pipeline
        how = LatentSampling(latent_temperature, latent_guidance)
        self.room(self.encode([prompt])["input_ids"].shape[1], self.model.config.num_image_latents + 1)
        with self._one_line():
            (image,) = pipeline(
                [list(prompt)], num_inference_steps, guidance_scale, seed, progress=progress, sampling=how
            )
            return image

    def document(
        self, prompt: Pieces, paint: bool | None = None, num_inference_steps: int = 50, **options: Any
    ) -> list[Made]:
        """Continues a prompt with text and images.

        Args:
            prompt: text and images.
            paint: whether images are painted, not only predicted; None paints if there is a decoder.
            num_inference_steps: denoising steps.
            options: of `models.emu.mixed.Writing`.

        Returns:
            Texts and images, in order.
        """
        self.encode([prompt])
        if paint is None:
            paint = self._decoder_folder() is not None

        def painted(latents: Tensor) -> Image.Image:
            return self.pipeline.paint(latents[None], num_inference_steps=num_inference_steps)[0]

        painter = painted if paint else None
        with self._one_line():
            return generate_document(self.model, self.processor, prompt, Writing(paint=painter, **options))

    # helpers

    def room(self, length: int, needed: int = 1) -> int:
        """Positions left after a prompt.

        Args:
            length: positions of the prompt.
            needed: positions that have to be left.

        Returns:
            Number of positions.

        Raises:
            ConfigError: If there are fewer than `needed`.
        """
        limit = self.model.config.num_positions
        if limit is None:
            return 2**31
        if length + needed > limit:
            raise ConfigError(
                f"the prompt takes {length:,} positions of the model's {limit:,}, and {needed} more are needed; "
                f"an image takes {self.model.config.num_image_latents + 2}"
            )
        return limit - length

    def encode(self, prompts: Sequence[Pieces], check: bool = True) -> BatchFeature:
        """A batch for the model.

        Args:
            prompts: pieces of each prompt.
            check: whether the length of prompts is checked.

        Returns:
            What `EmuProcessor` gives, padded on the left, on the model's device.

        Raises:
            ConfigError: For an empty prompt or one that is too long.
        """
        for pieces in prompts:
            segments = [segment_of(piece) for piece in pieces]
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
            raise ConfigError(f"the prompt: {first_line(err)}") from None

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield


class _Streamer(TextStreamer):
    """Passes decoded text to `on_text`, up to a stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: OnText, stop: str | None):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text, self.stop = on_text, stop or ""
        self.held, self.stopped = "", False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.stopped:
            return
        self.held += text
        if self.stop and self.stop in self.held:
            self.held, self.stopped = self.held.split(self.stop)[0], True
        keep = 0 if stream_end or self.stopped else max(0, len(self.stop) - 1)  # may be the beginning of a stop text
        give, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        if give:
            self.on_text(give)


def segment_of(piece: Piece) -> Segment:
    """A piece of a prompt as a segment. Raises ConfigError for other values."""
    try:
        segment = as_segment(piece)
        if segment["kind"] == "text":
            check_text(segment["value"])
        return segment
    except ValueError as err:
        raise ConfigError(f"the prompt: {err}") from None


def as_pieces(segments: Sequence[Segment]) -> list[Piece]:
    """Segments, which a processor also accepts as pieces."""
    return [dict(segment) for segment in segments]

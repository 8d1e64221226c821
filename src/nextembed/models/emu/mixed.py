"""Text and images in one output: the model generates text, and where it starts an image, predicts its latents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ...nn.latent_flow import LatentSampling
from .modeling_emu import EmuForConditionalGeneration
from .processing_emu import EmuProcessor

Paint = Callable[[Tensor], Any]


@dataclass
class Made:
    """A span of a model's output. kind "text": `text`; "image": `latents` [N, D], and `image` if there is a decoder.
    complete: False for the last span if the output was truncated.
    """

    kind: Literal["text", "image"]
    text: str = ""
    latents: Tensor | None = None
    image: Any = None
    complete: bool = True


@dataclass(frozen=True)
class Writing:
    """How a document is continued. max_images: limit of images. begin_image: whether the output starts with an image.
    paint: function from latents [N, D] to a picture. on_text: called with new text. sampling: how a flow samples
    latents. The rest as in `GenerationMixin.generate`.
    """

    max_new_tokens: int = 200
    max_images: int = 4
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    begin_image: bool = False
    paint: Paint | None = None
    on_text: Callable[[str], None] | None = None
    sampling: LatentSampling | None = None

    def warpers(self) -> LogitsProcessorList:
        """Changes scores of tokens before one is chosen."""
        found = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.do_sample and self.temperature != 1.0:
            found.append(TemperatureLogitsWarper(self.temperature))
        if self.do_sample and self.top_k > 0:
            found.append(TopKLogitsWarper(self.top_k))
        if self.do_sample and self.top_p < 1.0:
            found.append(TopPLogitsWarper(self.top_p))
        return found


@torch.no_grad()
def generate_document(
    model: EmuForConditionalGeneration, processor: EmuProcessor, pieces: Sequence[Any], writing: Writing
) -> list[Made]:
    """How a document of text and images continues, span by span, from one cache.

    Where the text head gives `[IMG]` (models trained with `image_start_is_target` do), N latents are predicted, each
    read as the next embedding, then `[/IMG]` closes the image and text continues. Ends at the end token, after
    `max_new_tokens` of text, or when the context is full. Raises ValueError for an empty prompt or one longer than the
    context.
    """
    model.eval()
    config, sampling = model.config, model.latent_sampling(writing.sampling)
    inputs = processor([*pieces]).to(model.device)
    pixels = inputs.get("pixel_values")
    latents = None if pixels is None else model.image_latents(pixels.to(model.dtype))
    writer = _Writer(model, model.model.embed(inputs["input_ids"], latents))
    warpers = writing.warpers()
    generator = torch.Generator(device="cpu").manual_seed(writing.seed)
    never = [i for i in (config.image_token_id, config.image_end_token_id, config.pad_token_id) if i is not None]
    ends = {config.eos_token_id, processor.tokenizer.eos_token_id} - {None}
    spans = _Spans(processor.tokenizer, writing.on_text)
    begin, size = config.image_start_token_id, config.num_image_latents + 2
    token = begin if writing.begin_image else None
    while writer.room(1):
        if token is None:
            logits = model.text_logits(writer.hidden[:, 0]).float()
            logits[:, never] = -torch.inf
            if spans.num_images >= writing.max_images or not writer.room(size):
                logits[:, begin] = -torch.inf
            token = _choose(logits, writer.ids, warpers, writing.do_sample, generator)
        if token in ends:
            return spans.close(complete=True)
        if token == begin:
            if not writer.room(size):
                break
            found = writer.image(sampling, generator)
            spans.add_image(found, None if writing.paint is None else writing.paint(found))
        elif spans.num_tokens == writing.max_new_tokens:
            break
        else:
            spans.add_token(token)
            writer.read_token(token)
        token = None
    return spans.close(complete=False)


class _Spans:
    """The output so far. num_images, num_tokens: totals."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None):
        self.tokenizer, self.on_text = tokenizer, on_text
        self.made: list[Made] = []
        self.ids: list[int] = []
        self.num_shown = self.num_images = self.num_tokens = 0

    def add_token(self, token: int) -> None:
        self.ids.append(token)
        self.num_tokens += 1
        self.show()

    def add_image(self, latents: Tensor, image: object) -> None:
        self.close(complete=True)
        self.num_images += 1
        self.made.append(Made("image", latents=latents, image=image))

    def show(self, rest: bool = False) -> None:
        if self.on_text is None:
            return
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if rest or not text.endswith("\ufffd"):  # otherwise the last character is incomplete
            self.on_text(text[self.num_shown :])
            self.num_shown = len(text)

    def close(self, complete: bool) -> list[Made]:
        """Ends the current text and returns all spans."""
        if self.ids:
            self.show(rest=True)
            text = self.tokenizer.decode(self.ids, skip_special_tokens=True).strip()
            self.made.append(Made("text", text, complete=complete))
            self.ids, self.num_shown = [], 0
        return self.made


class _Writer:
    """A prompt that has been read, and its continuation. hidden [1, 1, D]: of the last position."""

    def __init__(self, model: EmuForConditionalGeneration, embeds: Tensor):
        self.model, self.limit = model, model.config.num_positions
        self.length, self.ids = 0, torch.zeros(1, 0, dtype=torch.int64, device=embeds.device)
        if self.limit is not None and embeds.shape[1] >= self.limit:
            raise ValueError(f"the prompt takes {embeds.shape[1]} positions; the model has {self.limit}")
        self.cache = DynamicCache(config=model.config.text_config)
        self.read(embeds)

    def room(self, num: int) -> bool:
        return self.limit is None or self.length + num <= self.limit

    def read(self, embeds: Tensor) -> None:
        positions = torch.arange(self.length, self.length + embeds.shape[1], device=embeds.device)[None]
        out = self.model.model(inputs_embeds=embeds, position_ids=positions, cache=self.cache, use_cache=True)
        self.hidden = out.last_hidden_state[:, -1:]
        self.length += embeds.shape[1]

    def read_token(self, token: int) -> None:
        ids = torch.tensor([[token]], device=self.ids.device)
        self.ids = torch.cat([self.ids, ids], dim=1)
        self.read(self.model.get_input_embeddings()(ids))

    def image(self, sampling: LatentSampling, generator: torch.Generator) -> Tensor:
        """Latents [N, D]; reads `[IMG]`, each of them, and `[/IMG]`. With guidance an empty prompt reads them, too."""
        config = self.model.config
        self.read_token(config.image_start_token_id)
        writers = [self]
        if sampling.guidance != 1:
            writers.append(_Writer(self.model, self.model.empty_prompt(self.ids.device)))
        found = []
        for _ in range(config.num_image_latents):
            hidden = torch.cat([writer.hidden for writer in writers])
            found.append(self.model.next_latent(hidden, [generator], sampling)[:1])
            for writer in writers:
                writer.read(found[-1])
        self.read_token(config.image_end_token_id)
        return torch.cat(found, dim=1)[0]


def _choose(logits: Tensor, ids: Tensor, warpers: Any, sample: bool, generator: torch.Generator) -> int:
    scores = warpers(ids, logits)
    if sample:
        return int(torch.multinomial(scores.softmax(-1).cpu()[0], 1, generator=generator))
    return int(scores.argmax())

"""Prompts and decoding of each benchmark, and the settings of an evaluation."""

import re
from typing import Literal, NamedTuple

from pydantic import Field

from ...core.config import Config
from ...core.types import Segment
from ...data.chosen import Where
from ...data.messages import IMAGE_SYSTEM, VIDEO_SYSTEM
from .examples import Example

Task = Literal["caption", "vqa", "video_qa", "retrieval", "text_to_image"]
Format = Literal["coco", "vqav2", "okvqa", "vizwiz", "visdial", "mmvet", "table"]
TASKS = ("caption", "vqa", "video_qa", "retrieval", "text_to_image")
FITS = {"coco": ("caption", "text_to_image", "retrieval"), "vqav2": ("vqa",), "okvqa": ("vqa",), "vizwiz": ("vqa",),
        "visdial": ("retrieval",), "mmvet": ("vqa",), "table": TASKS}  # fmt: skip

# Prompts of a pretrained model, in our wording, because the paper does not give them all.
PLAIN = {
    "caption": "{image}",
    "vqa": "{image}{before} Question: {question} Answer:",
    "video_qa": "{image}{before} Question: {question} Answer:",
    "retrieval": "{image}{before} Question: {question} Answer:",
    "text_to_image": "{text}",
}
# Prompts of an instructed model: the release's wording, with the beginning of the answer.
TURN = " [USER]: {image}{before} {question} [ASSISTANT]:"
INSTRUCTED = {
    "caption": IMAGE_SYSTEM + " [USER]: {image} [ASSISTANT]: The image depicts a photo of",
    "vqa": IMAGE_SYSTEM + TURN + " the answer is:",
    "video_qa": VIDEO_SYSTEM + TURN + " the answer is:",
    "retrieval": IMAGE_SYSTEM + TURN,
    "text_to_image": "{text}",
}


class Decoding(NamedTuple):
    """Of beam search: most new tokens, fewest before an end, exponent of the length (above 0 favours long answers);
    short: whether the answer is then cut to its first few words."""

    max_new_tokens: int
    min_new_tokens: int
    length_penalty: float
    short: bool


# The release's settings. Its lengths count a begin token that it puts in front, so "min 8" there is 7 here.
BENCHMARKS = {
    "coco": Decoding(20, 7, -1.0, False),
    "vqav2": Decoding(20, 0, -1.0, True),
    "okvqa": Decoding(20, 0, -1.0, True),
    "vizwiz": Decoding(20, 0, -1.0, True),
    "mmvet": Decoding(128, 0, 1.0, False),
}
OTHERS = {
    "caption": Decoding(50, 0, 0.0, False),
    "vqa": Decoding(20, 0, -1.0, True),
    "video_qa": Decoding(20, 0, 1.0, True),
}


class LanguageEval(Config):
    """The task and settings of an evaluation; null takes the benchmark's value.

    Attributes:
        task: the task to evaluate.
        data: the file of items.
        format: layout of `data`.
        images: folder that image files are relative to.
        annotations: second file of VQAv2 and OK-VQA, dense relevance of VisDial.
        columns: names of a table's columns, see `read_table`.
        where: keeps rows of a table whose column has this value.
        split: keeps the items of this split, if a file has several ("test" of COCO if it has it).
        num_examples: use only this many items, from the first.
        shots: number of few-shot examples before each item.
        shots_data: source of the examples, in the same format; null: the training split of COCO, else the other items
            of the same file.
        shots_where: keeps rows of shots_data whose column has this value.
        choose: how few-shot examples are chosen: at "random", redrawn for each item, or the most "similar" by the
            model's own image features, the most similar last.
        shot_images: false leaves their images out (the paper's zero-shot way).
        shot_end: text after each example.
        max_new_tokens: maximum tokens of an answer.
        min_new_tokens: minimum tokens of an answer.
        length_penalty: length penalty of beam search; above 0 favours long answers.
        num_beams: beams of the search.
        short: cuts an answer to its first few words.
        num_inference_steps: denoising steps of a generated image.
        guidance_scale: classifier-free guidance scale of generated images, relative to the empty prompt.
        batch_size: items per batch.
        weights: weights of a run to evaluate, "raw" or "ema".
        seed: seed of examples, generated images and the bootstrap.
        instructed: use the prompts of the released instruct-tuned model instead of those of the pretrained one.
        prompt: text with {image}, {question}, {before}, {text} in it.
        metric: "vqa" (accuracy beside several annotators), "exact" (one answer), null: by the number of references.
        features: features for text_to_image: a NEPA run or a folder with any vision model; null takes the model's own
            encoder.
        visual_decoder: folder of the visual decoder, if not the checkpoint's.
        draws: number of bootstrap resamples, for the interval of each score.
    """

    task: Task
    data: str
    format: Format = "table"
    images: str | None = None
    annotations: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    where: Where = Field(default_factory=dict)
    split: str | None = None
    num_examples: int | None = Field(None, gt=0)
    shots: int = Field(0, ge=0, le=64)
    choose: Literal["random", "similar"] = "random"
    shots_data: str | None = None
    shots_where: Where | None = None
    shot_images: bool = True
    instructed: bool = False
    prompt: str | None = None
    shot_end: str = "\n"
    max_new_tokens: int | None = Field(None, gt=0, le=10**6)
    min_new_tokens: int | None = Field(None, ge=0, le=10**6)
    length_penalty: float | None = Field(None, ge=-100, le=100)
    num_beams: int = Field(5, gt=0, le=1000)
    short: bool | None = None
    metric: Literal["vqa", "exact"] | None = None
    features: str | None = None
    visual_decoder: str | None = None
    num_inference_steps: int = Field(50, gt=0, le=10**6)
    guidance_scale: float = Field(7.5, ge=-1000, le=1000)
    batch_size: int = Field(8, gt=0, le=10**6)
    weights: Literal["raw", "ema"] = "raw"
    seed: int = Field(0, ge=0, lt=2**32)
    draws: int = Field(1000, ge=0, le=10**6)

    @property
    def decoding(self) -> Decoding:
        """The benchmark's decoding, with the values set here."""
        own = BENCHMARKS.get(self.format) or OTHERS.get(self.task) or OTHERS["caption"]
        return own._replace(**self.model_dump(include=set(Decoding._fields), exclude_none=True))

    def template(self, asks: bool = True) -> str:
        """The prompt; asks: whether the items have questions."""
        if self.prompt is not None:
            return self.prompt
        task = self.task if asks or self.task == "text_to_image" else "caption"
        return (INSTRUCTED if self.instructed else PLAIN)[task]


def fill(template: str, example: Example, images: bool = True) -> list[Segment]:
    """A prompt as segments: the template's text with the example's pictures and texts in their places. Special tokens
    are tokens in the template alone."""
    found: list[Segment] = []
    for piece in re.split(r"(\{image\}|\{question\}|\{before\}|\{text\})", template):
        if piece == "{image}":
            found.extend(example.pictures if images else [])
            continue
        if piece == "{question}":
            piece = example.question
        elif piece == "{before}":
            piece = example.before
        elif piece == "{text}":
            piece = example.question or (example.references[0] if example.references else "")
        else:
            found.append({"kind": "text", "value": piece, "tokens": [(0, len(piece))]})
            continue
        found.append({"kind": "text", "value": piece})
    return joined(found)


def joined(segments: list[Segment]) -> list[Segment]:
    """Joins neighbouring texts; doubled white space becomes one space, empty texts are left out."""
    found: list[Segment] = []
    for segment in segments:
        if segment["kind"] == "text" and found and found[-1]["kind"] == "text":
            before = len(found[-1]["value"])
            moved = [(begin + before, end + before) for begin, end in segment.get("tokens", [])]
            tokens = [*found[-1].get("tokens", []), *moved]
            found[-1] = {"kind": "text", "value": found[-1]["value"] + segment["value"], "tokens": tokens}
        else:
            found.append(segment)
    found = [without(segment, r"(?<= ) +") if segment["kind"] == "text" else segment for segment in found]
    while found and found[0]["kind"] == "text" and not found[0]["value"].strip():
        found.pop(0)
    if found and found[0]["kind"] == "text":
        found[0] = without(found[0], r"^\s+")
    return [segment for segment in found if segment["kind"] != "text" or segment["value"]]


def without(segment: Segment, pattern: str) -> Segment:
    """A text segment without the matches of a pattern; its tokens keep their place in the text."""
    text = segment["value"]
    gone = [match.span() for match in re.finditer(pattern, text)]

    def moved(place: int) -> int:
        return place - sum(max(0, min(place, end) - begin) for begin, end in gone)

    tokens = [(moved(begin), moved(end)) for begin, end in segment.get("tokens", [])]
    return {"kind": "text", "value": re.sub(pattern, "", text), "tokens": tokens}


def with_shots(template: str, example: Example, shots: list[Example], images: bool, end: str) -> list[Segment]:
    """The prompt of an example after solved ones, each followed by `end`."""
    found: list[Segment] = []
    for shot in shots:
        answer = shot.references[shot.target or 0] if shot.target is None and shot.references else ""
        if shot.target is not None:
            answer = shot.candidates[shot.target]
        found.extend(fill(template, shot, images))
        found.append({"kind": "text", "value": f" {answer}"})
        found.append({"kind": "text", "value": end, "tokens": [(0, len(end))]})
    return joined(found + fill(template, example))

"""`score_language`: a checkpoint on a task, from the file of annotations to scores with intervals."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ...core.files import open_folder, replacing
from ...core.sizes import usable_device
from ...core.types import Segment
from ...data.transforms import Unreadable
from ...errors import ConfigError, DataError
from ...models.emu import EmuPipeline
from ..images import FeatureSpace, feature_space, frechet_distance, retrieval_ranks
from . import captions
from .answers import VQAStyle, exact_match, normalize_answer, short_answer, vqa_accuracy
from .examples import Example
from .protocols import LanguageEval, fill, with_shots
from .ranks import ndcg, rank_of
from .reading import Shots, check_fit, choose_items, read_examples
from .scores import Answer, LanguageScores, Metric, mean_metric, statistic_metric
from .speaker import Speaker

Progress = Callable[[int, int], None]


def score_language(
    checkpoint: str | os.PathLike[str] | Speaker | EmuPipeline,
    settings: LanguageEval,
    progress: Progress | None = None,
    paintings: str | Path | None = None,
) -> LanguageScores:
    """Scores of an Emu on captions, questions, rankings or painted images.

    Nothing is written but paintings: see `LanguageScores.save`.

    Args:
        checkpoint: a run, a checkpoint, a model folder, a hub id, a `Speaker`, or for text_to_image an `EmuPipeline`.
        settings: what it is scored on, and how.
        progress: is called with items done and all.
        paintings: folder that painted images are written to, as 0000.png and so on.

    Raises:
        ConfigError: before the model is loaded, for settings and files that cannot work.
        DataError: for items that cannot be read.
    """
    check_fit(settings)
    found = read_examples(settings)
    items = choose_items(settings, found)
    name = checkpoint if isinstance(checkpoint, str | os.PathLike) else type(checkpoint).__name__
    scores = LanguageScores(
        settings.task,
        settings.format,
        str(name),
        settings.data,
        len(items),
        [],
        settings=settings.model_dump(exclude_defaults=True),
    )
    if settings.task == "text_to_image":
        pipeline = _pipeline(checkpoint, settings)
        return paint(pipeline, settings, items, scores, progress, paintings)
    if isinstance(checkpoint, EmuPipeline):
        checkpoint = Speaker(checkpoint.model, checkpoint.processor)
    speaker = checkpoint if isinstance(checkpoint, Speaker) else Speaker.load(checkpoint, settings.weights)
    shots = Shots(settings, speaker, items, found)
    if shots.note:
        scores.notes.append(shots.note)
    template = settings.template(any(example.question for example in items))
    prompts = [
        with_shots(template, example, shots.of(i, example), settings.shot_images, settings.shot_end)
        for i, example in enumerate(items)
    ]
    if settings.task == "retrieval":
        return rank(speaker, settings, items, prompts, scores, progress)
    return say(speaker, settings, items, prompts, scores, progress)


def say(
    speaker: Speaker,
    settings: LanguageEval,
    items: list[Example],
    prompts: list[list[Segment]],
    scores: LanguageScores,
    progress: Progress | None,
) -> LanguageScores:
    """Free answers, compared with references."""
    answers: list[str] = []
    decoding = settings.decoding
    for part in batches(len(items), settings.batch_size, progress):
        keys = [example.key for example in items[part]]
        answers += speaker.answer(prompts[part], keys, decoding, settings.num_beams)
    full = answers
    if decoding.short:
        answers = [short_answer(answer) for answer in answers]
    for example, answer, whole, prompt in zip(items, answers, full, prompts, strict=True):
        one: Answer = {"key": example.key, "prompt": shown(prompt), "answer": answer, "references": example.references}
        scores.answers.append(one | ({"full_answer": whole} if whole != answer else {}))
    if settings.format == "mmvet":
        scores.answers_only = True
        scores.notes.append("MM-Vet is graded by its external grader; this file of answers is what it reads")
    elif settings.task == "caption":
        scores.metrics = caption_metrics(answers, [e.references for e in items], settings.draws, settings.seed)
        scores.notes.append("CIDEr weighs words by their frequency in this set; its intervals keep these weights")
    else:
        answer_metrics(settings, items, answers, scores)
    return scores


def caption_metrics(answers: list[str], references: list[list[str]], draws: int = 1000, seed: int = 0) -> list[Metric]:
    """CIDEr (x 100), BLEU-1..4, ROUGE-L and exact match in %, of captions as they are written."""
    said = [captions.words(answer) for answer in answers]
    right = [[captions.words(reference) for reference in group] for group in references]
    counts = captions.bleu_counts(said, right)
    found = [mean_metric("CIDEr", captions.cider(said, right), 100, draws=draws, seed=seed)]
    for n in range(4):
        found.append(
            statistic_metric(f"BLEU-{n + 1}", counts, lambda s, n=n: 100 * captions.bleu_of(s)[..., n], "", draws, seed)  # type: ignore[misc]
        )
    found.append(mean_metric("ROUGE-L", captions.rouge_l(said, right), 100, draws=draws, seed=seed))
    exact = [float(own in group) for own, group in zip(said, right, strict=True)]
    return [*found, mean_metric("exact", exact, 100, "%", draws, seed)]


def answer_metrics(settings: LanguageEval, items: list[Example], answers: list[str], scores: LanguageScores) -> None:
    """Accuracy of short answers, in total and for each kind, with the baseline of always giving the most frequent
    answer."""
    several = any(len(example.references) > 1 for example in items)
    vqa = settings.metric == "vqa" or (settings.metric is None and several)
    style: VQAStyle = "vizwiz" if settings.format == "vizwiz" else "vqav2"

    def score(answer: str, example: Example) -> float:
        return vqa_accuracy(answer, example.references, style) if vqa else exact_match(answer, example.references)

    values = np.array([score(answer, example) for answer, example in zip(answers, items, strict=True)])
    for one, value in zip(scores.answers, values.tolist(), strict=True):
        one["score"] = value
    name = "VQA accuracy" if vqa else "exact match"
    scores.metrics.append(mean_metric(name, values, 100, "%", settings.draws, settings.seed))
    kinds = sorted({example.kind for example in items} - {""})
    for kind in kinds if len(kinds) > 1 else []:
        own = values[[example.kind == kind for example in items]]
        scores.metrics.append(mean_metric(f"{name}, {kind}", own, 100, "%", settings.draws, settings.seed))
    given = [normalize_answer(reference) for example in items for reference in example.references]
    most = max(sorted(set(given)), key=given.count)
    always = 100 * float(np.mean([score(most, example) for example in items]))
    scores.notes.append(f"always answering '{most}' scores {always:.1f} %")


def rank(
    speaker: Speaker,
    settings: LanguageEval,
    items: list[Example],
    prompts: list[list[Segment]],
    scores: LanguageScores,
    progress: Progress | None,
) -> LanguageScores:
    """Ranks of candidates by likelihood, with two rules."""
    ranks: dict[str, list[int]] = {"mean": [], "reference": []}
    gains: dict[str, list[float]] = {"mean": [], "reference": []}
    for part in batches(len(items), 1, progress):
        example = items[part.start]
        found = speaker.likelihood(prompts[part.start], example.key, example.candidates)
        one: Answer = {"key": example.key, "prompt": shown(prompts[part.start])}
        for rule, values in found._asdict().items():
            if example.target is not None:
                ranks[rule].append(rank_of(values, example.target))
                one[f"rank_{rule}"] = ranks[rule][-1]
            if example.relevance is not None and any(example.relevance):
                gains[rule].append(ndcg(values, example.relevance))
            one[f"answer_{rule}"] = example.candidates[int(values.argmax())]
        scores.answers.append(one)
    draws, seed = settings.draws, settings.seed
    for rule, label in (("mean", "per token"), ("reference", "reference rule")):
        own = np.array(ranks[rule])
        if len(own):
            for k in (1, 5, 10):
                scores.metrics.append(mean_metric(f"R@{k}, {label}", own <= k, 100, "%", draws, seed))
            scores.metrics.append(mean_metric(f"MRR, {label}", 1 / own, 100, "", draws, seed))
            scores.metrics.append(mean_metric(f"mean rank, {label}", own, draws=draws, seed=seed))
        if gains[rule]:
            scores.metrics.append(mean_metric(f"NDCG, {label}", gains[rule], 100, "", draws, seed))
    chance = 100 * float(np.mean([1 / len(example.candidates) for example in items]))
    scores.notes += [
        f"R@1 by chance is {chance:.1f} %",
        "'per token' ranks by the mean log-likelihood of a candidate's tokens, 'reference rule' by their sum over all "
        "positions of the row, as Emu's release does: short candidates gain",
    ]
    return scores


def _pipeline(checkpoint: str | os.PathLike[str] | Speaker | EmuPipeline, settings: LanguageEval) -> EmuPipeline:
    if settings.weights == "ema":
        raise ConfigError(
            "weights=ema does not apply to text_to_image, which uses averaged weights by itself where a run has them"
        )
    if isinstance(checkpoint, Speaker):
        raise ConfigError("a Speaker only generates text; text_to_image needs an EmuPipeline")
    if isinstance(checkpoint, str | os.PathLike):
        return EmuPipeline.from_pretrained(checkpoint, visual_decoder=settings.visual_decoder).to(usable_device())
    return checkpoint


def paint(
    pipeline: EmuPipeline,
    settings: LanguageEval,
    items: list[Example],
    scores: LanguageScores,
    progress: Progress | None,
    folder: str | Path | None,
) -> LanguageScores:
    """Images painted from texts, compared with the real ones in a feature space."""
    if folder is not None:
        open_folder(Path(folder))
    speaker = Speaker(pipeline.model, pipeline.processor)
    if settings.features is None:
        space = FeatureSpace(speaker.features_of, "the mean token of the model's own visual encoder")
    else:
        space = feature_space(settings.features)
    template = settings.template()
    painted, real = [], []
    for part in batches(len(items), settings.batch_size, progress):
        prompts = [[dict(segment) for segment in fill(template, example, images=False)] for example in items[part]]
        painted += pipeline(
            prompts,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            seed=[settings.seed + i for i in range(part.start, part.start + len(prompts))],
            progress=False,
        )
        for example in items[part]:
            real.append(reference_image(speaker, example))
    for i, image in enumerate(painted if folder is not None else []):
        with replacing(Path(folder or "") / f"{i:04d}.png") as file:
            image.save(file)
    made, there = space.encode(painted), space.encode(real)
    ranks = retrieval_ranks(made, there)
    for example, place in zip(items, ranks.tolist(), strict=True):
        scores.answers.append({"key": example.key, "prompt": shown(fill(template, example, False)), "rank": place})
    draws, seed = settings.draws, settings.seed
    for k in (1, 5, 10):
        scores.metrics.append(mean_metric(f"retrieval R@{k}", ranks <= k, 100, "%", draws, seed))
    scores.metrics.append(mean_metric("mean rank", ranks, draws=draws, seed=seed))
    if len(items) > 1:
        scores.metrics.append(Metric("Frechet distance", frechet_distance(made, there)))
    scores.notes += [
        f"features: {space.name}",
        f"R@1 is the share of generated images whose nearest of {len(items)} real ones is their own; "
        f"chance is {100 / len(items):.1f} %",
        "a Fréchet distance compares only with others for the same features and number of images; this is not FID",
    ]
    return scores


def reference_image(speaker: Speaker, example: Example) -> Image.Image:
    """The first image of an example, as PIL in RGB. Raises DataError if it cannot be read."""
    value = next(p["value"] for p in example.pictures if p["kind"] == "image")
    try:
        return Image.fromarray(speaker.reader.read(value).permute(1, 2, 0).numpy())
    except Unreadable as err:
        raise DataError(f"{example.key}: an image cannot be read: {err}") from None


def batches(total: int, size: int, progress: Progress | None) -> Iterator[slice]:
    """Parts of a sequence, in order; progress is called after each."""
    for start in range(0, total, size):
        yield slice(start, min(total, start + size))
        if progress:
            progress(min(total, start + size), total)


def shown(prompt: list[Segment]) -> str:
    """A prompt as text, with pictures as {image} and {video}."""
    return "".join(str(s["value"]) if s["kind"] == "text" else "{" + s["kind"] + "}" for s in prompt)

"""Sections of a fine-tuning run: scores of the classifier, and what was trained."""

from collections.abc import Callable
from html import escape
from typing import cast

from transformers import PretrainedConfig

from ..core.config import Part
from ..core.scores import ClassScores, Mistake
from ..core.types import Role
from ..data.images import ImagePart
from ..errors import ConfigError, NextEmbedError
from .page import head, percent, verdict_card
from .pictures import data_uri, to_array
from .view import RunView, looking

Picture = tuple[Mistake, str]  # a wrong answer with its image, as a data URI
MAX_CLASSES = 40  # classes in bars and matrix; of more, those with the most mistakes
MAX_LABEL = 26  # characters


def header(view: RunView) -> str:
    """Top-1 with its range, and the last figures."""
    scores = scores_of(view)
    facts: list[tuple[str, str]] = []
    if scores:
        facts.append((percent(scores.top5), f"top-5 of {len(scores.class_names)} classes"))
        if scores.step is not None:
            facts.append((f"{scores.step:,}", "step of the best weights" + ", averaged" * (scores.weights == "ema")))
    card = ""
    if scores:
        card = (
            f'<div class="card headline"><div><b>{percent(scores.top1)}</b><span class="soft">top-1 on '
            f"{scores.num_images:,} {escape(scores.split)} images</span></div>{_scale(scores)}"
            f"<p>{escape(scores.sentence())}</p></div>"
        )
    card += verdict_card(view)
    return head(view, f"Fine-tuning on {view.settings.data.source or 'its data'}", card, facts)


def scores_of(view: RunView) -> ClassScores | None:
    return view.scores if isinstance(view.scores, ClassScores) else None


def answers(view: RunView, pictures: Callable[[ClassScores], list[Picture]]) -> str:
    """Every class, the confusion matrix, and the mistakes. pictures: of mistakes, see `pictures_of`."""
    scores = scores_of(view)
    if scores is None:
        return '<p class="note">Nothing was scored: the run did not finish, or its data has no labels.</p>'
    return _classes(scores) + _matrix(scores) + _mistakes(scores, pictures)


def _scale(scores: ClassScores) -> str:
    """Top-1 and its 95 % range between 0 and 100 %, with the baseline of guessing the largest class."""
    low, high = scores.range
    guess = min(1.0, max(scores.counts, default=0) / max(1, scores.num_images))
    anchor = "start" if guess < 0.5 else "end"
    return (
        '<svg class="scale" viewBox="0 -4 600 62" role="img" aria-label="top-1 with its 95 % range">'
        '<rect class="track" x="0" y="14" width="600" height="14" rx="7"/>'
        f'<rect class="range" x="{600 * low:.1f}" y="10" width="{600 * (high - low):.1f}" height="22" rx="6"/>'
        f'<circle class="top" cx="{600 * scores.top1:.1f}" cy="21" r="7.5"/>'
        f'<line class="guess" x1="{600 * guess:.1f}" x2="{600 * guess:.1f}" y1="8" y2="34"/>'
        f'<text class="guessed" x="{600 * guess:.1f}" y="3" text-anchor="{anchor}">always the largest class: '
        f"{percent(guess)}</text>"
        '<text x="0" y="50">0 %</text><text x="600" y="50" text-anchor="end">100 %</text>'
        f'<text x="{600 * min(0.85, max(0.15, (low + high) / 2)):.1f}" y="50" text-anchor="middle">95 % range '
        f"{100 * low:.1f} to {100 * high:.1f} %</text></svg>"
    )


def _shown(scores: ClassScores, answers: bool = False) -> list[int]:
    """Classes that have images, or with `answers` also those that images were called; of too many, those with the most
    mistakes; by id."""
    confusion = scores.confusion
    columns = [sum(column) for column in zip(*confusion)]
    there = [i for i, row in enumerate(confusion) if sum(row) or (answers and columns[i])]
    worst = sorted(there, key=lambda i: (confusion[i][i] - sum(confusion[i]), i))
    return sorted(worst[:MAX_CLASSES])


def _classes(scores: ClassScores) -> str:
    confusion, shown = scores.confusion, _shown(scores)
    if not shown:
        return ""
    recall = {i: confusion[i][i] / sum(confusion[i]) for i in shown}
    rows = ""
    for i in sorted(shown, key=lambda i: (-recall[i], i)):
        total = sum(confusion[i])
        low, high = _wilson(recall[i], total)
        rows += (
            f"<span>{_name(scores, i)}</span>"
            f'<span class="bar" style="--w:{100 * recall[i]:.1f}%;--l:{100 * low:.1f}%;--r:{100 * (high - low):.1f}%">'
            f'<i></i><u></u></span><span class="value">{percent(recall[i])} <span>of {total:,}</span></span>'
        )
    left_out = sum(1 for row in confusion if sum(row)) - len(shown)
    more = f" {left_out} classes with fewer mistakes are left out." if left_out else ""
    return (
        "<h2>Accuracy by class</h2>"
        '<p class="soft">Share of its images that are classified correctly (recall); the line is the 95 % range, '
        f'which is wide where there are few images.{more}</p><div class="card classes">{rows}</div>'
    )


def _wilson(share: float, total: int) -> tuple[float, float]:
    z2 = 1.96**2
    centre, scale = (share + z2 / (2 * total)) / (1 + z2 / total), 1 / (1 + z2 / total)
    half = scale * (z2 * (share * (1 - share) / total + z2 / (4 * total * total))) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _matrix(scores: ClassScores) -> str:
    confusion, shown = scores.confusion, _shown(scores, answers=True)
    if not shown:
        return ""
    left, size = 160, max(13.0, min(44.0, 400 / len(shown)))
    numbers = size >= 20
    cells = ""
    for y, i in enumerate(shown):
        total = sum(confusion[i])
        cells += (
            f'<text class="name" x="{left - 8}" y="{left + (y + 0.5) * size + 3.5:.1f}" text-anchor="end">'
            f"{_name(scores, i)}</text>"
        )
        for x, j in enumerate(shown):
            count, share = confusion[i][j], confusion[i][j] / max(1, total)
            kind = "none" if not count else "right" if i == j else "wrong"
            box = f'x="{left + x * size:.1f}" y="{left + y * size:.1f}" width="{size:.1f}" height="{size:.1f}"'
            tip = f"true {scores.class_names[i]}, predicted {scores.class_names[j]}: {count} of {total}"
            cells += f'<rect class="cell {kind}" {box} rx="4" style="--v:{15 + 85 * share:.0f}%">'
            cells += f"<title>{escape(tip)}</title></rect>"
            if numbers and count:
                at = f'x="{left + (x + 0.5) * size:.1f}" y="{left + (y + 0.5) * size + 3.5:.1f}"'
                cells += f'<text class="{"on" if share > 0.55 else ""}" {at} text-anchor="middle">{count}</text>'
    for x, j in enumerate(shown):
        at = f"translate({left + (x + 0.5) * size + 3.5:.1f} {left - 8}) rotate(-55)"
        cells += f'<text class="name" transform="{at}">{_name(scores, j)}</text>'
    side = left + len(shown) * size
    rest = [
        (n, i, j) for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j and n and sum(confusion[i])
    ]
    table = "".join(
        f'<tr><td>{_name(scores, i)}</td><td class="left">{_name(scores, j)}</td>'
        f"<td>{n:,} of {sum(confusion[i]):,}</td></tr>"
        for n, i, j in sorted(rest, key=lambda row: (-row[0], row[1:]))[:12]
    )
    found = (
        f"<table><tr><th>true</th><th class='left'>predicted</th><th>images</th></tr>{table}</table>" if table else ""
    )
    return (
        "<h2>Confusion matrix</h2>"
        '<p class="soft">Rows: true class; columns: predicted class. <span class="key right"></span> correct, '
        '<span class="key wrong"></span> wrong; the deeper the colour, the greater the share of the row.</p>'
        f'<div class="two"><div class="card scroll"><svg class="matrix" viewBox="0 0 {side + 60:.0f} {side + 4:.0f}" '
        f'role="img" aria-label="confusion matrix" style="min-width:{min(side, 480):.0f}px">{cells}</svg>'
        f'</div><div class="card scroll"><h3>Most frequent confusions</h3>{found or "None."}</div></div>'
    )


def _mistakes(scores: ClassScores, pictures: Callable[[ClassScores], list[Picture]]) -> str:
    if not any(error.index is not None for error in scores.errors):
        return ""
    try:
        with looking("the model"):
            found = pictures(scores)
    except NextEmbedError as err:
        return f'<h2>Most confident mistakes</h2><p class="note">There are no pictures: {escape(str(err))}</p>'
    cards = "".join(
        f'<div class="card"><img alt="{escape(error.key)}" src="{picture}"><p>'
        f'true <span class="is">{_name(scores, error.label)}</span><br>'
        f'predicted <span class="called">{_name(scores, error.answer)}</span>, '
        f"{percent(error.probability)}</p></div>"
        for error, picture in found
    )
    return (
        "<h2>Most confident mistakes</h2>"
        '<p class="soft">Wrong answers with the highest probability. Often the label is wrong, or the picture '
        f'shows two things.</p><div class="mistakes">{cards}</div>'
    )


def pictures_of(scores: ClassScores, data: Part, config: PretrainedConfig, num_test: int | None) -> list[Picture]:
    """Wrong answers with the images of the scored samples; without images if the data has changed.

    Args:
        scores: of the run.
        data: of the run.
        config: of the model: it says how large images are.
        num_test: how many samples were scored at most.

    Raises:
        ConfigError: the data gives no images.
    """
    if not isinstance(data, ImagePart):
        raise ConfigError(f"data of kind {data.kind} gives no images to look at")
    sizes = {"image_size": config.image_shape[0], "num_channels": config.num_channels}
    role = cast(Role, scores.split)
    samples = data.eval_samples(role, num_samples=num_test, **sizes)
    found = []
    for error in scores.errors:
        sample = samples[error.index] if error.index is not None and error.index < len(samples) else None
        if sample is not None and sample["key"] == error.key:
            image = (sample["pixel_values"].float() * data.std + data.mean).clamp(0, 1)
            found.append((error, data_uri(to_array(image.expand(3, -1, -1)))))
    return found


def what_was_trained(view: RunView) -> str:
    """Initial weights, trained parts, and data of the run."""
    run = view.settings
    model, train, data, task, optim = run.model, run.train, run.data, run.objective, run.optim
    alphas = {"mixup": task.mixup_alpha, "cutmix": task.cutmix_alpha}
    augmented = [f"RandAugment {data.rand_augment[0]:g}/{data.rand_augment[1]:g}"] if data.rand_augment else []
    augmented += [f"{name} {alpha:g}" for name, alpha in alphas.items() if alpha]
    augmented += [f"erasing {data.erase_rate:g}"] if data.erase_rate else []
    few, end = data.labels_per_class, optim.layer_decay_end
    rows = [
        ("started from", model.start),
        ("attention, pooling", f"{model.attention}, {model.pooling}"),
        ("layers", f"the first {model.num_layers}" if model.num_layers else "all"),
        ("trained", train.what),
        ("labels", f"{few} of each class (seed {data.labels_seed})" if few else "all"),
        ("augmentation", ", ".join(augmented) or "crops and flips only"),
        ("learning rate", f"{optim.learning_rate:g}, batch {train.batch_size or '?'}, layer decay {optim.layer_decay:g}"
                          + (f" rising to {end:g}" if end is not None else "")),
    ]  # fmt: skip
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<h2>Training setup</h2><div class="card scroll trained"><table>{body}</table></div>'


def _name(scores: ClassScores, i: int) -> str:
    name = scores.class_names[i]
    return escape(name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…")

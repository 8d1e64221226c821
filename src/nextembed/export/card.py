"""The model card: front matter for the hub, and a text with figures measured in the run."""

import re
from collections.abc import Sequence
from html import escape

from huggingface_hub import EvalResult, ModelCardData

from ..core.probe_table import TITLES, WEIGHTS, Row, feature_name, percent, sentence
from ..core.run_folder import data_in_words
from ..core.terminal import one_line
from ..models.nepa import ViTNepaConfig
from .facts import Facts

PAPER = "https://arxiv.org/abs/2512.16922"
CITATION = """```bibtex
@article{xu2025nepa,
  title   = {Next-Embedding Prediction Makes Strong Vision Learners},
  author  = {Xu, Sihan and Ma, Ziqiao and Chai, Wenhao and Chen, Xuweiyi
             and Jin, Weiyang and Chai, Joyce and Xie, Saining and Yu, Stella X.},
  journal = {arXiv preprint arXiv:2512.16922},
  year    = {2025}
}
```"""
MAX_CHANGES, MAX_CLASSES = 25, 40


def model_card(facts: Facts, repo_id: str, license: str | None = None) -> str:
    """The model card.

    Args:
        facts: about the model.
        repo_id: "user/name" on the hub.
        license: its identifier on the hub; None says "unknown".

    Returns:
        README.md, with its front matter.
    """
    name = repo_id.split("/")[-1]
    parts = [
        front_matter(facts, name, license),
        f"# {name}",
        _what(facts),
        "## Use",
        _use(facts, repo_id),
        "## Data",
        _data(facts),
        "## Recipe",
        _recipe(facts),
        "## Measured",
        _measured(facts),
    ]
    if facts.verdict is not None:
        found = text(facts.verdict.sentence)
        parts += ["## Diagnostics", f"Verdict on the training: **{facts.verdict.word}**. {found}"]
    parts += ["## Limits", _limits(facts, license), "## Citation", CITATION]
    return "\n\n".join(parts) + "\n"


class Markdown(str):
    """Text that is Markdown already."""


def text(value: object) -> Markdown:
    """A value escaped for Markdown, on one line: no markup, HTML or links, no end of a table cell."""
    marked = re.sub(r"([\\`*\[\]~$])|(?<!\w)(_)|(_)(?!\w)", lambda found: f"\\{found[0]}", one_line(value))
    marked = escape(marked, quote=False).replace("|", "&#124;")
    return Markdown(marked.replace("://", "&#58;//").replace("www.", "www&#46;"))


def code(value: object) -> Markdown:
    """A value as Markdown in the letters of code."""
    shown = one_line(value)
    return Markdown(f"<code>{text(shown)}</code>" if set(shown) & set("`|\\") or not shown else f"`{shown}`")


def front_matter(facts: Facts, name: str, license: str | None) -> str:
    """YAML that the hub reads, between two lines of dashes."""
    data = ModelCardData(
        model_name=name,
        license=one_line(license or "unknown"),
        library_name="nextembed",
        pipeline_tag="image-classification" if facts.is_classifier else "image-feature-extraction",
        tags=["nextembed", "nepa", "next-embedding-prediction", "self-supervised", "vision", "safetensors"],
        datasets=[facts.dataset] if facts.dataset else None,
        eval_results=_results(facts) or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(facts: Facts) -> list[EvalResult]:
    """Test scores only: validation images were used for choices, so their scores are not results."""
    data = one_line(facts.data or "unknown")
    found = []

    def add(name: str, value: float, split: str | None) -> None:
        result = EvalResult(
            task_type="image-classification",
            dataset_type=facts.dataset or data,
            dataset_name=data,
            metric_type="accuracy",
            metric_value=_share(value),
            metric_name=name,
            dataset_split=split,
        )
        found.append(result)

    if facts.is_classifier:
        if scores := facts.scores:
            add("Top-1", scores.top1, one_line(scores.split))
        return found
    for probe, title in TITLES.items():
        row = facts.probes.best(probe, facts.weights) if facts.probes else None
        if row is not None and row.accuracy is not None:
            add(f"{title}, frozen features", row.accuracy, "test")
    return found


def _share(value: float) -> float:
    return round(float(value), 4)


def _what(facts: Facts) -> str:
    config = facts.config
    attention = "causal" if config.is_causal else "full"
    kind = f"An image classifier ({facts.num_classes} classes)" if facts.is_classifier else "A vision transformer"
    trained = (
        "fine-tuned from next-embedding prediction" if facts.is_classifier else "pretrained without labels to predict"
    )
    what = f"{kind}, {trained}" + ("" if facts.is_classifier else " each next patch embedding from those before it")
    parameters = f"{facts.num_parameters / 1e6:.1f} million parameters"
    rows = [
        ("Architecture", Markdown(f"{code(config.model_type)}, {parameters}")),
        ("Size", f"width {config.hidden_size}, {config.num_hidden_layers} layers, "
                 f"{config.num_attention_heads} heads, {_mlp(config)}"),
        ("Images", f"{_pixels(config.image_size)} px, patches of {_pixels(config.patch_size)} px, "
                   f"{config.num_channels} channel(s)"),
        ("Normalisation", "not stored" if facts.mean is None else f"mean {facts.mean}, std {facts.std}"),
        ("Attention", f"{attention} unless a call says otherwise" + _trained_attention(facts)),
        ("Weights", WEIGHTS.get(facts.weights, facts.weights)),
    ]  # fmt: skip
    if facts.is_classifier:
        pooling = "mean over patches, normed" if config.add_pooling_layer else "last patch"
        rows.append(("Pooling", pooling))
    elif row := _best(facts):
        rows.append(("Best frozen feature", feature_name(row, facts.probes.num_layers if facts.probes else 0)))
    return f"{what} (NEPA, [arXiv 2512.16922]({PAPER})).\n\n" + _table(("", ""), rows)


def _mlp(config: ViTNepaConfig) -> str:
    kind = "gated " if config.use_gated_mlp else ""
    return f"MLP {kind}{config.hidden_act} {config.intermediate_size}"


def _trained_attention(facts: Facts) -> str:
    causal = facts.settings.get("objective.causal")
    return "" if causal is None else f"; {'causal' if causal else 'full'} in pretraining"


NEEDS = "The package `nextembed` has to be installed, from a clone of its repository."


def _best(facts: Facts) -> Row | None:
    return facts.probes.best(weights=facts.weights) if facts.probes else None


def _use(facts: Facts, repo_id: str) -> str:
    if facts.is_classifier:
        code = [
            "import nextembed  # registers the model",
            "from transformers import pipeline",
            "",
            f'classify = pipeline("image-classification", model="{repo_id}")',
            'print(classify("picture.jpg"))',
        ]
        return "\n".join([NEEDS, "", "```python", *code, "```"])
    row = _best(facts)
    if facts.reader is not None:
        return _use_of_objective(facts.reader, repo_id, row)
    layer = row.layer if row else -1
    causal = "" if row is None else f", is_causal={row.attention == 'causal'}"
    pooled = {"last": "[:, -1]", "first": "[:, 0]"}.get(row.pooling if row else "mean", "[:, 1:].mean(1)")
    code = [
        "import nextembed  # registers the model",
        "from PIL import Image",
        "from transformers import AutoImageProcessor, AutoModel",
        "",
        f'model = AutoModel.from_pretrained("{repo_id}").eval()',
        f'processor = AutoImageProcessor.from_pretrained("{repo_id}")',
        'inputs = processor(Image.open("picture.jpg").convert("RGB"), return_tensors="pt")',
        f"output = model(**inputs, output_hidden_states=True{causal})",
        f"features = output.hidden_states[{layer}]{pooled}  # [1, {facts.config.hidden_size}]",
    ]
    if facts.config.num_channels == 1:
        code = [line.replace('convert("RGB")', 'convert("L")') for line in code]
    return "\n".join([NEEDS, "", "```python", *code, "```"])


def _use_of_objective(reader: str, repo_id: str, row: Row | None) -> str:
    """A note about features that the objective provides: the transformer alone would give others."""
    place = "" if row is None else f', layer={row.layer}, pooling="{row.pooling}", attention="{row.attention}"'
    lines = [
        "import nextembed",
        "",
        f'features = nextembed.encode("{repo_id}", "picture.jpg"{place})  # [1, width]',
    ]
    note = (
        f"Features are read by the training objective {code(reader)}, which is in `objective/`; "
        "`AutoModel` alone gives other hidden states."
    )
    return "\n".join([NEEDS, "", "```python", *lines, "```", "", note])


def _data(facts: Facts) -> str:
    if facts.data is None:
        return "Not known: this model comes without its run folder."
    link = f"[{facts.data}](https://huggingface.co/datasets/{facts.dataset})" if facts.dataset else code(facts.data)
    rows = [(role, code(split), f"{num:,}" if num else "not counted") for role, split, num in facts.splits]
    use = "Fine-tuned on the labelled training split." if facts.is_classifier else "Labels were not used in training."
    used = data_in_words(facts.history, facts.skipped)
    left_out = f" {text(used[0].upper() + used[1:])}." if used else ""
    return f"{link}. {use}{left_out}\n\n" + _table(("role", "split", "images"), rows)


def _recipe(facts: Facts) -> str:
    if facts.run is None:
        return "Not known: this model comes without its run folder."
    lines = []
    steps, what = facts.last.get("step"), "documents" if "documents_seen" in facts.last else "images"
    seen = facts.last.get("documents_seen", facts.last.get("samples_seen"))
    if steps:
        rate = f", final training loss {facts.last['loss']:.4f}" if "loss" in facts.last else ""
        lines.append(f"{steps:,} optimizer steps" + (f", {seen:,} {what} seen" if seen else "") + rate + ".")
    if facts.recipe is None:
        return "\n".join([*lines, "The settings of the run belong to no recipe of nextembed."])
    if not facts.changes:
        lines.append(f"Recipe {code(facts.recipe)} of nextembed, unchanged.")
        return "\n".join(lines)
    shown = [(code(name), code(old), code(new)) for name, old, new in facts.changes[:MAX_CHANGES]]
    lines.append(f"Recipe {code(facts.recipe)} of nextembed, with these settings changed:")
    more = len(facts.changes) - len(shown)
    found = " ".join(lines) + "\n\n" + _table(("setting", "recipe", "this run"), shown)
    return found + (f"\n\nand {more} more." if more > 0 else "")


def _measured(facts: Facts) -> str:
    return _classifier_scores(facts) if facts.is_classifier else _probe_scores(facts)


def _classifier_scores(facts: Facts) -> str:
    scores = facts.scores
    if scores is None:
        return "Nothing: there are no scores with this model."
    top1, num = scores.top1, scores.num_images
    spread = f" (95 % range about ± {196 * (top1 * (1 - top1) / num) ** 0.5:.1f} points)" if num else ""
    counted = f"{num:,} " if num else ""
    found = f"Top-1 accuracy **{percent(top1)}** on {counted}{text(scores.split)} images{spread}."
    others = {"top5": scores.top5, "loss": scores.loss, "num_unlabelled": scores.num_unlabelled, "step": scores.step}
    rows = [(code(name), f"{value:.4g}") for name, value in others.items() if value is not None]
    return found + "\n\n" + _table(("also measured", ""), rows)


def _probe_scores(facts: Facts) -> str:
    table = facts.probes
    if table is None or not table.rows:
        return "Nothing: there are no probes with this model."
    rows = []
    for probe, title in TITLES.items():
        own, untrained = table.best(probe, facts.weights), table.best(probe, "untrained")
        for row, name in ((own, "this model"), (untrained, "the same network, untrained")):
            if row is not None:
                numbers = percent(row.validation_accuracy), percent(row.accuracy)
                rows.append((title, name, feature_name(row, table.num_layers), *numbers))
        if probe in table.pixels_validation:
            numbers = percent(table.pixels_validation[probe]), percent(table.pixels.get(probe))
            rows.append((title, "raw pixels", "", *numbers))
    head = ("probe", "", "feature", "validation", "test")
    train = (
        f"Frozen features, probes fitted on {table.images.get('train', 0):,} labelled images of {code(facts.data)}. "
    )
    return train + text(sentence(table)[-1]) + "\n\n" + _table(head, rows)


def _limits(facts: Facts, license: str | None) -> str:
    size, data = text(_pixels(facts.config.image_size)), code(facts.data or "unknown data")
    lines = [
        f"- Trained at {size} px on {data}; other kinds of images and other sizes were not measured.",
    ]
    if facts.is_classifier:
        lines.append(
            f"- It knows only its {facts.num_classes} classes and gives one of them for any image{_names(facts)}."
        )
    else:
        lines.append("- It gives features, not predictions: measure on your data how useful they are for your task.")
    if facts.probes is not None and not facts.is_classifier:
        lines.append(
            "- Probe scores come from one run and one seed; compare them with the baselines in the same table."
        )
        lines += _not_better(facts)
    if license is None:
        lines.append("- No licence was stated. Weights may also be bound by the terms of the data.")
    return "\n".join(lines)


def _not_better(facts: Facts) -> list[str]:
    """A note if the linear probe is not above its baselines."""
    table = facts.probes
    own = table.best("linear", facts.weights) if table else None
    if table is None or own is None:
        return []
    untrained = table.best("linear", "untrained")
    on_test = own.accuracy is not None
    bars = {
        "the untrained network": None
        if untrained is None
        else (untrained.accuracy if on_test else untrained.validation_accuracy),
        "raw pixels": (table.pixels if on_test else table.pixels_validation).get("linear"),
    }
    score = own.accuracy if own.accuracy is not None else own.validation_accuracy
    over = [name for name, bar in bars.items() if bar is not None and bar >= score]
    return [f"- Its linear probe is no better than {' or '.join(over)} on this data."] if over else []


def _names(facts: Facts) -> str:
    names = facts.class_names
    if not names:
        return ""
    more = f", and {len(names) - MAX_CLASSES} more" if len(names) > MAX_CLASSES else ""
    return f": {', '.join(map(text, names[:MAX_CLASSES]))}{more}"


def _pixels(size: int | Sequence[int]) -> str:
    return f"{size}" if isinstance(size, int) else " x ".join(map(str, size))


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[cell if isinstance(cell, Markdown) else text(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)

"""The verdict of a run, the same in terminal, report, model card and notebook."""

from .answers import Answers
from .objective import History, Verdict, verdict_of
from .probe_table import ProbeTable
from .scores import ClassScores, SegmentScores

Scores = ClassScores | SegmentScores


def judge(
    objective: object,
    history: History,
    probes: ProbeTable | None = None,
    scores: Scores | None = None,
    answers: Answers | None = None,
) -> Verdict:
    """The verdict on a run.

    Args:
        objective: its settings, or what config.yaml holds of them.
        history: its logged lines, oldest first.
        probes: of its features; baselines that score higher are named.
        scores: of its classes, compared with always predicting the largest class.
        answers: on documents; a model that always answers the same has collapsed.
    """
    found = verdict_of(objective, history)
    if scores is not None:
        return Verdict(found.word, compared(scores))
    if answers is not None and (sentence := answers.collapse()):
        return Verdict("collapsed", f"Same answers: {sentence} Of its latents: {found.word}. {found.sentence}")
    return against_baselines(found, probes)


def compared(scores: Scores) -> str:
    """Scores compared with the baseline that needs no model."""
    if isinstance(scores, ClassScores):
        what, own, low = "top-1", scores.top1, scores.range[0]
        name, guess = "always guessing the largest class", max(scores.counts, default=0) / max(1, scores.num_images)
    else:
        what, own, low = "mIoU", scores.miou, scores.miou
        name, guess = f"always guessing '{scores.largest.name}'", scores.guess
    figures = f"({what} {100 * own:.1f} against {100 * guess:.1f} % on {scores.num_images:,} {scores.split} images)"
    if own <= guess:
        return f"Trained on labels, but no better than {name} {figures}."
    if low <= guess:
        return f"Trained on labels; better than {name}, but not significantly {figures}."
    return f"Trained on labels; better than {name} {figures}."


def against_baselines(found: Verdict, table: ProbeTable | None) -> Verdict:
    """The verdict with the baselines that score higher in the probes: "learning" does not yet mean better than raw
    pixels."""
    best = table.best("linear") if table is not None else None
    if table is None or best is None or found.word != "learning":
        return found
    on_test = best.accuracy is not None
    own = best.accuracy if best.accuracy is not None else best.validation_accuracy
    untrained = table.best("linear", "untrained")
    baselines = {table.raw: (table.pixels if on_test else table.pixels_validation).get("linear")}
    if untrained is not None:
        baselines["the untrained network"] = untrained.accuracy if on_test else untrained.validation_accuracy
    name, value = max(((name, value) for name, value in baselines.items() if value is not None),
                      key=lambda pair: pair[1], default=("", 0.0))  # fmt: skip
    if value <= own:
        return found
    verb = "score" if name.endswith("s") else "scores"
    figures = f"({100 * value:.1f} against {100 * own:.1f} %)"
    return Verdict(found.word, f"But {name} still {verb} higher in the linear probe {figures}. {found.sentence}")

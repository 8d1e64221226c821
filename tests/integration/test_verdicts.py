"""The verdict on a run is the same in terminal, report, model card and notebook; it includes baselines and answers."""

import json
from pathlib import Path

import pytest
import torch
from emu_tiny import save_tiny_emu

from nextembed import recipes
from nextembed.cli.train import summary
from nextembed.core.answers import Answer, Answers, most_frequent
from nextembed.core.objective import OBJECTIVES, Verdict
from nextembed.core.probe_table import ProbeTable, Row
from nextembed.core.run_folder import DataCounts
from nextembed.core.scores import ClassArea, ClassScores, SegmentScores
from nextembed.core.verdicts import against_baselines, judge
from nextembed.errors import ConfigError
from nextembed.export.card import model_card
from nextembed.export.facts import gather
from nextembed.models.loading import load_model, load_processor
from nextembed.report import multimodal
from nextembed.report.multimodal import answers_of
from nextembed.report.view import read_view
from nextembed.runs import Run, open_run
from nextembed.toys.emoji_documents import EmojiDocuments
from nextembed.training.record import write_settings

LIVING = {"step": 10, "loss": -0.5, "cos_next": 0.6, "cos_current": 0.1, "cos_gap": 0.5}
LEARNING = Verdict("learning", "The gap is 0.3.")


def table(trained: float, pixels: float, untrained: float = 0.1) -> ProbeTable:
    rows = [
        Row("linear", weights, 3, "mean", "causal", validation_accuracy=value, accuracy=value)
        for weights, value in (("raw", trained), ("untrained", untrained))
    ]
    return ProbeTable(rows, pixels={"linear": pixels}, pixels_validation={"linear": pixels})


@pytest.mark.parametrize(
    ("found", "probes", "sentence"),
    [
        (LEARNING, table(0.624, 0.662), "But raw pixels still score higher in the linear probe (66.2 against 62.4 %)"),
        (LEARNING, table(0.5, 0.4, 0.55), "But the untrained network still scores higher in the linear probe (55.0 "),
        (LEARNING, table(0.7, 0.662), ""),
        (LEARNING, None, ""),
        (Verdict("collapsed", "All is one."), table(0.1, 0.9), ""),
    ],
)
def test_the_verdict_includes_the_baselines(found: Verdict, probes: ProbeTable | None, sentence: str) -> None:
    said = against_baselines(found, probes)
    assert said.word == found.word and said.sentence.startswith(sentence) and said.sentence.endswith(found.sentence)
    assert bool(sentence) == (said != found)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("latent_decoder", "decoder"),
        ("visual_decoder", "decoder"),
        ("readout", "readout"),
        ("classification", "classifier"),
        ("segmentation", "segmenter"),
    ],
)
def test_objectives_without_diagnostics_are_described(kind: str, word: str) -> None:
    for history in ([], [{"step": 1, "loss": 2.0}]):
        found = judge({"kind": kind}, history)
        assert found.word == word and "diagnostics" not in found.sentence


def test_readouts_and_text_models_are_described_by_their_losses() -> None:
    readout = judge({"kind": "readout"}, [{"mse/image": 0.0123, "mse_mean/image": 0.2}])
    assert "image with a mean squared error of 0.0123 (the mean patch: 0.2000)" in readout.sentence
    text = judge({"kind": "emu"}, [{"step": 1, "text_loss": 8.0}, {"step": 20, "text_loss": 4.0}])
    assert text.word == "language model" and "4.000 nats a token, after 8.000 at step 1" in text.sentence


@pytest.mark.parametrize(
    ("confusion", "words"),
    [
        ([[50, 0], [0, 50]], "better than always guessing the largest class (top-1 100.0 against 50.0 %"),
        ([[3, 2], [1, 4]], "not significantly (top-1 70.0 against 50.0 %"),
        ([[5, 0], [5, 0]], "no better than always guessing the largest class (top-1 50.0 against 50.0 %"),
    ],
)
def test_a_classifier_is_compared_with_the_largest_class(confusion: list[list[int]], words: str) -> None:
    total = sum(map(sum, confusion))
    top1 = (confusion[0][0] + confusion[1][1]) / total
    found = judge(
        {"kind": "classification"}, [], scores=ClassScores("test", total, top1, 1.0, 0.5, ["a", "b"], confusion)
    )
    assert found.word == "classifier" and words in found.sentence


def test_a_segmenter_is_compared_with_the_largest_class() -> None:
    areas = [ClassArea("sky", 0.3, 0.8), ClassArea("cat", 0.1, 0.2)]
    found = judge({"kind": "segmentation"}, [], scores=SegmentScores("test", 8, 100, 0.2, 0.7, areas, 32, 21))
    assert found == Verdict(
        "segmenter",
        "Trained on labels, but no better than always guessing 'sky' (mIoU 20.0 against 40.0 % on 8 test images).",
    )


def answers(said: list[str], true: list[str], before: list[str] | None = None) -> Answers:
    prompts = before or [""] * len(said)
    return Answers("validation", [Answer(b, s, t) for b, s, t in zip(prompts, said, true, strict=True)])


TRUE = ["a cat", "red heart", "two boats", "a dog", "the moon", "a flag"]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (answers(["a red face"] * 6, TRUE), "6 of 6 validation documents get the same answer, 'a red face'"),
        (answers(["A  red face"] * 3 + ["a red face."] * 2 + ["a boat"], TRUE), "5 of 6"),
        (answers([""] * 6, TRUE), "an empty answer"),
        (answers(["x y z"] * 4 + ["p", "q"], TRUE, ["what?"] * 4 + ["who?"] * 2), "with the prompt 'what?' get"),
        (answers(TRUE, TRUE), ""),
        (answers(["yes"] * 6, ["yes"] * 5 + ["no"]), ""),  # the true answers are also equal
        (answers(["a red face"] * 3, TRUE[:3]), ""),  # too few
        (answers(["a cat"] * 3 + TRUE[3:], TRUE), ""),
    ],
)
def test_identical_answers_are_a_collapse(found: Answers, words: str) -> None:
    sentence = found.collapse()
    assert (words in sentence) if words and sentence else (not words and sentence is None)
    said = judge({"kind": "emu"}, [LIVING], answers=found)
    assert said.word == ("collapsed" if words else "learning")
    assert said.sentence.startswith("Same answers: ") == bool(words)


def test_the_most_frequent_text_ignores_small_differences() -> None:
    assert most_frequent(["a man with a red hat", "a man with a red hat.", "a cat", "a boat"]) == (
        2,
        "a man with a red hat",
    )


def test_terminal_report_card_and_notebook_agree(tmp_path: Path) -> None:
    config = recipes.load("nepa_demo_tiny")
    run = tmp_path / "run"
    config.model.build([]).save_pretrained(run / "model")
    write_settings(run, config, 0, (1, 1), DataCounts())
    (run / "metrics.jsonl").write_text(json.dumps(LIVING) + "\n")
    table(0.58, 0.662).save(run / "probe.json")
    opened = open_run(run)
    found = opened.verdict()
    assert found.word == "learning" and found.sentence.startswith("But raw pixels still score higher")
    assert f"Verdict: learning. {found.sentence}" in summary(opened)
    assert found.sentence in opened._repr_html_()
    assert found.sentence in opened.report().read_text()
    assert found.sentence in model_card(gather(run), "me/mine")
    assert read_view(opened).plain()["verdict"] == found._asdict()


class DocumentRun(Run):
    """A run with a saved Emu on the bundled documents."""

    def source(self) -> EmojiDocuments:
        return EmojiDocuments(num_workers=0)


@pytest.fixture(scope="module")
def emu(tmp_path_factory: pytest.TempPathFactory) -> DocumentRun:
    folder = save_tiny_emu(tmp_path_factory.mktemp("verdicts") / "emu")
    return DocumentRun(folder, folder)


@pytest.mark.parametrize("collapsed", [True, False])
def test_an_emu_with_constant_answers_is_not_learning(
    emu: DocumentRun, collapsed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = load_model(emu.path, device="cpu"), load_processor(emu.path)
    with torch.no_grad():
        if collapsed:  # always predicts the same token
            model.get_output_embeddings().weight.zero_()
        for parameter in model.parameters():  # with small random weights, the image has almost no effect
            parameter.mul_(1 if collapsed else 12)
    monkeypatch.setattr(multimodal, "MAX_TOKENS", 6)
    monkeypatch.setattr(emu, "model", lambda weights: model)
    monkeypatch.setattr(emu, "processor", lambda weights: processor)
    found = answers_of(emu)
    assert len(found.rows) == 12 and all(row.pictures and row.true for row in found.rows)
    assert (found.collapse() is not None) == collapsed
    assert judge({"kind": "emu"}, [LIVING], answers=found).word == ("collapsed" if collapsed else "learning")
    assert Answers.load(found.save(emu.dir / "answers.json")) == found


def test_an_altered_image_of_an_answer_is_rejected(tmp_path: Path) -> None:
    row = {"before": "", "said": "a", "true": "b", "pictures": ['x" onerror="alert(1)']}
    (tmp_path / "answers.json").write_text(json.dumps({"split": "validation", "rows": [row]}))
    with pytest.raises(ConfigError, match=r"answers.json: rows.0.pictures.0"):
        Answers.load(tmp_path / "answers.json")


def test_every_objective_has_a_verdict_without_a_run() -> None:
    for kind in OBJECTIVES.classes:
        assert judge({"kind": kind}, []).sentence.endswith(".")

"""The report of an Omni run: curves by modality, and generated outputs beside the ground truth."""

import json

import pytest
import yaml

from nextembed.core.verdicts import judge
from nextembed.report import answers
from nextembed.report.answers import choose
from nextembed.report.charts import modality_charts
from nextembed.runs import open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as after training, with an untrained model."""
    import torch

    from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor

    folder = tmp_path_factory.mktemp("runs") / "omni"
    modalities = {"text": {"kind": "text"}, "image": {"kind": "image", "image_size": 16, "patch_size": 8}}
    torch.manual_seed(0)
    config = OmniConfig(modalities=modalities, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32)  # fmt: skip
    OmniForPreTraining(config).save_pretrained(folder / "model")
    OmniProcessor(modalities).save_pretrained(folder / "model")
    values = {
        "name": "omni", "data": {"kind": "emoji_documents"}, "model": {"kind": "omni", "modalities": modalities},
        "objective": {"kind": "next_embedding"},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    lines = [{"step": step, "loss": 1.0, "cos_next": 0.5, "cos_current": 0.4, "cos_gap": 0.1, "copy_win": 0.2,
              "cos_neighbours": 0.4, "cos_next/begin": 0.9, "cos_next/text": 0.2, "cos_next/image": 0.7,
              "top1/text": 0.31, "eval/top1/text": 0.25} for step in (1, 2)]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_page_shows_curves_texts_and_pictures(run):
    page = open_run(run).report().read_text()
    assert "Text and image on" in page, page[:3000]
    assert "31.0 %" in page and "top-1, text" in page
    for title in (
        "Generated text",
        "Generated images",
        "Next latent, by modality",
        "Top-1 accuracy, by modality (validation)",
    ):
        assert title in page
    assert "Documents of the validation split" in page
    assert page.count("data:image/png") >= 24  # 12 generated images, beside the true ones
    assert "There are no generated" not in page and "http://" not in page.replace("http://www.w3.org", "")


def test_a_missing_model_is_noted(run, tmp_path):
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / name).write_text((run / name).read_text())
    page = open_run(tmp_path).report().read_text()
    assert "There are no generated images" in page and "Next latent, by modality" in page


def test_a_chart_has_no_more_curves_than_colours():
    names = [f"cos_next/m{i}" for i in range(6)]
    charts = modality_charts([dict.fromkeys(names, 0.5)])
    assert [len(chart.series) for chart in charts] == [4, 2]
    assert [name for chart in charts for name in chart.series] == names
    assert modality_charts([{"loss": 1.0}]) == []


def test_documents_are_chosen_by_their_last_modality():
    text, image = {"kind": "caption", "value": "a"}, {"kind": "image", "value": None}
    documents = [{"segments": segments} for segments in ([image, text], [text], [text, image], [image, {"kind": "x"}])]
    texts, images = choose(documents, {"caption": "text", "image": "image", "x": "series"})
    assert (texts, images) == ([documents[0]], [documents[2]])


@pytest.mark.parametrize(("varied", "word"), [(False, "collapsed"), (True, "")])
def test_identical_answers_of_an_omni_are_a_collapse(run, monkeypatch, varied, word):
    said = iter(str(number) * 9 if varied else "the same" for number in range(100))
    monkeypatch.setattr(answers, "made", lambda model, documents, **options: [
        (document["segments"][:-1], next(said), document["segments"][-1]["value"]) for document in documents
    ])  # fmt: skip
    found = answers.written(open_run(run))
    assert found.model == "omni" and len(found.rows) == answers.NUM_EACH and found.rows[0].pictures
    sentence = found.collapse()
    assert (sentence is not None) == bool(word)
    if sentence:
        assert "the text does not depend on what stands before it" in sentence and "'the same'" in sentence
        verdict = judge({"kind": "next_embedding"}, open_run(run).history(), answers=found)
        assert verdict.word == "collapsed" and verdict.sentence.startswith("Same answers: ")

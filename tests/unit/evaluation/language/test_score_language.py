"""A tiny Emu is scored on every task."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from nextembed.cli import main
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.language.examples import Example
from nextembed.evaluation.language.protocols import LanguageEval, fill, with_shots
from nextembed.evaluation.language.reading import Shots, read_examples
from nextembed.evaluation.language.speaker import Speaker
from nextembed.evaluation.language.tasks import score_language
from nextembed.models.emu import EmuParts

VISION = {"model_type": "vit_nepa", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "intermediate_size": 48, "image_size": 16, "patch_size": 8}  # fmt: skip
LANGUAGE = {"model_type": "llama", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 128}  # fmt: skip
FORMER = {"d_model": 24, "d_kv": 8, "num_heads": 3, "d_ff": 32, "num_layers": 1, "dropout_rate": 0.1}
COLORS = ("red", "lime", "blue", "white", "black", "yellow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model, images, and tables that refer to them."""
    folder = tmp_path_factory.mktemp("emu")
    torch.manual_seed(0)
    parts = EmuParts(vision_config=VISION, language_config=LANGUAGE, tokenizer="bundled", num_image_latents=4,
                     causal_former=FORMER)  # fmt: skip
    model, processor = parts.build(), parts.processor()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    rows = []
    for i, color in enumerate(COLORS):
        Image.new("RGB", (20, 20), color).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": "Which colour is it?", "answer": color})
    (folder / "vqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captions = [{"image": r["image"], "captions": [f"a {r['answer']} square", "one square"]} for r in rows]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    videos = [{"video": ["0.png", "1.png"], "question": "What is it?", "answer": "cat"}] * 2
    (folder / "videos.jsonl").write_text("\n".join(map(json.dumps, videos)))
    return folder


@pytest.fixture(scope="module")
def speaker(folder):
    return Speaker.load(folder / "model")


def settings(folder, name, task, **changes):
    fast = {"num_beams": 2, "max_new_tokens": 5, "draws": 50, "batch_size": 4}
    return LanguageEval(task=task, data=str(folder / f"{name}.jsonl"), **{**fast, **changes})


def test_captions(folder, speaker):
    done = []
    scores = score_language(speaker, settings(folder, "captions", "caption"), lambda *at: done.append(at))
    assert [m.name for m in scores.metrics] == ["CIDEr", *(f"BLEU-{n}" for n in range(1, 5)), "ROUGE-L", "exact"]
    assert done == [(4, 6), (6, 6)]
    assert len(scores.answers) == 6 and scores.answers[0]["references"] == ["a red square", "one square"]
    alone = score_language(speaker, settings(folder, "captions", "caption", batch_size=1))
    assert [a["answer"] for a in alone.answers] == [a["answer"] for a in scores.answers]  # padding changes nothing


def test_questions(folder, speaker):
    scores = score_language(speaker, settings(folder, "vqa", "vqa"))
    assert [m.name for m in scores.metrics] == ["exact match"] and 0 <= scores["exact match"] <= 100
    assert "always answering 'black' scores 16.7 %" in scores.notes[-1]
    assert scores.answers[0]["prompt"] == "{image} Question: Which colour is it? Answer:"
    video = score_language(speaker, settings(folder, "videos", "video_qa"))
    assert video.answers[0]["prompt"].startswith("{video} Question: What")
    instructed = settings(folder, "vqa", "vqa", instructed=True, num_examples=1)
    assert instructed.template().endswith("{question} [ASSISTANT]: the answer is:")
    several = score_language(speaker, settings(folder, "captions", "vqa", metric="vqa", prompt="{image}A:"))
    assert several.metrics[0].name == "VQA accuracy" and several.answers[0]["prompt"] == "{image}A:"


def test_likelihood_equals_a_full_forward_pass(speaker):
    """Likelihoods from one full forward pass per candidate equal those of the cached, padded batch."""
    prompt = [{"kind": "image", "value": Image.new("RGB", (20, 20), "red")}, {"kind": "text", "value": "It is"}]
    candidates = ["red", "a bright blue square", "no"]
    found = speaker.likelihood(prompt, "x", candidates)
    longest, sums, length = 0, [], 0
    for candidate in candidates:
        ids = speaker.processor.tokenize(candidate, [*prompt, {"kind": "text", "value": ""}], 2)
        inputs = speaker.batch([prompt], ["x"], 0)
        length, longest = inputs["input_ids"].shape[1], max(longest, len(ids))
        whole = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
        with torch.no_grad():
            logits = speaker.model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits.log_softmax(-1)
        sums.append(sum(logits[0, length - 1 + i, token].item() for i, token in enumerate(ids)))
        assert found.mean[len(sums) - 1] == pytest.approx(sums[-1] / len(ids), abs=1e-4)
    assert found.reference == pytest.approx(np.array(sums) / (length + longest - 1), abs=1e-5)


def test_ranking(folder, speaker):
    scores = score_language(speaker, settings(folder, "vqa", "retrieval"))
    assert len(scores.metrics) == 10 and "by chance is 16.7 %" in scores.notes[0]
    ranks = [a["rank_mean"] for a in scores.answers]
    assert scores["MRR, per token"] == pytest.approx(100 * np.mean([1 / rank for rank in ranks]))
    assert scores["R@10, reference rule"] == 100  # there are six candidates


def test_correct_answers_reach_the_maximum(folder, speaker, monkeypatch):
    """If the answers are replaced by the correct ones, every metric is at its maximum."""
    wanted = {str(i): f"It is a {color}. Yes" for i, color in enumerate(COLORS)}
    monkeypatch.setattr(speaker, "answer", lambda prompts, keys, *rest: [wanted[key] for key in keys])
    assert score_language(speaker, settings(folder, "vqa", "vqa"))["exact match"] == 100
    captions = {str(i): f"A {color} square." for i, color in enumerate(COLORS)}
    monkeypatch.setattr(speaker, "answer", lambda prompts, keys, *rest: [captions[key] for key in keys])
    scores = score_language(speaker, settings(folder, "captions", "caption"))
    assert scores["exact"] == 100 and scores["BLEU-3"] == pytest.approx(100) and scores["ROUGE-L"] == 100


def test_shots(folder, speaker):
    wanted = settings(folder, "vqa", "vqa", shots=2)
    items = read_examples(wanted)
    shots = Shots(wanted, speaker, items, items)
    chosen = [[e.key for e in shots.of(i, item)] for i, item in enumerate(items)]
    assert all(len(set(keys)) == 2 and items[i].key not in keys for i, keys in enumerate(chosen))
    assert chosen == [[e.key for e in shots.of(i, item)] for i, item in enumerate(items)]
    assert len({tuple(keys) for keys in chosen}) > 1 and "the other items" in shots.note
    with pytest.raises(ConfigError, match="only 6 examples"):
        Shots(settings(folder, "vqa", "vqa", shots=6), speaker, items, items)


def test_similar_shots_are_the_nearest_images_in_ascending_order(folder, speaker):
    wanted = settings(folder, "vqa", "vqa", shots=2, choose="similar")
    items = read_examples(wanted)
    pictures = [Image.new("RGB", (20, 20), color) for color in COLORS]
    features = torch.nn.functional.normalize(speaker.features_of(pictures), dim=1)
    order = (features[0] @ features.T).argsort(descending=True).tolist()
    assert order[0] == 0
    found = Shots(wanted, speaker, items, items).of(0, items[0])
    assert [e.key for e in found] == [str(order[2]), str(order[1])]
    scores = score_language(speaker, wanted)
    assert scores.answers[0]["prompt"].count("{image}") == 3


def test_prompts():
    def said(segments):
        return [one["value"] for one in segments]

    image = {"kind": "image", "value": "x"}
    shot = Example("s", [image], "Big?", references=["yes"])
    one = Example("e", [image], "Red?", "a cat.")
    assert said(fill("{image}{before} Question: {question}", shot)) == ["x", " Question: Big?"]
    assert said(fill("Look: {image}Say {question}", one, images=False)) == ["Look: Say Red?"]
    prompt = with_shots("{image}Q: {question} A:", one, [shot], True, "\n")
    assert said(prompt) == ["x", "Q: Big? A: yes\n", "x", "Q: Red? A:"]
    assert [prompt[1]["value"][a:b] for a, b in prompt[1]["tokens"]] == ["Q: ", " A:", "\n"]  # from the template
    wide = fill("  {image}  Q:  {question}  A:", Example("w", [], "a  b"))
    assert said(wide) == ["Q: a b A:"] and [wide[0]["value"][a:b] for a, b in wide[0]["tokens"]][-2:] == ["Q: ", " A:"]
    ranked = Example("r", [image], "Big?", references=["no"], candidates=["yes", "no"], target=1)
    assert with_shots("{question}", one, [ranked], False, ".")[0]["value"] == "Big? no.Red?"


def test_decoding_of_benchmarks():
    assert LanguageEval(task="caption", data="x", format="coco").decoding == (20, 7, -1.0, False)
    assert LanguageEval(task="vqa", data="x", format="mmvet").decoding == (128, 0, 1.0, False)
    assert LanguageEval(task="vqa", data="x", format="okvqa", max_new_tokens=9).decoding == (9, 0, -1.0, True)
    assert LanguageEval(task="video_qa", data="x").decoding.length_penalty == 1.0


def test_mmvet_writes_answers_without_scores(folder, speaker, tmp_path):
    row = {"imagename": "0.png", "question": "What?", "answer": "x", "capability": ["ocr"]}
    file = folder / "mm-vet.json"
    file.write_text(json.dumps({"v1_0": row}))
    wanted = LanguageEval(task="vqa", data=str(file), format="mmvet", max_new_tokens=4, num_beams=1)
    scores = score_language(speaker, wanted)
    assert scores.metrics == []
    assert json.loads(scores.save(tmp_path / "out.json").read_text()) == {"v1_0": scores.answers[0]["answer"]}


class Painter:
    """Generates an image of the colour in the prompt."""

    def __init__(self, speaker):
        self.model, self.processor = speaker.model, speaker.processor

    def __call__(self, prompts, seed, **options):
        assert len(seed) == len(prompts) and options["guidance_scale"] == 7.5
        return [Image.new("RGB", (16, 16), prompt[0]["value"].split()[1]) for prompt in prompts]


def test_generated_images_of_the_right_colour_are_retrieved(folder, speaker, tmp_path):
    wanted = settings(folder, "captions", "text_to_image")
    scores = score_language(Painter(speaker), wanted, paintings=tmp_path / "painted")
    assert scores["retrieval R@1"] == 100 and scores["mean rank"] == 1
    assert scores["Frechet distance"] == pytest.approx(0, abs=1e-3)
    assert "own visual encoder" in scores.notes[0] and "16.7 %" in scores.notes[1]
    assert len(list((tmp_path / "painted").glob("*.png"))) == 6
    other = score_language(Painter(speaker), wanted.model_copy(update={"prompt": "a white picture"}))
    assert other["retrieval R@1"] == pytest.approx(100 / 6)
    assert other["Frechet distance"] > scores["Frechet distance"]


def test_command_line(folder, tmp_path, capsys):
    words = ["evaluate", str(folder / "model"), "--task", "vqa", "--data", str(folder / "vqa.jsonl"), "--shots", "1",
             "num_beams=1", "max_new_tokens=3", "draws=20", "-o", str(tmp_path / "scores.json")]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "exact match" in out and "Note: 1 shots, random" in out and "Saved:" in out
    values = json.loads((tmp_path / "scores.json").read_text())
    assert values["num_examples"] == 6 and math.isfinite(values["metrics"][0]["value"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--task", "vqa"], "needs a file of items"),
        (["--task", "vqas", "--data", "vqa.jsonl"], "task"),
        (["--task", "vqa", "--data", "none.jsonl"], "no such file"),
        (["--task", "caption", "--data", "vqa.jsonl", "--format", "visdial"], "visdial is for retrieval"),
        (["--task", "vqa", "--data", "vqa.jsonl", "num_beam=1"], "Did you mean 'num_beams'"),
        (["--task", "vqa", "--data", "vqa.jsonl", "--split", "test"], "has no splits"),
        (["--task", "video_qa", "--data", "vqa.jsonl"], "has no video"),
        (["--task", "vqa", "--data", "vqa.jsonl", "--paintings", "x"], "--paintings"),
        (["--shots", "2"], "--shots needs --task"),
    ],
)
def test_wrong_command_lines_are_one_line_errors(folder, monkeypatch, capsys, words, line):
    monkeypatch.chdir(folder)
    assert main(["evaluate", "model", *words]) in (1, 2)
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1


def test_items_that_cannot_be_used(folder, speaker):
    (folder / "broken.png").write_bytes(b"no image")
    for row, words in (
        ({"image": "broken.png", "question": "?", "answer": "x"}, "0: an image cannot be read"),
        ({"image": "0.png", "question": "word " * 300, "answer": "x"}, "0: a prompt of"),
    ):
        (folder / "bad.jsonl").write_text(json.dumps(row))
        with pytest.raises(DataError, match=words):
            score_language(speaker, settings(folder, "bad", "vqa"))


def test_folders_without_an_emu(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="contains a model of type 'llama', not 'emu'"):
        Speaker.load(tmp_path)
    with pytest.raises(ConfigError, match="has no ema weights; there is raw"):
        Speaker.load(folder / "model", "ema")

"""Lone surrogates, which JSON and file names can contain but UTF-8 cannot: a one-line error for every input."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from nextembed.cli import main
from nextembed.core.config import DATA
from nextembed.data.draws import sample_seed
from nextembed.data.stream import SkipLog
from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.held_out import held_out_loss
from nextembed.evaluation.language.layouts import read_coco
from nextembed.evaluation.language.tables import read_table
from nextembed.inference.chat import segment_of
from nextembed.inference.generate import features, load_omni
from nextembed.inference.prompts import read_prompts
from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor
from nextembed.recipes import load

HALF, SAID = "\ud83d", "half a surrogate pair"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    folder = tmp_path_factory.mktemp("omni")
    OmniForPreTraining(OmniConfig(modalities={"text": {}}, **SIZES)).save_pretrained(folder)
    OmniProcessor({"text": {}}).save_pretrained(folder)
    return folder


def test_generate_and_features_of_an_omni(omni, capsys):
    assert main(["generate", str(omni), f"a {HALF}"]) == 2
    err = capsys.readouterr().err
    assert SAID in err and err.count("\n") == 1 and "unexpected" not in err
    with pytest.raises(ConfigError, match=SAID):
        features(load_omni(omni), ["fine", HALF])


def test_the_emu_processor_and_prompts(tmp_path):
    processor = load("emu_emoji_tiny").model.processor()
    with pytest.raises(ValueError, match=SAID):
        processor([f"a {HALF}"])
    with pytest.raises(ConfigError, match=SAID):
        segment_of(HALF)
    for line in ("[" * 100_000, '{"text": ' + "9" * 10_000 + "}", "{"):
        (tmp_path / "prompts.jsonl").write_text(line)
        with pytest.raises(DataError, match=r"line 1: not JSON: .+") as caught:
            read_prompts(tmp_path / "prompts.jsonl")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        '{"question": "\\ud83d", "answer": "a"}',
        '{"question": "who?", "answer": ["\\ud83d"]}',
        "[" * 100_000,
        '{"question": "who?", "answer": "a", "candidates": ["a"], "target": "x"}',
        '{"question": "who?", "answer": {"a": 1}}',
    ],
)
def test_tables_and_annotations_of_an_evaluation(row, tmp_path):
    good = '{"question": "who?", "answer": "a", "candidates": ["a"], "target": 0}'
    (tmp_path / "rows.jsonl").write_text(f"{good}\n{row}\n")
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "rows.jsonl")
    assert "\n" not in str(caught.value)
    (tmp_path / "coco.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        read_coco(tmp_path / "coco.json", None)


def test_validation_skips_unreadable_documents(tmp_path):
    rows = [{"segments": [{"text": "fine"}]}, {"segments": [{"text": HALF}]}, {"segments": [{"series": [1, 2]}]}]
    rows += [{"segments": [{"text": "x"}] * 5000}]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DATA.parse({"kind": "interleaved", "source": str(tmp_path), "max_skipped_rate": 0.9})
    objective = SimpleNamespace(eval=lambda: None)
    found = held_out_loss(data, OmniProcessor({"text": {}}).encode_document, 64, 2, objective)
    assert sum(int(batch["document_ids"].max()) for batch in found.batches) == 1


def test_keys_and_reasons_round_trip(tmp_path):
    file = tmp_path / "skipped.jsonl"
    log = SkipLog(file, 1.0)
    log.add(f"{HALF}.png", f"'{HALF}' is no picture", 1)
    log.add("\udcff.png", "not UTF-8", 1)
    again = SkipLog(file, 1.0)
    again.check(1)
    assert again.reasons == log.reasons == {f"{HALF}.png": f"'{HALF}' is no picture", "\udcff.png": "not UTF-8"}
    assert sample_seed(0, 0, HALF) != sample_seed(0, 0, "\udcff")


def test_the_terminal_accepts_lone_surrogates(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["--version"]) == 0
    print(HALF, flush=True)
    assert out.buffer.getvalue().endswith(b"\\ud83d\n")

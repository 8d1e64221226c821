"""A foreign, edited or damaged run folder gives a report that shows its values as text, or a one-line error with the
file and the value."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from altered import ATTACK, MARK, altered, everywhere, read, texts, write
from run_folders import TASKS, make_run
from safetensors.torch import save_file
from torch import nn

from nextembed.core.run_folder import read_history
from nextembed.errors import ConfigError, NextEmbedError
from nextembed.models.nepa.configuration_nepa import ViTNepaConfig
from nextembed.models.nepa.modeling_nepa import ViTNepaForPreTraining
from nextembed.nn.readout import LatentDecoder
from nextembed.nn.value_readout import ValueReadout
from nextembed.objectives import latent_decoder, readout
from nextembed.report import charts, prediction
from nextembed.runs import open_run

STRIDE = 61  # every 61st altered value; `make abuse` uses all


class Page(HTMLParser):
    """A page as parsed by a browser."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.values, self.text = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += " ".join(value or "" for name, value in attrs if name in ("style", "class", "id", "src", "href"))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def no_charts(monkeypatch):
    monkeypatch.setattr(charts, "_svg", lambda *_: "")
    monkeypatch.setattr(prediction, "NUM_IMAGES", 3)
    monkeypatch.setattr(prediction, "NUM_INSIDE", 1)


@pytest.mark.parametrize("task", TASKS)
def test_markup_in_every_string_is_shown_as_text(task, tmp_path):
    run = make_run(tmp_path / "run", task)
    before = Page(open_run(run).report().read_text(encoding="utf-8"))
    for file in texts(run):
        write(file, everywhere(read(file), keep=("kind", "probe", "task", "weights")))
    lines = read(run / "metrics.jsonl")
    write(run / "metrics.jsonl", [line | {f"cos_next/{ATTACK}": 0.5} for line in lines])
    page = Page(open_run(run).report().read_text(encoding="utf-8"))
    assert "script" not in page.tags and page.tags <= before.tags | {"p"} and page.attributes <= before.attributes
    assert MARK not in page.values and page.text.count("<script>") > 8


@pytest.mark.parametrize("task", TASKS)
def test_an_altered_value_gives_a_page_or_a_one_line_error(task, tmp_path, no_charts):
    run = make_run(tmp_path / "run", task)
    for file in texts(run):
        value = read(file)
        for what, other in list(altered(value))[::STRIDE]:
            write(file, other)
            check(run, what)
        write(file, value)


def check(run: Path, what: str) -> None:
    """Checks for a page without scripts, or a one-line ConfigError that names a file of the run."""
    try:
        html = open_run(run).report().read_text(encoding="utf-8")
        assert "<script" not in html, what
    except NextEmbedError as err:
        assert isinstance(err, ConfigError) and str(run) in str(err) and "\n" not in str(err), f"{what}: {err}"


def test_an_altered_model_config_gives_a_page_with_a_note(tmp_path, no_charts):
    run = make_run(tmp_path / "run", "pretraining")
    torch.manual_seed(0)
    config = ViTNepaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                           image_size=16, patch_size=8)  # fmt: skip
    ViTNepaForPreTraining(config).save_pretrained(run / "model")
    assert 'class="note"' not in open_run(run).report().read_text(encoding="utf-8")
    file = run / "model" / "config.json"
    value = read(file)
    for what, other in list(altered(value))[:: 2 * STRIDE]:
        write(file, other)
        check(run, what)


@pytest.mark.parametrize(
    ("file", "place", "value", "line"),
    [
        ("probe.json", ("rows", 3, "layer"), "<b>", "probe.json: rows.3.layer should be a valid integer, got '<b>'"),
        ("environment.json", ("parameters", "all"), -1, "environment.json: parameters.all should be greater than or"),
        ("metrics.jsonl", (1, "loss"), "low", "metrics.jsonl, line 2: loss should be a valid number"),
    ],
)
def test_the_page_lists_what_it_omits(file, place, value, line, tmp_path, no_charts):
    run = make_run(tmp_path / "run", "pretraining")
    values = read(run / file)
    group = values
    for name in place[:-1]:
        group = group[name]
    group[place[-1]] = value
    write(run / file, values)
    text = Page(open_run(run).report().read_text(encoding="utf-8")).text
    assert line in text, text


def test_a_setting_of_the_wrong_type_is_reported(tmp_path):
    run = make_run(tmp_path / "run", "pretraining")
    values = read(run / "config.yaml")
    write(run / "config.yaml", values | {"objective": {"kind": ["a"]}})
    with pytest.raises(ConfigError, match=r"config\.yaml: objective\.kind should be a valid string, got \['a'\]"):
        open_run(run).report()
    (run / "config.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: it should be a valid dictionary"):
        open_run(run).report()


def test_null_is_not_a_number(tmp_path):
    run = make_run(tmp_path / "run", "pretraining")
    write(run / "metrics.jsonl", [{"step": 1, "loss": None, "cos_next": float("nan"), "psnr": float("inf")}])
    assert read_history(run) == [{"step": 1}]


@pytest.mark.parametrize("objective", ["latent_decoder", "readout"])
def test_an_altered_file_beside_the_model_is_a_one_line_error(objective, tmp_path):
    folder = tmp_path / ("decoder" if objective == "latent_decoder" else "readout")
    if objective == "latent_decoder":
        part: nn.Module = LatentDecoder(16, (8, 8), 3, 8, 1, 2)
        values = {"kind": latent_decoder.MARK, "source": "latents", **part.shape, "mark": [0.5] * 8}
        load = latent_decoder.load_decoder
    else:
        own = ValueReadout(16, 4, "linear")
        part = nn.ModuleDict({"image": own})
        values = {"kind": readout.MARK, "source": "latents", "readouts": {"image": own.shape}, "mark": [0.5] * 8}
        load = readout.load_readouts
    folder.mkdir()
    save_file(part.state_dict(), folder / "model.safetensors")
    write(folder / "config.json", values)
    load(tmp_path)
    for what, other in list(altered(values))[:: STRIDE // 7]:
        write(folder / "config.json", other)
        try:
            load(tmp_path)
        except ConfigError as err:
            assert str(tmp_path) in str(err) and "\n" not in str(err), what

"""The documentation matches the code: its Python code runs, its commands use valid settings, its links work."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

import nextembed
from nextembed import recipes
from nextembed.cli import app
from nextembed.cli.language import language_settings
from nextembed.cli.samples import sample_settings
from nextembed.comparison.scores import RunScores
from nextembed.comparison.settings import CompareSettings
from nextembed.comparison.table import rows_of
from nextembed.core.config import apply_overrides
from nextembed.evaluation.language import LanguageEval

OWN = ("my_recipe.py:small_patches", "my_masked.py:masked")
ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("*.md"))]
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str, str]]:
    """(page, title, text) of each fenced block in a language."""
    found = []
    for page in PAGES:
        for name, title, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if name == language:
                found.append((page.relative_to(ROOT).as_posix(), title, text))
    return found


def commands() -> list[list[str]]:
    """Every `nextembed ...` line in the docs, split into words, without comments and line continuations."""
    lines = [line for _, _, text in blocks("sh") for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    words = [w[w.index("nextembed_cli") :] if "nextembed_cli" in w else w for w in words]
    return [w[1:] for w in words if w and w[0] in ("nextembed", "nextembed_cli") and not w[1].startswith("--")]


@pytest.fixture
def user_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the titled files of the docs."""
    monkeypatch.chdir(tmp_path)
    for _, title, text in blocks("python"):
        if title:
            (tmp_path / title).write_text(text)
    return tmp_path


def tiny(config: Any, **parts: Any) -> Any:
    """The tiny twin of a recipe with the given parts."""
    small = recipes.load(f"{config.name}_tiny")
    return small.model_copy(update={"output_dir": "runs", **parts})


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained run."""
    config = tiny(recipes.nepa_demo(), name="mine", output_dir=str(tmp_path_factory.mktemp("runs")))
    config.probe.enabled = False
    return nextembed.fit(config).dir


@pytest.fixture
def runs(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs/` in the current folder, with the run `mine`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(mine, tmp_path / "runs" / "mine")
    return tmp_path / "runs"


def options_of(command: str) -> set[str]:
    """The options of a command, including --debug and --code."""
    group: Any = typer.main.get_command(app)
    found = group.commands[command]
    return {"--debug", "--code"}.union(*(one.opts for one in found.get_params(found.context_class(found))))


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words))
def test_each_command_exists(words: list[str], user_files: Path) -> None:
    command, *rest = words
    assert command in {info.name or info.callback.__name__ for info in app.registered_commands}  # type: ignore[union-attr]
    options = [word for word in rest if re.match(r"--?[a-z]", word)]
    assert set(options) <= options_of(command)
    if command in ("export", "convert", "push", "generate", "chat"):  # their arguments are not settings
        return
    overrides = [word for word in rest if "=" in word]
    if "--task" in rest:
        task = rest[rest.index("--task") + 1]
        if task == "samples":
            assert isinstance(sample_settings(overrides), nextembed.SampleEval)
            return
        assert isinstance(language_settings(task, "items.jsonl", {}, overrides), LanguageEval)
        return
    named = [word for word in rest if "=" not in word and not word.startswith("-")]
    if command in ("train", "recipes") and named and named[0] in (*recipes.recipes(), *OWN):
        config = apply_overrides(recipes.load(named[0]), overrides)
    else:
        config = apply_overrides(recipes.load("nepa_demo"), overrides)
    assert isinstance(config, nextembed.RunConfig)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 20


def run_python(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs blocks in sequence, with tiny runs instead of long ones; returns their variables."""
    fit = nextembed.fit
    small = lambda config: tiny(recipes.load(config) if isinstance(config, str) else config)  # noqa: E731
    monkeypatch.setattr(nextembed, "fit", lambda config: fit(small(config)), raising=False)
    names: dict[str, Any] = {"picture": Image.new("RGB", (20, 20), "red")}
    for text in texts:
        exec(compile(text, "docs", "exec"), names)
    return names


def test_readme_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((_, _, text),) = [block for block in blocks("python") if block[0] == "README.md"]
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    text = text.replace("hidden_states[3]", "hidden_states[1]")  # the tiny twin has two layers
    features = run_python([text], monkeypatch)["features"]
    assert features.shape == (1, 32)


def test_hugging_face_python(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for page, _, text in blocks("python") if page in ("docs/quickstart.md", "docs/huggingface.md")]
    names = run_python(texts, monkeypatch)
    assert names["features"].shape == (1, 32) and names["latents"].shape == (1, 4, 32)


def test_visualize_python(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipes.load("latent_decoder_tiny").model_copy(update={"name": "latent_decoder"})
    config.probe.enabled = False
    nextembed.fit(config)
    names = run_python([text for page, _, text in blocks("python") if page == "docs/visualize.md"], monkeypatch)
    assert names["surprise"].shape == (1, 9) and names["pixels"].shape == (1, 3, 24, 24)
    assert Path("inside.png").is_file()


def test_finetune_python(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lora in (("flowers", "null"), ("flowers_lora", "{rank: 2}")):
        tuned = tiny(recipes.finetune(), name=name)
        changes = ["model.architecture=null", "model.pretrained=runs/mine/model", f"train.lora={lora}"]
        nextembed.fit(apply_overrides(tuned, changes))
    names = run_python([text for page, _, text in blocks("python") if page == "docs/finetune.md"], monkeypatch)
    assert names["answers"][0]["label"] in names["names"].values()
    assert Path("classes.txt").read_text().splitlines()[:2] == ["activities", "animals & nature"]
    assert names["model"].peft_config["default"].r == 2


def test_export_python(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_python([text for page, _, text in blocks("python") if page == "docs/export.md"], monkeypatch)
    assert {"mine.onnx", "mine.pt2", "hub_folder"} <= {path.name for path in tmp_path.iterdir()}
    about = (tmp_path / "hub_folder" / "README.md").read_text()
    assert "nothing" in about.lower() and str(tmp_path) not in about


def test_compare_python(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [RunScores("nepa", seed, values={"linear": 0.5 + 0.1 * seed}) for seed in range(3)]
    made = nextembed.Comparison("demo", "5 minutes", rows_of(runs), runs)
    give = lambda *_, settings: made if CompareSettings(**settings) else None  # noqa: E731
    monkeypatch.setattr(nextembed, "compare", give, raising=False)
    names = run_python([text for page, _, text in blocks("python") if page == "docs/compare.md"], monkeypatch)
    assert names["best"] == "nepa" and names["spread"] == pytest.approx(0.1)


def test_features_python(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20), "blue").save(name)
    nextembed.embed("runs/mine", ".", "features.parquet")
    file, *texts = [text for page, _, text in blocks("python") if page == "docs/features.md"]
    names = run_python([file, *texts], monkeypatch)
    assert names["feature"].shape == (1, 32) and names["features"].shape == (2, 32)
    assert names["done"].num_rows > 100 and names["hit"].rank == 3


def test_data_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_python([text for page, _, text in blocks("python") if page == "docs/data.md"], monkeypatch)
    assert names["done"].shards.splits["train"].rows > 1000 and names["done"].skipped == []
    first = next(names["data"].rows("train").read(0, 0, 0, 1))
    assert first["image"].startswith(b"\x89PNG") and first["label"] >= 0


def test_segmentation_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nextembed.fit(tiny(recipes.emoji_scenes(), name="segmenter"))
    names = run_python([text for page, _, text in blocks("python") if page == "docs/segmentation.md"], monkeypatch)
    assert names["classes"].shape == (20, 20)
    assert {answer["label"] for answer in names["answers"]} <= set(names["model"].config.label2id)


def test_evaluate_language_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nextembed.fit(tiny(recipes.emu_emoji(), name="emu_emoji"))
    Image.new("RGB", (20, 20), "red").save("a.png")
    Path("captions.jsonl").write_text('{"image": "a.png", "captions": ["a red square", "red"]}\n')
    texts = [text for page, _, text in blocks("python") if page == "docs/evaluate_language.md"]
    assert run_python(texts, monkeypatch)["scores"].num_examples == 1
    assert Path("scores.json").is_file()


def test_emu_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_python([text for page, _, text in blocks("python") if page == "docs/emu.md"], monkeypatch)
    assert names["latents"].shape == (1, 4, 64) and names["ids"].shape[0] == 1


def test_plan_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """At full size, because a plan trains nothing."""
    ((_, _, text),) = [block for block in blocks("python") if block[0] == "docs/plan.md"]
    made = run_python([text], monkeypatch)["made"]
    assert made.devices == 2 and made.batch_size == recipes.nepa_demo().train.batch_size
    assert 0 < made.memory["optimizer"] < made.peak < 8 * 2**30 and made.hours > 0
    assert capsys.readouterr().out.startswith(f"{made.verdict} {made.peak / 2**30}")


def test_all_python_code_of_the_docs_is_run() -> None:
    """Each page with Python code is run by some test."""
    tests = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parents[1].rglob("test_*.py"))
    for page, title, _ in blocks("python"):
        assert title or re.search(rf'"{re.escape(Path(page).name)}"|{re.escape(page)}"', tests), page


def test_omni_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    *texts, readouts = [text for page, _, text in blocks("python") if page == "docs/omni.md"]
    names = run_python(texts, monkeypatch)
    assert names["caption"].kind == "text" and names["apple"].value.shape == (3, 32, 32)
    assert names["scores"].shape == names["fair"].shape == (3,) and not torch.equal(names["scores"], names["fair"])
    assert len(names["several"]) == 2 and names["out"].latents.shape[0] == 2 and names["out"].loss.isfinite()
    (probing,) = [text for page, _, text in blocks("python") if page == "docs/probing.md"]
    exec(compile(probing.replace("runs/omni_emoji", str(names["run"].dir)), "docs", "exec"), names)
    assert names["vectors"].shape == (2, names["model"].config.hidden_size)
    small = tiny(recipes.omni_emoji_readout(), name="omni_emoji_readout")
    nextembed.run.fit(apply_overrides(small, [f"model.pretrained={names['run'].dir}/model"]))
    before = names["apple"].values
    exec(compile(readouts, "docs", "exec"), names)
    assert not torch.equal(names["apple"].values, before)


def test_recipes_python(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, _, text),) = [block for block in blocks("python") if block[0] == "docs/recipes.md"]
    config = run_python([text], monkeypatch)["config"]
    assert (config.train.max_steps, config.objective.input_mask_rate) == (500, 0.4)


def test_own_objective_and_data_train_a_step(user_files: Path) -> None:
    config = apply_overrides(
        recipes.load("nepa_demo_tiny"),
        [
            "name=own",
            "objective={kind: my_objective.py:MaskedSquared, head_bias: false}",
            "data={kind: my_data.py:Stripes, num_images: 40, num_workers: 0}",
        ],
    )
    run = nextembed.fit(config)
    assert run.metrics["step"] == 2
    assert run.metrics["probe/linear_pixels"] > 0.5  # two classes that differ in their pixels
    again = nextembed.runs.read_run_config(run.dir)
    assert again.objective.kind == f"{user_files.resolve()}/my_objective.py:MaskedSquared"


def test_own_task_evaluates_a_run(user_files: Path) -> None:
    config = apply_overrides(
        recipes.load("nepa_demo_tiny"),
        ["name=judged", "objective=my_task.py:RetrievalObjective", "train.probe_steps=1", "data.num_workers=0"],
    )
    nextembed.allow_code("my_task.py")
    own = {**config.model.model_dump(exclude={"kind"}), "kind": "my_task.py:RetrievalModel"}
    config = config.model_copy(update={"model": nextembed.core.config.MODELS.parse(own)})
    run = nextembed.fit(config)
    assert run.task.name == "retrieval" and 0 <= run.metrics["retrieval"] <= 1
    score = json.loads((run.dir / "best" / "score.json").read_text())
    assert score["metric"].endswith("retrieval") and (run.dir / "report.html").is_file()
    assert "Retrieval on validation" in run.task.summary(run)[0]


def test_own_modality_round_trip(user_files: Path) -> None:
    nextembed.allow_code("my_touch.py")
    parts = nextembed.OmniParts(
        modalities={"text": {}, "touch": {"kind": "my_touch.py:Touch", "channels": 4}},
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model, processor = parts.build(), parts.processor()
    signal = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    inputs = processor([["it feels", {"touch": signal}]])
    assert inputs["values.touch"].shape == (6, 4)
    assert model.embed(inputs).z.shape == (1, 1 + len("it feels") + 1 + 6, 16)
    assert torch.equal(processor.read("touch", inputs["values.touch"], (6,)), signal)
    with pytest.raises(ValueError, match=r"touch is \[4, T\], not \[3, 6\]"):
        processor([[{"touch": signal[:3]}]])


def test_own_recipe_is_a_config(user_files: Path) -> None:
    config = recipes.load("my_recipe.py:small_patches")
    assert (config.name, config.model.patch_size) == ("small_patches", 2)
    config = recipes.load("my_masked.py:masked")
    assert (config.objective.mask_rate, config.optim.learning_rate) == (0.4, 1e-3)
    assert config.objective.kind.endswith("my_objective.py:MaskedSquared")
    assert "latent_std" in nextembed.fit(nextembed.recipes.tiny(config)).metrics


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_are_valid(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http") and "reference/" not in target:  # pages that are generated with the site
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_recipe_and_objective_switch_is_documented() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    for name in recipes.recipes():
        assert name.removesuffix("_tiny") in pages["recipes.md"]
    for field in (
        "shift",
        "stop_gradient",
        "causal",
        "input_mask_rate",
        "target",
        "distance",
        "steps_ahead",
        "every_layer",
    ):
        assert field in nextembed.NextEmbeddingSettings.model_fields and f"`{field}`" in pages["objectives.md"]

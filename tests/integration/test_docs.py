"""The documentation says what the code does: its Python runs, its commands name real settings, its links lead on."""

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nextembed
from nextembed import recipes
from nextembed.cli import app
from nextembed.core.config import apply_overrides

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*.md"))]
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
    """Every `nextembed ...` line in the docs, as words; comments and line ends joined by a backslash removed."""
    lines = [line for _, _, text in blocks("sh") for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    words = [w[w.index("nextembed_cli") :] if "nextembed_cli" in w else w for w in words]
    return [w[1:] for w in words if w and w[0] in ("nextembed", "nextembed_cli")]


@pytest.fixture
def user_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the titled files of the docs in it."""
    monkeypatch.chdir(tmp_path)
    for _, title, text in blocks("python"):
        if title:
            (tmp_path / title).write_text(text)
    return tmp_path


def tiny(config: Any, **parts: Any) -> Any:
    """A recipe's twin with the given parts, in place of the full size."""
    small = recipes.load(f"{config.name}_tiny")
    return small.model_copy(update={"output_dir": "runs", **parts})


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words))
def test_each_command_is_one_we_have(words: list[str], user_files: Path) -> None:
    command, *rest = words
    assert command in {info.name or info.callback.__name__ for info in app.registered_commands}  # type: ignore[union-attr]
    options = [word for word in rest if word.startswith("--")]
    known = {"--data", "--resume", "--open", "--output", "--debug"}
    if command in ("export", "convert", "push"):
        of_command = next(info.callback for info in app.registered_commands if info.callback.__name__ == command)
        known |= {f"--{name.replace('_', '-')}" for name in inspect.signature(of_command).parameters} | {"--full"}
        assert set(options) <= known
        return
    assert set(options) <= known
    overrides = [word for word in rest if "=" in word]
    named = [word for word in rest if "=" not in word and not word.startswith("--")]
    if command in ("train", "recipes") and named and named[0] in (*recipes.recipes(), "my_recipe.py:small_patches"):
        config = apply_overrides(recipes.load(named[0]), overrides)
    else:
        config = apply_overrides(recipes.load("nepa_demo"), overrides)
    assert isinstance(config, nextembed.RunConfig)


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 20


def run_python(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs blocks one after the other, with tiny runs in place of long ones; gives their names."""
    fit = nextembed.fit
    monkeypatch.setattr(nextembed, "fit", lambda config: fit(tiny(config)), raising=False)
    names: dict[str, Any] = {"picture": Image.new("RGB", (20, 20), "red")}
    for text in texts:
        exec(compile(text, "docs", "exec"), names)
    return names


def test_readme_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((_, _, text),) = [block for block in blocks("python") if block[0] == "README.md"]
    assert len([line for line in text.splitlines() if line.strip()]) <= 12
    text = text.replace("hidden_states[3]", "hidden_states[1]")  # the twin has two layers
    features = run_python([text], monkeypatch)["features"]
    assert features.shape == (1, 32)


def test_hugging_face_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(recipes.nepa.nepa_demo(), name="mine")
    config.probe.enabled = False
    nextembed.fit(config)
    texts = [text for page, _, text in blocks("python") if page in ("docs/quickstart.md", "docs/huggingface.md")]
    names = run_python(texts, monkeypatch)
    assert names["features"].shape == (1, 32) and names["latents"].shape == (1, 4, 32)


def test_export_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny(recipes.nepa.nepa_demo(), name="mine")
    config.probe.enabled = False
    nextembed.fit(config)
    run_python([text for page, _, text in blocks("python") if page == "docs/export.md"], monkeypatch)
    assert {"mine.onnx", "mine.pt2", "hub_folder"} <= {path.name for path in tmp_path.iterdir()}
    about = (tmp_path / "hub_folder" / "README.md").read_text()
    assert "nothing" in about.lower() and str(tmp_path) not in about


def test_recipes_python(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, _, text),) = [block for block in blocks("python") if block[0] == "docs/recipes.md"]
    config = run_python([text], monkeypatch)["config"]
    assert (config.train.max_steps, config.objective.input_mask_rate) == (500, 0.4)


def test_own_objective_and_data_train_a_step(user_files: Path) -> None:
    config = apply_overrides(
        recipes.load("nepa_demo_tiny"),
        [
            "name=own",
            "objective={kind: my_objective.py:NextSquared, head_bias: false}",
            "data={kind: my_data.py:Stripes, num_images: 40, num_workers: 0}",
        ],
    )
    run = nextembed.fit(config)
    assert run.metrics["step"] == 2
    assert run.metrics["probe/linear_pixels"] > 0.5  # two classes that pixels tell apart
    again = nextembed.run.read_run_config(run.dir)
    assert again.objective.kind == f"{user_files.resolve()}/my_objective.py:NextSquared"


def test_own_recipe_is_a_config(user_files: Path) -> None:
    config = recipes.load("my_recipe.py:small_patches")
    assert (config.name, config.model.patch_size) == ("small_patches", 2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http"):
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

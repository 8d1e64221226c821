"""An objective with its own features is saved with the model and is used wherever features are read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nextembed
from nextembed import recipes
from nextembed.errors import ConfigError
from nextembed.evaluation.features.encoder import Encoder, encode
from nextembed.objectives.saved import load_objective, objective_beside
from nextembed.tasks.pretraining import models_of, probe, readers_of
from nextembed.training.checkpoint import last_checkpoint

PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
FILE = "objective.py"
SOURCE = """
import torch
from nextembed import Objective, ObjectiveOutput, ObjectiveSettings
from nextembed.core.types import Hidden


class Table(ObjectiveSettings):
    width: int = 8

    def build(self, backbone):
        return TableObjective(self, backbone)


class TableObjective(Objective):
    reads_itself = True

    def __init__(self, settings, backbone):
        super().__init__(settings)
        self.table = torch.nn.Linear(backbone.config.hidden_size, settings.width)

    def count_targets(self, batch):
        return torch.tensor(len(batch["pixel_values"]))

    def forward(self, backbone, batch):
        return ObjectiveOutput(self.read(backbone, batch).last.square().mean((1, 2)).sum(), self.count_targets(batch))

    def read(self, backbone, batch, attention=None, output_layers=False):
        hidden = super().read(backbone, batch, attention, True)
        return Hidden(self.table(hidden.last), tuple(map(self.table, hidden.layers)))
"""


def train(folder: Path, objective: dict[str, object] | None = None) -> nextembed.Run:
    config = recipes.load("nepa_demo_tiny")
    config.output_dir, config.train.max_steps, config.train.save_steps = str(folder), 2, 1
    config.train.ema_decay, config.data.num_workers = 0.5, 0
    if objective is not None:
        config.objective = objective
    return nextembed.fit(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> nextembed.Run:
    folder = tmp_path_factory.mktemp("own")
    (folder / FILE).write_text(SOURCE)
    nextembed.allow_code(folder / FILE)
    return train(folder, {"kind": f"{folder / FILE}:Table", "width": 5})


def by_hand(run: nextembed.Run, folder: Path, layer: int, objective: Path | None = None) -> torch.Tensor:
    """The mean over patches of a layer's hidden states, mapped by the table."""
    model = nextembed.open_run(folder).model(device="cpu")
    weights = load_file((objective or run.dir / "objective") / "model.safetensors")
    batch = {"pixel_values": torch.nn.functional.interpolate(PIXELS, model.config.image_shape)}
    with torch.no_grad():
        hidden = model.encode(model.embed(batch), "causal", output_layers=True).layers[layer]
        return nn.functional.linear(hidden, weights["table.weight"], weights["table.bias"])[:, 1:].mean(1)


def encoded(encoder: Encoder) -> torch.Tensor:
    size = encoder.preprocessing.size
    images = torch.nn.functional.interpolate(PIXELS, (size, size))
    mean, std = encoder.preprocessing.mean, encoder.preprocessing.std
    found = encoder.objective.read(encoder.trunk, {"pixel_values": images}, "causal", True)
    assert (mean, std) == (0.5, 0.5) and encoder.place.key.attention == "causal"
    return found.layers[encoder.place.key.layer][:, 1:].mean(1)


def test_the_objective_is_saved_beside_the_model_and_in_checkpoints(run: nextembed.Run) -> None:
    checkpoint = last_checkpoint(run.dir)
    assert checkpoint is not None
    for folder in (run.dir, checkpoint):
        values = json.loads((folder / "objective" / "config.json").read_text())
        assert values["kind"] == "objective" and values["settings"]["width"] == 5
        assert values["settings"]["kind"].endswith(f"{FILE}:Table")
        assert set(load_file(folder / "objective" / "model.safetensors")) == {"table.weight", "table.bias"}
    beside = {place: objective_beside(place) for place in (run.dir / "model", run.dir / "ema", checkpoint, run.dir)}
    assert set(beside.values()) == {run.dir / "objective", checkpoint / "objective"}
    assert objective_beside(checkpoint / "ema") == checkpoint / "objective" and objective_beside("owner/name") is None


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_encode_uses_the_features_of_the_objective(run: nextembed.Run, weights: str) -> None:
    encoder = Encoder(run.dir, layer=1, pooling="mean", attention="causal", weights=weights)
    expected = by_hand(run, run.dir / {"raw": "model", "ema": "ema"}[weights], 1)
    image = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
    assert encode(encoder, image).shape == (1, 5)
    assert torch.allclose(encoded(encoder).cpu(), expected, atol=1e-5)


def test_the_digest_of_an_encoder_includes_the_objective(run: nextembed.Run, tmp_path: Path) -> None:
    shutil.copytree(run.dir, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "objective" / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "run/objective/model.safetensors")
    assert Encoder(tmp_path / "run", layer=1).digest() != Encoder(run.dir, layer=1).digest()


def test_probes_and_the_untrained_baseline_use_the_objective(run: nextembed.Run) -> None:
    models = models_of(nextembed.open_run(run.dir))
    readers = readers_of(nextembed.open_run(run.dir), models)
    assert set(readers) == set(models) == {"raw", "ema", "untrained"}
    batch = {"pixel_values": torch.nn.functional.interpolate(PIXELS, models["raw"].config.image_shape)}
    shapes = {name: read(models[name], batch, "full", True).layers[-1].shape[-1] for name, read in readers.items()}
    assert set(shapes.values()) == {5}
    fresh = readers_of(nextembed.open_run(run.dir), models)["untrained"]
    first, again = (read(models["untrained"], batch, "full", True).last for read in (readers["untrained"], fresh))
    assert torch.equal(first, again)
    assert not torch.equal(first, readers["raw"](models["untrained"], batch, "full", True).last)


def test_a_table_of_zeros_makes_features_uninformative(run: nextembed.Run, tmp_path: Path) -> None:
    shutil.copytree(run.dir, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "objective" / "model.safetensors")
    save_file({name: 0 * value for name, value in weights.items()}, tmp_path / "run/objective/model.safetensors")
    opened = nextembed.open_run(tmp_path / "run")
    config = opened.probe_settings().model_copy(update={"layers": [0, -1], "attentive": True, "attentive_epochs": 1})
    table = probe(opened, config=config)
    rows = [row for row in table.rows if row.weights in ("raw", "ema") and row.probe == "linear"]
    assert rows and len({row.validation_accuracy for row in rows}) == 1  # all features are equal
    trained = probe(nextembed.open_run(run.dir), config=config)
    assert len({row.validation_accuracy for row in trained.rows if row.probe == "linear"}) > 1


def test_the_report_uses_the_objective_and_notes_it(run: nextembed.Run) -> None:
    seen = nextembed.visualize(run.dir, torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy())
    assert {features.shape[-1] for features in seen.inside.layers.values()} == {5}
    assert any("its objective reads" in note for note in seen.inside.notes)
    assert run.report().is_file()


def test_loading_errors_are_one_line(run: nextembed.Run, tmp_path: Path) -> None:
    model = nextembed.open_run(run.dir).model(device="cpu")
    for name, change in (
        ("weights", lambda folder: (folder / "model.safetensors").write_bytes(b"x")),
        ("settings", lambda folder: (folder / "config.json").write_text('{"kind": "objective", "settings": 3}')),
        ("kind", lambda folder: (folder / "config.json").write_text('{"kind": "omni", "settings": {}}')),
        (
            "strange",
            lambda folder: (folder / "config.json").write_text('{"kind": "objective", "settings": {}}'),
        ),
    ):
        shutil.copytree(run.dir / "objective", tmp_path / name)
        change(tmp_path / name)
        with pytest.raises(ConfigError) as err:
            load_objective(tmp_path / name, model)
        assert "\n" not in str(err.value)


def test_objectives_that_read_the_model_are_not_saved(tmp_path: Path) -> None:
    run = train(tmp_path)
    assert not list(run.dir.rglob("objective")) and Encoder(run.dir, layer=1).objective is None
    assert readers_of(run, models_of(run)) == {}

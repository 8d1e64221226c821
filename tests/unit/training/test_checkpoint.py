import json

import pytest
import torch
from safetensors.torch import load_file

from nextembed.core.files import saving
from nextembed.core.objective import PretrainingModel
from nextembed.core.optim import OptimConfig
from nextembed.errors import ConfigError, TrainingError
from nextembed.models.nepa.settings import NepaModel
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training import checkpoint
from nextembed.training.optim import build_optimizer
from nextembed.training.watch import EmaWeights


def net(**objective):
    backbone = NepaModel(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4).build()
    return PretrainingModel(backbone, NextEmbeddingSettings(**objective).build(backbone))


def test_leftovers_are_removed_and_never_used_as_checkpoints(tmp_path):
    for name in (
        "checkpoints/.tmp-step-000009-0123abcd/ema",
        "checkpoints/step-000004",
        "checkpoints/step-000010",
        ".tmp-model-0123abcd",
    ):
        (tmp_path / name).mkdir(parents=True)
    assert checkpoint.last_checkpoint(tmp_path).name == "step-000010"
    checkpoint.clean(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000004", "step-000010"]
    assert not (tmp_path / ".tmp-model-0123abcd").exists()


def test_no_checkpoint(tmp_path):
    assert checkpoint.last_checkpoint(tmp_path) is None
    assert checkpoint.start_state(None) is None


def written(run_dir, step):
    folder = checkpoint.step_dir(run_dir, step)
    folder.mkdir(parents=True)
    (folder / "checksums.json").write_text("{}")
    return folder


def test_prune_removes_only_own_checkpoints(tmp_path):
    """A link or a foreign folder with the name of a checkpoint is not removed."""
    other = written(tmp_path / "other", 1)
    checkpoint.step_dir(tmp_path, 2).mkdir(parents=True)
    for step in (3, 4):
        written(tmp_path, step)
    checkpoint.step_dir(tmp_path, 1).symlink_to(other)
    checkpoint.prune(tmp_path, 1)
    assert (other / "checksums.json").is_file()
    assert sorted(path.name[-1] for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2", "4"]


def test_prune_keeps_the_newest(tmp_path):
    for step in (8, 900_000, 1_000_000, 99):
        written(tmp_path, step)
    checkpoint.prune(tmp_path, 2)
    assert [checkpoint.checkpoint_step(p) for p in checkpoint.checkpoints(tmp_path)] == [900_000, 1_000_000]


@pytest.mark.parametrize(
    ("err", "words"),
    [
        (OSError(28, "full\nmore"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "the disk is full"),
        (ConfigError("cannot write x: Read-only file system"), "cannot write x: Read-only file system"),
    ],
)
def test_a_failed_write_is_a_training_error(tmp_path, err, words):
    with (
        pytest.raises(TrainingError, match=f"^saving step 3 failed: {words}"),
        saving(tmp_path, "saving step 3"),
    ):
        raise err


def test_a_deleted_run_folder_is_not_recreated(tmp_path):
    run_dir = tmp_path / "run"
    said = pytest.raises(TrainingError, match=r"^saving step 3 failed: the run folder .*run is gone$")
    with said, saving(run_dir, "saving step 3"):
        raise AssertionError("nothing is written")
    assert not run_dir.exists()


def saved(model, folder, ema=None):
    optimizer = build_optimizer(model, OptimConfig(learning_rate=1e-2))
    step(model, optimizer)
    progress = checkpoint.Progress(7, 9, [{"data": {"next": 4}, "averages": {}}])
    checkpoint.save(checkpoint.step_dir(folder, 7), model, optimizer, ema, progress, None)
    return optimizer, checkpoint.step_dir(folder, 7)


def step(model, optimizer):
    torch.manual_seed(0)
    model(
        {"pixel_values": torch.randn(2, 3, 8, 8), "latent_mask": torch.ones(2, 5, dtype=torch.bool)}
    ).loss_sum.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_complete_training_state_is_restored(tmp_path):
    first, second = net(target="teacher", steps_ahead=[1, 2]), net(target="teacher", steps_ahead=[1, 2])
    emas = [EmaWeights(0.9, model.backbone) for model in (first, second)]
    own, folder = saved(first, tmp_path, emas[0])
    other = build_optimizer(second, OptimConfig(learning_rate=1e-2))
    places = {name: value.data_ptr() for name, value in second.state_dict().items()}
    progress = checkpoint.load(folder, second, other, emas[1])
    assert progress.step == 7 and progress.ranks[0]["data"] == {"next": 4}
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values()):
        assert torch.equal(a, b), name
    assert all(torch.equal(emas[1].weights[name], value) for name, value in emas[0].weights.items())
    assert {name: value.data_ptr() for name, value in second.state_dict().items()} == places  # loaded in place
    for p in own.state:  # as after seven steps
        own.state[p]["step"].fill_(7)
    for model, optimizer in ((first, own), (second, other)):
        step(model, optimizer)
    for (name, a), b in zip(first.named_parameters(), second.parameters()):
        assert torch.equal(a, b), name


def test_missing_averages_start_at_the_weights(tmp_path):
    first, second = net(), net()
    _, folder = saved(first, tmp_path)
    ema = EmaWeights(0.9, second.backbone)
    checkpoint.load(folder, second, build_optimizer(second, OptimConfig(learning_rate=1e-2)), ema)
    assert all(torch.equal(ema.weights[name], value) for name, value in first.backbone.named_parameters())


def test_another_objective_is_a_config_error(tmp_path):
    _, folder = saved(net(), tmp_path)
    other = net(target="teacher")
    with pytest.raises(ConfigError, match=r"does not fit this config: objective.teacher"):
        checkpoint.load(folder, other, build_optimizer(other, OptimConfig(learning_rate=1e-2)), None)


# -- the best weights


class Averages:
    def __init__(self, weights):
        self.weights = weights


def test_the_first_of_equal_scores_is_kept_and_nan_is_ignored(tmp_path):
    backbone = net().backbone
    best = checkpoint.BestWeights(tmp_path, "eval/accuracy", None, backbone, None)
    for step, value in ((1, float("nan")), (2, 0.5), (3, 0.5), (4, float("nan")), (5, 0.4)):
        best({"eval/accuracy": value}, step)
    score = json.loads((tmp_path / "best" / "score.json").read_text())
    assert score == {"step": 2, "metric": "eval/accuracy", "value": 0.5, "weights": "raw"}
    again = checkpoint.BestWeights(tmp_path, "eval/accuracy", None, backbone, None)  # as in a resumed run
    again({"eval/accuracy": 0.5}, 6)
    assert json.loads((tmp_path / "best" / "score.json").read_text())["step"] == 2
    again({"eval/accuracy": 0.6}, 7)
    assert json.loads((tmp_path / "best" / "score.json").read_text())["step"] == 7


def test_averaged_weights_are_scored_and_kept_if_they_exist(tmp_path):
    backbone = net().backbone
    averaged = {name: torch.full_like(param, 0.25) for name, param in backbone.named_parameters()}
    best = checkpoint.BestWeights(tmp_path, "eval/accuracy", Averages(averaged), backbone, None)
    best({"eval/accuracy": 0.9, "eval/ema_accuracy": 0.3}, 1)
    best({"eval/accuracy": 0.1, "eval/ema_accuracy": 0.4}, 2)
    score = json.loads((tmp_path / "best" / "score.json").read_text())
    assert (score["step"], score["metric"], score["value"]) == (2, "eval/ema_accuracy", 0.4)
    stored = load_file(tmp_path / "best" / "model.safetensors")
    assert all((stored[name] == 0.25).all() for name in averaged)


def test_best_weights_that_cannot_be_written_are_a_training_error(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "full")

    monkeypatch.setattr(checkpoint, "write_model", full)
    best = checkpoint.BestWeights(tmp_path, "eval/accuracy", None, net().backbone, None)
    with pytest.raises(TrainingError, match=r"saving the best weights failed: .*the disk is full"):
        best({"eval/accuracy": 0.5}, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"value": "high"}', '{"value": NaN}', "[" * 100_000])
def test_an_unreadable_best_score_is_an_error_on_resuming(tmp_path, text):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "score.json").write_text(text)
    with pytest.raises(TrainingError, match=r"best/score.json cannot be read: "):
        checkpoint.BestWeights(tmp_path, "eval/accuracy", None, net().backbone, None)

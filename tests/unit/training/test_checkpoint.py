import json

import pytest
import torch

from nextembed.core.types import PretrainingModel
from nextembed.errors import ConfigError, TrainingError
from nextembed.models.nepa.settings import NepaModel
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training import checkpoint
from nextembed.training.checksums import difference


def net(**objective):
    backbone = NepaModel(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4).build()
    return PretrainingModel(backbone, NextEmbeddingSettings(**objective).build(backbone))


def test_leftovers_are_removed_and_never_taken_for_a_checkpoint(tmp_path):
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


def test_prune_follows_no_links(tmp_path):
    """A link of a checkpoint's name is no checkpoint of this run."""
    other = tmp_path / "other" / "step-000001"
    other.mkdir(parents=True)
    checkpoint.step_dir(tmp_path / "run", 2).mkdir(parents=True)
    checkpoint.step_dir(tmp_path / "run", 1).symlink_to(other)
    checkpoint.prune(tmp_path / "run", 1)
    assert other.is_dir() and checkpoint.step_dir(tmp_path / "run", 1).is_symlink()
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run")] == ["step-000002"]


def test_prune_keeps_the_newest(tmp_path):
    for step in (8, 900_000, 1_000_000, 99):
        checkpoint.step_dir(tmp_path, step).mkdir(parents=True)
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
        checkpoint.saving(tmp_path, "saving step 3"),
    ):
        raise err


def test_a_run_folder_that_was_deleted_is_not_made_anew(tmp_path):
    run_dir = tmp_path / "run"
    said = pytest.raises(TrainingError, match=r"^saving step 3 failed: the run folder .*run is gone$")
    with said, checkpoint.saving(run_dir, "saving step 3"):
        raise AssertionError("nothing is written")
    assert not run_dir.exists()


def test_weights_of_backbone_and_objective_come_back(tmp_path):
    first, second = net(target="teacher", steps_ahead=[1, 2]), net(target="teacher", steps_ahead=[1, 2])
    state = checkpoint.full_state(first)
    checkpoint.save_backbone(first.backbone, checkpoint.part(state, "backbone."), tmp_path, None)
    checkpoint.save_file(checkpoint.part(state, "objective."), tmp_path / "objective.safetensors")
    checkpoint.load_weights(tmp_path, second)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values()):
        assert torch.equal(a, b), name


def test_another_objective_is_a_config_error(tmp_path):
    first = net()
    checkpoint.save_backbone(first.backbone, first.backbone.state_dict(), tmp_path, None)
    with pytest.raises(ConfigError, match=r"does not fit this config: objective.teacher"):
        checkpoint.load_weights(tmp_path, net(target="teacher"))


# -- the best weights


class Averages:
    def __init__(self, weights):
        self.weights = weights

    def full(self):
        return self.weights


def test_the_first_of_equal_scores_stays_and_no_number_is_none(tmp_path):
    backbone = net().backbone
    best = checkpoint.BestWeights(tmp_path, "eval/accuracy", None, backbone, None)
    for step, value in ((1, float("nan")), (2, 0.5), (3, 0.5), (4, float("nan")), (5, 0.4)):
        best({"eval/accuracy": value}, step)
    score = json.loads((tmp_path / "best" / "score.json").read_text())
    assert score == {"step": 2, "metric": "eval/accuracy", "value": 0.5, "weights": "raw"}
    again = checkpoint.BestWeights(tmp_path, "eval/accuracy", None, backbone, None)  # as a resumed run does
    again({"eval/accuracy": 0.5}, 6)
    assert json.loads((tmp_path / "best" / "score.json").read_text())["step"] == 2
    again({"eval/accuracy": 0.6}, 7)
    assert json.loads((tmp_path / "best" / "score.json").read_text())["step"] == 7


def test_averaged_weights_are_judged_and_kept_where_there_are_some(tmp_path):
    backbone = net().backbone
    averaged = {name: torch.full_like(param, 0.25) for name, param in backbone.named_parameters()}
    best = checkpoint.BestWeights(tmp_path, "eval/accuracy", Averages(averaged), backbone, None)
    best({"eval/accuracy": 0.9, "eval/ema_accuracy": 0.3}, 1)
    best({"eval/accuracy": 0.1, "eval/ema_accuracy": 0.4}, 2)
    score = json.loads((tmp_path / "best" / "score.json").read_text())
    assert (score["step"], score["metric"], score["value"]) == (2, "eval/ema_accuracy", 0.4)
    stored = checkpoint.load_file(tmp_path / "best" / "model.safetensors")
    assert all((stored[name] == 0.25).all() for name in averaged)


def test_best_weights_that_cannot_be_written_are_a_training_error(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "full")

    monkeypatch.setattr(checkpoint, "save_backbone", full)
    best = checkpoint.BestWeights(tmp_path, "eval/accuracy", None, net().backbone, None)
    with pytest.raises(TrainingError, match=r"saving the best weights failed: .*the disk is full"):
        best({"eval/accuracy": 0.5}, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"value": "high"}', '{"value": NaN}', "[" * 100_000])
def test_a_best_score_that_cannot_be_read_is_found_when_the_run_goes_on(tmp_path, text):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "score.json").write_text(text)
    with pytest.raises(TrainingError, match=r"best/score.json cannot be read: "):
        checkpoint.BestWeights(tmp_path, "eval/accuracy", None, net().backbone, None)


def test_a_state_is_built_like_the_runs_own():
    own = {
        "state": {"w": {"step": torch.tensor(1.0), "sum": torch.zeros(2, 3)}},
        "groups": [{"lr": 0.1, "fused": None}],
    }
    fits = {"state": {"w": {"step": torch.tensor(7.0), "sum": torch.ones(2, 3)}}, "groups": [{"lr": 1, "fused": True}]}
    assert difference(fits, own) == ""
    assert difference(fits | {"more": 1}, own) == "it has a more"
    assert difference(fits | {"groups": []}, own) == "groups is no list of 1"
    assert difference(fits | {"groups": [{"lr": "a", "fused": None}]}, own) == "groups.0.lr is 'a'"
    assert difference({"state": {"w": {"step": 1, "sum": 2}}, "groups": []}, own).startswith(
        "state.w.step is no tensor"
    )

import pytest
import torch

from nextembed.core.types import PretrainingModel
from nextembed.errors import ConfigError, TrainingError
from nextembed.models.nepa.settings import NepaModel
from nextembed.objectives.next_embedding import NextEmbeddingSettings
from nextembed.training import checkpoint


def net(**objective):
    backbone = NepaModel(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4).build()
    return PretrainingModel(backbone, NextEmbeddingSettings(**objective).build(backbone))


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "checkpoints" / "step-000001"
    with pytest.raises(KeyboardInterrupt), checkpoint.atomic_folder(target) as scratch:
        (scratch / "half").write_text("x")
        assert not target.exists()
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    with checkpoint.atomic_folder(target) as scratch:
        (scratch / "a").write_text("1")
    with checkpoint.atomic_folder(target) as scratch:
        (scratch / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"]


def test_leftovers_are_removed_and_never_taken_for_a_checkpoint(tmp_path):
    for name in (
        "checkpoints/.tmp-step-000009/ema",
        "checkpoints/step-000004",
        "checkpoints/step-000010",
        ".tmp-model",
    ):
        (tmp_path / name).mkdir(parents=True)
    assert checkpoint.last_checkpoint(tmp_path).name == "step-000010"
    checkpoint.clean(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000004", "step-000010"]
    assert not (tmp_path / ".tmp-model").exists()


def test_no_checkpoint(tmp_path):
    assert checkpoint.last_checkpoint(tmp_path) is None
    assert checkpoint.start_state(None) is None


def test_prune_keeps_the_newest(tmp_path):
    for step in (8, 900_000, 1_000_000, 99):
        checkpoint.step_dir(tmp_path, step).mkdir(parents=True)
    checkpoint.prune(tmp_path, 2)
    assert [checkpoint.checkpoint_step(p) for p in checkpoint.checkpoints(tmp_path)] == [900_000, 1_000_000]


def test_a_failed_write_is_a_training_error():
    said = pytest.raises(TrainingError, match=r"^saving step 3 failed: \[Errno 28\] full$")
    with said, checkpoint.failure_on_every_rank("saving step 3"):
        raise OSError(28, "full\nmore")


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

"""The fine-tuning objective: closed forms of the loss, mixup and CutMix, ignored labels."""

import types

import pytest
import torch
import torch.nn.functional as F

from nextembed.core.types import IGNORE_LABEL
from nextembed.errors import DataError
from nextembed.models.nepa.settings import NepaClassifier, NepaModel
from nextembed.objectives.supervised import ClassificationSettings

NAMES = ["a", "b", "c", "d", "e"]
SIZES = NepaModel(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                  intermediate_size=16, layerscale_value=1.0, pos_embed_rescale=None)  # fmt: skip


class Fixed(torch.nn.Module):
    """A backbone whose logits are linear in the pixels, so that mixed pixels give mixed logits."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3 * 8 * 8, len(NAMES), generator=generator) / 10)
        self.config = types.SimpleNamespace(num_labels=len(NAMES))
        self.seen = None

    def forward(self, pixel_values):
        self.seen = pixel_values
        return types.SimpleNamespace(logits=pixel_values.flatten(1) @ self.weight)


def batch(labels, seed=1):
    pixels = torch.randn(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels, "labels": torch.tensor(labels)}


def objective(backbone, **settings):
    return ClassificationSettings(**settings).build(backbone)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_torch(smoothing):
    net, data = Fixed(), batch([0, 3, 4, 1])
    out = objective(net, label_smoothing=smoothing)(net, data)
    expected = F.cross_entropy(
        net(data["pixel_values"]).logits, data["labels"], label_smoothing=smoothing, reduction="sum"
    )
    torch.testing.assert_close(out.loss_sum, expected)
    assert out.num_targets == 4


def test_images_without_a_label_are_ignored():
    net = Fixed()
    task = objective(net, label_smoothing=0.1)
    some, all_of_them = batch([2, IGNORE_LABEL, 1, IGNORE_LABEL]), batch([2, 0, 1, 0])
    only = {name: values[[0, 2]] for name, values in all_of_them.items()}
    torch.testing.assert_close(task(net, some).loss_sum, task(net, only).loss_sum)
    assert task.count_targets(some) == task(net, some).num_targets == 2
    nothing = task(net, batch([IGNORE_LABEL] * 3))
    assert nothing.loss_sum == 0 and nothing.num_targets == 0 and nothing.metrics["train_accuracy"] == 0


@pytest.mark.parametrize(("label", "words"), [(5, "label 5 is not one of the 5 classes (0..4)"), (-1, "label -1 is")])
def test_an_out_of_range_label_is_an_error(label, words):
    net = Fixed()
    with pytest.raises(DataError) as err:
        objective(net).count_targets(batch([0, label]))
    assert words in str(err.value)


@pytest.mark.parametrize("settings", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_mixing_preserves_target_mass(settings):
    net = Fixed()
    task = objective(net, **settings).train()
    labels = torch.tensor([0, 1, 2, IGNORE_LABEL])
    moved = 0
    for seed in range(8):
        torch.manual_seed(seed)
        _, targets = task.mixed(torch.rand(4, 3, 8, 8), task.one_hot(labels))
        assert targets.sum().item() == pytest.approx(3.0, abs=1e-5)  # equal to the number of labelled images
        assert (targets >= 0).all() and targets.sum(1).max() <= 1 + 1e-6
        moved += int((targets != task.one_hot(labels)).any())
    assert moved > 4


def test_mixup_is_the_linear_blend_of_pixels_and_targets():
    net = Fixed()
    task = objective(net, mixup_alpha=0.8).train()
    pixels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8).contiguous()
    torch.manual_seed(3)
    mixed, targets = task.mixed(pixels, task.one_hot(torch.tensor([0, 1, 2, 3])))
    share = targets[1, 1].item()
    assert 0 < share < 1
    torch.testing.assert_close(targets[1], torch.tensor([1 - share, share, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(mixed[1], torch.full_like(mixed[1], share * 1 + (1 - share) * 0))


def test_nothing_is_mixed_outside_training_or_at_rate_0():
    net, data = Fixed(), batch([0, 1, 2, 3])
    for task in (
        objective(net, mixup_alpha=1, cutmix_alpha=1).eval(),
        objective(net, mixup_alpha=1, mix_rate=0).train(),
    ):
        for _ in range(3):
            task(net, data)
            assert torch.equal(net.seen, data["pixel_values"])


def test_gradients_reach_all_parameters_and_train_accuracy_is_correct():
    torch.manual_seed(0)
    model = NepaClassifier(architecture=SIZES).build(NAMES)
    task = objective(model, mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1).train()
    task(model.train(), batch([0, 1, 2, 3])).loss_sum.backward()
    without = [name for name, param in model.named_parameters() if param.grad is None or not param.grad.abs().sum()]
    assert without == []
    net, data = Fixed(), batch([0, 1, 2, IGNORE_LABEL])
    right = (net(data["pixel_values"]).logits.argmax(1) == data["labels"]).sum() / 3
    assert objective(net)(net, data).metrics["train_accuracy"] == pytest.approx(right.item())
    task = objective(net)
    task.diagnose = False
    assert task(net, data).metrics is None

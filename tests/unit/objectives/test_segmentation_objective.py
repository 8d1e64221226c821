"""The segmentation objective: closed forms, counts, auxiliary head, weights."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nextembed.core.objective import OBJECTIVES
from nextembed.errors import ConfigError
from nextembed.objectives.segmentation import SegmentationSettings

NUM = 4


class Net(nn.Module):
    """Logits at half the resolution, optionally with an auxiliary head as in UPerNet."""

    def __init__(self, auxiliary=False):
        super().__init__()
        self.config = SimpleNamespace(num_labels=NUM, auxiliary_loss_weight=0.4)
        self.conv = nn.Conv2d(3, NUM, 2, 2)
        if auxiliary:
            self.auxiliary_head = lambda maps: -maps[0]
            self.decode_head = lambda maps: maps[0]

    def backbone(self, pixels):
        return SimpleNamespace(feature_maps=[self.conv(pixels)])

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.conv(pixel_values))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM, (3, 8, 12), generator=generator)
    labels[0, :4] = 255
    labels[2] = 255
    return {"pixel_values": torch.randn(3, 3, 8, 12, generator=generator), "labels": labels}


def logits(net, batch):
    return F.interpolate(net.conv(batch["pixel_values"]), (8, 12), mode="bilinear", align_corners=False)


def test_loss_is_the_sum_over_labelled_pixels(batch):
    net = Net()
    objective = OBJECTIVES.parse("segmentation").build(net)
    out = objective(net, batch)
    known = batch["labels"] != 255
    own = logits(net, batch).log_softmax(1).gather(1, batch["labels"].clamp(max=3)[:, None])[:, 0]
    torch.testing.assert_close(out.loss_sum, -own[known].sum())
    assert out.num_targets == known.sum() == 8 * 12 + 4 * 12 == objective.count_targets(batch)
    right = (logits(net, batch).argmax(1) == batch["labels"])[known].float().mean()
    torch.testing.assert_close(out.metrics["train_pixel_accuracy"], right)
    objective.diagnose = False
    assert objective(net, batch).metrics is None


def test_the_loss_is_the_sum_over_its_parts(batch):
    """Therefore accumulation and ranks give the gradient of the whole batch."""
    net = Net()
    objective = SegmentationSettings(label_smoothing=0.1, class_weights=[1, 2, 3, 4]).build(net)
    whole = objective(net, batch).loss_sum
    parts = [objective(net, {n: v[i : i + 1] for n, v in batch.items()}) for i in range(3)]
    torch.testing.assert_close(whole, sum(part.loss_sum for part in parts))
    assert parts[2].loss_sum == 0 and parts[2].num_targets == 0


def test_auxiliary_head_is_used_only_in_training(batch):
    net = Net(auxiliary=True)
    objective = SegmentationSettings().build(net)
    plain = SegmentationSettings().build(Net())
    main = plain.loss_sum(logits(net, batch), batch["labels"])
    other = plain.loss_sum(-logits(net, batch), batch["labels"])
    torch.testing.assert_close(objective.train()(net, batch).loss_sum, main + 0.4 * other)
    torch.testing.assert_close(objective.eval()(net, batch).loss_sum, main)


def test_agrees_with_transformers_upernet():
    """loss_sum / num_targets equals the loss of transformers' UPerNet with labels."""
    from nextembed.models.nepa import NepaSegmenter

    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = NepaSegmenter(head="upernet", head_width=8, architecture=sizes).build(["a", "b", "c"]).train()
    model.backbone.config.pos_embed_rescale = None  # random in training
    pixels, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    labels[0, :9] = 255
    out = SegmentationSettings().build(model)(model, {"pixel_values": pixels, "labels": labels})
    torch.testing.assert_close(out.loss_sum / out.num_targets, model(pixels, labels=labels).loss)


def test_class_weights_must_match_the_classes():
    with pytest.raises(ConfigError, match=r"objective.class_weights: 2 weights for 4 classes"):
        SegmentationSettings(class_weights=[1, 2]).build(Net())

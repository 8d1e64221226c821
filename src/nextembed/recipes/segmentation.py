"""From a pretrained NEPA to a segmenter: ADE20K as in the paper (arXiv 2512.16922), and a small task of minutes.

The checkpoint is set with `model.pretrained=runs/mine/model model.architecture=null`, or a hub id.
"""

from ..core.optim import OptimConfig
from ..data.segmentation import SegmentationData
from ..evaluation.probes.sweep import ProbeConfig
from ..models.nepa import NepaSegmenter
from ..objectives.segmentation import SegmentationSettings
from ..runs import RunConfig
from ..toys.scenes import EmojiScenes
from ..training.settings import TrainConfig
from .ade20k import ADE20K
from .nepa import _small


def emoji_scenes() -> RunConfig:
    """Segmenting emoji on backgrounds by group, 64 px, linear head: minutes on two CPU cores.

    From scratch, unless `model.pretrained` is set (with model.architecture=null).
    """
    return RunConfig(
        name="emoji_scenes",
        data=EmojiScenes(),
        model=NepaSegmenter(architecture=_small(image_size=64, patch_size=8, num_channels=3), drop_path_prob=0.1),
        objective=SegmentationSettings(),
        optim=OptimConfig(learning_rate=1e-3, layer_decay=0.75, warmup_rate=0.1),
        train=TrainConfig(batch_size=64, max_steps=600, ema_decay=0.99, log_steps=10, save_steps=200, probe_steps=100),
        probe=ProbeConfig(batch_size=128),
    )


def nepa_base_ade20k() -> RunConfig:
    """NEPA-B/14 with UPerNet on ADE20K as in the paper: 512 px, batch 16, 160k steps, full attention (48.3 % mIoU).

    What the paper gives is in this line. The rest is the usual recipe of MAE and BEiT for UPerNet on ADE20K: AdamW,
    learning rate 1e-4, weight decay 0.05, layer decay 0.65, drop path 0.1, 1,500 warm-up steps, scales 0.5 to 2,
    flips, colour distortion; but with a cosine instead of a linear schedule. 512 px are no multiple of the 14-px
    patch: crops are 518 px, 37 patches a side, of images that are larger by the same 1 %.
    """
    return _ade20k("nepa_base_ade20k", "SixAILab/nepa-base-patch14-224", layer_decay=0.65, drop_path_prob=0.1)


def nepa_large_ade20k() -> RunConfig:
    """NEPA-L/14 with UPerNet on ADE20K as in the paper: 512 px, batch 16, 160k steps, full attention (54.0 % mIoU).

    As nepa_base_ade20k, with layer decay 0.75 and drop path 0.2.
    """
    return _ade20k("nepa_large_ade20k", "SixAILab/nepa-large-patch14-224", layer_decay=0.75, drop_path_prob=0.2)


def _ade20k(name: str, pretrained: str, layer_decay: float, drop_path_prob: float) -> RunConfig:
    """Settings of both sizes. The benchmark's test masks are not public: weights are chosen on the last 500 training
    images and measured on the 2,000 validation images. No averaged weights: UPerNet's batch norms keep means of the raw
    ones."""
    return RunConfig(
        name=name,
        data=SegmentationData(
            source="merve/scene_parse_150",
            split="train[:-500]",
            validation="train[-500:]",
            test="validation",
            classes=ADE20K,
            reduce_labels=True,
            num_workers=8,
        ),
        model=NepaSegmenter(head="upernet", pretrained=pretrained, image_size=518, drop_path_prob=drop_path_prob),
        objective=SegmentationSettings(),
        optim=OptimConfig(
            learning_rate=1e-4,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            warmup_steps=1500,
            layer_decay=layer_decay,
        ),
        train=TrainConfig(
            batch_size=16, max_steps=160_000, precision="bf16", log_steps=50, save_steps=8000, probe_steps=8000
        ),
        probe=ProbeConfig(batch_size=8),
    )

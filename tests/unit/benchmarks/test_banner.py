"""The banner of the README."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from banner import write_banner
from nextembed.errors import ConfigError
from nextembed.models.nepa import ViTNepaConfig, ViTNepaForPreTraining


def test_banner(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    run = tmp_path / "run"
    ViTNepaForPreTraining(ViTNepaConfig(**sizes, image_size=16, patch_size=4)).save_pretrained(run / "model")
    config = {"name": "run", "train": {"max_steps": 3}, "data": {"kind": "images", "source": "emoji", "num_workers": 0}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    path = write_banner(run, tmp_path / "banner.png", images=[0, 5])
    assert Image.open(path).format == "PNG" and path.stat().st_size < 500_000
    with pytest.raises(ConfigError, match="images: 99999"):
        write_banner(run, tmp_path / "banner.png", images=[99999])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ConfigError, match="contains no model"):
        write_banner(tmp_path / "empty", tmp_path / "banner.png")

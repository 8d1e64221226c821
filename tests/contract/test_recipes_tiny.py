"""Every recipe's tiny twin trains on any machine and leaves a model that loads."""

import math
from pathlib import Path

import pytest
from transformers import AutoModelForImageClassification, AutoModelForPreTraining, AutoModelForSemanticSegmentation

import nextembed
from nextembed import recipes

TINY = [name for name in recipes.recipes() if name.endswith("_tiny")]


@pytest.mark.parametrize("name", TINY)
def test_tiny_twin_takes_a_step(name: str, tmp_path: Path) -> None:
    config = recipes.load(name)
    config.output_dir = str(tmp_path)
    config.probe.enabled = False
    config.train.max_steps = 1
    config.train.save_steps = 1
    run = nextembed.fit(config)
    assert math.isfinite(run.metrics["loss"])
    assert run.metrics["step"] == 1
    pretraining = config.objective.task == "pretraining"
    auto = {
        "pretraining": AutoModelForPreTraining,
        "classification": AutoModelForImageClassification,
        "segmentation": AutoModelForSemanticSegmentation,
    }[config.objective.task]
    model = auto.from_pretrained(run.dir / "model")
    trunk = getattr(model.config, "backbone_config", None) or model.config
    assert trunk.use_gated_mlp is (config.model if pretraining else config.model.architecture).use_gated_mlp
    assert (run.dir / "best").is_dir() is not pretraining
    changed = [
        name
        for (name, ours), theirs in zip(run.model.named_parameters(), model.parameters(), strict=True)
        if ours.cpu().ne(theirs).any()
    ]
    assert changed == []

"""The tiny twin of every recipe trains on any machine and saves a model that loads."""

import math
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)

import nextembed
from nextembed import recipes
from nextembed.objectives.readout import load_readouts

TINY = [f"{name}_tiny" for name in recipes.recipes()]


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
    if config.model.kind == "omni":
        omni_comes_back(run)
        return
    pretraining = config.objective.task == "pretraining"
    if config.objective.task == "multimodal":
        emu_comes_back(run)
        return
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
        for (name, ours), theirs in zip(run.trained.named_parameters(), model.parameters(), strict=True)
        if ours.cpu().ne(theirs).any()
    ]
    assert changed == []


def omni_comes_back(run: nextembed.Run) -> None:
    """The model loads with its processor and equals the trained one; readouts load as well."""
    model = AutoModelForPreTraining.from_pretrained(run.dir / "model").eval()
    assert model.config.names == run.trained.config.names == model.processor.names
    assert model.config.density == run.config.model.density
    inputs = model.processor(["an apple"])
    with torch.no_grad():
        ours, theirs = (one(**inputs).last_hidden_state for one in (run.trained.eval(), model))
    assert torch.allclose(ours, theirs, atol=1e-5)
    for name, value in run.trained.state_dict().items():
        assert torch.equal(value.cpu(), model.state_dict()[name]), name
    if run.config.objective.kind == "readout":
        assert load_readouts(run.dir).readouts


def emu_comes_back(run: nextembed.Run) -> None:
    """Model, processor and, if there is one, visual decoder load, and the model equals the trained one."""
    model = AutoModelForPreTraining.from_pretrained(run.dir / "model").eval()
    processor = AutoProcessor.from_pretrained(run.dir / "model")
    inputs = processor(["an apple", torch.zeros(3, 20, 30, dtype=torch.uint8)])
    with torch.no_grad():
        ours, theirs = run.trained.eval()(**inputs).logits, model(**inputs).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    if run.config.objective.kind == "visual_decoder":
        pipeline = nextembed.EmuPipeline.from_pretrained(run.dir)
        assert pipeline(["an apple:"], num_inference_steps=2, progress=False).size == (16, 16)

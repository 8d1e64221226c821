"""Run folders of every task without weights: the files that a report reads besides the model."""

from pathlib import Path
from typing import Any

from altered import write

from nextembed import recipes
from nextembed.core.config import to_yaml
from nextembed.core.probe_table import ProbeTable, Row
from nextembed.core.scores import ClassArea, ClassScores, Mistake, SegmentScores

TASKS = {
    "pretraining": "nepa_demo_tiny",
    "classification": "finetune_tiny",
    "segmentation": "emoji_scenes_tiny",
    "emu": "emu_emoji_instruct_tiny",
    "omni": "omni_emoji_tiny",
}
METRICS = {"samples_seen": 8, "loss": 1.5, "learning_rate": 0.1, "cos_next": 0.5, "cos_current": 0.4, "cos_gap": 0.1,
           "copy_win": 0.3, "cos_neighbours": 0.4, "latent_std": 0.9, "latent_rank": 9.5, "hidden_rank": 8.5,
           "hidden_std": 0.8, "text_loss": 2.5, "text_accuracy": 0.5, "regression_loss": 0.5, "psnr": 20.0,
           "cos_next/begin": 0.9, "cos_next/text": 0.2, "length/begin": 1.0, "length/text": 20.0, "top1/text": 0.3,
           "eval/accuracy": 0.7, "eval/miou": 0.4}  # fmt: skip


def make_run(folder: Path, task: str) -> Path:
    """A finished run of a task, with all files that its report needs."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(recipes.load(TASKS[task])))
    environment: dict[str, Any] = {"python": "3.11", "gpus": ["one"], "command": ["nextembed", "train", TASKS[task]]}
    write(folder / "environment.json", environment | {"parameters": {"trained": 10, "all": 200_000}})
    warned = {"warnings": ["copying: it copies"]}
    write(folder / "metrics.jsonl", [{"step": step, **METRICS, **warned} for step in (1, 2)])
    write(folder / "skipped.jsonl", [{"key": "a.png", "reason": "truncated"}])
    if task == "pretraining":
        rows = [Row(probe, weights, layer, "mean", "causal", 0.5, 0.4, 0.1, layer == 2, 0.01)
                for probe in ("linear", "knn") for weights in ("raw", "untrained") for layer in (0, 1, 2)]  # fmt: skip
        images = {"train": 20, "validation": 10, "test": 5}
        pixels = {"linear": 0.3, "knn": 0.3}
        ProbeTable(rows, pixels, pixels, images, ["a", "b"], 0.2, 2, notes=["a note"]).save(folder / "probe.json")
    elif task == "classification":
        mistakes = [Mistake(0, 1, 0.9, 3, "a.png")]
        found = ClassScores("test", 10, 0.7, 1.0, 0.5, ["cat", "dog"], [[4, 2], [1, 3]], errors=mistakes, step=2)
        found.save(folder / "scores.json")
    elif task == "segmentation":
        areas = [ClassArea("cat", 0.5, 0.25), ClassArea("background", 0.7, 0.75), ClassArea("dog", None, 0.0)]
        SegmentScores("test", 10, 640, 0.6, 0.8, areas, 8, 4, step=2).save(folder / "scores.json")
    return folder

"""`nextembed.fit`: a run of settings, or of a recipe's name and what is different."""

from pathlib import Path
from typing import Any

from ..core.config import with_values
from ..run import fit as train
from ..runs import Run, RunConfig, read_run_config
from ..training.checkpoint import resume_place
from .loading import load


def fit(config: RunConfig | str | None = None, resume: str | Path | None = None, **overrides: Any) -> Run:
    """Trains, evaluates and reports. All files are written into the run folder.

        run = nextembed.fit("nepa_demo", name="mine", train={"max_steps": 100})

    Args:
        config: settings, or what `nextembed train` takes: a recipe's name, a config.yaml, `my_file.py:my_recipe`. A
            new run never touches a folder that exists: with `runs/demo` taken it goes to `runs/demo-2`. With `resume`
            None takes RUN/config.yaml; a changed one has to fit the same model.
        resume: a run folder; training resumes from its last checkpoint, bit for bit as if it had never stopped. Or one
            of its checkpoints, RUN/checkpoints/step-000080; later ones are renamed to unused-step-...
        **overrides: settings to change. Of data, model, optim, train and probe a dict changes the fields that it
            names; one with "kind" replaces the part. Dotted names: `**{"train.max_steps": 100}`.

    Returns:
        The finished run.

    Raises:
        ConfigError: Before anything is trained.
        TrainingError: The loss is not a number, or a write failed.
        DataError: Too much of the data cannot be read.
        Interrupted: After a signal, when the state is saved.
    """
    if isinstance(config, str):
        config = load(config)
    if overrides and config is None and resume is not None:
        config = read_run_config(resume_place(resume)[0])
    if overrides and config is not None:
        config = with_values(config, dotted(overrides))
    return train(config, resume)


def dotted(overrides: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted names: fields of a group one by one, whole parts as they are."""
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        fields = value if isinstance(value, dict) and "kind" not in value and "." not in name else {}
        found |= {f"{name}.{own}": given for own, given in fields.items()} or {name: value}
    return found

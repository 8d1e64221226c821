"""Run settings of each row: the same data, model, batch and length, with the row's objective, rates and attention."""

from ..core.objective import ObjectiveSettings, ViewSettings
from ..core.optim import OptimConfig
from ..core.types import IGNORE_LABEL
from ..data.images import ImagePart
from ..data.labels import labels_of
from ..data.rows import Rows
from ..errors import ConfigError, MissingSplit, unknown
from ..models.nepa.settings import NepaClassifier, NepaModel
from ..objectives.supervised import ClassificationSettings
from ..objectives.tokenized import TokenizedSettings
from ..objectives.tokenizer import TokenizerSettings
from ..objectives.tokens import TokenSettings
from ..recipes.listing import listed
from ..recipes.loading import load
from ..runs import RunConfig
from ..training.settings import TrainConfig

ENDING = "_demo"  # of the recipes that name objectives: nepa_demo, mae_demo
NUM_LOGS, NUM_PROBES, NUM_SAVES = 60, 6, 6  # of each run
NUM_ONLINE = 1000  # images of each of several quick probes, which cost as much as many steps
FRACTIONS = {"finetune_1": 0.01, "finetune_10": 0.1}
RATES, DECAYS = (1.0, 3.0, 1 / 3), (1.0, 5.0, 1 / 5)  # factors that are tried


def known_objectives(num_frames: int = 1) -> dict[str, RunConfig]:
    """Settings of the recipe NAME_demo of each objective that learns without labels from images, or from clips of so
    many frames, by NAME."""
    found = {name: load(name) for name in listed() if name.endswith(ENDING)}
    fitting = {name: config for name, config in found.items() if fits_images(config, num_frames)}
    return {name.removesuffix(ENDING): config for name, config in fitting.items()}


def fits_images(config: RunConfig, num_frames: int) -> bool:
    return (
        isinstance(config.model, NepaModel)
        and (config.model.num_frames > 1) == (num_frames > 1)
        and isinstance(config.data, ImagePart)
        and config.objective.task == "pretraining"
        and config.objective.trains_backbone
        and (not config.after or isinstance(config.objective, TokenizedSettings))  # whose tokenizer is `stage_of`
    )


def chosen_objectives(names: list[str] | None, num_frames: int = 1) -> dict[str, RunConfig]:
    """The requested objectives, else all. Raises ConfigError for an unknown or duplicate name."""
    known = known_objectives(num_frames)
    if not names:
        return known
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"objective '{name}' is named twice")
        if name not in known and f"{name}{ENDING}" in listed():
            what = "clips" if num_frames > 1 else "images"
            raise ConfigError(f"objective '{name}' does not fit {what} in a NEPA model. Allowed: {', '.join(known)}")
        if name not in known:
            raise ConfigError(unknown("objective", name, known))
    return {name: known[name] for name in names}


def checked_base(config: RunConfig) -> RunConfig:
    """What all rows share: images and a new NEPA model. Where labelled data has no validation split, a tenth of the
    training images is held out for choices. Raises ConfigError for other data or models."""
    if not isinstance(config.data, ImagePart):
        raise ConfigError(f"a comparison needs images, and data.kind {config.data.kind} gives none")
    if not isinstance(config.model, NepaModel) or config.model.pretrained is not None:
        raise ConfigError("a comparison trains new models: model.kind=vit_nepa without model.pretrained")
    if config.train.fsdp:
        raise ConfigError("a comparison runs each model on one device: train.fsdp=false")
    data = config.data
    if config.train.compile is None:  # compiling would take a different share of each row's minutes
        config = config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})
    if data.class_names() and data.validation_rate is None and isinstance(data.training_rows(), Rows):
        try:
            data.split_rows("validation")
        except MissingSplit:
            return config.model_copy(update={"data": data.model_copy(update={"validation_rate": 0.1})})
    return config


def row_config(base: RunConfig, own: RunConfig, seed: int = 0, tuned: dict[str, float] | None = None) -> RunConfig:
    """The base with a row's objective. own: the objective's recipe. tuned: factors of its settings."""
    assert isinstance(base.model, NepaModel)
    objective = of_tokens(base, own).objective
    if type(objective) is type(base.objective):
        objective, optim = base.objective, base.optim
    else:
        objective, optim = fitted(objective, base), own.optim
    objective = without_classes(objective)
    for name, factor in (tuned or {}).items():
        optim = optim.model_copy(update={name: factor * float(vars(optim)[name])})
    averaged = base.train.ema_decay if own.train.ema_decay is not None else None
    return base.model_copy(
        update={
            "seed": seed,
            "model": base.model.model_copy(update={"is_causal": objective.attends == "causal"}),
            "objective": objective,
            "optim": optim,
            "train": base.train.model_copy(update={"ema_decay": averaged, "trackers": []}),
            "after": [],
        }
    )


def stage_of(base: RunConfig, own: RunConfig, seed: int = 0) -> RunConfig | None:
    """The tokenizer that a row's objective needs, of the base's images and patches; None for the others."""
    if not isinstance(own.objective, TokenizedSettings):
        return None
    assert isinstance(base.model, NepaModel)
    stage = load(own.after[-1])
    assert isinstance(stage.objective, TokenizerSettings)
    grid, scales = base.model.image_size // base.model.patch_size, stage.objective.scales
    if scales is not None:
        scales = sorted({grid >> halved for halved in range(grid.bit_length())})
    train = base.train.model_copy(update={"ema_decay": None, "trackers": []})
    changes = {"seed": seed, "optim": stage.optim, "train": train, "after": [],
               "objective": fitted(stage.objective.model_copy(update={"scales": scales}), base)}  # fmt: skip
    return base.model_copy(update=changes)


def of_tokens(base: RunConfig, own: RunConfig) -> RunConfig:
    """A row of tokens; until its tokenizer is trained, with one of its sizes."""
    stage = stage_of(base, own)
    if stage is None:
        return own
    assert isinstance(stage.objective, TokenizerSettings) and isinstance(base.model, NepaModel)
    shape = stage.objective.shape_for(base.model.hf_config())
    changes = {"tokenizer": None, "tokenizer_shape": shape}
    return own.model_copy(update={"objective": own.objective.model_copy(update=changes)})


def with_tokenizer(config: RunConfig, folder: str) -> RunConfig:
    """The row with a tokenizer that was trained in a folder."""
    changes = {"tokenizer": folder, "tokenizer_shape": None}
    return config.model_copy(update={"objective": config.objective.model_copy(update=changes)})


def without_classes(objective: ObjectiveSettings) -> ObjectiveSettings:
    """Every row learns without labels, also if its recipe is conditioned on classes."""
    return (
        objective.model_copy(update={"num_classes": 0}) if "num_classes" in type(objective).model_fields else objective
    )


def fitted(objective: ObjectiveSettings, base: RunConfig) -> ObjectiveSettings:
    """Its settings for the base's images: small crops that the patches divide, half as wide as the image, about; and no
    more codes than a quarter of the patches of a step."""
    assert isinstance(base.model, NepaModel)
    grid = base.model.image_size // base.model.patch_size
    side = max(1, grid // 2) * base.model.patch_size
    changes: dict[str, object] = {
        name: value.model_copy(update={"local_size": side})
        for name, value in objective
        if isinstance(value, ViewSettings) and value.num_local
    }
    if isinstance(objective, TokenSettings | TokenizerSettings):
        changes["num_codes"] = min(objective.num_codes, max(2, base.train.batch_size * grid**2 // 4))
    return objective.model_copy(update=changes)


def with_length(config: RunConfig, steps: int, num_probes: int = NUM_PROBES) -> RunConfig:
    """Sets the number of steps, with logs, quick probes and checkpoints at the same fractions of every run."""
    log = max(1, steps // NUM_LOGS)
    probe = log * max(1, steps // log // num_probes)
    save = log * max(1, steps // log // NUM_SAVES)
    every = {"log_steps": log, "probe_steps": probe, "save_steps": save, "keep_checkpoints": 1}
    online = config.probe.num_online if num_probes == 1 else min(NUM_ONLINE, config.probe.num_online)
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"max_steps": steps, "epochs": None, **every}),
            "probe": config.probe.model_copy(update={"num_online": online}),
        }
    )


def supervised_config(base: RunConfig, seed: int = 0) -> RunConfig:
    """Training from scratch: the base's model with a classifier, and all labels."""
    train = base.train.model_copy(update={"trackers": [], "ema_decay": None})
    changes: dict[str, object] = {
        "seed": seed,
        "model": NepaClassifier(architecture=base.model),
        "objective": ClassificationSettings(label_smoothing=0.1),
        "optim": OptimConfig(learning_rate=1e-3, weight_decay=0.05, warmup_rate=0.1),
        "train": train,
        "after": [],
    }
    return base.model_copy(update=changes)


def finetune_config(
    base: RunConfig, pretrained: str | None, per_class: int, seed: int, steps: int, num_labels: int
) -> RunConfig:
    """Fine-tuning on a few labels of each class, drawn by the seed; the same number of steps for every row. pretrained:
    a model folder; None is from scratch."""
    config = supervised_config(base, seed)
    batch = max(2, min(64, num_labels))
    changes: dict[str, object] = {
        "data": base.data.model_copy(update={"labels_per_class": per_class, "labels_seed": seed}),
        "train": TrainConfig(
            batch_size=batch, max_steps=steps, log_steps=max(1, steps // 10), save_steps=steps, trackers=[],
            precision=base.train.precision, device=base.train.device,
        ),
    }  # fmt: skip
    if pretrained is not None:
        changes["model"] = NepaClassifier(pretrained=pretrained, new_head=True)
        changes["optim"] = OptimConfig(learning_rate=5e-4, layer_decay=0.75, weight_decay=0.05, warmup_rate=0.1)
    return config.model_copy(update=changes)


def label_counts(data: ImagePart) -> dict[str, int]:
    """Labels of each class for fine-tuning, by column; empty where there are no labels. The smallest class limits
    it."""
    rows = data.training_rows()
    if not isinstance(rows, Rows) or not data.class_names():
        return {}
    labels = [label for label in labels_of(rows) if label != IGNORE_LABEL]
    classes = set(labels)
    if len(classes) < 2:
        return {}
    fewest = min(labels.count(one) for one in classes)
    return {name: max(1, min(fewest, round(part * len(labels) / len(classes)))) for name, part in FRACTIONS.items()}


def trials(number: int) -> list[dict[str, float]]:
    """Factors of learning rate and weight decay to try, in this order."""
    return [{"learning_rate": rate, "weight_decay": decay} for decay in DECAYS for rate in RATES][:number]

"""The settings that report and model card describe in sentences, checked once. All others are only listed. Settings of
other kinds of parts are left alone, so that a run of a newer library, or with parts of its own, has a report, too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..core.saved import Count, Number, OrEmpty, checked


class _Group(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True, protected_namespaces=())


class Objective(_Group):
    kind: str = ""
    causal: bool = True
    target: str = "latents"
    mixup_alpha: Number | None = None
    cutmix_alpha: Number | None = None


class Lora(_Group):
    rank: Count
    alpha: Number
    targets: list[str]


class Train(_Group):
    max_steps: Count | None = None
    batch_size: Count | None = None
    lora: Lora | None = None
    freeze: list[str] | None = None

    @property
    def what(self) -> str:
        """What was trained, as text."""
        if lora := self.lora:
            return f"LoRA of rank {lora.rank} (alpha {lora.alpha:g}) on {', '.join(lora.targets)}, and the head"
        return "everything" + " but " * bool(self.freeze) + ", ".join(self.freeze or [])


class Data(_Group):
    kind: str = ""
    source: Any = None
    split: str | None = None
    validation: str | None = None
    test: str | None = None
    mean: Number | None = None
    std: Number | None = None
    labels_per_class: Count | None = None
    labels_seed: int = 0
    rand_augment: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    erase_rate: Number | None = None
    scale_range: tuple[Number, Number] = (1, 1)
    flip_rate: Number = 0
    distort_colours: object = None


class Model(_Group):
    kind: str = ""
    pretrained: str | None = None
    from_scratch: bool | None = None
    num_layers: Count | None = None
    attention: str = ""
    pooling: str = ""
    head: str = ""
    modalities: dict[str, Any] | None = None

    @property
    def start(self) -> str:
        """The initial weights, as text."""
        return "random weights" if self.from_scratch or not self.pretrained else self.pretrained


class Optim(_Group):
    learning_rate: Number = 0
    layer_decay: Number = 1.0
    layer_decay_end: Number | None = None


class Probe(_Group):
    enabled: bool = True
    num_validation: Count | None = None
    num_test: Count | None = None
    stride: Count | None = None


class Settings(_Group):
    name: str | None = None
    objective: Annotated[Objective, OrEmpty] = Objective()
    train: Annotated[Train, OrEmpty] = Train()
    data: Annotated[Data, OrEmpty] = Data()
    model: Annotated[Model, OrEmpty] = Model()
    optim: Annotated[Optim, OrEmpty] = Optim()
    probe: Annotated[Probe, OrEmpty] = Probe()


def settings_of(values: Mapping[str, object], run: Path) -> Settings:
    """Of config.yaml's values. Raises ConfigError that names the file and the setting that is wrong."""
    return checked(Settings, dict(values), run / "config.yaml")

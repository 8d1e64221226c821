"""Parts of a model that are loaded by name, with one clear line for anything that does not load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from ..core.config import Part
from ..core.files import first_line
from ..core.places import check_here, is_run_folder
from ..core.pretrained import load_pretrained
from ..core.run_folder import find_saved
from ..core.sizes import loading
from ..core.types import Batch, Draw
from ..errors import ConfigError, shortened


class CheckedModel(PreTrainedModel):
    """Base of our models: `from_pretrained` raises ConfigError for a config.json with impossible sizes."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        with loading(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


POSITION = 3  # numbers of a sample's position in the data


class ModelPart(Part):
    """The model of a run: its settings. One of your own is a subclass in your own file, chosen with
    `kind: my_file.py:MyModel`; all but `build` has a default for models of images.

    Attributes:
        pretrained: an HF folder or hub id to start from.
    """

    pretrained: str | None = None

    def build(self, class_names: Sequence[str] = ()) -> PreTrainedModel:
        """Makes the backbone, in float32.

        Args:
            class_names: of the data, in the order of their ids; empty for tasks without classes.

        Returns:
            The backbone.

        Raises:
            ConfigError: one line, for what does not load or fit.
        """
        raise NotImplementedError

    def trunk(self, backbone: Any) -> Any:
        """The network that images enter, where it is only a part of the backbone.

        Args:
            backbone: the model.

        Returns:
            That part, or the backbone.
        """
        return backbone

    def loader_arguments(self, backbone: PreTrainedModel) -> dict[str, Any]:
        """Arguments of the data's `train_loader` that depend on the model.

        Args:
            backbone: the model.

        Returns:
            Keyword arguments.
        """
        trunk = self.trunk(backbone)
        size = trunk.config.image_size
        return {
            "image_size": size,
            "num_channels": trunk.config.num_channels,
            "num_latents": trunk.num_latents(size, size),
        }

    def processor(self) -> BaseImageProcessor | ProcessorMixin | None:
        """What is saved with the weights."""
        return None

    def prepare(self, backbone: PreTrainedModel, data: Part) -> None:
        """Called before the first step of a new run. With `train.fsdp` only rank 0 calls it; the others get the weights
        and buffers that it changes, no other attributes.

        Args:
            backbone: the model.
            data: the data part of the run.
        """

    def example_batch(self, backbone: PreTrainedModel, size: int, draw: Draw) -> Batch:
        """A micro batch of the right shapes and kinds, without data, for planning memory.

        Args:
            backbone: the model.
            size: samples.
            draw: the objective's `draw`.

        Returns:
            The batch, on the CPU.
        """
        trunk = self.trunk(backbone)
        side = trunk.config.image_size
        one: dict[str, Tensor] = {
            "pixel_values": torch.zeros(trunk.config.num_channels, side, side),
            "labels": self.example_labels(side),
            "latent_mask": torch.ones(trunk.num_latents(side, side), dtype=torch.bool),
            "position": torch.zeros(POSITION, dtype=torch.int64),
        }
        one |= draw(one, torch.Generator().manual_seed(0))
        # Expanded, so it needs the memory of one sample.
        return cast(Batch, {name: value.expand(size, *value.shape) for name, value in one.items()})

    def example_labels(self, side: int) -> Tensor:
        """Labels of one image, for planning memory.

        Args:
            side: of the image, in pixels.

        Returns:
            int64, as the task has them.
        """
        return torch.zeros((), dtype=torch.int64)

    def usage(self, folder: str) -> str | None:
        """A command that uses a finished run of this model.

        Args:
            folder: of the model.

        Returns:
            The command; None leaves it to the task.
        """
        return None


def load_part(kind: Any, name: str, field: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a run folder, a checkpoint, an HF folder or a hub id. field: of the settings, for
    messages; options are passed on. Raises ConfigError for a missing path, and for anything that does not load."""
    what = f"model.{field}: cannot load '{shortened(name)}'"
    try:
        check_here(name, f"model.{field}: no such run, checkpoint or folder")
        folder = model_folder(name)
    except (OSError, ValueError, RuntimeError) as err:  # a name that no folder can have
        raise ConfigError(f"{what}: {shortened(first_line(err))}") from None
    return load_pretrained(kind, folder, what, **options)


def model_folder(name: str) -> str:
    """The folder of the model itself, of a run folder too; a hub id as it is."""
    folder = Path(name).expanduser()
    return str(find_saved(folder).folder() if is_run_folder(folder) else folder)

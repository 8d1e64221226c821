"""An Omni as an image encoder: pixels in, latents and hidden states out, like a NEPA."""

from types import SimpleNamespace
from typing import Any, cast

from torch import Tensor, nn

from ...core.types import Attention, Batch, Hidden, Latents
from ...errors import ConfigError
from ...modalities import MODALITIES, Image
from .configuration_omni import OmniConfig
from .modeling_omni import OmniModel
from .processing_omni import OmniProcessor


def image_modality(config: OmniConfig) -> str:
    """The name of an Omni's first image modality. Raises ConfigError if it does not read images."""
    for name, settings in (config.modalities or {}).items():
        if issubclass(MODALITIES.find(settings.get("kind", name)), Image):
            return str(name)
    raise ConfigError(f"the model reads {', '.join(config.names)}, but no images")


def image_config(config: OmniConfig) -> Any:
    """An Omni on images with the attributes of a NEPA configuration: image_shape, num_channels, hidden_size, ..."""
    name = image_modality(config)
    reader = MODALITIES.without_weights({name: (config.modalities or {})[name]})[name]
    assert isinstance(reader, Image)
    return SimpleNamespace(
        model_type=config.model_type,
        image_shape=(reader.image_size, reader.image_size),
        num_channels=reader.num_channels,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        is_causal=config.is_causal,
    )


class OmniImages(nn.Module):
    """The transformer of an Omni on documents of one image: position 0 is the begin latent, the others are patches."""

    def __init__(self, omni: OmniModel, processor: OmniProcessor):
        super().__init__()
        self.omni, self.processor = omni, processor
        self.config, self.name = image_config(omni.config), image_modality(omni.config)

    def embed(self, batch: Batch) -> Latents:
        """pixel_values [B, C, S, S], in [-1, 1]."""
        pixels: Tensor = batch["pixel_values"]
        inputs = self.processor([[{self.name: one}] for one in pixels.cpu()], end=False)
        return self.omni.embed(cast(Batch, {key: value.to(pixels.device) for key, value in inputs.items()}))

    def encode(self, latents: Latents, attention: Attention | None = None, output_layers: bool = False) -> Hidden:
        """As `OmniModel.encode`: hidden states [B, 1 + N, D]."""
        return self.omni.encode(latents, attention, output_layers)

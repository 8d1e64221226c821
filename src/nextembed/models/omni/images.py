"""An Omni as what encodes images: pixels in, latents and hidden states out, as of a NEPA."""

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from ...core.types import Batch, Hidden, Latents
from ...errors import ConfigError
from ...modalities import MODALITIES, Image


def image_modality(config: Any) -> str:
    """The name of an Omni's first image modality. Raises ConfigError where it reads no images."""
    for name, settings in config.modalities.items():
        if issubclass(MODALITIES.find(settings.get("kind", name)), Image):
            return str(name)
    raise ConfigError(f"the model reads {', '.join(config.names)}, and no images")


def image_config(config: Any) -> Any:
    """What a NEPA's configuration says, of an Omni on images: image_shape, num_channels, hidden_size, ..."""
    name = image_modality(config)
    settings = {key: value for key, value in config.modalities[name].items() if key != "kind"}
    reader: Any = MODALITIES.find(config.modalities[name].get("kind", name))(8, **settings)
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

    def __init__(self, omni: Any, processor: Any):
        super().__init__()
        self.omni, self.processor = omni, processor
        self.config, self.name = image_config(omni.config), image_modality(omni.config)

    def embed(self, batch: Batch) -> Latents:
        """pixel_values [B, C, S, S], in [-1, 1]."""
        pixels: Tensor = batch["pixel_values"]
        inputs = self.processor([[{self.name: one}] for one in pixels.cpu()], end=False)
        return self.omni.embed({key: value.to(pixels.device) for key, value in inputs.items()})

    def encode(self, latents: Latents, **options: Any) -> Hidden:
        """As `OmniModel.encode`: hidden states [B, 1 + N, D]."""
        return self.omni.encode(latents, **options)

"""Omni: one autoregressive model over latents of any modality. Importing this registers it with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

from .configuration_omni import OmniConfig
from .modeling_omni import OmniForPreTraining, OmniModel
from .processing_omni import OmniProcessor
from .settings import OmniParts

AutoConfig.register("omni", OmniConfig, exist_ok=True)
AutoModel.register(OmniConfig, OmniModel, exist_ok=True)
AutoModelForPreTraining.register(OmniConfig, OmniForPreTraining, exist_ok=True)
AutoProcessor.register(OmniConfig, OmniProcessor, exist_ok=True)

__all__ = ["OmniConfig", "OmniForPreTraining", "OmniModel", "OmniParts", "OmniProcessor"]

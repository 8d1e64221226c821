"""Emu (model_type "emu"), registered with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForPreTraining

from .configuration_emu import EmuConfig
from .modeling_emu import EmuForConditionalGeneration, EmuModel, EmuPreTrainedModel

__all__ = ["EmuConfig", "EmuForConditionalGeneration", "EmuModel", "EmuPreTrainedModel"]

AutoConfig.register("emu", EmuConfig, exist_ok=True)
AutoModel.register(EmuConfig, EmuModel, exist_ok=True)
AutoModelForPreTraining.register(EmuConfig, EmuForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(EmuConfig, EmuForConditionalGeneration, exist_ok=True)

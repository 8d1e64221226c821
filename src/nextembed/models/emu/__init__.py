"""Emu (model_type "emu"), registered with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForPreTraining, AutoProcessor

from .. import nepa  # noqa: F401  registers what an encoder of ours is
from .base_emu import EmuModel, EmuPreTrainedModel
from .configuration_emu import EmuConfig
from .modeling_emu import EmuForConditionalGeneration
from .pipeline_emu import EmuPipeline
from .processing_emu import EmuProcessor, add_emu_tokens
from .settings import EmuParts
from .visual_decoder import VisualDecoder
from .visual_decoder_settings import PixelDecoder, StableDiffusionDecoder
from .vocabulary import grow_vocabulary, train_tokenizer

__all__ = ["EmuConfig", "EmuForConditionalGeneration", "EmuModel", "EmuParts", "EmuPipeline", "EmuPreTrainedModel",
           "EmuProcessor", "PixelDecoder", "StableDiffusionDecoder", "VisualDecoder", "add_emu_tokens",
           "grow_vocabulary", "train_tokenizer"]  # fmt: skip

AutoConfig.register("emu", EmuConfig, exist_ok=True)
AutoModel.register(EmuConfig, EmuModel, exist_ok=True)
AutoModelForPreTraining.register(EmuConfig, EmuForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(EmuConfig, EmuForConditionalGeneration, exist_ok=True)
AutoProcessor.register(EmuConfig, EmuProcessor, exist_ok=True)

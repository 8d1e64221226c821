"""Emu's visual encoder: any vision model of transformers."""

from typing import Any

from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel


def build_visual(vision: Any) -> PreTrainedModel:
    """The vision model of a configuration, with new weights."""
    if vision.model_type == "blip_2_vision_model":
        return without_norm(Blip2VisionModel._from_config(vision))
    return AutoModel.from_config(vision, trust_remote_code=False)


def without_norm(visual: Any) -> PreTrainedModel:
    """An EVA tower without its final norm, which Emu does not use; others as they are."""
    if type(visual) is Blip2VisionModel:
        setattr(visual, "post_layernorm", nn.Identity())  # noqa: B010  (of another type)
    return visual

"""NEPA's vision transformer (model_type "vit_nepa"), registered with the Auto classes."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    ViTImageProcessor,
)
from transformers.models.auto import modeling_auto

from .configuration_nepa import ViTNepaConfig
from .modeling_nepa import (
    ViTNepaBackbone,
    ViTNepaForImageClassification,
    ViTNepaForPreTraining,
    ViTNepaModel,
    ViTNepaPreTrainedModel,
)
from .modeling_segmentation import ViTNepaForSemanticSegmentation
from .segmenter import NepaSegmenter
from .settings import NepaModel

__all__ = [
    "NepaModel",
    "NepaSegmenter",
    "ViTNepaBackbone",
    "ViTNepaConfig",
    "ViTNepaForImageClassification",
    "ViTNepaForPreTraining",
    "ViTNepaForSemanticSegmentation",
    "ViTNepaModel",
    "ViTNepaPreTrainedModel",
]

AutoConfig.register("vit_nepa", ViTNepaConfig, exist_ok=True)
AutoModel.register(ViTNepaConfig, ViTNepaModel, exist_ok=True)
AutoModelForPreTraining.register(ViTNepaConfig, ViTNepaForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(ViTNepaConfig, ViTNepaForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(ViTNepaConfig, ViTNepaForSemanticSegmentation, exist_ok=True)
AutoBackbone.register(ViTNepaConfig, ViTNepaBackbone, exist_ok=True)
AutoImageProcessor.register(ViTNepaConfig, image_processor_classes={"torchvision": ViTImageProcessor}, exist_ok=True)

# Hugging Face's test suite and some tools look up class names in these tables, which `register` does not fill.
for _table, _model in (
    (modeling_auto.MODEL_MAPPING_NAMES, ViTNepaModel),
    (modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES, ViTNepaForPreTraining),
    (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, ViTNepaForImageClassification),
    (modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES, ViTNepaBackbone),
):
    _table.setdefault("vit_nepa", _model.__name__)

"""Objectives: everything that can be trained on a backbone."""

from .emu import EmuObjective, EmuSettings
from .latent_decoder import LatentDecoderSettings, load_decoder
from .next_embedding import NextEmbedding, NextEmbeddingSettings
from .readout import ReadoutSettings, load_readouts
from .segmentation import Segmentation, SegmentationSettings
from .supervised import Classification, ClassificationSettings
from .visual_decoder import VisualDecoderSettings, VisualDecoding

__all__ = [
    "Classification",
    "ClassificationSettings",
    "EmuObjective",
    "EmuSettings",
    "LatentDecoderSettings",
    "NextEmbedding",
    "NextEmbeddingSettings",
    "ReadoutSettings",
    "Segmentation",
    "SegmentationSettings",
    "VisualDecoderSettings",
    "VisualDecoding",
    "load_decoder",
    "load_readouts",
]

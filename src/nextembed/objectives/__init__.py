"""Objectives: everything that can be trained on a backbone."""

from .latent_decoder import LatentDecoderSettings, load_decoder
from .next_embedding import NextEmbedding, NextEmbeddingSettings
from .supervised import Classification, ClassificationSettings

__all__ = [
    "Classification",
    "ClassificationSettings",
    "LatentDecoderSettings",
    "NextEmbedding",
    "NextEmbeddingSettings",
    "load_decoder",
]

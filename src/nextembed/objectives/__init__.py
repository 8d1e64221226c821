"""Objectives: everything that can be trained on a backbone."""

from .latent_decoder import LatentDecoderSettings, load_decoder
from .next_embedding import NextEmbedding, NextEmbeddingSettings

__all__ = ["LatentDecoderSettings", "NextEmbedding", "NextEmbeddingSettings", "load_decoder"]

"""Objectives: everything that can be trained on a backbone."""

from .next_embedding import NextEmbedding, NextEmbeddingSettings
from .supervised import Classification, ClassificationSettings

__all__ = ["Classification", "ClassificationSettings", "NextEmbedding", "NextEmbeddingSettings"]

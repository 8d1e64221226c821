"""Objectives: everything that can be trained on a backbone."""

from .next_embedding import NextEmbedding, NextEmbeddingSettings

__all__ = ["NextEmbedding", "NextEmbeddingSettings"]

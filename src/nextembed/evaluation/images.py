"""Painted images compared with real ones in a feature space: Frechet distance and retrieval."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from ..core.run_folder import find_saved
from ..models.loading import load_model, load_processor, model_type
from .features.encoder import Encoder, encode


class FeatureSpace(NamedTuple):
    """encode: PIL images to features float32 [N, D]. name: description of the features."""

    encode: Callable[[Sequence[Image.Image]], Tensor]
    name: str


@runtime_checkable
class EmbedsImages(Protocol):
    """A model of images and texts, such as CLIP."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor | ModelOutput: ...


def frechet_distance(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> float:
    """Squared Frechet distance of two sets of features, each modelled by a normal distribution.

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), in float64, covariances with N - 1. The trace of the root comes from
    the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: nothing becomes complex, and sets of fewer images than
    features (singular covariances) work too; but with few images the value is too high.

    Args:
        first: [N, D].
        second: [M, D].

    Raises:
        ValueError: for fewer than two rows or different widths.

    Source: FID (arXiv 1706.08500); published figures use Inception features of 2048 and 30,000 images or more.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or len(a) < 2 or len(b) < 2:
        raise ValueError(
            f"needs two sets of at least two features of equal width, not {list(a.shape)} and {list(b.shape)}"
        )
    cov_a, cov_b = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    gap = a.mean(0) - b.mean(0)
    return max(0.0, float(gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * shared))


def retrieval_ranks(painted: Tensor, real: Tensor) -> np.ndarray:
    """Rank [N], from 1, of real image i among all real ones [N, D], by cosine with painted image i [N, D].

    Equally near ones are ordered as in the list."""
    painted, real = (torch.nn.functional.normalize(x.cpu().double(), dim=1) for x in (painted, real))
    similarity = painted @ real.T
    own = similarity.diagonal()[:, None]
    before = torch.arange(len(real))[None] < torch.arange(len(real))[:, None]
    return (1 + (similarity > own).sum(1) + ((similarity == own) & before).sum(1)).numpy()


def feature_space(path: str | Path, batch_size: int = 32) -> FeatureSpace:
    """Features of a NEPA (where they probed best), or of any Hugging Face vision model: the image embedding of CLIP and
    its like, else the pooled output, else the mean of the last tokens.

    Args:
        path: a run, a checkpoint, a model folder or a hub id.
        batch_size: images a forward pass.

    Raises:
        ConfigError: if there is no such model.
    """
    folder = find_saved(path).folder()
    if (kind := model_type(folder)).startswith("vit_nepa"):
        return nepa_space(path, batch_size)
    what = f"features: cannot load a vision model from {path}"
    model = load_model(folder, AutoModel, what=what, dtype=torch.float32)
    processor = load_processor(folder, AutoImageProcessor)

    @torch.no_grad()
    def encode(images: Sequence[Image.Image]) -> Tensor:
        parts = []
        for start in range(0, len(images), batch_size):
            batch = [image.convert("RGB") for image in images[start : start + batch_size]]
            pixels = processor(images=batch, return_tensors="pt")["pixel_values"]
            parts.append(pooled(model, pixels.to(model.device)).cpu())
        return torch.cat(parts)

    return FeatureSpace(encode, f"features of {kind} in {path}")


def nepa_space(path: str | Path, batch_size: int) -> FeatureSpace:
    """Features of a NEPA, where they probed best."""
    encoder = Encoder(path)
    layer, pooling, attention = encoder.place.key
    name = f"NEPA features of {path} (layer {layer}, {pooling}, {attention} attention; {encoder.place.why})"
    return FeatureSpace(lambda images: encode(encoder, list(images), batch_size=batch_size), name)


def pooled(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """One vector per image [B, D], float32, of any vision model."""
    if isinstance(model, EmbedsImages):
        embedded = model.get_image_features(pixel_values=pixels)
        return (embedded if isinstance(embedded, Tensor) else embedded["pooler_output"]).float()
    found = model(pixel_values=pixels)
    vector = found.get("pooler_output")
    return (found.last_hidden_state.mean(1) if vector is None else vector.flatten(1)).float()

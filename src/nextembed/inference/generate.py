"""Use of an Omni model: loading it with processor and readouts, and features of documents."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.types import AttentionMode, Sample
from ..errors import ConfigError
from ..evaluation.features.extract import Pooling, extract, feature_keys
from ..models.loading import open_pair
from ..models.omni import OmniForPreTraining, OmniProcessor
from ..models.omni.processing_omni import Piece, as_documents
from ..objectives.readout import load_readouts


def load_omni(path: str | Path, weights: str | None = None, device: str | None = None) -> OmniForPreTraining:
    """An Omni with its processor (`model.processor`); of a run that trained readouts, with these (`model.readouts`).

    Args:
        path: a run, a checkpoint, a model folder or a hub id.
        weights: "raw" or "ema"; None takes the first there is.
        device: by name; None takes the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: one line, for a path without an Omni, or one that does not load whole.
    """
    model, processor = open_pair(path, OmniForPreTraining, OmniProcessor, weights, device)
    model.processor = processor
    run = Path(path).expanduser()
    if (run / "readout" / "config.json").is_file():
        trained = load_readouts(run)
        trained.check(model)
        readouts = {name: readout for name, readout in trained.readouts.items() if readout.decoder != "conv"}
        model.readouts |= {name: readout.to(model.device) for name, readout in readouts.items()}
    return model


def features(
    model: OmniForPreTraining,
    documents: Sequence[Piece | Sequence[Piece]],
    layer: int | None = None,
    pooling: Pooling = "mean",
    attention: AttentionMode = "causal",
    batch_size: int = 64,
) -> Tensor:
    """Frozen features of documents.

    Args:
        model: with its processor.
        documents: each a list of pieces as `OmniProcessor` takes them, or one piece.
        layer: 0 is the latents, -1 the output; None takes the middle one.
        pooling: "mean" is over all latents but begin latents, "last" is the last one, "first" the first begin latent,
            which sees the rest only under full attention.
        attention: "causal" or "full".
        batch_size: documents a forward pass.

    Returns:
        float32 [N, D], on the CPU.

    Raises:
        ConfigError: for a layer that the model has not, and for pieces that it cannot read.
    """
    num_layers, processor = model.config.num_hidden_layers, model.processor
    layer = num_layers // 2 if layer is None else layer
    lists = [as_documents(one)[0] for one in documents]
    try:
        keys = feature_keys(num_layers, [layer], [pooling], [attention])
        encoded = [processor.encode_document(processor.document(pieces), end=False) for pieces in lists]
    except ValueError as err:
        raise ConfigError(str(err).splitlines()[0]) from None
    if not keys:
        raise ConfigError(
            "pooling 'first' reads a begin latent, which has seen nothing: take attention='full', layer > 0"
        )
    if not encoded:
        return torch.zeros(0, model.config.hidden_size)
    samples: list[Sample] = [{"encoded": one} for one in encoded]
    return extract(model, samples, keys, batch_size).values[keys[0]]

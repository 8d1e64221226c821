"""Shared by the tests of Omni: a tiny model whose weights are large enough for dependencies to be measurable."""

import numpy as np
import torch
from PIL import Image

from nextembed.models.omni import OmniConfig, OmniForPreTraining, OmniProcessor

BOUNDARY = {
    "text": {},
    "image": {"image_size": 8, "patch_size": 4},
    "touch": {"kind": "series", "channels": 2, "patch_size": 2},
}
WIDTH = 32


def omni(modalities=None, orders=None, seed=0, train=False, **fields):
    """A model on bytes, 2x2 patches and series of 2 channels, with its processor."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    modalities = modalities or BOUNDARY
    model = OmniForPreTraining(OmniConfig(modalities=modalities, **(sizes | {"layerscale_value": 1.0} | fields)))
    with torch.no_grad():  # with the initial scale of 0.02, positions barely interact
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "density" not in name:
                parameter.mul_(8)
        if model.model.next_place is not None:  # it is initialised to zero
            model.model.next_place.weight.normal_(std=0.3)
    model.processor = OmniProcessor(modalities, orders, model.config.tell_next)
    return model.train(train)


def random_picture(seed=0, size=8):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, size, size), dtype=np.uint8))


def pil(seed=0, size=8):
    return Image.fromarray(random_picture(seed, size).permute(1, 2, 0).numpy())


def series(seed=0, steps=6):
    return torch.randn(2, steps, generator=torch.Generator().manual_seed(seed))

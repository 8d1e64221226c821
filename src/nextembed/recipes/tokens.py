"""Tokenizers of images, and models of their tokens that draw new images: a chain of two runs.

For Fashion-MNIST take the data and model of `fashion_mnist`, of the same size for both runs; for your own images
data.source=path/to/images.
"""

from ..core.objective import ObjectiveSettings
from ..evaluation.probes.sweep import ProbeConfig
from ..objectives.scales import VarSettings
from ..objectives.tokenized import LlamaGenSettings, TokenizedSettings
from ..objectives.tokenizer import TokenizerSettings
from ..runs import RunConfig
from .nepa import nepa_demo

PATCH = 4  # pixels of a cell: 8 x 8 of them


def vq_demo() -> RunConfig:
    """A VQ tokenizer of the bundled emoji pictures: 8 x 8 codes per image."""
    return _tokenizer("vq_demo", TokenizerSettings())


def msvq_demo() -> RunConfig:
    """A multi-scale VQ tokenizer of the bundled emoji pictures: code maps of side 1, 2, 4 and 8."""
    return _tokenizer("msvq_demo", TokenizerSettings(scales=[1, 2, 4, 8], code_width=16))


def llamagen_demo() -> RunConfig:
    """LlamaGen on the bundled emoji pictures: the next code of vq_demo's tokenizer, conditioned on the group."""
    return _of_tokens("llamagen_demo", LlamaGenSettings(tokenizer="runs/vq_demo", num_classes=9), "vq_demo")


def var_demo() -> RunConfig:
    """VAR on the bundled emoji pictures: the next map of msvq_demo's tokenizer, conditioned on the group."""
    return _of_tokens("var_demo", VarSettings(tokenizer="runs/msvq_demo", num_classes=9), "msvq_demo")


def _of_tokens(name: str, objective: TokenizedSettings, after: str) -> RunConfig:
    demo = nepa_demo()
    changes = {
        "name": name,
        "model": demo.model.model_copy(update={"patch_size": PATCH, "is_causal": objective.attends == "causal"}),
        "objective": objective,
        "optim": type(objective).defaults,
        "train": demo.train.model_copy(update={"batch_size": 32, "ema_decay": None}),
        "after": [after],
    }
    return demo.model_copy(update=changes)


def _tokenizer(name: str, objective: ObjectiveSettings) -> RunConfig:
    demo = nepa_demo()
    train = demo.train.model_copy(update={"batch_size": 64, "max_steps": 600, "ema_decay": None})
    changes = {
        "name": name,
        "model": demo.model.model_copy(update={"patch_size": PATCH}),
        "objective": objective,
        "optim": type(objective).defaults,
        "train": train,
        "probe": ProbeConfig(enabled=False),  # its model is not trained
    }
    return demo.model_copy(update=changes)

"""nextembed: next-embedding prediction. One autoregressive model over latents, any modality.

`import nextembed` makes its models known to the Hugging Face Auto classes. Everything, torch included, is loaded when
it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .models.waiting import wait

__version__: str

if TYPE_CHECKING:  # the public names for type checkers and editors; _PUBLIC has the same at run time
    from . import recipes as recipes
    from .comparison.compare import compare as compare
    from .comparison.settings import CompareSettings as CompareSettings
    from .comparison.table import Comparison as Comparison
    from .core.code import allow_code as allow_code
    from .core.config import DATA as DATA
    from .core.config import MODELS as MODELS
    from .core.config import Config as Config
    from .core.config import Part as Part
    from .core.objective import OBJECTIVES as OBJECTIVES
    from .core.objective import Objective as Objective
    from .core.objective import ObjectiveOutput as ObjectiveOutput
    from .core.objective import ObjectiveSettings as ObjectiveSettings
    from .core.objective import SampleSettings as SampleSettings
    from .core.objective import ViewSettings as ViewSettings
    from .core.optim import OptimConfig as OptimConfig
    from .core.types import Backbone as Backbone
    from .core.types import Batch as Batch
    from .core.types import Document as Document
    from .core.types import Hidden as Hidden
    from .core.types import Latents as Latents
    from .core.types import Sample as Sample
    from .core.types import Segment as Segment
    from .data.documents import DocumentPart as DocumentPart
    from .data.images import ImagePart as ImagePart
    from .data.sharding import shard as shard
    from .data.sources import ImageData as ImageData
    from .data.transforms import Unreadable as Unreadable
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import MissingSplit as MissingSplit
    from .errors import NextEmbedError as NextEmbedError
    from .errors import TrainingError as TrainingError
    from .evaluation.features.embed import embed as embed
    from .evaluation.features.embed_many import embed_many as embed_many
    from .evaluation.features.encoder import Encoder as Encoder
    from .evaluation.features.encoder import encode as encode
    from .evaluation.features.index import build_index as build_index
    from .evaluation.features.search import search as search
    from .evaluation.probes.sweep import ProbeConfig as ProbeConfig
    from .export.formats import export_onnx as export_onnx
    from .export.formats import export_program as export_program
    from .export.hub import push_to_hub as push_to_hub
    from .export.int8 import quantize_int8 as quantize_int8
    from .export.layouts import convert as convert
    from .inference.chat import Talker as Talker
    from .inference.conversation import Conversation as Conversation
    from .inference.measuring import SampleEval as SampleEval
    from .inference.measuring import measure_samples as measure_samples
    from .inference.samples import Sampler as Sampler
    from .inference.settings import Sampling as Sampling
    from .modalities import MODALITIES as MODALITIES
    from .modalities import Modality as Modality
    from .modalities import Patches as Patches
    from .modalities import in_time as in_time
    from .models.emu import EmuConfig as EmuConfig
    from .models.emu import EmuForConditionalGeneration as EmuForConditionalGeneration
    from .models.emu import EmuModel as EmuModel
    from .models.emu import EmuParts as EmuParts
    from .models.emu import EmuPipeline as EmuPipeline
    from .models.emu import EmuProcessor as EmuProcessor
    from .models.emu import VisualDecoder as VisualDecoder
    from .models.emu import train_tokenizer as train_tokenizer
    from .models.nepa import NepaModel as NepaModel
    from .models.nepa import ViTNepaBackbone as ViTNepaBackbone
    from .models.nepa import ViTNepaConfig as ViTNepaConfig
    from .models.nepa import ViTNepaForImageClassification as ViTNepaForImageClassification
    from .models.nepa import ViTNepaForPreTraining as ViTNepaForPreTraining
    from .models.nepa import ViTNepaForSemanticSegmentation as ViTNepaForSemanticSegmentation
    from .models.nepa import ViTNepaModel as ViTNepaModel
    from .models.omni import OmniConfig as OmniConfig
    from .models.omni import OmniForPreTraining as OmniForPreTraining
    from .models.omni import OmniModel as OmniModel
    from .models.omni import OmniParts as OmniParts
    from .models.omni import OmniProcessor as OmniProcessor
    from .models.parts import ModelPart as ModelPart
    from .objectives.emu import EmuSettings as EmuSettings
    from .objectives.latent_decoder import LatentDecoderSettings as LatentDecoderSettings
    from .objectives.latent_decoder import load_decoder as load_decoder
    from .objectives.next_embedding import NextEmbedding as NextEmbedding
    from .objectives.next_embedding import NextEmbeddingSettings as NextEmbeddingSettings
    from .planning.plan import Plan as Plan
    from .planning.plan import plan as plan
    from .recipes.fitting import fit as fit
    from .report.visualize import Visualization as Visualization
    from .report.visualize import visualize as visualize
    from .runs import Run as Run
    from .runs import RunConfig as RunConfig
    from .runs import open_run as open_run
    from .training.settings import TrainConfig as TrainConfig

_PUBLIC = {
    "recipes.fitting": "fit",
    "runs": "Run RunConfig open_run",
    "comparison.compare": "compare",
    "comparison.settings": "CompareSettings",
    "comparison.table": "Comparison",
    "core.code": "allow_code",
    "core.config": "Config Part",
    "core.objective": "Objective ObjectiveOutput ObjectiveSettings SampleSettings ViewSettings",
    "core.optim": "OptimConfig",
    "core.types": "Backbone Batch Document Hidden Latents Sample Segment",
    "data.documents": "DocumentPart",
    "data.images": "ImagePart",
    "data.sharding": "shard",
    "data.sources": "ImageData",
    "data.transforms": "Unreadable",
    "toys.kinds": "DATA",  # modules that fill the registries
    "models.loading": "MODELS",
    "objectives": "OBJECTIVES",
    "errors": "ConfigError DataError MissingSplit NextEmbedError TrainingError",
    "evaluation.features.embed": "embed",
    "evaluation.features.embed_many": "embed_many",
    "evaluation.features.encoder": "Encoder encode",
    "evaluation.probes.sweep": "ProbeConfig",
    "inference.conversation": "Conversation",
    "evaluation.features.index": "build_index",
    "evaluation.features.search": "search",
    "inference.chat": "Talker",
    "inference.measuring": "SampleEval measure_samples",
    "inference.samples": "Sampler",
    "inference.settings": "Sampling",
    "export.formats": "export_onnx export_program",
    "export.hub": "push_to_hub",
    "export.int8": "quantize_int8",
    "export.layouts": "convert",
    "models.emu": "EmuConfig EmuForConditionalGeneration EmuModel EmuParts EmuPipeline EmuProcessor VisualDecoder"
    " train_tokenizer",
    "models.parts": "ModelPart",
    "models.nepa": "NepaModel ViTNepaBackbone ViTNepaConfig ViTNepaForImageClassification"
    " ViTNepaForPreTraining ViTNepaForSemanticSegmentation ViTNepaModel",
    "modalities": "MODALITIES Modality Patches in_time",
    "models.omni": "OmniConfig OmniForPreTraining OmniModel OmniParts OmniProcessor",
    "objectives.emu": "EmuSettings",
    "objectives.latent_decoder": "LatentDecoderSettings load_decoder",
    "objectives.next_embedding": "NextEmbedding NextEmbeddingSettings",
    "planning.plan": "Plan plan",
    "report.visualize": "Visualization visualize",
    "training.settings": "TrainConfig",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}


if not TYPE_CHECKING:  # hidden from type checkers, which would otherwise accept any name

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        if name == "recipes":
            return importlib.import_module(".recipes", __name__)
        if name == "__version__":
            from importlib.metadata import version

            return version("nextembed")
        raise AttributeError(f"module 'nextembed' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*_MODULE_OF, "recipes", "__version__"]


wait()

"""Objectives: everything that can be trained on a backbone."""

from ..core.objective import OBJECTIVES
from .alignment import Alignment, AlignmentSettings
from .contrastive import Cpc, CpcSettings
from .emu import EmuObjective, EmuSettings
from .jepa import IjepaSettings, Jepa, VjepaSettings
from .joint_embedding import LeJepa, LeJepaSettings, SimSiam, SimSiamSettings
from .latent_decoder import LatentDecoderSettings, load_decoder
from .mar import Mar, MarSettings
from .next_embedding import NextEmbedding, NextEmbeddingSettings
from .pixels import Aim, AimSettings, Mae, MaeSettings
from .readout import ReadoutSettings, load_readouts
from .scales import Var, VarSettings
from .segmentation import Segmentation, SegmentationSettings
from .supervised import Classification, ClassificationSettings
from .tokenized import LlamaGen, LlamaGenSettings
from .tokenizer import TokenizerSettings, Tokenizing, load_tokenizer
from .tokens import Beit, BeitSettings, Igpt, IgptSettings
from .visual_decoder import VisualDecoderSettings, VisualDecoding

__all__ = [
    "OBJECTIVES",
    "Aim",
    "AimSettings",
    "Alignment",
    "AlignmentSettings",
    "Beit",
    "BeitSettings",
    "Classification",
    "ClassificationSettings",
    "Cpc",
    "CpcSettings",
    "EmuObjective",
    "EmuSettings",
    "Igpt",
    "IgptSettings",
    "IjepaSettings",
    "Jepa",
    "LatentDecoderSettings",
    "LeJepa",
    "LeJepaSettings",
    "LlamaGen",
    "LlamaGenSettings",
    "Mae",
    "MaeSettings",
    "Mar",
    "MarSettings",
    "NextEmbedding",
    "NextEmbeddingSettings",
    "ReadoutSettings",
    "Segmentation",
    "SegmentationSettings",
    "SimSiam",
    "SimSiamSettings",
    "TokenizerSettings",
    "Tokenizing",
    "Var",
    "VarSettings",
    "VisualDecoderSettings",
    "VisualDecoding",
    "VjepaSettings",
    "load_decoder",
    "load_readouts",
    "load_tokenizer",
]

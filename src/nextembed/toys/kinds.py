"""Importing this registers every kind of data, so that a saved config can be read."""

from ..data.interleaved import Interleaved
from ..data.messages import Messages
from ..data.mixture import Mixture
from ..data.pairs import PairData, TextData
from ..data.records import Records
from ..data.segmentation import SegmentationData
from ..data.sources import ImageData
from ..data.video import VideoText
from .candle import Candle
from .emoji_documents import EmojiDocuments
from .scenes import EmojiScenes

__all__ = [
    "Candle",
    "EmojiDocuments",
    "EmojiScenes",
    "ImageData",
    "Interleaved",
    "Messages",
    "Mixture",
    "PairData",
    "Records",
    "SegmentationData",
    "TextData",
    "VideoText",
]

"""Importing this registers every kind of data, so that a saved config can be read."""

from .candle import Candle
from .emoji_documents import EmojiDocuments
from .interleaved import Interleaved
from .messages import Messages
from .mixture import Mixture
from .pairs import PairData, TextData
from .records import Records
from .scenes import EmojiScenes
from .segmentation import SegmentationData
from .sources import ImageData
from .video import VideoText

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

"""Importing this registers every kind of data with a source, so that saved configs can be read."""

from .interleaved import Interleaved
from .messages import Messages
from .mixture import Mixture
from .pairs import PairData, TextData
from .records import Records
from .segmentation import SegmentationData
from .sources import ImageData
from .video import VideoText

__all__ = [
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

"""Importing this registers every kind of data, so that a saved config can be read."""

from .scenes import EmojiScenes
from .segmentation import SegmentationData
from .sources import ImageData

__all__ = ["EmojiScenes", "ImageData", "SegmentationData"]

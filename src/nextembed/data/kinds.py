"""Importing this registers every kind of data, so that a saved config can be read."""

from .emoji_documents import EmojiDocuments
from .scenes import EmojiScenes
from .segmentation import SegmentationData
from .sources import ImageData
from .text import TextDocuments

__all__ = ["EmojiDocuments", "EmojiScenes", "ImageData", "SegmentationData", "TextDocuments"]

"""Importing this registers every kind of data, also of those that are made here."""

from ..core.config import DATA
from ..data import kinds as read
from .candle import Candle
from .emoji_documents import EmojiDocuments
from .moving_stamps import MovingStamps
from .scenes import EmojiScenes

__all__ = ["DATA", "Candle", "EmojiDocuments", "EmojiScenes", "MovingStamps", "read"]

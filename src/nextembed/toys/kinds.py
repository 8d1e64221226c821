"""Importing this registers every kind of data, with those of this package."""

from ..core.config import DATA
from ..data import kinds as read
from .candle import Candle
from .emoji_documents import EmojiDocuments
from .emoji_names import EmojiNames
from .moving_stamps import MovingStamps
from .scenes import EmojiScenes

__all__ = ["DATA", "Candle", "EmojiDocuments", "EmojiNames", "EmojiScenes", "MovingStamps", "read"]

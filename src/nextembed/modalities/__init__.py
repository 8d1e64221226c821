"""Modalities: how each kind of signal becomes latents. Importing this registers those of the package."""

from .audio import Audio
from .base import MODALITIES, Modality, Patches, in_time
from .series import Series
from .text import Text
from .video import Video
from .vision import Image

__all__ = ["MODALITIES", "Audio", "Image", "Modality", "Patches", "Series", "Text", "Video", "in_time"]

"""The boundary: how each kind of signal enters as latents. Importing this registers all that come with the package."""

from .audio import Audio
from .base import MODALITIES, Modality, Patches, in_time
from .series import Series
from .text import Text
from .video import Video
from .vision import Image

__all__ = ["MODALITIES", "Audio", "Image", "Modality", "Patches", "Series", "Text", "Video", "in_time"]

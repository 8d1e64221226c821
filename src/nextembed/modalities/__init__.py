"""The boundary: how each kind of signal enters as latents. Importing this registers all that come with the package."""

from .base import MODALITIES, Modality, Patches, in_time
from .series import Series
from .text import Text
from .vision import Image

__all__ = ["MODALITIES", "Image", "Modality", "Patches", "Series", "Text", "in_time"]

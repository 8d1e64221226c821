"""Objects that all panels share: folders, runs, models in memory, and the page."""

from dataclasses import dataclass

import gradio as gr

from .folders import Folders
from .models import Models
from .reading import Reader
from .settings import StudioSettings


@dataclass
class Shared:
    """maps: files of features in memory. page: the gradio page that is being built."""

    settings: StudioSettings
    folders: Folders
    reader: Reader
    models: Models
    maps: Models
    page: gr.Blocks

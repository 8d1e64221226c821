"""Tasks: the purpose and evaluation of a run, one file each. Importing this registers them."""

from .base import TASKS, OpenRun, RunSettings, Task, find_task, model_part, register, saved_task, task_of
from .classification import Classification
from .multimodal import Multimodal
from .pretraining import Pretraining
from .segmentation import Segmentation

__all__ = [
    "TASKS",
    "Classification",
    "Multimodal",
    "OpenRun",
    "Pretraining",
    "RunSettings",
    "Segmentation",
    "Task",
    "find_task",
    "model_part",
    "register",
    "saved_task",
    "task_of",
]

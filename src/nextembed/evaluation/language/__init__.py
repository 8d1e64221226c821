"""Evaluation of generated text and images: captions, answers, rankings, pictures."""

from .protocols import LanguageEval
from .scores import LanguageScores
from .tasks import score_language

__all__ = ["LanguageEval", "LanguageScores", "score_language"]

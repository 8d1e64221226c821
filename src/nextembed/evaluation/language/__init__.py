"""What a model says or paints, measured: captions, answers, rankings, pictures."""

from .protocols import LanguageEval
from .scores import LanguageScores
from .tasks import score_language

__all__ = ["LanguageEval", "LanguageScores", "score_language"]

"""Conversations about emoji, answered in sentences."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ..core.types import Segment
from ..data.draws import Draws
from ..data.messages import Turn, render

SECOND_RATE = 0.4  # of conversations have a second question


class Facts(NamedTuple):
    """Facts about an emoji."""

    name: str
    tags: Sequence[str]
    group: str


class Topic(NamedTuple):
    """Questions with the same meaning, and their answers."""

    questions: Sequence[str]
    answer: Callable[[Facts], str]


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


TOPICS = (
    Topic(
        ("What is this?", "What do you see?", "What does the picture show?", "Describe the picture."),
        lambda facts: f"This is the emoji for {facts.name}. It belongs to the group {facts.group}.",
    ),
    Topic(
        ("What does it stand for?", "Which words go with it?", "When would you use it?"),
        lambda facts: f"The emoji for {facts.name} goes with {listed(list(facts.tags)[:4]) or facts.name}.",
    ),
    Topic(
        ("What kind of thing is it?", "What sort of thing do you see?", "Which group is it from?"),
        lambda facts: f"It belongs to the group {facts.group}, because it is the emoji for {facts.name}.",
    ),
)


def conversation(picture: Segment, facts: Facts, draw: Draws) -> list[Segment]:
    """One question or two about a picture, as `nextembed chat` writes them for a model that was not instructed; loss on
    the answers."""
    first = draw.below(len(TOPICS))
    topics = [TOPICS[first]]
    if draw.share() < SECOND_RATE:
        topics.append(TOPICS[(first + 1 + draw.below(len(TOPICS) - 1)) % len(TOPICS)])
    turns: list[Turn] = []
    for number, topic in enumerate(topics):
        asked: list[Segment] = [said(topic.questions[draw.below(len(topic.questions))])]
        turns.append(("user", [picture, *asked] if number == 0 else asked))
        turns.append(("assistant", [said(topic.answer(facts))]))
    return render(turns, "Question", "Answer", turn_end="\n")


def said(words: str) -> Segment:
    kind: Literal["text"] = "text"
    return {"kind": kind, "value": words}

"""Short answers compared with those of annotators: VQA accuracy with its official normalisation, and exact match."""

import re
from collections.abc import Sequence
from typing import Literal

VQAStyle = Literal["vqav2", "vizwiz"]

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
           "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
ARTICLES = frozenset(("a", "an", "the"))
# Correct spellings; each also replaces itself with one apostrophe missing. The official table has exactly these, with
# "somebody'd" reversed.
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're "
    "why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
SPELLED = {"somebody'd": "somebodyd"} | {
    word[:i] + word[i + 1 :]: word for word in CONTRACTIONS.split(" ") for i, letter in enumerate(word) if letter == "'"
}


def normalize_answer(text: str) -> str:
    """A text as the official VQA evaluation compares it: "The two dogs, isnt it?" gives "2 dogs isn't it".

    Punctuation beside a space, or anywhere in a text with a number like 1,000, is left out, else it becomes a space;
    points stay only in front of a digit; then lower case, number words as digits, no articles, apostrophes put back.
    This follows the official code, with its errors: a point is left out whatever stands before it, only the first 32
    points are looked at, and ' and : are not punctuation.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    thousands = re.search(r"\d,\d", text) is not None
    result = text
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside or thousands else " ")
    result = re.sub(r"\.(?!\d)", "", result, count=32)
    found = [NUMBERS.get(word, word) for word in result.lower().split()]
    return " ".join(SPELLED.get(word, word) for word in found if word not in ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str], style: VQAStyle = "vqav2") -> float:
    """Accuracy of an answer in [0, 1], beside those of (usually ten) annotators: the mean, over leaving one of them
    out, of min(1, n / 3), n how many of the others say the same.

    The answer is normalised. style: "vqav2" (OK-VQA too) normalises the annotators' answers where they are not all the
    same text; "vizwiz" takes them as they are. (An older official VQA script corrects only their punctuation.)
    Raises ValueError without annotators.
    Source: VQA (arXiv 1505.00468); code of GT-Vision-Lab/VQA and of VizWiz.
    """
    if not references:
        raise ValueError("VQA accuracy needs the answers of annotators")
    if style == "vqav2" and len(set(references)) > 1:
        references = [normalize_answer(reference) for reference in references]
    same = [reference == normalize_answer(answer) for reference in references]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / len(same)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 if the normalised answer is one of the normalised references, else 0.0. As for MSVD-QA and MSRVTT-QA, whose
    answers are single words."""
    return float(normalize_answer(answer) in {normalize_answer(reference) for reference in references})


def short_answer(text: str) -> str:
    """The first few words of an answer: cut at a line end, ". ", a quotation mark or ", ", in lower case, without "it
    is", "it's", "a", "an", "the" in front. As Emu's benchmark code does before VQA accuracy."""
    text = re.split(r"\n|\. |\"|, ", text.strip(), maxsplit=1)[0].lower().strip()
    while (shorter := re.sub(r"^(?:it is|it's|an|a|the)(?:\s+|$)", "", text)) != text:
        text = shorter
    return text.rstrip(".").strip()

"""Captions compared with references: CIDEr, BLEU-1..4 and ROUGE-L, with the values of pycocoevalcap, as papers report
them.

Texts are compared as lists of words; `words` makes them much as the Java tokeniser does that pycocoevalcap calls.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

Words = Sequence[str]

# What pycocoevalcap drops after tokenising. Brackets become "-lrb-" there, which is not in its (upper-case) list.
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "dr", "st", "jr", "sr", "vs", "etc", "prof", "gen", "gov", "inc", "co", "corp", "mt", "lt"]
)
CUT = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
       "gimme": ("gim", "me"), "lemme": ("lem", "me"), "d'ye": ("d'", "ye"), "'tis": ("'t", "is"),
       "'twas": ("'t", "was")}  # fmt: skip
INITIALS = frozenset(string.ascii_uppercase)
QUOTES = re.compile(r"\.{2,}|-{2,}|[\"“”‘’«»–—…]")
TOKEN = re.compile(
    r"""(?:https?://|www\.)\S+            # addresses
    |[^\s@<>]+@[^\s@<>]+\.[a-z]+          # of mail
    |\d+(?:[.,:]\d+)+                     # 3.5 1,000 10:30
    |(?:[^\W\d_]\.){2,}                   # u.s.
    |\w+(?:['’](?!s\b|re\b|ve\b|ll\b|d\b|m\b)\w+)*(?:[-_/]\w+(?:['’](?!s\b)\w+)*)*   # words, with - / and inner '
    |['’](?:s|re|ve|ll|d|m)\b             # 's of it's
    |\.{2,}|-{2,}|``|''|[^\s\w]""",
    re.VERBOSE | re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Lower-case words of a text, without punctuation: "A man's dog, isn't it?" gives a man 's dog is n't it.

    The rules of the Penn Treebank, as Stanford's PTBTokenizer 3.4.1 (-lowerCase) applies them and pycocoevalcap then
    filters: n't, 's, 're, 've, 'll, 'd, 'm stand alone, "cannot" is two words, words with a hyphen are one, brackets
    become -lrb- and so on (they stay, as there), other punctuation goes. It differs in rare things:
    abbreviations are a short list, signed numbers, 'n' and foreign apostrophes (Sha'ban) come out otherwise, and
    emoticons and markup are taken apart. Of 6,000 WordNet glosses 8 come out otherwise.
    """
    found: list[str] = []
    before = ""  # as it was written
    tokens = TOKEN.findall(text.replace("’", "'"))
    for number, original in enumerate(tokens):
        token = original.lower()
        if token in CUT:
            found.extend(CUT[token])
        elif token.endswith("n't") and len(token) > 3:
            found.extend((token[:-3], "n't"))
        elif token == "." and (before.lower() in ABBREVIATIONS or (before in INITIALS and number + 1 < len(tokens))):
            found[-1] += "."
        elif token not in DROPPED and not QUOTES.fullmatch(token):
            found.append(BRACKETS.get(token, token))
        before = original
    return found


def ngrams(tokens: Words, longest: int = 4) -> Counter[tuple[str, ...]]:
    """Counts of each n-gram of 1 to `longest` words."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1))


def cider(answers: Sequence[Words], references: Sequence[Sequence[Words]], sigma: float = 6.0) -> np.ndarray:
    """CIDEr-D of each answer [items], float64, 0 to 10; its mean is the score (usually printed times 100).

    n-grams of 1 to 4 words, weighted by how few of this set's items have them in a reference; so a score depends on
    the whole set, and that of a single item is 0. Cosine with clipped counts, times a Gaussian of the difference in
    length (counted in 2-grams, as pycocoevalcap does), mean over n and references, times 10.
    Source: CIDEr (arXiv 1411.5726), the variant D.
    """
    frequency: Counter[tuple[str, ...]] = Counter()
    counted = [[ngrams(reference) for reference in group] for group in references]
    for known in counted:
        frequency.update({gram for counts in known for gram in counts})
    total = math.log(max(1, len(answers)))

    def weigh(counts: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(4)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (total - math.log(max(1, frequency[gram])))
        return vectors

    def norm(vector: dict[tuple[str, ...], float]) -> float:
        return math.sqrt(sum(value * value for value in vector.values()))

    scores = np.zeros(len(answers))
    for item, (answer, group) in enumerate(zip(answers, references, strict=True)):
        own = weigh(ngrams(answer))
        sizes = [norm(vector) for vector in own]
        for reference, counts in zip(group, counted[item], strict=True):
            gap = max(0, len(answer) - 1) - max(0, len(reference) - 1)
            for vector, size, other in zip(own, sizes, weigh(counts), strict=True):
                dot = sum(min(v, other[gram]) * other[gram] for gram, v in vector.items() if gram in other)
                if dot and size:
                    scores[item] += dot / (size * norm(other)) * math.exp(-(gap**2) / (2 * sigma**2))
        scores[item] *= 10 / 4 / max(1, len(group))
    return scores


def bleu_counts(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """Counts for BLEU, [items, 10], float64: length of each answer, length of the closest reference (of equally close
    ones the shorter), its number of 1-, 2-, 3-, 4-grams, and how many of these are in a reference."""
    table = np.zeros((len(answers), 10))
    for row, answer, group in zip(table, answers, references, strict=True):
        most: Counter[tuple[str, ...]] = Counter()
        for reference in group:
            most |= ngrams(reference)
        closest = min((abs(len(r) - len(answer)), len(r)) for r in group)[1] if group else 0
        row[:2] = len(answer), closest
        row[2:6] = [max(0, len(answer) - n) for n in range(4)]
        for gram, count in (ngrams(answer) & most).items():
            row[5 + len(gram)] += count
    return table


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4 [..., 4], in [0, 1], of sums [..., 10] of rows of `bleu_counts`: geometric means of the precisions,
    times exp(1 - reference / answer) where the answers are shorter. Source: Papineni et al., 2002; the tiny constants
    are pycocoevalcap's."""
    precisions = (sums[..., 6:] + 1e-15) / (sums[..., 2:6] + 1e-9)
    means = np.exp(np.log(precisions).cumsum(-1) / np.arange(1, 5))
    ratio = (sums[..., :1] + 1e-15) / (sums[..., 1:2] + 1e-9)
    return means * np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)


def rouge_l(answers: Sequence[Words], references: Sequence[Sequence[Words]], beta: float = 1.2) -> np.ndarray:
    """ROUGE-L of each answer [items], in [0, 1]: F of precision and recall of the longest common subsequence, each the
    best over references. beta: weight of recall. Source: Lin, 2004; constants as pycocoevalcap's."""
    scores = np.zeros(len(answers))
    for item, (answer, group) in enumerate(zip(answers, references, strict=True)):
        common = [(longest_common(answer, reference), len(reference)) for reference in group]
        precision = max((c / len(answer) for c, _ in common if len(answer)), default=0.0)
        recall = max((c / length for c, length in common if length), default=0.0)
        if precision and recall:
            scores[item] = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return scores


def longest_common(first: Words, second: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for i, other in enumerate(second):
            before, row[i + 1] = row[i + 1], before + 1 if word == other else max(row[i + 1], row[i])
    return row[-1]

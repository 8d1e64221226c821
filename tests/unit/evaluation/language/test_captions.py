"""Caption metrics against values derived by hand."""

import math

import numpy as np
import pytest

from nextembed.evaluation.language.captions import bleu_counts, bleu_of, cider, longest_common, rouge_l, words


def bleu(answers, references):
    """Corpus BLEU-1 to BLEU-4."""
    return bleu_of(bleu_counts(answers, references).sum(0))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A man's dog, isn't it?", "a man 's dog is n't it"),
        ("Two dogs can't play (in the park).", "two dogs ca n't play -lrb- in the park -rrb-"),
        ("it's 10:30 a.m. in the U.S. today", "it 's 10:30 a.m. in the u.s. today"),
        ("He cannot go; he's gonna -- stay...", "he can not go he 's gon na stay"),
        ('A black-and-white cat/dog: "tail"', "a black-and-white cat/dog tail"),
        ("Mr. Smith and F. Scott, 1,000 people etc.", "mr. smith and f. scott 1,000 people etc."),
        ("$3.50 & 50%", "$ 3.50 & 50 %"),
        ("the girls' team", "the girls team"),
        ("L’été, 猫", "l'été 猫"),
        ("...", ""),
    ],
)
def test_words(text, wanted):
    assert " ".join(words(text)) == wanted


def split(*texts):
    return [text.split() for text in texts]


def test_cider_of_equal_captions_is_10():
    """All four cosines are 1 if every caption has at least four words that no other caption has."""
    texts = split("a red cat sleeps here", "two old boats at sea", "one green hill far away")
    assert cider(texts, [[t] for t in texts]) == pytest.approx([10, 10, 10])


def test_cider_by_hand():
    """Two items; an n-gram of only one item has idf log 2, so all weights are equal and only counts matter.

    "red cat" and "red dog" share 1 of 2 1-grams, cosine 1/2, and no 2-gram; there are no longer n-grams: 0.
    Mean over n: (1/2) / 4; times 10: 1.25. The second reference "red cat here" gives 2 / sqrt(2 * 3) for 1-grams and
    1 / sqrt(1 * 2) for 2-grams, times exp(-1 / 72) for lengths that differ by one. An item's score is the mean over
    its references.
    """
    one = cider(split("red cat", "x y"), [split("red dog"), split("x y")])
    assert one[0] == pytest.approx(1.25)
    assert one[1] == pytest.approx(10 * 2 / 4)  # identical, but without 3- and 4-grams
    two = cider(split("red cat", "x y"), [split("red dog", "red cat here"), split("x y")])
    second = 10 / 4 * (2 / math.sqrt(6) + 1 / math.sqrt(2)) * math.exp(-1 / 72)
    assert two[0] == pytest.approx((1.25 + second) / 2)


def test_cider_clips_repeated_words():
    """Counts of "cat": 2 in the answer, 1 in the reference: min(2, 1) * 1 / (2 * 1) = 1/2, times exp(-1/72)."""
    assert cider(split("cat cat", "x"), [split("cat"), split("x")])[0] == pytest.approx(
        10 / 4 * 0.5 * math.exp(-1 / 72)
    )


def test_cider_ignores_words_of_every_item_and_empty_answers():
    assert cider(split("a", "a"), [split("a"), split("a")]) == pytest.approx([0, 0])
    assert cider(split("a b"), [split("a b")]) == pytest.approx([0])  # with one item, idf is log 1 = 0
    assert cider([[], ["x"]], [split("a b"), split("x")])[0] == 0


def test_bleu_by_hand():
    """Example of Papineni et al.: 2 of 7 words match and no 2-gram; no brevity penalty, since 7 > 6 words."""
    found = bleu(split("the the the the the the the"), [split("the cat is on the mat")])
    assert found[0] == pytest.approx(2 / 7, rel=1e-6)
    assert found[1] < 1e-6
    longer = bleu(split("the cat is on"), [split("the cat is on the mat")])
    assert longer == pytest.approx([math.exp(1 - 6 / 4)] * 4, rel=1e-6)


def test_bleu_sums_over_the_set_and_takes_the_closest_length():
    answers, references = split("a b c d", "x y"), [split("a b c", "a b c d e"), split("x z")]
    counts = bleu_counts(answers, references)
    assert counts[0].tolist() == [4, 3, 4, 3, 2, 1, 4, 3, 2, 1]  # 3 and 5 are equally close: the shorter is used
    assert counts[1].tolist() == [2, 2, 2, 1, 0, 0, 1, 0, 0, 0]
    assert bleu(answers, references)[:2] == pytest.approx([5 / 6, math.sqrt(5 / 6 * 3 / 4)], rel=1e-6)


def test_rouge_by_hand():
    """The longest common subsequence has 3 of 4 and 4 words, so F = 3/4 for every beta."""
    answers = split("police killed the gunman", "a b", "", "q")
    references = [split("police kill the gunman"), split("a x b y", "z"), split("a"), split("r")]
    beta2 = 1.44
    second = (1 + beta2) * 1 * 0.5 / (0.5 + beta2 * 1)
    assert rouge_l(answers, references) == pytest.approx([0.75, second, 0, 0])
    assert longest_common("abcbdab", "bdcaba") == 4


def test_scores_do_not_depend_on_the_order_of_items():
    answers = split("a red cat", "two blue boats", "a hill")
    references = [split("a red cat sleeps"), split("blue boats", "two boats"), split("the green hill")]
    turned = cider(answers[::-1], references[::-1])[::-1]
    assert np.allclose(cider(answers, references), turned)
    assert np.allclose(bleu(answers, references), bleu(answers[::-1], references[::-1]))

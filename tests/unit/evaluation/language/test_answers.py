"""VQA accuracy, normalisation, short answers."""

import pytest

from nextembed.evaluation.language.answers import SPELLED, exact_match, normalize_answer, short_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The two dogs, isnt it?", "2 dogs isn't it"),
        ("Yes.", "yes"),
        ("none", "0"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("a - b", "b"),  # a punctuation mark next to a space is removed, and so is the article
        ("it's 5 o'clock", "it's 5 o'clock"),
        ("5 oclock\n", "5 o'clock"),
        ("somebody'd", "somebodyd"),  # reversed in the official table
        ("cannot", "cannot"),
        ("a:b 'c'", "a:b 'c'"),  # colons and apostrophes are not punctuation in the official code
        ("." * 40, "." * 8),  # only the first 32 full stops are removed
        ("", ""),
    ],
)
def test_normalize(text, wanted):
    assert normalize_answer(text) == wanted


def test_the_table_of_contractions():
    assert SPELLED["couldnt've"] == SPELLED["couldn'tve"] == "couldn't've" and "couldntve" not in SPELLED
    assert SPELLED["ow's'at"] == SPELLED["'ows'at"] == SPELLED["'ow'sat"] == "'ow's'at"
    assert len(SPELLED) == 114


@pytest.mark.parametrize(("same", "wanted"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_leaving_one_annotator_out(same, wanted):
    """n of 10 annotators agree: leaving one out, n ways leave m = n - 1 matches, the others m = n; score min(1, m / 3).

    n = 1: 9 ways give 1/3; n = 2: 2 give 1/3, 8 give 2/3; n = 3: 3 give 2/3, 7 give 1.
    """
    assert vqa_accuracy("Cat.", ["cat"] * same + ["a dog"] * (10 - same)) == pytest.approx(wanted)


def test_annotators_are_normalised_unless_they_all_agree():
    assert vqa_accuracy("2", ["two"] * 9 + ["three"]) == 1
    assert vqa_accuracy("2", ["two"] * 10) == 0  # as in the official code
    assert vqa_accuracy("2", ["two"] * 9 + ["three"], "vizwiz") == 0
    assert vqa_accuracy("unanswerable", ["unanswerable"] * 2 + ["dog"] * 8, "vizwiz") == pytest.approx(0.6)
    with pytest.raises(ValueError, match="annotators"):
        vqa_accuracy("2", [])


def test_exact_match():
    assert exact_match("The Man", ["man"]) == 1
    assert exact_match("men", ["man", "boy"]) == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It is a cat. It sleeps.", "cat"),
        ("the answer\nis here", "answer"),
        ('red" he said', "red"),
        ("Red, blue", "red"),
        ("It's the Eiffel tower.", "eiffel tower"),
        ("3.5 metres", "3.5 metres"),
        ("theatre", "theatre"),
        ("a", ""),
        ("", ""),
    ],
)
def test_short_answer(text, wanted):
    assert short_answer(text) == wanted

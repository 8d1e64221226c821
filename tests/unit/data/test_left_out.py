"""Documents without prediction targets are skipped, listed and counted; a run on only such documents fails."""

import json
import multiprocessing

import pytest
from encoding import encode

from nextembed.core.config import DATA
from nextembed.core.types import Loading
from nextembed.data import kinds  # noqa: F401
from nextembed.data.documents import DocumentPart, text
from nextembed.data.skipped import SkipLog
from nextembed.errors import DataError

MAX_LENGTH = 32


class Asked(DocumentPart):
    """A question with the given number of letters, and its answer."""

    letters: list[int]
    answered: bool = True

    def rows(self, split):
        return [{"key": f"{i}", "letters": n} for i, n in enumerate(self.letters)]

    def document(self, row, seed):
        return {"key": row["key"], "segments": [text("q" * row["letters"], False), text("yes", self.answered)]}


class Sequence(Asked):
    def rows(self, split):
        rows = super().rows(split)

        class Read:
            def read(self, seed, epoch, reader, num_readers):
                return iter(rows[reader::num_readers])

        return Read()


def batches(part, num=3, path=None):
    made = part.train_loader(Loading(micro_batch_size=1, skipped_path=path), encode=encode, max_length=MAX_LENGTH)
    return made, [batch for _, batch in zip(range(num), made)]


@pytest.mark.parametrize("kind", [Asked, Sequence])
@pytest.mark.parametrize("long", ["truncate", "skip"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_only_too_long_documents_fail_after_one_pass(kind, long, num_workers):
    part = kind(letters=[50, 60, 70, 80], long=long, num_workers=num_workers, max_skipped_rate=1.0)
    with pytest.raises(DataError, match=r"none of the \d documents read can be used: .*too long: more than 32"):
        batches(part)


def test_workers_exit_on_an_error():
    """Workers exit on the error, not at garbage collection, which may be late, takes 20 seconds and keeps memory."""
    part = Asked(letters=[50, 60], num_workers=2, max_skipped_rate=1.0)
    made = part.train_loader(Loading(micro_batch_size=1), encode=encode, max_length=MAX_LENGTH)
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError) as caught:
        list(zip(range(3), made))
    assert "none of the" in str(caught.value)
    assert set(multiprocessing.active_children()) <= before


def test_more_than_the_allowed_share_is_a_one_line_error():
    with pytest.raises(
        DataError, match=r"of 8 documents are unreadable .*too long: more than 32 .* no prediction target"
    ):
        batches(Asked(letters=[5, 50] * 4, num_workers=0))


def test_skipped_documents_are_listed_once(tmp_path):
    part = Asked(letters=[5, 50, 6, 7, 60, 8], num_workers=0, num_readers=1, max_skipped_rate=0.5)
    made, _ = batches(part, 20, tmp_path / "skipped.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == {"1", "4"} and len(lines) == 2
    assert {line["reason"] for line in lines} == {
        "too long: more than 32 positions, and no prediction target before the cut"
    }
    assert made.counts["too_long"] > 2


def test_documents_skipped_by_setting_are_listed_but_not_counted(tmp_path):
    part = Asked(letters=[5, 50, 50, 50], long="skip", num_workers=0, num_readers=1, max_skipped_rate=0.0)
    batches(part, 5, tmp_path / "skipped.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {line["key"]: line["counts"] for line in lines} == {"1": False, "2": False, "3": False}
    log = SkipLog(tmp_path / "skipped.jsonl", 0.0, 4)
    log.check(4)  # another process reads the log and does not count them either
    assert set(log.reasons) == {"1", "2", "3"}


def test_a_document_without_prediction_targets(tmp_path):
    class Silent(Asked):
        def document(self, row, seed):
            found = super().document(row, seed)
            return found | {"segments": [text("q", row["letters"] > 3)]}

    def encode_open(document):  # without an end token
        one = encode(document)
        return type(one)({name: rows[:-1] for name, rows in one.positions.items()}, one.values)

    part = Silent(letters=[1, 9, 9, 9], num_workers=0, num_readers=1, max_skipped_rate=0.5)
    made = part.train_loader(
        Loading(micro_batch_size=1, skipped_path=tmp_path / "s.jsonl"), encode=encode_open, max_length=MAX_LENGTH
    )
    for _ in zip(range(3), made):
        pass
    (line,) = (tmp_path / "s.jsonl").read_text().splitlines()
    assert (json.loads(line)["key"], json.loads(line)["reason"]) == ("0", "it has no prediction target")


def said(*answers):
    talk = []
    for answer in answers:
        talk += [{"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}]
    return {"messages": talk}


@pytest.mark.parametrize(
    "row",
    [
        said(""),
        said("  \n"),
        said("fine", ""),
        said("", "fine"),
        said([]),
        said([{"type": "text", "text": " "}]),
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "\t"}]},
    ],
)
def test_empty_answers(tmp_path, row):
    good = {"messages": None, "conversations": None} | said("yes")
    if "conversations" in row:
        good = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, good)))
    part = DATA.parse({"kind": "messages", "source": str(tmp_path / "a.jsonl"), "max_skipped_rate": 1.0,
                       "messages_column": "conversations" if "conversations" in row else "messages"})  # fmt: skip
    found = part.documents("train")
    assert len(list(found)) == 1 and found.skipped.reasons == {"0": "an answer is empty"}


@pytest.mark.parametrize("question", ["", " \n", [], [{"type": "text", "text": " "}]])
def test_empty_questions(tmp_path, question):
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, said("yes"))))
    source = {"kind": "messages", "source": str(tmp_path / "a.jsonl"), "max_skipped_rate": 1.0}
    found = DATA.parse(source).documents("train")
    assert len(list(found)) == 1 and found.skipped.reasons == {"0": "a question is empty"}

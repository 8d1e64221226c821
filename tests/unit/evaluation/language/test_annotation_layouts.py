"""Small annotation files in the official layouts, and tables."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from nextembed.errors import ConfigError, DataError
from nextembed.evaluation.language.examples import ImageFolder
from nextembed.evaluation.language.layouts import READERS
from nextembed.evaluation.language.protocols import LanguageEval
from nextembed.evaluation.language.reading import choose_items, read_examples
from nextembed.evaluation.language.tables import read_table


def picture(file, color="red"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), color).save(file)
    return file


def write(file, values):
    file.write_text(json.dumps(values))
    return file


def read(layout, file, folder, other=None):
    return READERS[layout](file, ImageFolder(folder), other)


def test_karpathy(tmp_path):
    image = picture(tmp_path / "val2014" / "COCO_val2014_000000000007.jpg")
    picture(tmp_path / "b.jpg")
    rows = [
        {"filepath": "val2014", "filename": image.name, "cocoid": 7, "split": "test",
         "sentences": [{"raw": "A cat.", "tokens": ["a", "cat"]}, {"raw": "One cat"}]},
        {"filename": "b.jpg", "split": "train", "sentences": [{"raw": "A dog"}]},
    ]  # fmt: skip
    file = write(tmp_path / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    first, second = read("coco", file, tmp_path)
    assert (first.key, first.references, first.split) == ("7", ["A cat.", "One cat"], "test")
    assert first.pictures == [{"kind": "image", "value": image.resolve()}]
    assert second.split == "train"
    settings = LanguageEval(task="caption", data=str(file), format="coco")
    assert [e.key for e in choose_items(settings, read_examples(settings))] == ["7"]  # the test split


def test_coco_captions_and_rows(tmp_path):
    picture(tmp_path / "a.jpg")
    values = {"images": [{"id": 3, "file_name": "a.jpg"}], "annotations": [{"image_id": 3, "caption": "A cat"}] * 2}
    (one,) = read("coco", write(tmp_path / "captions.json", values), tmp_path)
    assert (one.key, one.references) == ("3", ["A cat", "A cat"])
    (one,) = read("coco", write(tmp_path / "rows.json", [{"image": "a.jpg", "caption": ["x", "y"]}]), tmp_path)
    assert one.references == ["x", "y"]


def vqa_files(folder, prefix=""):
    questions = {"data_subtype": "val2014", "questions": [{"question_id": 1, "image_id": 7, "question": "What is it?"}]}
    answers = [{"answer_id": i + 1, "answer": "cat", "answer_confidence": "yes"} for i in range(10)]
    label = {"question_id": 1, "image_id": 7, "answers": answers, "question_type": "what", "answer_type": "other"}
    write(folder / f"{prefix}mscoco_val2014_annotations.json", {"annotations": [label]})
    return write(folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json", questions)


@pytest.mark.parametrize("prefix", ["v2_", ""])
@pytest.mark.parametrize("place", ["val2014/COCO_val2014_000000000007.jpg", "000000000007.jpg"])
def test_vqa_finds_annotations_and_images(tmp_path, prefix, place):
    image = picture(tmp_path / "images" / place)
    (one,) = read("vqav2", vqa_files(tmp_path, prefix), tmp_path / "images")
    assert (one.key, one.question, one.references, one.kind) == ("1", "What is it?", ["cat"] * 10, "other")
    assert one.pictures[0]["value"] == image.resolve()


def test_vqa_without_annotations(tmp_path):
    picture(tmp_path / "000000000007.jpg")
    file = vqa_files(tmp_path)
    other = tmp_path / "mscoco_val2014_annotations.json"
    moved = other.rename(tmp_path / "else.json")
    with pytest.raises(ConfigError, match="--annotations"):
        read("okvqa", file, tmp_path)
    assert len(read("okvqa", file, tmp_path, moved)) == 1
    write(moved, {"annotations": []})
    with pytest.raises(DataError, match="no answers to question 1"):
        read("okvqa", file, tmp_path, moved)


def test_vizwiz(tmp_path):
    picture(tmp_path / "a.jpg")
    row = {"image": "a.jpg", "question": "What?", "answers": [{"answer": "can", "answer_confidence": "yes"}] * 10,
           "answer_type": "other", "answerable": 1}  # fmt: skip
    (one,) = read("vizwiz", write(tmp_path / "val.json", [row]), tmp_path)
    assert (one.question, one.references, one.kind) == ("What?", ["can"] * 10, "other")


def visdial(folder):
    picture(folder / "VisualDialog_val2018_000000000009.jpg")
    turns = [
        {"question": 0, "answer": 1, "answer_options": [0, 1, 2], "gt_index": 1},
        {"question": 1, "answer": 0, "answer_options": [2, 1, 0], "gt_index": 2},
        {"question": 0, "answer_options": [0, 1, 2]},
    ]
    data = {"questions": ["is it big", "is it red?"], "answers": ["no", "yes", "maybe"],
            "dialogs": [{"image_id": 9, "caption": "a cat", "dialog": turns}]}  # fmt: skip
    dense = [{"image_id": 9, "round_id": 2, "gt_relevance": [0.5, 0.0, 1.0]}]
    write(folder / "dense.json", dense)
    return write(folder / "visdial.json", {"version": "1.0", "split": "val2018", "data": data})


def test_visdial(tmp_path):
    first, second = read("visdial", visdial(tmp_path), tmp_path, tmp_path / "dense.json")
    assert (first.key, first.before, first.question) == ("9/1", "a cat.", "is it big?")
    assert (first.candidates, first.target, first.references) == (["no", "yes", "maybe"], 1, ["yes"])
    assert first.relevance is None and second.relevance == [0.5, 0.0, 1.0]
    assert second.before == "a cat. is it big? yes." and second.candidates[second.target] == "no"


def test_mmvet(tmp_path):
    picture(tmp_path / "v1_0.png")
    row = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    (one,) = read("mmvet", write(tmp_path / "mm-vet.json", {"v1_0": row}), tmp_path)
    assert (one.key, one.question, one.kind) == ("v1_0", "What is x?", "ocr, math")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../a.jpg", "outside"),
        ("/etc/passwd", "outside"),
        ("b.jpg", "is not in"),
        ("", "given by its file name"),
        (None, "given by its file name"),
    ],
)
def test_images_may_not_leave_their_folder(tmp_path, name, words):
    picture(tmp_path / "a.jpg")
    (tmp_path / "inside").mkdir()
    file = write(tmp_path / "val.json", [{"image": name, "question": "?", "answers": []}])
    with pytest.raises(DataError, match=words):
        read("vizwiz", file, tmp_path / "inside")


def test_images_may_not_leave_their_folder_by_a_link(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link.jpg").symlink_to(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="outside"):
        ImageFolder(tmp_path / "inside").path("link.jpg")


@pytest.mark.parametrize("layout", READERS)
@pytest.mark.parametrize("text", ["no json", "[1, 2]", '{"a": 1}'])
def test_files_of_another_layout(tmp_path, layout, text):
    file = tmp_path / "questions.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"layout|JSON") as err:
        read(layout, file, tmp_path, file)
    assert "\n" not in str(err.value)


def bytes_of(color):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), color).save(file, "PNG")
    return file.getvalue()


def test_parquet_with_bytes(tmp_path):
    rows = [
        {"image": {"bytes": bytes_of(c), "path": None}, "name": c, "vendor": v}
        for c, v in (("red", "a"), ("blue", "b"))
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    (one,) = read_table(tmp_path / "t.parquet", None, {"references": "name"}, {"vendor": ["b", "c"]})
    assert (one.key, one.references) == ("1", ["blue"]) and one.pictures[0]["value"] == bytes_of("blue")


def test_csv_and_json_lines(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text('image,question,answer\na.png,"What, then?",cat\n')
    row = {"id": "q", "image": ["a.png", "a.png"], "question": "Which?", "candidates": ["x", "y"], "answer": "y"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n\n")
    (one,) = read_table(tmp_path / "t.csv")
    assert (one.question, one.references) == ("What, then?", ["cat"])
    (one,) = read_table(tmp_path / "t.jsonl")
    assert (one.key, one.target, len(one.pictures)) == ("q", 1, 2)


def test_videos_are_frames_or_animations(tmp_path):
    frames = [Image.new("RGB", (8, 8), (i * 20, 0, 0)) for i in range(12)]
    frames[0].save(tmp_path / "v.gif", save_all=True, append_images=frames[1:], duration=50)
    picture(tmp_path / "a.png")
    rows = [{"video": "v.gif", "question": "What?", "answer": "cat"},
            {"video": ["a.png"] * 3, "question": "What?", "answer": "cat"}]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = read_table(tmp_path / "t.jsonl")
    assert first.pictures[0]["kind"] == "video" and len(second.pictures[0]["value"]) == 3
    step = 11 / 8
    wanted = [(int(step / 2) + round(step * i)) * 20 for i in range(8)]
    assert [abs(f.convert("RGB").getpixel((0, 0))[0] - w) < 6 for f, w in zip(first.pictures[0]["value"], wanted)] == [
        True
    ] * 8


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "a.png", "answer": "z", "candidates": ["x", "y"]}, "not one of the candidates"),
        ({"image": "a.png", "target": 2, "candidates": ["x", "y"]}, "target 2"),
        ({"image": "a.png", "target": 0, "candidates": ["x", "y"], "relevance": [1]}, "relevance"),
        ({"image": None, "answer": "z"}, "no image"),
        ({"image": 3, "answer": "z"}, "an image is"),
        ({"image": "a.png", "answer": {"x": 1}}, "list of texts"),
        ({"video": [], "answer": "z"}, "without frames"),
    ],
)
def test_invalid_rows(tmp_path, row, words):
    picture(tmp_path / "a.png")
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=words):
        read_table(tmp_path / "t.jsonl")


def test_missing_columns(tmp_path):
    (tmp_path / "t.csv").write_text("picture,title\na.png,x\n")
    for columns, where, words in (
        ({"references": "titel"}, {}, "Did you mean 'title'"),
        ({"referenzes": "title"}, {}, "Did you mean 'references'"),
        ({}, {"vendor": 1}, "column 'vendor'"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_table(tmp_path / "t.csv", None, columns, where)
    (tmp_path / "u.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ConfigError, match="none of the columns"):
        read_table(tmp_path / "u.csv")
    with pytest.raises(ConfigError, match="a table is"):
        read_table(picture(tmp_path / "x.png"))


def test_special_tokens_in_a_text_are_text(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,question,answer\na.png,What <image> is it?,[IMG]\n")
    (item,) = read_examples(LanguageEval(task="vqa", data=str(tmp_path / "t.csv")))
    assert item.question == "What <image> is it?" and item.references == ["[IMG]"]


@pytest.mark.parametrize(
    ("answer", "words"), [("NaN", "nan is not text"), ('""', "no reference"), ("[]", "no reference")]
)
def test_missing_answers(tmp_path, answer, words):
    picture(tmp_path / "a.png")
    (tmp_path / "t.jsonl").write_text(f'{{"image": "a.png", "question": "What?", "answer": {answer}}}\n')
    settings = LanguageEval(task="vqa", data=str(tmp_path / "t.jsonl"))
    with pytest.raises(DataError, match=words):
        choose_items(settings, read_examples(settings))

"""Labels from folders, columns and CSV files; few labels per class; held-out validation; one-line errors."""

import datasets
import pytest
from PIL import Image

from nextembed.core.types import IGNORE_LABEL
from nextembed.data.images import ImagePart
from nextembed.data.labels import classes_to_learn, draw_few, hold_out, labels_of
from nextembed.data.sources import ImageData
from nextembed.errors import ConfigError

SIZES = {"image_size": 16, "num_channels": 3}


@pytest.fixture
def class_folders(tmp_path, make_images):
    """A folder with `count` images of each class."""

    def make(classes, name="images", count=4, part=""):
        for label in classes:
            make_images(tmp_path / name / part / label, count, size=8)
        return tmp_path / name

    return make


def said(call):
    with pytest.raises(ConfigError) as err:
        call()
    assert "\n" not in str(err.value)
    return str(err.value)


def labels(data, split="train"):
    return {row["key"]: row["label"] for row in data.rows(split)}


# -- folders and columns


def test_folders_name_the_classes(class_folders):
    data = ImageData(source=str(class_folders(["dog", "ant", "cat"])))
    assert classes_to_learn(data) == ["ant", "cat", "dog"]
    assert labels(data)["cat/001.png"] == 1


def test_validation_folders_that_lack_a_class_keep_the_ids(class_folders):
    class_folders(["ant", "cat", "dog"], part="train")
    data = ImageData(source=str(class_folders(["ant", "dog"], part="val", count=2)))
    assert {key.split("/")[1]: label for key, label in labels(data, "validation").items()} == {"ant": 0, "dog": 2}
    assert data.class_names() == ["ant", "cat", "dog"]
    samples = ImageData(source=data.source).eval_samples("validation", **SIZES)  # validation is read first
    assert {samples[i]["label"] for i in range(4)} == {0, 2} and samples.class_names == ["ant", "cat", "dog"]


def test_a_class_without_training_images_is_an_error(class_folders):
    class_folders(["ant", "dog"], part="train")
    data = ImageData(source=str(class_folders(["ant", "zebra"], part="test")))
    assert said(lambda: data.rows("test")) == (
        "data: the test images have a class that the training data lacks: 'zebra'"
    )


def write_parquet(path, label, kind, make_picture, encode):
    images = [{"bytes": encode(make_picture(8, 8, seed=i)), "path": None} for i in range(len(label))]
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.Value(kind)})
    datasets.Dataset.from_dict({"image": images, "kind": label}, features).to_parquet(str(path))
    return ImageData(source=str(path), label_column="kind")


def test_a_column_of_numbers_with_gaps(tmp_path, make_picture, encode):
    data = write_parquet(tmp_path / "a.parquet", [5, 2, 5, 9], "int64", make_picture, encode)
    assert classes_to_learn(data) == ["2", "5", "9"]
    assert labels_of(data.rows("train")) == [1, 0, 1, 2]


@pytest.mark.parametrize(("values", "kind"), [([0, 1, -1, 0], "int64"), (["x", "y", None, "x"], "string"),
                                              (["x", "y", "", "x"], "string")])  # fmt: skip
def test_an_error_names_a_row_without_a_label(tmp_path, make_picture, encode, values, kind):
    data = write_parquet(tmp_path / "a.parquet", values, kind, make_picture, encode)
    assert said(lambda: classes_to_learn(data)) == "data: 1 of 4 training images have no label (first: 2)"


def test_one_class(class_folders, tmp_path, make_picture, encode):
    data = ImageData(source=str(class_folders(["only"])))
    assert "a folder for each of at least two classes" in said(lambda: classes_to_learn(data))
    data = write_parquet(tmp_path / "a.parquet", ["x", "x"], "string", make_picture, encode)
    assert (
        said(lambda: classes_to_learn(data)) == "data: there is only one class ('x'); a classifier needs at least two"
    )


def test_a_filter_that_leaves_one_class():
    data = ImageData(source="emoji", where={"group": "flags"})
    assert said(lambda: classes_to_learn(data)) == "data: all training images are of one class ('flags')"


def test_no_labels(tmp_path, make_images):
    data = ImageData(source=str(make_images(tmp_path / "flat", 3)))
    assert "fine-tuning needs labels" in said(lambda: classes_to_learn(data))


class Own(ImagePart):
    names: list[str] = ["a", "b"]
    values: list[int] = [0, 1]

    def rows(self, split):
        return [{"image": None, "label": value} for value in self.values]

    def class_names(self):
        return self.names


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (Own(values=[0, 1, 2]), "data: label 2 of 2 is not one of the 2 classes (0..1)"),
        (Own(values=[0, -5]), "data: label -5 of 1 is not one of the 2 classes"),
        (Own(names=["a", "a"]), "data: two classes have the same name"),
    ],
)
def test_labels_of_custom_data_are_checked(own, words):
    assert words in said(lambda: classes_to_learn(own))


# -- CSV


def csv_data(folder, text, encoding="utf-8"):
    file = folder.parent / "labels.csv"
    file.write_bytes(text.encode(encoding))
    return ImageData(source=str(folder), label_file=str(file))


ROWS = [("000.png", "cat"), ("001.png", "dog"), ("002.png", "cat")]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file,label\n000.png,cat\n001.png,dog\n002.png,cat\n", "utf-8"),
        ("class,id,filename\ncat,7,000.png\ndog,8,001.png\ncat,9,002.png\n", "utf-8"),  # another order, a third column
        ("label,picture\ncat,000.png\ndog,001.png\ncat,002.png\n", "utf-8"),  # only the label column has a known name
        ("picture,kind\n000.png,cat\n001.png,dog\n002.png,cat\n", "utf-8"),  # no known names: the first two columns
        ("file,label\r\n000.png,cat\r\n001.png,dog\r\n\r\n002.png,cat\r\n", "utf-8-sig"),  # as saved by a spreadsheet
        ('file,label\n"000.png","cat"\n" 001.png ","dog"\n"./002.png",cat', "utf-8"),
    ],
)
def test_csv_labels(tmp_path, make_images, text, encoding):
    data = csv_data(make_images(tmp_path / "pictures", 4), text, encoding)
    assert labels(data) == {"000.png": 0, "001.png": 1, "002.png": 0}  # 003 is not listed and left out
    assert classes_to_learn(data) == ["cat", "dog"]


def test_csv_labels_with_folders_quotes_and_commas(tmp_path, make_images):
    folder = make_images(tmp_path / "pictures" / "a" / "b", 2).parents[1]
    data = csv_data(folder, 'file,label\na/b/000.png,"cat, ""big"""\na\\b\\001.png,dog\n')
    assert classes_to_learn(data) == ['cat, "big"', "dog"]


def test_csv_labels_reach_every_split(tmp_path, make_images):
    make_images(tmp_path / "pictures" / "train", 4)
    make_images(tmp_path / "pictures" / "val", 2)
    text = "file,label\n" + "".join(f"train/{i:03d}.png,{'xy'[i % 2]}\n" for i in range(4))
    data = csv_data(tmp_path / "pictures", text + "val/000.png,y\nval/001.png,x\n")
    assert list(labels(data, "validation").values()) == [1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs a header and two columns"),
        ("file\n000.png\n", "needs a header and two columns"),
        ("file;label\n000.png;cat\n", "its columns are separated by semicolons; save it with commas"),
        ("000.png,cat\n001.png,dog\n", "needs a header, e.g. file,label; its first line is an image"),
        ("file,label\n000.png,cat\n001.png\n", "line 3 of"),
        ("file,label\n000.png,cat\n001.png,dog\n000.png,dog\n", "gives 000.png two labels, 'cat' and 'dog'"),
        ("file,label\nx.png,cat\ny.png,dog\n", "names none of the images, e.g. '000.png'"),
        ("file,label\n000.png,cat\n9.png,dog\n8.png,dog\n", "2 of the 3 files in"),
        ("file,label\n000.png,cat\n001.png,\n002.png,dog\n", "1 of 3 training images have no label (first: 001.png)"),
    ],
)
def test_csv_errors_are_one_line(tmp_path, make_images, text, words):
    data = csv_data(make_images(tmp_path / "pictures", 3), text)
    assert words in said(lambda: classes_to_learn(data))


def test_csv_that_cannot_be_read(tmp_path, make_images):
    folder = make_images(tmp_path / "pictures", 2)
    assert "cannot read" in said(lambda: csv_data(folder, "file,label\n000.png,größe\n", "latin-1").rows("train"))
    data = ImageData(source=str(folder), label_file=str(tmp_path / "none.csv"))
    assert "cannot read" in said(lambda: data.rows("train"))
    assert "streaming=false" in said(lambda: data.model_copy(update={"streaming": True}).rows("train"))


# -- few labels and held-out images


def test_few_labels_are_nested_and_depend_on_the_seed():
    every = [i % 3 for i in range(60)] + [IGNORE_LABEL] * 5
    draws = {n: draw_few(every, n, 0, []) for n in (1, 2, 5, 20)}
    for few, more in ((1, 2), (2, 5), (5, 20)):
        assert set(draws[few]) < set(draws[more])
    assert [sum(every[i] == c for i in draws[5]) for c in range(3)] == [5, 5, 5]
    assert draws[5] == sorted(draws[5]) == draw_few(every, 5, 0, [])
    assert draws[5] != draw_few(every, 5, 1, [])


def test_more_labels_per_class_than_there_are():
    assert said(lambda: draw_few([0, 0, 1], 2, 0, ["a", "b"])) == (
        "data.labels_per_class 2: class 'b' has only 1 images"
    )
    assert "have no labels" in said(lambda: draw_few([IGNORE_LABEL] * 3, 1, 0, []))


def test_few_labels_of_real_images_keep_their_names():
    whole, few = ImageData(source="emoji"), ImageData(source="emoji", labels_per_class=3)
    rows = few.training_rows()
    assert len(rows) == 27 and sorted(rows.labels()) == [c for c in range(9) for _ in range(3)]
    by_key = {row["key"]: row["label"] for row in whole.rows("train")}
    assert all(by_key[rows[i]["key"]] == rows[i]["label"] for i in range(27))
    samples = few.eval_samples("train", **SIZES)
    assert len(samples) == 27  # probes also use the few labels


def test_hold_out_takes_a_share_of_each_class_and_at_least_one():
    every = [0] * 20 + [1] * 10 + [2] * 2 + [3]
    stay, apart = hold_out(every, 0.2, 0)
    assert sorted(stay + apart) == list(range(33)) and stay == sorted(stay)
    assert [sum(every[i] == c for i in apart) for c in range(4)] == [4, 2, 1, 0]
    assert (stay, apart) == hold_out(every, 0.2, 0) != hold_out(every, 0.2, 1)
    assert [sum(every[i] == c for i in hold_out(every, 0.99, 0)[0]) for c in range(4)] == [1, 1, 1, 1]


def test_validation_is_held_out_only_if_there_is_none(class_folders):
    data = ImageData(source=str(class_folders(["ant", "dog"], count=10)), validation_rate=0.2)
    apart = data.eval_samples("validation", **SIZES)
    keys = {apart[i]["key"] for i in range(len(apart))}
    rows = data.training_rows()
    stay = {rows[i]["key"] for i in range(len(rows))}
    assert len(keys) == 4 and len(stay) == 16 and not keys & stay
    assert {key.split("/")[0] for key in keys} == {"ant", "dog"}
    few = data.model_copy(update={"labels_per_class": 3}).training_rows()
    assert {few[i]["key"] for i in range(6)} <= stay
    own = ImageData(source="emoji", validation_rate=0.2)
    assert len(own.training_rows()) == len(ImageData(source="emoji").rows("train"))
    assert len(own.split_rows("validation")) == len(ImageData(source="emoji").rows("validation"))


@pytest.mark.parametrize(
    ("names", "wanted"),
    [(["cat", "Cat", "dog"], ["Cat", "cat"]), (["cat", "dog"], []), (["Straße", "STRASSE"], ["STRASSE", "Straße"])],
)
def test_classes_that_differ_only_by_case_are_noted(tmp_path, names, wanted):
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    data = ImageData(source=str(tmp_path))
    found = [note for note in data.summary("train").notes if "differ by case" in note]
    assert len(data.class_names()) == len(names)  # they stay separate
    assert found == [f"classes whose names differ by case only stay separate: {', '.join(wanted)}"] * bool(wanted)

"""The official layouts of COCO captions, VQAv2, OK-VQA, VizWiz, Visual Dialog and MM-Vet, as downloaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...core.files import from_json
from ...errors import ConfigError, DataError
from .examples import Example, ImageFolder, texts


def read_json(file: Path) -> Any:
    """Raises ConfigError if there is no such file, DataError if it is not JSON."""
    if not file.is_file():
        raise ConfigError(f"no such file: {file}")
    try:
        return from_json(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as err:
        raise DataError(f"{file} is not JSON: {str(err).splitlines()[0]}") from None


@contextmanager
def _layout(file: Path, name: str) -> Iterator[None]:
    """Turns a missing or strange field into one line that names it."""
    try:
        yield
    except KeyError as err:
        raise DataError(f"{file} is not in the format of {name}: field {err} is missing") from None
    except (TypeError, AttributeError, IndexError, ValueError, OverflowError) as err:
        raise DataError(f"{file} is not in the format of {name}: {err}") from None


def read_coco(file: Path, images: ImageFolder, annotations: Path | None = None) -> list[Example]:
    """Karpathy's split (`dataset_coco.json`, also of Flickr), one row an image, or COCO's `captions_*.json`."""
    values = read_json(file)
    found = []
    with _layout(file, "COCO captions"):
        if isinstance(values, list):  # [{"image": "val2014/....jpg", "caption": [...]}]
            for row in values:
                captions = texts(row["caption"], f"{file}: caption")
                found.append(Example(str(row["image"]), [images.segment(row["image"])], references=captions))
        elif "annotations" in values:
            captions_of: dict[int | str, list[str]] = {}
            for row in values["annotations"]:
                captions_of.setdefault(row["image_id"], []).append(str(row["caption"]))
            for row in values["images"]:
                captions = captions_of.get(row["id"], [])
                found.append(Example(str(row["id"]), [images.segment(row["file_name"])], references=captions))
        else:
            for row in values["images"]:
                captions = [str(sentence["raw"]) for sentence in row["sentences"]]
                picture = images.segment(row["filename"], str(row.get("filepath") or ""))
                key = str(row.get("cocoid", row["filename"]))
                found.append(Example(key, [picture], references=captions, split=str(row.get("split", ""))))
    return found


def read_vqa(file: Path, images: ImageFolder, annotations: Path | None = None) -> list[Example]:
    """VQAv2 and OK-VQA: a file of questions, and beside it one of annotations (found by its name if not given)."""
    questions, answers = read_json(file), annotations or _beside(file)
    found = []
    with _layout(answers, "VQA annotations"):
        rows = {row["question_id"]: row for row in read_json(answers)["annotations"]}
    with _layout(file, "VQA questions"):
        subtype = str(questions.get("data_subtype") or "")
        for row in questions["questions"]:
            number = row["question_id"]
            if number not in rows:
                raise DataError(f"{answers} has no answers to question {number} of {file}")
            picture = images.segment(_coco_name(images, subtype, row["image_id"]), subtype)
            label = rows[number]
            references = texts(label["answers"], f"{answers}: answers to question {number}")
            kind = str(label.get("answer_type", ""))
            found.append(Example(str(number), [picture], str(row["question"]), references=references, kind=kind))
    return found


def _beside(questions: Path) -> Path:
    """v2_OpenEnded_mscoco_val2014_questions.json has v2_mscoco_val2014_annotations.json beside it."""
    name = questions.name.replace("OpenEnded_", "").replace("questions", "annotations")
    if name == questions.name or not (questions.parent / name).is_file():
        raise ConfigError(f"{questions} needs its annotations: put {name} next to it, or give --annotations FILE")
    return questions.parent / name


def _coco_name(images: ImageFolder, subtype: str, number: int | str) -> str:
    """The file name of a COCO image: of 2014 with its split in front, of 2017 the number alone."""
    number = int(number)
    long, short = f"COCO_{subtype}_{number:012d}.jpg", f"{number:012d}.jpg"
    for name in (long, short):
        if any((images.folder / sub / name).is_file() for sub in ("", subtype)):
            return name
    return long


def read_vizwiz(file: Path, images: ImageFolder, annotations: Path | None = None) -> list[Example]:
    """VizWiz-VQA: one list of image, question, answers, answer_type, answerable."""
    found = []
    with _layout(file, "VizWiz"):
        for row in read_json(file):
            references = texts(row.get("answers"), f"{file}: answers of {row['image']}")
            kind = str(row.get("answer_type", ""))
            picture = images.segment(row["image"])
            found.append(Example(str(row["image"]), [picture], str(row["question"]), references=references, kind=kind))
    return found


def read_visdial(file: Path, images: ImageFolder, annotations: Path | None = None) -> list[Example]:
    """Visual Dialog 1.0: an example for each round with a known right answer, with the preceding dialog.

    annotations: the dense relevance of candidates (`visdial_1.0_val_dense_annotations.json`), for NDCG.
    """
    found = []
    dense = _dense(annotations) if annotations else {}
    with _layout(file, "Visual Dialog"):
        values = read_json(file)
        split, data = str(values.get("split", "")), values["data"]
        questions, answers = data["questions"], data["answers"]
        for dialog in data["dialogs"]:
            number = int(dialog["image_id"])
            names = [f"VisualDialog_{split}_{number:012d}.jpg", f"COCO_{split}_{number:012d}.jpg"]
            names += [f"COCO_{part}2014_{number:012d}.jpg" for part in ("train", "val")]
            name = next((n for n in names if (images.folder / n).is_file()), names[0])
            said = f"{dialog['caption']}."
            for i, turn in enumerate(dialog["dialog"]):
                question = str(questions[turn["question"]]).strip()
                question += "" if question.endswith("?") else "?"
                if turn.get("gt_index") is not None:
                    candidates = [str(answers[j]) for j in turn["answer_options"]]
                    key = f"{number}/{i + 1}"
                    found.append(
                        Example(key, [images.segment(name)], question, said, [candidates[turn["gt_index"]]], candidates,
                                int(turn["gt_index"]), dense.get((number, i + 1)))
                    )  # fmt: skip
                if turn.get("answer") is not None:
                    said += f" {question} {answers[turn['answer']]}."
    return found


def _dense(file: Path) -> dict[tuple[int, int], list[float]]:
    with _layout(file, "dense annotations of Visual Dialog"):
        return {
            (int(row["image_id"]), int(row["round_id"])): [
                float(v) for v in row["gt_relevance" if "gt_relevance" in row else "relevance"]
            ]
            for row in read_json(file)
        }


def read_mmvet(file: Path, images: ImageFolder, annotations: Path | None = None) -> list[Example]:
    """MM-Vet: {"v1_0": {"imagename", "question", "answer", "capability"}}. Its answers are graded by an external
    language model, so no score is computed here."""
    found = []
    with _layout(file, "MM-Vet"):
        for key, row in read_json(file).items():
            kind = ", ".join(row.get("capability") or [])
            picture = images.segment(row["imagename"])
            found.append(Example(str(key), [picture], str(row["question"]), references=[str(row["answer"])], kind=kind))
    return found


READERS: dict[str, Callable[[Path, ImageFolder, Path | None], list[Example]]] = {
    "coco": read_coco,
    "vqav2": read_vqa,
    "okvqa": read_vqa,
    "vizwiz": read_vizwiz,
    "visdial": read_visdial,
    "mmvet": read_mmvet,
}

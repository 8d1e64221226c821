"""Images with masks from folders, Parquet files and the hub."""

import csv
from pathlib import Path

from ..core.config import DATA
from ..core.files import from_json
from ..core.types import Role
from ..errors import ConfigError, unknown
from .loading import is_image
from .masks import MaskPart
from .naming import in_files, parse_split, split_of
from .origins import check_file, find_origin
from .rows import Row, Rows
from .sources import Columns, ToImage
from .stored import IndexedRows
from .tables import TableSettings

IMAGE_FOLDERS = ("images", "image", "imgs")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "segmentations")
MASK_COLUMNS = ("mask", "annotation", "label", "labels", "segmentation", "segmentation_mask", "seg_map")
NAME_COLUMNS = ("name", "class", "class_name", "label")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".avif", ".jp2"}


@DATA.register("segmentation")
class SegmentationData(TableSettings, MaskPart):
    """Images with a mask of class ids for each.

    source: a folder with images/ and masks/ (or annotations/, labels/) whose files have the same names, with folders
    train, validation, test in or above them, or none; Parquet files or a hub id with an image and a mask column, of
    which `where` and `split_column` choose rows. Nothing is streamed. image_column, mask_column: null finds them.
    classes: names by class id; or class_file: JSON (a list, or {id: name}), CSV or tab-separated with a column of
    names, or text with a name a line.
    """

    image_column: str | None = None
    mask_column: str | None = None
    classes: list[str] | None = None
    class_file: str | None = None

    def rows(self, split: Role) -> Rows:
        """Rows of a split. Raises ConfigError for a source, split, column or folder that does not exist."""
        folders = find_folders(Path(self.source).expanduser())
        if self.streaming or (folders and (self.where or self.split_column)):
            raise ConfigError("data: masks in folders have no columns (where, split_column), and no masks are streamed")
        with self.asked_for(split):
            return self._pairs(folders, self.expression(split)) if folders else self._columns(split)

    def class_names(self) -> list[str]:
        """Raises ConfigError if there is no class list, or the file holds none."""
        if (self.classes is None) == (self.class_file is None):
            raise ConfigError(
                "data: segmentation needs the names of the classes by id: data.classes=[sky, road, ...] or "
                "data.class_file=classes.json (one of them)"
            )
        return list(self.classes) if self.classes is not None else read_names(str(self.class_file))

    def _pairs(self, folders: dict[str, tuple[Path, Path]], expression: str) -> Rows:
        name, part = parse_split(expression)
        every = pairs(*folders[in_files(name, folders)], Path(self.source).expanduser())
        rows = [every[at] for at in part.of(len(every))]
        missing = [row for row in rows if "no_mask" in row]
        if len(missing) > self.max_skipped_rate * len(rows):
            raise ConfigError(
                f"data: {len(missing)} of {len(rows)} images of split '{name}' have no mask: {missing[0]['key']} "
                f"({missing[0]['no_mask']})"
            )
        return rows

    def _columns(self, split: Role) -> Rows:
        origin = find_origin(self.source, self.rules())
        data = self.opened(origin, split)
        images = [name for name, feature in data.features.items() if is_image(feature)]
        for field, column in (("image_column", self.image_column), ("mask_column", self.mask_column)):
            if column is not None and column not in images:
                raise ConfigError(unknown(f"data.{field}:", column, images))
        mask = self.mask_column or next((n for n in MASK_COLUMNS if n in images and n != self.image_column), None)
        mask = mask or next((n for n in images[1:] if n != self.image_column), None)
        image = self.image_column or next((n for n in images if n != mask), None)
        if image is None or mask is None:
            raise ConfigError(
                f"data: '{self.source}' needs a column of images and one of masks; its columns are "
                f"{', '.join(data.features)} (as a folder it needs {IMAGE_FOLDERS[0]}/ and {MASK_FOLDERS[0]}/)"
            )
        to_row = ToImage(Columns(image, None, mask=mask), {}, origin.folder)
        return IndexedRows(data.select_columns([image, mask]), to_row)


def find_folders(source: Path) -> dict[str, tuple[Path, Path]]:
    """Image and mask folder by split, of images/train + masks/train, train/images + train/masks, or images + masks
    (all of it "train"). Empty if the source is none of them. Raises ConfigError for images without masks."""
    if not source.is_dir():
        return {}
    whole = _image_and_mask(source)
    if whole is None:
        inside = {split: _image_and_mask(folder) for split, folder in split_folders(source).items()}
        return {split: both for split, both in inside.items() if both is not None}
    images, masks = whole
    splits = split_folders(images)
    if not splits:
        return {"train": whole}
    own = split_folders(masks)
    if lost := [folder for split, folder in splits.items() if split not in own]:
        raise ConfigError(f"data.source: {lost[0]} has no masks: there is no folder {masks / lost[0].name}")
    return {split: (folder, own[split]) for split, folder in splits.items()}


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder that are splits. Raises ConfigError if one split has two, or there are others."""
    found: dict[str, Path] = {}
    others = []
    for one in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        split = split_of(one.name)
        if split is None:
            others.append(one.name)
        elif split in found:
            raise ConfigError(f"data.source: {found[split]} and {one} are both the {split} split")
        else:
            found[split] = one
    return found


def _image_and_mask(folder: Path) -> tuple[Path, Path] | None:
    images, masks = (next((folder / n for n in names if (folder / n).is_dir()), None)
                     for names in (IMAGE_FOLDERS, MASK_FOLDERS))  # fmt: skip
    return None if images is None or masks is None else (images, masks)


def pairs(images: Path, masks: Path, source: Path) -> list[Row]:
    """A row for each image, by name; its mask has the same name but for the ending.

    Raises ConfigError if there is no image, or two masks for one.
    """
    by_name: dict[str, Path] = {}
    for path in sorted(masks.rglob("*")):
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            name = path.relative_to(masks).with_suffix("").as_posix()
            if name in by_name:
                raise ConfigError(f"data.source: two masks of one name: {by_name[name]} and {path}")
            by_name[name] = path
    rows: list[Row] = []
    for path in sorted(images.rglob("*")):
        if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            name = path.relative_to(images).with_suffix("").as_posix()
            row: Row = {"image": path, "mask": by_name.get(name), "key": path.relative_to(source).as_posix()}
            if name not in by_name:
                row["no_mask"] = f"there is no {(masks / name).relative_to(source).as_posix()}.png"
            rows.append(row)
    if not rows:
        raise ConfigError(f"data.source: the folder {images} has no images")
    return rows


def read_names(class_file: str) -> list[str]:
    """Class names, by id, of a JSON, CSV, TSV or text file. Raises ConfigError, one line, for a file without them."""
    path = check_file("data.class_file", class_file)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_json(from_json(text)) if path.suffix.lower() == ".json" else _from_lines(text.splitlines())
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(f"data.class_file: cannot read {class_file}: {str(err).splitlines()[0]}") from None
    if not all(names) or not names:
        raise ConfigError(f"data.class_file: {class_file} has a class without a name, or no class at all")
    return names


def _from_json(values: object) -> list[str]:
    if isinstance(values, dict):
        by_id = {int(key): name for key, name in values.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(f"its class ids are not 0..{len(by_id) - 1}")
        values = [by_id[i] for i in range(len(by_id))]
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise ValueError("it is neither a list of names nor {id: name}")
    return values


def _from_lines(lines: list[str]) -> list[str]:
    """The column of names where the first line is a header that has one, else every line."""
    lines = [line for line in lines if line.strip()]
    for delimiter in ("\t", ",", ";"):
        header = [name.strip().lower() for name in next(csv.reader(lines[:1], delimiter=delimiter), [])]
        column = next((header.index(name) for name in NAME_COLUMNS if name in header), None)
        if column is not None:
            return [row[column].strip() for row in csv.reader(lines[1:], delimiter=delimiter)]
    return [line.strip() for line in lines]

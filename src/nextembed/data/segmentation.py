"""Images with masks from folders, Parquet files and the hub."""

import csv
import os
from pathlib import Path

from ..core.config import DATA
from ..core.files import from_json
from ..core.types import Role
from ..errors import ConfigError, unknown
from .found import Found
from .grouping import ASK
from .listing import IMAGES, File, listed, shown
from .loading import is_image
from .masks import MaskPart
from .naming import in_files, parse_split, split_of
from .origins import PLAIN, Rules, check_file, find_origin
from .rows import Row, Rows
from .sources import Columns, ToImage
from .stored import IndexedRows
from .tables import TableSettings

IMAGE_FOLDERS = ("images", "image", "imgs")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "segmentations")
MASK_COLUMNS = ("mask", "annotation", "label", "labels", "segmentation", "segmentation_mask", "seg_map")
NAME_COLUMNS = ("name", "class", "class_name", "label")


@DATA.register("segmentation")
class SegmentationData(TableSettings, MaskPart):
    """Images with a mask of class ids for each.

    Attributes:
        source: a folder with images/ and masks/ (or annotations/, labels/) whose files have the same names, with
            folders train, validation, test in or above them, or none; Parquet files or a hub id with an image and a
            mask column, of which `where` and `split_column` choose rows. Nothing is streamed.
        image_column: column of the image; null: detected.
        mask_column: column of the mask; null: detected.
        classes: names by class id; or give class_file.
        class_file: a file of names: JSON (a list, or {id: name}), CSV or tab-separated with a column of names, or text
            with one name per line.
    """

    image_column: str | None = None
    mask_column: str | None = None
    classes: list[str] | None = None
    class_file: str | None = None

    def rows(self, split: Role) -> Rows:
        """Rows of a split. Raises ConfigError for a source, split, column or folder that does not exist."""
        folders = self.folders_of()
        if self.streaming or (folders and (self.where or self.split_column)):
            raise ConfigError(
                "data: masks in folders have no columns (unset where and split_column), and masks cannot be "
                "streamed (set streaming=false)"
            )
        with self.asked_for(split):
            return self._pairs(folders, self.expression(split)) if folders else self._columns(split)

    def folders_of(self) -> dict[str, tuple[Path, Path]]:
        """Folders of images and of masks by split; none where the source is a table."""
        return find_folders(Path(self.source).expanduser(), self.rules())

    def left_out(self, split: Role) -> dict[str, str]:
        folders, source = self.folders_of(), Path(self.source).expanduser()
        if not folders:
            return super().left_out(split)
        name = in_files(parse_split(self.expression(split))[0], folders)
        files = [file for file in listed(folders[name][0], self.hidden) if file.kind == "image" and file.reason]
        return {shown(Path(file.path).relative_to(source).as_posix()): file.reason for file in files}

    def around(self) -> Found:
        folders = self.folders_of()
        if not folders:
            return super().around()
        lone = 0
        for images, masks in folders.values():
            names = {without_ending(file.name) for file in listed(images, self.hidden)}
            lone += sum(without_ending(file.name) not in names for file in usable(masks, self.hidden))
        notes = (f"{lone:,} masks have no image",) if lone else ()
        return Found("", None, splits=tuple(sorted(folders)), notes=notes)

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
        every = pairs(*folders[in_files(name, folders)], Path(self.source).expanduser(), self.hidden)
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
        to_row = ToImage(Columns(image, None, mask=mask), {}, origin.folder, self.max_bytes)
        return IndexedRows(data.select_columns([image, mask]), to_row)


def find_folders(source: Path, rules: Rules = PLAIN) -> dict[str, tuple[Path, Path]]:
    """Image and mask folder by split, of images/train + masks/train, train/images + train/masks, or images + masks
    (all of it "train"). Empty if the source is none of them. Raises ConfigError for images without masks, and for
    images that lie in no split's folder."""
    if not source.is_dir():
        return {}
    whole = _image_and_mask(source)
    if whole is None:
        inside = {split: _image_and_mask(folder) for split, folder in split_folders(source, rules).items()}
        return {split: both for split, both in inside.items() if both is not None}
    images, masks = whole
    splits = split_folders(images, rules)
    if not splits:
        return {"train": whole}
    own = split_folders(masks, rules._replace(folders="splits"))  # masks of no image are no rows
    if lost := [folder for split, folder in splits.items() if split not in own]:
        raise ConfigError(f"data.source: {lost[0]} has no masks: there is no folder {masks / lost[0].name}")
    return {split: (folder, own[split]) for split, folder in splits.items()}


def split_folders(folder: Path, rules: Rules) -> dict[str, Path]:
    """The folders in a folder that are splits. Raises ConfigError if one split has two, or if there are images next to
    them."""
    found: dict[str, Path] = {}
    if rules.folders == "classes":
        return found
    others = []
    for one in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        split = split_of(one.name) if one.is_dir() else None
        if split is None:
            others.append(one)
        elif split in found:
            raise ConfigError(f"data.source: {found[split]} and {one} are both the {split} split")
        else:
            found[split] = one
    lost = [one.name for one in others if found and rules.folders is None and _has_images(one)]
    if lost:
        raise ConfigError(
            f"data.source: {folder / lost[0]} is not in a split, although other folders are splits; {ASK}"
        )
    return found


def _has_images(path: Path) -> bool:
    files = listed(path) if path.is_dir() else [file for file in listed(path.parent) if file.name == path.name]
    return any(file.kind == "image" for file in files)


def _image_and_mask(folder: Path) -> tuple[Path, Path] | None:
    images, masks = (next((folder / n for n in names if (folder / n).is_dir()), None)
                     for names in (IMAGE_FOLDERS, MASK_FOLDERS))  # fmt: skip
    return None if images is None or masks is None else (images, masks)


def pairs(images: Path, masks: Path, source: Path, hidden: bool = False) -> list[Row]:
    """A row for each image, by name; its mask has the same name but for the ending.

    Raises ConfigError if there is no image that can be used, or two masks for one.
    """
    by_name: dict[str, Path] = {}
    for file in usable(masks, hidden):
        name = without_ending(file.name)
        if name in by_name:
            raise ConfigError(f"data.source: two masks with the same name: {by_name[name]} and {file.path}")
        by_name[name] = Path(file.path)
    rows: list[Row] = []
    for file in usable(images, hidden):
        name, path = without_ending(file.name), Path(file.path)
        row: Row = {"image": path, "mask": by_name.get(name), "key": shown(path.relative_to(source).as_posix())}
        if name not in by_name:
            row["no_mask"] = f"there is no {shown((masks / name).relative_to(source).as_posix())}.png"
        rows.append(row)
    if not rows:
        lost = next((f": {file.name} ({file.reason})" for file in listed(images) if file.reason), "")
        raise ConfigError(f"data.source: the folder {images} has no images{lost}")
    return rows


def usable(folder: Path, hidden: bool) -> list[File]:
    return [file for file in listed(folder, hidden) if file.kind == "image" and not file.reason]


def without_ending(name: str) -> str:
    """A name without the ending of a picture; of `a.1` nothing is taken."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in IMAGES else name


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

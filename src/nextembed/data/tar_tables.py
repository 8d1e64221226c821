"""Webdataset archives as tables of `datasets`: one row per sample; media stay in the archive."""

import itertools
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from ..core.text import MARK_BYTES
from ..errors import ConfigError, MissingSplit
from .archives import read_member, samples, tar_members, unnamed, unusable
from .damaged_tables import cannot_read
from .grouping import by_folders
from .listing import IMAGES, VIDEOS, File
from .naming import splits_named
from .origins import Origin
from .remote import fetched

Feature = object  # the type of a column, as `datasets` has it
Features = dict[str, Any]

TAR_TEXTS = ("txt", "text", "caption", "captions", "transcript", "transcription", "json")
PEEKED = 100  # samples of each archive of a stream that are checked for whether ids are numbers
TAR_NUMBERS = ("cls", "cls2", "index", "inx", "id", "count")


def kinds_in(origin: Origin, name: str) -> list[str]:
    """The kinds of files in the archives of a split; empty if some are others than images, sounds, videos and text.

    Raises DamagedFile for an archive that cannot be read, ConfigError for one with folders of other splits: a folder
    `test/` in it would be trained on.
    """
    kinds: dict[str, None] = {}
    if origin.shards is not None and name in origin.shards.splits:
        kinds = dict.fromkeys(origin.shards.splits[name].kinds)
        return list(kinds) if all(feature_of(kind) for kind in kinds) else []
    for file in origin.of_split(name):
        for key, sample in samples_in(file).items():
            kinds |= dict.fromkeys(sample)
            others = {part for part in key.split("/")[:-1] if splits_named(part) - {name}}
            if others and origin.rules.folders != "classes":
                raise ConfigError(
                    f"data.source: {file} has the folder '{min(others)}', which names a split; pack each split into "
                    "its own archive (train.tar, test.tar), or set data.folders=classes if it is not a split"
                )
    if not kinds:
        raise MissingSplit(f"data: split '{name}' of {origin.folder} is empty: its archives have no files with endings")
    return list(kinds) if all(feature_of(kind) for kind in kinds) else []


def notes_of_archives(origin: Origin) -> Iterator[str]:
    """Notes about tar archives: members that are left out, folders that are not classes."""
    if origin.builder != "webdataset" or origin.shards is not None:
        return
    for name, files in (origin.files or {}).items():
        left = [one for file in files for one in unnamed(list(tar_members(file)))]
        if left:
            verb = "file is" if len(left) == 1 else "files are"
            yield f"{len(left):,} {verb} left out, because no extension says what they contain (first: {left[0]})"
        lost = {name: why for file in files for name, why in unusable(list(tar_members(file))).items()}
        for why in dict.fromkeys(lost.values()):
            some = [name for name, own in lost.items() if own == why]
            yield f"{len(some):,} x {why}: left out (first: {some[0]})"
        found = {kind for file in files for sample in samples_in(file).values() for kind in sample}
        others = sorted(kind for kind in found if not feature_of(kind))
        if others and archive_classes(origin, name, sorted(found)):
            yield (
                "the folders in the archives are not used as classes, because they also contain other files "
                f"(.{others[0]})"
            )


def named_kinds(files: list[str], kinds: list[str], first: int = 0) -> frozenset[str]:
    """Kinds that are usually numbers, but text in some sample: `.cls` files with "cat", or "007" next to "7". first:
    samples of each archive to check, for a stream; 0 checks all."""
    found = set()
    for kind in (kind for kind in kinds if kind.split(".")[-1] in TAR_NUMBERS):
        refs = (
            sample[kind]
            for file in files
            for sample in itertools.islice(samples_in(file).values(), first or None)
            if kind in sample
        )
        if any(isinstance(written(read_member(ref)), str) for ref in refs):
            found.add(kind)
    return frozenset(found)


def samples_in(file: str) -> dict[str, dict[str, str]]:
    """The samples of a tar archive (`archives.samples`). Raises DataError, which names it, if it cannot be read."""
    try:
        return samples(list(tar_members(file)))
    except (OSError, ValueError, tarfile.TarError) as err:
        raise cannot_read(file, err, "webdataset") from err


def feature_of(kind: str) -> Feature:
    """What a kind of file in an archive holds; None for one that is left to `datasets`."""
    last = kind.split(".")[-1]
    if f".{last}" in IMAGES:
        return datasets.Image(decode=False)
    if last in WebDataset.AUDIO_EXTENSIONS:
        return datasets.Audio(decode=False)
    if f".{last}" in VIDEOS:
        return datasets.Video(decode=False)
    if last in TAR_TEXTS:
        return datasets.Value("string")
    return datasets.Value("int64") if last in TAR_NUMBERS else None


def archive_rows(
    files: list[str], kinds: list[str], labels: Mapping[str, int], named: frozenset[str]
) -> Iterator[dict[str, object]]:
    """The samples of archives: text as it is, media by reference. labels: class ids by key; empty if there are none.
    named: see `named_kinds`."""
    for file in files:
        for key, sample in samples_in(file).items():
            row: dict[str, object] = {"__key__": key, "__url__": file}
            for kind in kinds:
                ref, last = sample.get(kind), kind.split(".")[-1]
                if ref is None:
                    row[kind] = None
                elif last in TAR_TEXTS:
                    row[kind] = read_member(ref).decode("utf-8", MARK_BYTES)
                elif kind in named:
                    row[kind] = read_member(ref).decode("utf-8", MARK_BYTES).strip() or None
                elif last in TAR_NUMBERS:
                    row[kind] = value = written(read_member(ref))
                    if isinstance(value, str):
                        reason = f"{key}.{kind} contains '{value[:40]}', but earlier samples have numbers"
                        raise cannot_read(file, ValueError(reason), "webdataset")
                else:
                    row[kind] = {"bytes": None, "path": ref}
            yield row | ({"label": labels.get(key)} if labels else {})


def written(data: bytes) -> int | str | None:
    """A number, or the text if it is not one or has an unusual spelling (007); None if empty."""
    text = data.decode("utf-8", MARK_BYTES).strip()
    try:
        return int(text) if str(int(text)) == text else text
    except ValueError:
        return text or None


def archive_classes(origin: Origin, name: str, kinds: list[str]) -> dict[str, str]:
    """The class of each sample by its key, which is the top folder in the archive; empty where samples have class ids
    of their own, or there are no classes."""
    if origin.shards is not None or set(kinds) & set(TAR_NUMBERS):
        return {}
    keys = {key for file in origin.of_split(name) for key in samples_in(file)}
    files = [File(f"{key}.png", key, "image") for key in sorted(keys)]
    return by_folders(files, "classes", origin.rules.class_folder)[1]


def archive_features(kinds: list[str], names: list[str], named: frozenset[str]) -> Features:
    """names: of the classes that folders are; empty where there are none. named: see `named_kinds`."""
    own: Features = {kind: datasets.Value("string") if kind in named else feature_of(kind) for kind in kinds}
    own |= {"__key__": datasets.Value("string"), "__url__": datasets.Value("string")}
    return own | ({"label": datasets.ClassLabel(names=names)} if names else {})


def own_classes(origin: Origin) -> Features:
    """The column of class ids of shards that the library wrote, with the names of the classes."""
    names = [] if origin.shards is None else origin.shards.classes
    return {"cls": datasets.ClassLabel(names=names)} if names else {}


def archive_table(origin: Origin, name: str, kinds: list[str]) -> datasets.Dataset:
    """The samples of the archives of a split. Where none has a class, the top folder in the archive is one."""
    classes = archive_classes(origin, name, kinds)
    named = named_kinds(origin.of_split(name), kinds)
    features = archive_features(kinds, names := sorted(set(classes.values())), named) | own_classes(origin)
    labels = {key: names.index(one) for key, one in classes.items()}
    rows = list(archive_rows(origin.of_split(name), kinds, labels, named))
    return datasets.Dataset.from_dict(
        {column: [row[column] for row in rows] for column in features}, datasets.Features(features)
    )


def archive_stream(origin: Origin, name: str, kinds: list[str]) -> datasets.IterableDataset:
    """As `archive_table`, an archive a shard."""
    classes = archive_classes(origin, name, kinds)
    names = sorted(set(classes.values()))
    labels = {key: names.index(one) for key, one in classes.items()}
    named = named_kinds(origin.of_split(name), kinds, PEEKED)
    given = {"files": origin.of_split(name), "kinds": tuple(kinds), "labels": labels, "named": named}
    features = archive_features(kinds, names, named) | own_classes(origin)
    return datasets.IterableDataset.from_generator(archive_rows, datasets.Features(features), gen_kwargs=given)


def first_kinds(file: str) -> list[str]:
    """The kinds of files of an archive that stands for others. Raises ConfigError for one that cannot be streamed."""
    kinds = list(dict.fromkeys(kind for sample in samples_in(file).values() for kind in sample))
    if strange := [kind for kind in kinds if not feature_of(kind)]:
        raise ConfigError(f"data.source: archives with .{strange[0]} files are not streamed; set streaming=false")
    return kinds


def remote_samples(files: list[str], kinds: list[str], named: frozenset[str]) -> Iterator[dict[str, object]]:
    """The samples of archives that are fetched one by one, with the bytes of media. Raises DamagedFile for an archive
    that cannot be read, or has kinds of files that the first one has not."""
    for file in files:
        with fetched(file) as local:
            strange = {kind for sample in samples_in(str(local)).values() for kind in sample} - set(kinds)
            if strange:
                reason = (
                    f"it has .{min(strange)} files, which the first archive lacks (`nextembed shard` writes an index)"
                )
                raise cannot_read(file, ValueError(reason), "webdataset")
            for row in archive_rows([str(local)], kinds, {}, named):
                media = {name: value for name, value in row.items() if isinstance(value, dict)}
                held = {name: {"bytes": read_member(value["path"]), "path": None} for name, value in media.items()}
                yield {**row, **held, "__url__": file}

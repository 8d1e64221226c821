"""The items of an evaluation, and solved examples for few-shot prompts."""

from pathlib import Path

import numpy as np
from torch import Tensor

from ...data.chosen import Where
from ...data.origins import EMOJI
from ...errors import ConfigError, DataError, unknown
from .examples import Example, ImageFolder
from .layouts import READERS
from .protocols import FITS, LanguageEval
from .speaker import Speaker
from .tables import read_table

MOST_CANDIDATES = 5000  # of a pool made of all answers


def read_examples(settings: LanguageEval, data: str | None = None, where: Where | None = None) -> list[Example]:
    """All items of a file in its layout, or of "emoji", the sample of the package.

    Args:
        settings: say what is read.
        data: in place of the settings' file.
        where: in place of the settings' rows.

    Raises:
        ConfigError: for a file, folder or column that is not there.
        DataError: for one that has not the layout, or an image that is not there or leads out of its folder.
    """
    source = data or settings.data
    file = EMOJI if source == "emoji" else Path(source).expanduser()
    folder = None if settings.images is None else ImageFolder(settings.images)
    if settings.format == "table":
        wanted = settings.where if where is None else where
        found = read_table(file, folder, settings.columns, wanted)
    else:
        if settings.columns or settings.where:
            raise ConfigError(f"columns and where apply to format=table only; {settings.format} has a fixed layout")
        other = None if settings.annotations is None or data is not None else Path(settings.annotations).expanduser()
        if not file.is_file():
            raise ConfigError(f"no such file: {file}")
        found = READERS[settings.format](file, folder or ImageFolder(file.parent), other)
    return found


def choose_items(settings: LanguageEval, found: list[Example]) -> list[Example]:
    """The items that are scored.

    Raises ConfigError for an unknown split, DataError if there are none, or one lacks what its task needs."""
    splits = {example.split for example in found} - {""}
    split = settings.split or ("test" if settings.format == "coco" and "test" in splits else None)
    if split is not None:
        if split not in splits:
            raise ConfigError(unknown("split", split, splits) if splits else f"{settings.data} has no splits")
        found = [example for example in found if example.split == split]
    found = found[: settings.num_examples]
    if not found:
        raise DataError(f"{settings.data} has no items to score")
    for example in found:
        if settings.task != "retrieval" and settings.format != "mmvet" and not example.references:
            raise DataError(f"{example.key} has no reference text to compare with")
        if settings.task == "text_to_image" and not any(p["kind"] == "image" for p in example.pictures):
            raise DataError(f"{example.key} has no image to compare with")
        if settings.task == "video_qa" and not any(p["kind"] == "video" for p in example.pictures):
            raise DataError(f"{example.key} has no video; name its column: columns.video=NAME")
    return with_candidates(settings, found) if settings.task == "retrieval" else found


def check_fit(settings: LanguageEval) -> None:
    """Raises ConfigError for a task that a layout does not support."""
    if settings.task not in FITS[settings.format]:
        raise ConfigError(f"{settings.format} is for {', '.join(FITS[settings.format])}, not {settings.task}")


def with_candidates(settings: LanguageEval, found: list[Example]) -> list[Example]:
    """Items without candidates get all different first references of the set as candidates."""
    if all(example.candidates for example in found):
        return found
    pool = list(dict.fromkeys(example.references[0] for example in found if example.references))
    if len(pool) > MOST_CANDIDATES:
        raise ConfigError(
            f"{len(pool):,} different references to rank; the maximum is {MOST_CANDIDATES:,}: lower num_examples"
        )
    for example in found:
        if not example.candidates:
            if not example.references:
                raise DataError(f"{example.key} has neither candidates nor a reference")
            example.candidates, example.target = pool, pool.index(example.references[0])
    return found


class Shots:
    """Solved examples for each item. An item never gets itself or one with the same key. note: their origin."""

    def __init__(self, settings: LanguageEval, speaker: Speaker, items: list[Example], all_items: list[Example]):
        self.settings, self.speaker, self.note = settings, speaker, ""
        self.pool: list[Example] = []
        self.similarity: Tensor | None = None
        if settings.shots == 0:
            return
        train = [example for example in all_items if example.split == "train"]
        if settings.shots_data is not None or settings.shots_where is not None:
            self.pool = read_examples(settings, settings.shots_data or settings.data, settings.shots_where or {})
            where = f" where {settings.shots_where}" if settings.shots_where else ""
            source = (settings.shots_data or settings.data) + where
        elif settings.format == "coco" and train:
            self.pool, source = train, "its training split"
        else:
            self.pool, source = items, "the other items of the same file (so answers of scored items appear in prompts)"
        self.pool = [e for e in self.pool if e.references or e.target is not None]
        if len(self.pool) <= settings.shots:
            raise ConfigError(f"{settings.shots} shots, but there are only {len(self.pool)} examples to take them from")
        self.note = f"{settings.shots} shots, {settings.choose}, from {source}"
        if settings.choose == "similar":
            mine, other = ([e.pictures for e in part] for part in (items, self.pool))
            own = speaker.picture_features(mine, [e.key for e in items])
            self.similarity = own @ speaker.picture_features(other, [e.key for e in self.pool]).T

    def of(self, number: int, example: Example) -> list[Example]:
        """Shots of item `number`; "random" depends on the seed and the number alone."""
        num = self.settings.shots
        if num == 0:
            return []
        if self.similarity is not None:
            order = self.similarity[number].argsort(descending=True, stable=True).tolist()
        else:
            order = np.random.default_rng((self.settings.seed, number)).permutation(len(self.pool)).tolist()
        allowed = [self.pool[i] for i in order if self.pool[i] is not example and self.pool[i].key != example.key]
        return allowed[:num][::-1]  # the most similar one comes right before the question

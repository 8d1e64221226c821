"""Creates the tables of the recipe `omni_stamps` from the stamps of Tux Paint.

    apt-get install tuxpaint-stamps-default
    python benchmarks/make_stamps.py /usr/share/tuxpaint/stamps .

Writes stamps/ and stamps_speech/, each with train, validation and test.parquet. The stamps, and therefore the tables,
are licensed under GPL-2.0-or-later. stamps: id, image (PNG, at most 128 pixels per side), caption, captions_other (es,
fr, de, zh), category, sound, speech (English). stamps_speech: id, language, text, speech (Spanish and French). SVG
stamps are left out. The split depends only on the caption, so equal captions are in the same split.
"""

import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE = 128  # pixels, at most
LANGUAGES = ("es", "fr", "de", "zh")
SPOKEN = ("es", "fr")
MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STAMPS = pa.schema([
    ("id", pa.string()), ("image", MEDIA), ("caption", pa.string()),
    ("captions_other", pa.struct([(language, pa.string()) for language in LANGUAGES])),
    ("category", pa.string()), ("sound", MEDIA), ("speech", MEDIA),
])  # fmt: skip
SPEECH = pa.schema([("id", pa.string()), ("language", pa.string()), ("text", pa.string()), ("speech", MEDIA)])


def main(stamps: Path, out: Path) -> None:
    rows: dict[str, list[Any]] = {"train": [], "validation": [], "test": []}
    spoken: dict[str, list[Any]] = {split: [] for split in rows}
    for file in sorted(stamps.rglob("*.png")):
        text = file.with_suffix(".txt")
        if file.stem.endswith("_mirror") or not text.is_file():
            continue
        captions = read_captions(text)
        if not captions.get("en"):
            continue
        place = file.relative_to(stamps).with_suffix("")
        split = split_of(captions["en"])
        rows[split].append({
            "id": place.as_posix(), "image": {"bytes": shrunk(file), "path": None}, "caption": captions["en"],
            "captions_other": {language: captions.get(language) for language in LANGUAGES},
            "category": place.parts[0], "sound": sound(file, ""), "speech": sound(file, "_desc"),
        })  # fmt: skip
        for language in SPOKEN:
            said = sound(file, f"_desc_{language}")
            if said and captions.get(language):
                spoken[split].append({"id": place.as_posix(), "language": language, "text": captions[language],
                                      "speech": said})  # fmt: skip
    for name, schema, parts in (("stamps", STAMPS, rows), ("stamps_speech", SPEECH, spoken)):
        (out / name).mkdir(parents=True, exist_ok=True)
        for split, found in parts.items():
            pq.write_table(pa.Table.from_pylist(found, schema), out / name / f"{split}.parquet")
        print(name, {split: len(found) for split, found in parts.items()})


def read_captions(file: Path) -> dict[str, str]:
    """Captions by language; the first line of a file is English, the others have the form "es.utf8=..."."""
    first, *others = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    pairs = (line.partition("=") for line in others)
    found = {key.partition(".")[0].partition("_")[0]: value.strip() for key, _, value in reversed(list(pairs)) if value}
    return {**found, "en": first.strip()}


def split_of(caption: str) -> str:
    number = int(hashlib.sha256(caption.lower().encode()).hexdigest()[:8], 16) % 100
    return "train" if number < 80 else "validation" if number < 90 else "test"


def shrunk(file: Path) -> bytes:
    with Image.open(file) as image:
        picture = image.convert("RGBA")
    picture.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    picture.save(written, format="PNG")
    return written.getvalue()


def sound(file: Path, ending: str) -> dict[str, Any] | None:
    """The sound file of a stamp. Files of at most 1,000 bytes are placeholders and count as no sound."""
    for suffix in (".ogg", ".wav"):
        found = file.with_name(f"{file.stem}{ending}{suffix}")
        if found.is_file() and found.stat().st_size > 1000:
            return {"bytes": found.read_bytes(), "path": found.name}
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

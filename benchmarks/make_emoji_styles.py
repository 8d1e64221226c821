"""Creates emoji data to compare objectives on: training in one drawing style, testing in another.

Reads a folder of emoji tables (columns image, vendor, group; files train, validation and test). Writes Noto images as
train and validation, and Twemoji images as test.

    python benchmarks/make_emoji_styles.py path/to/emoji -o emoji_styles
    nextembed compare nepa_demo data.source=emoji_styles data.label_column=group --minutes 5 --tune 3

Validation contains the Noto emoji that are not in train. Test contains all Twemoji emoji, so that it measures mostly
known emoji in an unseen style.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nextembed.core.files import new_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("emoji_styles"))
    args = parser.parse_args()
    tables = {name: pq.read_table(args.source / f"{name}.parquet") for name in ("train", "validation", "test")}
    held_out = pa.concat_tables([tables["validation"], tables["test"]])
    every = pa.concat_tables(list(tables.values()))
    found = {
        "train": of(tables["train"], "noto"),
        "validation": of(held_out, "noto"),
        "test": of(every, "twemoji"),
    }
    with new_folder(args.output) as folder:
        for name, table in found.items():
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=256)
    for name, table in found.items():
        print(f"{name}: {table.num_rows:,} images, {len(pc.unique(table['group']))} groups")


def of(table: pa.Table, vendor: str) -> pa.Table:
    return table.filter(pc.equal(table["vendor"], vendor))


if __name__ == "__main__":
    main()

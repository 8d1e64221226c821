"""Creates the bundled text data for small language models: data/sample/glosses.parquet and data/sample/tokenizer/.

    python benchmarks/make_sample_text.py TEXT_FOLDER

TEXT_FOLDER: train.parquet with a column `text` of lines "lemma: gloss" (WordNet 3.0 nouns). Lines in lower case with at
most 100 characters (everyday words) are sampled with a fixed seed. The tokenizer is trained on them and on the names
and keywords of the bundled emoji.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nextembed.models.emu import train_tokenizer

SAMPLE = Path(__file__).parents[1] / "src" / "nextembed" / "data" / "sample"
NUM, LONGEST, VOCABULARY = 40_000, 100, 4096
QUESTIONS = ["Question: what is this? Answer:", "What kind of thing is it?", "Which group does this picture belong to?"]


def main(folder: Path) -> None:
    texts = pq.read_table(folder / "train.parquet", columns=["text"])["text"].to_pylist()
    short = sorted({t for t in texts if len(t) <= LONGEST and t == t.lower()})
    kept = [short[i] for i in np.random.default_rng(0).permutation(len(short))[:NUM]]
    pq.write_table(pa.table({"text": kept}), SAMPLE / "glosses.parquet", compression="zstd", compression_level=19)
    emoji = pq.read_table(SAMPLE / "emoji32.parquet", columns=["name", "tags", "group"]).to_pylist()
    captions = [f"{row['name']}. {', '.join(row['tags'] or [])}. {row['group']}" for row in emoji]
    train_tokenizer([*kept, *captions * 2, *QUESTIONS * 20], VOCABULARY).save_pretrained(SAMPLE / "tokenizer")
    print(f"{len(kept):,} of {len(short):,} short glosses, {VOCABULARY:,} tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

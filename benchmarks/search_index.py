"""Search among a million vectors: build and query time, memory and measured recall of `nextembed index`, with exact
search of the file for comparison. Vectors are sampled around 1,000 centres with a common offset, like frozen features.

    python benchmarks/search_index.py --rows 1000000 --width 256 -o benchmarks/results/search_index.json
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nextembed.evaluation.features.index import FeatureIndex, build_index
from nextembed.evaluation.features.stored import FeatureFile

GROUP = 8_192


def write(file: Path, rows: int, width: int, spread: float) -> None:
    """Writes a file of features, one row group at a time."""
    random = np.random.default_rng(0)
    scale = np.linspace(2, 0.1, width, dtype=np.float32)  # a few directions contain most of the variance
    centres = random.standard_normal((1_000, width), dtype=np.float32) * scale
    schema = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float32(), width))])
    with pq.ParquetWriter(file, schema, compression="none") as writer:
        for begin in range(0, rows, GROUP):
            count = min(GROUP, rows - begin)
            noise = random.standard_normal((count, width), dtype=np.float32) * scale * spread
            values = centres[random.integers(0, 1_000, count)] + noise + 1
            columns = [
                pa.array([f"image {i}" for i in range(begin, begin + count)]),
                pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def times(ask: list[torch.Tensor], bank: FeatureFile | FeatureIndex) -> dict[str, float]:
    """Milliseconds per query, with queries run one after another."""
    taken = []
    for query in ask:
        began = time.perf_counter()
        bank.nearest(query, 10)
        taken.append(1000 * (time.perf_counter() - began))
    return {"median_ms": round(float(np.median(taken)), 2), "max_ms": round(max(taken), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--spread", type=float, default=1.0, help="spread around centres relative to that of centres")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "features.parquet"
        write(source, args.rows, args.width, args.spread)
        file = FeatureFile(source)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        made = build_index(file, Path(folder) / "index", args.recall)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        random = torch.Generator().manual_seed(1)
        numbers = torch.randint(args.rows, (100,), generator=random)
        ask = list(file.gather(numbers.sort().values) + 0.02 * torch.randn(100, args.width, generator=random))
        found = {
            "rows": args.rows,
            "width": args.width,
            "spread": args.spread,
            "threads": torch.get_num_threads(),
            "index": vars(made.facts)
            | {"MiB": made.num_bytes >> 20, "peak_MiB": peak >> 10, "before_MiB": before >> 10},
            "indexed": times(ask, FeatureIndex(made.path)),
            "exact": times(ask[:5], file),
        }
    print(json.dumps(found, indent=1))
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Several threads read a features file at once, as for the thumbnails of the studio."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nextembed.evaluation.features.stored import StoredRows


def test_threads_read_the_requested_rows(tmp_path: Path) -> None:
    """pyarrow's reader is not thread-safe: concurrent use fails or returns wrong rows."""
    file = tmp_path / "features.parquet"
    names = [f"picture-{number}" * 50 for number in range(2000)]
    pq.write_table(pa.table({"key": names, "path": names}), file, row_group_size=50)
    rows = StoredRows(file)
    wanted = [number * 37 % 2000 for number in range(1500)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: rows.rows([number])[0]["key"], wanted))
    assert found == [names[number] for number in wanted]

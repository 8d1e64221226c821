"""Rows of one table joined with rows of others, and which rows have the values that are needed."""

from collections.abc import Hashable

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ..core.config import Config
from ..errors import ConfigError, unknown
from .chosen import Where
from .record import Record
from .rows import Rows
from .stored import IndexedRows, Values
from .tables import field
from .transforms import Unreadable


class Join(Config):
    """Another table, whose columns are then called NAME.column.

    Attributes:
        source: the other table, as in `data.source`.
        by: column that both tables have; if several rows have the same value, the first is used.
        where: keeps rows of the other table whose column has this value, or one of these.
    """

    source: str
    by: str
    where: Where = Field(default_factory=dict)


class JoinedRows:
    """Rows with the matching rows of other tables: row[NAME] is a row of the table NAME, or None if none matches.
    others: for each table the common column, and its rows.
    """

    def __init__(self, rows: Rows, others: dict[str, tuple[str, Rows]]):
        self.rows, self.others = rows, {name: other for name, (_, other) in others.items()}
        self.found: dict[str, list[int | None]] = {}  # for each row its row in the other table
        for name, (by, other) in others.items():
            numbers: dict[Hashable, int] = {}
            for number, value in enumerate(values_of(other, by, f"data.joins.{name}.by")):
                if value is not None:
                    numbers.setdefault(value, number)
            self.found[name] = [numbers.get(value) for value in values_of(rows, by, f"data.joins.{name}.by")]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row: Record = self.rows[index].but()
        for name, other in self.others.items():
            number = self.found[name][index]
            row[name] = None if number is None else other[number]
        return row


def values_of(rows: Rows, column: str, setting: str) -> list[Hashable]:
    """A column's value in each row, without reading the others where that is possible."""
    if isinstance(rows, IndexedRows) and rows.has_columns:
        if column not in rows.data.column_names:
            raise ConfigError(unknown(f"{setting}:", column, rows.data.column_names))
        return [hashable(value) for value in rows.data[column]]
    return [hashable(record.get(column)) for record in (rows[i] for i in range(len(rows)))]


def hashable(value: object) -> Hashable:
    """None for a list or an object, which cannot be a key."""
    return value if isinstance(value, Hashable) else None


def present(rows: Rows, column: str) -> list[bool]:
    """Whether each row has a value in a column ("image", "captions.es", "NAME.image"), without decoding media. A line
    that is not JSON counts as having it, so that it is later reported as unreadable."""
    if isinstance(rows, JoinedRows):
        name, _, inner = column.partition(".")
        if name not in rows.others:
            return present(rows.rows, column)
        has = present(rows.others[name], inner)
        return [number is not None and has[number] for number in rows.found[name]]
    if not isinstance(rows, IndexedRows) or not rows.has_columns:
        records: list[Record] = [rows[i] for i in range(len(rows))]
        return [row.error is not None or has_value(row, column) for row in records]
    data = rows.data
    top, *inner_names = [column] if column in data.column_names else column.split(".")
    valid: list[bool] = []
    for table in data.select_columns([top]).with_format("arrow").iter(batch_size=256):
        values = table.column(top)
        for name in inner_names:
            if not pa.types.is_struct(values.type) or values.type.get_field_index(name) < 0:
                break  # inside JSON text, or missing: only the row shows it
            values = pc.struct_field(values, name)
        valid += pc.is_valid(values).to_pylist()
    return valid


def has_value(row: Values, column: str) -> bool:
    """Whether a row has something in a column, or in a field inside it."""
    try:
        value = field(row, column)
    except Unreadable:
        return False
    if isinstance(value, dict) and set(value) <= {"bytes", "path"}:
        return any(one is not None for one in value.values())
    missing = value is None or value == "" or value == [] or value != value  # NaN
    return not missing

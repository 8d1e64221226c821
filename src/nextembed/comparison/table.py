"""Scores of many runs as one table: mean and standard deviation over seeds, in JSON, Markdown, CSV and a DataFrame."""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from ..core.console import PlainConsole
from ..core.files import write_json, write_text
from ..core.saved import Count, Number, load
from .scores import ACCURACIES, COLUMNS, RunScores

if TYPE_CHECKING:
    import pandas

FILE = "comparison.json"
VERDICT = "verdict"  # the last column of accuracies
KINDS = {"objective": 0, "run": 0, "baseline": 1}  # baselines come last


@dataclass
class Cell:
    """sd: sample standard deviation over `num` runs; None of a single one."""

    mean: Number
    sd: Number | None
    num: Count


@dataclass
class TableRow:
    """All seeds of one objective or baseline. verdicts: how many runs ended with each; below: baselines whose linear
    probe is as good or better."""

    name: str
    kind: str
    num: Count
    cells: dict[str, Cell] = field(default_factory=dict)
    verdicts: dict[str, Count] = field(default_factory=dict)
    below: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """ "learning", or "learning 2, collapsed 1"; and what it is not above: "learning, not above raw pixels"."""
        one = len(self.verdicts) == 1
        words = [word if one else f"{word} {num}" for word, num in self.verdicts.items()]
        return ", ".join([*words, *([f"not above {' and '.join(self.below)}"] if self.below else [])])


@dataclass
class Comparison:
    """A finished comparison, or one that is under way.

        found = nextembed.compare("fashion_mnist", objectives=["nepa", "mae"], settings={"minutes": 5})
        found.table                    # a pandas DataFrame
        found.rows[0].cells["linear"].mean

    Attributes:
        name: its name.
        budget: the budget, in words.
        rows: rows of the table.
        runs: what each run scored.
        trials: what each trial of tuning scored.
        notes: what has to be known to read the table.
        settings: what was asked for.
        folder: where its files are.
        format: version of comparison.json.
    """

    name: str
    budget: str
    rows: list[TableRow] = field(default_factory=list)
    runs: list[RunScores] = field(default_factory=list)
    trials: list[RunScores] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    format: Count = 1

    @property
    def table(self) -> "pandas.DataFrame":
        """Means, and of each a column NAME_sd; the rows' names are the index."""
        import pandas

        found: dict[str, dict[str, object]] = {}
        for row in self.rows:
            values: dict[str, object] = {}
            for name in self.columns:
                cell = row.cells.get(name)
                values[name] = None if cell is None else cell.mean
                values[f"{name}_sd"] = None if cell is None else cell.sd
            found[row.name] = {**values, "verdict": row.verdict, "runs": row.num}
        return pandas.DataFrame.from_dict(found, orient="index")

    @property
    def columns(self) -> list[str]:
        """Of the table: those that some row has."""
        return [name for name in COLUMNS if any(name in row.cells for row in self.rows)]

    def _repr_html_(self) -> str:
        return self.html(self.columns)

    def html(self, names: list[str]) -> str:
        """Some columns as an HTML table.

        Args:
            names: columns; rows without any of them are left out.

        Returns:
            The `<table>` element; empty if no row is left.
        """
        rows = [row for row in self.rows if any(name in row.cells for name in names)]
        head = "".join(f'<th title="{escape(COLUMNS[name].text)}">{escape(COLUMNS[name].title)}</th>' for name in names)
        body = "".join(
            f"<tr><td>{escape(row.name)}</td>"
            + "".join(f"<td>{escape(shown(name, row.cells.get(name)))}</td>" for name in names)
            + f"<td>{escape(row.verdict)}</td></tr>"
            for row in rows
        )
        return f"<table><tr><th></th>{head}<th>verdict</th></tr>{body}</table>"

    def render(self, width: int = 200) -> Group:
        """The table for a terminal: accuracies first, then costs, divided into as many tables as the width needs.

        Args:
            width: characters of a line.

        Returns:
            What rich prints.
        """
        console, parts = PlainConsole(width=width), list[list[str]]()
        wide = console.options.update(max_width=10**4)
        costs = [name for name in COLUMNS if name not in ACCURACIES]
        for group in ([*ACCURACIES, VERDICT], costs):
            parts.append([])
            for name in [name for name in group if name in (*self.columns, VERDICT)]:
                wider = self.part([*parts[-1], name])
                if parts[-1] and wider.__rich_measure__(console, wide).maximum > width:
                    parts.append([])
                parts[-1].append(name)
        tables = [self.part(names) for names in parts if names]
        return Group(f"{self.name}: {self.budget}", *tables)

    def part(self, names: list[str]) -> Table:
        """Some columns as a rich table, with the verdict if it is among them.

        Args:
            names: columns; rows without any of them are left out.

        Returns:
            A table of rich.
        """
        table, verdicts = Table(), VERDICT in names
        names = [name for name in names if name != VERDICT]
        for title in ("", *(COLUMNS[name].title for name in names)):
            table.add_column(title, justify="right" if title else "left", no_wrap=True)
        if verdicts:
            table.add_column(VERDICT)
        rows = [r for r in self.rows if any(name in r.cells for name in names) or (verdicts and r.verdict)]
        for before, row in zip([None, *rows], rows):
            if before is not None and KINDS[before.kind] < KINDS[row.kind]:
                table.add_section()
            cells = [row.name, *(shown(name, row.cells.get(name)) for name in names)]
            table.add_row(*cells, *([row.verdict] if verdicts else []))
        return table

    def __str__(self) -> str:
        console = PlainConsole(width=200, no_color=True)
        with console.capture() as capture:
            console.print(self.render())
        return capture.get()

    def markdown(self) -> str:
        """A table of GitHub's Markdown, and the notes below it."""
        titles = ["", *(COLUMNS[name].title for name in self.columns), "verdict"]
        lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * len(self.columns) + "---|"]
        for row in self.rows:
            cells = [shown(name, row.cells.get(name)) for name in self.columns]
            lines.append("| " + " | ".join([row.name.replace("|", "\\|"), *cells, row.verdict]) + " |")
        return "\n".join([f"# {self.name}", "", f"Budget of each run: {self.budget}.", "", *lines, "",
                          *(f"- {note}" for note in self.notes)]) + "\n"  # fmt: skip

    def csv(self) -> str:
        """One line a row: plain numbers, mean and NAME_sd."""
        out = io.StringIO()
        names = [part for name in self.columns for part in (name, f"{name}_sd")]
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(["row", "kind", "runs", *names, "verdict"])
        for row in self.rows:
            cells = [row.cells.get(name) for name in self.columns]
            values = [part for cell in cells for part in ((cell.mean, cell.sd) if cell else (None, None))]
            lines.writerow([row.name, row.kind, row.num, *values, row.verdict])
        return out.getvalue()

    def save(self, folder: Path) -> None:
        """Writes comparison.json, comparison.md and comparison.csv, each atomically.

        Args:
            folder: an existing folder.
        """
        write_json(folder / FILE, asdict(self))
        write_text(folder / "comparison.md", self.markdown())
        write_text(folder / "comparison.csv", self.csv())

    @classmethod
    def load(cls, file: str | Path) -> "Comparison":
        """Reads comparison.json.

        Args:
            file: a comparison.json.

        Returns:
            The comparison, with its rows and runs.

        Raises:
            ConfigError: One line that names the file and the value that is wrong.
        """
        return load(cls, file)


def rows_of(runs: Sequence[RunScores]) -> list[TableRow]:
    """Rows of the table, in the order in which they come first; baselines after the others."""
    names = list(dict.fromkeys(run.row for run in runs))
    found = [row_of(name, [run for run in runs if run.row == name]) for name in names]
    judges = [row for row in found if row.kind == "baseline" and "linear" in row.cells]
    for row in found:
        if row.kind != "baseline" and (own := row.cells.get("linear")):
            row.below = [one.name for one in judges if own.mean <= one.cells["linear"].mean]
    return sorted(found, key=lambda row: KINDS.get(row.kind, 0))


def row_of(name: str, runs: Sequence[RunScores]) -> TableRow:
    """Mean and standard deviation of each column over the runs that have it."""
    row = TableRow(name, runs[0].kind, len(runs))
    for column in COLUMNS:
        values = [run.values[column] for run in runs if column in run.values]
        if values:
            sd = statistics.stdev(values) if len(values) > 1 else None
            row.cells[column] = Cell(statistics.mean(values), sd, len(values))
    for run in runs:
        if run.verdict:
            row.verdicts[run.verdict] = row.verdicts.get(run.verdict, 0) + 1
    return row


def shown(column: str, cell: Cell | None) -> str:
    """A cell for people: "82.1 ± 0.4", in the column's unit."""
    if cell is None:
        return "-"
    unit = COLUMNS[column].unit
    scale = {"%": 100, "M": 1e-6, "GB": 1e-9}.get(unit, 1)
    if unit in ("M", "GB"):
        return f"{scale * cell.mean:.2f} {unit}"
    if unit == "":
        return f"{cell.mean:,.0f}"
    spread = f" ± {scale * cell.sd:.1f}" if cell.sd is not None and unit == "%" else ""
    return f"{scale * cell.mean:.1f}{spread}"

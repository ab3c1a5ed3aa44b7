"""A table of results as a TOML file: what each column measures, and what papers say of each row.

The shipped tables are in ``export/tables/`` and are named by their stem. To add a table, add a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from teso_deploy.errors import DataError
from teso_deploy.evaluation.conditions import parse_conditions
from teso_deploy.evaluation.protocols.registry import PROTOCOLS
from teso_deploy.recipe_tables import Table, Text
from teso_deploy.resources import find_shipped_path
from teso_deploy.small_files import parse_toml, read_text
from teso_deploy.text import to_one_line

#: The data sets that a column may be measured on.
ShotKey = Literal["v3-0-shot", "v3-1-shot", "v3-3-shot", "v3-5-shot"]
DataSetKey = Literal["v1s", "v1m", "v2", "avss", "avss-binary", ShotKey]
DATA_SET_KEYS: tuple[DataSetKey, ...] = get_args(DataSetKey)
#: What a source prints where it has no number.
NOT_REPORTED = "-"
#: The largest table so far has 5 KB.
MOST_BYTES = 1 << 20
_WHAT = "a table's TOML file"


def _check_protocol(name: str) -> str:
    known = [protocol for protocol, entry in PROTOCOLS.items() if not entry.makes_samples]
    if name not in known:
        raise ValueError(f"unknown protocol {name!r} for clips: name one of {', '.join(known)}")
    return name


def _check_condition(name: str) -> str:
    parse_conditions([name])
    return name


def _check_quoted(value: Any) -> Any:
    if value != NOT_REPORTED and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{value!r} is not a number: write one, or '-' if the source shows none")
    return value


Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]
#: The row of the bundle that was given without a name. No row of a table has this key.
OURS = "ours"
Number = Annotated[float, Field(strict=True, ge=-1e9, le=1e9)]
Quoted = Annotated[float | Literal["-"], BeforeValidator(_check_quoted)]


class Column(Table):
    """One measurement.

    Attributes:
        key: The column's name in this file.
        heading: The heading. Columns that stand together and have the same ``group`` get it as a heading above theirs.
        dataset: The data set.
        protocol: The protocol by which it is scored.
        condition: The sound, as ``eval`` names it: ``normal``, ``muted``, ``noise 10 dBW``.
        value: The name of the number in the report of ``eval``.
        shown: Whether numbers are shown, and written in this file, times 100.
        decimals: How many digits after the point are shown.
        better: Which numbers are better.
    """

    key: Key
    heading: Text
    group: Text = ""
    dataset: DataSetKey
    protocol: Annotated[str, AfterValidator(_check_protocol)] = "avsbench"
    condition: Annotated[Text, AfterValidator(_check_condition)] = "normal"
    value: Key = "miou"
    shown: Literal["percent", "fraction"] = "percent"
    decimals: Annotated[int, Field(ge=0, le=9)] = 2
    better: Literal["higher", "lower"] = "higher"

    @property
    def scale(self) -> float:
        """By what a measured number is multiplied to be shown."""
        return 100.0 if self.shown == "percent" else 1.0


class Row(Table):
    """A method, or one way to run it.

    Attributes:
        key: The row's name in this file and for ``--bundle KEY=FOLDER``.
        name: The name that is shown.
        labels: What stands in the table's columns of text.
        source: Which of the table's sources has the numbers.
        quoted: Column → the source's number in the unit of the column, or "-" if the source shows that it has none.
            A column that is not here was not found in a public source.
        recipes: Recipes whose bundles are this method. A bundle without a name is put into the first such row.
        cues: How cues are chosen for this row, in place of ``--cues``; such a row is measured with the bundle that has
            no name. ``filter`` offers none, and keeps the masks whose class is among the cues.
        rule: Whether a line separates this row from the one above.
        note: A remark on the row.
    """

    key: Key
    name: Text
    labels: tuple[Text, ...] = ()
    source: Key | None = None
    quoted: dict[Key, Quoted] = Field(default_factory=dict)
    recipes: tuple[Text, ...] = ()
    cues: Literal["labels", "none", "auto", "filter"] | None = None
    rule: bool = False
    note: Text = ""


class Claim(Table):
    """A statement of the paper that is checked on measured numbers.

    Attributes:
        says: The statement.
        column: The column whose number is judged.
        row: The row that is judged; ``ours`` is that of the bundle without a name. Default: each row that was measured.
        above: The number must be above this, in the unit of the column.
        below: The number must be below this.
        than_row: The number must be better than that of this row.
        than_column: The number must be better than that of this column in the same row.
    """

    says: Text
    column: Key
    row: Key | None = None
    above: Number | None = None
    below: Number | None = None
    than_row: Key | None = None
    than_column: Key | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> Claim:
        given = [one for one in (self.above, self.below, self.than_row, self.than_column) if one is not None]
        if len(given) != 1:
            raise ValueError("give one of above, below, than_row and than_column")
        return self


class TableDefinition(Table):
    """A table.

    Attributes:
        title: Its title.
        shows: What it shows, in a sentence or two.
        labels: The headings of its columns of text.
        sources: Key → where numbers are from.
        notes: Remarks that are shown below it.
        usage: How its rows are measured, for people at a terminal. It is not part of the written table.
        columns: Its measurements.
        rows: Its methods.
        claims: Statements that are checked on measured numbers.
    """

    title: Text
    shows: Text
    labels: tuple[Text, ...] = ()
    sources: dict[Key, Text] = Field(default_factory=dict)
    notes: tuple[Text, ...] = ()
    usage: tuple[Text, ...] = ()
    columns: Annotated[tuple[Column, ...], Field(min_length=1, max_length=64)]
    rows: Annotated[tuple[Row, ...], Field(max_length=256)] = ()
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _parts_fit(self) -> TableDefinition:
        columns, rows = [column.key for column in self.columns], [row.key for row in self.rows]
        _check_unique("columns", columns)
        _check_unique("rows", [name for row in self.rows for name in {row.key.casefold(), row.name.casefold()}])
        if OURS in rows:
            raise ValueError(f"the key {OURS!r} is the row of a bundle without a name: name the row differently")
        for row in self.rows:
            if len(row.labels) not in (0, len(self.labels)):
                raise ValueError(f"row {row.key} has {len(row.labels)} labels: give {len(self.labels)}")
            _check_known(f"row {row.key}: quoted", row.quoted, columns)
            if row.quoted and row.source is None:
                raise ValueError(f"row {row.key} quotes numbers without a source: name it")
            _check_known(f"row {row.key}: source", [] if row.source is None else [row.source], list(self.sources))
        for claim in self.claims:
            named = [one for one in (claim.column, claim.than_column) if one is not None]
            _check_known("a claim: column", named, columns)
            _check_known("a claim: row", [one for one in (claim.row, claim.than_row) if one not in (None, OURS)], rows)
        return self

    def find_row(self, name: str) -> Row | None:
        """Return the row of a key or name, whatever its case."""
        wanted = name.casefold()
        return next((row for row in self.rows if wanted in (row.key.casefold(), row.name.casefold())), None)


def _check_unique(what: str, keys: list[str]) -> None:
    if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
        raise ValueError(f"two of the {what} are {twice[0]!r}: name one differently")


def _check_known(what: str, keys: Iterable[str], known: list[str]) -> None:
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(f"{what} {unknown[0]!r} is not in this table: name one of {', '.join(known) or 'none'}")


def list_shipped_tables() -> dict[str, Path]:
    """Return name → path of every table of the package, numbers first."""
    found = find_shipped_path("export/tables").glob("*.toml")
    return {path.stem: path for path in sorted(found, key=lambda path: (not path.stem.isdigit(), path.stem))}


def find_table(name_or_path: str | Path) -> Path:
    """Return the file of a table. Raises :class:`DataError` for a name that is not a shipped table's."""
    shipped = list_shipped_tables()
    by_name = {name.casefold(): path for name, path in shipped.items()}
    path = by_name.get(str(name_or_path).casefold(), Path(name_or_path))
    if path.suffix != ".toml":
        shown = to_one_line(repr(str(name_or_path)), 60)
        raise DataError(f"unknown table {shown}: name one of {', '.join(shipped) or 'none shipped'}, or a .toml file")
    return path


def load_table(name_or_path: str | Path) -> TableDefinition:
    """Read a table by its shipped name (``4``, ``D7``) or from a TOML file.

    Raises:
        DataError: The name is unknown, or the content is invalid.
        InputNotFoundError: The file does not exist.
    """
    path = find_table(name_or_path)
    content = parse_toml(read_text(path, _WHAT, limit_bytes=MOST_BYTES, error=DataError), path, error=DataError)
    return parse_table(content, path)


def parse_table(content: dict[str, Any], name: object) -> TableDefinition:
    """Validate a table. The error names the first wrong field; ``name`` is the file's. Raises :class:`DataError`."""
    try:
        return TableDefinition.model_validate(content)
    except ValidationError as error:
        # A misspelt field is also a missing one: name the misspelt one.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        field = to_one_line(".".join(str(part) for part in first["loc"])) or "table"
        if first["type"] == "extra_forbidden":
            raise DataError(f"{name}: {field} is not a field of a table: remove it") from error
        reason = to_one_line(first["msg"].removeprefix("Value error, "))
        raise DataError(f"{name}: {field}: {reason}") from error

"""Which rows of a table are measured, each with which bundle and which cues."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from teso_deploy.errors import DataError
from teso_deploy.evaluation.tables.schema import DATA_SET_KEYS, OURS, DataSetKey, Row, TableDefinition
from teso_deploy.text import to_one_line


@dataclass(frozen=True, slots=True)
class GivenBundle:
    """A bundle that a user gave.

    Attributes:
        folder: Its folder.
        recipe: The name in its manifest.
        name: The row that it was given for; empty if the user named none.
        dataset: The data set that it is for; None: all.
    """

    folder: Path
    recipe: str
    name: str = ""
    dataset: DataSetKey | None = None


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row that is measured.

    Attributes:
        key: The row of the table, or the key of a new one.
        name: The name of a new row.
        bundles: Data set → bundle; the bundle under None is for all others.
        cues: A way to choose cues, or a file of cues.
        filters: Whether the cues are not offered, but keep the masks whose class is among them.
    """

    key: str
    name: str
    bundles: Mapping[DataSetKey | None, GivenBundle]
    cues: str | Path
    filters: bool = False

    def find_bundle(self, dataset: DataSetKey) -> GivenBundle | None:
        """Return the bundle for a data set; None if the user gave none for it."""
        return self.bundles.get(dataset, self.bundles.get(None))


@dataclass
class _Plan:
    table: TableDefinition
    cues: str | Path
    rows: dict[str, PlannedRow] = field(default_factory=dict)

    def add(
        self, key: str, name: str, bundles: Mapping[DataSetKey | None, GivenBundle], *, cues: str | Path | None = None
    ) -> None:
        if key in self.rows:
            raise DataError(f"two bundles or files of cues are for the row {name!r}: name one of them differently")
        row = next((row for row in self.table.rows if row.key == key), None)
        way: str | Path = self.cues if cues is None else cues
        filters = row is not None and row.cues == "filter"
        if row is not None and row.cues is not None and not filters and cues is None:
            way = row.cues
        self.rows[key] = PlannedRow(key, name, bundles, way, filters)


def plan_rows(
    table: TableDefinition,
    bundles: Sequence[GivenBundle],
    *,
    cues: str | Path,
    cue_files: Mapping[str, Path] | None = None,
) -> list[PlannedRow]:
    """Choose the rows that are measured.

    A bundle with a name is the row of this key or name, or a new row. One without a name is the row that has its
    recipe, or the row ``ours``; the rows that only choose cues in another way are measured with it too.

    Args:
        table: The table.
        bundles: The user's bundles.
        cues: How cues are chosen where nothing else is said: a way, or a file.
        cue_files: Row → a file of cues. Such a row has the bundle of its name, or else the one without a name.

    Returns:
        The rows, those without a name last.

    Raises:
        DataError: Two bundles are for one row, or a row has cues and no bundle.
    """
    plan, files = _Plan(table, cues), dict(cue_files or {})
    plain = [one for one in bundles if not one.name]
    if len(plain) > 1:
        raise DataError("two bundles have no name: give NAME=FOLDER for each")
    for name in dict.fromkeys(one.name for one in bundles if one.name):
        mine = [one for one in bundles if one.name == name]
        by_dataset = {one.dataset: one for one in mine}
        if len(by_dataset) < len(mine):
            raise DataError(f"two bundles are for the row {name!r}: name one of them differently")
        plan.add(*_find_row(table, name), by_dataset, cues=files.pop(name, None))
    for name, file in files.items():
        if not plain:
            raise DataError(f"the cues of {name} have no bundle: give one without a name, or {name}=FOLDER")
        plan.add(*_find_row(table, name), {None: plain[0]}, cues=file)
    if plain:
        bundle = plain[0]
        for row in table.rows:
            if row.cues is not None and row.key not in plan.rows:
                plan.add(row.key, row.name, {None: bundle})
        own = next((row for row in table.rows if bundle.recipe in row.recipes and row.key not in plan.rows), None)
        plan.add(*((OURS, f"{bundle.recipe} (ours)") if own is None else (own.key, own.name)), {None: bundle})
    return list(plan.rows.values())


def find_ours(table: TableDefinition, bundles: Sequence[GivenBundle]) -> str | None:
    """Return the key of the row of the bundle without a name; None if every bundle has a name."""
    recipes = [one.recipe for one in bundles if not one.name]
    if not recipes:
        return None
    return next((row.key for row in table.rows if recipes[0] in row.recipes), OURS)


def _find_row(table: TableDefinition, name: str) -> tuple[str, str]:
    row: Row | None = table.find_row(name)
    if row is not None:
        return row.key, row.name
    key = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-.") or "row"
    return (f"{key}-2" if key == OURS else key), name


def split_name(text: str, what: str) -> tuple[str, DataSetKey | None, str]:
    """Split ``NAME=PATH`` or ``NAME@DATASET=PATH``. A text without "=" is a path, as is one that exists.

    Args:
        text: What the user gave.
        what: The option, for messages.

    Returns:
        Name, data set, path. The name is empty and the data set None if they were not given.

    Raises:
        DataError: The name or the path is empty, or the data set is unknown.
    """
    name, separator, path = text.partition("=")
    if not separator or _exists(text):
        return "", None, text
    name, at, dataset = name.partition("@")
    if not name or not path:
        lost = "path" if name else "name"
        raise DataError(f"{what} {to_one_line(text, 80)} has no {lost}: give NAME=PATH")
    if not at:
        return name, None, path
    for key in DATA_SET_KEYS:
        if key == dataset:
            return name, key, path
    shown = to_one_line(repr(dataset), 40)
    raise DataError(f"{what}: {shown} is not a data set: name one of {', '.join(DATA_SET_KEYS)}")


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or a zero byte
        return False

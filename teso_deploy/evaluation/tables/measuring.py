"""The numbers of a table, measured: every bundle once on every data set, for all columns and sounds together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from teso_deploy.errors import CueError, DataError, TesoError
from teso_deploy.evaluation.datasets.registry import Layout, load_layout
from teso_deploy.evaluation.tables.filling import MeasuredRow
from teso_deploy.evaluation.tables.planning import PlannedRow
from teso_deploy.evaluation.tables.schema import DataSetKey, ShotKey, TableDefinition
from teso_deploy.outputs import show_path

#: AVS-V3 is read from the same folder for each number of examples. The layouts are named as the data sets.
SHOT_LAYOUTS: tuple[ShotKey, ...] = get_args(ShotKey)
#: The layouts of the data sets in the paper's tables.
_LAYOUTS: tuple[Layout, ...] = ("s4", "ms3", "avss", *SHOT_LAYOUTS)


@dataclass(frozen=True, slots=True)
class DataSource:
    """The folder of a data set, and what to take of it.

    Attributes:
        folder: The folder that the user gave.
        layout: Its layout.
        subsets: The subsets to take; empty: all.
    """

    folder: Path
    layout: Layout
    subsets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    """One bundle on one data set.

    Attributes:
        bundle: The bundle's folder.
        cues: A way to choose cues, or a file of cues.
        filters: See :class:`PlannedRow`.
        source: The data set.
        dataset: Its key.
        protocol: The protocol.
        conditions: The sounds.
    """

    bundle: Path
    cues: str | Path
    filters: bool
    source: DataSource
    dataset: DataSetKey
    protocol: str
    conditions: tuple[str, ...]

    def is_part_of(self, other: MeasureRequest) -> bool:
        """Whether another request measures all of this one."""
        mine = replace(self, dataset=other.dataset, conditions=other.conditions)
        return mine == other and set(self.conditions) <= set(other.conditions)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of a request.

    Attributes:
        values: Condition → the name of a number → its value; None if there was nothing to measure.
        report: What is known of the evaluation, ready for JSON.
    """

    values: Mapping[str, Mapping[str, float | None]]
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """The numbers of a table.

    Attributes:
        rows: The measured rows.
        reports: What is known of each evaluation, ready for JSON.
    """

    rows: Sequence[MeasuredRow] = ()
    reports: Sequence[Mapping[str, Any]] = ()


Measure = Callable[[MeasureRequest], Measurement]


def find_data_sets(folders: Sequence[Path]) -> dict[DataSetKey, DataSource]:
    """Find the data sets of the tables in folders. Of two for the same key the first counts.

    Raises :class:`DataError` if a folder has none.
    """
    found: dict[DataSetKey, DataSource] = {}
    for folder in folders:
        here: dict[DataSetKey, DataSource] = {}
        for layout in _LAYOUTS:
            home = load_layout(layout).find_folder(folder)
            if home is not None:
                for key, source in _list_sources(folder, home, layout).items():
                    here.setdefault(key, source)
        if not here:
            marks = "; ".join(f"{layout}: {load_layout(layout).mark}" for layout in _LAYOUTS)
            raise DataError(f"{folder} has no data set of the tables: name a folder in one of these layouts ({marks})")
        for key, source in here.items():
            found.setdefault(key, source)
    return found


def _list_sources(folder: Path, home: Path, layout: Layout) -> dict[DataSetKey, DataSource]:
    if layout == "s4":
        return {"v1s": DataSource(folder, layout)}
    if layout == "ms3":
        return {"v1m": DataSource(folder, layout)}
    for shots in SHOT_LAYOUTS:
        if layout == shots:
            return {shots: DataSource(folder, layout)}
    sources: dict[DataSetKey, DataSource] = {"avss": DataSource(folder, layout)}
    subsets: tuple[DataSetKey, ...] = ("v1s", "v1m", "v2")
    for subset in subsets:
        if (home / subset).is_dir():
            sources[subset] = DataSource(folder, layout, (subset,))
    if "v2" in sources:
        sources["avss-binary"] = sources["v2"]
    return sources


def list_requests(
    table: TableDefinition, row: PlannedRow, sources: Mapping[DataSetKey, DataSource]
) -> list[MeasureRequest]:
    """List what has to be measured for a row.

    Args:
        table: The table.
        row: The row.
        sources: The data sets that exist.

    Returns:
        One request for each data set and protocol, with all of its sounds.
    """
    conditions: dict[tuple[DataSetKey, str], list[str]] = {}
    for column in table.columns:
        conditions.setdefault((column.dataset, column.protocol), []).append(column.condition)
    requests = []
    for (dataset, protocol), named in conditions.items():
        bundle = row.find_bundle(dataset)
        if bundle is not None and dataset in sources:
            requests.append(
                MeasureRequest(
                    bundle.folder,
                    row.cues,
                    row.filters,
                    source=sources[dataset],
                    dataset=dataset,
                    protocol=protocol,
                    conditions=tuple(dict.fromkeys(("normal", *named))),
                )
            )
    return requests


def measure_rows(
    table: TableDefinition,
    rows: Sequence[PlannedRow],
    sources: Mapping[DataSetKey, DataSource],
    *,
    measure: Measure,
) -> Measured:
    """Measure all rows. What a bundle can't do on a data set is a reason in its cells.

    Args:
        table: The table.
        rows: The rows that are measured.
        sources: The data sets that exist.
        measure: Runs a bundle on a data set. The same request is made once.

    Returns:
        The rows with their numbers, and the reports of the evaluations.

    Raises:
        TesoError: The first error, if nothing could be measured at all.
    """
    done: dict[MeasureRequest, Measurement | TesoError] = {}
    measured = []
    for row in rows:
        for request in list_requests(table, row, sources):
            if request not in done:
                try:
                    done[request] = measure(request)
                except (CueError, DataError) as error:
                    done[request] = error
        measured.append(_collect_row(table, row, sources, done=done))
    errors = [one for one in done.values() if isinstance(one, TesoError)]
    if errors and len(errors) == len(done):
        raise errors[0]
    return Measured(measured, [one.report for one in done.values() if isinstance(one, Measurement)])


def _collect_row(
    table: TableDefinition,
    row: PlannedRow,
    sources: Mapping[DataSetKey, DataSource],
    *,
    done: Mapping[MeasureRequest, Measurement | TesoError],
) -> MeasuredRow:
    results = {(one.dataset, one.protocol): done[one] for one in list_requests(table, row, sources)}
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for column in table.columns:
        result = results.get((column.dataset, column.protocol))
        if result is None:
            has_bundle = row.find_bundle(column.dataset) is not None
            lacking = f"no folder of --data has {column.dataset}" if has_bundle else f"no bundle for {column.dataset}"
            reasons[column.key] = lacking
        elif isinstance(result, TesoError):
            reasons[column.key] = str(result)
        elif (value := result.values.get(column.condition, {}).get(column.value)) is None:
            reasons[column.key] = f"{column.protocol} gives no {column.value} here for the sound {column.condition!r}"
        else:
            values[column.key] = value
    return MeasuredRow(row.key, row.name, describe_row(row), values, reasons)


def describe_row(row: PlannedRow) -> str:
    """Describe what was measured for a row, in a line."""
    recipes = ", ".join(
        one.recipe if dataset is None else f"{one.recipe} for {dataset}" for dataset, one in row.bundles.items()
    )
    cues = row.cues if isinstance(row.cues, str) else show_path(row.cues.name)
    return f"bundle {recipes}, cues {cues}{', which filter the masks' if row.filters else ''}"

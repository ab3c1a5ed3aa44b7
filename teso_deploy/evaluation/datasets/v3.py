"""AVS-V3 (Wang et al., AAAI 2024): clips of AVSBench-semantic, of which some classes are unseen in training.

The data are those of the layout avss. The tables of the authors' ``v3.zip`` are in ``v3`` or beside the subsets::

    v3/meta_v3_seen_train.csv                           vid,uid,s_min,s_sec,a_obj,split,label
       meta_v3_seen_val.csv, meta_v3_unseen.csv
       v3_{1,3,5}_shot/train.csv, test.csv              without a_obj; all with the same split
    {label}/{uid}/…                                     label: v1m, v2; see avss

With 0 shots ``train`` has the seen classes and ``test`` the unseen ones. With more, ``train`` has that many clips of
each unseen class and ``test`` other clips of these classes. ``val`` always has the seen classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from teso_deploy.errors import DataError
from teso_deploy.evaluation.datasets import avss
from teso_deploy.evaluation.datasets.contracts import DataLayout, DataRow
from teso_deploy.evaluation.datasets.published import list_table_rows

_SEEN, _UNSEEN, _VALIDATION = "meta_v3_seen_train.csv", "meta_v3_unseen.csv", "meta_v3_seen_val.csv"
_COLUMNS = ("uid", "a_obj", "label", "split")
#: Shots, split → how many videos are published.
_PUBLISHED = {
    0: {("v1m", "train"): 319, ("v2", "train"): 4488, ("v1m", "test"): 32, ("v2", "test"): 726},
    1: {("v1m", "train"): 0, ("v2", "train"): 11, ("v1m", "test"): 32, ("v2", "test"): 500},
    3: {("v1m", "train"): 0, ("v2", "train"): 33, ("v1m", "test"): 32, ("v2", "test"): 478},
    5: {("v1m", "train"): 1, ("v2", "train"): 54, ("v1m", "test"): 31, ("v2", "test"): 457},
}
_PUBLISHED_VALIDATION = {("v1m", "val"): 36, ("v2", "val"): 499}


def _find_tables(root: Path) -> Path | None:
    return next((folder for folder in (root / "v3", root) if (folder / _UNSEEN).is_file()), None)


def _find_folder(root: Path) -> Path | None:
    return None if _find_tables(root) is None else avss.find_folder(root)


def _list_tables(shots: int) -> dict[str, str]:
    """Return split → table."""
    if shots == 0:
        return {"train": _SEEN, "val": _VALIDATION, "test": _UNSEEN}
    return {"train": f"v3_{shots}_shot/train.csv", "val": _VALIDATION, "test": f"v3_{shots}_shot/test.csv"}


def _read_objects(tables: Path) -> dict[str, str]:
    """Return uid → ``a_obj`` of the unseen clips, which the tables of shots omit."""
    return {row.uid: row.fields["a_obj"] for row in _list_rows_of(tables / _UNSEEN)}


def _list_rows_of(table: Path) -> list[DataRow]:
    if not table.is_file():
        raise DataError(f"{table} does not exist: unpack v3.zip of Generalizable-Audio-Visual-Segmentation there")
    return list_table_rows(table, _COLUMNS, uid="uid", subset="label")


def _list_rows(root: Path, shots: int) -> list[DataRow]:
    tables = _find_tables(root)
    assert tables is not None  # the folder was found by them
    objects = _read_objects(tables) if shots else {}

    def fill(split: str, table: Path) -> Iterator[DataRow]:
        for row in _list_rows_of(table):
            named = row.fields["a_obj"] or objects.get(row.uid, "")
            yield replace(row, split=split, fields={**row.fields, "a_obj": named})

    return [row for split, name in _list_tables(shots).items() for row in fill(split, tables / name)]


def make_layout(shots: int) -> DataLayout:
    """Make the layout of a number of shots."""
    return DataLayout(
        f"v3-{shots}-shot",
        f"v3/{_UNSEEN} with a folder v1m or v2",
        _find_folder,
        lambda root, folder: _list_rows(root, shots),
        avss.read_row,
        avss.read_index_mask,
        ("v1m", "v2"),
        avss.split_objects,
        columns=avss.LAYOUT.columns,
        published={**_PUBLISHED[shots], **_PUBLISHED_VALIDATION},
        has_classes=True,
        is_detected=False,
    )


ZERO_SHOT, ONE_SHOT, THREE_SHOTS, FIVE_SHOTS = map(make_layout, _PUBLISHED)

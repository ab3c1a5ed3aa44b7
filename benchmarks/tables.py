"""All tables of the paper on one or several data sets, with the claims that hold and those that do not.

    python -m benchmarks run tables --data FOLDER [--data FOLDER …] [--bundle [NAME=]FOLDER …] [--out FOLDER]

FOLDER/tables/ gets each table in every format that ``teso-deploy table`` writes, and FOLDER an overview. A bundle is
scored once on each data set with all sounds that any table wants.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_files import add_out, record
from teso_deploy.bundle import Bundle, find_bundle_folder
from teso_deploy.comparison.report import environment_of
from teso_deploy.errors import TesoError
from teso_deploy.evaluation.contracts import Sample
from teso_deploy.evaluation.evaluation_run import share_cores
from teso_deploy.evaluation.tables.evaluating import BundleEvaluator, EvaluationSettings
from teso_deploy.evaluation.tables.measuring import find_data_sets, measure_rows
from teso_deploy.evaluation.tables.planning import GivenBundle, find_ours, plan_rows, split_name
from teso_deploy.evaluation.tables.result import TableResult, finish_table
from teso_deploy.evaluation.tables.schema import find_table, list_shipped_tables, load_table
from teso_deploy.options.engine import EngineOptions
from teso_deploy.outputs import make_folder
from teso_deploy.pipeline.pipeline import Pipeline


def make_tables(
    names: Sequence[str], bundles: Sequence[GivenBundle], data: Sequence[Path], *, evaluator: BundleEvaluator
) -> list[TableResult]:
    """Make tables. The one with most sounds is measured first, because its results contain those of others.

    Args:
        names: Shipped names, or files.
        bundles: The bundles.
        data: Folders of data sets.
        evaluator: Measures them.

    Returns:
        The tables, in the order of their names. One in which nothing could be measured has only quoted numbers.
    """
    sources = find_data_sets(data)
    definitions = {name: load_table(name) for name in names}
    by_sounds = sorted(names, key=lambda name: -len({column.condition for column in definitions[name].columns}))
    results = {}
    for name in by_sounds:
        definition = definitions[name]
        rows = plan_rows(definition, bundles, cues="auto")
        print(f"table {name}", file=sys.stderr)
        measured = measure_rows(definition, rows, sources, measure=evaluator)
        ours = find_ours(definition, bundles)
        results[name] = finish_table(find_table(name).stem, definition, measured, ours=ours)
    return [results[name] for name in names]


def summarize(result: TableResult) -> dict[str, Any]:
    """Return the overview's row of a table: how many numbers were measured, and what became of the claims."""
    cells = [cell for row in result.rows for cell in row.cells.values()]
    verdicts = [one.verdict for one in result.judgements]
    return {
        "name": result.name,
        "title": result.definition.title,
        "measured": sum(cell.measured is not None for cell in cells),
        "quoted": sum(cell.quoted is not None for cell in cells),
        "claims_hold": verdicts.count("holds"),
        "claims_fail": verdicts.count("does not hold"),
        "claims_open": verdicts.count("can't be judged"),
    }


def _open_bundle(text: str) -> GivenBundle:
    name, dataset, path = split_name(text, "--bundle")
    return GivenBundle(Path(path), Bundle.open(path).manifest.name, name, dataset)


def _begin(what: str, count: int) -> Callable[[Sample], None]:
    print(f"  {what}, clips: {count}", file=sys.stderr)
    return lambda sample: None


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="default: all shipped ones")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--bundle", action="append", help="default: the shipped one")
    parser.add_argument("--clips", type=int, help="clips of each data set; default: all")
    parser.add_argument("--work", type=Path, help="keeps the results of each evaluation")
    parser.add_argument("--threads", type=int, help="for each clip; default: the cores are shared")
    parser.add_argument("--jobs", type=int, help="clips at the same time; default: one for each core")
    add_out(parser)
    given = parser.parse_args(arguments)
    try:
        bundles = [_open_bundle(text) for text in given.bundle or [str(find_bundle_folder(None))]]
        jobs, engine = share_cores(EngineOptions(threads=given.threads), given.jobs)
        evaluator = BundleEvaluator(
            # Classes that a data set lacks are scored as background, so that every table has its numbers.
            EvaluationSettings(clips=given.clips, jobs=jobs, skip_bad=True, work=given.work),
            load=lambda bundle: Pipeline.load(bundle, engine),
            begin=_begin,
        )
        names = given.tables or list(list_shipped_tables())
        results = make_tables(names, bundles, given.data, evaluator=evaluator)
        folder = given.out.parent if given.out.suffix == ".json" else given.out
        make_folder(folder)
        for result in results:
            result.write(folder / "tables")
    except TesoError as error:
        print(f"tables: {error}", file=sys.stderr)
        return error.exit_code
    plain = next((one for one in bundles if not one.name), bundles[0])
    report = {
        "schema_version": 1,
        "rows": [summarize(result) for result in results],
        "bound_by": "Each page in tables/ says what was scored, and why a number or a judgement is missing.",
        "environment": environment_of(engine.threads or 1, Bundle.open(plain.folder), clips=given.clips or "all"),
    }
    record("tables", "The paper's tables on our data", report, out=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

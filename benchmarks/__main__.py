"""Run the benchmarks.

    python -m benchmarks list
    python -m benchmarks run NAME [--quick] [--out DIR|FILE.json] [arguments of the benchmark]
    python -m benchmarks compare BEFORE.json AFTER.json

``run NAME --help`` shows the arguments of a benchmark. Results go to benchmarks/results, those of ``--quick`` to
benchmarks/results/quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.registry import BENCHMARKS
from benchmarks.results_files import QUICK_RESULTS, compare_reports, read_report
from teso_deploy.errors import TesoError
from teso_deploy.named_objects import load_object


def print_list() -> None:
    """Print a line for each benchmark, and a line of what it needs."""
    width = max(map(len, BENCHMARKS))
    for name, benchmark in BENCHMARKS.items():
        print(f"{name:{width}}  {benchmark.measures}")
        if benchmark.needs or benchmark.required:
            needs = f"needs {', '.join(benchmark.needs)}" if benchmark.needs else ""
            given = f"give {benchmark.required}" if benchmark.required else ""
            print(f"{'':{width}}  {'; '.join(filter(None, (needs, given)))}")


def compose_arguments(name: str, *, is_quick: bool, out: str | None, given: Sequence[str]) -> list[str]:
    """Return the arguments of a benchmark. The caller's come last, so that they override the quick settings."""
    where = out if out is not None else str(QUICK_RESULTS) if is_quick else None
    return [
        *(BENCHMARKS[name].quick if is_quick else ()),
        *(() if where is None else ("--out", where)),
        *given,
    ]


def run_benchmark(name: str, arguments: Sequence[str]) -> int:
    """Run a benchmark and return its exit code: 0, 1 (it failed) or 2 (bad input, or a requirement is missing)."""
    subject = BENCHMARKS[name].subject
    sys.argv[0] = f"python -m benchmarks run {name}"  # the name in usage messages
    try:
        return int(load_object(subject)(list(arguments)) or 0)
    except ModuleNotFoundError as error:
        extras = [need for need in BENCHMARKS[name].needs if need not in ("GPU", "media")]
        if not extras or (error.name or "").split(".")[0] in ("benchmarks", "teso_deploy", "tests"):
            raise
        print(f"{name} needs {error.name}, of the extra {' or '.join(extras)} of teso-deploy", file=sys.stderr)
        return 2


def print_comparison(before: Path, after: Path) -> int:
    """Print the ratio of each number of two results; exit code 2 if a file is not a result."""
    try:
        rows = compare_reports(read_report(before), read_report(after))
    except TesoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("| row | column | before | after | after / before |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['row']} | {row['column']} | {row['before']} | {row['after']} | {row['ratio']} |")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the benchmarks")
    run = commands.add_parser("run", help="run a benchmark", add_help=False)
    run.add_argument("name", choices=sorted(BENCHMARKS), metavar="NAME")
    run.add_argument("--quick", action="store_true")
    run.add_argument("--out")
    compare = commands.add_parser("compare", help="compare two results")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    options, rest = parser.parse_known_args(given)
    if options.command == "run":
        return run_benchmark(
            options.name, compose_arguments(options.name, is_quick=options.quick, out=options.out, given=rest)
        )
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "compare":
        return print_comparison(options.before, options.after)
    print_list()
    return 0


if __name__ == "__main__":
    sys.exit(main())

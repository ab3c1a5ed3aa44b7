"""``python -m tests.fuzz``: any number of cases, as a table; or one case again.

python -m tests.fuzz --cases 2000 --seed 1
python -m tests.fuzz media 1 17
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.table import Table

from tests.fuzz.harness import Fuzzer, Tried
from tests.fuzz.seeds import Seeds
from tests.fuzz.targets import TARGETS


def plan_cases(count: int, seed: int, targets: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yield (target, seed, number) of each case, alternating over the targets."""
    for number in range(count):
        yield targets[number % len(targets)], seed, number // len(targets)


def export_tiny(folder: Path) -> Path:
    """Export the tiny model of the tests as a bundle."""
    from teso_deploy.conversion.bundle_export import export_bundle
    from teso_deploy.recipe import Recipe
    from tests.conftest import TINY

    out = folder / "tiny"
    if not out.exists():
        export_bundle(Recipe.model_validate(TINY), out, random_weights_seed=0)
    return out


def show_table(console: Console, tried: list[Tried]) -> None:
    """Show for each target: cases, exit codes, the slowest and the largest case, findings."""
    table = Table(
        "target", "cases", "exit 0", "exit 1", "exit 2", "other", "slowest, s", "most memory, MiB", "findings"
    )
    by_target: defaultdict[str, list[Tried]] = defaultdict(list)
    for one in tried:
        by_target[one.target].append(one)
        by_target["all"].append(one)
    for name in (*(name for name in TARGETS if name in by_target), "all"):
        cases = by_target[name]
        codes = Counter(one.ended.code if one.ended.code in (0, 1, 2) else "other" for one in cases)
        table.add_row(
            name,
            str(len(cases)),
            *(str(codes[code]) for code in (0, 1, 2, "other")),
            f"{max((one.ended.seconds for one in cases), default=0):.1f}",
            str(max((one.ended.memory_bytes for one in cases), default=0) >> 20),
            str(sum(bool(one.findings) for one in cases)),
        )
    console.print(table)


def show_case(console: Console, one: Tried) -> None:
    """Show a case with its findings, and the command that runs it again."""
    ended = one.ended
    how = f"exit {ended.code}" if ended.signal is None else f"signal {ended.signal}"
    console.print(f"{one.command}: {one.case.what!a}: {how}", markup=False, highlight=False, soft_wrap=True)
    for finding in one.findings:
        console.print(f"  {finding}".encode("utf-8", "replace").decode(), markup=False, highlight=False, soft_wrap=True)


def main() -> int:
    """Run the requested cases, and return 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("case", nargs="*", help="target, seed and number of one case")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=TARGETS, help="these alone (may be repeated)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--bundle", type=Path, help="default: the tests' tiny model, exported now")
    parser.add_argument("--out", type=Path, help="where cases with findings stay; default: a new temporary folder")
    arguments = parser.parse_args()
    console = Console(width=140)
    out = arguments.out or Path(tempfile.mkdtemp(prefix="teso-fuzz-"))
    out.mkdir(parents=True, exist_ok=True)
    seeds = Seeds(arguments.bundle or export_tiny(out))
    if arguments.case:
        target, seed, number = arguments.case
        with Fuzzer(seeds, out, keeps=True) as fuzzer:
            one = fuzzer.try_case(target, int(seed), int(number))
        show_case(console, one)
        console.print(
            shlex.join(["teso-deploy", *one.case.arguments]).encode("utf-8", "replace").decode(), soft_wrap=True
        )
        console.print(one.stderr.decode("utf-8", "replace"), markup=False, highlight=False, soft_wrap=True)
        return bool(one.findings)
    began = time.monotonic()
    # Make shared inputs before the threads need them.
    _ = seeds.media, seeds.checkpoints, seeds.bundle_files
    tried: list[Tried] = []
    with ExitStack() as stack:
        fuzzers: SimpleQueue[Fuzzer] = SimpleQueue()
        for number in range(arguments.jobs):
            fuzzers.put(stack.enter_context(Fuzzer(seeds, out / f"worker-{number}", keeps=True)))

        def try_one(case: tuple[str, int, int]) -> Tried:
            fuzzer = fuzzers.get()
            try:
                return fuzzer.try_case(*case)
            finally:
                fuzzers.put(fuzzer)

        pool = stack.enter_context(ThreadPoolExecutor(arguments.jobs))
        planned = plan_cases(arguments.cases, arguments.seed, arguments.target or list(TARGETS))
        for one in pool.map(try_one, planned):
            tried.append(one)
            if one.findings:
                show_case(console, one)
    show_table(console, tried)
    found = sum(bool(one.findings) for one in tried)
    console.print(f"{len(tried)} cases in {time.monotonic() - began:.0f} s, {found} with findings; they are in {out}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

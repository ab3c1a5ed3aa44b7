"""``teso-deploy eval`` on whole data sets: seconds, memory, a killed run that continues, PyTorch beside ONNX Runtime.

    python -m benchmarks run evaluation --data FOLDER [--data FOLDER …] [--bundle FOLDER] [--work FOLDER] [--clips N]

Each data set is scored with all sounds. A second run is killed half-way (SIGKILL) and continued, and its report must be
the same. A third one runs the bundle by PyTorch. Writes ``results/evaluation-<bundle>-cpu.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results_files import add_out, record
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.report import environment_of, markdown
from teso_deploy.evaluation.results_folder import REPORT, STATE, TABLE

#: With all conditions, noise of each unit.
SOUNDS = (
    "--condition", "all", "--noise-dbfs", "-25", "--noise-dbw", "10", "--noise-dbw", "40", "--noise-snr", "10"
)  # fmt: skip
#: Memory is also measured with this many clips. It should not grow with more.
FEW_CLIPS = 30


@dataclass(frozen=True)
class Run:
    """One run of the command.

    Attributes:
        report: Its report.
        seconds: How long it took, with loading.
        cpu_seconds: How long all of its threads computed together. Other processes change it little.
        peak_megabytes: The most memory that the process had.
    """

    report: Mapping[str, Any]
    seconds: float
    cpu_seconds: float
    peak_megabytes: float


def start_evaluation(data: Path, out: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the command. Its results go to ``out``."""
    command = [sys.executable, "-m", "teso_deploy", "eval", str(data), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish_evaluation(process: subprocess.Popen[bytes], out: Path, started: float) -> Run:
    """Wait for the command, and read its report. Raises :class:`RuntimeError` if it failed."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, process.args))} ended with {process.returncode}")  # type: ignore[arg-type]
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    seconds, cpu_seconds = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    return Run(report, seconds, cpu_seconds, usage.ru_maxrss / 1024)


def run_evaluation(data: Path, out: Path, arguments: Sequence[str]) -> Run:
    """Run the command to its end."""
    started = time.monotonic()
    return finish_evaluation(start_evaluation(data, out, arguments), out, started)


def kill_and_continue(data: Path, out: Path, arguments: Sequence[str], *, clips: int) -> Run:
    """Kill a run after half of its clips, and run the same command again."""
    process = start_evaluation(data, out, arguments)
    while process.poll() is None and count_finished(out) < clips / 2:
        time.sleep(0.2)
    if process.poll() is not None:
        raise RuntimeError(f"the run on {data} ended before it could be killed: give more clips")
    process.send_signal(signal.SIGKILL)
    process.wait()
    return run_evaluation(data, out, arguments)


def count_finished(out: Path) -> int:
    """Count the clips that a continued run would not score again."""
    with contextlib.suppress(OSError, ValueError):
        return int(json.loads((out / STATE).read_text(encoding="utf-8"))["progress"]["samples"])
    return 0


def compare_rows(report: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the largest difference between two reports, over all numbers of the rows that both have."""
    others = {row["condition"]: row["values"] for row in other["rows"]}
    differences = [
        abs(value - others[row["condition"]][name])
        for row in report["rows"]
        if row["condition"] in others
        for name, value in row["values"].items()
        if value is not None and others[row["condition"]].get(name) is not None
    ]
    return max(differences)


def compare_with_pytorch(data: Path, work: Path, arguments: Sequence[str]) -> float:
    """Score the same clips by ONNX Runtime and by PyTorch, and return the largest difference."""
    reports = [
        run_evaluation(data, work / backend, [*arguments, "--backend", backend]).report
        for backend in ("cpu", "pytorch")
    ]
    return compare_rows(*reports)


def _limit(clips: int | None) -> list[str]:
    return [] if clips is None else ["--clips", str(clips)]


def measure(
    data: Path, work: Path, common: Sequence[str], *, pytorch_clips: int | None = None
) -> tuple[dict[str, Any], str]:
    """Measure one data set.

    Args:
        data: The data set.
        work: A folder for results.
        common: Arguments of all runs.
        pytorch_clips: How many clips PyTorch also scores. Default: all.

    Returns:
        The row of the report, and the table of scores.
    """
    arguments = [*common, *SOUNDS]
    whole = run_evaluation(data, work / "whole", arguments)
    clips = whole.report["clips"]
    print(f"{data}: {clips} clips in {whole.seconds:.0f} s", file=sys.stderr)
    few = run_evaluation(data, work / "few", [*arguments, "--clips", str(min(FEW_CLIPS, clips))])
    continued = kill_and_continue(data, work / "killed", arguments, clips=clips)
    difference = compare_with_pytorch(data, work, [*common, "--condition", "muted", *_limit(pytorch_clips)])
    normal = whole.report["rows"][0]
    row = {
        "name": data.name,
        "protocol": whole.report["protocol"],
        "clips": clips,
        "frames": normal["frames"],
        "sounds": len(whole.report["rows"]),
        "seconds_per_clip": round(whole.seconds / clips, 3),
        "cpu_seconds_per_clip": round(whole.cpu_seconds / clips, 3),
        "peak_megabytes": round(whole.peak_megabytes),
        f"peak_megabytes_{FEW_CLIPS}_clips": round(few.peak_megabytes),
        "continued_is_equal": continued.report == whole.report,
        "pytorch_clips": pytorch_clips or clips,
        "most_from_pytorch": difference,
        "miou": normal["values"]["miou"],
        "skipped": len(whole.report["skipped"]),
    }
    return row, (work / "whole" / TABLE).read_text(encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--bundle", type=Path, help="default: the shipped one")
    parser.add_argument("--work", type=Path, help="keeps the results; default: a temporary folder")
    parser.add_argument("--clips", type=int, help="of each data set; default: all")
    parser.add_argument("--pytorch-clips", type=int, help="of each data set, that PyTorch scores too; default: all")
    add_out(parser)
    given = parser.parse_args(arguments)
    bundle = Bundle.open(given.bundle)
    common = ["--skip-bad", "--unbiased", "--bundle", str(bundle.folder)]
    common += _limit(given.clips)
    rows, tables = [], []
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for data in given.data:
            (work / data.name).mkdir(parents=True, exist_ok=True)
            row, table = measure(data, work / data.name, common, pytorch_clips=given.pytorch_clips)
            rows.append(row)
            tables.append(f"\n## {data.name}: {row['protocol']}\n\n{table}")
    report = {
        "schema_version": 1,
        "rows": rows,
        "bound_by": "Seconds hold for this machine alone, with loading. Truth for all sounds: masks of the own sound.",
        "environment": environment_of(1, bundle),
    }
    title = f"Evaluation of {bundle.manifest.name} on data sets of clips"
    page = markdown(title, report) + "".join(tables)
    record(f"evaluation-{bundle.manifest.name}-cpu", title, report, out=given.out, page=page)
    is_right = all(row["continued_is_equal"] and row["most_from_pytorch"] <= 1e-3 for row in rows)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())

"""Evaluate a pipeline by an opened protocol, and make the report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from teso_deploy._version import __version__
from teso_deploy.backends.registry import DEFAULT
from teso_deploy.cues.tracks import CueFile
from teso_deploy.evaluation.contracts import Sample, Score
from teso_deploy.evaluation.protocols.registry import OpenProtocol
from teso_deploy.evaluation.report import format_markdown, make_report
from teso_deploy.evaluation.results_folder import REPORT, TABLE, ResultsFolder
from teso_deploy.evaluation.scoring import Progress, SampleResult, ScoringObserver, score_protocol
from teso_deploy.options.engine import EngineOptions
from teso_deploy.outputs import as_json, show_path
from teso_deploy.pipeline.pipeline import Pipeline

#: More samples at a time only fill the memory.
_MOST_JOBS = 8


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The scores of an evaluation, and its report as it is written to JSON."""

    scores: list[Score]
    report: dict[str, Any]


def share_cores(engine: EngineOptions, jobs: int | None = None) -> tuple[int, EngineOptions]:
    """Choose how many samples are answered at the same time, and how many threads each of them has.

    On the CPU, several samples with one thread each are faster than one sample with all cores.

    Args:
        engine: How graphs are run. A number of threads that the user chose is kept.
        jobs: How many samples the user chose. Default: one for each core of the CPU; 1 with another backend than ONNX
            Runtime on the CPU, or if the user chose the number of threads.

    Returns:
        The number of samples, and how graphs are run.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if engine.threads is not None or engine.backend != DEFAULT:
        return jobs or 1, engine
    jobs = jobs or min(_MOST_JOBS, cores)
    return jobs, replace(engine, threads=max(1, cores // jobs))


def describe_model(pipeline: Pipeline, cues: str | CueFile) -> dict[str, Any]:
    """Return what was tested and how, for the report."""
    manifest = pipeline.bundle.manifest
    return {
        "bundle": manifest.name,
        "weights_sha256": manifest.provenance.get("weights_sha256"),
        "cues": show_path(cues.path) if isinstance(cues, CueFile) else cues,
        "precision": pipeline.precision,
        "backend": pipeline.backend,
    }


def run_evaluation(
    pipeline: Pipeline,
    protocol: OpenProtocol,
    cues: str | CueFile,
    *,
    jobs: int = 1,
    skip_bad: bool = False,
    folder: Path | None = None,
    overwrite: bool = False,
    on_sample: Callable[[Sample], None] = lambda sample: None,
    on_line: Callable[[Mapping[str, Any]], None] | None = None,
) -> EvaluationResult:
    """Score a pipeline by a protocol.

    Args:
        pipeline: The model.
        protocol: The opened protocol.
        cues: One of the protocol's ways to choose cues, or a file of cues.
        jobs: How many samples are answered at the same time. Default: 1.
        skip_bad: If True, samples that can't be read are skipped and named in the report. Default: False.
        folder: Where the report, the scores of each sample and the state are written. An evaluation that was
            interrupted continues there. Default: nowhere.
        overwrite: If True, the results of other settings in ``folder`` are replaced. Default: False.
        on_sample: Called after each sample, and at once for each that was done before. Default: nothing.
        on_line: Called with the scores of each sample in each condition, as they are written to ``folder``. Default:
            nothing.

    Returns:
        The scores and the report.

    Raises:
        DataError: A sample can't be read, and ``skip_bad`` is False.
        CueError: The cues do not fit the bundle or the samples.
        OutputError: The folder can't be written, or has other results.
    """
    predict = protocol.make_predictor(pipeline, cues)
    model = describe_model(pipeline, cues)
    with _open_folder(pipeline, protocol, cues, folder=folder, overwrite=overwrite) as results:
        resume = None if results is None else results.read_progress()
        collector = _Collector(results, on_line, resume.problems if resume else ())
        for sample in islice(protocol.samples(), resume.samples if resume else 0):
            on_sample(sample)
        if on_line is not None and results is not None and resume is not None:
            for line in results.read_lines():
                on_line(line)
        scores = score_protocol(
            protocol,
            predict,
            on_sample,
            jobs=jobs,
            skip_bad=skip_bad,
            describe=None if folder is None and on_line is None else protocol.describe_sample,
            observer=collector,
            resume=resume,
        )
        scores = protocol.complete(scores)
        report = make_report(protocol, scores, {**model, "skipped": [*protocol.problems, *collector.problems]})
        if results is not None:
            results.write(TABLE, format_markdown(protocol, scores))
            results.write(REPORT, as_json(report))
    return EvaluationResult(scores, report)


def _open_folder(
    pipeline: Pipeline, protocol: OpenProtocol, cues: str | CueFile, *, folder: Path | None, overwrite: bool
) -> Any:
    if folder is None:
        return nullcontext()
    settings: Mapping[str, Any] = {
        "version": __version__,  # another one may define a number differently
        "protocol": protocol.name,
        "data": protocol.data,
        "details": protocol.details,
        **describe_model(pipeline, cues),
        "manifest_sha256": hashlib.sha256((pipeline.bundle.folder / "bundle.json").read_bytes()).hexdigest(),
        "cues_sha256": hashlib.sha256(cues.path.read_bytes()).hexdigest() if isinstance(cues, CueFile) else None,
        "size": pipeline.size,
        "form": pipeline.form,
    }
    return ResultsFolder(folder, settings, overwrite=overwrite)


class _Collector(ScoringObserver[Any]):
    """Passes on what it sees, and keeps the sentences about skipped samples."""

    def __init__(
        self,
        results: ResultsFolder | None,
        on_line: Callable[[Mapping[str, Any]], None] | None,
        problems: Sequence[str],
    ) -> None:
        self._results, self._on_line, self.problems = results or ScoringObserver[Any](), on_line, list(problems)

    def see_sample(self, result: SampleResult[Any]) -> None:
        if result.problem:
            self.problems.append(result.problem)
        for line in result.lines if self._on_line is not None else ():
            self._on_line(line)  # type: ignore[misc]
        self._results.see_sample(result)

    def see_batch(self, get_progress: Callable[[], Progress]) -> None:
        self._results.see_batch(get_progress)

    def see_end(self, get_progress: Callable[[], Progress]) -> None:
        self._results.see_end(get_progress)

"""Runs bundles on data sets for a table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from teso_deploy.bundle import Bundle
from teso_deploy.cues.tracks import CueFile, read_cue_file
from teso_deploy.errors import CueError
from teso_deploy.evaluation.conditions import parse_conditions
from teso_deploy.evaluation.contracts import Sample
from teso_deploy.evaluation.evaluation_run import run_evaluation
from teso_deploy.evaluation.protocols.registry import ProtocolOptions, open_protocol
from teso_deploy.evaluation.tables.measuring import Measurement, MeasureRequest
from teso_deploy.options.clips import ClipOptions
from teso_deploy.outputs import make_folder
from teso_deploy.pipeline.pipeline import AUTO, Pipeline


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How all evaluations of a table are made.

    Attributes:
        split: The split of the data sets.
        clips: How many clips of each data set are scored; None: all.
        jobs: How many clips are answered at the same time.
        skip_bad: Whether clips that can't be read, and classes that the data set lacks, are skipped.
        work: A folder for the results of each evaluation, from which an interrupted table continues; None: none.
    """

    split: str = "test"
    clips: int | None = None
    jobs: int = 1
    skip_bad: bool = False
    work: Path | None = None


@dataclass
class BundleEvaluator:
    """Measures a bundle on a data set. It is called with a request, and keeps one bundle loaded and all results.

    Attributes:
        settings: How evaluations are made.
        load: Loads an opened bundle.
        begin: Called with the description of an evaluation and its number of clips; returns what is called after each.
    """

    settings: EvaluationSettings
    load: Callable[[Bundle], Pipeline]
    begin: Callable[[str, int], Callable[[Sample], None]]
    _done: dict[MeasureRequest, Measurement] = field(default_factory=dict)
    _loaded: tuple[Path, Pipeline] | None = None

    def __call__(self, request: MeasureRequest) -> Measurement:
        """Evaluate, or return the result of a request that contains this one.

        Raises what :func:`run_evaluation` raises.
        """
        known = next((one for one in self._done if request.is_part_of(one)), request)
        if known not in self._done:
            self._done[known] = self._evaluate(known)
        found = self._done[known]
        return Measurement(found.values, {**found.report, "dataset": request.dataset})

    def _evaluate(self, request: MeasureRequest) -> Measurement:
        pipeline, sounds = self._load(request.bundle), parse_conditions(request.conditions)
        options = ProtocolOptions(
            pipeline.classes,
            clips=ClipOptions(
                layout=request.source.layout,
                split=self.settings.split,
                subset=request.source.subsets,
                clips=self.settings.clips,
                condition=sounds["condition"],
                noise_dbfs=sounds["noise_dbfs"],
                noise_dbw=sounds["noise_dbw"],
                noise_snr=sounds["noise_snr"],
            ),
            framing=pipeline.bundle.manifest.audio.framing,
            filters_by_cues=request.filters,
            skip_bad=self.settings.skip_bad,
        )
        protocol = open_protocol(request.protocol, request.source.folder, options)
        cues = read_cues(pipeline, request.cues)
        bundle = pipeline.bundle.manifest.name
        result = run_evaluation(
            pipeline,
            protocol,
            cues,
            jobs=self.settings.jobs,
            skip_bad=self.settings.skip_bad,
            folder=self._make_folder(request, bundle),
            overwrite=True,
            on_sample=self.begin(f"{bundle} on {request.dataset}", protocol.count_samples()),
        )
        report = {key: value for key, value in result.report.items() if key != "rows"}
        report["notes"] = list(protocol.notes)
        return Measurement({score.condition: score.values for score in result.scores}, report)

    def _load(self, folder: Path) -> Pipeline:
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = None  # free the memory of the last bundle first
            self._loaded = (folder, self.load(Bundle.open(folder)))
        return self._loaded[1]

    def _make_folder(self, request: MeasureRequest, bundle: str) -> Path | None:
        """Return the folder of an evaluation's results. Each request and each setting has its own."""
        if self.settings.work is None:
            return None
        make_folder(self.settings.work)
        key = f"{request}{self.settings.split}{self.settings.clips}{self.settings.skip_bad}"
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:12]
        return self.settings.work / f"{bundle}-{request.dataset}-{request.protocol}-{digest}"


def read_cues(pipeline: Pipeline, cues: str | Path) -> str | CueFile:
    """Return a way to choose cues that the bundle has, or the content of a file. Raises :class:`CueError`."""
    if isinstance(cues, Path):
        return read_cue_file(cues)
    if not pipeline.program.takes("cues"):
        return "none"
    if cues == AUTO and pipeline.bundle.manifest.tagger is None:
        name = pipeline.bundle.manifest.name
        raise CueError(f"bundle {name} has no tagger for --cues auto: give --cues labels, --cues none or --cues-file")
    return cues

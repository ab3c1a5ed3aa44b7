"""The paper's baseline without guidance: no cue is offered, and masks whose class is not among the cues are removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from teso_deploy.cues.tracks import CueFile
from teso_deploy.errors import DataError
from teso_deploy.evaluation.clip_predictor import ClipCueWay, ClipPredictor
from teso_deploy.evaluation.clip_trials import ClipTrial
from teso_deploy.evaluation.contracts import Prediction
from teso_deploy.evaluation.metrics.cue_precision import find_word
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.types import ImageSize


class FilteringPredictor(ClipPredictor):
    """Answers trials with the masks that the bundle makes without a cue, filtered by the cues.

    Arguments are those of :class:`ClipPredictor`. Raises :class:`DataError` if no class of the bundle can be a cue.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        cues: ClipCueWay | CueFile,
        *,
        size: ImageSize | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(pipeline, cues, size=size, classes=classes)
        known = pipeline.cue_table.names if pipeline.program.takes("cues") else ()
        if not any(name in known for name in pipeline.classes):
            name = pipeline.bundle.manifest.name
            raise DataError(f"no class of {name} is a cue, so cues can't filter its masks: give a bundle with classes")

    def __call__(self, trial: ClipTrial) -> Prediction:
        """Answer a trial. Raises :class:`CueError` for cues that the bundle does not know."""
        guided, free = self.segment(trial), self.segment_without_cues(trial)
        names = () if guided.cues is None else guided.cues.names
        kept = np.array([find_word(word, names) is not None for word in self._pipeline.classes])
        assert free.scores is not None
        filtered = replace(
            free,
            labels=np.where(np.append(False, kept)[free.labels], free.labels, 0).astype(np.uint8),
            scores=free.scores * kept[:, None, None].astype(np.float32),
        )
        return replace(self.make_prediction(filtered), cues=guided.cues, cue_gate=guided.cue_gate)

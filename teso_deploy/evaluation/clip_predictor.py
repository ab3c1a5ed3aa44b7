"""A bundle as a model under test on clips: which cues it is offered, and what its answers are turned into."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.timed import TimedCues
from teso_deploy.cues.tracks import CueFile, CueTrack
from teso_deploy.errors import CueError, DataError
from teso_deploy.evaluation.clip_trials import ClipTrial
from teso_deploy.evaluation.contracts import Prediction
from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline, Stream
from teso_deploy.types import AudioWindow, Cues, Frame, ImageSize, Segmentation

#: How cues are chosen for a clip: by the bundle's tagger, the words of the clip's labels, or none at all.
ClipCueWay = Literal["auto", "labels", "none"]
CLIP_CUE_WAYS: tuple[ClipCueWay, ...] = get_args(ClipCueWay)


class ClipPredictor:
    """Answers trials of clips. Threads may share it.

    Args:
        pipeline: The bundle.
        cues: One of ``CLIP_CUE_WAYS``, or a file of cues. A method without text is offered none.
        size: Height and width of the probability that anything sounds, (1, h, w), which is returned; None: none is.
        classes: For each class of the bundle, its number in the data set, 0 for one that is not scored; None: labels
            keep the bundle's numbers.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        cues: ClipCueWay | CueFile,
        *,
        size: ImageSize | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        self._pipeline, self._size = pipeline, size
        self._cues: ClipCueWay | CueFile = cues if pipeline.program.takes("cues") else "none"
        self._cues_by_words: dict[tuple[str, ...], Cues] = {}
        self._classes = None if classes is None else np.array([0, *classes], np.uint8)
        self._looks_back = bool(pipeline.program.past_frames or pipeline.program.past_windows)
        self._local = threading.local()

    def __call__(self, trial: ClipTrial) -> Prediction:
        """Answer a trial. Raises :class:`CueError` for cues that the bundle does not know."""
        return self.make_prediction(self.segment(trial))

    def segment(self, trial: ClipTrial) -> Segmentation:
        """Segment a trial, with the bundle's own classes. Raises :class:`CueError` as a call does."""
        return self._run(trial, self._choose_cues(trial))

    def segment_without_cues(self, trial: ClipTrial) -> Segmentation:
        """Segment a trial, and offer no cue."""
        return self._run(trial, None)

    def make_prediction(self, segmentation: Segmentation) -> Prediction:
        """Return what metrics need of a segmentation, with the numbers of the data set's classes."""
        labels = segmentation.labels if self._classes is None else self._classes[segmentation.labels]
        # Of all classes together: a clip's answers wait for their batch, and 27 classes would take 5 MB each.
        probabilities = None if self._size is None else segmentation.resize_sounding_probability(self._size)[None]
        return Prediction(labels, probabilities, segmentation.cues, segmentation.cue_gate)

    def _run(self, trial: ClipTrial, cues: Offered) -> Segmentation:
        return self._get_stream(trial).segment(
            Frame(trial.image, trial.pts_seconds, trial.frame),
            AudioWindow(trial.samples, trial.start_seconds, is_silent=not np.any(trial.samples)),
            cues,
        )

    def _choose_cues(self, trial: ClipTrial) -> Offered:
        if isinstance(self._cues, CueFile):
            track = get_clip_track(self._cues, trial.clip)
            return TimedCues(self._pipeline.cue_names, track).at(trial.pts_seconds)
        if self._cues == "labels":
            if trial.words not in self._cues_by_words:
                self._cues_by_words[trial.words] = look_up_labels(self._pipeline, trial.words)
            return self._cues_by_words[trial.words]
        return AUTO if self._cues == "auto" else None

    def _get_stream(self, trial: ClipTrial) -> Stream:
        """Return the thread's stream.

        A program that looks back at earlier frames needs one for each clip and condition, so that it never sees
        another's past. Others share one, and a picture is encoded once for all of its conditions.
        """
        key = (trial.clip.uid, trial.condition) if self._looks_back else ("", "")
        streams: dict[tuple[str, str], Stream] = getattr(self._local, "streams", {})
        if key not in streams:
            is_same_clip = any(uid == key[0] for uid, _ in streams)
            streams = {**(streams if is_same_clip else {}), key: self._pipeline.open_stream()}
            self._local.streams = streams
        return streams[key]


def look_up_labels(pipeline: Pipeline, words: Sequence[str]) -> Cues:
    """Return the cues for the words of a clip's labels.

    Without a text encoder in the bundle, a word that its table lacks is replaced by the noun that it ends in
    ("emergency car", "car"), or omitted.
    """
    return pipeline.cue_names.look_up_answer(CueAnswer(tuple(words), "manual"))


def get_clip_track(cues: CueFile, clip: VideoSample) -> CueTrack:
    """Return a clip's cues, by its name or by that of its recording. Raises :class:`CueError` if there are none."""
    name = next((name for name in (clip.uid, clip.vid) if name in cues.videos), clip.uid)
    return cues.get_track(name)


def check_clip_cues(cues: CueFile, clips: Sequence[VideoSample], pipeline: Pipeline) -> None:
    """Look up the cues of all clips before any is scored.

    Args:
        cues: The file of cues.
        clips: The clips.
        pipeline: The bundle, whose table has the words.

    Raises:
        CueError: A clip has no cues, or a word no embedding.
    """
    for clip in clips:
        TimedCues(pipeline.cue_names, get_clip_track(cues, clip)).check()


def match_classes(
    classes: Sequence[str],
    wanted: Sequence[str],
    *,
    bundle: str,
    synonyms: Mapping[str, str],
    skip_bad: bool,
) -> tuple[list[int], list[str]]:
    """Find the number of each class of a bundle among those of a data set.

    Args:
        classes: The bundle's classes.
        wanted: The data set's classes; the k-th, from 0, has the number k + 1.
        bundle: The bundle's name, for messages.
        synonyms: Word → the word of the data set for the same thing.
        skip_bad: If True, classes that the data set lacks get the number 0: they are scored as background.

    Returns:
        The numbers, and the classes that the data set lacks.

    Raises:
        DataError: The data set lacks all classes, or one and ``skip_bad`` is False.
    """
    numbers = {name: number for number, name in enumerate(wanted, start=1)}
    found = [numbers.get(name) or numbers.get(synonyms.get(name, ""), 0) for name in classes]
    lost = [name for name, number in zip(classes, found, strict=True) if not number]
    if len(lost) == len(classes):
        raise DataError(
            f"no class of {bundle} is a class of the data set ({classes[0]!r} is not): choose a binary protocol"
        )
    if lost and not skip_bad:
        raise DataError(
            f"{bundle} has classes that the data set lacks ({', '.join(lost)}): --skip-bad scores them as background"
        )
    return found, lost


def check_cue_way(cues: str) -> ClipCueWay:
    """Check a way to choose cues. Raises :class:`CueError`."""
    for way in CLIP_CUE_WAYS:
        if cues == way:
            return way
    raise CueError(f"unknown way {cues!r} to choose cues: name one of {', '.join(CLIP_CUE_WAYS)}")

"""Ask a source for the cues of a whole file, before the file is segmented."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.changes import SceneChange
from teso_deploy.cues.contracts import CueAnswer, CueMoment, CueSource
from teso_deploy.cues.tracks import Span, VideoCues
from teso_deploy.errors import CueSourceError, NoCueAnswerError
from teso_deploy.pipeline.pipeline import Pipeline, Stream
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.sealed import hash_file
from teso_deploy.types import AudioWindow, Frame

#: How often a source that names a waiting time (HTTP 429) is asked again about one picture.
MAX_RETRIES = 3
#: A source that names a longer waiting time has failed.
MAX_PATIENCE_SECONDS = 120.0
#: Time between the pictures that a video captioner receives.
EARLIER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The model's own findings in a picture, for the sources that use them.

    Attributes:
        tags: Word → the tagger's confidence. None: not requested.
        labels: (H, W) uint8, the masks without any cue. None: not requested.
        predicted: The classes in ``labels``. None: not requested.
    """

    tags: dict[str, float] | None = None
    labels: NDArray[np.uint8] | None = None
    predicted: tuple[str, ...] | None = None

    @classmethod
    def by(cls, stream: Stream, frame: Frame, sound: AudioWindow, *, tags: bool, masks: bool) -> Seen:
        """Run the model on a picture.

        Args:
            stream: The model.
            frame: The picture.
            sound: Its audio window.
            tags: Whether tags are requested.
            masks: Whether masks are requested.

        Returns:
            The model's findings.

        Raises:
            CueError: Tags are requested, and the bundle has no tagger.
        """
        classes, found = stream.pipeline.classes, cls()
        if tags:
            found = replace(found, tags=stream.tags(frame))
        if masks:
            masks_of = stream.segment(frame, sound)
            found = replace(found, labels=masks_of.labels, predicted=masks_of.shown(classes))
        return found


@dataclass(frozen=True, slots=True)
class Watch:
    """When a source is asked about a file: at its first picture, at each new scene, and after ``every_seconds``.

    Attributes:
        every_seconds: Ask again after this time. None: at new scenes only. Default: 10.
        frames: Number of pictures that the source receives at a time, the newest last. Default: 1.
        tags: Whether the source uses tags, see :class:`Seen`. Default: False.
        masks: Whether the source uses masks, see :class:`Seen`. Default: False.
        times: More times to ask at, in seconds, such as the changes in a file of cues. Default: none.
    """

    every_seconds: float | None = 10.0
    frames: int = 1
    tags: bool = False
    masks: bool = False
    times: tuple[float, ...] = ()


@dataclass
class _Earlier:
    """Keeps earlier pictures, ``EARLIER_SECONDS`` apart."""

    count: int
    _kept: deque[Frame] = field(default_factory=deque)

    def collect(self, frame: Frame) -> tuple[Frame, ...]:
        """Return the pictures before a frame, and keep the frame if it is late enough after the last one."""
        before = tuple(self._kept)
        if self.count and (not before or frame.pts_seconds >= before[-1].pts_seconds + EARLIER_SECONDS):
            self._kept.append(frame)
            while len(self._kept) > self.count:
                self._kept.popleft()
        return before


def ask_patiently(
    source: CueSource, moment: CueMoment, sleep: Callable[[float], None] = time.sleep
) -> CueAnswer | None:
    """Ask a source. If it names a waiting time, wait and ask again.

    Args:
        source: The source.
        moment: The picture and its sound.
        sleep: Waits for some seconds. Default: :func:`time.sleep`.

    Returns:
        The answer; None if the source has none.

    Raises:
        CueSourceError: The source failed, also after :data:`MAX_RETRIES` waits.
    """
    for _ in range(MAX_RETRIES):
        try:
            return source.ask(moment)
        except CueSourceError as error:
            if error.retry_after_seconds is None or error.retry_after_seconds > MAX_PATIENCE_SECONDS:
                raise
            sleep(error.retry_after_seconds)
    return source.ask(moment)


@dataclass
class Unanswered:
    """Asks a source, and counts the pictures without an answer.

    Attributes:
        count: Number of pictures without an answer, of all videos.
        reason: The source's message about the last such picture.
    """

    count: int = 0
    reason: str = ""
    _is_answered: bool = False
    _count_before: int = 0

    def begin(self) -> None:
        """Start another video."""
        self._is_answered, self._count_before = False, self.count

    def ask(self, source: CueSource, moment: CueMoment) -> CueAnswer | None:
        """Ask, see :func:`ask_patiently`; None if there is no answer. Raises :class:`CueSourceError` if it failed."""
        try:
            answer = ask_patiently(source, moment)
        except NoCueAnswerError as error:
            self.count, self.reason = self.count + 1, str(error)
            return None
        self._is_answered = self._is_answered or answer is not None
        return answer

    def check(self, name: str) -> None:
        """Raise :class:`CueSourceError` if questions about a video were asked and none was answered."""
        count = self.count - self._count_before
        if count and not self._is_answered:
            raise CueSourceError(f"{name} has no cues after {count} questions: {self.reason}")


def _omit_sound(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"mute": True, "video_track": options.get("video_track")}


def find_video_cues(
    source: CueSource,
    path: Path,
    watch: Watch,
    *,
    pipeline: Pipeline | None = None,
    progress: Callable[[float], None] = lambda seconds: None,
    sound: Mapping[str, Any] = MappingProxyType({}),
    unanswered: Unanswered | None = None,
) -> VideoCues:
    """Find the cues of a whole file by asking a source about some of its pictures.

    An answer is used until the next one. If the source has no answer, no cues are offered, and the model uses its
    fallback.

    Args:
        source: The source of cues.
        path: The file.
        watch: When the source is asked, and what it receives.
        pipeline: The model, if the source uses tags or masks. Default: none.
        progress: Called with the seconds of the file that are done. Default: ignored.
        sound: The tracks, and the options of :class:`VideoSource` that replace the file's own sound. Default: none.
        unanswered: Counts the pictures without an answer. Default: a new count.

    Returns:
        The cues by time.

    Raises:
        InputNotFoundError: The file does not exist.
        MediaError: The file can't be decoded.
        CueError: The bundle has no tagger, and the source uses tags.
        CueSourceError: The source failed, or answered no question about the file.
    """
    spans: list[Span] = []
    unanswered = Unanswered() if unanswered is None else unanswered
    unanswered.begin()
    # Only masks depend on the sound: without them, do not decode the file's sound.
    with VideoSource(path, **(sound if watch.masks else _omit_sound(sound))) as file:
        for moment in _yield_moments(file, watch, pipeline, progress=progress):
            answer = unanswered.ask(source, moment)
            seconds = max(0.0, moment.frame.pts_seconds)
            if spans and spans[-1].end_seconds is None:
                spans[-1] = spans[-1].model_copy(update={"end_seconds": seconds})
                if seconds <= spans[-1].start_seconds:
                    spans.pop()
            if answer is not None:
                spans.append(Span.of(answer, seconds))
        duration = file.info.duration_seconds
    unanswered.check(path.name)
    return VideoCues(sha256=hash_file(path), duration_seconds=duration or None, spans=tuple(spans))


def _yield_moments(
    file: VideoSource, watch: Watch, pipeline: Pipeline | None, *, progress: Callable[[float], None]
) -> Iterator[CueMoment]:
    """Yield the moments that the source is asked about, in order."""
    if (watch.tags or watch.masks) and pipeline is None:
        raise ValueError("tags and masks come from a pipeline: give one")
    stream = None if pipeline is None else pipeline.open_stream()
    scenes, earlier, asked_seconds = SceneChange(), _Earlier(watch.frames - 1), None
    times = deque(sorted(watch.times))
    for frame, sound, _ in file:
        before = earlier.collect(frame)
        is_new = scenes.is_changed(frame.image)
        waited = None if asked_seconds is None else frame.pts_seconds - asked_seconds
        is_due = False
        while times and times[0] <= frame.pts_seconds:
            times.popleft()
            is_due = True
        if is_new or is_due or waited is None or (watch.every_seconds is not None and waited >= watch.every_seconds):
            asked_seconds = frame.pts_seconds
            seen = Seen() if stream is None else Seen.by(stream, frame, sound, tags=watch.tags, masks=watch.masks)
            yield CueMoment(frame, () if is_new else before, seen.tags, seen.predicted)
        progress(frame.pts_seconds)

"""A thread that asks a source of cues. No frame waits for it."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.cues.asking import Allowance, AskingOptions, Reason, Wish
from teso_deploy.cues.chain import ChainSource
from teso_deploy.cues.changes import SceneChange, SoundChange
from teso_deploy.cues.contracts import CueAnswer, CueMoment, CueSource
from teso_deploy.errors import CueSourceError, NoCueAnswerError
from teso_deploy.text import to_printable
from teso_deploy.types import Cues, Frame

#: The time between the pictures that a captioner of videos is shown.
EARLIER_SECONDS = 1.0
END_SECONDS = 1.0
TICK_SECONDS = 0.25


class _Watched:
    """The state of a stream."""

    def __init__(self, options: AskingOptions, frames: int) -> None:
        self.wish = Wish(options)
        self.scenes, self.sounds = SceneChange(), SoundChange()
        self.newest: CueMoment | None = None
        self.heard: NDArray[np.float32] | None = None
        self.asked_at = float("-inf")
        self._earlier: deque[Frame] = deque(maxlen=max(0, frames - 1))

    def collect(self, frame: Frame, is_new_scene: bool) -> tuple[Frame, ...]:
        """Return the earlier pictures of this picture's scene, and keep the picture for the next call."""
        if is_new_scene or (self._earlier and frame.pts_seconds < self._earlier[-1].pts_seconds):
            self._earlier.clear()
        before = tuple(self._earlier)
        if not before or frame.pts_seconds - before[-1].pts_seconds >= EARLIER_SECONDS:
            self._earlier.append(frame)
        return before


class CueWorker:
    """Asks about the newest picture of the stream that has waited longest, one question at a time.

    Args:
        source: The source of cues.
        to_cues: Turns an answer into cues for the fusion.
        offer: Called from the worker's thread with a stream's number, its cues, and the time of their picture in
            seconds of the stream (None for typed cues, which do not age).
        none: The cues that are offered without an answer.
        streams: How many streams there are.
        options: When the source is asked. Default: :class:`AskingOptions`.
        frames: How many pictures the source is shown at a time.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        source: CueSource,
        to_cues: Callable[[CueAnswer], Cues],
        *,
        offer: Callable[[int, Cues, float | None], None],
        none: Cues,
        streams: int,
        options: AskingOptions | None = None,
        frames: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or AskingOptions()
        self._source, self._to_cues, self._offer, self._none, self._clock = source, to_cues, offer, none, clock
        self._streams = [_Watched(self.options, frames) for _ in range(streams)]
        self._allowance = Allowance(self.options.budget_per_minute)
        self._work = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._asking_since: float | None = None
        self._last_error: str | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="teso-cues", daemon=True)
        self._thread.start()

    def note_picture(
        self,
        stream: int,
        frame: Frame,
        *,
        features: NDArray[np.float32],
        samples: NDArray[np.float32],
        tags: Mapping[str, float] | None = None,
        predicted: tuple[str, ...] | None = None,
    ) -> None:
        """Note a picture of a stream and the sound with it. It compares two small pictures and waits for nothing.

        Args:
            stream: The stream's number.
            frame: The picture.
            features: (d_A,), the output of the audio encoder for ``samples``.
            samples: (N,), the audio window.
            tags: Word → how sure the tagger is; None if the source does not look at tags.
            predicted: The classes that the masks show; None if the source does not look at masks.
        """
        watched = self._streams[stream]
        # A picture may come with several windows and a window with several pictures: each counts once.
        is_other = watched.newest is None or frame is not watched.newest.frame
        is_new_scene = self.options.on_scene and is_other and watched.scenes.is_changed(frame.image)
        is_other = watched.heard is None or not np.array_equal(samples, watched.heard)
        is_new_sound = self.options.on_sound and is_other and watched.sounds.is_changed(features, samples)
        watched.heard = samples
        moment = CueMoment(frame, watched.collect(frame, is_new_scene), tags, predicted)
        with self._work:
            watched.newest = moment
            wanted = watched.wish.reason
            watched.wish.note_picture(frame.pts_seconds, is_new_scene=is_new_scene, is_new_sound=is_new_sound)
            if watched.wish.reason != wanted:
                self._work.notify_all()

    def health(self) -> dict[str, Any]:
        """The state of the source, for JSON."""
        chain = self._source if isinstance(self._source, ChainSource) else None
        trouble = next(iter(chain.troubles), None) if chain else None
        with self._work:
            now = self._clock()
            return {
                "source": self._source.name,
                "asked": {reason: self._counts[reason] for reason in ("start", "scene", "sound", "interval")},
                **{name: self._counts[name] for name in ("answered", "no_answer")},
                "failed": self._counts["failed"] + (chain.passed_over if chain else 0),
                "asking_seconds": None if self._asking_since is None else round(now - self._asking_since, 3),
                "wait_seconds": round(self._allowance.wait_seconds(now), 3),
                "error": self._last_error or trouble,
            }

    def close(self) -> None:
        """End within about a second, whatever the source does. Any thread may call this, more than once."""
        with self._work:
            self._is_closed = True
            self._work.notify_all()
        self._source.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(END_SECONDS)

    def _loop(self) -> None:
        while (chosen := self._wait_for_question()) is not None:
            number, moment, reason = chosen
            trouble = None
            try:
                try:
                    answer = self._source.ask(moment)
                except NoCueAnswerError as error:
                    answer, trouble = None, to_printable(str(error))
                cues = self._none if answer is None else self._to_cues(answer)
            except Exception as error:  # the frames go on, whatever a source raises
                self._fail(number, reason, error)
                continue
            with self._work:
                self._asking_since, self._last_error = None, trouble
                self._allowance.note_answer()
                self._counts["no_answer" if answer is None else "answered"] += 1
                if self._is_closed:
                    return
            self._offer(number, cues, None if answer and answer.is_typed else moment.frame.pts_seconds)

    def _wait_for_question(self) -> tuple[int, CueMoment, Reason] | None:
        """Wait for the next question that may be asked; None: the worker was closed."""
        with self._work:
            while not self._is_closed:
                now = self._clock()
                waiting = [
                    (watched.asked_at, number)
                    for number, watched in enumerate(self._streams)
                    if watched.wish.reason is not None and watched.newest is not None
                ]
                wait = self._allowance.wait_seconds(now)
                if not waiting or wait > 0:
                    self._work.wait(min(TICK_SECONDS, wait) if waiting else TICK_SECONDS)
                    continue
                number = min(waiting)[1]
                watched = self._streams[number]
                moment, reason = watched.newest, watched.wish.reason
                assert moment is not None and reason is not None
                watched.wish.note_question(moment.frame.pts_seconds)
                watched.asked_at = self._asking_since = now
                self._allowance.note_question(now)
                self._counts[reason] += 1
                return number, moment, reason
            return None

    def _fail(self, number: int, reason: Reason, error: Exception) -> None:
        with self._work:
            if self._is_closed:
                return
            after = error.retry_after_seconds if isinstance(error, CueSourceError) else None
            self._asking_since = None
            self._last_error = to_printable(str(error)) or type(error).__name__
            self._counts["failed"] += 1
            self._allowance.note_failure(self._clock(), after)
            self._streams[number].wish.restore_reason(reason)

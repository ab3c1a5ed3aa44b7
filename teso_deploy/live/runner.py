"""Run streams in real time: one thread encodes pictures, another decodes them with the newest sound.

No thread waits for a late frame, for cues, or for a sink. A stream or a sink that ends or fails does not end another.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import TesoError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.scheduler import LiveOptions, Scheduler, StreamState
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.media.mailbox import LiveFrame
from teso_deploy.media.source_health import SourceHealth
from teso_deploy.pipeline.cache import Encoded
from teso_deploy.pipeline.file_runner import describe_model
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline, Stream
from teso_deploy.pipeline.video_source import SoundName
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Cause, Delivery, InputFacts
from teso_deploy.sinks.outbox import Outbox
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Cues, Frame

#: If nothing wakes a thread, it looks for work after this time, about a tenth of a hop.
TICK_SECONDS = 0.02
#: How long the end of a run waits for a thread that is running a graph.
END_SECONDS = 60.0
_State = StreamState[LiveFrame, Encoded]


class Watch(Protocol):
    """A function that receives each decoded picture, such as :meth:`CueWorker.note_picture`."""

    def __call__(
        self,
        stream: int,
        frame: Frame,
        *,
        features: NDArray[np.float32],
        samples: NDArray[np.float32],
        tags: Mapping[str, float] | None,
        predicted: tuple[str, ...] | None,
    ) -> None: ...


def describe_live_run(pipeline: Pipeline, readers: Sequence[LiveReader]) -> RunFacts:
    """Return the facts that sinks are opened with for a run of streams."""
    return RunFacts(
        kind="streams",
        classes=tuple(pipeline.classes),
        inputs=tuple(reader.address.shown for reader in readers),
        bundle=pipeline.bundle.manifest.name,
    )


def name_apart(names: Iterable[str]) -> list[str]:
    """Number names that occur more than once, as files of two folders may.

    >>> name_apart(["a.jsonl", "b.mp4", "a.jsonl"])
    ['a.jsonl', 'b.mp4', 'a.jsonl (2)']
    """
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return found


def make_silence(end_seconds: float) -> AudioWindow:
    """Return an audio window without recorded sound."""
    length = WINDOW_SAMPLES / 16_000
    return AudioWindow(np.zeros(WINDOW_SAMPLES, np.float32), end_seconds - length, length, is_silent=True)


@dataclass(frozen=True, slots=True)
class _Decode:
    """The next work of the decoding thread, as the scheduler chose it."""

    stream: _State
    picture: LiveFrame
    cause: Cause
    encoded: Encoded
    until: float | None
    offered: Offered
    of_seconds: float | None


class LiveRunner:
    """Runs opened readers through a pipeline until they end, or until :meth:`stop`.

    Args:
        pipeline: The model.
        readers: The streams. They have been started.
        sinks: Each gets every delivery of every stream, in a separate thread. Default: none.
        options: When frames are dropped, and how far the audio window moves. Default: :class:`LiveOptions`.
        cues: Cues of all streams until :meth:`offer_cues`, as :meth:`Pipeline.segment` takes them. Default: the
            fallback.
        cue_ttl_seconds: Age, in stream time, from which offered cues are replaced by the fallback. Default: none.
        accounting: Counts the events of the run. Default: a new one.
        clock: Returns monotonic seconds. Default: the system's clock.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        readers: Sequence[LiveReader],
        sinks: Sequence[Sink] = (),
        *,
        options: LiveOptions | None = None,
        cues: Offered = None,
        cue_ttl_seconds: float | None = None,
        accounting: Accounting | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or LiveOptions()
        self.accounting = accounting or Accounting([reader.address.shown for reader in readers])
        self._pipeline, self._readers, self._clock = pipeline, list(readers), clock
        self._scheduler: Scheduler[LiveFrame, Encoded] = Scheduler(list(readers), self.options)
        self._streams: list[Stream] = [pipeline.open_stream() for _ in readers]
        offered = cues if isinstance(cues, str) and cues == AUTO else pipeline.cues_of(cues)
        self._cues: list[tuple[Offered, float | None]] = [(offered, None) for _ in readers]
        self._cue_ttl_seconds = cue_ttl_seconds
        self._watch: Watch | None = None
        self._watches_tags = self._watches_masks = False
        self.inputs = [
            InputFacts(
                name=reader.address.shown,
                fps=reader.info.fps,
                sound=None if self.options.mute else reader.ring,
                describe=functools.partial(self._describe_stream, number),
            )
            for number, reader in enumerate(readers)
        ]
        self._outboxes = [
            Outbox(sink, lossless=self.options.lossless, name=name)
            for sink, name in zip(sinks, name_apart(sink.name for sink in sinks), strict=True)
        ]
        self._work = threading.Condition()
        self._stopping = False
        self._failure: BaseException | None = None
        for reader in self._readers:
            reader.on_frame = reader.on_sound = self._wake

    def _wake(self) -> None:
        with self._work:
            self._work.notify_all()

    def offer_cues(self, stream: int, cues: Cues, of_seconds: float | None = None) -> None:
        """Offer cues from any thread; the last picture is decoded with them at once.

        Args:
            stream: Number of the stream, from 0.
            cues: The cues.
            of_seconds: Stream time of the picture that they were read from, for their age. Default: no age.
        """
        offered = self._pipeline.cues_of(cues)
        with self._work:
            self._cues[stream] = offered, of_seconds
            self._scheduler.streams[stream].cues_version += 1
            self._work.notify_all()

    def watch(self, saw: Watch, *, tags: bool = False, masks: bool = False) -> None:
        """Pass every decoded picture to a function, such as :meth:`CueWorker.note_picture`. Call before :meth:`run`.

        Args:
            saw: The function.
            tags: Whether it gets the words that the tagger finds. Default: False.
            masks: Whether it gets the classes in the masks. Default: False.

        Raises:
            CueError: ``tags`` is set, and the bundle has no tagger.
        """
        if tags:
            self._pipeline.check_tagger()
        self._watch, self._watches_tags, self._watches_masks = saw, tags, masks

    def stop(self) -> None:
        """End the run, from any thread or signal handler. Work in progress is delivered, and files are finished."""
        self._stopping = True
        for reader in self._readers:
            reader.stop()

    def run(self) -> None:
        """Run until all streams have ended. Raises the error that ended one of the threads."""
        threads = [
            threading.Thread(target=self._guard, args=(loop,), name=f"teso-{name}", daemon=True)
            for name, loop in (("encode", self._encode_loop), ("decode", self._decode_loop))
        ]
        for outbox in self._outboxes:
            outbox.start()
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # in steps, so that signal handlers run
                    thread.join(0.1)
                    self._account()
        except BaseException:
            self._stopping = True
            raise
        finally:
            self._wake()
            for thread in threads:
                thread.join(END_SECONDS)
            for stream in self._scheduler.streams:
                if stream.pending is not None or stream.is_encoding:
                    self._scheduler.record_drop(stream, "closed")
            for outbox in self._outboxes:
                outbox.close()
            self._account()
        if self._failure is not None:
            raise self._failure

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # run() raises it
            self._failure = self._failure or error
        finally:
            if self._failure is not None:
                self._stopping = True
            self._wake()

    @property
    def _is_over(self) -> bool:
        return self._stopping or self._scheduler.is_over

    def _encode_loop(self) -> None:
        while not self._is_over:
            with self._work:
                chosen = self._scheduler.choose_picture()
                if chosen is None:
                    self._work.wait(TICK_SECONDS)
                    continue
            stream, picture = chosen
            encoded = self._streams[stream.number].encode(picture.frame)
            with self._work:
                self._scheduler.record_encoded(stream, picture, encoded, at_seconds=self._clock())
                self._work.notify_all()

    def _decode_loop(self) -> None:
        while not self._is_over:
            with self._work:
                chosen = self._scheduler.choose_decode(self._clock())
                if chosen is None:
                    self._work.wait(TICK_SECONDS)
                    continue
                stream, picture, cause = chosen
                encoded, until = self._scheduler.record_decode(stream, picture)
                offered, of_seconds = self._cues[stream.number]
                self._work.notify_all()
            work = _Decode(stream, picture, cause, encoded, until, offered, of_seconds)
            delivery, sound = self._decode(work)
            self._deliver(delivery)
            if self._watch is not None and cause != "cues":
                self._show(self._watch, delivery, encoded=encoded, sound=sound)

    def _decode(self, work: _Decode) -> tuple[Delivery, AudioWindow]:
        picture, cause, encoded, until = work.picture, work.cause, work.encoded, work.until
        offered, of_seconds = work.offered, work.of_seconds
        number = work.stream.number
        reader = self._readers[number]
        began = self._clock()
        at = picture.pts_seconds if until is None else until
        is_mute = until is None or self.options.mute
        sound = make_silence(at) if is_mute else reader.ring.window(at)
        if of_seconds is not None and self._cue_ttl_seconds is not None:
            age_seconds = reader.now_seconds() - of_seconds
            offered, of_seconds = (None, None) if age_seconds > self._cue_ttl_seconds else (offered, of_seconds)
        found = self._streams[number].decode(encoded, sound, offered)
        delivered, now = self._clock(), reader.now_seconds()
        if of_seconds is not None and found.cues is not None:
            found = replace(found, cues=replace(found.cues, age_seconds=max(0.0, now - of_seconds)))
        inside = found.stamps
        stamps = {"began": began}
        if cause == "frame":
            stamps = {"captured": picture.arrived, "decoded": picture.decoded, "queued": encoded.started}
            stamps["encoded"] = encoded.encoded
        stamps |= {name: inside[name] for name in ("heard", "fused", "masked", "segmented") if name in inside}
        stamps["delivered"] = delivered
        shown_at = (
            picture.pts_seconds if cause == "frame" else max(picture.pts_seconds, at if cause == "sound" else now)
        )
        staleness = max(0.0, now - picture.pts_seconds)
        end = None if is_mute else until
        delivery = Delivery(
            stream=number,
            input=self.inputs[number],
            frame=encoded.frame,
            segmentation=found,
            cause=cause,
            shown_at_seconds=shown_at,
            staleness_seconds=staleness,
            audio_end_seconds=end,
            stamps=stamps,
        )
        return delivery, sound

    def _show(self, saw: Watch, delivery: Delivery, *, encoded: Encoded, sound: AudioWindow) -> None:
        number, found, stream = delivery.stream, delivery.segmentation, self._streams[delivery.stream]
        tags = stream.tags_of(encoded) if self._watches_tags else None
        shown = found.shown(self._pipeline.classes) if self._watches_masks else None
        saw(number, encoded.frame, features=stream.heard(), samples=sound.samples, tags=tags, predicted=shown)

    def _deliver(self, delivery: Delivery) -> None:
        for outbox in self._outboxes:
            outbox.put(delivery)
        self.accounting.count_delivery(delivery)

    def _account(self) -> None:
        with self._work:
            drops = [dict(stream.drops) for stream in self._scheduler.streams]
        for number, (reader, ours) in enumerate(zip(self._readers, drops, strict=True)):
            self.accounting.set_source(number, reader.health(), ours)
        self.accounting.set_sinks({outbox.name: outbox.get_health() for outbox in self._outboxes})

    def errors(self) -> list[TesoError]:
        """Return why streams and sinks ended early."""
        found = [reader.error for reader in self._readers] + [outbox.error for outbox in self._outboxes]
        return [error for error in found if error is not None]

    def _describe_stream(self, number: int) -> dict[str, Any]:
        """Return a report's facts about a stream and the model."""
        health, mode = self._readers[number].health(), "file" if self.options.lossless else "live"
        return {
            "mode": mode,
            **self.runs()[number],
            "drops": dict(health.drops),
            "corrupt_frames": health.corrupt_frames,
            "audio": {
                "source": self._name_sound(number, health),
                "gap_seconds": health.gap_seconds,
                "note": health.audio_note,
            },
            **describe_model(self._pipeline),
        }

    def _name_sound(self, number: int, health: SourceHealth) -> SoundName:
        if self.options.mute:
            return "mute"
        if not health.has_audio:
            return "none"
        return "own" if self._readers[number].audio_address is None else "other file"

    def runs(self) -> list[dict[str, Any]]:
        """Return how often each graph ran for each stream, and how often the encoder was skipped."""
        return [{"graph_runs": dict(s.runs), "encoder_skips": dict(s.encoder_skips)} for s in self._streams]

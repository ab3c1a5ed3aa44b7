"""Streams in, results out, in real time: one thread encodes pictures, one decodes them with the newest sound.

Nobody waits for a frame that is late, for cues, or for a sink. Whatever ends a stream or a sink ends no other.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.errors import TesoError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.scheduler import LiveOptions, Scheduler, StreamState
from teso_deploy.media.decoding import LiveFrame
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.pipeline.cache import Encoded
from teso_deploy.pipeline.file_runner import describe_model
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline, Stream
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Cause, Delivery, InputFacts
from teso_deploy.sinks.outbox import Outbox
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Cues, Frame, Segmentation

#: How long nothing happens before it is looked whether something should: a tenth of a hop.
TICK_SECONDS = 0.02
#: How long the end waits for a thread that is in the middle of a run.
END_SECONDS = 60.0
_State = StreamState[LiveFrame, Encoded]


#: (stream, picture, audio features (d_A,), samples (N,), tags, classes shown), see :meth:`CueWorker.saw`.
Watch = Callable[
    [int, Frame, NDArray[np.float32], NDArray[np.float32], Mapping[str, float] | None, tuple[str, ...] | None], None
]


def describe_live_run(pipeline: Pipeline, readers: Sequence[LiveReader]) -> RunFacts:
    """Return what sinks are opened with for the run of some streams."""
    return RunFacts(
        kind="streams",
        classes=tuple(pipeline.classes),
        inputs=tuple(reader.address.shown for reader in readers),
        bundle=pipeline.bundle.manifest.name,
    )


def silence(end_seconds: float) -> AudioWindow:
    """A window in which nothing was recorded."""
    length = WINDOW_SAMPLES / 16_000
    return AudioWindow(np.zeros(WINDOW_SAMPLES, np.float32), end_seconds - length, length, is_silent=True)


class LiveRunner:
    """Runs opened readers through a pipeline until they end, or :meth:`stop`.

    ``cues``: of all streams, as :meth:`Pipeline.segment` takes them, until :meth:`offer_cues`; ``cue_ttl_seconds``:
    how old (of the stream's time) what was offered may become before the fallback takes its place. ``sinks``: each gets
    every delivery of every stream, through an outbox of its own.
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
        self._inputs = [
            InputFacts(
                name=reader.address.shown,
                fps=reader.info.fps,
                sound=None if self.options.mute else reader.ring,
                describe=functools.partial(self._describe_stream, number),
            )
            for number, reader in enumerate(readers)
        ]
        self._outboxes = [Outbox(sink, lossless=self.options.lossless) for sink in sinks]
        self._work = threading.Condition()
        self._stopping = False
        self._failure: BaseException | None = None
        for reader in self._readers:
            reader.on_frame = reader.on_sound = self._wake

    def _wake(self) -> None:
        with self._work:
            self._work.notify_all()

    def offer_cues(self, stream: int, cues: Cues, of_seconds: float | None = None) -> None:
        """Cues from any thread: the last picture is decoded with them at once.

        ``of_seconds``: the stream time of the picture that they were read from, which says how old they are.
        """
        offered = self._pipeline.cues_of(cues)
        with self._work:
            self._cues[stream] = offered, of_seconds
            self._scheduler.streams[stream].cues_version += 1
            self._work.notify_all()

    def watch(self, saw: Watch, *, tags: bool = False, masks: bool = False) -> None:
        """Let ``saw`` know of every decoded picture: :meth:`CueWorker.saw`. Before :meth:`run`.

        ``tags``, ``masks``: with what the tagger finds, and the classes that the masks show. Raises :class:`CueError`
        (there is no tagger).
        """
        if tags:
            self._pipeline.check_tagger()
        self._watch, self._watches_tags, self._watches_masks = saw, tags, masks

    def stop(self) -> None:
        """End the run: what is being worked on is delivered, files are finished. From any thread or signal."""
        self._stopping = True
        for reader in self._readers:
            reader.stop()

    def run(self) -> None:
        """Until all streams have ended. Raises what a thread of its own failed with."""
        threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"teso-{name}", daemon=True)
            for name, loop in (("encode", self._encode_loop), ("decode", self._decode_loop))
        ]
        for outbox in self._outboxes:
            outbox.start()
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # in steps, so that signals come through
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
                    self._scheduler.dropped(stream, "closed")
            for outbox in self._outboxes:
                outbox.close()
            self._account()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # raised where run() was called
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
                chosen = self._scheduler.next_picture()
                if chosen is None:
                    self._work.wait(TICK_SECONDS)
                    continue
            stream, picture = chosen
            encoded = self._streams[stream.number].encode(picture.frame)
            with self._work:
                self._scheduler.encoded(stream, picture, encoded, self._clock())
                self._work.notify_all()

    def _decode_loop(self) -> None:
        while not self._is_over:
            with self._work:
                chosen = self._scheduler.next_decode(self._clock())
                if chosen is None:
                    self._work.wait(TICK_SECONDS)
                    continue
                stream, picture, cause = chosen
                encoded, until = self._scheduler.taken(stream, picture)
                offered, of_seconds = self._cues[stream.number]
                self._work.notify_all()
            delivery, sound = self._decoded(stream, picture, cause, encoded, until, offered, of_seconds)
            self._deliver(delivery)
            if self._watch is not None and cause != "cues":
                self._tell(self._watch, stream.number, encoded, sound, delivery.segmentation)

    def _decoded(
        self,
        stream: _State,
        picture: LiveFrame,
        cause: Cause,
        encoded: Encoded,
        until: float | None,
        offered: Offered,
        of_seconds: float | None,
    ) -> tuple[Delivery, AudioWindow]:
        reader = self._readers[stream.number]
        began = self._clock()
        at = picture.pts_seconds if until is None else until
        is_mute = until is None or self.options.mute
        sound = silence(at) if is_mute else reader.ring.window(at)
        if of_seconds is not None and self._cue_ttl_seconds is not None:
            age_seconds = reader.now_seconds() - of_seconds
            offered, of_seconds = (None, None) if age_seconds > self._cue_ttl_seconds else (offered, of_seconds)
        found = self._streams[stream.number].decode(encoded, sound, offered)
        delivered, now = self._clock(), reader.now_seconds()
        if of_seconds is not None:
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
            stream=stream.number,
            input=self._inputs[stream.number],
            frame=encoded.frame,
            segmentation=found,
            cause=cause,
            shown_at_seconds=shown_at,
            staleness_seconds=staleness,
            audio_end_seconds=end,
            stamps=stamps,
        )
        return delivery, sound

    def _tell(self, saw: Watch, number: int, encoded: Encoded, sound: AudioWindow, found: Segmentation) -> None:
        stream = self._streams[number]
        tags = stream.tags_of(encoded) if self._watches_tags else None
        shown = found.shown(self._pipeline.classes) if self._watches_masks else None
        saw(number, encoded.frame, stream.heard(), sound.samples, tags, shown)

    def _deliver(self, delivery: Delivery) -> None:
        for outbox in self._outboxes:
            outbox.put(delivery)
        self.accounting.delivered(delivery)

    def _account(self) -> None:
        with self._work:
            drops = [dict(stream.drops) for stream in self._scheduler.streams]
        for number, (reader, ours) in enumerate(zip(self._readers, drops, strict=True)):
            self.accounting.source(number, reader.health(), ours)
        self.accounting.sinks({outbox.name: outbox.get_health() for outbox in self._outboxes})

    def errors(self) -> list[TesoError]:
        """Why streams and sinks ended before their time."""
        found = [reader.error for reader in self._readers] + [outbox.error for outbox in self._outboxes]
        return [error for error in found if error is not None]

    def _describe_stream(self, number: int) -> dict[str, Any]:
        """Return what a report that a sink writes says of a stream and of the model."""
        health, mode = self._readers[number].health(), "file" if self.options.lossless else "live"
        return {
            "mode": mode,
            **self.runs()[number],
            "drops": dict(health.drops),
            "corrupt_frames": health.corrupt_frames,
            "audio": {"gap_seconds": health.gap_seconds, "note": health.audio_note},
            **describe_model(self._pipeline),
        }

    def runs(self) -> list[dict[str, Any]]:
        """How often each graph ran for each stream, and how often the encoder did not have to."""
        return [{"graph_runs": dict(s.runs), "encoder_skips": dict(s.encoder_skips)} for s in self._streams]

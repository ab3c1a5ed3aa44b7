"""The loop of ``teso-deploy run`` on one file: source → pipeline → overlay, masks, events, report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.cues.timed import TimedCues
from teso_deploy.media.mask_folder import describe_masks, staged_mask_folder
from teso_deploy.media.overlay import Overlay, save_mask
from teso_deploy.media.writer import VideoWriter
from teso_deploy.outputs import show_path
from teso_deploy.pipeline.latency import LatencyLog
from teso_deploy.pipeline.pipeline import GRAPHS, Offered, Pipeline, Stream
from teso_deploy.pipeline.video_source import Moment, VideoSource
from teso_deploy.sinks.events import JOIN_SECONDS, Event, EventLog
from teso_deploy.types import Segmentation

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run found: the report as it goes to JSON, and the events in order of their ends."""

    report: dict[str, Any]
    events: tuple[Event, ...]


class VideoSink:
    """Writes pictures to a video whose size is that of the first; later ones are fitted to it."""

    def __init__(self, stack: ExitStack, path: Path, source: VideoSource) -> None:
        self._stack, self._path, self._source = stack, path, source
        self._writer: VideoWriter | None = None
        self._size = (0, 0)

    def write(self, image: NDArray[np.uint8], shown_at_seconds: float) -> None:
        """One picture (H, W, 3) uint8. Raises :class:`OutputError`."""
        size = (image.shape[1], image.shape[0])
        if self._writer is None:
            writer = VideoWriter(self._path, *size, self._source.shown_fps, self._source.track)
            self._writer, self._size = self._stack.enter_context(writer), size
        if size != self._size:  # the source changed its size on the way, which is no error
            image = np.asarray(Image.fromarray(image).resize(self._size, Image.Resampling.BILINEAR))
        self._writer.write(image, shown_at_seconds)

    def finish(self) -> None:
        """Let the last picture stay for as long as the source shows it, or as its own sound goes on."""
        source = self._source
        if self._writer is not None and source.mode == "file":
            sound_end = source.track.end_seconds if source.sound == "own" else 0.0
            self._writer.hold_until(max(source.reader.end_seconds, sound_end))


class _Tally:
    """Counts what the report says."""

    def __init__(self, classes: tuple[str, ...], join_seconds: float) -> None:
        self.frames = self.masks_nonblank = self.silent = 0
        self.positive: list[float] = []
        self.offered: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.latency = LatencyLog()
        self.event_log = EventLog(classes, join_seconds)
        self.events: list[Event] = []

    def add(self, segmentation: Segmentation, stamps: dict[str, float]) -> None:
        self.frames += 1
        self.masks_nonblank += not segmentation.is_blank
        self.silent += segmentation.audio_is_silent
        self.positive.append(segmentation.positive_pixel_rate)
        self.offered.update(segmentation.cues.names)
        self.sources[segmentation.cues.source] += 1
        for name, gate in zip(segmentation.cues.names, segmentation.cue_gate, strict=False):
            self.accepted[name] += bool(gate > 0)
        self.latency.add(stamps)
        self.events += self.event_log.add(segmentation)


def timed(source: VideoSource) -> Iterator[tuple[Moment, float]]:
    """The source's moments, each with the monotonic time at which it was asked for."""
    moments = iter(source)
    while True:
        asked = time.monotonic()
        moment = next(moments, None)
        if moment is None:
            return
        yield moment, asked


def run_source(
    pipeline: Pipeline,
    source: VideoSource,
    cues: Offered | TimedCues,
    *,
    video: Path | None = None,
    masks: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> RunResult:
    """Segment all of an opened source; ``video`` and ``masks`` appear only when all went well.

    ``cues`` as :meth:`Pipeline.segment` takes them, or by time. ``progress`` is called with the seconds
    of the file that are done. Raises :class:`MediaError` (damaged beyond decoding), :class:`OutputError`.
    """
    tally = _Tally(pipeline.classes, max(JOIN_SECONDS, 1.5 / source.shown_fps))
    cues_at, stream, began = pipeline.cues_by_time(cues), pipeline.open_stream(), time.monotonic()
    marker = describe_masks(pipeline.classes, show_path(source.path), pipeline.bundle.manifest.name)
    with ExitStack() as stack:
        mask_folder = stack.enter_context(staged_mask_folder(masks, marker)) if masks else None
        sink = VideoSink(stack, video, source) if video else None
        overlay = Overlay(pipeline.classes, source.track, source.info.duration_seconds) if video else None
        for moment, asked in timed(source):
            segmentation = stream.segment(moment.frame, moment.sound, cues_at(moment.frame.pts_seconds))
            if sink and overlay:
                sink.write(overlay.draw(moment.frame, segmentation), moment.shown_at_seconds)
            if mask_folder:
                save_mask(mask_folder / f"{segmentation.index:06d}.png", segmentation.labels)
            inside = dict(segmentation.stamps)
            stamps = {"asked": asked, "decoded": inside.pop("started"), **inside, "delivered": time.monotonic()}
            tally.add(segmentation, stamps)
            if progress:
                progress(moment.frame.pts_seconds)
        if sink:
            sink.finish()
    tally.events += tally.event_log.finish()
    return RunResult(_report(stream, source, tally, time.monotonic() - began), tuple(tally.events))


def _report(stream: Stream, source: VideoSource, tally: _Tally, seconds: float) -> dict[str, Any]:
    pipeline, manifest = stream.pipeline, stream.pipeline.bundle.manifest
    return {
        "schema_version": SCHEMA_VERSION,
        "input": show_path(source.path),
        "mode": source.mode,
        "frames": tally.frames,
        "masks_nonblank": tally.masks_nonblank,
        "positive_pixel_rate": float(np.mean(tally.positive)) if tally.positive else 0.0,
        "latency_ms": tally.latency.summary(),
        "fps": tally.frames / seconds if seconds else 0.0,
        "graph_runs": {graph: stream.runs[graph] for graph in GRAPHS},
        "encoder_skips": {likeness: stream.encoder_skips[likeness] for likeness in ("same", "still")},
        "drops": {},
        "corrupt_frames": source.reader.corrupt_frames,
        "decoder": {"name": source.reader.decoder, "note": source.reader.decoder_note},
        "audio": {
            "source": source.sound,
            "window": source.window_kind,
            "gap_seconds": source.track.gap_seconds,
            "silent": tally.silent == tally.frames,
            "note": source.sound_note,
            "invalid_samples": source.sound_counts.invalid_samples,
            "clipped_samples": source.sound_counts.clipped_samples,
            "damaged_packets": source.sound_counts.damaged,
        },
        "cues": {
            "names": [name for name, _ in tally.offered.most_common()],
            "source": tally.sources.most_common(1)[0][0] if tally.sources else "none",
            "offered_rate": {name: count / tally.frames for name, count in tally.offered.most_common()},
            "accepted_rate": {name: tally.accepted[name] / count for name, count in tally.offered.most_common()},
        },
        "events": len(tally.events),
        "backend": pipeline.backend,
        "bundle": {
            "name": manifest.name,
            "trained": manifest.trained,
            "weights_sha256": manifest.provenance.get("weights_sha256"),
            "form": pipeline.form,
            "precision": pipeline.precision,
            "size": pipeline.size,
        },
    }

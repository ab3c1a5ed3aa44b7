"""Run a file through a pipeline and pass the results to sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from teso_deploy.cues.timed import TimedCues
from teso_deploy.media.audio import WINDOW_SECONDS
from teso_deploy.outputs import show_path
from teso_deploy.pipeline.pipeline import Offered, Pipeline, Stream
from teso_deploy.pipeline.variants import VariantRunner
from teso_deploy.pipeline.video_source import Moment, VideoSource
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery, InputFacts


def _time_moments(source: VideoSource) -> Iterator[tuple[Moment, float]]:
    """Yield the source's moments, each with the monotonic time at which it was requested."""
    moments = iter(source)
    while True:
        asked = time.monotonic()
        moment = next(moments, None)
        if moment is None:
            return
        yield moment, asked


def describe_file_run(pipeline: Pipeline, names: Sequence[str]) -> RunFacts:
    """Return the facts that sinks are opened with for a run of files; ``names``: display names of the files."""
    return RunFacts(
        kind="files", classes=tuple(pipeline.classes), inputs=tuple(names), bundle=pipeline.bundle.manifest.name
    )


def run_file(
    pipeline: Pipeline,
    source: VideoSource,
    cues: Offered | TimedCues,
    *,
    sinks: Sequence[Sink] = (),
    number: int = 0,
    progress: Callable[[float], None] | None = None,
) -> int:
    """Segment a file from beginning to end.

    Args:
        pipeline: The model.
        source: The opened file.
        cues: The cues of each frame, as :meth:`Pipeline.segment` takes them, or by time.
        sinks: Each gets every result, one after the other in this order. The caller closes them. Default: none.
        number: Number of the file among the inputs of the run. Default: 0.
        progress: Called with the seconds of the file that are done. Default: none.

    Returns:
        The number of frames.

    Raises:
        MediaError: The file is too damaged to decode.
        OutputError: A sink can't write.
    """
    cues_at, stream = pipeline.cues_by_time(cues), pipeline.open_stream()
    facts = _describe_input(source, stream)
    frames, has_sound = 0, source.sound not in ("none", "mute")
    runner = VariantRunner(stream, has_sound=has_sound) if any(sink.wants_variants for sink in sinks) else None
    for moment, asked in _time_moments(source):
        offered = cues_at(moment.frame.pts_seconds)
        found, variants = (
            (stream.segment(moment.frame, moment.sound, offered), {})
            if runner is None
            else runner.segment(moment.frame, moment.sound, offered)
        )
        end_seconds = found.audio_start_seconds + WINDOW_SECONDS if has_sound else None
        inside = dict(found.stamps)
        delivery = Delivery(
            stream=number,
            input=facts,
            frame=moment.frame,
            segmentation=found,
            cause="frame",
            shown_at_seconds=moment.shown_at_seconds,
            staleness_seconds=0.0,
            audio_end_seconds=end_seconds,
            stamps={"asked": asked, "decoded": inside.pop("started"), **inside},
            variants=variants,
        )
        for sink in sinks:
            sink.append(delivery)
        frames += 1
        if progress:
            progress(found.pts_seconds)
    return frames


def _describe_input(source: VideoSource, stream: Stream) -> InputFacts:
    def find_end() -> float:
        """Return the time until which the last picture is shown: the later end of the file's picture and own sound."""
        if source.mode != "file":
            return 0.0
        sound_end = source.track.end_seconds if source.sound == "own" else 0.0
        return max(source.reader.end_seconds, sound_end)

    return InputFacts(
        name=show_path(source.path),
        fps=float(source.shown_fps),
        sound=source.track,
        duration_seconds=source.info.duration_seconds,
        find_end=find_end,
        describe=lambda: _describe_run(stream, source),
    )


def _describe_run(stream: Stream, source: VideoSource) -> dict[str, Any]:
    return {
        "mode": source.mode,
        "graph_runs": {name: stream.runs[name] for name in stream.pipeline.program.names},
        "encoder_skips": {likeness: stream.encoder_skips[likeness] for likeness in ("same", "still")},
        "drops": {},
        "corrupt_frames": source.reader.corrupt_frames,
        "decoder": {"name": source.reader.decoder, "note": source.reader.decoder_note},
        "audio": {
            "source": source.sound,
            "window": source.window_kind,
            "gap_seconds": source.track.gap_seconds,
            "note": source.sound_note,
            "invalid_samples": source.sound_counts.invalid_samples,
            "clipped_samples": source.sound_counts.clipped_samples,
            "damaged_packets": source.sound_counts.damaged,
        },
        **describe_model(stream.pipeline),
    }


def describe_model(pipeline: Pipeline) -> dict[str, Any]:
    """Return a report's facts about the model and the backend that ran it."""
    manifest = pipeline.bundle.manifest
    return {
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

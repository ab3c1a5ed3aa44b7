"""One video in a pipeline: its kept outputs, and the steps from a frame to its masks."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from teso_deploy.checks import check_window_length
from teso_deploy.errors import CueError
from teso_deploy.labels import cut_padding
from teso_deploy.pipeline.cache import Encoded, Kept
from teso_deploy.pipeline.stage_runs import AUTO, find_masks, find_tensor
from teso_deploy.program import CUE_GATE, TAGS
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Cues, Frame, Segmentation

if TYPE_CHECKING:
    from teso_deploy.pipeline.pipeline import Pipeline

#: The cues that may be offered: looked-up cues, words (also as "a, b"), ``AUTO``, or none.
Offered = Cues | Sequence[str] | str | None


class Stream:
    """One video in a pipeline, with its own kept outputs and the pipeline's engines.

    Streams of one pipeline run in parallel, each in its own thread. Within a stream one thread may encode while
    another decodes; all other calls wait for each other.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._stages = pipeline.stages
        self._kept = Kept(pipeline.program)

    @property
    def runs(self) -> Counter[str]:
        """How often each stage ran for this stream."""
        return self._kept.runs

    @property
    def encoder_skips(self) -> Counter[str]:
        """How often no stage had to run for a picture, because it was the "same" or "still"."""
        return self._kept.encoder_skips

    def segment(
        self,
        frame: Frame | NDArray[np.uint8],
        sound: AudioWindow | NDArray[np.float32],
        cues: Offered = None,
    ) -> Segmentation:
        """Segment the sounding objects in one frame, as :meth:`Pipeline.segment` does.

        Args:
            frame: A picture (H, W, 3) uint8 RGB.
            sound: The audio window (15600,) float32 at 16 kHz around it.
            cues: Words, looked-up cues or "auto". Default: none.

        Returns:
            The masks and the model's other outputs for this frame.

        Raises:
            CueError: A word has no embedding, or the bundle has no tagger.
        """
        with self._kept.encoding:  # hold it until the masks are done: the next picture is written to the same buffers
            encoded = self._stages.encode(self._kept, frame)
            with self._kept.decoding:
                return self._decode(encoded, sound, cues)

    def tags(self, frame: Frame | NDArray[np.uint8]) -> dict[str, float]:
        """Return the confidence (0 … 1) of the bundle's tagger for each of its words.

        Raises :class:`CueError` if the bundle has no tagger.
        """
        with self._kept.encoding:
            return self.tags_of(self._stages.encode(self._kept, frame))

    def tags_of(self, encoded: Encoded) -> dict[str, float]:
        """Return the tagger's confidences for an encoded picture; see :meth:`tags`."""
        tagger = self.pipeline.check_tagger()
        return dict(zip(tagger.words, self._read_tags(encoded).tolist(), strict=True))

    def heard(self) -> NDArray[np.float32]:
        """Return a description (d_A,) of the audio window that was segmented last.

        It is the output of the last stage that depends only on the window. A program without such a stage returns the
        window (15600,).
        """
        with self._kept.decoding:
            if not (stages := self.pipeline.program.sound_stages):
                return self._kept.windows.newest[0].copy()
            outputs = self._kept.graphs[stages[-1].name, 0].outputs
            audio: NDArray[np.float32] = next(iter(outputs.values())).numpy()[0]
            return audio.reshape(-1).copy()

    def encode(self, frame: Frame | NDArray[np.uint8]) -> Encoded:
        """Run the part of :meth:`segment` that depends only on the picture; another thread may run :meth:`decode`.

        Two pictures are kept in turn. A picture stays valid until encoding begins for the second picture after it, so
        that the last one can be decoded again while the next is encoded.
        """
        with self._kept.encoding:
            return self._stages.encode(self._kept, frame, is_ahead=True)

    def decode(self, encoded: Encoded, sound: AudioWindow | NDArray[np.float32], cues: Offered = None) -> Segmentation:
        """Run the part of :meth:`segment` after :meth:`encode`.

        Args:
            encoded: The picture, from :meth:`encode`.
            sound: The audio window (15600,) float32 at 16 kHz around it.
            cues: Words, looked-up cues or "auto". Default: none.

        Returns:
            The segmentation. Its stamps begin with those of the picture.

        Raises:
            CueError: A word has no embedding, or the bundle has no tagger.
        """
        with self._kept.decoding:
            return self._decode(encoded, sound, cues)

    def _read_tags(self, encoded: Encoded) -> NDArray[np.float32]:
        found = find_tensor(encoded.sources, TAGS)
        if found is None:
            raise CueError(f"no graph of bundle {self.pipeline.bundle.manifest.name} gives {TAGS}: name cues")
        tags: NDArray[np.float32] = found[0].numpy()[0]
        return tags

    def _decode(self, encoded: Encoded, sound: AudioWindow | NDArray[np.float32], cues: Offered) -> Segmentation:
        pipeline, stages, kept = self.pipeline, self._stages, self._kept
        sound = sound if isinstance(sound, AudioWindow) else AudioWindow(sound, is_silent=not np.any(sound))
        check_window_length(len(sound.samples), WINDOW_SAMPLES)
        tagger = pipeline.check_tagger() if isinstance(cues, str) and cues == AUTO else None
        offered = pipeline.cues_of(None if tagger else cues)
        stamps = {"started": encoded.started, "encoded": encoded.encoded}
        sources = stages.hear(kept, encoded.sources, sound)
        stamps["heard"] = time.monotonic()
        takes_cues = pipeline.program.takes("cues")
        if takes_cues:
            if tagger is not None:
                offered = pipeline.cues_of(pipeline.cue_table.select_tags(self._read_tags(encoded), tagger))
            sources = stages.offer(kept, sources, offered)
            stamps["fused"] = time.monotonic()
        sources = stages.finish(kept, sources, encoded.bucket)
        masks, decoder = find_masks(sources)
        stamps["masked"] = time.monotonic()
        frame, fitted, bucket = encoded.frame, encoded.fitted, encoded.bucket
        shares = fitted[0] / bucket[0], fitted[1] / bucket[1]
        labels = stages.get_operators(kept).labels(masks, (frame.image.shape[0], frame.image.shape[1]), shares)
        scores = masks.numpy()[0]  # after the labels, which are queued while the graphs still run
        stamps["labelled"] = time.monotonic()
        if decoder.is_asynchronous:  # a run has only queued its work, and its stamp is the time of queueing
            stamps = {"started": stamps["started"], "segmented": stamps["labelled"]}
        gate = find_tensor(sources, CUE_GATE)
        shown, extent = cut_padding(scores, shares)
        return Segmentation(
            labels,
            scores.reshape(len(scores), -1).max(axis=1),
            None if gate is None else gate[0].numpy()[0].copy(),
            offered if takes_cues else None,
            pts_seconds=frame.pts_seconds,
            index=frame.index,
            audio_start_seconds=sound.start_seconds,
            audio_is_silent=sound.is_silent,
            stamps=stamps,
            scores=shown.astype(np.float32),  # a copy: the next run overwrites the buffer
            score_extent=extent,
        )


class ThreadStreams:
    """One stream of a pipeline for each thread that asks, so that threads run in parallel."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._local = pipeline, threading.local()

    def get(self) -> Stream:
        """Return the stream of the calling thread."""
        if not hasattr(self._local, "stream"):
            self._local.stream = self._pipeline.open_stream()
        stream: Stream = self._local.stream
        return stream

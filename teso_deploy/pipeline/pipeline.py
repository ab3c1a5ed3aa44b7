"""Frames, sound and cues in; masks of what sounds out. The whole inference path, on one screen."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.contracts import Operators, OperatorsFactory
from teso_deploy.backends.cuda.tensors import DeviceTensor
from teso_deploy.backends.engine import Engine, EngineFactory
from teso_deploy.bundle import Bundle, TaggerEntry
from teso_deploy.checks import check_window_length
from teso_deploy.cues.names import CueNames
from teso_deploy.cues.table import CueTable
from teso_deploy.cues.text_encoder import TextEncoder
from teso_deploy.cues.timed import TimedCues
from teso_deploy.errors import BundleError, CueError
from teso_deploy.options.engine import EngineKeywords, EngineOptions, SizeChoice
from teso_deploy.options.fields import combine_options
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.pipeline.cache import Encoded, Feeds, Kept, KeptGraph, Of, likeness
from teso_deploy.pipeline.operators import HostOperators
from teso_deploy.pipeline.preprocess import fitted_size, nearest_size, resized
from teso_deploy.pipeline.video_source import Mode, VideoSource
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Cues, Frame, Segmentation

#: In place of cues: those of the bundle's own tagger, of each frame anew. In place of a size: each frame's nearest.
AUTO: Literal["auto"] = "auto"
#: What may be offered: looked-up cues, words (also as "a, b"), ``AUTO``, or nothing.
Offered = Cues | Sequence[str] | str | None
GRAPHS = ("visual_encoder", "audio_encoder", "fusion", "decoder")


class Pipeline:
    """The graphs of a bundle, run as seldom as possible.

    What each graph found last is kept: the same picture, window or cues again cost nothing. A new
    sound runs ``audio_encoder``, ``fusion`` and ``decoder`` on the outputs that the encoder has left,
    new cues ``fusion`` and ``decoder``.

    ``engines`` are what runs them, by the graphs' names in the manifest: those of the first
    size are loaded at once, those of another one when a frame needs it (``size`` "auto").
    ``runs`` counts how often each graph ran for any stream, ``encoder_skips`` how often the
    encoder did not have to, because the picture was the "same" as or as "still" as the one that
    was encoded last.

    Threads may share a pipeline: :meth:`segment` takes them one by one. To run in parallel, give each thread a stream
    of its own (:meth:`open_stream`): streams share the weights and the counts, and nothing else.
    """

    def __init__(
        self,
        bundle: Bundle,
        factory: EngineFactory,
        *,
        size: SizeChoice = None,
        still_threshold: float = 0.0,
        operators: OperatorsFactory | None = None,
    ) -> None:
        if absent := [name for name in GRAPHS if name not in bundle.manifest.graphs]:
            raise BundleError(f"{bundle.folder} has no graph {absent[0]}: export the bundle again")
        if not 0 <= still_threshold <= 255:
            raise ValueError(f"still_threshold is {still_threshold}: give grey levels, 0 (no change) to 255")
        self.bundle, self.still_threshold = bundle, still_threshold
        self.size: tuple[int, int] | Literal["auto"] = bundle.sizes[0] if size is None else size
        self.cue_table = CueTable.open(bundle)
        self.cue_names = CueNames(self.cue_table, TextEncoder.open(bundle))
        self.runs: Counter[str] = Counter()
        self.encoder_skips: Counter[str] = Counter()
        self.engines: dict[str, Engine] = {}
        self._loading, self._counting = threading.Lock(), threading.Lock()
        self._factory, self._operators = factory, operators or HostOperators
        first = bundle.sizes[0] if self.size == AUTO else self.size
        self._first = {name: self.engine(bundle.graph_at(name, first)) for name in GRAPHS}
        self._kept = Kept()

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle | None = None,
        options: EngineOptions | None = None,
        *,
        on_progress: Callable[[str], None] = lambda note: None,
        on_note: Callable[[str], None] | None = None,
        **keywords: Unpack[EngineKeywords],
    ) -> Pipeline:
        """Open a bundle and load its graphs.

        Args:
            bundle: folder of the bundle, or the opened bundle. Default: the shipped one.
            options: how the graphs are run. Default: on the CPU, with all cores.
            on_progress: receives a line about each thing that takes time. Default: no one is told.
            on_note: receives what is slower or different from what was asked for. Default: ``on_progress``.
            keywords: fields of :class:`EngineOptions`, as in ``load(threads=1)``; they replace those of ``options``.

        Raises:
            OptionError: options are out of range, or have no effect on this backend (a :class:`ValueError`).
            BundleError: no form of this precision, or no graph of this size; see :meth:`Bundle.open` for others.
            ValueError: no such backend; see :func:`load_backend` for what a backend itself raises.
        """
        options = combine_options(EngineOptions, options, dict(keywords))
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        chosen = load_backend(
            options.backend,
            opened,
            options.precision,
            threads=options.threads,
            profile=options.profile,
            rebuild_engines=options.rebuild_engines,
            on_progress=on_progress,
            on_note=on_note,
        )
        return cls(
            opened,
            chosen.engines,
            size=options.size,
            still_threshold=options.still_threshold,
            operators=chosen.operators,
        )

    def engine(self, graph: str) -> Engine:
        """The engine of a graph, by its name in the manifest; loaded once, when a thread first needs it."""
        if graph not in self.engines:
            with self._loading:
                if graph not in self.engines:
                    self.engines[graph] = self._factory(self.bundle, graph)
        return self.engines[graph]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 1."""
        return self.bundle.classes

    @property
    def backend(self) -> str:
        """What runs the graphs: ``cpu``."""
        return self._first["visual_encoder"].backend

    @property
    def precision(self) -> str:
        """What most of the encoder is computed in: ``fp32``."""
        return self._first["visual_encoder"].precision

    @property
    def form(self) -> str | None:
        """The form of the graphs that runs, by its name in the manifest; None: the canonical graphs."""
        return self._first["visual_encoder"].form

    def bucket_of(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        """The bucket (height, width) that a picture (H, W, 3) is fitted to."""
        return nearest_size(image, self.bundle.sizes) if self.size == AUTO else self.size

    def check_tagger(self) -> TaggerEntry:
        """The bundle's tagger. Raises :class:`CueError` where there is none."""
        if self.bundle.manifest.tagger is None:
            raise CueError(f"bundle {self.bundle.manifest.name} has no tagger: name what is to be seen as cues")
        return self.bundle.manifest.tagger

    def cues_of(self, cues: Offered) -> Cues:
        """Look up cues: words become embeddings, no word offers the trained fallback.

        Of a method that takes no cues these are empty. Raises :class:`CueError` for a word without embedding, cues of
        another bundle's shape, and any cue for a method that takes none.
        """
        cues = cues.split(",") if isinstance(cues, str) else cues
        if (cue := self.bundle.manifest.cue) is None:
            names = cues.names if isinstance(cues, Cues) else [word for word in cues or () if word.strip()]
            if names:
                raise CueError(f"bundle {self.bundle.manifest.name} takes no cues: run it without cues")
            return self.cue_table.none()
        cues = cues if isinstance(cues, Cues) else self.cue_names.of_words(cues or ())
        if cues.embeddings.shape != (cue.max_cues, cue.dim):
            raise CueError(
                f"cues are {cues.embeddings.shape}, the bundle takes {(cue.max_cues, cue.dim)}: look them up in it"
            )
        return cues if cues.valid.any() else replace(cues, source="fallback")

    def cues_by_time(self, cues: Offered | TimedCues) -> Callable[[float], Offered]:
        """Time of a frame (seconds) → what is offered with it. Raises :class:`CueError`, see :meth:`cues_of`."""
        if isinstance(cues, TimedCues):
            return cues.at
        looked_up = cues if isinstance(cues, str) and cues == AUTO else self.cues_of(cues)
        return lambda seconds: looked_up

    def open_stream(self) -> Stream:
        """A stream that keeps its outputs apart from the others: one for each video, and one for each thread."""
        return Stream(self)

    def segment(
        self,
        frame: Frame | NDArray[np.uint8],
        sound: AudioWindow | NDArray[np.float32],
        cues: Offered = None,
    ) -> Segmentation:
        """What sounds in one frame.

        ``frame``: a picture (H, W, 3) uint8 RGB. ``sound``: the window (15600,) float32 at
        16 kHz around it. ``cues``: words of the bundle's table for what is to be seen, or
        "auto" for what its tagger sees; without any the model falls back to "something that
        sounds". Threads that call this wait for each other; with a stream each they do not. Raises
        :class:`CueError`.
        """
        return self._segment(self._kept, frame, sound, cues)

    def stream(
        self,
        path: str | Path,
        cues: Offered | TimedCues = None,
        *,
        mode: Mode = "file",
        mute: bool = False,
        noise_dbfs: float | None = None,
        sound_from: str | Path | None = None,
        fps: float | None = None,
        video_track: int | None = None,
        audio_track: int | None = None,
    ) -> Iterator[Segmentation]:
        """Segment a file frame by frame. The options, and the errors, are those of :class:`VideoSource`."""
        cues_at, stream = self.cues_by_time(cues), self.open_stream()
        with VideoSource(
            path,
            mode=mode,
            mute=mute,
            noise_dbfs=noise_dbfs,
            sound_from=sound_from,
            fps=fps,
            video_track=video_track,
            audio_track=audio_track,
        ) as source:
            for moment in source:
                yield stream.segment(moment.frame, moment.sound, cues_at(moment.frame.pts_seconds))

    def _segment(
        self,
        kept: Kept,
        frame: Frame | NDArray[np.uint8],
        sound: AudioWindow | NDArray[np.float32],
        cues: Offered,
    ) -> Segmentation:
        with kept.encoding:  # until the masks are there: the next picture goes into the same buffers
            encoded = self._encode(kept, frame)
            with kept.decoding:
                return self._decode(kept, encoded, sound, cues)

    def _encode(self, kept: Kept, frame: Frame | NDArray[np.uint8], is_ahead: bool = False) -> Encoded:
        frame = frame if isinstance(frame, Frame) else Frame(frame, pts_seconds=0.0)
        started = time.monotonic()
        bucket = self.bucket_of(frame.image)
        fitted = fitted_size(frame.image, bucket, self.bundle.manifest.preprocessing.fit)
        graph = self._encoded(kept, frame.image, fitted, bucket, is_ahead)
        return Encoded(frame, graph, fitted, bucket, started, time.monotonic())

    def _decode(
        self, kept: Kept, encoded: Encoded, sound: AudioWindow | NDArray[np.float32], cues: Offered
    ) -> Segmentation:
        sound = sound if isinstance(sound, AudioWindow) else AudioWindow(sound, is_silent=not np.any(sound))
        check_window_length(len(sound.samples), WINDOW_SAMPLES)
        tagger = self.check_tagger() if isinstance(cues, str) and cues == AUTO else None
        offered = self.cues_of(None if tagger else cues)
        frame, encoder, bucket = encoded.frame, encoded.graph, encoded.bucket
        stamps = {"started": encoded.started, "encoded": encoded.encoded}
        audio = self._heard(kept, sound.samples)
        stamps["heard"] = time.monotonic()
        if tagger is not None:
            offered = self.cues_of(self.cue_table.tagged(encoder.outputs["tags"].numpy()[0], tagger))
        fused = self._fused(kept, audio, offered)
        stamps["fused"] = time.monotonic()
        decoder = self._graph(kept, "decoder", bucket)
        if not decoder.is_of(of := (encoder.number, encoder.version, fused.version)):
            self._run(kept, "decoder", decoder, of, {**encoder.outputs, "queries": fused.outputs["queries"]})
        masks = decoder.outputs["masks"]
        stamps["masked"] = time.monotonic()
        shares = encoded.fitted[0] / bucket[0], encoded.fitted[1] / bucket[1]
        labels = self._operators_of(kept).labels(masks, (frame.image.shape[0], frame.image.shape[1]), shares)
        scores = masks.numpy()[0]  # behind the labels, which are queued while the graphs still run
        stamps["labelled"] = time.monotonic()
        if isinstance(masks, DeviceTensor):  # a run has only queued its work: its stamp says when that was
            stamps = {"started": stamps["started"], "segmented": stamps["labelled"]}
        return Segmentation(
            labels,
            scores.reshape(len(scores), -1).max(axis=1),
            fused.outputs["cue_gate"].numpy()[0].copy(),
            offered,
            pts_seconds=frame.pts_seconds,
            index=frame.index,
            audio_start_seconds=sound.start_seconds,
            audio_is_silent=sound.is_silent,
            stamps=stamps,
        )

    def _graph(self, kept: Kept, graph: str, bucket: tuple[int, int]) -> KeptGraph:
        key = self.bundle.graph_at(graph, bucket)
        if key not in kept.graphs:
            kept.graphs[key] = KeptGraph(self.engine(key))
        return kept.graphs[key]

    def _encoder(self, kept: Kept, bucket: tuple[int, int], number: int) -> KeptGraph:
        key = self.bundle.graph_at("visual_encoder", bucket)
        if (key, number) not in kept.encoders:
            kept.encoders[key, number] = KeptGraph(self.engine(key), number)
        return kept.encoders[key, number]

    def _run(self, kept: Kept, name: str, graph: KeptGraph, of: Of, feeds: Feeds) -> None:
        graph.run(of, feeds)
        self._count(name, kept.runs, self.runs)

    def _count(self, what: str, *counters: Counter[str]) -> None:
        with self._counting:  # += reads before it writes, and streams of other threads count here too
            for counter in counters:
                counter[what] += 1

    def _encoded(
        self, kept: Kept, image: NDArray[np.uint8], fitted: tuple[int, int], bucket: tuple[int, int], is_ahead: bool
    ) -> KeptGraph:
        operators = self._operators_of(kept)
        encoder = self._encoder(kept, bucket, kept.turn) if is_ahead else self._graph(kept, "visual_encoder", bucket)
        # By the frame itself where it is not needed resized on the host.
        picture = image if operators.compares_frames and not self.still_threshold else resized(image, fitted)
        if alike := likeness(picture, encoder.of[0] if encoder.of else None, self.still_threshold):
            self._count(alike, kept.encoder_skips, self.encoder_skips)
        else:
            if is_ahead:
                kept.turn = 1 - kept.turn
                encoder = self._encoder(kept, bucket, kept.turn)
            feeds: Feeds = {"image": operators.image(image if operators.compares_frames else picture, fitted, bucket)}
            if np.may_share_memory(picture, image):  # it needed no resize, and the caller may reuse its buffer
                picture = picture.copy()
            self._run(kept, "visual_encoder", encoder, (picture,), feeds)
        return encoder

    def _operators_of(self, kept: Kept) -> Operators:
        if kept.operators is None:
            with self._loading:  # one thread may encode while another decodes
                kept.operators = kept.operators or self._operators(self.bundle.manifest)
        return kept.operators

    def _heard(self, kept: Kept, samples: NDArray[np.float32]) -> KeptGraph:
        encoder = self._graph(kept, "audio_encoder", self.bundle.sizes[0])
        if not encoder.is_of((samples,)):
            samples = samples.copy()
            self._run(kept, "audio_encoder", encoder, (samples,), {"waveform": samples[None]})
        return encoder

    def _fused(self, kept: Kept, audio: KeptGraph, cues: Cues) -> KeptGraph:
        fusion = self._graph(kept, "fusion", self.bundle.sizes[0])
        if not fusion.is_of((audio.version, cues.embeddings, cues.valid)):
            embeddings, valid = cues.embeddings.copy(), cues.valid.copy()
            feeds: Feeds = {"audio": audio.outputs["audio"], "cues": embeddings[None], "cue_valid": valid[None]}
            self._run(kept, "fusion", fusion, (audio.version, embeddings, valid), feeds)
        return fusion


class Stream:
    """One video in a pipeline, with its own kept outputs; the engines are the pipeline's.

    Streams of one pipeline run in parallel, each in its own thread. Within a stream one thread may encode while
    another decodes; all other calls wait for each other.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._kept = Kept()

    @property
    def runs(self) -> Counter[str]:
        """How often each graph ran for this stream."""
        return self._kept.runs

    @property
    def encoder_skips(self) -> Counter[str]:
        """How often the encoder did not have to run, because the picture was "same" or "still"."""
        return self._kept.encoder_skips

    def segment(
        self,
        frame: Frame | NDArray[np.uint8],
        sound: AudioWindow | NDArray[np.float32],
        cues: Offered = None,
    ) -> Segmentation:
        """What sounds in one frame, as :meth:`Pipeline.segment`."""
        return self.pipeline._segment(self._kept, frame, sound, cues)

    def tags(self, frame: Frame | NDArray[np.uint8]) -> dict[str, float]:
        """How sure the bundle's tagger is (0 … 1) of each of its words. Raises :class:`CueError` (it has none)."""
        with self._kept.encoding:
            return self.tags_of(self.pipeline._encode(self._kept, frame))

    def tags_of(self, encoded: Encoded) -> dict[str, float]:
        """The same, of a picture that is encoded already."""
        words = self.pipeline.check_tagger().words
        return dict(zip(words, encoded.graph.outputs["tags"].numpy()[0].tolist(), strict=True))

    def heard(self) -> NDArray[np.float32]:
        """What the audio encoder found (d_A,) in the window that was segmented last."""
        with self._kept.decoding:
            audio: NDArray[np.float32] = self._kept.graphs["audio_encoder"].outputs["audio"].numpy()[0]
            return audio.reshape(-1).copy()

    def encode(self, frame: Frame | NDArray[np.uint8]) -> Encoded:
        """The half of :meth:`segment` that depends on the picture alone, for one thread; :meth:`decode` for another.

        Two pictures have room, in turn: one stays as it is until the second one after it is begun, so that the last
        can be decoded again while the next is encoded.
        """
        with self._kept.encoding:
            return self.pipeline._encode(self._kept, frame, is_ahead=True)

    def decode(self, encoded: Encoded, sound: AudioWindow | NDArray[np.float32], cues: Offered = None) -> Segmentation:
        """The other half: what sounds in an encoded picture. Its stamps begin with those of the picture."""
        with self._kept.decoding:
            return self.pipeline._decode(self._kept, encoded, sound, cues)

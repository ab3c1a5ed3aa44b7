"""The model as a function: frames, sound and cues → masks of the sounding objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.contracts import OperatorsFactory
from teso_deploy.backends.engine import Engine, EngineFactory
from teso_deploy.bundle import Bundle, TaggerEntry
from teso_deploy.cues.names import CueNames
from teso_deploy.cues.table import CueTable
from teso_deploy.cues.text_encoder import TextEncoder
from teso_deploy.cues.timed import TimedCues
from teso_deploy.errors import CueError
from teso_deploy.options.engine import EngineKeywords, EngineOptions, SizeChoice
from teso_deploy.options.fields import combine_options
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.pipeline.operators import HostOperators
from teso_deploy.pipeline.stage_runs import AUTO, StageRunner
from teso_deploy.pipeline.stream import Offered, Stream
from teso_deploy.pipeline.video_source import Mode, VideoSource
from teso_deploy.types import AudioWindow, Cues, Frame, Framing, ImageSize, Segmentation

__all__ = ["AUTO", "Offered", "Pipeline", "Stream"]


class Pipeline:
    """The program of a bundle, whose stages run as rarely as possible.

    The last outputs of each stage are kept, so repeating the same picture, audio window or cues takes no time. A stage
    runs only if one of its inputs has changed. For TeSO, a new sound runs ``audio_encoder``, ``fusion`` and ``decoder``
    on the kept outputs of the encoder, and new cues run ``fusion`` and ``decoder``.

    ``engines`` run the graphs, by their names in the manifest. Those of the first size are loaded at once, those of
    another size when a frame needs it (``size`` "auto"). ``runs`` counts how often each stage ran for any stream.
    ``encoder_skips`` counts how often no stage had to run for a picture, because it was the "same" as or as "still" as
    the one that was encoded last.

    Threads may share a pipeline: :meth:`segment` serves one thread after the other. To run in parallel, give each
    thread its own stream (:meth:`open_stream`). Streams share only the weights and the counts.
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
        if not 0 <= still_threshold <= 255:
            raise ValueError(f"still_threshold is {still_threshold}: give grey levels, 0 (no change) to 255")
        self.bundle, self.program = bundle, bundle.program
        self.cue_table = CueTable.open(bundle)
        self.cue_names = CueNames(self.cue_table, TextEncoder.open(bundle))
        self.stages = StageRunner(
            bundle,
            factory,
            size=bundle.sizes[0] if size is None else size,
            still_threshold=still_threshold,
            operators=operators or HostOperators,
        )
        self._stream = Stream(self)

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
            bundle: Folder of the bundle, or the opened bundle. Default: the shipped one.
            options: How the graphs are run. Default: on the CPU, with all cores.
            on_progress: Called with the name of each step that takes time. Default: ignored.
            on_note: Called with anything that is slower or different than requested. Default: ``on_progress``.
            keywords: Fields of :class:`EngineOptions`, as in ``load(threads=1)``; they replace those of ``options``.

        Returns:
            The pipeline.

        Raises:
            OptionError: Options are out of range, or have no effect on this backend (a :class:`ValueError`).
            BundleError: No form of this precision, or no graph of this size; see :meth:`Bundle.open` for others.
            ValueError: No such backend; see :func:`load_backend` for the errors of a backend.
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

    @property
    def engines(self) -> dict[str, Engine]:
        """The engines that are loaded, by the graph's name in the manifest."""
        return self.stages.engines

    @property
    def runs(self) -> Counter[str]:
        """How often each stage ran, in all streams together."""
        return self.stages.runs

    @property
    def encoder_skips(self) -> Counter[str]:
        """How often no stage had to run for a picture, because it was the "same" or "still"."""
        return self.stages.encoder_skips

    @property
    def size(self) -> ImageSize | Literal["auto"]:
        """The bucket (height, width) that frames are fitted to, or "auto"."""
        return self.stages.size

    @property
    def still_threshold(self) -> float:
        """The change in grey levels up to which a frame uses the encoded picture's outputs."""
        return self.stages.still_threshold

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 1."""
        return self.bundle.classes

    @property
    def backend(self) -> str:
        """Name of the backend that runs the graphs: ``cpu``."""
        return self._first_engine.backend

    @property
    def precision(self) -> str:
        """The precision of most of the program's first stage: ``fp32``."""
        return self._first_engine.precision

    @property
    def form(self) -> str | None:
        """The manifest's name of the form that runs; None for the canonical graphs."""
        return self._first_engine.form

    @property
    def _first_engine(self) -> Engine:
        return self.stages.first[self.program.names[0]]

    def engine(self, graph: str) -> Engine:
        """Return the engine of a graph, by its name in the manifest. It is loaded when a thread first needs it."""
        return self.stages.engine(graph)

    def bucket_of(self, image: NDArray[np.uint8]) -> ImageSize:
        """Return the bucket (height, width) that a picture (H, W, 3) is fitted to."""
        return self.stages.bucket_of(image)

    def check_tagger(self) -> TaggerEntry:
        """Return the bundle's tagger. Raises :class:`CueError` if it has none."""
        if self.bundle.manifest.tagger is None:
            raise CueError(f"bundle {self.bundle.manifest.name} has no tagger: name visible objects as cues")
        return self.bundle.manifest.tagger

    def cues_of(self, cues: Offered) -> Cues:
        """Look up cues: words become embeddings, and no word means the trained fallback.

        For a method that takes no cues, the result is empty.

        Raises:
            CueError: A word has no embedding, cues have another bundle's shape, or the method takes no cues.
        """
        cues = cues.split(",") if isinstance(cues, str) else cues
        if (cue := self.bundle.manifest.cue) is None:
            names = cues.names if isinstance(cues, Cues) else [word for word in cues or () if word.strip()]
            if names:
                raise CueError(f"bundle {self.bundle.manifest.name} takes no cues: run it without cues")
            return self.cue_table.none()
        cues = cues if isinstance(cues, Cues) else self.cue_names.look_up_words(cues or ())
        if cues.embeddings.shape != (cue.max_cues, cue.dim):
            raise CueError(
                f"cues are {cues.embeddings.shape}, the bundle takes {(cue.max_cues, cue.dim)}: look them up in it"
            )
        return cues if cues.valid.any() else replace(cues, source="fallback")

    def cues_by_time(self, cues: Offered | TimedCues) -> Callable[[float], Offered]:
        """Return a function from the time of a frame (seconds) to the cues that are offered with it.

        Raises :class:`CueError`, see :meth:`cues_of`.
        """
        if isinstance(cues, TimedCues):
            return cues.at
        looked_up = cues if isinstance(cues, str) and cues == AUTO else self.cues_of(cues)
        return lambda seconds: looked_up

    def open_stream(self) -> Stream:
        """Open a stream with separate kept outputs. Each video, and each thread, needs its own stream."""
        return Stream(self)

    def segment(
        self,
        frame: Frame | NDArray[np.uint8],
        sound: AudioWindow | NDArray[np.float32],
        cues: Offered = None,
    ) -> Segmentation:
        """Segment the sounding objects in one frame.

        Threads that call this wait for each other. Threads that each use their own stream do not.

        Args:
            frame: A picture (H, W, 3) uint8 RGB.
            sound: The audio window (15600,) float32 at 16 kHz around it.
            cues: Words of the bundle's table for visible objects, or "auto" for the objects that its tagger finds.
                Default: none, so that the model uses its fallback, "something that sounds".

        Returns:
            The masks and the model's other outputs for this frame.

        Raises:
            CueError: A word has no embedding, or the bundle has no tagger.
        """
        return self._stream.segment(frame, sound, cues)

    def stream(
        self,
        path: str | Path,
        cues: Offered | TimedCues = None,
        *,
        mode: Mode = "file",
        framing: Framing | None = None,
        mute: bool = False,
        noise_dbfs: float | None = None,
        noise_dbw: float | None = None,
        noise_snr: float | None = None,
        sound_from: str | Path | None = None,
        fps: float | None = None,
        video_track: int | None = None,
        audio_track: int | None = None,
    ) -> Iterator[Segmentation]:
        """Segment a file frame by frame.

        Args:
            path: The file.
            cues: The cues of each frame, as :meth:`segment` takes them, or by time. Default: none.
            mode: "file" for all frames, "paper" for one frame per second. Default: "file".
            framing: Where the windows of mode "paper" begin: second k at k seconds ("per_second") or at k · 0.96 s
                ("contiguous"). Default: as the bundle says.
            mute: Use silence. Default: False.
            noise_dbfs: Use white noise of this level (RMS, in dBFS). Default: no noise.
            noise_dbw: The same as power in dBW; above 0 it is clipped. Default: no noise.
            noise_snr: Add white noise, this many dB below the sound. Default: no noise.
            sound_from: Use the sound of this file. Default: the file's own.
            fps: Frames per second to take, in mode "file". Default: all.
            video_track: Number of the video track. Default: the track that players take.
            audio_track: Number of the audio track. Default: the track that players take.

        Returns:
            An iterator over the segmentations.

        Raises:
            InputNotFoundError: One of the files does not exist.
            MediaError: One of the files can't be decoded.
            ValueError: The options exclude each other.
            CueError: A word has no embedding, or the bundle has no tagger.
        """
        cues_at, stream = self.cues_by_time(cues), self.open_stream()
        with VideoSource(
            path,
            mode=mode,
            framing=framing or self.bundle.manifest.audio.framing,
            mute=mute,
            noise_dbfs=noise_dbfs,
            noise_dbw=noise_dbw,
            noise_snr=noise_snr,
            sound_from=sound_from,
            fps=fps,
            video_track=video_track,
            audio_track=audio_track,
        ) as source:
            for moment in source:
                yield stream.segment(moment.frame, moment.sound, cues_at(moment.frame.pts_seconds))

"""Frames, sound and cues in; masks of what sounds out. The whole inference path, on one screen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.engine import EngineFactory
from teso_deploy.backends.onnxruntime import form_of, onnxruntime_factory
from teso_deploy.bundle import Bundle, TaggerEntry
from teso_deploy.cues.table import CueTable
from teso_deploy.errors import BundleError, CueError
from teso_deploy.runtime.postprocess import labels_of
from teso_deploy.runtime.preprocess import fitted_size, nearest_size, normalised, resized
from teso_deploy.runtime.schedule import Mode, Source
from teso_deploy.types import WINDOW_SAMPLES, AudioWindow, Cues, Frame, Precision, Segmentation

Arrays = dict[str, NDArray[Any]]
#: In place of cues: those of the bundle's own tagger, of each frame anew.
AUTO = "auto"
#: What may be offered: looked-up cues, words (also as "a, b"), ``AUTO``, or nothing.
Offered = Cues | Sequence[str] | str | None
GRAPHS = ("visual_encoder", "audio_encoder", "fusion", "decoder")


class Pipeline:
    """The graphs of a bundle, run as seldom as possible.

    Each graph keeps its last outputs and a copy of the input they are of: the same picture,
    window or cues again cost nothing. A new sound runs ``audio_encoder``, ``fusion`` and
    ``decoder``, new cues ``fusion`` and ``decoder``. ``runs`` counts how often each ran;
    ``engines`` are what runs them. Not to be shared between threads.
    """

    def __init__(self, bundle: Bundle, factory: EngineFactory) -> None:
        if absent := [name for name in GRAPHS if name not in bundle.manifest.graphs]:
            raise BundleError(f"{bundle.folder} has no graph {absent[0]}: export the bundle again")
        self.bundle = bundle
        self.cue_table = CueTable.open(bundle)
        self.runs: Counter[str] = Counter()
        self.engines = {name: factory(bundle, name) for name in GRAPHS}
        self._kept: dict[str, tuple[tuple[NDArray[Any], ...], Arrays]] = {}

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        threads: int | None = None,
        backend: str = "cpu",
        precision: Precision = "fp32",
    ) -> Pipeline:
        """Open a bundle's folder (default: the shipped one); ``threads`` default to all cores.

        ``precision``: of the form that was exported for ONNX Runtime; fp32 is there always.
        Raises what :meth:`Bundle.open` raises, and :class:`ValueError` for a backend other than ``cpu``.
        """
        if backend != "cpu":
            raise ValueError(f"unknown backend {backend!r}: the only one is 'cpu' (ONNX Runtime)")
        opened = Bundle.open(bundle)
        return cls(opened, onnxruntime_factory(threads, form_of(opened, precision)))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label k is the k-th, from 1."""
        return self.bundle.classes

    @property
    def backend(self) -> str:
        """What runs the graphs: ``cpu``."""
        return self.engines["decoder"].backend

    def _run(self, graph: str, of: tuple[NDArray[Any], ...], feeds: Callable[[], Arrays]) -> Arrays:
        """A graph's outputs; the kept ones when ``of``, all that its feeds are made from, has not changed."""
        kept = self._kept.get(graph)
        if kept is not None and all(np.array_equal(old, new) for old, new in zip(kept[0], of, strict=True)):
            return kept[1]
        self.runs[graph] += 1
        outputs = self.engines[graph].run(feeds())
        self._kept[graph] = (tuple(array.copy() for array in of), outputs)  # a caller may reuse its buffers
        return outputs

    def check_tagger(self) -> TaggerEntry:
        """The bundle's tagger. Raises :class:`CueError` where there is none."""
        if self.bundle.manifest.tagger is None:
            raise CueError(f"bundle {self.bundle.manifest.name} has no tagger: name what is to be seen as cues")
        return self.bundle.manifest.tagger

    def cues_of(self, cues: Offered) -> Cues:
        """Cues as the fusion takes them: words are looked up, no word offers the trained fallback.

        Raises :class:`CueError` for a word without embedding, or cues of another bundle's shape.
        """
        cues = cues.split(",") if isinstance(cues, str) else cues
        cues = cues if isinstance(cues, Cues) else self.cue_table.lookup(cues or ())
        cue = self.bundle.manifest.cue
        if cues.embeddings.shape != (cue.max_cues, cue.dim):
            raise CueError(
                f"cues are {cues.embeddings.shape}, the bundle takes {(cue.max_cues, cue.dim)}: look them up in it"
            )
        return cues if cues.valid.any() else replace(cues, source="fallback")

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
        sounds". Raises :class:`CueError`.
        """
        frame = frame if isinstance(frame, Frame) else Frame(frame, pts_seconds=0.0)
        sound = sound if isinstance(sound, AudioWindow) else AudioWindow(sound, is_silent=not np.any(sound))
        if sound.samples.shape != (WINDOW_SAMPLES,):
            raise ValueError(f"a window has {WINDOW_SAMPLES} samples (0.975 s at 16 kHz), got {len(sound.samples)}")
        tagger = self.check_tagger() if isinstance(cues, str) and cues == AUTO else None
        offered = self.cues_of(None if tagger else cues)
        how = self.bundle.manifest.preprocessing
        stamps = {"started": time.monotonic()}
        bucket = nearest_size(frame.image, how.sizes)
        picture = resized(frame.image, fitted_size(frame.image, bucket, how.fit))
        shares = picture.shape[0] / bucket[0], picture.shape[1] / bucket[1]
        memory = self._run(
            "visual_encoder", (picture,), lambda: {"image": normalised(picture, how.mean, how.std, bucket)}
        )
        stamps["encoded"] = time.monotonic()
        audio = self._run("audio_encoder", (sound.samples,), lambda: {"waveform": sound.samples[None]})["audio"]
        stamps["heard"] = time.monotonic()
        if tagger is not None:
            offered = self.cues_of(self.cue_table.tagged(memory["tags"][0], tagger))
        feeds = {"audio": audio, "cues": offered.embeddings[None], "cue_valid": offered.valid[None]}
        fused = self._run("fusion", tuple(feeds.values()), lambda: feeds)
        stamps["fused"] = time.monotonic()
        queries = fused["queries"]
        scores = self._run("decoder", (picture, queries), lambda: {**memory, "queries": queries})["masks"][0]
        stamps["masked"] = time.monotonic()
        threshold = self.bundle.manifest.postprocessing.threshold
        labels = labels_of(scores, frame.image.shape[:2], threshold, shares)
        stamps["labelled"] = time.monotonic()
        return Segmentation(
            labels,
            scores.reshape(len(scores), -1).max(axis=1),
            fused["cue_gate"][0].copy(),
            offered,
            pts_seconds=frame.pts_seconds,
            index=frame.index,
            audio_start_seconds=sound.start_seconds,
            audio_is_silent=sound.is_silent,
            stamps=stamps,
        )

    def stream(
        self,
        path: str | Path,
        cues: Offered = None,
        *,
        mode: Mode = "file",
        mute: bool = False,
        noise_dbfs: float | None = None,
        sound_from: str | Path | None = None,
        fps: float | None = None,
    ) -> Iterator[Segmentation]:
        """Segment a file frame by frame; the options are those of :class:`Source`, which names the errors."""
        looked_up = cues if isinstance(cues, str) and cues == AUTO else self.cues_of(cues)
        with Source(path, mode=mode, mute=mute, noise_dbfs=noise_dbfs, sound_from=sound_from, fps=fps) as source:
            for moment in source:
                yield self.segment(moment.frame, moment.sound, looked_up)

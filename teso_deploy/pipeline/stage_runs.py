"""Run the stages of a program for one frame, only those whose inputs have changed since the last frame."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.contracts import Operators, OperatorsFactory
from teso_deploy.backends.engine import Engine, EngineFactory, Tensor
from teso_deploy.bundle import Bundle
from teso_deploy.errors import BundleError
from teso_deploy.pipeline.cache import (
    CachedStage,
    Encoded,
    Kept,
    KeptGraph,
    KeptInput,
    Likeness,
    Source,
    judge_likeness,
    stack_moments,
)
from teso_deploy.pipeline.preprocess import choose_nearest_size, compute_fitted_size, resize_picture
from teso_deploy.program import MASKS, Stage, run_program
from teso_deploy.types import AudioWindow, Cues, Frame, ImageSize

#: Instead of cues, this stands for the words that the bundle's tagger finds in each frame. Instead of a size, it stands
#: for the bucket that is nearest to each frame's size.
AUTO: Literal["auto"] = "auto"


class StageRunner:
    """The engines of a bundle and the counts of all streams. Each call gets the state of its stream.

    Engines of the first size are loaded at once, those of another size when a frame needs it.
    """

    def __init__(
        self,
        bundle: Bundle,
        factory: EngineFactory,
        *,
        size: ImageSize | Literal["auto"],
        still_threshold: float,
        operators: OperatorsFactory,
    ) -> None:
        self.bundle, self.program, self.size, self.still_threshold = bundle, bundle.program, size, still_threshold
        self.runs: Counter[str] = Counter()
        self.encoder_skips: Counter[str] = Counter()
        self.engines: dict[str, Engine] = {}
        self._loading, self._counting = threading.Lock(), threading.Lock()
        self._factory, self._operators = factory, operators
        first = bundle.sizes[0] if size == AUTO else size
        self.first = {name: self.engine(bundle.graph_at(name, first)) for name in self.program.names}
        # A stage that needs the picture later may run when the operators hold another picture.
        runs_later = any("image" in stage.inputs for stage in self.program.mask_stages)
        self._keeps_image = runs_later or self.program.past_frames > 0

    def engine(self, graph: str) -> Engine:
        """Return the engine of a graph, by its name in the manifest. It is loaded when a thread first needs it."""
        if graph not in self.engines:
            with self._loading:
                if graph not in self.engines:
                    self.engines[graph] = self._factory(self.bundle, graph)
        return self.engines[graph]

    def get_operators(self, kept: Kept) -> Operators:
        """Return the operators of a stream."""
        if kept.operators is None:
            with self._loading:  # one thread may encode while another decodes
                kept.operators = kept.operators or self._operators(self.bundle.manifest)
        return kept.operators

    def bucket_of(self, image: NDArray[np.uint8]) -> ImageSize:
        """Return the bucket (height, width) that a picture (H, W, 3) is fitted to."""
        return choose_nearest_size(image, self.bundle.sizes) if self.size == AUTO else self.size

    def encode(self, kept: Kept, frame: Frame | NDArray[np.uint8], *, is_ahead: bool = False) -> Encoded:
        """Run the stages that depend only on the picture.

        Args:
            kept: The stream's state. The caller holds its lock ``encoding``.
            frame: The picture (H, W, 3) uint8 RGB.
            is_ahead: Whether the picture before this one may still be decoded. Default: no.

        Returns:
            The encoded picture.
        """
        frame = frame if isinstance(frame, Frame) else Frame(frame, pts_seconds=0.0)
        started = time.monotonic()
        bucket = self.bucket_of(frame.image)
        fitted = compute_fitted_size(frame.image, bucket, self.bundle.manifest.preprocessing.fit)
        operators = self.get_operators(kept)
        # Compare the frame itself if the host does not need its resized copy.
        content = (
            frame.image
            if operators.compares_frames and not self.still_threshold
            else resize_picture(frame.image, fitted)
        )
        turn = kept.turn if is_ahead else 0
        picture, alike = self._compare(kept, bucket=bucket, turn=turn, content=content)
        frames, repeated = kept.frames[bucket], None
        if alike is not None and frames.changes_by_repeating(frame.pts_seconds):
            repeated, alike = picture.content, None
        if alike is None and is_ahead:
            turn = kept.turn = 3 - kept.turn
            picture = kept.pictures.setdefault((bucket, turn), KeptInput())
        if alike is not None:
            self._count(alike, kept.encoder_skips, self.encoder_skips)
            sources = self._run(kept, self.program.picture_stages, {"image": picture}, bucket=bucket, turn=turn)
            return Encoded(frame, sources, fitted, bucket, started, time.monotonic())
        taken = frame.image if operators.compares_frames else content
        image = frames.newest if repeated else operators.image(taken, fitted, bucket)
        if self._keeps_image:
            image = (image if isinstance(image, np.ndarray) else image.numpy()).copy()
            frames.add(frame.pts_seconds, frames.newest if repeated else image)
            image = stack_moments(frames.values)
        picture.put(kept.next_version(), None, {"image": image})
        sources = self._run(kept, self.program.picture_stages, {"image": picture}, bucket=bucket, turn=turn)
        # Set it only now: a picture whose stages failed was not encoded. Copy it, as the caller may reuse the buffer.
        picture.content = repeated or (content.copy() if np.may_share_memory(content, frame.image) else content,)
        return Encoded(frame, sources, fitted, bucket, started, time.monotonic())

    def _compare(
        self, kept: Kept, *, bucket: ImageSize, turn: int, content: NDArray[np.uint8]
    ) -> tuple[KeptInput, Likeness | None]:
        """Return the picture of a turn, and its likeness to a new one."""
        picture = kept.pictures.setdefault((bucket, turn), KeptInput())
        encoded = picture.content[0] if picture.content else None
        return picture, judge_likeness(content, encoded, self.still_threshold)

    def hear(self, kept: Kept, sources: Mapping[str, Source], sound: AudioWindow) -> dict[str, Source]:
        """Run the stages that depend only on the audio window.

        Args:
            kept: The stream's state. The caller holds its lock ``decoding``.
            sources: The stages that have run, by name.
            sound: The audio window.

        Returns:
            ``sources`` with the window and these stages.
        """
        window = kept.inputs.setdefault("audio_window", KeptInput())
        kept.windows.add_if_new(sound.start_seconds, sound.samples[None])
        if not window.holds(values := kept.windows.values):
            window.put(kept.next_version(), values, {"waveform": stack_moments(values)})
        with_window = {**sources, "audio_window": window}
        return self._run(kept, self.program.sound_stages, with_window, bucket=self.bundle.sizes[0])

    def offer(self, kept: Kept, sources: Mapping[str, Source], cues: Cues) -> dict[str, Source]:
        """Run the stages that depend on the cues, but not on the picture.

        Args:
            kept: The stream's state. The caller holds its lock ``decoding``.
            sources: The stages that have run, by name.
            cues: The cues.

        Returns:
            ``sources`` with the cues and these stages.
        """
        offered = kept.inputs.setdefault("cues", KeptInput())
        if not offered.holds((cues.embeddings, cues.valid)):
            embeddings, valid = cues.embeddings.copy(), cues.valid.copy()
            tensors = {"cues": embeddings[None], "cue_valid": valid[None]}
            offered.put(kept.next_version(), (embeddings, valid), tensors)
        with_cues = {**sources, "cues": offered}
        return self._run(kept, self.program.query_stages, with_cues, bucket=self.bundle.sizes[0])

    def finish(self, kept: Kept, sources: Mapping[str, Source], bucket: ImageSize) -> dict[str, Source]:
        """Run the stages that depend on the picture and on another input.

        Args:
            kept: The stream's state. The caller holds its lock ``decoding``.
            sources: The stages that have run, by name.
            bucket: Size (height, width) of the encoder's input.

        Returns:
            ``sources`` with these stages.
        """
        return self._run(kept, self.program.mask_stages, sources, bucket=bucket)

    def _run(
        self, kept: Kept, stages: Sequence[Stage], sources: Mapping[str, Source], *, bucket: ImageSize, turn: int = 0
    ) -> dict[str, Source]:
        graphs = {stage.name: self._run_graph(kept, stage, bucket=bucket, turn=turn) for stage in stages}
        found: dict[str, Source] = {**sources, **graphs}
        engines = {
            stage.name: CachedStage(
                graphs[stage.name],
                partial(self._get_versions, found, stage),
                kept.next_version,
                partial(self._count, stage.name, kept.runs, self.runs),
            )
            for stage in stages
        }
        run_program(self.program, engines, {name: source.outputs for name, source in sources.items()}, stages=stages)
        return found

    @staticmethod
    def _get_versions(sources: Mapping[str, Source], stage: Stage) -> tuple[int, ...]:
        return tuple(sources[name].version for name in stage.inputs)

    def _run_graph(self, kept: Kept, stage: Stage, *, bucket: ImageSize, turn: int) -> KeptGraph:
        key = self.bundle.graph_at(stage.name, bucket), turn
        if key not in kept.graphs:
            kept.graphs[key] = KeptGraph(self.engine(key[0]))
        return kept.graphs[key]

    def _count(self, what: str, *counters: Counter[str]) -> None:
        with self._counting:  # += reads before it writes, and streams of other threads count here too
            for counter in counters:
                counter[what] += 1


def find_tensor(sources: Mapping[str, Source], name: str) -> tuple[Tensor, KeptGraph] | None:
    """Return the tensor of that name and the stage that computes it; None if no stage does."""
    for source in sources.values():
        if isinstance(source, KeptGraph) and name in source.outputs:
            return source.outputs[name], source
    return None


def find_masks(sources: Mapping[str, Source]) -> tuple[Tensor, KeptGraph]:
    """Return the class scores (1, C, h, w) and the stage that computes them.

    Raises :class:`BundleError` if no stage does.
    """
    found = find_tensor(sources, MASKS)
    if found is None:
        raise BundleError(f"no graph of the bundle's program gives {MASKS}: export the bundle again")
    return found

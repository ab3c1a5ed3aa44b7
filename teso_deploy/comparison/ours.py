"""A bundle as users run it: whole frames through the pipeline, and each graph by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.engine import Engine
from teso_deploy.backends.onnxruntime import TARGET, make_onnxruntime_factory
from teso_deploy.bundle import Bundle
from teso_deploy.labels import labels_of
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.preprocess import compute_fitted_size, normalise_picture, resize_picture
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.program import MASKS, Stage, group_inputs, merge_tensors, repeat_past, run_program
from teso_deploy.types import Precision
from teso_deploy.verification.parity import compare_masks
from teso_deploy.verification.probes import observe, read_reference

FRAMES, SOUNDS, CUES, PREPARED = 12, 40, 8, 4
#: Time between two audio windows: a hop, so that each window has another sound.
HOP_SECONDS = 0.24
#: Timed stages of a stream: a new frame, and a new sound or new cues for the same picture.
STREAM = ("frame", "new-sound", "new-cues")


class Ours:
    """A bundle's graphs in one precision at one size (height, width), on frames and sounds of a clip."""

    def __init__(
        self, bundle: Bundle, size: tuple[int, int], *, precision: Precision, threads: int, clip: Path
    ) -> None:
        self._bundle, self._size = bundle, size
        # Each stage has its own pipeline: otherwise it could reuse results of another stage. All share the engines.
        form = bundle.form_for((TARGET,), precision)
        self._engine: Callable[[Bundle, str], Engine] = cache(make_onnxruntime_factory(threads, form))
        with VideoSource(clip) as source:
            self._images = [moment.frame.image for moment in islice(source, FRAMES)]
            self._sounds = [source.track.window(HOP_SECONDS * i).samples for i in range(SOUNDS)]
        self._calls = self._all_calls()
        self.stages = tuple(self._calls)

    def run(self, stage: str, i: int) -> object:
        """See :class:`Subject`."""
        return self._calls[stage](i)

    def _all_calls(self) -> dict[str, Callable[[int], object]]:
        images, sounds, size = self._images, self._sounds, self._size
        how, threshold = self._bundle.manifest.preprocessing, self._bundle.manifest.postprocessing.threshold
        frame, new_sound, new_cues = (Pipeline(self._bundle, self._engine, size=size) for _ in STREAM)
        cues = [frame.cues_of([word]) for word in frame.cue_table.names[:CUES]] or [frame.cues_of(())]
        fitted = compute_fitted_size(images[0], size, how.fit)
        shares = fitted[0] / size[0], fitted[1] / size[1]
        program, engines = self._bundle.program, self._engines()

        def preprocess(i: int) -> NDArray[np.float32]:
            return normalise_picture(
                resize_picture(images[i % len(images)], fitted), mean=how.mean, std=how.std, bucket=size
            )

        prepared = [preprocess(i) for i in range(PREPARED)]
        given_pictures = [repeat_past(program, {"image": image}) for image in prepared]
        given_windows = [repeat_past(program, {"waveform": sound[None]}) for sound in sounds]
        first: dict[str, Any] = {**given_pictures[0], **given_windows[0]}
        first |= {"cues": cues[0].embeddings[None], "cue_valid": cues[0].valid[None]} if program.takes("cues") else {}
        slots = {name: engine.slot() for name, engine in engines.items()}
        given: dict[str, Mapping[str, Any]] = dict(group_inputs(first))
        found = run_program(program, slots, given)
        scores = merge_tensors(found)[MASKS].numpy()[0].copy()

        def alone(stage: Stage) -> Callable[[int], object]:
            """Return a call of one stage. Its pictures and sounds change from call to call, its other inputs do not."""
            fixed = {name: tensor for source in stage.inputs for name, tensor in found[source].items()}
            pictures = given_pictures if "image" in stage.inputs else [{}]
            windows = given_windows if "audio_window" in stage.inputs else [{}]
            feeds = [
                fixed | pictures[i % len(pictures)] | windows[i % len(windows)]
                for i in range(max(len(pictures), len(windows)))
            ]
            return lambda i: slots[stage.name].run(feeds[i % len(feeds)])

        return {
            "frame": lambda i: frame.segment(images[i % len(images)], sounds[i % len(sounds)], cues[i % len(cues)]),
            "new-sound": lambda i: new_sound.segment(images[0], sounds[i % len(sounds)], cues[0]),
            "new-cues": lambda i: new_cues.segment(images[0], sounds[0], cues[i % len(cues)]),
            "preprocess": preprocess,
            **{stage.name: alone(stage) for stage in program.stages},
            "postprocess": lambda i: labels_of(scores, images[0].shape[:2], threshold=threshold, shares=shares),
        }

    def _engines(self) -> dict[str, Engine]:
        bundle = self._bundle
        return {name: self._engine(bundle, bundle.graph_at(name, self._size)) for name in bundle.program.names}

    def mask_iou(self) -> float:
        """Return the IoU with PyTorch's masks in the worst frame. Each graph gets the outputs of the one before it."""
        reference = read_reference(self._bundle, self._size)
        masks = observe(self._bundle.program, self._engines(), reference).masks
        return compare_masks(masks, reference[MASKS], self._bundle.manifest.postprocessing.threshold)[0]


def ours(settings: dict[str, Any]) -> Ours:
    """The subject for ``bundle``, ``size``, ``precision``, ``threads`` and ``clip``."""
    height, width = settings["size"]
    bundle = Bundle.open(settings["bundle"])
    return Ours(
        bundle,
        (height, width),
        precision=settings["precision"],
        threads=settings["threads"],
        clip=Path(settings["clip"]),
    )

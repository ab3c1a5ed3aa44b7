"""Do these engines still compute what PyTorch did, and do they still obey the sound?

Parity is judged in order of severity: masks (what a user sees) → cosine → largest error.
The audio control runs on the reference's picture: muted, with the sound of another
object, without cues; and, for a trained bundle only, silence and noise must leave it blank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.engine import Engine, EngineFactory
from teso_deploy.bundle import REFERENCE, Bundle
from teso_deploy.errors import BundleError
from teso_deploy.runtime.postprocess import labels_of
from teso_deploy.types import BLANK_PIXEL_RATE, WINDOW_SAMPLES, Precision

Arrays = Mapping[str, NDArray[Any]]
NOISE_DBFS = (-40, -25, -10)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The least agreement that passes. fp32: what two right implementations differ by."""

    pixel_agreement: float = 0.999
    mask_iou: float = 0.995
    cosine: float = 0.9999
    max_abs_error: float = 5e-3


FP32 = Thresholds()
#: The least agreement by the precision of the form. What an encoder's features differ by says little: int8
#: and half are judged on masks and directions.
THRESHOLDS: Mapping[Precision, Thresholds] = {
    "fp32": FP32,
    "fp16": Thresholds(0.99, 0.98, 0.999, 1.0),
    "bf16": Thresholds(0.98, 0.95, 0.995, 10.0),
    "int8": Thresholds(0.98, 0.95, 0.99, 10.0),
}


@dataclass(frozen=True, slots=True)
class GraphParity:
    """One graph against the reference; mask figures are the decoder's only."""

    cosine: float
    max_abs_error: float
    mask_iou: float | None = None
    pixel_agreement: float | None = None

    def failure(self, limits: Thresholds) -> str | None:
        """The most severe figure that misses its threshold, in words."""
        figures = (
            ("pixel agreement", self.pixel_agreement, limits.pixel_agreement, 1),
            ("mask IoU", self.mask_iou, limits.mask_iou, 1),
            ("cosine", self.cosine, limits.cosine, 1),
            ("largest error", self.max_abs_error, limits.max_abs_error, -1),
        )
        for name, value, limit, sign in figures:
            if value is not None and not sign * value >= sign * limit:  # NaN fails
                return f"{name} {value:.6g}, {'at least' if sign > 0 else 'at most'} {limit:g} is needed"
        return None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Parity of each graph, and the audio control's share of labelled pixels by sound."""

    backend: str
    graphs: dict[str, GraphParity]
    positive_pixel_rate: dict[str, float] = field(default_factory=dict)
    must_be_blank: tuple[str, ...] = ()
    limits: Thresholds = FP32

    @property
    def failures(self) -> list[str]:
        """Everything that failed, the most severe first."""
        found = [f"{name}: {reason}" for name, parity in self.graphs.items() if (reason := parity.failure(self.limits))]
        for name in self.must_be_blank:
            if self.positive_pixel_rate[name] >= BLANK_PIXEL_RATE:
                found.append(
                    f"audio control: {name} leaves {self.positive_pixel_rate[name]:.1%} of the pixels labelled"
                )
        return found

    @property
    def first_failure(self) -> str:
        """The first failure, or nothing."""
        return self.failures[0] if self.failures else ""

    @property
    def passed(self) -> bool:
        """True when nothing failed."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``graphs.{name}.{backend}``, ``audio_control``, ``passed``."""
        return {
            "schema_version": 1,
            "graphs": {
                name: {
                    self.backend: {
                        "mask_iou": parity.mask_iou,
                        "pixel_agreement": parity.pixel_agreement,
                        "cosine": parity.cosine,
                        "max_abs_error": parity.max_abs_error,
                        "passed": parity.failure(self.limits) is None,
                    }
                }
                for name, parity in self.graphs.items()
            },
            "audio_control": {
                "positive_pixel_rate": self.positive_pixel_rate,
                "must_be_blank": list(self.must_be_blank),
            },
            "passed": self.passed,
            "failures": self.failures,
        }


def compare(ours: NDArray[Any], reference: NDArray[Any]) -> tuple[float, float]:
    """Cosine and largest absolute error of two tensors of equal shape."""
    if ours.shape != reference.shape:
        return float("nan"), float("nan")
    a, b = ours.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norm if norm else float(np.array_equal(a, b))
    return cosine, float(np.abs(a - b).max(initial=0.0))


def compare_masks(ours: NDArray[Any], reference: NDArray[Any], threshold: float) -> tuple[float, float]:
    """Mean IoU and share of equal pixels of the labels, at four times the size of the scores."""
    size = (reference.shape[2] * 4, reference.shape[3] * 4)
    ious, equal = [], []
    for a, b in zip(ours, reference, strict=True):
        left, right = labels_of(a, size, threshold), labels_of(b, size, threshold)
        union = np.count_nonzero((left > 0) | (right > 0))
        ious.append(np.count_nonzero((left == right) & (left > 0)) / union if union else 1.0)
        equal.append(float((left == right).mean()))
    return float(np.mean(ious)), float(np.mean(equal))


def _repeated(memory: Arrays, names: tuple[str, ...], count: int) -> dict[str, NDArray[Any]]:
    return {name: np.repeat(memory[name], count, axis=0) for name in names}


def _parity(engine: Engine, feeds: Arrays, reference: Arrays, threshold: float) -> GraphParity:
    ours = engine.run(feeds)
    figures = [compare(ours[name], reference[name]) for name in engine.outputs]
    masks = compare_masks(ours["masks"], reference["masks"], threshold) if "masks" in ours else (None, None)
    return GraphParity(
        float(np.min([cosine for cosine, _ in figures])), float(np.max([error for _, error in figures])), *masks
    )


def _at_size(reference: Arrays, graph: str) -> dict[str, NDArray[Any]]:
    """The reference as a graph sees it: of its bucket (``decoder@288x512``), what depends on the size."""
    suffix = f"@{graph.partition('@')[2]}"
    sized = {name.removesuffix(suffix): value for name, value in reference.items() if name.endswith(suffix)}
    return {**reference, **sized}


def verify_bundle(
    bundle: Bundle, factory: EngineFactory, limits: Thresholds = FP32, with_audio_control: bool = True
) -> VerifyReport:
    """Every graph of a bundle, at every picture size, against its ``reference.npz``, then the audio control.

    Raises :class:`BundleError` when the bundle has no reference.
    """
    reference = bundle.arrays(REFERENCE)
    engines = {name: factory(bundle, name) for name in bundle.manifest.graphs}
    threshold = bundle.manifest.postprocessing.threshold
    rows = len(reference["waveform"])
    memory_names = engines["visual_encoder"].outputs
    graphs = {}
    for name, engine in engines.items():
        expected = _at_size(reference, name)
        is_decoder = name.partition("@")[0] == "decoder"
        if is_decoder and (absent := set(memory_names) - expected.keys()):
            raise BundleError(f"{bundle.folder}: reference.npz lacks {sorted(absent)[0]}; export the bundle again")
        feeds = {**expected, **_repeated(expected, memory_names, rows)} if is_decoder else expected
        if missing := set(engine.inputs) - feeds.keys():
            raise BundleError(f"{bundle.folder}: reference.npz lacks {sorted(missing)[0]}; export the bundle again")
        graphs[name] = _parity(engine, feeds, expected, threshold)
    report = VerifyReport(engines["decoder"].backend, graphs, limits=limits)
    if not with_audio_control:
        return report
    rates = audio_control(engines, reference, threshold)
    blank = tuple(name for name in rates if name.startswith(("muted", "noise"))) if bundle.manifest.trained else ()
    return VerifyReport(report.backend, graphs, rates, blank, limits)


def audio_control(engines: Mapping[str, Engine], reference: Arrays, threshold: float) -> dict[str, float]:
    """Share of labelled pixels on the reference's picture, with its cues, by what is heard."""
    rng = np.random.default_rng(0)
    sounds = {"own": reference["waveform"][0], "other": reference["waveform"][2]}
    sounds["muted"] = np.zeros(WINDOW_SAMPLES, np.float32)
    for level in NOISE_DBFS:
        noise = rng.standard_normal(WINDOW_SAMPLES) * 10 ** (level / 20)
        sounds[f"noise {level} dBFS"] = noise.clip(-1, 1).astype(np.float32)
    waveform = np.stack(list(sounds.values()))
    cues = {name: np.repeat(reference[name][:1], len(sounds), axis=0) for name in ("cues", "cue_valid")}
    memory = engines["visual_encoder"].run({"image": reference["image"]})
    audio = engines["audio_encoder"].run({"waveform": waveform})
    queries = engines["fusion"].run({**audio, **cues})
    repeated = _repeated(memory, engines["visual_encoder"].outputs, len(sounds))
    masks = engines["decoder"].run({**repeated, **queries})["masks"]
    size = (masks.shape[2] * 4, masks.shape[3] * 4)
    return {
        name: float(np.count_nonzero(labels_of(scores, size, threshold))) / (size[0] * size[1])
        for name, scores in zip(sounds, masks, strict=True)
    }

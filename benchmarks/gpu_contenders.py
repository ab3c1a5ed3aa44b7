"""The contenders of ``gpu_engines.py``: six steps from frames in host memory to labels in host memory, on one GPU.

Each contender is built in a worker process (:mod:`teso_deploy.comparison.worker`). So a library that crashes does not
end the others, and the GPU memory of a process belongs to one contender. ``gpu_torch.py`` has the contenders in torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.precisions import agreement
from teso_deploy.backends.contracts import OperatorsFactory
from teso_deploy.backends.cuda.device import Device, Event, Module
from teso_deploy.backends.cuda.kernels import Postprocess, Preprocess, load_kernels
from teso_deploy.backends.cuda.opening import open_device
from teso_deploy.backends.cuda.plans import Labels, RgbPictures, Scores
from teso_deploy.backends.cuda.tensors import DeviceTensor, HostInput
from teso_deploy.backends.engine import EngineFactory
from teso_deploy.backends.onnxruntime_cuda import DTYPES
from teso_deploy.bundle import Bundle
from teso_deploy.cues.table import CueTable
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.preprocess import compute_fitted_size
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.program import TESO
from teso_deploy.resources import cache_folder, find_shipped_path
from teso_deploy.types import BLANK_PIXEL_RATE, Cues, ImageSize

#: How many frames of the clip are timed and checked; a multiple of every batch.
FRAMES = 32
STEPS = ("preprocess", *TESO.names, "labels")
#: Stage → its steps: all steps, only a new sound, only new cues, and each step alone.
STAGES: Mapping[str, tuple[str, ...]] = {
    "frame": STEPS,
    "new-sound": STEPS[STEPS.index("audio_encoder") :],
    "new-cues": STEPS[STEPS.index("fusion") :],
    **{step: (step,) for step in STEPS},
}
#: Only for our engines at batch 1: the frame through :class:`Pipeline`, which also checks whether anything has changed.
PIPELINE = "pipeline"
Uint8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Given:
    """A batch: ``frames`` (B, H, W, 3) uint8, and the graphs' other inputs by name."""

    frames: Uint8
    feeds: dict[str, NDArray[Any]]


class Chain(Protocol):
    """A contender. Each step uses the result of the step before it."""

    labels: Uint8

    def step(self, name: str, given: Given) -> None:
        """Queue one of :data:`STEPS`. After "labels", :attr:`labels` (B, H, W) are valid."""

    def wait(self) -> None:
        """Wait until everything that was queued has run."""


def visible_cues(bundle: Bundle) -> Cues:
    """Return cues for the visible objects of the shipped clip, as far as the bundle has words for them."""
    table = CueTable.open(bundle)
    visible = json.loads(find_shipped_path("export/demo/clip.json").read_text(encoding="utf-8"))["visible"]
    return table.lookup([word for word in visible if word in table.names])


def batches_of(bundle: Bundle, batch: int, frames: int = FRAMES) -> list[Given]:
    """Make batches of frames from all parts of the shipped clip, with their sounds and :func:`visible_cues`."""
    with VideoSource(find_shipped_path("export/demo/clip.mp4")) as source:
        moments = list(source)
    chosen = [moments[i] for i in np.linspace(0, len(moments) - 1, frames).astype(int)]
    cues, found = visible_cues(bundle), []
    for start in range(0, frames, batch):
        part = chosen[start : start + batch]
        feeds: dict[str, NDArray[Any]] = {
            "waveform": np.stack([moment.sound.samples for moment in part]),
            "cues": np.repeat(cues.embeddings[None], len(part), axis=0),
            "cue_valid": np.repeat(cues.valid[None], len(part), axis=0),
        }
        found.append(Given(np.stack([moment.frame.image for moment in part]), feeds))
    return found


def segmented(chain: Chain, batches: Sequence[Given], is_muted: bool = False) -> list[Uint8]:
    """Return the labels of every frame."""
    found: list[Uint8] = []
    for given in batches:
        heard = given.feeds | ({"waveform": np.zeros_like(given.feeds["waveform"])} if is_muted else {})
        for step in STEPS:
            chain.step(step, Given(given.frames, heard))
        chain.wait()
        found += list(chain.labels.copy())
    return found


def blank_rate(labels: Sequence[Uint8]) -> float:
    """Return the share of frames with less than 0.2 % labelled pixels."""
    return float(np.mean([np.count_nonzero(one) < BLANK_PIXEL_RATE * one.size for one in labels]))


class EngineChain:
    """A bundle's engines with our operators before and after them; see :class:`Chain`."""

    def __init__(
        self, bundle: Bundle, size: ImageSize, *, factory: EngineFactory, device: Device, module: Module, frames: Uint8
    ) -> None:
        """``frames`` has the shape of every batch."""
        batch, how, self._shown = len(frames), bundle.manifest.preprocessing, (frames.shape[1], frames.shape[2])
        self._bucket, self._fitted = size, compute_fitted_size(frames[0], size, how.fit)
        self._shares = self._fitted[0] / size[0], self._fitted[1] / size[1]
        self._stream = device.stream()
        self._preprocess = Preprocess(device, module, mean=how.mean, std=how.std)
        self._postprocess = Postprocess(device, module, bundle.manifest.postprocessing.threshold)
        self._frames = HostInput(device, frames.shape, np.uint8, stream=self._stream)
        self._image = DeviceTensor(device, (batch, 3, *size), np.float32)
        self._labels = DeviceTensor(device, (batch, *self._shown), np.uint8)
        self._slots = {graph: factory(bundle, bundle.graph_at(graph, size)).slot() for graph in TESO.names}
        self._held: dict[str, Any] = {"image": self._image}
        self._last: Event | None = None
        self.labels = np.empty((0, *self._shown), np.uint8)

    def step(self, name: str, given: Given) -> None:
        """See :meth:`Chain.step`."""
        if name == "preprocess":
            pictures = RgbPictures(self._frames.fill(given.frames).pointer, self._shown, batch=len(given.frames))
            self._image.wait_unread(self._stream)
            self._preprocess(
                pictures, self._image.pointer, bucket=self._bucket, stream=self._stream, fitted=self._fitted
            )
            self._image.ready = self._last = self._stream.record()
        elif name == "labels":
            self.labels = self._labelled(self._held["masks"])
        else:
            outputs = self._slots[name].run({**given.feeds, **self._held})
            self._held |= outputs
            first = next(iter(outputs.values()))
            self._last = first.ready if isinstance(first, DeviceTensor) else None  # ONNX Runtime has waited already

    def _labelled(self, masks: Any) -> Uint8:
        if isinstance(masks, DeviceTensor):
            masks.wait_ready(self._stream)
            scores = Scores(masks.pointer, masks.shape, masks.dtype)  # type: ignore[arg-type]
        else:
            scores = Scores(masks.data_ptr(), tuple(masks.shape()), DTYPES[masks.data_type()])
        self._postprocess(scores, Labels(self._labels.pointer, self._shown), self._stream, shares=self._shares)
        self._labels.ready = self._last = done = self._stream.record()
        if isinstance(masks, DeviceTensor):
            masks.read_until(id(self), done)
        return self._labels.numpy()

    def notes(self) -> list[str]:
        """Why graphs are launched kernel by kernel, if they are."""
        return [note for slot in self._slots.values() if (note := getattr(slot, "note", None))]

    def wait(self) -> None:
        """See :meth:`Chain.wait`."""
        if self._last is not None:
            self._last.synchronize()


class Runner:
    """A subject, see :class:`teso_deploy.comparison.worker.Subject`. ``more``: stages in addition to :data:`STAGES`."""

    def __init__(
        self,
        chain: Chain,
        batches: Sequence[Given],
        *,
        mask_iou: float | None,
        more: Mapping[str, Callable[[int], object]] | None = None,
    ) -> None:
        self._chain, self._batches, self._mask_iou, self._more = chain, batches, mask_iou, more or {}
        self.stages = (*STAGES, *self._more)

    def run(self, stage: str, i: int) -> None:
        """Run a stage, see :class:`Subject`. The GPU has finished when it returns."""
        if stage in self._more:
            self._more[stage](i)
            return
        for step in STAGES[stage]:
            self._chain.step(step, self._batches[i % len(self._batches)])
        self._chain.wait()

    def mask_iou(self) -> float | None:
        """Return the IoU with the masks of fp32 on the CPU, see :class:`Subject`."""
        return self._mask_iou


# ------------------------------------------------------------------------------------------------ the GPU


def _visible_gpu(nvml: Any) -> Any:
    """Return NVML's handle of the GPU that CUDA numbers 0."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return nvml.nvmlDeviceGetHandleByIndex(int(first or 0))


def asked_nvml(questions: Mapping[str, Callable[[Any, Any], Any]]) -> dict[str, Any]:
    """Return name → the answer to a query on (pynvml, handle). Queries that NVML does not support are omitted."""
    found: dict[str, Any] = {}
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = _visible_gpu(pynvml)
    except Exception:  # absent, or an NVML exception, which has no base class in common with those of ctypes
        return found
    for name, ask in questions.items():
        try:
            answer = ask(pynvml, handle)
        except Exception:
            continue
        found[name] = answer.decode() if isinstance(answer, bytes) else answer
    pynvml.nvmlShutdown()
    return found


def used_gpu_bytes() -> int | None:
    """Return the GPU memory of all processes in bytes; None if NVML does not report it."""
    used = asked_nvml({"used": lambda nvml, handle: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)}).get("used")
    return None if used is None else int(used)


def write_facts(settings: Mapping[str, Any], used_before_bytes: int | None, **facts: Any) -> None:
    """Write facts next to the timings: how much GPU memory the process has taken so far."""
    after = used_gpu_bytes()
    held = None if after is None or used_before_bytes is None else round((after - used_before_bytes) / 1e6)
    Path(settings["facts"]).write_text(json.dumps({"gpu_memory_mb": held, **facts}), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ builders


def _rtx_factory(device: Device, settings: Mapping[str, Any]) -> EngineFactory:
    """Make engines of TensorRT-RTX, for one generation or portable, on whatever GPU exists. The library may refuse."""
    from teso_deploy.backends.tensorrt.bindings import load_library
    from teso_deploy.backends.tensorrt.cache import EngineCache, compute_content_key
    from teso_deploy.backends.tensorrt.engine import TensorRTEngine
    from teso_deploy.backends.tensorrt.jit_cache import JitCache
    from teso_deploy.backends.tensorrt.making import find_source, make_engine
    from teso_deploy.backends.tensorrt.profiles import load_profile
    from teso_deploy.backends.tensorrt.sidecar import get_sidecar_path, read_engine

    library, profile, architecture = load_library("tensorrt-rtx"), settings["profile"], settings["architecture"]
    store = EngineCache(cache_folder("bench-engines"))

    def make(bundle: Bundle, graph: str) -> TensorRTEngine:
        source = find_source(bundle, graph, settings["precision"])
        parts = {"graph": source.sha256, "library": library.version, "profile": load_profile(profile).model_dump()}
        path = store.path(
            graph, compute_content_key(parts | {"architecture": architecture, "precision": source.precision})
        )
        with store.lock(path):
            if not get_sidecar_path(path).is_file():
                make_engine(library, source, load_profile(profile), path=path, architecture=architecture)
        content, sidecar = read_engine(path)
        jit = JitCache(path.with_suffix(".jit"))
        return TensorRTEngine(library, device, content, sidecar=sidecar, form=source.form, jit_cache=jit)

    return make


def engines_of(bundle: Bundle, device: Device, settings: Mapping[str, Any]) -> EngineFactory:
    """Return the engines of a contender. Raises the errors of :func:`load_backend`."""
    if settings["backend"] == "tensorrt-rtx":
        return _rtx_factory(device, settings)
    from teso_deploy.pipeline.backend_choice import load_backend

    profile = settings["profile"] if settings["backend"] == "tensorrt" else None
    return load_backend(settings["backend"], bundle, settings["precision"], profile=profile).engines


def ours(settings: dict[str, Any]) -> Runner:
    """Build one of our contenders, check its masks, and report its memory."""
    from teso_deploy.backends.cuda.operators import DeviceOperators

    used_before = used_gpu_bytes()
    bundle, device, size = Bundle.open(settings["bundle"]), open_device(), (settings["size"][0], settings["size"][1])
    module, factory = load_kernels(device), engines_of(bundle, device, settings)
    return engine_runner(
        bundle,
        size,
        factory=factory,
        device=device,
        module=module,
        operators=lambda of: DeviceOperators(device, module, of),
        settings=settings,
        used_before=used_before,
    )


def engine_runner(
    bundle: Bundle,
    size: ImageSize,
    *,
    factory: EngineFactory,
    device: Device,
    module: Module,
    operators: OperatorsFactory,
    settings: dict[str, Any],
    used_before: int | None,
) -> Runner:
    """The part of :func:`ours` that is independent of the GPU.

    ``settings["expected"]`` is the file of the CPU's labels (N, H, W).
    """
    expected = list(np.load(settings["expected"]))
    batches = batches_of(bundle, settings["batch"], len(expected))
    chain = EngineChain(bundle, size, factory=factory, device=device, module=module, frames=batches[0].frames)
    found = segmented(chain, batches)
    muted = blank_rate(segmented(chain, batches, is_muted=True)) if bundle.manifest.trained else None
    write_facts(settings, used_before, muted_blank_rate=muted, no_cuda_graph="; ".join(chain.notes()) or None)
    more: dict[str, Callable[[int], object]] = {}
    if settings["batch"] == 1:
        pipeline, cues = Pipeline(bundle, factory, size=size, operators=operators), visible_cues(bundle)

        def whole(i: int) -> object:
            given = batches[i % len(batches)]
            return pipeline.segment(given.frames[0], given.feeds["waveform"][0], cues)

        more[PIPELINE] = whole
    return Runner(chain, batches, mask_iou=agreement(found, expected)["mask_iou"], more=more)

"""The package's own model in PyTorch, as a contender of ``gpu_engines.py``: eager, compiled, in CUDA graphs.

Weights are random, because no time depends on them. Half precision uses autocast: the log-mel, softmax and sampling
positions do not survive half weights. The weights of products and convolutions are stored in half nevertheless, because
autocast would otherwise cast each of them again in every run. TF32 is off, as in our engines, and cuDNN chooses its
algorithms by timing them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from benchmarks.gpu_contenders import STEPS, Given, Runner, Uint8, batches_of, segmented, used_gpu_bytes, write_facts
from teso_deploy.bundle import Bundle
from teso_deploy.errors import BundleError, DeviceError
from teso_deploy.models.assembly import assemble
from teso_deploy.models.graphs import list_graph_specs, make_graph_modules
from teso_deploy.models.teso import Teso, require_teso
from teso_deploy.types import ImageSize

#: How the model is run → the mode of torch.compile; None: without torch.compile.
COMPILED: Mapping[str, str | None] = {"compile": "default", "max-autotune": "max-autotune-no-cudagraphs"}
#: Runs before a graph is recorded. They set up what must not be part of the recording.
WARM_UPS = 3
#: How many frames are compared with the CPU.
COMPARED = 2


class SameConstants(TorchFunctionMode):
    """Caches tensors of equal numbers: a copy from the host can't be part of a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Any, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch."""
        named = kwargs or {}
        if func is not torch.tensor and func is not torch.Tensor.new_tensor:
            return func(*args, **named)
        numbers = args[0] if func is torch.tensor else args[1]
        like = None if func is torch.tensor else (args[0].dtype, args[0].device)
        array = np.asarray(numbers)
        key = (array.shape, array.dtype.str, array.tobytes(), like, repr(named))
        if key not in self._made:
            self._made[key] = func(*args, **named)
        return self._made[key]


def steps_of(
    model: Teso, bundle: Bundle, *, size: ImageSize, shown: ImageSize, device: torch.device
) -> dict[str, Callable[..., Any]]:
    """Return each step as a function of tensors. Resizing and labels are written in the usual PyTorch way."""
    how, threshold = bundle.manifest.preprocessing, bundle.manifest.postprocessing.threshold
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (how.mean, how.std))

    def preprocess(frames: Tensor) -> Tensor:
        image = F.interpolate(
            frames.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True, align_corners=False
        )
        return (image - mean) / std

    def labels(masks: Tensor) -> Tensor:
        best, label = F.interpolate(masks, shown, mode="bilinear", align_corners=False).max(dim=1)
        return torch.where(best >= threshold, label + 1, 0).to(torch.uint8)

    return {"preprocess": preprocess, **make_graph_modules(model), "labels": labels}


def names_of(model: Teso) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the names of each step's inputs and outputs."""
    graphs = {name: (spec.inputs, spec.outputs) for name, spec in list_graph_specs(model.recipe).items()}
    return {"preprocess": (("frames",), ("image",)), **graphs, "labels": (("masks",), ("labels",))}


def halve(model: nn.Module) -> None:
    """Cast once the weights that autocast would cast in every run."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d):
            module.half()


class TorchChain:
    """A :class:`Chain` in torch. ``how``: "eager", one of :data:`COMPILED`, or "cuda-graph"."""

    def __init__(
        self, model: Teso, bundle: Bundle, *, size: ImageSize, first: Given, how: str, precision: str, where: str
    ):
        self._how, self._is_half, self._device = how, precision == "fp16", torch.device(where)
        shown = first.frames.shape[1], first.frames.shape[2]
        self._steps, self._names = steps_of(model, bundle, size=size, shown=shown, device=self._device), names_of(model)
        if how in COMPILED:
            self._steps = {
                name: torch.compile(step, dynamic=False, mode=COMPILED[how]) for name, step in self._steps.items()
            }
        given = {"frames": first.frames, **first.feeds}
        on_gpu = self._device.type == "cuda"
        staging = {name: torch.empty_like(torch.from_numpy(value)) for name, value in given.items()}
        # Page-locked, as in our engines: copies from other memory make the host wait.
        self._staging = {name: value.pin_memory() if on_gpu else value for name, value in staging.items()}
        self.held = {name: torch.zeros_like(value, device=self._device) for name, value in staging.items()}
        labels = torch.empty(first.frames.shape[:3], dtype=torch.uint8)
        self._fetched = labels.pin_memory() if on_gpu else labels
        self.labels: Uint8 = self._fetched.numpy()
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}
        self._constants = SameConstants()  # kept, because the graphs read them
        if how == "cuda-graph":
            self._record(first)

    def _run(self, name: str) -> None:
        inputs, outputs = self._names[name]
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.float16, enabled=self._is_half, cache_enabled=False),
        ):
            found = self._steps[name](*(self.held[one] for one in inputs))
        self.held.update(zip(outputs, found if isinstance(found, tuple) else (found,), strict=True))

    def _record(self, first: Given) -> None:
        self._upload("preprocess", first)
        for name in ("audio_encoder", "fusion"):
            self._upload(name, first)
        side = torch.cuda.Stream()
        with self._constants, ExitStack() as stack:
            side.wait_stream(torch.cuda.current_stream())
            stack.enter_context(torch.cuda.stream(side))
            for name in STEPS:
                for _ in range(WARM_UPS):
                    self._run(name)
                side.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=side):
                    self._run(name)
                self._graphs[name] = graph
                graph.replay()  # the next stage's name begins with digits
        torch.cuda.synchronize()

    def _upload(self, name: str, given: Given) -> None:
        values = {"frames": given.frames, **given.feeds}
        for one in self._names[name][0]:
            if one in self._staging:
                self._staging[one].copy_(torch.from_numpy(values[one]))
                self.held[one].copy_(self._staging[one], non_blocking=True)

    def step(self, name: str, given: Given) -> None:
        """See :meth:`Chain.step`."""
        self._upload(name, given)
        if name in self._graphs:
            self._graphs[name].replay()
        else:
            self._run(name)
        if name == "labels":
            self._fetched.copy_(self.held["labels"], non_blocking=True)
            self.wait()

    def wait(self) -> None:
        """See :meth:`Chain.wait`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def masks(self, given: Given) -> NDArray[np.float32]:
        """Return the class scores (B, C, h, w) of a batch."""
        for name in STEPS[:-1]:
            self.step(name, given)
        found: NDArray[np.float32] = self.held["masks"].float().cpu().numpy()
        return found


def scores_agree(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the IoU of the places where each class is above its median on the CPU.

    With random weights, no fixed threshold has a meaning.
    """
    centre = np.median(expected, axis=(0, 2, 3), keepdims=True)
    left, right = found > centre, expected > centre
    either = int(np.count_nonzero(left | right))
    return int(np.count_nonzero(left & right)) / either if either else 1.0


def ours_in_torch(settings: dict[str, Any]) -> Runner:
    """Build the model of the bundle's recipe, compare its masks with the CPU, and report its memory."""
    where = settings.get("device", "cuda")
    if where == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"torch {torch.__version__} sees no GPU: install one that is built for CUDA")
    used_before = used_gpu_bytes()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    bundle, size = Bundle.open(settings["bundle"]), (settings["size"][0], settings["size"][1])
    if bundle.manifest.preprocessing.fit != "stretch":
        raise BundleError(f"bundle {bundle.manifest.name} pads its pictures, which is not written in PyTorch here")
    model = require_teso(assemble(bundle.recipe, (), random_weights_seed=0).model)
    batches = batches_of(bundle, settings["batch"], settings["frames"])
    few = Given(batches[0].frames[:COMPARED], {name: value[:COMPARED] for name, value in batches[0].feeds.items()})
    expected = TorchChain(model, bundle, size=size, first=few, how="eager", precision="fp32", where="cpu").masks(few)
    model.to(where)
    if settings["precision"] == "fp16":
        halve(model)
    chain = TorchChain(
        model, bundle, size=size, first=batches[0], how=settings["how"], precision=settings["precision"], where=where
    )
    found = chain.masks(batches[0])[:COMPARED]
    segmented(chain, batches[:1])
    peak = torch.cuda.max_memory_allocated() / 1e6 if where == "cuda" else None
    write_facts(settings, used_before, torch_peak_mb=None if peak is None else round(peak))
    return Runner(chain, batches, mask_iou=scores_agree(found, expected))

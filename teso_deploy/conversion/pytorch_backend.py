"""The backend `pytorch`: the stages of a bundle by the modules that its graphs were exported from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from teso_deploy.backends.contracts import Backend, BackendRequest
from teso_deploy.backends.engine import Tensor
from teso_deploy.bundle import Bundle
from teso_deploy.conversion.pytorch_engine import ModuleEngine, wrap_modules
from teso_deploy.conversion.restoring import restore_model
from teso_deploy.models.methods import Model

NAME = "pytorch"


class _Output:
    """An output of a module. It stays on its device until it is read."""

    def __init__(self) -> None:
        self.value = torch.empty(0)

    def numpy(self) -> NDArray[Any]:
        """Return the content on the host."""
        array: NDArray[Any] = self.value.cpu().numpy()
        return array


class _ModuleSlot:
    """The outputs of one module (:class:`~teso_deploy.backends.engine.Slot`)."""

    def __init__(self, engine: PyTorchStage) -> None:
        self._engine = engine
        self._outputs = {name: _Output() for name in engine.outputs}

    def run(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> Mapping[str, Tensor]:
        """Run the module."""
        for name, value in self._engine.compute(feeds).items():
            self._outputs[name].value = value
        return self._outputs


class PyTorchStage:
    """A module in eval mode as an :class:`~teso_deploy.backends.engine.Engine`.

    Args:
        name: The graph's name in the manifest.
        engine: The module, for PyTorch's tensors.
        device: The device that its weights are on.
    """

    backend, precision, form = NAME, "fp32", None

    def __init__(self, name: str, engine: ModuleEngine, device: torch.device) -> None:
        self.name, self._engine, self._device = name, engine, device
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.is_asynchronous = device.type != "cpu"

    @torch.inference_mode()
    def compute(self, feeds: Mapping[str, NDArray[Any] | Tensor]) -> dict[str, torch.Tensor]:
        """Compute all outputs, on the device."""
        given = (feeds[name] for name in self.inputs)
        tensors = (
            value.value if isinstance(value, _Output) else torch.tensor(value, device=self._device) for value in given
        )
        return self._engine.run(dict(zip(self.inputs, tensors, strict=True)))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the module on the inputs by name and return its outputs. Other names are ignored."""
        return {name: value.cpu().numpy() for name, value in self.compute(feeds).items()}

    def slot(self) -> _ModuleSlot:
        """Make a slot. It shares only the weights with the engine's other slots."""
        return _ModuleSlot(self)


def wrap_model(model: Model, *, device: torch.device | None = None) -> Callable[[Bundle, str], PyTorchStage]:
    """Return a factory of engines that run a model's modules.

    On a GPU, cuDNN's convolutions no longer round to TF32 in the whole process, as they do by default.

    Args:
        model: The model, which is moved to the device.
        device: Where it runs. Default: a GPU if PyTorch finds one, otherwise the CPU.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cpu":
        # Not by `cudnn.flags(allow_tf32=False)`, which also turns cuDNN off, and is not safe with several threads.
        torch.backends.cudnn.allow_tf32 = False
    stages = wrap_modules(model.to(device))

    def make_engine(bundle: Bundle, graph: str) -> PyTorchStage:
        return PyTorchStage(graph, stages[bundle.program.stage_of(graph).name], device)

    return make_engine


def set_threads(threads: int | None) -> None:
    """Set the number of threads that PyTorch uses in this process. None: keep what it chose."""
    if threads is not None:
        torch.set_num_threads(threads)


def load_pytorch(request: BackendRequest) -> Backend:
    """Load the backend: the modules of a bundle's recipe, with the weights of its canonical graphs.

    ``threads`` sets the threads of PyTorch in the whole process.

    Raises :class:`BundleError` if the weights can't be read back.
    """
    set_threads(request.threads)
    request.on_progress("reading the weights of the graphs")
    engines = wrap_model(restore_model(request.bundle))
    return Backend(engines)

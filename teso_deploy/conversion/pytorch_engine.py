"""The graphs in PyTorch, run like engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from teso_deploy.models.methods import GraphSpec, Model, find_method


class ModuleEngine:
    """A module as :class:`teso_deploy.program.Runs`: it takes and returns PyTorch's tensors."""

    def __init__(self, module: nn.Module, spec: GraphSpec) -> None:
        self._module, self.inputs, self.outputs = module, spec.inputs, spec.outputs

    def run(self, feeds: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Compute all outputs from all inputs."""
        found = self._module(*(feeds[name] for name in self.inputs))
        values = found if isinstance(found, tuple) else (found,)
        return dict(zip(self.outputs, values, strict=True))


class PyTorchEngine:
    """A module as :class:`teso_deploy.verification.probes.Runs`: it takes and returns arrays."""

    precision = "fp32"

    def __init__(self, module: nn.Module, spec: GraphSpec) -> None:
        self._engine, self.inputs, self.outputs = ModuleEngine(module, spec), spec.inputs, spec.outputs

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute all outputs from all inputs."""
        found = self._engine.run({name: torch.from_numpy(feeds[name]) for name in self.inputs})
        return {name: value.numpy() for name, value in found.items()}


def wrap_modules(model: Model) -> dict[str, ModuleEngine]:
    """Wrap every graph of a model as an engine for PyTorch's tensors."""
    method = find_method(model.recipe)
    modules = method.get_graph_modules(model)
    return {name: ModuleEngine(modules[name], spec) for name, spec in method.list_graph_specs(model.recipe).items()}


def make_pytorch_engines(model: Model) -> dict[str, PyTorchEngine]:
    """Wrap every graph of a model as an engine for arrays."""
    method = find_method(model.recipe)
    modules = method.get_graph_modules(model)
    return {name: PyTorchEngine(modules[name], spec) for name, spec in method.list_graph_specs(model.recipe).items()}

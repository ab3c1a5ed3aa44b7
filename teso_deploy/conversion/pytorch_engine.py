"""The graphs in PyTorch, to be asked like engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from teso_deploy.models.graphs import GraphSpec, graph_modules, graph_specs
from teso_deploy.models.teso import Teso


class PyTorchEngine:
    """A module as :class:`teso_deploy.verification.probes.Runs`."""

    precision = "fp32"

    def __init__(self, module: nn.Module, spec: GraphSpec) -> None:
        self._module, self.inputs, self.outputs = module, spec.inputs, spec.outputs

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs for all inputs."""
        found = self._module(*(torch.from_numpy(feeds[name]) for name in self.inputs))
        values = found if isinstance(found, tuple) else (found,)
        return {name: value.numpy() for name, value in zip(self.outputs, values, strict=True)}


def pytorch_engines(model: Teso) -> dict[str, PyTorchEngine]:
    """Every graph of a model."""
    modules = graph_modules(model)
    return {name: PyTorchEngine(modules[name], spec) for name, spec in graph_specs(model.recipe).items()}

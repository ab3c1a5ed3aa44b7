"""The methods that a recipe can name: each has a program, a model, and the model's graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from teso_deploy.architectures import METHODS
from teso_deploy.named_objects import load_object
from teso_deploy.program import Program
from teso_deploy.recipe import Recipe


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """Names of a graph's inputs and outputs, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Model(nn.Module):
    """The network of a method. It knows the recipe that it was built from."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe


class Method(Protocol):
    """What an entry of :data:`~teso_deploy.architectures.METHODS` names."""

    @property
    def program(self) -> Program:
        """Return the stages and their inputs. A bundle's manifest stores them."""

    def build(self, recipe: Recipe) -> Model:
        """Build the model of a recipe."""

    def list_graph_specs(self, recipe: Recipe) -> dict[str, GraphSpec]:
        """Name the inputs and outputs of each stage's graph, in the order in which the stages run."""

    def get_graph_modules(self, model: Model) -> dict[str, nn.Module]:
        """Return the module of each stage. It takes and returns plain tensors in the order of the graph's names."""


def find_method(recipe: Recipe) -> Method:
    """Import the method that a recipe names."""
    method: Method = load_object(METHODS[recipe.method].method)
    return method


def build_model(recipe: Recipe, seed: int | None = None) -> Model:
    """Build the model of a recipe, on the CPU, in eval mode. ``seed`` fixes its random weights."""
    method = find_method(recipe)
    if seed is None:
        return method.build(recipe).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.build(recipe).eval()

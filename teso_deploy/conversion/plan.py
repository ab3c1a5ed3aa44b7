"""Compute what an export would produce, without weights: parameters, multiply-adds and bytes of every graph."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from teso_deploy.conversion.graphs import count_multiply_adds
from teso_deploy.conversion.reference import make_example_arguments
from teso_deploy.errors import RecipeError
from teso_deploy.models.clip_text import ClipText
from teso_deploy.models.methods import build_model, find_method
from teso_deploy.recipe import Recipe

META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """Sizes of one graph, for one item of the batch; ``bytes`` of the weights and tables in fp32."""

    parameters: int
    multiply_adds: int
    bytes: int


def _plan(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> GraphPlan:
    tensors = [*module.parameters(), *module.buffers()]
    return GraphPlan(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        multiply_adds=count_multiply_adds(module, arguments),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def check_memory(recipe: Recipe) -> None:
    """Refuse a model whose weights are larger than this machine's memory, before any weight is created.

    Raises :class:`RecipeError`, which says how large the weights would be.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system reports its memory
        return
    with META:
        model = build_model(recipe)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if weights > memory:
        raise RecipeError(
            f"recipe {recipe.name} has {weights / 1e9:,.0f} GB of weights, but this machine has {memory / 1e9:,.0f} "
            "GB of "
            "memory: make its layers narrower or fewer; `teso-deploy export --dry-run` prints the size of each part"
        )


def plan_export(recipe: Recipe) -> dict[str, GraphPlan]:
    """Plan every graph of a recipe, and the text tower if its cues are embedded by one.

    No weight is created.
    """
    with META:
        model = build_model(recipe)
    # ``with META`` has no effect on tables that are made from NumPy arrays.
    model = model.to(META)
    method = find_method(recipe)
    modules = method.get_graph_modules(model)
    plans = {
        name: _plan(modules[name], given)
        for name, given in make_example_arguments(model, recipe.image.sizes[0], META).items()
    }
    if method.program.takes("cues") and recipe.text.encoder == "clip":
        with META:
            tower = ClipText(recipe.clip_text, recipe.text.dim)
        ids = torch.zeros(2, recipe.clip_text.context, dtype=torch.int64, device=META)
        plans["text_encoder"] = _plan(tower.to(META), (ids,))
    return plans

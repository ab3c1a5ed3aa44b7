"""The registry of contenders: by name, with what each one needs and what builds it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from teso_deploy.errors import BundleError, InputNotFoundError, MissingExtraError
from teso_deploy.recipe import Recipe
from teso_deploy.requirements import write_install_command

_TORCH = ("torch", "transformers", "scipy")
_EXPORT = (*_TORCH, "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Contender:
    """A runtime for Hugging Face's model. ``subject`` is MODULE:FUNCTION for a worker."""

    name: str
    subject: str
    precision: str = "fp32"
    needs: tuple[str, ...] = _TORCH
    needs_compiler: bool = False


_HERE = "teso_deploy.comparison"
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("hf-eager", f"{_HERE}.hugging_face:build_eager"),
        Contender("torch-compile", f"{_HERE}.hugging_face:build_compiled", needs_compiler=True),
        Contender("stock-onnxruntime", f"{_HERE}.stock:on_onnxruntime", needs=_EXPORT),
        Contender("openvino-fp32", f"{_HERE}.stock:on_openvino", "fp32", (*_EXPORT, "openvino")),
        Contender("openvino-bf16", f"{_HERE}.stock:on_openvino", "bf16", (*_EXPORT, "openvino")),
    )
}


def choose_contenders(names: Sequence[str]) -> list[Contender]:
    """Return contenders by name, each once, without importing anything heavy.

    Raises:
        InputNotFoundError: A name is unknown.
        MissingExtraError: A library or compiler is not installed.
    """
    for name in names:
        if name not in CONTENDERS:
            raise InputNotFoundError(f"unknown contender {name!r}: name one of {', '.join(CONTENDERS)}")
    contenders = [CONTENDERS[name] for name in dict.fromkeys(names)]
    for contender in contenders:
        if absent := [module for module in contender.needs if importlib.util.find_spec(module) is None]:
            raise MissingExtraError(
                f"--against {contender.name} needs {', '.join(absent)}: {write_install_command('bench')}"
            )
        compiler = os.environ.get("CXX", "g++")
        if contender.needs_compiler and shutil.which(compiler) is None:
            raise MissingExtraError(
                f"--against {contender.name} needs a C++ compiler and there is no {compiler}: "
                "install g++, or name another in the environment variable CXX"
            )
    return contenders


def mask2former_sizes(recipe: Recipe) -> dict[str, Any]:
    """Return the sizes that Hugging Face's Mask2Former shares with a recipe, for :mod:`.hugging_face`.

    Raises :class:`BundleError` if the library can't build such a model.
    """
    swin, pixel, decoder = recipe.swin, recipe.pixel_decoder, recipe.decoder
    where = f"there is nothing to compare {recipe.name} with: omit --against"
    if recipe.foundation != "mask2former":
        raise BundleError(f"contenders run Hugging Face's Mask2Former, but the bundle's foundation is "
                          f"{recipe.foundation}, {where}")  # fmt: skip
    if pixel.dim % 32 or pixel.mask_dim % 32 or pixel.points != 4 or pixel.heads != decoder.heads:
        raise BundleError(
            "Hugging Face's Mask2Former has widths that are multiples of 32, 4 points, and as many heads in its pixel "
            f"decoder as in its decoder, {where}"
        )
    return {
        "embed_dim": swin.embed_dim,
        "depths": list(swin.depths),
        "swin_heads": list(swin.heads),
        "window": swin.window,
        "mlp_ratio": swin.mlp_ratio,
        "dim": pixel.dim,
        "mask_dim": pixel.mask_dim,
        "pixel_layers": pixel.layers,
        "pixel_ffn_dim": pixel.ffn_dim,
        "layers": decoder.layers,
        "heads": decoder.heads,
        "ffn_dim": decoder.ffn_dim,
        "queries": decoder.queries,
        "labels": len(recipe.head.classes),
    }

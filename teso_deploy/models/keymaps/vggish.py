"""VGGish as stored by torchvggish, with layers in the same order as ours."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from teso_deploy.models.keymaps.rules import Format, Rule, layer
from teso_deploy.recipe import Recipe

#: Indices of the convolutions and of the linear layers in ``features`` and ``embeddings``.
CONVOLUTIONS = (0, 3, 6, 8, 11, 13)
LINEAR = (0, 2, 4)


def list_vggish_rules(recipe: Recipe, tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    """The rules of all layers. Only this package has a VGGish with batch norm, so files in this format do not fit."""
    for i in CONVOLUTIONS:
        yield from layer(f"features.{i}", f"features.{i}")
    for i in LINEAR:
        yield from layer(f"embeddings.{i}", f"embeddings.{i}")


def _recognises(keys: Collection[str]) -> bool:
    return {"features.13.weight", "embeddings.4.weight"} <= set(keys)


VGGISH = Format(
    name="torchvggish",
    part="audio",
    recognises=_recognises,
    rules=list_vggish_rules,
    # Weights of PCA and quantisation, which audio-visual segmentation does not use.
    ignored=lambda key: key.startswith("pproc."),
)

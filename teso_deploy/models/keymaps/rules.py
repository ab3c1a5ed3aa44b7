"""The elements of a key map: rules from keys of a file to keys of one of our modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from teso_deploy.recipe import Recipe

#: The part of a model that a checkpoint of another project can give.
Part = Literal["visual", "audio", "text", "model"]
Tensors = tuple[Tensor, ...]


def _as_they_are(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True, slots=True)
class Rule:
    """A conversion from ``sources`` (the file's keys) to ``targets`` (our keys) by ``convert``.

    ``optional``: neither side is required. A target that no file gives keeps its initial value.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    convert: Callable[[Tensors], Tensors] = _as_they_are
    optional: bool = False


def copy_tensor(source: str, target: str, *, optional: bool = False) -> Rule:
    """Copy one tensor.

    Args:
        source: The file's key.
        target: Our key.
        optional: Whether the file may lack it. Default: False.
    """
    return Rule((source,), (target,), optional=optional)


def layer(source: str, target: str, *, bias: bool = True) -> Iterator[Rule]:
    """Copy weight and bias of a linear layer, a convolution or a norm.

    Args:
        source: The file's prefix.
        target: Our prefix.
        bias: Whether it has a bias. Default: True.
    """
    for name in ("weight", "bias") if bias else ("weight",):
        yield copy_tensor(f"{source}.{name}", f"{target}.{name}")


def split(source: str, targets: Sequence[str]) -> Rule:
    """Split one tensor in equal parts along its first axis: a packed query, key and value."""
    return Rule((source,), tuple(targets), lambda tensors: tensors[0].chunk(len(targets)))


def reshape_tensor(source: str, target: str, shape: Sequence[int]) -> Rule:
    """Copy one tensor in another shape: a 1 × 1 convolution that is a linear layer here.

    Args:
        source: The file's key.
        target: Our key.
        shape: The new shape.
    """
    return Rule((source,), (target,), lambda tensors: (tensors[0].reshape(tuple(shape)),))


def add_prefix(rules: Iterable[Rule], source: str = "", target: str = "") -> Iterator[Rule]:
    """Add a prefix to the keys of rules.

    Args:
        rules: The rules.
        source: Prefix of the file's keys. Default: none.
        target: Prefix of our keys. Default: none.
    """
    for rule in rules:
        yield replace(
            rule,
            sources=tuple(source + key for key in rule.sources),
            targets=tuple(target + key for key in rule.targets),
        )


@dataclass(frozen=True, slots=True)
class Format:
    """A format of checkpoints.

    Attributes:
        recognises: Whether the file's keys, without a common prefix, are of this format.
        rules: Returns the rules for a recipe and the file's tensors, whose names depend on the release.
        ignored: Whether a key is known and not needed.
        replaceable: Our keys whose tensors may have other shapes in the file, such as a head for other classes. Such
            weights are not read, and begin with new values as an adapter does.
        sized: Returns the recipe with the file's sizes, if they can be read from it. A whole model is built with
            them; for a part they explain why it does not fit.
    """

    name: str
    part: Part
    recognises: Callable[[Collection[str]], bool]
    rules: Callable[[Recipe, Mapping[str, Tensor]], Iterable[Rule]]
    ignored: Callable[[str], bool] = lambda key: False
    replaceable: tuple[str, ...] = ()
    sized: Callable[[Recipe, Mapping[str, Tensor]], Recipe] = lambda recipe, tensors: recipe

"""What a key map is made of: rules from keys of a file to keys of one of our modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from teso_deploy.recipe import Recipe

#: What a checkpoint of others can give a model.
Part = Literal["visual", "audio", "text", "model"]
Tensors = tuple[Tensor, ...]


def _as_they_are(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True, slots=True)
class Rule:
    """``targets`` (our keys) are ``convert`` of ``sources`` (the file's keys).

    ``optional``: neither has to be there; a target that no file gives stays as it was built.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    convert: Callable[[Tensors], Tensors] = _as_they_are
    optional: bool = False


def copied(source: str, target: str, *, optional: bool = False) -> Rule:
    """One tensor as it is."""
    return Rule((source,), (target,), optional=optional)


def layer(source: str, target: str, *, bias: bool = True) -> Iterator[Rule]:
    """Weight and bias of a linear layer, a convolution or a norm, as they are."""
    for name in ("weight", "bias") if bias else ("weight",):
        yield copied(f"{source}.{name}", f"{target}.{name}")


def split(source: str, targets: Sequence[str]) -> Rule:
    """One tensor in equal parts along its first axis: a packed query, key and value."""
    return Rule((source,), tuple(targets), lambda tensors: tensors[0].chunk(len(targets)))


def reshaped(source: str, target: str, shape: Sequence[int]) -> Rule:
    """One tensor of equal content and another shape: a 1 × 1 convolution that is a linear layer here."""
    return Rule((source,), (target,), lambda tensors: (tensors[0].reshape(tuple(shape)),))


def prefixed(rules: Iterable[Rule], source: str = "", target: str = "") -> Iterator[Rule]:
    """The same rules with something before every key of the file, of ours, or of both."""
    for rule in rules:
        yield replace(
            rule,
            sources=tuple(source + key for key in rule.sources),
            targets=tuple(target + key for key in rule.targets),
        )


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of checkpoint.

    ``recognises``: by the names of a file's keys, from which a common prefix has been taken.
    ``rules``: of a recipe and of the file's tensors (whose names may be of an older or newer
    release). ``ignored``: of a key, whether it is known and of no use here. ``replaceable``: our
    keys that may have another shape than the file's, and then are as new as an adapter: the head
    of a foundation, whose classes are others.
    ``sized``: the recipe with the sizes that the file has, where they can be read from it; a whole
    model is built by them, of a part they say why it does not fit.
    """

    name: str
    part: Part
    recognises: Callable[[Collection[str]], bool]
    rules: Callable[[Recipe, Mapping[str, Tensor]], Iterable[Rule]]
    ignored: Callable[[str], bool] = lambda key: False
    replaceable: tuple[str, ...] = ()
    sized: Callable[[Recipe, Mapping[str, Tensor]], Recipe] = lambda recipe, tensors: recipe

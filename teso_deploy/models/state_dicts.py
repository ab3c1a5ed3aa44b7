"""Finding the weights among the tensors of a file, with the help of the key maps.

Training codes wrap models and keep several sets of weights: ``{"state_dict": …}``, ``module.`` of data parallelism,
``_orig_mod.`` of ``torch.compile``, ``model.`` of Lightning, an average beside the trained weights. All places are
searched, and the place whose keys a format recognises is used.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from teso_deploy.errors import CheckpointError
from teso_deploy.models.keymaps import list_formats
from teso_deploy.models.keymaps.rules import Format, Part
from teso_deploy.models.pickle_reading import Placeholder
from teso_deploy.models.stored_tensors import Array, StoredTensor
from teso_deploy.text import to_one_line

#: Which set of weights: the average that training kept, or the trained weights.
Averaging = Literal["ema", "raw"]
Stored = dict[str, StoredTensor]
#: Usual names of the containers of weights, the best first. They are used if no format recognises the keys.
_USUAL = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "generator", "student",
)  # fmt: skip
#: Names that wrappers insert into keys, at any depth.
_WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)  # fmt: skip
_AVERAGED = re.compile(
    r"(\w+_)?(ema|swa)(_\w+)?|averaged?|averaged_(model|weights)|(model|weights)_averaged?|avg_model|teacher"
)
#: Values of the training that are stored beside a model's keys.
_OF_TRAINING = re.compile(
    r"(\w+_)?(criterion|criteria|loss|losses|loss_fn|metrics?|optimizers?|lr_schedulers?|schedulers?|scaler)(_\w+)?\."
)
_OF_OPTIMIZERS = re.compile(r"(\w+_)?(optim|optimizers?|exp_avg|exp_avg_sq|momentum|grads?|schedulers?)(_\w+)?")
#: Counters of averages, stored beside or among the averaged weights.
_COUNTERS = frozenset(("n_averaged", "initted", "decay", "num_updates"))
_DEEPEST, _MOST_PLACES, _LONGEST_PREFIX = 6, 10_000, 4


@dataclass(frozen=True, slots=True)
class Found:
    """A set of weights in a file.

    Args:
        place: The names of the containers around it, and the prefix of its keys.
        tensors: Tensors by key, without the prefix. A tensor of unknown use beside them keeps its whole key.
        format: The recognised format; None for a checkpoint of this package, or if nothing is recognised.
        is_own: Whether it is a whole model of this package.
        is_averaged: Whether it is an average over training.
    """

    place: tuple[str, ...]
    tensors: Stored
    format: Format | None = None
    is_own: bool = False
    is_averaged: bool = False

    @property
    def part(self) -> Part | None:
        """The part of a model that these weights are for; None if no format recognises them."""
        return self.format.part if self.format else "model" if self.is_own else None

    def __str__(self) -> str:
        return f'"{to_one_line(".".join(self.place), 100)}"' if self.place else "the outermost keys"


def _recognise(keys: Collection[str], is_whole: bool) -> tuple[bool, Format | None]:
    """Return whether keys are a model of this package, or their format. ``is_whole``: no prefix was removed."""
    firsts = {key.partition(".")[0] for key in keys}
    wanted = {"fusion"} if is_whole else {"fusion", "visual_encoder", "audio_encoder", "decoder"}
    if wanted <= firsts:
        return True, None
    return False, next((kind for kind in list_formats() if kind.recognises(keys)), None)


def _yield_places(content: Any) -> Iterator[tuple[tuple[str, ...], Stored]]:
    """Yield every mapping with tensors by name, and the names that lead to it, outer ones first."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_PLACES:
        place, mapping = waiting.popleft()
        if not isinstance(mapping, Mapping) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        named = {key: value.to_tensor() if isinstance(value, Array) else value for key, value in mapping.items()}
        tensors = {k: v for k, v in named.items() if isinstance(k, str) and isinstance(v, StoredTensor)}
        if tensors:
            yield place, tensors
        if len(place) < _DEEPEST:
            inner = ((key, value) for key, value in mapping.items() if isinstance(key, str))
            waiting.extend(((*place, key), value) for key, value in inner if isinstance(value, Mapping))


def _remove_wrappers(tensors: Stored) -> Stored:
    """Remove the insertions of wrappers from the keys, unless two keys would become the same."""
    found = {".".join(part for part in key.split(".") if part not in _WRAPPERS): t for key, t in tensors.items()}
    return found if len(found) == len(tensors) else tensors


def _is_averaged(names: Collection[str]) -> bool:
    return any(_AVERAGED.fullmatch(name) for name in names)


def _is_of_use(key: str, tensor: StoredTensor) -> bool:
    """Whether a key beside a model may be a weight, not a loss, a counter or a metric."""
    return not _OF_TRAINING.match(key) and tensor.shape != () and tensor.dtype.is_floating_point


def _yield_sets(place: tuple[str, ...], tensors: Stored) -> Iterator[Found]:
    """Yield the sets of weights in one mapping: keys with a common prefix, if a format recognises the rest of them."""
    tensors = _remove_wrappers(tensors)
    everywhere = _is_averaged(place) or "n_averaged" in tensors
    kept = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[2] not in _COUNTERS}
    averaged = {k: t for k, t in kept.items() if everywhere or _is_averaged(k.split(".")[:3])}
    raw = {key: tensor for key, tensor in kept.items() if key not in averaged}
    for of_average, group in ((False, raw), (True, averaged)):
        found = list(_yield_below_prefixes(place, group, of_average))
        known = [".".join(one.place[len(place) :]) for one in found]
        # A key that no set explains must become an error later; it must not be dropped silently.
        beside = {
            key: tensor
            for key, tensor in group.items()
            if not any(key.startswith(f"{prefix}." if prefix else "") for prefix in known) and _is_of_use(key, tensor)
        }
        for one in found:
            one.tensors.update(beside)
            yield one


def _yield_below_prefixes(place: tuple[str, ...], tensors: Stored, of_average: bool) -> Iterator[Found]:
    groups: dict[tuple[str, ...], Stored] = {(): tensors}
    for key, tensor in tensors.items():
        names = key.split(".")
        for length in range(1, min(_LONGEST_PREFIX, len(names) - 1) + 1):
            groups.setdefault(tuple(names[:length]), {})[".".join(names[length:])] = tensor
    taken: list[tuple[str, ...]] = []
    for prefix in sorted(groups, key=len):
        if any(prefix[: len(other)] == other for other in taken):
            continue
        is_own, kind = _recognise(groups[prefix].keys(), not prefix)
        if is_own or kind is not None:
            taken.append(prefix)
            own = {key: tensor for key, tensor in groups[prefix].items() if not _OF_TRAINING.match(key)}
            yield Found((*place, *prefix), own, kind, is_own, of_average)


def choose_weights(content: Any, averaging: Averaging | None = None, part: str | None = None) -> Found:
    """Choose the weights in the content of a file.

    Args:
        content: Mappings with :class:`StoredTensor` in them.
        averaging: Which set to take if the file has both trained and averaged weights.
        part: The part of a model that the weights should be for. A set for another part is taken only if there is no
            other set.

    Raises:
        CheckpointError: No weights, trained and averaged weights without a choice, or several sets. Print the text
            after the file's name.
    """
    places = [
        (place, t) for place, t in _yield_places(content) if not any(_OF_OPTIMIZERS.fullmatch(name) for name in place)
    ]
    found = [one for place, tensors in places for one in _yield_sets(place, tensors)]
    if not found:
        return _choose_usual(content, places)
    found = [one for one in found if one.part == part] or found
    if len(parts := {one.part for one in found}) > 1:
        named = ", ".join(f"{one.part} at {one}" for one in found)
        raise CheckpointError(
            f"holds several parts ({named}): say which, as in --checkpoint {min(map(str, parts))}=FILE"
        )
    raw = [one for one in found if not one.is_averaged]
    averaged = [one for one in found if one.is_averaged]
    if raw and averaged and averaging is None:
        raise CheckpointError(
            f"holds trained weights ({raw[0]}) and their average ({averaged[0]}): choose with --weights raw or "
            "--weights ema"
        )
    chosen = (averaged or raw) if averaging == "ema" else (raw or averaged)
    if len(chosen) > 1 and len({_get_identity(one) for one in chosen}) > 1:
        usual = [one for one in chosen if one.place[-1:] and one.place[-1] in _USUAL]
        if len(usual) != 1:
            named = ", ".join(map(str, chosen))
            raise CheckpointError(f"holds several sets of weights ({named}): save the one you mean by itself")
        chosen = usual
    return chosen[0]


def _get_identity(found: Found) -> tuple[tuple[str, int], ...]:
    """Return a key that is equal for two names of the same tensors."""
    return tuple(sorted((key, id(tensor)) for key, tensor in found.tensors.items()))


def _choose_usual(content: Any, places: list[tuple[tuple[str, ...], Stored]]) -> Found:
    """Choose weights in a file that no format recognises: those at the usual place, or else the most tensors."""
    if not places:
        raise CheckpointError(_describe_objects(content))

    def rank(of: tuple[tuple[str, ...], Stored]) -> tuple[int, int]:
        place, tensors = of
        return (_USUAL.index(place[-1]) if place and place[-1] in _USUAL else len(_USUAL), -len(tensors))

    # A mapping with a single tensor holds a loss, not weights. The option --weights has no effect on such a file.
    several = [one for one in places if len(one[1]) > 1] or places
    place, tensors = min(several, key=rank)
    return Found(place, _remove_common(_remove_wrappers(tensors)))


def _remove_common(tensors: Stored) -> Stored:
    """Remove the first name that all keys share, if it is the name of a container."""
    first = {key.partition(".")[0] for key in tensors}
    if len(first) == 1 and (name := next(iter(first))) in _USUAL:
        return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items()}
    return tensors


def _describe_objects(content: Any) -> str:
    """Say why a file has no state_dict: a whole module was pickled, or something else."""
    candidates = [content, *(content.values() if isinstance(content, Mapping) else ())]
    for one in candidates:
        if isinstance(one, Placeholder) and isinstance(one.state, Mapping) and "_modules" in one.state:
            return (
                f"holds the model itself ({to_one_line(one.name, 150)}), which only its own code can load: load it "
                'there and torch.save(model.state_dict(), "weights.pth")'
            )
    return "holds no state_dict: save the model's state_dict as safetensors"

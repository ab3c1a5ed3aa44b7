"""The state of a metric as JSON, so that an interrupted evaluation continues with the same sums.

A metric's state is its attributes: numbers, exact fractions, arrays, and metrics inside of it. JSON keeps every float64
exactly, so an evaluation that was interrupted gives the same numbers as one that was not.
"""

from __future__ import annotations

from array import array
from fractions import Fraction
from typing import Any

import numpy as np

_MODULE = "teso_deploy."


def dump_state(metric: object) -> dict[str, Any]:
    """Return the state of a metric, ready for JSON."""
    return {name: _dump(value) for name, value in vars(metric).items() if _is_state(value)}


def load_state(metric: object, state: dict[str, Any]) -> None:
    """Put a state into a new metric that was made with the same arguments.

    Raises :class:`ValueError` if the state is not of such a metric.
    """
    wanted = {name for name, value in vars(metric).items() if _is_state(value)}
    if wanted != state.keys():
        raise ValueError(f"the state has {sorted(state)}, {type(metric).__name__} has {sorted(wanted)}")
    for name in wanted:
        setattr(metric, name, _load(vars(metric)[name], state[name]))


def _is_state(value: object) -> bool:
    """Whether a value changes as samples are added. Strings, flags and definitions are arguments of the metric."""
    if isinstance(value, bool | str | tuple) or value is None or callable(value):
        return False
    return isinstance(value, int | float | Fraction | np.ndarray | array | dict) or _is_nested(value)


def _is_nested(value: object) -> bool:
    is_frozen = getattr(type(value), "__dataclass_params__", None) is not None
    return type(value).__module__.startswith(_MODULE) and hasattr(value, "__dict__") and not is_frozen


def _dump(value: Any) -> Any:
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, np.ndarray | array):
        return list(value) if isinstance(value, array) else value.tolist()
    if isinstance(value, dict):
        return [[key, _dump(one)] for key, one in value.items()]
    return dump_state(value) if _is_nested(value) else value


def _load(current: Any, stored: Any) -> Any:
    if isinstance(current, Fraction):
        return Fraction(stored)
    if isinstance(current, np.ndarray):
        return np.array(stored, current.dtype).reshape(current.shape)
    if isinstance(current, array):
        return array(current.typecode, stored)
    if isinstance(current, dict):
        return {key: _load_entry(current, key, one) for key, one in stored}
    if _is_nested(current):
        load_state(current, stored)
        return current
    return type(current)(stored)


def _load_entry(current: dict[Any, Any], key: Any, stored: Any) -> Any:
    """Load a value of a dictionary. One that the new metric lacks is a list of numbers."""
    if key in current:
        return _load(current[key], stored)
    return array("d", stored) if isinstance(stored, list) else stored

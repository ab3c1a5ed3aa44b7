"""Read the types of a built engine from the JSON of the library's inspector."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from teso_deploy.backends.tensorrt.builder import compute_shares

#: Words of the inspector → our names; "" for types that are not floating-point types of ours.
_WORDS = {"half": "fp16", "fp16": "fp16", "float": "fp32", "fp32": "fp32", "bf16": "bf16", "bfloat16": "bf16"}
_WORDS |= {"int8": "int8", "fp8": "fp8", "e4m3": "fp8"}
_WORDS |= dict.fromkeys(("int4", "int32", "int64", "uint8", "bool", "fp4", "e8m0"), "")
#: Keys under which a tensor's type may be found, in lower case, the most reliable first.
_KEYS = ("datatype", "data type", "type", "format/datatype", "format")
#: The types of the layers' outputs describe the engine only if at least this share of the outputs has a known type.
LEAST_TYPED = 0.5


def read_shares(text: str) -> dict[str, float]:
    """Read the share of each type among the floating-point outputs of the layers.

    Args:
        text: The inspector's JSON.

    Returns:
        Share by type. Empty if the inspector does not report most types: most tensors have no type
        (``N/A due to dynamic shapes``), or part of the graph is one compiled layer (ForeignNode), whose inner tensors
        it does not show.
    """
    try:
        layers = _lower(json.loads(text))["layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    described = [one for one in map(_lower, layers if isinstance(layers, list) else []) if isinstance(one, dict)]
    if any(map(_is_foreign, described)):
        return {}
    types = [_read_type(tensor) for one in described for tensor in _list_outputs(one)]
    known = [name for name in types if name is not None]
    return compute_shares(known) if len(known) >= LEAST_TYPED * len(types) else {}


def _lower(value: Any) -> Any:
    """Put the keys of an object in lower case; return anything else unchanged."""
    return {str(key).lower(): one for key, one in value.items()} if isinstance(value, dict) else value


def _is_foreign(described: dict[str, Any]) -> bool:
    name, kind = (str(described.get(key)).lower() for key in ("name", "layertype"))
    return "foreignnode" in name or kind in ("myelin", "foreignnode")


def _list_outputs(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    outputs = described.get("outputs")
    yield from (one for one in map(_lower, outputs if isinstance(outputs, list) else []) if isinstance(one, dict))


def _read_type(tensor: dict[str, Any]) -> str | None:
    """Read ``fp16`` from ``Half`` or ``Row major linear FP16 format``; None if no word names a type."""
    for key in _KEYS:
        found = [_WORDS[word] for word in re.findall(r"\w+", str(tensor.get(key)).lower()) if word in _WORDS]
        if found:
            return found[-1]
    return None

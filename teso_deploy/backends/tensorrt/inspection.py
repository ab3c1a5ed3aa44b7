"""Of which types a built engine is, in what the library's inspector says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from teso_deploy.backends.tensorrt.builder import shares_of

#: Words of the inspector → our names, and "" for what is typed and no floating-point tensor of ours.
_WORDS = {"half": "fp16", "fp16": "fp16", "float": "fp32", "fp32": "fp32", "bf16": "bf16", "bfloat16": "bf16"}
_WORDS |= {"int8": "int8", "fp8": "fp8", "e4m3": "fp8"}
_WORDS |= dict.fromkeys(("int4", "int32", "int64", "uint8", "bool", "fp4", "e8m0"), "")
#: Keys of a tensor's type, in lower case, the surest first.
_KEYS = ("datatype", "data type", "type", "format/datatype", "format")
#: Of the tensors that layers give, how many have to have a type for their shares to stand for the engine.
LEAST_TYPED = 0.5


def inspected_shares(text: str) -> dict[str, float]:
    """Of the floating-point tensors that the layers give, the share of each type. ``text``: the inspector's JSON.

    Empty where it does not say: most tensors without a type (``N/A due to dynamic shapes``), or parts of the graph
    that are one layer of a compiler (ForeignNode), whose own tensors it does not show.
    """
    try:
        layers = _lower(json.loads(text))["layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    described = [one for one in map(_lower, layers if isinstance(layers, list) else []) if isinstance(one, dict)]
    if any(map(_is_foreign, described)):
        return {}
    types = [_type(tensor) for one in described for tensor in _outputs(one)]
    known = [name for name in types if name is not None]
    return shares_of(known) if len(known) >= LEAST_TYPED * len(types) else {}


def _lower(value: Any) -> Any:
    """An object with its keys in lower case; anything else as it is."""
    return {str(key).lower(): one for key, one in value.items()} if isinstance(value, dict) else value


def _is_foreign(described: dict[str, Any]) -> bool:
    name, kind = (str(described.get(key)).lower() for key in ("name", "layertype"))
    return "foreignnode" in name or kind in ("myelin", "foreignnode")


def _outputs(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    outputs = described.get("outputs")
    yield from (one for one in map(_lower, outputs if isinstance(outputs, list) else []) if isinstance(one, dict))


def _type(tensor: dict[str, Any]) -> str | None:
    """``fp16`` of ``Half`` or ``Row major linear FP16 format``; None where no word is a type's."""
    for key in _KEYS:
        found = [_WORDS[word] for word in re.findall(r"\w+", str(tensor.get(key)).lower()) if word in _WORDS]
        if found:
            return found[-1]
    return None

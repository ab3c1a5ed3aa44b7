"""Files of weights, ours and others': safetensors, a folder of Hugging Face, pickles without code.

A pickle may run any code that its author likes. It is read with ``weights_only=True``, which
builds tensors and plain containers only, or refused.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from teso_deploy.errors import CheckpointError, InputNotFoundError

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
#: Where training codes keep the weights beside their optimiser and their settings.
_INNER = ("state_dict", "model_state_dict", "model", "net")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_DATA_PARALLEL = "module."


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file, or of a folder that ``save_pretrained`` wrote.

    Raises :class:`InputNotFoundError`, :class:`CheckpointError` (not a file of weights, truncated, or
    a pickle that holds more than tensors).
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputNotFoundError(f"no checkpoint {path}: check the path")
    if path.suffix in PICKLES:
        return _read_pickle(path), {}
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors checkpoint ({error}): copy it again, or give the "
            "model.safetensors that training wrote"
        ) from error


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return read(folder / name)
    for name in _INDICES:
        if (folder / name).is_file():
            try:
                shards = sorted(set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError) as error:
                raise CheckpointError(f"{folder / name} is not an index of shards: download the model again") from error
            if strange := [shard for shard in shards if Path(shard).name != shard]:
                raise CheckpointError(f"{folder / name} names {strange[0]!r}, which lies outside of the folder")
            tensors: dict[str, Tensor] = {}
            for shard in shards:
                tensors |= read(folder / shard)[0]
            return tensors, {}
    raise CheckpointError(f"{folder} holds no weights: none of {', '.join((*_WEIGHTS, *_INDICES))} is in it")


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) ([\w.]+)", str(error))
        reason = f"it holds {found[1]}, and loading that may run code" if found else "it is broken or holds objects"
        raise CheckpointError(
            f"{path} is refused: {reason}; load it where you trust it and save its state_dict as safetensors"
        ) from error
    except Exception as error:  # what noise makes of the unpickler: IndexError, AttributeError
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint: copy it again") from error
    tensors = _state_dict(content)
    if not tensors:
        raise CheckpointError(f"{path} holds no state_dict: save the model's state_dict as safetensors")
    return tensors


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors of what a training code saved, without the prefix that data parallelism leaves."""
    if not isinstance(content, Mapping):
        return {}
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        return next((found for key in _INNER if key in content and (found := _state_dict(content[key]))), {})
    if all(key.startswith(_DATA_PARALLEL) for key in tensors):
        return {key.removeprefix(_DATA_PARALLEL): value for key, value in tensors.items()}
    return tensors

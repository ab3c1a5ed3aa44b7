"""Reading files of weights. The content of a file decides how it is read, and no code in it is run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from teso_deploy.errors import CheckpointError
from teso_deploy.models.file_kinds import Kind
from teso_deploy.models.keymaps.rules import Format
from teso_deploy.models.pickled_files import read_legacy, read_pickle, read_zipped
from teso_deploy.models.state_dicts import Averaging, Found, choose_weights
from teso_deploy.models.stored_tensors import StoredTensor
from teso_deploy.models.weight_folders import WeightFiles, find_weight_files
from teso_deploy.text import to_one_line

_SAVE = "save the model's state_dict as safetensors"
#: Tensors may have this many times the bytes of the file: weights that two layers share are stored once, but counted
#: twice.
_MOST_TIMES_THE_FILE = 4


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a checkpoint.

    Args:
        tensors: Tensors by the keys of their format, floats as float32.
        metadata: Metadata of a safetensors file.
        format: The recognised format; None for a checkpoint of this package and for an unknown one.
        is_own: Whether it is a whole model of this package.
        is_averaged: Whether it is an average over training.
        folder: The folder of the files, and of other files that belong to them.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    format: Format | None
    is_own: bool
    is_averaged: bool
    folder: Path


def read(path: Path, averaging: Averaging | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a checkpoint. Raises the errors of :func:`read_weights`."""
    weights = read_weights(path, averaging)
    return weights.tensors, weights.metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other kinds. Raises errors of :func:`read_weights`."""
    file, kind = find_weight_files(path).files[0]
    return _open_file(file, kind)[1]


def holds_nothing_but(path: Path, keys: Collection[str]) -> bool:
    """Whether a file has no tensors except those of these keys. Raises the errors of :func:`read_weights`."""
    content, _ = _open_file(*find_weight_files(path).files[0])
    return isinstance(content, Mapping) and content.keys() <= set(keys)


def read_weights(path: Path, averaging: Averaging | None = None, part: str | None = None) -> Weights:
    """Read the weights of a checkpoint.

    Args:
        path: A file, a shard, an index, a Hugging Face folder, or a model's folder in the Hugging Face cache.
        averaging: Which set to take if a file has both trained and averaged weights.
        part: The part of a model that the weights should be for, if a file has several parts.

    Raises:
        InputNotFoundError: The path does not exist.
        CheckpointError: The file has no weights, is damaged, has both sets without a choice, or has NaN or infinity.
    """
    found_files = find_weight_files(path)
    content, metadata = _join_content(path, found_files)
    try:
        found = choose_weights(content, averaging, part)
        is_own = found.is_own or "recipe" in metadata
        tensors = _load(found, sum(file.stat().st_size for file, _ in found_files.files))
    except CheckpointError as error:
        raise _name_error(path, error) from error
    return Weights(
        tensors, metadata, None if is_own else found.format, is_own, found.is_averaged, found_files.folder
    )  # fmt: skip


def _join_content(path: Path, found: WeightFiles) -> tuple[Any, dict[str, str]]:
    """Return the combined content of all files of a checkpoint."""
    if len(found.files) == 1 and not found.promised:
        return _open_file(*found.files[0])
    joined: dict[str, Any] = {}
    for file, kind in found.files:
        content, _ = _open_file(file, kind)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{file} is a shard and holds no tensors: download it again")
        absent = [key for key, name in found.promised.items() if name == file.name and key not in content]
        if absent:
            raise CheckpointError(
                f"{path} says that {to_one_line(absent[0])} is in {file.name}, but it is not: download both again"
            )
        joined |= content
    return joined, {}


def _name_error(path: Path, error: BaseException) -> CheckpointError:
    """Return the error with the file's name before its text."""
    text = str(error)
    if not isinstance(error, CheckpointError):
        return CheckpointError(f"{path} is truncated or not a checkpoint: copy it again")
    if text.startswith("it holds"):
        return CheckpointError(f"{path} is refused: {text}; load it where you trust it and {_SAVE}")
    return CheckpointError(f"{path} {text}")


def _open_file(path: Path, kind: Kind) -> tuple[Any, dict[str, str]]:
    """Return the content of one file: mappings with :class:`StoredTensor` in them, and its metadata."""
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "gguf":
        raise CheckpointError(
            f"{path} is a GGUF file, a language model for export-cues --reasoner: give PyTorch weights here"
        )
    readers = {"zipped": read_zipped, "legacy": read_legacy, "pickle": read_pickle}
    if kind not in readers:
        raise CheckpointError(f"{path} is JSON, not weights: download it again")
    try:
        return readers[kind](path), {}
    except Exception as error:  # random bytes make readers raise IndexError, BadZipFile, MemoryError and others
        raise _name_error(path, error) from error


def _read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    try:
        file = safe_open(path, framework="pt")
        tensors: dict[str, StoredTensor] = {}
        for key in file.keys():  # noqa: SIM118
            view = file.get_slice(key)
            dtype = _DTYPES.get(view.get_dtype(), torch.uint8)
            tensors[key] = StoredTensor(tuple(view.get_shape()), dtype, partial(file.get_tensor, key))
        return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors checkpoint ({to_one_line(error)}): copy it again"
        ) from error


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


def _load(found: Found, size: int) -> dict[str, Tensor]:
    """Read the tensors of a set, floats as float32. Raises :class:`CheckpointError` for unusable tensors.

    ``size``: bytes of the files. It limits the tensors: one that repeats few stored numbers may claim more memory than
    any machine has.
    """
    is_ignored = found.format.ignored if found.format else (lambda key: False)
    wanted = {key: tensor for key, tensor in found.tensors.items() if not is_ignored(key)}
    if sum(tensor.count for tensor in wanted.values()) > _MOST_TIMES_THE_FILE * size:
        raise CheckpointError("claims more numbers than it holds: save its state_dict again")
    tensors = {}
    for key, stored in found.tensors.items():
        name = to_one_line(key)
        if key not in wanted:
            # Do not read this tensor. Only its name is used, and its values may be minus infinity (masks).
            tensors[key] = torch.empty(0)
            continue
        if stored.trouble:
            raise CheckpointError(f"can't be used: {name} {stored.trouble}; {_SAVE}, dense and in float32")
        try:
            tensor = stored.read()
        except Exception as error:  # damage may show only when the numbers are read
            raise CheckpointError(f"is damaged ({name} can't be read): copy it again") from error
        if tensor.is_complex():
            raise CheckpointError(f"can't be used: {name} has complex numbers; give a checkpoint that fits the recipe")
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"holds NaN or infinity in {name}: training had failed before it was saved, so give an earlier "
                    "checkpoint"
                )
        tensors[key] = tensor
    return tensors

"""Checkpoints as training codes, downloads and attackers produce them, each made by hand."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teso_deploy.models.audio import Vggish
from tests.support.foundations import randomise, small_recipe


def vggish_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Return a small VGGish with torchvggish's names: the smallest checkpoint that a key map recognises."""
    model = Vggish(small_recipe().audio)
    randomise(model, seed)
    return {key: value.detach() for key, value in model.state_dict().items()}


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {key: value.numpy() for key, value in tensors.items()}


def pickled(content: Any, path: Path, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def saved(content: Any, path: Path, **more: Any) -> Path:
    torch.save(content, path, **more)
    return path


def zip_of(steps: bytes, path: Path, storages: Mapping[str, bytes] = {}, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a file of ``torch.save`` around the steps of a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", steps)
        archive.writestr("archive/version", "3\n")
        for name, content in storages.items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def one_tensor(key: str, claimed: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Return the steps of ``{key: tensor}``. The sizes may be false."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, of: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", claimed) if of is STORAGE else None

    class Claimed:
        def __reduce__(self) -> Any:
            rebuild = torch._utils._rebuild_tensor_v2  # type: ignore[attr-defined]
            return rebuild, (STORAGE, 0, shape, stride, False, {})

    STORAGE = object()
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({key: Claimed()})
    return buffer.getvalue()


def safetensors_of(header: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + content

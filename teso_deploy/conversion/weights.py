"""The file in which a graph, its buckets and its forms share their weights.

ONNX Runtime maps such a file into memory instead of reading it, and protobuf's limit of 2 GiB does not apply to it.
ONNX Runtime refuses a weights file outside of the graph's folder, so forms are in the folder of the canonical graph.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

#: Smaller tensors, such as shapes, stay in the graph's own file.
LEAST_EXTERNAL_BYTES = 1024
ALIGNMENT_BYTES = 64


class WeightsFile:
    """Tensors of a graph, its buckets and its forms. Each is stored once, however many files use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[tuple[bytes, str], int] = {}

    @property
    def name(self) -> str | None:
        """Name of the file; None until a tensor is in it. The tensors of a small graph all stay in its own file."""
        return self.path.name if self._places else None

    def _place(self, content: bytes, dtype: str) -> int:
        # The key contains the type: n zeros in fp16 have the same bytes as n / 2 zeros in fp32, and TensorRT fails if
        # two types share one place.
        key = hashlib.sha256(content).digest(), dtype
        if key not in self._places:
            with self.path.open("ab") as file:
                file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
                self._places[key] = file.tell()
                file.write(content)
        return self._places[key]

    def take(self, model: ir.Model) -> None:
        """Move a model's large initialisers into this file."""
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < LEAST_EXTERNAL_BYTES:
                continue
            content = tensor.tobytes()
            value.const_value = ir.ExternalTensor(
                self.path.name,
                self._place(content, str(tensor.dtype)),
                len(content),
                tensor.dtype,
                shape=tensor.shape,  # type: ignore[arg-type]
                name=name,
                base_dir=self.path.parent,
            )


def save_with_weights(model: ir.Model, path: Path, weights: WeightsFile) -> None:
    """Write a model whose large tensors are in a weights file of the same folder.

    Args:
        model: The model.
        path: The ONNX file.
        weights: The weights file, which gets the model's large tensors.
    """
    assert path.parent == weights.path.parent
    weights.take(model)
    ir.save(model, path)

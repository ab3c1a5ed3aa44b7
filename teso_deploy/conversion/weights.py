"""The file in which a graph, its buckets and its forms share their weights.

ONNX Runtime maps such a file into memory instead of reading it, protobuf's limit of 2 GiB does not
hold for it, and it refuses one outside of the graph's folder: forms lie beside what they are of.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

#: Smaller tensors stay in the graph's own file: a shape is no weight.
LEAST_EXTERNAL_BYTES = 1024
ALIGNMENT_BYTES = 64


class WeightsFile:
    """Tensors of a graph, its buckets and its forms: each once, whichever files name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[tuple[bytes, str], int] = {}

    def _place(self, content: bytes, dtype: str) -> int:
        # Of one type alone: TensorRT takes it amiss where zeros in half and half as many in fp32 are at one place.
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
    """Write a model whose large tensors lie in ``weights``, in the same folder."""
    assert path.parent == weights.path.parent
    weights.take(model)
    ir.save(model, path)

"""Files of ONNX graphs, byte by byte, for tests that do not run them."""

from __future__ import annotations

from typing import Any

from teso_deploy.bundle import GraphEntry
from teso_deploy.program import Program, Stage


def field(number: int, content: bytes) -> bytes:
    """A protobuf field that holds bytes."""
    tag, length, size = number << 3 | 2, [], len(content)
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return (bytes([tag]) if tag < 0x80 else bytes([tag & 0x7F | 0x80, tag >> 7])) + bytes([*length, size]) + content


def empty_graph(note: str) -> bytes:
    """A model without nodes; the note is its producer's name."""
    return field(2, note.encode())


def one_graph(file: str) -> dict[str, Any]:
    """Fields of a manifest whose program is one graph, for tests that do not run it."""
    entry = GraphEntry(file=file, inputs=(), outputs=(), parameters=0, multiply_adds=0, nodes=0)
    return {"program": Program(stages=(Stage(name="only", inputs=("image",)),)), "graphs": {"only": entry}}

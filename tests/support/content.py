"""Digests of everything that decides a result: objects, source files and versions of packages."""

from __future__ import annotations

import ast
import enum
import hashlib
import platform
import sys
import types
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.imports import ROOT, find_file, find_imports

#: Packages whose version may change an exported graph, or the numbers that are stored with it.
DECIDING_PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy", "onnxruntime", "pydantic")
#: The public names of the package do not affect how a graph is made.
NOT_FOLLOWED = frozenset({ROOT / "teso_deploy/__init__.py"})


def digest_content(thing: Any) -> str:
    """Return the SHA-256 of an object's content. Equal objects of two processes have equal digests.

    A pickle would not work: it contains addresses of tensors, and sets in the order of this process's hash seed.
    """
    content = _Content()
    content.add(thing)
    return content.hash.hexdigest()


class _Content:
    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        #: Visited objects by identity. Each object is kept, so that its address is not used again.
        self._met: dict[int, tuple[int, object]] = {}

    def _write(self, *words: object) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            self.hash.update(b"%d:" % len(data) + data)

    def add(self, thing: Any) -> None:
        if thing is None or isinstance(thing, bool | int | float | complex | str | bytes):
            self._write(type(thing).__name__, thing)
        elif isinstance(thing, list | tuple):
            self._write(type(thing).__qualname__, len(thing))
            for item in thing:
                self.add(item)
        elif isinstance(thing, set | frozenset):
            self._write("set", *sorted(digest_content(item) for item in thing))
        elif isinstance(thing, type | types.BuiltinFunctionType | enum.Enum):
            self._write(type(thing).__name__, thing.__module__, getattr(thing, "__qualname__", thing))
        elif isinstance(thing, np.ndarray):
            self._write("array", thing.dtype, thing.shape, np.ascontiguousarray(thing).tobytes())
        elif id(thing) in self._met:
            self._write("again", self._met[id(thing)][0])
        else:
            self._met[id(thing)] = (len(self._met), thing)
            self._add_new(thing)

    def _add_new(self, thing: Any) -> None:
        torch: Any = sys.modules.get("torch")  # without torch there are no tensors, and importing it takes seconds
        if torch is not None and isinstance(thing, torch.Tensor):
            numbers = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            self._write(type(thing).__name__, thing.dtype, tuple(thing.shape), numbers)
        elif isinstance(thing, Path) or (torch is not None and isinstance(thing, torch.dtype | torch.device)):
            self._write(type(thing).__name__, thing)
        elif isinstance(thing, types.FunctionType):
            cells = [cell.cell_contents for cell in thing.__closure__ or ()]
            self._write("function", thing.__module__, thing.__qualname__, thing.__code__.co_code)
            self.add(cells)
        elif isinstance(thing, dict):
            self._write("dict", len(thing))
            for key, value in thing.items():
                self.add(key)
                self.add(value)
        else:
            self._write("object")
            self.add(thing.__reduce_ex__(4))


def digest_sources(files: Iterable[Path]) -> str:
    """Return the SHA-256 of files and their paths. Comments and docstrings of Python code do not count."""
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        digest.update(f"{file.relative_to(ROOT)} {_digest_file(file)}\n".encode())
    return digest.hexdigest()


@cache
def _digest_file(file: Path) -> str:
    data = file.read_bytes()
    if file.suffix == ".py":
        tree = ast.parse(data)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
                node.body[0] = ast.Pass()
        data = ast.dump(tree).encode()
    return hashlib.sha256(data).hexdigest()


@cache
def find_sources(*modules: str) -> frozenset[Path]:
    """Find the files of this repository's modules, and of everything that they import from it, also in functions."""
    found: set[Path] = set()
    waiting = [file for name in modules if (file := find_file(name))]
    while waiting:
        file = waiting.pop()
        if file in found or file in NOT_FOLLOWED:
            continue
        found.add(file)
        names = find_imports(file)
        # A package's `__init__` runs before any of its modules.
        packages = {name.rsplit(".", 1)[0] for name in names if "." in name}
        waiting += [other for name in names | packages if (other := find_file(name))]
    return frozenset(found)


@cache
def describe_versions() -> str:
    """Return the versions of Python and of the packages that decide the content of an export."""
    lines = [f"python {platform.python_version()} {platform.machine()}"]
    for name in DECIDING_PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} absent")
    return "\n".join(lines)

"""What is made once for all tests, also where several processes run them."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def shared_folder(own: Path) -> Path:
    """What all processes of this run have in common; ``own``: pytest's temporary folder of this one."""
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """``path``, which the first to ask makes and the others wait for: read it, don't write to it."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            staged = path.with_name(f"{path.name}.part")
            make(staged)
            staged.rename(path)
    return path


def content_digest(thing: Any) -> str:
    """Of all that a thing holds, pickled; of a tensor its type, shape and numbers, for its pickle has addresses."""
    import torch

    class Content(pickle.Pickler):
        def reducer_override(self, held: Any) -> Any:
            if not isinstance(held, torch.Tensor):
                return NotImplemented
            return tuple, ([type(held).__name__, str(held.dtype), *held.shape, held.detach().numpy().tobytes()],)

    stream = io.BytesIO()
    Content(stream).dump(thing)
    return hashlib.sha256(stream.getvalue()).hexdigest()


@contextmanager
def equal_graphs_once(folder: Path) -> Iterator[None]:
    """While this lasts, the same module with the same weights goes through PyTorch's exporter once."""
    import onnx

    from teso_deploy.conversion import graphs

    export = graphs.exported

    def exported(module: Any, arguments: Any, inputs: Any, outputs: Any, shapes: Any) -> onnx.ModelProto:
        path = folder / f"{content_digest((module, list(arguments), list(inputs), list(outputs)))}.onnx"
        made_once(path, lambda to: onnx.save(export(module, arguments, inputs, outputs, shapes), to))
        return onnx.load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "exported", exported)
        yield

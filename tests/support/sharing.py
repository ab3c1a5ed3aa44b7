"""Fixtures that are made once for all tests: among the processes of one run, and across runs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.content import describe_versions, digest_content, digest_sources, find_sources
from tests.support.disk_cache import DiskCache, cache_folder
from tests.support.imports import ROOT

#: Found when the tests are loaded, before any of them changes the environment.
CACHE = DiskCache(cache_folder())


def shared_folder(own: Path) -> Path:
    """Return the folder that all processes of this run share. ``own``: pytest's temporary folder of this process."""
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Return ``path``, which the first process makes while the others wait for it. Tests must not write to it."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            staged = path.with_name(f"{path.name}.part")
            make(staged)
            staged.rename(path)
    return path


@cache
def _bundle_sources() -> str:
    """Return a digest of everything in the repository that decides the content of an export."""
    folders = ("teso_deploy/models", "teso_deploy/conversion", "engines/profiles", "export")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    code = find_sources("teso_deploy.conversion.bundle_export", "teso_deploy.conversion.derive")
    return digest_sources({*code, *(file for file in files if file.suffix != ".pyc")})


def exported_once(path: Path, decided_by: object, make: Callable[[Path], object]) -> Path:
    """Return a bundle at ``path`` that is exported once for all runs of the same code. Tests must not write to it.

    Args:
        path: A path in this run's shared folder.
        decided_by: What decides the bundle besides the code: recipe, seed, precisions.
        make: Writes the bundle; called if no run has made it before.
    """
    words = ("bundle", digest_content(decided_by), _bundle_sources(), describe_versions())
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()

    def export(out: Path) -> None:
        with equal_graphs_once():
            make(out)

    return made_once(path, lambda out: CACHE.make(key, export, out))


def _graph_key(module: Any, *arguments: Any) -> str:
    """Return a digest of a module, the code of its parts, the arguments and the exporter.

    Of the package only the networks and their recipe count. The other modules that they import only check and describe.
    """
    classes = {type(part).__module__ for part in module.modules()}
    parts = (ROOT / "teso_deploy/models", ROOT / "tests", ROOT / "teso_deploy/recipe.py")
    code = {file for file in find_sources(*sorted(classes)) if any(file.is_relative_to(part) for part in parts)}
    code |= {ROOT / "teso_deploy/recipe_tables.py", ROOT / "teso_deploy/conversion/graphs.py"}
    words = ("graph", digest_content((module, *arguments)), digest_sources(code), describe_versions())
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


@contextmanager
def equal_graphs_once() -> Iterator[None]:
    """In this block, PyTorch exports a module with the same weights only once for all runs."""
    import onnx

    from teso_deploy.conversion import graphs

    export = graphs.export_module

    def exported(module: Any, arguments: Any, **named: Any) -> onnx.ModelProto:
        key = _graph_key(module, list(arguments), list(named["inputs"]), list(named["outputs"]), repr(named["shapes"]))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            CACHE.make(key, lambda to: onnx.save(export(module, arguments, **named), to), path)
            return onnx.load(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "export_module", exported)
        yield

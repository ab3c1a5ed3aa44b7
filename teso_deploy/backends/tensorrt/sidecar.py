"""What vouches for an engine: a JSON file beside it, without which it is not loaded.

A plan is executable code for one version of a library on one kind of GPU. The sidecar says which, and holds
the hash of the plan's bytes; both are compared before a byte of the plan reaches the library. The hash of an engine
that came with a bundle stands in the bundle's manifest as well, and is compared again when the engine is loaded.

What this keeps away: engines that were damaged, cut short, exchanged, or that are another machine's. What it does
not: somebody who may write as the user, since who can change an engine can change the sidecar and the manifest
beside it, and this package too; and who makes bundles: use those of people whom you trust, as with any program.
The cache's folder is the user's alone (0700) where we make it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from teso_deploy.backends.tensorrt.bindings import TensorRTLibrary
from teso_deploy.backends.tensorrt.builder import Msda
from teso_deploy.backends.tensorrt.profiles import BuildProfile
from teso_deploy.backends.tensorrt.targets import (
    AMPERE_PLUS,
    PORTABLE,
    TARGETS,
    Target,
    list_capabilities,
    runs_portable,
)
from teso_deploy.errors import EngineError, InputNotFoundError, OutputError
from teso_deploy.outputs import staged_file
from teso_deploy.types import Precision

SCHEMA_VERSION = 1
SUFFIX = ".json"
REBUILD = "build it again (--rebuild-engines, or `teso-deploy export`)"


def _check_target(name: str) -> Target:
    """Refuse a library that this package does not know (ValueError, which pydantic reports)."""
    if name not in TARGETS:
        raise ValueError(f"{name!r} is not one of {', '.join(TARGETS)}")
    return name


class Sidecar(BaseModel):
    """Beside ``NAME.engine``, as ``NAME.engine.json``.

    ``graph_sha256``: of the ONNX file and its weights. ``platform``: ``linux-x86_64``. ``architecture``:
    ``sm89``, or for more: ``portable``, ``ampere-plus``. ``gpu``: the one that it was built on; TensorRT-RTX needs
    none. ``shares``: of floating-point tensors, by type; ``shares_from`` the engine itself, through the library's
    inspector, or, where no GPU could open it, from the strongly typed network that it was built from. ``parity``:
    how it held against ONNX Runtime, and on which GPU; None where it could not run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    sha256: str
    bytes: int
    graph: str
    graph_sha256: str
    target: Annotated[Target, AfterValidator(_check_target)]
    library_version: str
    platform: str
    architecture: str
    gpu: str | None = None
    settings: BuildProfile
    precision: Precision
    shares: dict[str, float]
    shares_from: Literal["engine", "network"]
    msda: Msda | None
    build_seconds: float
    parity: dict[str, Any] | None = None
    built_by: str


def this_platform() -> str:
    """``linux-x86_64``."""
    return f"{platform.system()}-{platform.machine()}".lower()


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of an engine's file lies."""
    return path.with_name(path.name + SUFFIX)


def write_engine(path: Path, content: bytes, sidecar: Sidecar) -> None:
    """An engine and what vouches for it; the sidecar comes last, so that an engine alone is half a write.

    Raises :class:`OutputError`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as staged:
            staged.write(content)
            sidecar_path(path).unlink(missing_ok=True)  # an older engine's: nobody may read it with the new one
        with staged_file(sidecar_path(path)) as staged:
            staged.write(sidecar.model_dump_json(indent=1).encode() + b"\n")
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror}): make room, or give another folder") from error


def read_sidecar(path: Path) -> Sidecar:
    """What vouches for the engine at ``path``.

    Raises :class:`InputNotFoundError` (no engine) and :class:`EngineError` (no sidecar, or one that is none).
    """
    if not os.path.isfile(path):  # Path.is_file raises where a folder may not be looked into
        raise InputNotFoundError(f"no engine {path} that can be read: {REBUILD}")
    beside = sidecar_path(path)
    if os.path.lexists(beside) and not os.path.isfile(beside):  # to open a pipe may wait for ever
        raise EngineError(f"{beside} is not a file, so nothing vouches for the engine: {REBUILD}")
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(f"{path} has no sidecar {beside.name}, so nothing vouches for it: {REBUILD}") from None
    except OSError as error:
        raise EngineError(
            f"{beside} can't be read ({error.strerror}): give yourself the right, or {REBUILD}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{beside} is damaged, so nothing vouches for the engine: {REBUILD}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise EngineError(f"{beside} has schema version {version}, this package reads {SCHEMA_VERSION}: {REBUILD}")
    try:
        return Sidecar.model_validate(content)
    except ValidationError as error:
        raise EngineError(f"{beside} is damaged, so nothing vouches for the engine: {REBUILD}") from error


def read_engine(path: Path, sha256: str | None = None) -> tuple[bytes, Sidecar]:
    """An engine's bytes, which are those that were built. ``sha256``: what a manifest says that they are.

    Raises what :func:`read_sidecar` does.
    """
    sidecar = read_sidecar(path)
    try:
        content = path.read_bytes()  # hashed as read: the file may change under our hands
    except OSError as error:
        raise EngineError(f"{path} can't be read ({error.strerror}): give yourself the right, or {REBUILD}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sidecar.sha256 or sha256 not in (None, digest):
        raise EngineError(f"{path} is not the engine that was built (another hash), and is not loaded: {REBUILD}")
    return content, sidecar


def architecture_of(capability: tuple[int, int]) -> str:
    """(8, 9) → ``sm89``."""
    return f"sm{capability[0]}{capability[1]}"


def check_fits(
    sidecar: Sidecar,
    library: TensorRTLibrary,
    capability: tuple[int, int] | None,
    gpu: str | None,
    graph_sha256: str | None,
) -> None:
    """Refuse an engine of something else (:class:`EngineError`): one sentence says what differs.

    ``capability`` and ``gpu``: of the GPU that is to run it; None: not asked. ``graph_sha256``: of the graph
    that it is to stand for; None: not asked.
    """
    what = f"the engine of {sidecar.graph}"
    if sidecar.target != library.target:
        raise EngineError(f"{what} is of {sidecar.target}, asked for is {library.target}: {REBUILD}")
    if sidecar.library_version != library.version:
        raise EngineError(
            f"{what} was built by {sidecar.target} {sidecar.library_version}, here is {library.version}: {REBUILD}, "
            f"or install that version"
        )
    if sidecar.platform != this_platform() and not library.is_portable:
        raise EngineError(f"{what} was built on {sidecar.platform}, this is {this_platform()}: {REBUILD}")
    if graph_sha256 is not None and sidecar.graph_sha256 != graph_sha256:
        raise EngineError(f"{what} was built from another graph than the bundle's: {REBUILD}")
    if capability is None:
        return
    if sidecar.architecture == PORTABLE:
        if not runs_portable(capability):
            raise EngineError(
                f"{what} is a portable one, for compute capability {list_capabilities(portable=True)}, and "
                f"{gpu or 'this GPU'} has {capability[0]}.{capability[1]}: {REBUILD}"
            )
        return
    here, compatibility = architecture_of(capability), sidecar.settings.hardware_compatibility
    if compatibility == AMPERE_PLUS and not library.is_portable:
        if capability < (8, 0):
            raise EngineError(f"{what} is for GPUs from sm80 on, {gpu or 'this one'} is {here}: {REBUILD}")
    elif sidecar.architecture != here:
        raise EngineError(f"{what} is for {sidecar.architecture}, {gpu or 'this GPU'} is {here}: {REBUILD}")
    elif not library.is_portable and compatibility == "none" and sidecar.gpu != gpu:
        raise EngineError(f"{what} was built on {sidecar.gpu}, this is {gpu}: {REBUILD}")

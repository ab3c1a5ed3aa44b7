"""The sidecar of an engine: a JSON file next to it. An engine without a sidecar is not loaded.

An engine is executable code for one version of a library on one kind of GPU. The sidecar names both and has the hash
of the engine's bytes. All three are compared before the library gets any byte of the engine. The hash of an engine
that came with a bundle is also in the bundle's manifest, and is compared again when the engine is loaded.

This protects against engines that were damaged, cut short, exchanged, or built on another machine. It does not protect
against an attacker with the user's rights, who could change the sidecar, the manifest and this package as well. Nor
does it protect against the author of a bundle: use bundles of people whom you trust, as with any program. If we create
the cache's folder, only the user can read it (0700).
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
from teso_deploy.outputs import open_staged_file
from teso_deploy.types import Precision

SCHEMA_VERSION = 1
SUFFIX = ".json"
REBUILD = "build it again (--rebuild-engines, or `teso-deploy export`)"


def _check_target(name: str) -> Target:
    """Raise ValueError, which pydantic reports, for a library that this package does not know."""
    if name not in TARGETS:
        raise ValueError(f"{name!r} is not one of {', '.join(TARGETS)}")
    return name


class Sidecar(BaseModel):
    """The content of ``NAME.engine.json``, next to ``NAME.engine``.

    Attributes:
        schema_version: Version of this format.
        sha256: Hash of the engine.
        bytes: Its size.
        graph: The graph's name in the manifest.
        graph_sha256: Hash of the ONNX file and its weights.
        target: The library.
        library_version: The library's version.
        platform: Such as ``linux-x86_64``.
        architecture: ``sm89``, or for several generations ``portable`` or ``ampere-plus``.
        gpu: The GPU that it was built on; None for TensorRT-RTX, which needs no GPU.
        settings: The build profile.
        precision: The precision.
        shares: Share of each type among the floating-point tensors.
        shares_from: Where ``shares`` come from: the engine, by the library's inspector, or the strongly typed network,
            if no GPU could open the engine.
        msda: How deformable attention is computed.
        build_seconds: How long the build took.
        parity: How it compared with ONNX Runtime, and on which GPU; None if it could not run.
        built_by: Name and version of this package.
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


def name_platform() -> str:
    """The operating system and processor, such as ``linux-x86_64``."""
    return f"{platform.system()}-{platform.machine()}".lower()


def get_sidecar_path(path: Path) -> Path:
    """The path of an engine's sidecar."""
    return path.with_name(path.name + SUFFIX)


def write_engine(path: Path, content: bytes, sidecar: Sidecar) -> None:
    """Write an engine and its sidecar.

    The sidecar is written last, so an engine without one was interrupted.

    Args:
        path: The engine's file.
        content: Bytes of the engine.
        sidecar: Its sidecar.

    Raises:
        OutputError: A file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_staged_file(path) as staged:
            staged.write(content)
            # An existing sidecar belongs to an older engine, and must not be read with the new one.
            get_sidecar_path(path).unlink(missing_ok=True)
        with open_staged_file(get_sidecar_path(path)) as staged:
            staged.write(sidecar.model_dump_json(indent=1).encode() + b"\n")
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} can't be written ({error.strerror}): make room, or give another folder") from error


def read_sidecar(path: Path) -> Sidecar:
    """Read the sidecar of the engine at ``path``.

    Raises:
        InputNotFoundError: There is no engine.
        EngineError: The sidecar is missing or damaged.
    """
    if not os.path.isfile(path):  # Path.is_file raises for a folder without permission
        raise InputNotFoundError(f"no engine {path}, or it can't be read: {REBUILD}")
    beside = get_sidecar_path(path)
    if os.path.lexists(beside) and not os.path.isfile(beside):  # opening a pipe could block
        raise EngineError(f"{beside} is not a file, so the engine can't be checked: {REBUILD}")
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EngineError(f"{path} has no sidecar {beside.name}, so the engine can't be checked: {REBUILD}") from None
    except OSError as error:
        raise EngineError(
            f"{beside} can't be read ({error.strerror}): make it readable for you, or {REBUILD}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{beside} is damaged, so the engine can't be checked: {REBUILD}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise EngineError(f"{beside} has schema version {version}, this package reads {SCHEMA_VERSION}: {REBUILD}")
    try:
        return Sidecar.model_validate(content)
    except ValidationError as error:
        raise EngineError(f"{beside} is damaged, so the engine can't be checked: {REBUILD}") from error


def read_engine(path: Path, sha256: str | None = None) -> tuple[bytes, Sidecar]:
    """Read an engine and check its hash.

    Args:
        path: The engine's file.
        sha256: The hash in a bundle's manifest. Default: only the sidecar's hash is compared.

    Returns:
        Bytes of the engine, and its sidecar.

    Raises:
        InputNotFoundError: There is no engine.
        EngineError: The sidecar is missing or damaged, or the hash differs.
    """
    sidecar = read_sidecar(path)
    try:
        content = path.read_bytes()  # hash what was read: the file may change at any time
    except OSError as error:
        raise EngineError(f"{path} can't be read ({error.strerror}): make it readable for you, or {REBUILD}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sidecar.sha256 or sha256 not in (None, digest):
        raise EngineError(
            f"{path} differs from the engine that was built (its hash is another), so it is not loaded: {REBUILD}"
        )
    return content, sidecar


def name_architecture(capability: tuple[int, int]) -> str:
    """Turn (8, 9) into ``sm89``."""
    return f"sm{capability[0]}{capability[1]}"


def check_fits(
    sidecar: Sidecar,
    library: TensorRTLibrary,
    *,
    capability: tuple[int, int] | None,
    gpu: str | None,
    graph_sha256: str | None,
) -> None:
    """Refuse an engine that does not fit this library, GPU or graph.

    Args:
        sidecar: The engine's sidecar.
        library: The library that will load it.
        capability: Compute capability of the GPU that will run it; None skips the check.
        gpu: Name of that GPU; None if it is unknown.
        graph_sha256: Hash of the graph that it was built from; None skips the check.

    Raises:
        EngineError: Something differs; the message says what.
    """
    what = f"the engine of {sidecar.graph}"
    if sidecar.target != library.target:
        raise EngineError(f"{what} is for {sidecar.target}, but {library.target} was requested: {REBUILD}")
    if sidecar.library_version != library.version:
        raise EngineError(
            f"{what} was built by {sidecar.target} {sidecar.library_version}, but {library.version} is installed: "
            f"{REBUILD}, "
            f"or install that version"
        )
    if sidecar.platform != name_platform() and not library.is_portable:
        raise EngineError(f"{what} was built on {sidecar.platform}, but this machine is {name_platform()}: {REBUILD}")
    if graph_sha256 is not None and sidecar.graph_sha256 != graph_sha256:
        raise EngineError(f"{what} was built from another graph than the bundle's: {REBUILD}")
    if capability is None:
        return
    if sidecar.architecture == PORTABLE:
        if not runs_portable(capability):
            raise EngineError(
                f"{what} is portable, for compute capability {list_capabilities(portable=True)}, but "
                f"{gpu or 'this GPU'} has {capability[0]}.{capability[1]}: {REBUILD}"
            )
        return
    here, compatibility = name_architecture(capability), sidecar.settings.hardware_compatibility
    if compatibility == AMPERE_PLUS and not library.is_portable:
        if capability < (8, 0):
            raise EngineError(f"{what} is for sm80 and newer GPUs, but {gpu or 'this one'} is {here}: {REBUILD}")
    elif sidecar.architecture != here:
        raise EngineError(f"{what} is for {sidecar.architecture}, but {gpu or 'this GPU'} is {here}: {REBUILD}")
    elif not library.is_portable and compatibility == "none" and sidecar.gpu != gpu:
        raise EngineError(f"{what} was built on {sidecar.gpu}, but this GPU is {gpu}: {REBUILD}")

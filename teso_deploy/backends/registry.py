"""The backends as data: a backend is an entry here and the module that the entry names.

The command line, ``doctor``, the automatic choice and the documentation read this table. Nothing heavy is imported
until a backend is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from teso_deploy.backends import shared_libraries
from teso_deploy.errors import MissingExtraError
from teso_deploy.requirements import write_install_command
from teso_deploy.types import Precision

#: In place of a backend's name, this chooses the first backend that can run the bundle without building an engine.
AUTO = "auto"
#: The backend of the base install.
DEFAULT = "cpu"
#: A backend's name, or :data:`AUTO`.
BackendName = str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEntry:
    """One backend.

    Attributes:
        name: The name that users give.
        summary: A description in a few words.
        factory: MODULE:FUNCTION that loads it, a :data:`~teso_deploy.backends.contracts.BackendFactory`.
        probe: MODULE:FUNCTION that checks whether it can run on a machine, a
            :data:`~teso_deploy.backends.availability.Probe`. Default: it can if its modules are installed.
        extra: The extra that installs it. Default: it belongs to the base install.
        modules: Modules that the extra installs. If one is missing, the backend is refused before it is loaded.
        library: Its library by the name in :data:`~teso_deploy.backends.shared_libraries.LIBRARIES`, which ``doctor``
            loads in a separate process. Default: none.
        device: Where its graphs run. Default: on the CPU.
        precisions: Precisions that it can compute in, if the bundle has the form. Default: all.
        builds_engines: Whether it builds engines, which takes minutes, and accepts build profiles. Default: no.
        automatic_rank: Its rank when ``auto`` chooses, the lowest first. Default: ``auto`` never chooses it.
    """

    name: str
    summary: str
    factory: str
    probe: str = "teso_deploy.backends.availability:probe_modules"
    extra: str | None = None
    modules: tuple[str, ...] = ()
    library: str | None = None
    device: Literal["cpu", "gpu"] = "cpu"
    precisions: tuple[Precision, ...] = get_args(Precision)
    builds_engines: bool = False
    automatic_rank: int | None = None


_PROBE_GPU = "teso_deploy.backends.availability:probe_gpu_library"
_TENSORRT = "teso_deploy.backends.tensorrt.loading:load_tensorrt"
BACKENDS: dict[str, BackendEntry] = {
    entry.name: entry
    for entry in (
        BackendEntry(
            name="cpu",
            summary="ONNX Runtime on the CPU",
            factory="teso_deploy.backends.onnxruntime:load_cpu",
            probe="teso_deploy.backends.availability:probe_cpu",
            automatic_rank=3,
        ),
        BackendEntry(
            name="cuda",
            summary="ONNX Runtime on an NVIDIA GPU",
            factory="teso_deploy.backends.onnxruntime_cuda:load_cuda",
            probe=_PROBE_GPU,
            # The CPU's package has the same module, so whether it supports CUDA is checked when it is loaded.
            extra="onnxruntime-gpu",
            library="onnxruntime-gpu",
            device="gpu",
            automatic_rank=2,
        ),
        BackendEntry(
            name="tensorrt",
            summary="TensorRT, which builds engines on the GPU that runs them",
            factory=_TENSORRT,
            probe=_PROBE_GPU,
            extra="tensorrt",
            modules=("tensorrt",),
            library="tensorrt",
            device="gpu",
            builds_engines=True,
            automatic_rank=0,
        ),
        BackendEntry(
            name="tensorrt-rtx",
            summary="TensorRT-RTX, which builds engines on any machine",
            factory=_TENSORRT,
            probe="teso_deploy.backends.availability:probe_tensorrt_rtx",
            extra="tensorrt-rtx",
            modules=("tensorrt_rtx",),
            library="tensorrt-rtx",
            device="gpu",
            builds_engines=True,
            automatic_rank=1,
        ),
        BackendEntry(
            name="pytorch",
            summary="PyTorch, to compare with",
            factory="teso_deploy.conversion.pytorch_backend:load_pytorch",
            extra="export",
            modules=("torch", "onnx", "safetensors"),
            precisions=("fp32",),
        ),
    )
}


def list_backends() -> list[str]:
    """List the values of ``--backend``: :data:`AUTO` and every name."""
    return [AUTO, *BACKENDS]


def list_gpu_backends() -> list[str]:
    """List the backends that run on a GPU."""
    return [name for name, entry in BACKENDS.items() if entry.device == "gpu"]


def list_targets() -> list[str]:
    """List the backends that engines can be built for."""
    return [name for name, entry in BACKENDS.items() if entry.builds_engines]


def list_automatic() -> list[BackendEntry]:
    """List the backends that ``auto`` tries, the best first."""
    ranked = [(entry.automatic_rank, entry) for entry in BACKENDS.values() if entry.automatic_rank is not None]
    return [entry for _, entry in sorted(ranked, key=lambda one: one[0])]


def list_backends_to_verify() -> list[str]:
    """List the values of ``verify --backend``: all but :data:`DEFAULT`.

    The forms that ``verify`` always checks run on :data:`DEFAULT`.
    """
    return [name for name in BACKENDS if name != DEFAULT]


def describe_choice() -> str:
    """Describe ``--backend`` for help texts."""
    order = ", ".join(entry.name for entry in list_automatic())
    summaries = "; ".join(f"{entry.name}: {entry.summary}" for entry in BACKENDS.values())
    return f"{summaries}; {AUTO}: the first of {order} that can run this bundle without building an engine."


def runs_on_gpu(name: str) -> bool:
    """Return whether a backend runs on a GPU; False for a name that is not in the registry."""
    return name in BACKENDS and BACKENDS[name].device == "gpu"


def find_absent(entry: BackendEntry) -> list[str]:
    """List the modules of a backend that are not installed, without importing any."""
    return [module for module in entry.modules if not shared_libraries.has_module(module)]


def check_installed(name: str) -> None:
    """Refuse a backend whose extra is missing.

    Raises:
        MissingExtraError: One of its modules is not installed; the message names the extra.
    """
    entry = BACKENDS[name]
    if absent := find_absent(entry):
        mend = write_install_command(entry.extra) if entry.extra else f"pip install {' '.join(absent)}"
        raise MissingExtraError(f"{name} is not installed: {mend}")

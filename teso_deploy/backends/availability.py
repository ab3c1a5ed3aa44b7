"""Rules for which backends can run on a machine, and which installed packages exclude each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from teso_deploy.backends.machine import Driver, Gpu, Machine
from teso_deploy.backends.registry import BACKENDS, BackendEntry, find_absent
from teso_deploy.backends.shared_libraries import Found
from teso_deploy.backends.tensorrt.targets import format_capability, list_capabilities, runs_rtx
from teso_deploy.named_objects import load_object

#: CUDA → the first driver that supports it.
DRIVER_OF_CUDA = {12: 525, 13: 580}
#: The CUDA that the extras install.
OUR_CUDA = 13
#: CUDA 13 and TensorRT run on no older GPU.
OLDEST_CAPABILITY = (7, 5)
#: The version of TensorRT that ONNX Runtime's TensorRT provider needs: it is linked to libnvinfer.so.10.
TENSORRT_OF_ONNXRUNTIME = 10


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The GPUs, libraries and execution providers of a machine, as the probes of the backends read them.

    Attributes:
        machine: Its GPUs and their driver.
        libraries: The GPU libraries that are installed, by their names in
            :data:`~teso_deploy.backends.shared_libraries.LIBRARIES`.
        providers: The execution providers of ONNX Runtime; none if it can't be loaded.
    """

    machine: Machine
    libraries: Mapping[str, Found]
    providers: Sequence[str]


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend can run here, and with what, or why not."""

    ok: bool
    detail: str


#: The form of the function that a registry entry names as its probe.
Probe = Callable[[BackendEntry, Surroundings], Availability]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Packages or drivers that do not work together: the reason, and commands that repair it, if any exist."""

    reason: str
    mend: tuple[str, ...] = ()


def parse_major(version: str) -> int:
    """Read 13 from ``13.5.0``; 0 if the text is not a version."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def supports_cuda(driver: Driver, major: int) -> bool:
    """Whether a driver is new enough; True if its version is unknown."""
    if driver.cuda is not None:
        return driver.cuda[0] >= major
    return driver.version is None or parse_major(driver.version) >= DRIVER_OF_CUDA.get(major, 0)


def describe_driver(driver: Driver) -> str:
    """Write ``driver 550.54.15 (CUDA 12.4)``."""
    parts = ["driver", *([driver.version] if driver.version else [])]
    return " ".join(parts) + (f" (CUDA {format_capability(driver.cuda)})" if driver.cuda else "")


def find_available(here: Surroundings) -> dict[str, Availability]:
    """Check for each backend of the registry whether it can run here; returns name → result."""
    return {name: load_object(entry.probe)(entry, here) for name, entry in BACKENDS.items()}


def probe_modules(entry: BackendEntry, here: Surroundings) -> Availability:
    """Check a backend that needs only its modules, and a GPU if it runs on one."""
    if entry.device == "gpu" and (problem := _find_gpu_problem(here.machine)):
        return Availability(False, problem)
    absent = find_absent(entry)
    return Availability(not absent, f"{absent[0]} is not installed" if absent else entry.summary)


def probe_cpu(entry: BackendEntry, here: Surroundings) -> Availability:
    """Check that ONNX Runtime can run on the CPU."""
    has_cpu = "CPUExecutionProvider" in here.providers
    return Availability(has_cpu, "ONNX Runtime" if has_cpu else "ONNX Runtime can't be loaded")


def probe_gpu_library(entry: BackendEntry, here: Surroundings) -> Availability:
    """Check a backend whose library runs on any NVIDIA GPU that CUDA supports."""
    name = entry.library or entry.name
    problem = _find_gpu_problem(here.machine) or _find_library_problem(here, name)
    if problem is None and entry.builds_engines:  # its engines run on buffers that we allocate
        problem = _find_device_library_problem(here.libraries)
    if problem is not None:
        return Availability(False, problem)
    return Availability(True, f"{name} {here.libraries[name].version} on {here.machine.gpus[0].name}")


def probe_tensorrt_rtx(entry: BackendEntry, here: Surroundings) -> Availability:
    """Check TensorRT-RTX, which supports only some GPUs."""
    found, gpus = probe_gpu_library(entry, here), here.machine.gpus
    fitting = tuple(gpu for gpu in gpus if can_run_rtx(gpu))
    if not found.ok or fitting == gpus:
        return found
    if not fitting:
        return Availability(False, describe_rtx_problem(gpus[0]))
    return probe_gpu_library(entry, replace(here, machine=replace(here.machine, gpus=fitting)))


def can_run_rtx(gpu: Gpu) -> bool:
    """Whether TensorRT-RTX runs on a GPU; True if its compute capability is unknown."""
    return gpu.compute_capability is None or runs_rtx(gpu.compute_capability)


def describe_rtx_problem(gpu: Gpu) -> str:
    """Say that TensorRT-RTX does not run on a GPU."""
    capability = format_capability(gpu.compute_capability) if gpu.compute_capability else "unknown"
    return f"{gpu.name} has compute capability {capability}, but TensorRT-RTX needs {list_capabilities()}: use tensorrt"


def _find_gpu_problem(machine: Machine) -> str | None:
    if machine.problem or not machine.gpus:
        return machine.problem or "no NVIDIA GPU"
    gpu = machine.gpus[0]
    if all(one.compute_capability and one.compute_capability < OLDEST_CAPABILITY for one in machine.gpus):
        return (
            f"{gpu.name} is too old: CUDA 13 needs compute capability {format_capability(OLDEST_CAPABILITY)} or newer"
        )
    return None


def _find_library_problem(here: Surroundings, name: str) -> str | None:
    machine, libraries = here.machine, here.libraries
    if name not in libraries:
        return f"{name} is not installed"
    found = libraries[name]
    if machine.driver and found.cuda_major and not supports_cuda(machine.driver, found.cuda_major):
        return f"{name} is built for CUDA {found.cuda_major}, {describe_driver(machine.driver)} is too old for it"
    return None if found.loads else f"{name} can't be loaded: {found.problem}"


def _find_device_library_problem(libraries: Mapping[str, Found]) -> str | None:
    def loads(*names: str) -> bool:
        return all(name in libraries and libraries[name].loads for name in names)

    if loads("cuda-core", "cuda-bindings") or loads("pycuda"):
        return None
    return "neither cuda-core with cuda-bindings nor pycuda can be loaded"


def find_exclusions(
    machine: Machine, libraries: Mapping[str, Found], version_of: Callable[[str], str | None]
) -> list[Exclusion]:
    """Find packages and drivers that do not work together here.

    Args:
        machine: The machine.
        libraries: The GPU libraries that are installed.
        version_of: Returns the version of a package, or None if it is not installed.

    Returns:
        One exclusion per conflict; empty if there is none.
    """
    found = []
    if version_of("onnxruntime") and version_of("onnxruntime-gpu"):
        found.append(
            Exclusion(
                "onnxruntime and onnxruntime-gpu share a folder, and the later one has overwritten half of the other",
                ("pip uninstall -y onnxruntime onnxruntime-gpu", "pip install onnxruntime-gpu"),
            )
        )
    tensorrt = libraries["tensorrt"].version if "tensorrt" in libraries else version_of("tensorrt")
    if version_of("onnxruntime-gpu") and tensorrt and parse_major(tensorrt) > TENSORRT_OF_ONNXRUNTIME:
        found.append(
            Exclusion(
                f"onnxruntime-gpu's own TensorRT provider needs TensorRT {TENSORRT_OF_ONNXRUNTIME}, and {tensorrt} is "
                "installed: use the backend tensorrt, which does not need that provider"
            )
        )
    found += [two for family in ("tensorrt", "tensorrt-rtx") if (two := _find_two_cudas(family, machine, version_of))]
    if old := _find_old_driver(machine, libraries):
        found.append(old)
    transformers = version_of("transformers")
    if version_of("optimum-onnx") and transformers and parse_major(transformers) >= 5:
        found.append(
            Exclusion(
                f"optimum-onnx can't be imported with transformers {transformers}",
                ("pip install 'transformers>=4.57,<4.58'",),
            )
        )
    return found


def _find_two_cudas(family: str, machine: Machine, version_of: Callable[[str], str | None]) -> Exclusion | None:
    """Find packages of one library for two versions of CUDA, which overwrite each other's files."""
    parts = [f"{family}-{cuda}{part}" for cuda in ("cu12", "cu13") for part in ("", "-bindings", "-libs")]
    there = [part for part in parts if version_of(part)]
    if not all(any(f"-{cuda}" in part for part in there) for cuda in ("cu12", "cu13")):
        return None
    cuda = "cu13" if machine.driver is None or supports_cuda(machine.driver, 13) else "cu12"
    # The package without a CUDA in its name depends on the one for CUDA 13.
    whole = [family] if version_of(family) else []
    return Exclusion(
        f"{family} for CUDA 12 and for CUDA 13 share their folders, and one has overwritten the other",
        (f"pip uninstall -y {' '.join((*whole, *there))}", f"pip install {family}-{cuda}"),
    )


def _find_old_driver(machine: Machine, libraries: Mapping[str, Found]) -> Exclusion | None:
    driver = machine.driver
    if driver is None:
        return None
    needed = {name: found.cuda_major for name, found in libraries.items() if found.cuda_major}
    wanting = {name: cuda for name, cuda in needed.items() if not supports_cuda(driver, cuda)}
    if wanting:
        who, cuda = ", ".join(wanting), max(wanting.values())
    elif not needed and not supports_cuda(driver, OUR_CUDA):
        who, cuda = "what the extras cuda and tensorrt install", OUR_CUDA
    else:
        return None
    return Exclusion(
        f"{describe_driver(driver)} is too old for {who}, built for CUDA {cuda}: "
        f"install a driver of version {DRIVER_OF_CUDA.get(cuda, 0)} or newer"
    )

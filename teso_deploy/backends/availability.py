"""Which backends can run on a machine, and which installed packages exclude each other: rules, no probing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from teso_deploy.backends.machine import Driver, Gpu, Machine
from teso_deploy.backends.shared_libraries import Found

#: CUDA → the first driver that knows it.
DRIVER_OF_CUDA = {12: 525, 13: 580}
#: What the extras bring.
OUR_CUDA = 13
#: Below, neither CUDA 13 nor TensorRT runs.
OLDEST_CAPABILITY = (7, 5)
#: GPUs that TensorRT-RTX builds for; of others its documents say nothing.
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))
#: ONNX Runtime's TensorRT provider is linked to libnvinfer.so.10.
TENSORRT_OF_ONNXRUNTIME = 10


@dataclass(frozen=True, slots=True)
class Backend:
    """Whether a backend can run here, and with what or why not."""

    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Things that do not go together: a sentence that says what to do, and commands that do it, if any."""

    reason: str
    mend: tuple[str, ...] = ()


def major_of(version: str) -> int:
    """13 for ``13.5.0``; 0 for what is no version."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def dotted(numbers: tuple[int, int]) -> str:
    """``9.0`` for (9, 0)."""
    return f"{numbers[0]}.{numbers[1]}"


def runs_rtx(gpu: Gpu) -> bool:
    """Whether TensorRT-RTX knows a GPU; True where it can't be told."""
    return gpu.compute_capability is None or gpu.compute_capability in RTX_CAPABILITIES


def knows_cuda(driver: Driver, major: int) -> bool:
    """Whether a driver is new enough; True where it can't be told."""
    if driver.cuda is not None:
        return driver.cuda[0] >= major
    return driver.version is None or major_of(driver.version) >= DRIVER_OF_CUDA.get(major, 0)


def described(driver: Driver) -> str:
    """``driver 550.54.15 (CUDA 12.4)``."""
    parts = ["driver", *([driver.version] if driver.version else [])]
    return " ".join(parts) + (f" (CUDA {dotted(driver.cuda)})" if driver.cuda else "")


def backends(machine: Machine, libraries: Mapping[str, Found], providers: Sequence[str]) -> dict[str, Backend]:
    """cpu, cuda, tensorrt and tensorrt-rtx; ``providers`` are those of ONNX Runtime."""
    has_cpu = "CPUExecutionProvider" in providers
    found = {"cpu": Backend(has_cpu, "ONNX Runtime" if has_cpu else "ONNX Runtime can't be loaded")}
    for name, library in (("cuda", "onnxruntime-gpu"), ("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx")):
        problem = _no_gpu(machine) or _no_library(machine, libraries, library)
        if problem is None and name != "cuda":
            problem = _no_host_library(libraries)
        gpus = [gpu for gpu in machine.gpus if name != "tensorrt-rtx" or runs_rtx(gpu)]
        if problem is None and not gpus:
            problem = rtx_problem(machine.gpus[0])
        detail = problem or f"{library} {libraries[library].version} on {gpus[0].name}"
        found[name] = Backend(problem is None, detail)
    return found


def rtx_problem(gpu: Gpu) -> str:
    """What is told of a GPU that TensorRT-RTX does not know."""
    capability = dotted(gpu.compute_capability) if gpu.compute_capability else "unknown"
    known = ", ".join(map(dotted, RTX_CAPABILITIES))
    return f"{gpu.name} has compute capability {capability}, and TensorRT-RTX knows {known}: use tensorrt"


def _no_gpu(machine: Machine) -> str | None:
    if machine.problem or not machine.gpus:
        return machine.problem or "no NVIDIA GPU"
    gpu = machine.gpus[0]
    if all(one.compute_capability and one.compute_capability < OLDEST_CAPABILITY for one in machine.gpus):
        return f"{gpu.name} is older than compute capability {dotted(OLDEST_CAPABILITY)}, where CUDA 13 begins"
    return None


def _no_library(machine: Machine, libraries: Mapping[str, Found], name: str) -> str | None:
    if name not in libraries:
        return f"{name} is not installed"
    found = libraries[name]
    if machine.driver and found.cuda_major and not knows_cuda(machine.driver, found.cuda_major):
        return f"{name} is built for CUDA {found.cuda_major}, {described(machine.driver)} is too old for it"
    return None if found.loads else f"{name} can't be loaded: {found.problem}"


def _no_host_library(libraries: Mapping[str, Found]) -> str | None:
    def loads(*names: str) -> bool:
        return all(name in libraries and libraries[name].loads for name in names)

    if loads("cuda-core", "cuda-bindings") or loads("pycuda"):
        return None
    return "neither cuda-core with cuda-bindings nor pycuda can be loaded"


def exclusions(
    machine: Machine, libraries: Mapping[str, Found], version_of: Callable[[str], str | None]
) -> list[Exclusion]:
    """What does not go together here; ``version_of`` a package, None where it is not installed."""
    found = []
    if version_of("onnxruntime") and version_of("onnxruntime-gpu"):
        found.append(
            Exclusion(
                "onnxruntime and onnxruntime-gpu share a folder, and the later one has overwritten half of the other",
                ("pip uninstall -y onnxruntime onnxruntime-gpu", "pip install onnxruntime-gpu"),
            )
        )
    tensorrt = libraries["tensorrt"].version if "tensorrt" in libraries else version_of("tensorrt")
    if version_of("onnxruntime-gpu") and tensorrt and major_of(tensorrt) > TENSORRT_OF_ONNXRUNTIME:
        found.append(
            Exclusion(
                f"onnxruntime-gpu's own TensorRT provider wants TensorRT {TENSORRT_OF_ONNXRUNTIME}, and {tensorrt} is "
                "installed: take TensorRT by the backend tensorrt, which does not need that provider"
            )
        )
    found += [two for family in ("tensorrt", "tensorrt-rtx") if (two := _two_cudas(family, machine, version_of))]
    if old := _old_driver(machine, libraries):
        found.append(old)
    transformers = version_of("transformers")
    if version_of("optimum-onnx") and transformers and major_of(transformers) >= 5:
        found.append(
            Exclusion(
                f"optimum-onnx can't be imported with transformers {transformers}",
                ("pip install 'transformers>=4.57,<4.58'",),
            )
        )
    return found


def _two_cudas(family: str, machine: Machine, version_of: Callable[[str], str | None]) -> Exclusion | None:
    """Packages of one library for two versions of CUDA, which are installed into the same folders."""
    parts = [f"{family}-{cuda}{part}" for cuda in ("cu12", "cu13") for part in ("", "-bindings", "-libs")]
    there = [part for part in parts if version_of(part)]
    if not all(any(f"-{cuda}" in part for part in there) for cuda in ("cu12", "cu13")):
        return None
    cuda = "cu13" if machine.driver is None or knows_cuda(machine.driver, 13) else "cu12"
    # The package without a CUDA in its name wants that for CUDA 13.
    whole = [family] if version_of(family) else []
    return Exclusion(
        f"{family} for CUDA 12 and for CUDA 13 share their folders, and one has overwritten the other",
        (f"pip uninstall -y {' '.join((*whole, *there))}", f"pip install {family}-{cuda}"),
    )


def _old_driver(machine: Machine, libraries: Mapping[str, Found]) -> Exclusion | None:
    driver = machine.driver
    if driver is None:
        return None
    needed = {name: found.cuda_major for name, found in libraries.items() if found.cuda_major}
    wanting = {name: cuda for name, cuda in needed.items() if not knows_cuda(driver, cuda)}
    if wanting:
        who, cuda = ", ".join(wanting), max(wanting.values())
    elif not needed and not knows_cuda(driver, OUR_CUDA):
        who, cuda = "what the extras cuda and tensorrt install", OUR_CUDA
    else:
        return None
    return Exclusion(
        f"{described(driver)} is too old for {who}, built for CUDA {cuda}: "
        f"install a driver of version {DRIVER_OF_CUDA.get(cuda, 0)} or newer"
    )

"""Find the installed libraries for GPUs, and check whether each can be loaded.

Each installed library is loaded in a separate process: TensorRT and ONNX Runtime may need two versions of the same
shared library, and a broken library may crash the process.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from teso_deploy.redaction import make_child_environment
from teso_deploy.requirements import find_version

TIMEOUT_SECONDS = 120.0
#: An ONNX model with one Identity node, opset 17.
IDENTITY = (
    b'\x08\x08:6\n\x10\n\x01a\x12\x01b"\x08Identity\x12\x00Z\x0f\n\x01a\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01b\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
#: Only a session shows whether the CUDA provider works: the list of providers names those in the build.
CUDA_SESSION = f"""
import onnxruntime as library
report(library.__version__, getattr(library, "cuda_version", None))
if hasattr(library, "preload_dlls"):
    library.preload_dlls()
if "CUDAExecutionProvider" not in library.get_available_providers():
    raise SystemExit("the onnxruntime that is imported was built without CUDA")
session = library.InferenceSession({IDENTITY!r}, providers=["CUDAExecutionProvider"])
if "CUDAExecutionProvider" not in session.get_providers():
    raise SystemExit(1)
"""
#: A function by which the programs print their answer, even if they fail later. The libraries print other lines.
PREAMBLE = """
import json
def report(version=None, cuda=None):
    print("answer:" + json.dumps([version, cuda]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class SharedLibrary:
    """A library for GPUs.

    Attributes:
        packages: Packages that install it, those for the newest CUDA first.
        module: The module by which it is found.
        program: A program that loads it.
        parts: Packages that belong to it, with ``{cuda}`` for CUDA's version. Default: none.
    """

    packages: tuple[str, ...]
    module: str
    program: str
    parts: tuple[str, ...] = ()


LIBRARIES = {
    "cuda-core": SharedLibrary(("cuda-core",), "cuda.core", "import cuda.core\nreport()"),
    "cuda-bindings": SharedLibrary(("cuda-bindings",), "cuda.bindings", "from cuda.bindings import driver\nreport()"),
    "nvidia-ml-py": SharedLibrary(("nvidia-ml-py",), "pynvml", "import pynvml\nreport()"),
    "pycuda": SharedLibrary(("pycuda",), "pycuda", "import pycuda.driver\nreport()"),
    "nvrtc": SharedLibrary(
        ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"),
        "cuda.bindings",
        "from cuda.bindings import nvrtc\n_, *version = nvrtc.nvrtcVersion()\nreport('.'.join(map(str, version)))",
    ),
    "tensorrt": SharedLibrary(
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "tensorrt",
        "import tensorrt\nreport(tensorrt.__version__)",
        ("tensorrt-{cuda}-bindings", "tensorrt-{cuda}-libs"),
    ),
    "tensorrt-rtx": SharedLibrary(
        ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
        "tensorrt_rtx",
        "import tensorrt_rtx\nreport(tensorrt_rtx.__version__)",
        ("tensorrt-rtx-{cuda}-bindings", "tensorrt-rtx-{cuda}-libs"),
    ),
    "onnxruntime-gpu": SharedLibrary(("onnxruntime-gpu",), "onnxruntime", CUDA_SESSION),
}


class Answer(NamedTuple):
    """The answer of the process that loaded a library."""

    version: str | None = None
    cuda: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An installed library.

    Attributes:
        version: Its version.
        problem: Why it can't be loaded, in one line; None if it can.
        cuda_major: Major version of the CUDA that it was built for; None if the library does not report it.
        parts: Packages that belong to it → their versions.
    """

    version: str | None
    problem: str | None = None
    cuda_major: int | None = None
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def loads(self) -> bool:
        """Whether the library can be used."""
        return self.problem is None


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    return find_version(package)


def has_module(name: str) -> bool:
    """Return whether a module is installed.

    The module is not imported, but the packages that contain it are.
    """
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PREAMBLE + program],  # -P: import nothing from the current folder
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=make_child_environment(),
    )


def find_reason(text: str) -> str:
    """Find the line of a process's output that says why it failed."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    if found := re.search(r"lib[\w.+-]+: cannot open shared object file", plain):
        return f"{found[0].split(':')[0]} is not found"
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a message"


def load_all(programs: Mapping[str, str]) -> dict[str, Answer]:
    """Run all programs at the same time and return the answer of each."""
    running = {name: _start(program) for name, program in programs.items()}
    return {name: _answer(process) for name, process in running.items()}


def _answer(process: subprocess.Popen[str]) -> Answer:
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        problem: str | None = f"it was not loaded within {TIMEOUT_SECONDS:.0f} s"
    else:
        if process.returncode < 0:
            problem = f"loading it ended the process (signal {-process.returncode})"
        else:
            problem = find_reason(err) if process.returncode else None
    answer_lines = [line.removeprefix("answer:") for line in out.splitlines() if line.startswith("answer:")]
    version, cuda = json.loads(answer_lines[-1]) if answer_lines else (None, None)
    return Answer(version, cuda, problem)


def _list_parts(library: SharedLibrary) -> dict[str, str]:
    names = [part.format(cuda=cuda) for cuda in ("cu13", "cu12") for part in library.parts]
    return {name: version for name in names if (version := version_of(name))}


def probe_libraries() -> dict[str, Found]:
    """Load each library of :data:`LIBRARIES` that is installed."""
    versions = {
        name: next(filter(None, map(version_of, library.packages)), None) for name, library in LIBRARIES.items()
    }
    # Find onnxruntime-gpu by its package only: ONNX Runtime for the CPU has the same module. NVRTC may be installed
    # with CUDA itself, and has no module.
    there = [
        name
        for name, library in LIBRARIES.items()
        if versions[name] or (name != "onnxruntime-gpu" and has_module(library.module))
    ]
    loaded = load_all({name: LIBRARIES[name].program for name in there})
    found = {}
    for name in there:
        version, cuda, problem = loaded[name]
        if name == "nvrtc" and problem and versions[name] is None:
            continue  # it is not installed, which is not a problem
        built_for = cuda or (versions[name] if name == "cuda-bindings" else None)
        parts = _list_parts(LIBRARIES[name])
        majors = {int(part.split("-cu")[1][:2]) for part in parts}
        major = int(built_for.split(".")[0]) if built_for else max(majors, default=None)
        found[name] = Found(version or versions[name], problem, major, parts)
    return found

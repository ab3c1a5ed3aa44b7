"""The report of ``doctor`` for simulated machines and environments."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teso_deploy.backends import machine, shared_libraries
from teso_deploy.backends.registry import BACKENDS, BackendEntry, list_gpu_backends
from teso_deploy.backends.shared_libraries import Answer
from teso_deploy.cli.doctor import EXTRAS, examine, list_extras
from teso_deploy.cli.extensions import EXTENSION_POINTS
from teso_deploy.evaluation.protocols.registry import PROTOCOLS, ProtocolEntry
from tests.support.commands import teso

GIB = 1 << 30
GPU_EXTRAS = {extra: modules for extra, modules in list_extras(has_gpu=True).items() if extra not in EXTRAS}
H200 = ("NVIDIA H200", (9, 0), 140 * GIB, 3 * GIB)
RTX_4090 = ("NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB, GIB)
V100 = ("Tesla V100", (7, 0), 16 * GIB, 0)
#: A machine on which everything is installed.
ALL = {
    "cuda-core": "1.2.2", "cuda-bindings": "13.5.0", "nvidia-ml-py": "13.615.71", "nvidia-cuda-nvrtc": "13.0.88",
    "tensorrt": "11.4.0.106", "tensorrt-cu13": "11.4.0.106", "tensorrt-cu13-bindings": "11.4.0.106",
    "tensorrt-cu13-libs": "11.4.0.106", "tensorrt-rtx": "1.7.1.116", "tensorrt-rtx-cu13-libs": "1.7.1.116",
    "onnxruntime-gpu": "1.31.1", "pycuda": "2026.1",
}  # fmt: skip
NO_CPU_PACKAGE: dict[str, str | None] = {"onnxruntime": None}
MODULES = {
    "cuda-core": "cuda.core", "cuda-bindings": "cuda.bindings", "nvidia-ml-py": "pynvml", "pycuda": "pycuda",
    "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx", "optimum-onnx": "optimum.onnxruntime",
}  # fmt: skip


class NvmlError(Exception):
    """Like pynvml.NVMLError, which has no base class that we could catch."""


def nvml(*gpus: tuple[str, tuple[int, int], int, int], driver: str, cuda: int, as_bytes: bool = False) -> Any:
    """Make a pynvml that sees these GPUs."""

    def text(value: str) -> str | bytes:
        return value.encode() if as_bytes else value

    def memory(index: int) -> Any:
        if not gpus[index][2]:
            raise NvmlError("Not Supported")
        return SimpleNamespace(total=gpus[index][2], used=gpus[index][3])

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: text(driver),
        nvmlSystemGetCudaDriverVersion_v2=lambda: cuda,
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: text(gpus[index][0]),
        nvmlDeviceGetCudaComputeCapability=lambda index: gpus[index][1],
        nvmlDeviceGetMemoryInfo=memory,
    )


class Fake:
    """A machine: its packages, GPUs and driver, and which libraries can't be loaded."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder = patch, folder
        patch.setattr(machine, "VERSION_FILES", (folder / "version",))
        patch.setattr(machine, "PCI_DEVICES", folder / "pci")
        self.installed({})
        self.gpu()
        self.loads()

    def installed(self, packages: dict[str, str], base: dict[str, str | None] | None = None) -> None:
        """Install these packages in addition to the base install and the tests' packages.

        A base version of None removes one.
        """
        of_gpu = {package for library in shared_libraries.LIBRARIES.values() for package in library.packages}

        def version(package: str) -> str | None:
            if package in packages:
                return packages[package]
            if base and package in base:
                return base[package]
            try:
                return None if package in of_gpu or package == "optimum-onnx" else metadata.version(package)
            except metadata.PackageNotFoundError:
                return None

        def has(module: str) -> bool:
            package = next((package for package, name in MODULES.items() if name == module), None)
            return package in packages if package else module not in GPU_EXTRAS

        self.patch.setattr(shared_libraries, "version_of", version)
        self.patch.setattr(shared_libraries, "has_module", has)

    def loads(self, problems: dict[str, str] | None = None, cuda: dict[str, str] | None = None) -> None:
        """Make everything that is installed loadable, except for these."""
        built_for = {"onnxruntime-gpu": "13.0"} | (cuda or {})

        def load(programs: dict[str, str]) -> dict[str, Answer]:
            return {name: Answer(None, built_for.get(name), (problems or {}).get(name)) for name in programs}

        self.patch.setattr(shared_libraries, "load_all", load)

    def gpu(self, pynvml: Any = None, lacks: tuple[str, ...] = (), module: str | None = None) -> None:
        """Set NVML (None: no pynvml), the driver libraries that are absent, and the kernel module's version."""
        self.patch.setitem(sys.modules, "pynvml", pynvml)
        there = pynvml is not None
        self.patch.setattr(machine, "can_load", lambda library: there and library not in lacks)
        if not there:
            self.patch.setattr(machine, "_ask_libcuda", lambda: ctypes.CDLL("libcuda.so.is.not.here"))
        if module:
            (self.folder / "version").write_text(module)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    return Fake(monkeypatch, tmp_path)


def shown() -> str:
    """Return ``doctor``'s text for people, without the table's lines and breaks."""
    return " ".join(teso("doctor").out.replace("│", " ").split())


def reasons(report: dict[str, Any]) -> str:
    return "\n".join(exclusion["reason"] for exclusion in report["exclusions"])


def test_without_a_gpu_nothing_of_gpus_is_advised_or_shown(fake: Fake) -> None:
    report = examine()
    assert (report["driver"], report["gpus"], report["libraries"], report["exclusions"]) == (None, [], {}, [])
    assert report["can_run"] and report["backends"]["cpu"]["ok"]
    assert {
        name: backend["detail"] for name, backend in report["backends"].items() if not backend["ok"]
    } == dict.fromkeys(("cuda", "tensorrt", "tensorrt-rtx"), "no NVIDIA GPU")
    assert not report["extras_missing"].keys() & GPU_EXTRAS and not any("tensorrt" in line for line in report["advice"])
    done = teso("doctor")
    assert done.code == 0 and "tensorrt" not in done.out and "GPU" not in done.out


def test_every_registry_is_listed_with_the_extras_that_its_entries_need(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = ProtocolEntry("somewhere:open_it", "what is measured", "data", ("auto",), ("scipy",), "export")
    monkeypatch.setitem(PROTOCOLS, "made-up", made_up)
    has_module = shared_libraries.has_module
    monkeypatch.setattr(shared_libraries, "has_module", lambda name: name != "torch" and has_module(name))
    found = examine()["extensions"]
    assert list(found) == list(EXTENSION_POINTS)
    assert found["protocols"]["made-up"] == {"summary": "what is measured", "extra": "export", "installed": True}
    assert found["foundations"]["sam"] == {"summary": "Segment Anything", "extra": "export", "installed": False}
    assert found["backends"]["cpu"]["extra"] is None and found["backends"]["cpu"]["installed"]
    assert not found["backends"]["tensorrt"]["installed"]
    assert all(entry["summary"] for entries in found.values() for entry in entries.values())
    text = shown()
    assert "methods to export teso (needs the extra export)" in text and "made-up" in text and "mask-lines" in text


def test_a_damaged_install_lists_the_other_registries(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "teso_deploy.evaluation.protocols.registry", None)
    found = examine()["extensions"]
    assert found["protocols"] == {} and found["sinks"]


def test_a_machine_that_has_everything(fake: Fake) -> None:
    fake.installed(ALL, NO_CPU_PACKAGE)
    fake.gpu(nvml(H200, RTX_4090, driver="580.65.06", cuda=13000))
    report = examine()
    assert report["driver"] == {"version": "580.65.06", "cuda": "13.0", "missing": []}
    assert [(gpu["name"], gpu["compute_capability"], gpu["tensorrt_rtx"]) for gpu in report["gpus"]] == [
        ("NVIDIA H200", "9.0", False),
        ("NVIDIA GeForce RTX 4090", "8.9", True),
    ]
    assert report["gpus"][0]["memory_bytes"] == 140 * GIB and report["gpus"][0]["used_bytes"] == 3 * GIB
    assert all(backend["ok"] for name, backend in report["backends"].items() if name != "cpu")
    found = report["libraries"]
    assert found.keys() == shared_libraries.LIBRARIES.keys() and all(library["loads"] for library in found.values())
    assert found["tensorrt"]["parts"] == {
        "tensorrt-cu13-bindings": "11.4.0.106",
        "tensorrt-cu13-libs": "11.4.0.106",
    }
    assert found["nvrtc"]["version"] == "13.0.88" and found["tensorrt"]["cuda_major"] == 13
    assert not report["extras_missing"].keys() & GPU_EXTRAS
    # The only conflict can't be repaired, and does not need to be.
    assert [exclusion["mend"] for exclusion in report["exclusions"]] == [[]]
    assert "TensorRT 10, and 11.4.0.106 is" in reasons(report)
    out = shown()
    assert "GPU 0" in out and "140.0 GiB, 3.0 GiB in use" in out
    assert "backend tensorrt-rtx yes: tensorrt-rtx 1.7.1.116 on NVIDIA GeForce RTX 4090" in out


def test_a_bare_machine_with_a_gpu_gets_one_command_for_it(fake: Fake) -> None:
    fake.gpu(nvml(RTX_4090, driver="580.65.06", cuda=13000, as_bytes=True))
    report = examine()
    assert report["gpus"][0]["name"] == "NVIDIA GeForce RTX 4090" and report["driver"]["version"] == "580.65.06"
    assert report["backends"]["tensorrt"]["detail"] == "tensorrt is not installed"
    assert report["extras_missing"].keys() >= GPU_EXTRAS.keys()
    assert [line for line in report["advice"] if "tensorrt" in line or "cuda" in line] == [
        "pip install 'teso-deploy[tensorrt]'"
    ]
    fake.installed({"tensorrt-rtx": "1.7.1.116"})
    report = examine()
    assert "pip install 'teso-deploy[cuda]'" in report["advice"]
    assert report["backends"]["tensorrt-rtx"]["detail"].startswith("neither cuda-core")


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_told(fake: Fake) -> None:
    fake.installed(ALL, NO_CPU_PACKAGE)
    fake.gpu(nvml(H200, driver="580.65.06", cuda=13000))
    backend = examine()["backends"]["tensorrt-rtx"]
    assert (
        not backend["ok"]
        and "compute capability 9.0" in backend["detail"]
        and "8.9, 12.0 and later" in backend["detail"]
    )


def test_a_backend_that_needs_a_part_of_an_extra_leaves_the_extra_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = BackendEntry(name="made-up", summary="x", factory="", extra="export", modules=("onnx",))
    monkeypatch.setitem(BACKENDS, "made-up", entry)
    assert list_extras(has_gpu=False) == EXTRAS


def test_a_gpu_that_cuda_13_has_left_behind(fake: Fake) -> None:
    fake.installed(ALL, NO_CPU_PACKAGE)
    fake.gpu(nvml(V100, driver="580.65.06", cuda=13000))
    report = examine()
    assert all("7.5" in report["backends"][name]["detail"] for name in list_gpu_backends())


@pytest.mark.parametrize("everything", [True, False])
def test_a_driver_that_is_too_old(fake: Fake, everything: bool) -> None:
    fake.installed(ALL if everything else {}, NO_CPU_PACKAGE if everything else None)
    fake.gpu(nvml(RTX_4090, driver="550.54.15", cuda=12040))
    report = examine()
    (old,) = (exclusion for exclusion in report["exclusions"] if "driver" in exclusion["reason"])
    assert "driver 550.54.15 (CUDA 12.4)" in old["reason"] and "580 or newer" in old["reason"]
    assert not any("[tensorrt]" in line for line in report["advice"]), "what it installs would not run"
    if everything:
        assert "too old" in report["backends"]["cuda"]["detail"] and not report["backends"]["tensorrt"]["ok"]


def test_packages_for_cuda_12_suffice_for_a_driver_of_cuda_12(fake: Fake) -> None:
    fake.installed(
        {"cuda-core": "1.2.2", "cuda-bindings": "12.9.0", "tensorrt": "11.4.0", "tensorrt-cu12": "11.4.0",
         "tensorrt-cu12-libs": "11.4.0", "nvidia-ml-py": "13"}
    )  # fmt: skip
    fake.gpu(nvml(H200, driver="550.54.15", cuda=12040))
    report = examine()
    assert report["backends"]["tensorrt"]["ok"] and not report["exclusions"]
    fake.gpu(nvml(H200, driver="470.1", cuda=11040))
    assert "525 or newer" in reasons(examine())


def test_two_onnxruntimes_clobber_each_other(fake: Fake) -> None:
    fake.installed({"onnxruntime-gpu": "1.31.1"})
    report = examine()
    assert report["advice"][:2] == [
        "pip uninstall -y onnxruntime onnxruntime-gpu",
        "pip install onnxruntime-gpu",
    ]
    assert report["exclusions"][0]["mend"] == report["advice"][:2]


@pytest.mark.parametrize(("cuda", "kept"), [(13000, "cu13"), (12080, "cu12")])
def test_tensorrt_for_two_cudas_clobbers_itself(fake: Fake, cuda: int, kept: str) -> None:
    fake.installed({"tensorrt": "11.4", "tensorrt-cu13": "11.4", "tensorrt-cu12": "11.4", "tensorrt-cu12-libs": "11.4"})
    fake.gpu(nvml(RTX_4090, driver="580.65.06" if kept == "cu13" else "570.1", cuda=cuda))
    (two,) = (exclusion for exclusion in examine()["exclusions"] if "CUDA 12 and for CUDA 13" in exclusion["reason"])
    assert two["mend"] == [
        "pip uninstall -y tensorrt tensorrt-cu12 tensorrt-cu12-libs tensorrt-cu13",
        f"pip install tensorrt-{kept}",
    ]


@pytest.mark.parametrize(("transformers", "fits"), [("4.57.6", True), ("5.1.0", False)])
def test_optimum_with_transformers(fake: Fake, transformers: str, fits: bool) -> None:
    fake.installed({"optimum-onnx": "0.1.0", "transformers": transformers})
    report = examine()
    assert ("pip install 'transformers>=4.57,<4.58'" in report["advice"]) is not fits
    assert (f"transformers {transformers}" in reasons(report)) is not fits


def test_what_can_not_be_loaded_says_why(fake: Fake) -> None:
    fake.installed(ALL, NO_CPU_PACKAGE)
    fake.gpu(nvml(RTX_4090, driver="580.65.06", cuda=13000), lacks=("libnvcuvid.so.1",))
    fake.loads({"onnxruntime-gpu": "libcublasLt.so.13 is not found", "cuda-core": "no [brackets] here"})
    report = examine()
    assert report["backends"]["cuda"]["detail"] == "onnxruntime-gpu can't be loaded: libcublasLt.so.13 is not found"
    assert report["backends"]["tensorrt"]["ok"], "pycuda is there, too"
    assert report["driver"]["missing"] == ["libnvcuvid.so.1"]
    out = shown()
    assert "no decoding video on the GPU" in out and "no [brackets] here" in out


def failing(message: str) -> Callable[[], None]:
    def fail() -> None:
        raise NvmlError(message)

    return fail


def test_a_driver_that_does_not_answer(fake: Fake) -> None:
    broken = nvml(RTX_4090, driver="580", cuda=13000)
    broken.nvmlInit = failing("Driver/library version mismatch")
    fake.gpu(broken, module="NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun\n")
    fake.patch.setattr(machine, "_ask_libcuda", failing("cuInit"))
    report = examine()
    assert report["driver"]["version"] == "580.65.06" and not report["gpus"]
    assert "version mismatch" in report["backends"]["cuda"]["detail"]
    assert "version mismatch" in shown()


def test_containers_without_the_gpu_or_without_cuda(fake: Fake) -> None:
    fake.gpu(nvml(driver="580.65.06", cuda=13000))
    assert "start it with the GPU" in examine()["gpu_problem"]
    fake.gpu(nvml(RTX_4090, driver="580.65.06", cuda=13000), lacks=("libcuda.so.1",))
    report = examine()
    assert "NVIDIA_DRIVER_CAPABILITIES" in report["backends"]["tensorrt"]["detail"]
    assert not any("[tensorrt]" in line for line in report["advice"])


def test_a_card_without_a_driver(fake: Fake) -> None:
    card = fake.folder / "pci" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    assert "install NVIDIA's driver" in examine()["gpu_problem"]
    (card / "vendor").write_text("0x8086\n")
    assert examine()["gpu_problem"] is None


class LibCuda:
    """The calls of libcuda that we use, for one GPU of compute capability 8.9."""

    def __init__(self, code: int = 0) -> None:
        self.code = code

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDriverGetVersion(self, out: Any) -> int:
        return self._give(out, 13010)

    def cuDeviceGetCount(self, out: Any) -> int:
        return self._give(out, 1)

    def cuDeviceGet(self, out: Any, index: int) -> int:
        return self._give(out, 7)

    def cuDeviceGetName(self, buffer: Any, size: int, device: int) -> int:
        assert device == 7
        buffer.value = b"NVIDIA L4"
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, device: int) -> int:
        return self._give(out, 24 * GIB)

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:
        return self._give(out, {75: 8, 76: 9}[attribute])

    @staticmethod
    def _give(out: Any, value: int) -> int:
        out._obj.value = value  # the argument of ctypes.byref
        return 0


def test_without_nvml_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version").write_text("580.65.06\n")
    monkeypatch.setattr(machine, "VERSION_FILES", (tmp_path / "version",))
    monkeypatch.setattr(machine, "can_load", lambda library: True)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: LibCuda())
    found = machine.probe_machine()
    assert found.gpus == (machine.Gpu(0, "NVIDIA L4", (8, 9), 24 * GIB),) and found.problem is None
    assert found.driver == machine.Driver("580.65.06", (13, 1))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: LibCuda(code=100))
    assert machine.probe_machine().driver == machine.Driver("580.65.06", (13, 1))
    assert "shows no GPU" in str(machine.probe_machine().problem)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: LibCuda(code=803))
    assert "error 803" in str(machine.probe_machine().problem)


def test_libraries_are_loaded_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_libraries, "TIMEOUT_SECONDS", 60.0)
    found = shared_libraries.load_all(
        {
            "good": "print('chatter')\nreport('1.2', '13.0')",
            "absent": "import no_such_module_anywhere",
            "late": "report('3.4')\nraise SystemExit('\\x1b[31mthe reason\\x1b[m')",
            "fatal": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        }
    )
    assert found["good"] == ("1.2", "13.0", None)
    assert "no_such_module_anywhere" in str(found["absent"].problem)
    assert found["late"] == ("3.4", None, "the reason")
    assert found["fatal"].problem == "loading it ended the process (signal 9)"
    monkeypatch.setattr(shared_libraries, "TIMEOUT_SECONDS", 0.1)
    assert "not loaded within" in str(
        shared_libraries.load_all({"slow": "import time\ntime.sleep(90)"})["slow"].problem
    )


def test_the_reason_is_the_library_that_is_absent() -> None:
    log = "\x1b[1;31m[E:onnxruntime] with error: libcublasLt.so.13: cannot open shared object file: No such\x1b[m\nmore"
    assert shared_libraries.find_reason(log) == "libcublasLt.so.13 is not found"
    assert shared_libraries.find_reason("\n") == "it ended without a message"

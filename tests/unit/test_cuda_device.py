"""The two implementations of ``backends/cuda/device.py`` without a GPU: the libraries run on a stub of the driver."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from teso_deploy.backends.cuda import opening
from teso_deploy.backends.cuda.device import CudaLibrary
from teso_deploy.backends.cuda.libcuda import Libcuda
from teso_deploy.errors import DeviceError, MissingExtraError
from tests.support.device_checks import CHECKS
from tests.support.stub_checks import STUB_CHECKS

MODULES: dict[CudaLibrary, str] = {"cuda-core": "cuda", "pycuda": "pycuda"}
SOURCE = Path(__file__).parent / "cuda_stub" / "libcuda.c"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a libcuda.so.1 whose device memory is host memory, and return its folder."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("the stub of the driver needs a C compiler")
    library = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    flags = ["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(
        [compiler, *flags, "-Wl,-soname,libcuda.so.1", "-o", library, SOURCE, "-ldl", "-lpthread"], check=True
    )
    return library.parent


@pytest.fixture(scope="module")
def results(stub: Path) -> dict[str, dict[str, str | None]]:
    """Return library → check → its error."""
    found: dict[str, dict[str, str | None]] = {}
    for library, module in MODULES.items():
        if find_spec(module) is None:
            continue
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.stub_checks", library],
            cwd=ROOT,
            env={**os.environ, "LD_LIBRARY_PATH": f"{stub}:{os.environ.get('LD_LIBRARY_PATH', '')}"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found[library] = {line["check"]: line["error"] for line in lines}
        # This includes messages at the interpreter's end, if something was not released.
        found[library]["end"] = done.stderr or (f"exit code {done.returncode}" if done.returncode else None)
    return found


@pytest.mark.parametrize("library", MODULES)
@pytest.mark.parametrize("check", [*(check.__name__ for check in (*CHECKS, *STUB_CHECKS)), "end"])
def test_on_the_stub(results: dict[str, dict[str, str | None]], library: CudaLibrary, check: str) -> None:
    if library not in results:
        pytest.skip(f"{library} is not installed")
    error = results[library].get(check, f"it did not come to this:\n{results[library]['end']}")
    assert error is None, error


@pytest.mark.parametrize("library", MODULES)
def test_no_driver_is_one_sentence(library: CudaLibrary) -> None:
    if find_spec(MODULES[library]) is None:
        pytest.skip(f"{library} is not installed")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("there is an NVIDIA driver")
    with pytest.raises(DeviceError, match=r"^there is no NVIDIA driver .*: install it"):
        opening.open_device(library)
    with pytest.raises(DeviceError, match="there is no NVIDIA driver"):
        Libcuda()


def _only(*modules: str) -> Any:
    def found(name: str) -> ModuleSpec | None:
        return ModuleSpec(name, None) if name in modules else None

    return found


def test_without_a_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "find_spec", _only())
    with pytest.raises(MissingExtraError, match=r"a GPU needs cuda-core: pip install 'teso-deploy\[cuda\]'"):
        opening.open_device()
    with pytest.raises(MissingExtraError, match=r"a GPU needs pycuda: pip install 'teso-deploy\[pycuda\]'"):
        opening.open_device("pycuda")


def test_the_library_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from teso_deploy.backends.cuda import with_cuda_core, with_pycuda

    monkeypatch.setattr(with_cuda_core, "open_with_cuda_core", lambda index: ("cuda-core", index))
    monkeypatch.setattr(with_pycuda, "open_with_pycuda", lambda index: ("pycuda", index))
    open_device: Any = opening.open_device
    monkeypatch.setattr(opening, "find_spec", _only("cuda.core", "pycuda"))
    assert open_device(index=3) == ("cuda-core", 3)
    assert open_device("pycuda") == ("pycuda", 0)
    monkeypatch.setattr(opening, "find_spec", _only("pycuda"))
    assert open_device() == ("pycuda", 0)
    with pytest.raises(MissingExtraError, match="needs cuda-core"):
        open_device("cuda-core")

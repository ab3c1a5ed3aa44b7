"""Launching, compiling, caching and loading the CUDA operators, as far as that needs no GPU."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from teso_deploy.backends.cuda import compiling, kernels, references
from teso_deploy.backends.cuda.device import Device, Module, Stream
from teso_deploy.backends.cuda.kernels import Postprocess, load_kernels
from teso_deploy.backends.cuda.plans import (
    Labels,
    Launch,
    Nv12Pictures,
    RgbPictures,
    Scores,
    is_rows_first,
    mask_taps,
    plan_postprocess,
    plan_preprocess,
    resize_filter,
)
from teso_deploy.errors import DeviceError, EngineError, InputNotFoundError, MissingExtraError
from teso_deploy.resources import find_shipped_path


def preprocess_plan(**change: Any) -> Launch:
    values: dict[str, Any] = {
        "pictures": RgbPictures(256, (10, 20)), "target": 512, "dtype": np.float32, "bucket": (65, 33),
        "fitted": (60, 33), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "row_filter": 768, "column_filter": 1024,
    }  # fmt: skip
    return plan_preprocess(**{**values, **change})


def test_the_plan_of_pictures() -> None:
    plan = preprocess_plan()
    assert (plan.kernel, plan.grid, plan.block) == ("teso_preprocess_rgb_float32", (2, 9, 1), (32, 8, 1))
    assert plan.arguments[:8] == (256, 60, 600, 512, 65, 33, 768, 60)
    assert [type(one) for one in plan.arguments[:3]] == [int, np.int64, np.int64]
    assert all(isinstance(one, np.float32) for one in plan.arguments[-6:])
    pictures = Nv12Pictures(256, 4096, (9, 21), luma_pitch_bytes=64, batch=3)
    plan = preprocess_plan(pictures=pictures, dtype=np.float16)
    assert (plan.kernel, plan.grid) == ("teso_preprocess_nv12_float16", (2, 9, 3))
    assert plan.arguments[:7] == (256, 4096, 64, 22, 9 * 64, 5 * 22, 16)


def test_the_axis_that_is_resized_first_is_that_of_the_installed_pillow() -> None:
    def versions(source: tuple[int, int], target: tuple[int, int]) -> list[bool]:
        releases = ("11.0.0", "12.1.1", "12.2.0", "12.3.0", "13.0.0")
        return [is_rows_first(source, target, release) for release in releases]

    assert versions((1080, 1920), (288, 512)) == [False] * 5
    assert versions((480, 640), (288, 600)) == [False, False, False, False, True]
    assert versions((900, 8), (300, 16)) == [False, False, True, True, True]
    assert versions((30, 20), (10, 10)) == [False] * 5
    assert preprocess_plan().arguments[-7] == 0


def test_the_plan_of_labels() -> None:
    plan = plan_postprocess(
        Scores(256, (2, 71, 72, 128)), Labels(512, (720, 1281), 1344), threshold=0.5, row_taps=768, column_taps=1024
    )
    assert (plan.kernel, plan.grid, plan.block) == ("teso_postprocess_float32", (41, 90, 2), (32, 8, 1))
    assert plan.arguments == (256, 71, 72, 128, 512, 1344, 720 * 1344, 768, 720, 1024, 1281, 0.5)
    assert isinstance(plan.arguments[-1], np.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"fitted": (66, 33)},
        {"fitted": (65, 0)},
        {"dtype": np.float64},
        {"bucket": (600_000, 33)},
        {"pictures": RgbPictures(256, (10, 20), batch=70_000)},
    ],
    ids=str,
)
def test_what_no_kernel_can_do_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fit|at least|support|too much"):
        preprocess_plan(**change)


def test_views_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="one row takes 60 bytes"):
        RgbPictures(256, (10, 20), pitch_bytes=59)
    with pytest.raises(ValueError, match="one row takes 22 bytes"):
        Nv12Pictures(256, 512, (9, 21), chroma_pitch_bytes=21)
    with pytest.raises(ValueError, match="at least 1"):
        RgbPictures(256, (0, 20))
    with pytest.raises(ValueError, match="256 classes"):
        Scores(256, (1, 256, 8, 8))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        mask_taps(8, 8, 0.0)


def test_tables_stay_within_the_source_and_are_read_only() -> None:
    for source, target in ((1, 1), (1, 50), (50, 1), (4096, 8), (8, 4096), (719, 720), (33, 33)):
        starts, counts, *weights = resize_filter(source, target)
        assert (starts >= 0).all() and (counts >= 1).all() and (starts + counts <= source).all()
        # The kernel uses a tile's first and last row as its bounds.
        assert (np.diff(starts) >= 0).all() and (np.diff(starts + counts) >= 0).all()
        assert np.abs(np.sum(weights, axis=0) - 2**22).max() <= len(weights) / 2
        assert not resize_filter(source, target).flags.writeable
        for share in (0.01, 0.5, 1.0):
            lower, upper, bits = mask_taps(source, target, share)
            assert (lower >= 0).all() and (lower <= upper).all() and (upper < source).all()
            assert (np.diff(lower) >= 0).all() and (np.diff(upper) >= 0).all()
            assert (bits.view(np.float32) >= 0).all() and (bits.view(np.float32) <= 1).all()


def test_the_bytes_that_have_to_move() -> None:
    assert references.count_preprocess_bytes((5, 7), (4, 4), batch=2) == 2 * (5 * 7 * 3 + 3 * 16 * 4)
    assert (
        references.count_preprocess_bytes((5, 7), (4, 4), dtype=np.float16, is_nv12=True) == 35 + 2 * 3 * 4 + 3 * 16 * 2
    )
    assert references.count_postprocess_bytes((2, 3, 4, 6), (10, 11), shares=(0.5, 1.0)) == 2 * (3 * 2 * 6 * 4 + 110)


# ------------------------------------------------------------------------------------------------ tables and loading


class Recorder:
    """A device and a module that record the calls."""

    compute_capability = (9, 0)

    def __init__(self, refused: bytes | None = None) -> None:
        self.refused = refused
        self.loaded: list[bytes] = []
        self.launched: list[str] = []
        self.allocated = self.freed = 0

    def module(self, code: bytes) -> Module:
        if code == self.refused:
            raise DeviceError("it holds nothing for this GPU")
        self.loaded.append(code)
        return cast(Module, self)

    def allocate(self, nbytes: int) -> Any:
        self.allocated += 1

        def close() -> None:
            self.freed += 1

        return SimpleNamespace(pointer=self.allocated << 12, nbytes=nbytes, close=close)

    def copy_in(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def launch(self, kernel: str, **_: Any) -> None:
        self.launched.append(kernel)


def test_tables_are_made_once_a_size_and_given_back() -> None:
    recorder = Recorder()
    operator = Postprocess(cast(Device, recorder), cast(Module, recorder), 0.5)
    for shares in ((1.0, 1.0), (1.0, 1.0), (0.5, 1.0)):
        operator(Scores(256, (1, 2, 8, 9)), Labels(512, (30, 40)), cast(Stream, recorder), shares=shares)
    assert (recorder.allocated, len(recorder.launched)) == (3, 3)
    operator.close()
    assert recorder.freed == 3


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the shipped sources to a separate folder, and make it the only place to load from."""
    folder = tmp_path / "engines" / "kernels"
    shutil.copytree(find_shipped_path("engines/kernels"), folder, ignore=shutil.ignore_patterns("kernels.*"))
    for module in (compiling, kernels):
        monkeypatch.setattr(module, "find_shipped_path", lambda relative: tmp_path / relative)
    monkeypatch.delenv(kernels.FATBIN_VARIABLE, raising=False)
    return folder


def write_fatbin(folder: Path, code: bytes) -> Path:
    (folder / "kernels.fatbin").write_bytes(code)
    (folder / "kernels.sha256").write_text(compiling.hash_sources(compiling.list_kernel_sources()) + "\n")
    return folder / "kernels.fatbin"


def load(recorder: Recorder, **options: Any) -> None:
    load_kernels(cast(Device, recorder), **options)


def test_a_fatbin_is_taken_where_there_is_one(
    kernel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    write_fatbin(kernel_folder, b"packaged")
    own = write_fatbin(tmp_path / "own", b"own")
    recorder = Recorder()
    load(recorder)
    load(recorder, fatbin=own)
    monkeypatch.setenv(kernels.FATBIN_VARIABLE, str(own))
    load(recorder)
    assert recorder.loaded == [b"packaged", b"own", b"own"]
    with pytest.raises(DeviceError):
        load(Recorder(refused=b"own"))
    with pytest.raises(InputNotFoundError, match="cmake"):
        load(recorder, fatbin=tmp_path / "none.fatbin")


def test_a_fatbin_of_other_sources_is_refused(kernel_folder: Path) -> None:
    write_fatbin(kernel_folder, b"packaged")
    with (kernel_folder / "preprocess.cu").open("a") as file:
        file.write("\n")
    with pytest.raises(EngineError, match="other sources"):
        load(Recorder())


class FakeNvrtc:
    """NVRTC 13.5 as far as we use it. Its cubin is the option that names the architecture."""

    class nvrtcResult:
        NVRTC_SUCCESS = SimpleNamespace(name="NVRTC_SUCCESS")
        NVRTC_ERROR_COMPILATION = SimpleNamespace(name="NVRTC_ERROR_COMPILATION")

    def __init__(self, log: bytes = b"") -> None:
        self.compiled = self.destroyed = 0
        self.log = log
        self.code = b""

    def __getattr__(self, name: str) -> Any:
        done = self.nvrtcResult.NVRTC_SUCCESS
        if name.endswith("Size"):
            return lambda program: (done, len(self.log if "Log" in name else self.code))
        if name.startswith("nvrtcGet"):
            return self._fill
        raise AttributeError(name)

    def _fill(self, program: object, buffer: bytearray) -> tuple[Any]:
        buffer[:] = self.log or self.code
        return (self.nvrtcResult.NVRTC_SUCCESS,)

    def nvrtcGetSupportedArchs(self) -> tuple[Any, list[int]]:
        return self.nvrtcResult.NVRTC_SUCCESS, [75, 90, 100]

    def nvrtcCreateProgram(self, *_: Any) -> tuple[Any, object]:
        return self.nvrtcResult.NVRTC_SUCCESS, object()

    def nvrtcCompileProgram(self, program: object, count: int, options: list[bytes]) -> tuple[Any]:
        assert count == len(options)
        self.compiled += 1
        self.code = options[0]
        return (self.nvrtcResult.NVRTC_ERROR_COMPILATION if self.log else self.nvrtcResult.NVRTC_SUCCESS,)

    def nvrtcDestroyProgram(self, program: object) -> None:
        self.destroyed += 1


def use(fake: FakeNvrtc, monkeypatch: pytest.MonkeyPatch) -> FakeNvrtc:
    monkeypatch.setattr(compiling, "_load_nvrtc", lambda: (fake, (13, 5)))
    return fake


def test_what_was_compiled_is_kept_until_a_source_changes(
    kernel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, recorder, cache = use(FakeNvrtc(), monkeypatch), Recorder(), tmp_path / "cache"
    for _ in range(2):
        load(recorder, cache=cache)
    assert recorder.loaded == [b"--gpu-architecture=sm_90"] * 2
    assert (fake.compiled, fake.destroyed) == (1, 1)
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".sha256"]
    with (kernel_folder / "preprocess.cu").open("a") as file:
        file.write("\n")
    load(recorder, cache=cache)
    assert fake.compiled == 2 and len(list(cache.glob("*.bin"))) == 2


def test_a_gpu_that_the_fatbin_does_not_know_is_compiled_for(
    kernel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeNvrtc(), monkeypatch)
    write_fatbin(kernel_folder, b"packaged")
    recorder = Recorder(refused=b"packaged")
    load(recorder, cache=tmp_path / "cache")
    assert recorder.loaded == [b"--gpu-architecture=sm_90"]


def test_a_cache_that_can_t_be_written_is_done_without(
    kernel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeNvrtc(), monkeypatch)
    (tmp_path / "file").write_text("")
    recorder = Recorder()
    load(recorder, cache=tmp_path / "file" / "cache")
    assert len(recorder.loaded) == 1


def test_what_can_t_be_compiled_says_why(kernel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(FakeNvrtc(log=b"kernels.cu(3): error: no\0"), monkeypatch)
    with pytest.raises(DeviceError, match=r"sm_90 .*error: no$"):
        load(Recorder(), cache=tmp_path / "cache")
    assert fake.destroyed == 1 and not (tmp_path / "cache").exists()


def test_architectures() -> None:
    assert compiling.choose_architecture((9, 0), [75, 90, 100]) == "sm_90"
    assert compiling.choose_architecture((10, 3), [75, 90, 100]) == "compute_100"
    assert compiling.choose_architecture((12, 1), [75, 90, 100]) == "compute_100"
    with pytest.raises(DeviceError, match=r"7\.5 and newer, and the GPU has 7\.0"):
        compiling.choose_architecture((7, 0), [75, 90])


def has_nvrtc() -> bool:
    try:
        compiling._load_nvrtc()
    except MissingExtraError:
        return False
    return True


@pytest.mark.skipif(has_nvrtc(), reason="NVRTC is here")
def test_without_nvrtc_the_extra_is_named(kernel_folder: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'teso-deploy\[cuda\]'"):
        load(Recorder())


@pytest.mark.skipif(not has_nvrtc(), reason="NVRTC is not installed (extra cuda)")
@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (99, 0)])
def test_nvrtc_compiles_the_sources(capability: tuple[int, int], tmp_path: Path) -> None:
    code = compiling.compile_kernels(capability, tmp_path)
    assert code.startswith(b"\x7fELF") is (capability != (99, 0))
    for name in ("rgb_float32", "rgb_float16", "nv12_float32", "nv12_float16"):
        assert f"teso_preprocess_{name}".encode() in code
    assert compiling.compile_kernels(capability, tmp_path) == code


# ------------------------------------------------------------------------------------------------ CMake


def fatbin_entries(fatbin: bytes) -> set[str]:
    """Return ``sm_90`` for a cubin, ``compute_90`` for PTX, from the headers that NVIDIA's tools write."""
    magic, _, at, size = struct.unpack_from("<IHHQ", fatbin)
    assert magic == 0xBA55ED50
    end, found = at + size, set()
    while at < end:
        kind, _, header_bytes, data_bytes = struct.unpack_from("<HHIQ", fatbin, at)
        (architecture,) = struct.unpack_from("<I", fatbin, at + 28)
        found.add(f"{'compute' if kind == 1 else 'sm'}_{architecture}")
        at += header_bytes + data_bytes
    return found


@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("nvcc")), reason="cmake and nvcc, which build the fatbin, are not here"
)
def test_cmake_builds_one_fatbin_from_a_clean_tree(tmp_path: Path) -> None:
    root = find_shipped_path("CMakeLists.txt").parent
    for command in (
        ["cmake", "-S", str(root), "-B", str(tmp_path / "build")],
        ["cmake", "--build", str(tmp_path / "build")],
        ["cmake", "--install", str(tmp_path / "build"), "--prefix", str(tmp_path / "installed")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    fatbin = tmp_path / "installed" / "engines" / "kernels" / "kernels.fatbin"
    architectures = (75, 80, 86, 89, 90, 100, 120)
    assert fatbin_entries(fatbin.read_bytes()) == {f"sm_{one}" for one in architectures} | {"compute_120"}
    recorder = Recorder()
    load(recorder, fatbin=fatbin)
    assert recorder.loaded == [fatbin.read_bytes()]

"""A device that is a process on the CPU. It runs the source of the kernels, every block and every thread."""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.cuda.device import KernelArgument
from teso_deploy.resources import find_shipped_path
from tests.support.sharing import made_once, shared_folder

HERE = Path(__file__).parent
FLAGS = (
    "-std=c++20", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror",
    # Fibers switch stacks, which confuses ASan's tracking of stacks. Heap and shared memory are still checked.
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "--param", "asan-stack=0",
)  # fmt: skip


def build_runner(folder: Path, kernels: Path | None = None) -> Path:
    """Build the runner of the kernels in ``kernels`` (default: the shipped ones). Skip the test without g++.

    ``folder``: a temporary folder of pytest. The shipped kernels are compiled once for all tests.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++, which compiles the kernels for the host")

    def compile_to(runner: Path) -> None:
        include = kernels or find_shipped_path("engines/kernels")
        command = [compiler, *FLAGS, f"-I{include}", str(HERE / "runner.cpp"), "-o", str(runner)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    where = shared_folder(folder.parent) if kernels is None else folder
    return made_once(where / "kernels_on_host", compile_to)


class KernelCrash(AssertionError):
    """A kernel made an invalid access. The message is the sanitizer's report."""


class HostMemory:
    """A block of memory. Any access outside of it is an error."""

    def __init__(self, device: HostDevice, nbytes: int) -> None:
        self._device, self.nbytes = device, nbytes
        self.pointer = device.command(b"A" + struct.pack("<Q", nbytes))

    def close(self) -> None:
        """Free the block before the next command. The garbage collector may call this in the middle of a command."""
        if self.pointer:
            self._device.freed.append(self.pointer)
            self.pointer = 0


class HostStream:
    """A stream on which all queued work has already run."""

    handle = 0

    def synchronize(self) -> None:
        pass


class HostDevice:
    """A fake of ``backends/cuda/device.py`` with memory and kernels. It is also the module that holds the kernels.

    Attributes:
        launches: How many launches there were.
        freed: Blocks that are freed before the next command.
    """

    compute_capability = (0, 0)

    def __init__(self, runner: Path) -> None:
        self._report = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [runner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._report,
            env={"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
        )
        self.launches = 0
        self.freed: deque[int] = deque()

    def command(self, command: bytes, answer_bytes: int = 0, answer: NDArray[Any] | None = None) -> int:
        """Send a command, read its answer into ``answer``, and return the number after the answer."""
        while self.freed:
            self._exchange(b"F" + struct.pack("<Q", self.freed.popleft()))
        return self._exchange(command, answer_bytes, answer)

    def _exchange(self, command: bytes, answer_bytes: int = 0, answer: NDArray[Any] | None = None) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(command)
            self._process.stdin.flush()
            data = self._process.stdout.read(answer_bytes)
            number = self._process.stdout.read(8)
        except BrokenPipeError:
            number = b""
        if len(number) != 8:
            self._process.wait()
            self._report.seek(0)
            raise KernelCrash(self._report.read().decode(errors="replace")[:4000])
        if answer is not None:
            answer.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        return int(struct.unpack("<Q", number)[0])

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._report.close()

    def allocate(self, nbytes: int) -> HostMemory:
        return HostMemory(self, nbytes)

    def copy_in(self, memory: int, array: NDArray[Any], stream: HostStream) -> None:
        assert array.flags.c_contiguous
        self.command(b"W" + struct.pack("<QQ", memory, array.nbytes) + array.tobytes())

    def copy_out(self, array: NDArray[Any], memory: int, stream: HostStream) -> None:
        assert array.flags.c_contiguous
        self.command(b"R" + struct.pack("<QQ", memory, array.nbytes), array.nbytes, array)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[KernelArgument],
        stream: HostStream,
    ) -> None:
        packed = [
            argument.to_bytes(8, "little") if isinstance(argument, int) else argument.tobytes()
            for argument in arguments
        ]
        sizes = "".join(str(len(argument)) for argument in packed).encode()
        slots = b"".join(argument.ljust(8, b"\0") for argument in packed)
        name = kernel.encode()
        head = struct.pack("<Q", len(name)) + name + struct.pack("<Q", len(sizes)) + sizes
        self.launches += 1
        self.command(b"L" + head + struct.pack("<6I", *grid, *block) + slots)

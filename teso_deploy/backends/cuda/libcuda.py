"""Calls of the driver's library, by ctypes, that neither cuda-core nor PyCUDA makes as we need them.

PyCUDA can't capture CUDA graphs. The builder of cuda-core 1.2 crashes the process after a capture that failed
(NVIDIA/cuda-python#2834), which is a normal case here: not every engine can be captured.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from ctypes import byref, c_int, c_uint, c_uint64, c_void_p
from typing import Any

from teso_deploy.backends.cuda.device import Stream
from teso_deploy.backends.cuda.refusals import make_no_driver_error
from teso_deploy.errors import DeviceError

#: The driver has three modes of capture. Only in this one may Python free device memory during a capture.
_CAPTURE_MODE_RELAXED = 2
_EVENT_DISABLE_TIMING = 2

_PARAMETERS: dict[str, tuple[Any, ...]] = {
    "cuCtxGetCurrent": (c_void_p,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuGetErrorName": (c_int, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
}


class Libcuda:
    """The driver's library: ``libcuda("cuGraphLaunch", …)`` calls one of its functions.

    Raises :class:`DeviceError` if there is no driver, or if the driver reports an error; the message names the error.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise make_no_driver_error() from error
        self._functions = {}
        for name, parameters in _PARAMETERS.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise DeviceError(f"the NVIDIA driver is too old (it has no {name}): update it") from error
            function.argtypes, function.restype = parameters, c_int
            self._functions[name] = function

    def __call__(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            text = ctypes.c_char_p()
            self._functions["cuGetErrorName"](code, byref(text))
            raise DeviceError(f"{name} failed: {(text.value or str(code).encode()).decode()}")

    def current_context(self) -> int | None:
        """The context that is current in this thread."""
        context = c_void_p()
        self("cuCtxGetCurrent", byref(context))
        return context.value


def order_streams(libcuda: Libcuda, earlier: int, later: int) -> None:
    """Order two streams as :meth:`Device.order_streams` does. The device's context must be current.

    Args:
        libcuda: The driver's library.
        earlier: Handle of the stream whose queued work runs first.
        later: Handle of the stream that waits for it.
    """
    event = c_void_p()
    libcuda("cuEventCreate", byref(event), _EVENT_DISABLE_TIMING)
    try:
        libcuda("cuEventRecord", event, earlier)
        libcuda("cuStreamWaitEvent", later, event, 0)
    finally:
        libcuda("cuEventDestroy_v2", event)  # the driver keeps it until no stream waits for it


class CapturedGraph:
    """A :class:`Graph` that was captured by this module."""

    def __init__(self, libcuda: Libcuda, current: AbstractContextManager[object]) -> None:
        self._libcuda, self._current = libcuda, current
        self._executable: int | None = None

    def launch(self, stream: Stream) -> None:
        """Queue the graph's work. Raises :class:`DeviceError` inside the block that records the graph."""
        if self._executable is None:
            raise DeviceError(
                "the recording of this CUDA graph is not finished: launch it after the block that records it"
            )
        with self._current:
            self._libcuda("cuGraphLaunch", self._executable, stream.handle)

    def _become(self, recorded: c_void_p) -> None:
        executable = c_void_p()
        self._libcuda("cuGraphInstantiateWithFlags", byref(executable), recorded, 0)
        self._executable = executable.value
        weakref.finalize(self, _destroy, self._libcuda, self._current, executable)


def _destroy(libcuda: Libcuda, current: AbstractContextManager[object], executable: c_void_p) -> None:
    with suppress(DeviceError), current:
        libcuda("cuGraphExecDestroy", executable)


@contextmanager
def capture(libcuda: Libcuda, current: AbstractContextManager[object], stream: int) -> Iterator[CapturedGraph]:
    """Record the work that is queued on a stream, as :meth:`Stream.capture` does.

    Args:
        libcuda: The driver's library.
        current: Makes the device's context current; entered for each call.
        stream: Handle of the stream.

    Returns:
        A context manager of the graph, which can be launched after the block.
    """
    graph, recorded = CapturedGraph(libcuda, current), c_void_p()
    with current:
        libcuda("cuStreamBeginCapture_v2", stream, _CAPTURE_MODE_RELAXED)
    try:
        yield graph
    except BaseException:
        with suppress(DeviceError), current:  # the error inside the block is the one to report
            libcuda("cuStreamEndCapture", stream, byref(recorded))
            libcuda("cuGraphDestroy", recorded)
        raise
    with current:
        try:
            libcuda("cuStreamEndCapture", stream, byref(recorded))
        except DeviceError as error:
            raise DeviceError(f"the queued work can't be recorded as a CUDA graph: {error}") from error
        try:
            graph._become(recorded)
        finally:
            libcuda("cuGraphDestroy", recorded)

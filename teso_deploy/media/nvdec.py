"""Decoding on an NVIDIA GPU with FFmpeg's NVDEC, as PyAV's wheels include it.

Frames stay in GPU memory until they are requested, so an unused frame is never copied. The pixels are identical to
those of the software decoder.
"""

from __future__ import annotations

from pathlib import Path

import av
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer

from teso_deploy.backends.machine import DRIVER_LIBRARIES, can_load
from teso_deploy.errors import DeviceError
from teso_deploy.media.container import open_unchecked

#: Pixel format of a frame in GPU memory.
ON_GPU = "cuda"
#: NVDEC interleaves the chroma planes. For that layout FFmpeg converts to RGB with another filter than for separate
#: planes, so the picture would depend on the decoder. Separating the planes first avoids this.
PLANAR = {"nv12": "yuv420p"}


def open_on_gpu(path: Path) -> InputContainer:
    """Open a file so that its video is decoded on the GPU if the GPU can; :func:`check_on_gpu` verifies that.

    Raises:
        DeviceError: The GPU can't be used for decoding. The message says why.
    """
    if ON_GPU not in hwdevices_available():
        raise DeviceError("this PyAV was built without CUDA: pip install --force-reinstall --only-binary av av")
    for library in DRIVER_LIBRARIES:
        if not can_load(library):
            raise DeviceError(f"{library} can't be loaded: see teso-deploy doctor")
    try:
        # Use a separate context: FFmpeg refuses the primary one if another library opened it with other flags.
        accelerator = HWAccel(ON_GPU, options={"primary_ctx": "0"}, is_hw_owned=True)
        return open_unchecked(path, accelerator)
    except TypeError as error:
        raise DeviceError("this PyAV can't leave frames on the GPU: pip install --upgrade av") from error
    # RuntimeError: the GPU can decode none of the file's streams.
    except (av.error.FFmpegError, RuntimeError) as error:
        raise DeviceError(f"the GPU can't be opened for decoding ({error}): see teso-deploy doctor") from error


def check_on_gpu(frame: av.VideoFrame, codec: str) -> None:
    """Raise :class:`DeviceError` if the first frame was decoded in software: FFmpeg falls back silently."""
    if frame.format.name != ON_GPU:
        raise DeviceError(f"FFmpeg does not decode this {codec} ({frame.format.name}) on the GPU")


def download(frame: av.VideoFrame) -> av.VideoFrame:
    """Copy a frame to host memory. Raises :class:`DeviceError` if the copy fails."""
    if frame.format.name != ON_GPU:
        return frame
    inside = frame.sw_format.name if frame.sw_format else "nv12"
    try:
        return frame.reformat(format=PLANAR.get(inside, inside))
    except av.error.FFmpegError as error:
        raise DeviceError(f"a frame can't be copied from the GPU ({error.strerror}): use --decoder software") from error

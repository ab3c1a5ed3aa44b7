"""Decoding on an NVIDIA GPU: FFmpeg's NVDEC, as PyAV's wheels have it.

Frames stay in the GPU's memory until they are asked for, so that a frame that is not looked at is not copied.
What comes down are the same numbers that the software's decoder gives.
"""

from __future__ import annotations

from pathlib import Path

import av
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer

from teso_deploy.backends.machine import DRIVER_LIBRARIES, can_load
from teso_deploy.errors import DeviceError
from teso_deploy.media.container import open_unchecked

#: Format of a frame that lies on the GPU.
ON_GPU = "cuda"
#: NVDEC interleaves the chroma. Straight to RGB, FFmpeg resamples it by another filter than that of planes, and
#: pictures would differ by what decoded them.
PLANAR = {"nv12": "yuv420p"}


def open_on_gpu(path: Path) -> InputContainer:
    """A file that can be read, so that its video is decoded on the GPU if the GPU can: see :func:`check_on_gpu`.

    Raises :class:`DeviceError`, which says why not.
    """
    if ON_GPU not in hwdevices_available():
        raise DeviceError("this PyAV was built without CUDA: pip install --force-reinstall --only-binary av av")
    for library in DRIVER_LIBRARIES:
        if not can_load(library):
            raise DeviceError(f"{library} can't be loaded: see teso-deploy doctor")
    try:
        # A context of its own: FFmpeg refuses the primary one where another library has opened it with other flags.
        accelerator = HWAccel(ON_GPU, options={"primary_ctx": "0"}, is_hw_owned=True)
        return open_unchecked(path, accelerator)
    except TypeError as error:
        raise DeviceError("this PyAV can't leave frames on the GPU: pip install --upgrade av") from error
    # RuntimeError: none of the file's streams can be decoded there.
    except (av.error.FFmpegError, RuntimeError) as error:
        raise DeviceError(f"the GPU can't be opened for decoding ({error}): see teso-deploy doctor") from error


def check_on_gpu(frame: av.VideoFrame, codec: str) -> None:
    """Raises :class:`DeviceError` where the first frame was decoded in software: FFmpeg does so without a word."""
    if frame.format.name != ON_GPU:
        raise DeviceError(f"FFmpeg does not decode this {codec} ({frame.format.name}) on the GPU")


def downloaded(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame in the host's memory. Raises :class:`DeviceError` where the GPU does not give it."""
    if frame.format.name != ON_GPU:
        return frame
    inside = frame.sw_format.name if frame.sw_format else "nv12"
    try:
        return frame.reformat(format=PLANAR.get(inside, inside))
    except av.error.FFmpegError as error:
        raise DeviceError(f"a frame can't be copied from the GPU ({error.strerror}): use --decoder software") from error

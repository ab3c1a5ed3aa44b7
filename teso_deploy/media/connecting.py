"""Opening a stream, and the meaning of the errors that this raises."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from teso_deploy.errors import InputNotFoundError, MediaError, TesoError
from teso_deploy.media.address import Address, open_options
from teso_deploy.media.container import METADATA_ERRORS, SIZE_LIMIT, open_container
from teso_deploy.media.tracks import choose_video_track, list_audio_candidates

#: After these errors, repeating the request would not help: access was refused, or the resource does not exist.
REFUSED = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError, av.error.HTTPNotFoundError)


class _Pipe:
    """Standard input for FFmpeg, because FFmpeg's own reading can't be interrupted."""

    def __init__(self, file: Any, timeout_seconds: float, is_closed: Callable[[], bool]) -> None:
        self._descriptor, self._timeout, self._is_closed = file.fileno(), timeout_seconds, is_closed

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, or none at the end. Raises :class:`TimeoutError`."""
        deadline = time.monotonic() + self._timeout
        while not self._is_closed():
            if select.select([self._descriptor], [], [], 0.1)[0]:
                return os.read(self._descriptor, size)
            if time.monotonic() > deadline:
                raise TimeoutError("nothing came")
        return b""


def open_stream(address: Address, timeout_seconds: float, is_closed: Callable[[], bool]) -> InputContainer:
    """Open the container at an address. The caller closes it.

    Errors are raised as they are; :func:`explain_failure` turns them into a sentence.

    Args:
        address: The address of the stream.
        timeout_seconds: Reading gives up after this time without a byte.
        is_closed: Returns True once the caller wants no more data.
    """
    if address.kind == "file":
        assert address.path is not None
        return open_container(address.path)
    options = open_options(address) | SIZE_LIMIT
    if address.kind == "pipe":
        pipe = _Pipe(sys.stdin.buffer, timeout_seconds, is_closed)
        return av.open(pipe, "r", options=options, metadata_errors=METADATA_ERRORS)
    # PyAV allows this time for opening and again for probing.
    timeout = (timeout_seconds / 2, timeout_seconds)
    return av.open(address.url, "r", options=options, metadata_errors=METADATA_ERRORS, timeout=timeout)


def explain_failure(
    address: Address, error: Exception, *, timeout_seconds: float, waited_seconds: float = 0.0
) -> TesoError:
    """Describe an error of opening or reading an address, without its credentials.

    If an address sends nothing, FFmpeg reports a timeout or invalid data, depending on the protocol.

    Args:
        address: The address that failed.
        error: The error of FFmpeg or of the operating system.
        timeout_seconds: The timeout that applied.
        waited_seconds: How long the failing call took. Default: 0.
    """
    if isinstance(error, TesoError):
        return error
    reason = address.clean(getattr(error, "strerror", None) or str(error))
    if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return MediaError(f"{address.shown} refuses these credentials ({reason}): correct user and password")
    if isinstance(error, av.error.HTTPNotFoundError):
        return InputNotFoundError(f"{address.shown} does not exist ({reason}): check the path")
    is_late = isinstance(error, av.error.InvalidDataError) and waited_seconds > 0.4 * timeout_seconds
    if isinstance(error, av.error.ExitError | TimeoutError) or (is_late and address.kind not in ("file", "pipe")):
        reason = f"no data came for {timeout_seconds:g} s"
    elif address.kind == "pipe" and isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        reason = "no data came, or it is not a video: pipe MPEG-TS, Matroska, or MP4 with its index first"
    return MediaError(f"{address.shown} can't be read ({reason}): check that it runs and can be reached")


def choose_tracks(
    container: InputContainer,
    address: Address,
    *,
    wants_audio: bool,
    video_track: int | None = None,
    audio_track: int | None = None,
) -> tuple[VideoStream, list[AudioStream]]:
    """Choose the video track, and the audio tracks that FFmpeg can decode, best first.

    Args:
        container: An open stream.
        address: The address of the stream.
        wants_audio: Whether to choose audio tracks; if not, the list is empty.
        video_track: Number among the video tracks, from 0. Default: the track that players choose.
        audio_track: Number among the audio tracks, from 0. Default: the track that players choose.

    Raises:
        MediaError: The stream has no video, or lacks a requested track.
    """
    video = choose_video_track(container, address.shown, video_track)
    found = list_audio_candidates(container, address.shown, wanted=audio_track, video=video) if wants_audio else []
    return video, [stream for stream in found if stream.codec_context is not None]


def choose_sound(container: InputContainer, address: Address, audio_track: int | None = None) -> list[AudioStream]:
    """Choose the audio tracks of an address that is read for its sound only, best first.

    Args:
        container: An open stream.
        address: The address of the stream.
        audio_track: Number among the audio tracks, from 0. Default: the track that players choose.

    Raises:
        MediaError: The stream has no sound that can be decoded, or lacks the requested track.
    """
    streams = list_audio_candidates(container, address.shown, wanted=audio_track)
    found = [stream for stream in streams if stream.codec_context is not None]
    if not found:
        why = "no sound that FFmpeg can decode here" if streams else "no sound"
        raise MediaError(f"{address.shown} has {why}: give a stream with an audio track")
    return found

"""The sound of a file: the first track that can be decoded, held in memory or decoded as it is needed."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.container import InputContainer

from teso_deploy.errors import MediaError, TesoError
from teso_deploy.media.container import (
    BROKEN_OFF,
    SteadyClock,
    convert_to_seconds,
    get_announced_end,
    get_origin_seconds,
    open_media,
)
from teso_deploy.media.mono import Mono16k, Piece, SoundCounts
from teso_deploy.media.streamed import Chunk, Envelope, StreamedTrack
from teso_deploy.media.tracks import choose_video_track, list_audio_candidates
from teso_deploy.media.windows import (
    HOP_SECONDS,
    SILENT_PEAK,
    WINDOW_SECONDS,
    AudioTrack,
    Sound,
    SoundTrack,
    WindowKind,
)
from teso_deploy.types import SAMPLE_RATE_HZ

__all__ = [
    "HELD_SECONDS",
    "HOP_SECONDS",
    "SILENT_PEAK",
    "WINDOW_SECONDS",
    "AudioTrack",
    "FileSound",
    "Sound",
    "SoundTrack",
    "StreamedTrack",
    "WindowKind",
    "check_sound",
    "find_sound",
    "make_no_sound_error",
    "read_audio",
]
#: Sound up to this length stays in memory after the first decode: 38 MB.
HELD_SECONDS = 600.0
#: Pieces are passed on after this many packets, because each call costs time.
_PACKETS_AT_ONCE = 16
#: The longest sound that :func:`read_audio` takes: 1.4 GB.
MOST_WHOLE_SECONDS = 6 * 3600.0


class Timeline:
    """Puts pieces on the grid of samples. It records gaps and cuts overlaps."""

    def __init__(self) -> None:
        self.start_seconds: float | None = None
        self.length = 0
        self._gaps = array("d")
        self._overlap = 0

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Gaps as (start, end) in seconds."""
        return list(zip(self._gaps[0::2], self._gaps[1::2], strict=True))

    def place(self, piece: Piece) -> Chunk:
        """Return the position of a piece, and the part of it that is new."""
        if self.start_seconds is None:
            self.start_seconds = piece.begin_seconds
        if piece.offset == 0:
            place = round((piece.begin_seconds - self.start_seconds) * SAMPLE_RATE_HZ)
            if place > self.length:
                self._gaps.extend(self.start_seconds + at / SAMPLE_RATE_HZ for at in (self.length, place))
                self.length = place
            self._overlap = self.length - place
        kept = piece.samples[self._overlap :]
        self._overlap = max(0, self._overlap - len(piece.samples))
        begin = self.length
        self.length += len(kept)
        return begin, kept


def _decode_packets(container: InputContainer, index: int, mono: Mono16k) -> Iterator[Piece]:
    """Yield all pieces of a track. A packet that can't be decoded is counted and becomes a gap."""
    stream, origin = container.streams[index], get_origin_seconds(container)
    packets = container.demux(stream)
    for number in itertools.count(1):
        try:
            packet = next(packets, None)
        except BROKEN_OFF:  # keep what was read until here
            break
        if packet is None:
            break
        try:
            frames: Any = packet.decode()
            for frame in frames:
                seconds = convert_to_seconds(frame.pts, frame.time_base)
                mono.add(frame, None if seconds is None else seconds - origin)
        except Exception as error:  # PyAV raises several kinds; none of them may end the picture
            if packet.size:
                mono.counts.count_damage(error)
        if number % _PACKETS_AT_ONCE == 0:
            yield from mono.drain()
    mono.flush()
    yield from mono.drain()


def decode_track(path: Path, index: int, counts: SoundCounts | None = None) -> Iterator[Piece]:
    """Decode one track of a file.

    Args:
        path: The file.
        index: The index of the track among all streams of the file.
        counts: Where defects are counted. Default: they are not reported.

    Raises:
        InputNotFoundError: The file does not exist.
        MediaError: FFmpeg can't read the file.
    """
    with open_media(path) as container:
        clock = SteadyClock(get_announced_end(container))
        yield from _decode_packets(container, index, Mono16k(clock, counts=counts))


@dataclass(frozen=True)
class _Survey:
    """One pass through a track. It finds positions and peaks, and keeps the samples of a short track."""

    timeline: Timeline
    envelope: Envelope
    counts: SoundCounts
    content: bytearray | None

    @classmethod
    def make(cls, path: Path, index: int, most_seconds: float) -> _Survey:
        timeline, envelope, counts = Timeline(), Envelope(), SoundCounts()
        # A bytearray grows in place, so the track is in memory only once.
        content: bytearray | None = bytearray()
        for piece in decode_track(path, index, counts):
            place, samples = timeline.place(piece)
            envelope.add(place, samples)
            if timeline.length > most_seconds * SAMPLE_RATE_HZ:
                content = None
            if content is not None:
                content.extend(bytes(place * samples.itemsize - len(content)))
                content.extend(samples.tobytes())
        return cls(timeline, envelope, counts, content)

    def track(self, path: Path, index: int) -> SoundTrack | None:
        """Return the track, or None if nothing could be decoded."""
        timeline = self.timeline
        if timeline.start_seconds is None:
            return None
        if self.content is not None:
            return AudioTrack(np.frombuffer(self.content, np.float32), timeline.start_seconds, timeline.gaps)

        def again() -> Iterator[Chunk]:
            places = Timeline()
            try:
                for piece in decode_track(path, index):
                    yield places.place(piece)
            except TesoError:  # the file was removed meanwhile; its sound must not end the picture
                return

        return StreamedTrack(
            again, timeline.length, start_seconds=timeline.start_seconds, gaps=timeline.gaps, envelope=self.envelope
        )


@dataclass(frozen=True)
class FileSound:
    """The sound of a file.

    Attributes:
        track: The sound; None if the file has no sound that can be decoded.
        note: What is wrong with the sound, in words; None if nothing is.
        counts: Defects that were counted while decoding.
    """

    track: SoundTrack | None
    note: str | None
    counts: SoundCounts


def find_sound(
    path: str | Path,
    audio_track: int | None = None,
    *,
    video_track: int | None = None,
    held_seconds: float = HELD_SECONDS,
) -> FileSound:
    """Find the first track of sound that can be decoded, on the clock of the file's frames.

    The whole track is decoded once, to find its start, its end and its defects. Long sound is decoded a second time
    while it is read, so memory does not depend on the length.

    Args:
        path: A file of video or sound.
        audio_track: Number of a track among all audio tracks, from 0. Default: the track that players choose.
        video_track: Number of the video track that the sound belongs to. Default: the track that players choose.
        held_seconds: Sound up to this length, in seconds, stays in memory. Default: 600.

    Raises:
        InputNotFoundError: The file does not exist.
        MediaError: FFmpeg can't read the file, or the file lacks the requested track.
    """
    path = Path(path)
    with open_media(path) as container:
        video = None if video_track is None else choose_video_track(container, str(path), video_track)
        candidates = list_audio_candidates(container, str(path), wanted=audio_track, video=video)
        names = [(stream.index, stream.codec_context and stream.codec_context.name) for stream in candidates]
    notes: list[str] = []
    counts = SoundCounts()
    for number, (index, codec) in enumerate(names):
        if codec is None:
            notes.append(f"track {number} of its sound has a codec that FFmpeg can't decode here")
            continue
        survey = _Survey.make(path, index, held_seconds)
        track = survey.track(path, index)
        if track is not None:
            faults = survey.counts.describe()
            return FileSound(track, "; ".join([*notes, *([faults] if faults else [])]) or None, survey.counts)
        counts = survey.counts
        why = f"can't be decoded ({counts.error})" if counts.damaged else "holds no samples"
        notes.append(f"track {number} of its sound ({codec}) {why}")
    return FileSound(None, "; ".join(notes) or "it has no audio track", counts)


def check_sound(path: str | Path, audio_track: int | None = None) -> None:
    """Decode the first samples to make sure that a file has sound. Raises the same errors as :func:`read_audio`."""
    path = Path(path)
    with open_media(path) as container:
        candidates = list_audio_candidates(container, str(path), wanted=audio_track)
        indices = [stream.index for stream in candidates if stream.codec_context]
    if not any(next(decode_track(path, index), None) for index in indices):
        raise make_no_sound_error(path, find_sound(path, audio_track))


def make_no_sound_error(path: Path, found: FileSound) -> MediaError:
    """Return the error for a file that has no usable sound although sound is needed."""
    return MediaError(f"{path} has no sound that can be decoded, {found.note}: give a file with sound")


def read_audio(path: str | Path) -> AudioTrack:
    """Read all sound of a short file, on the clock of its frames. Use :func:`find_sound` for sound of any length.

    Raises:
        InputNotFoundError: The file does not exist.
        MediaError: The file has no audio track that can be decoded, or its sound is longer than six hours.
    """
    found = find_sound(path, held_seconds=MOST_WHOLE_SECONDS)
    if found.track is None:
        raise make_no_sound_error(Path(path), found)
    if not isinstance(found.track, AudioTrack):
        hours = found.track.duration_seconds / 3600
        raise MediaError(f"{path} has {hours:.1f} h of sound, which is too much to hold in memory: cut it")
    return found.track

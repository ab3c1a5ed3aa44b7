"""Choose the frames of a file to segment, and the audio window of each.

``file``: every frame (or ``fps`` frames per second), with the window centred on it.
``paper``: one frame per second, at k + 0.9375 s, as the AVS data sets cut their clips. Its window begins at k seconds,
or at k · 0.96 s if the framing is ``contiguous``. The framing has no effect in mode ``file``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from teso_deploy.errors import MediaError
from teso_deploy.media.audio import HELD_SECONDS, AudioTrack, SoundTrack, StreamedTrack, find_sound, make_no_sound_error
from teso_deploy.media.mono import SoundCounts
from teso_deploy.media.reader import Hardware, VideoReader
from teso_deploy.types import AudioWindow, Frame, Framing, get_hop_seconds

Mode = Literal["file", "paper"]
#: Where the sound comes from; ``none``: the file has no sound that can be decoded, and silence is used.
SoundName = Literal["own", "own and noise", "mute", "noise", "other file", "none"]

#: The AVS data sets have one frame per second of video. They take it at this time within the second.
PAPER_MOMENT_SECONDS = 0.9375
NOISE_SEED = 0


class Moment(NamedTuple):
    """A frame, its audio window, and when the output shows it, in seconds."""

    frame: Frame
    sound: AudioWindow
    shown_at_seconds: float


def choose_one_a_second(frames: Iterable[Frame], frame_seconds: float) -> Iterator[tuple[int, Frame]]:
    """Yield (k, the last frame at or before k + 0.9375 s) for each second k that the frames reach.

    ``frame_seconds`` is the duration of the last frame. A clip shorter than 0.9375 s yields its last frame.
    """
    second, held = 0, None
    for frame in frames:
        while frame.pts_seconds > second + PAPER_MOMENT_SECONDS:
            if held is not None:
                yield second, held
            second += 1
        held = frame
    if held is not None and (second == 0 or held.pts_seconds + frame_seconds > second + PAPER_MOMENT_SECONDS):
        yield second, held


class VideoSource:
    """Iterates over the frames of a file, each with its audio window; a context manager.

    ``mute``, ``noise_dbfs``, ``noise_dbw`` and ``sound_from`` replace the file's own sound, and ``noise_snr`` adds to
    it. At most one of them may be given.

    Args:
        path: The file.
        mode: Which frames are taken, see above. Default: "file".
        framing: Where the windows of mode "paper" begin, see above. Default: "per_second".
        mute: Use silence. Default: False.
        noise_dbfs: Use white noise of this level (RMS, in dBFS). Default: no noise.
        noise_dbw: The same as power in dBW; above 0 it is clipped. Default: no noise.
        noise_snr: Add white noise, this many dB below the sound. Default: no noise.
        sound_from: Use the sound of this file. Default: none.
        fps: Frames per second to take, in mode "file". Default: all.
        hardware: See :class:`VideoReader`. Default: decode in software.
        video_track: See :class:`VideoReader`. Default: the track that players take.
        audio_track: Number among the audio tracks of the file that the sound comes from, from 0. Default: the track
            that players take.

    Attributes:
        track: The sound.
        sound: Where the sound comes from.
        sound_note: What is wrong with the sound, in words; None: nothing.
        sound_counts: Defects that were counted while the sound was decoded.

    Raises:
        InputNotFoundError: One of the files does not exist.
        MediaError: One of the files can't be decoded.
        ValueError: The options exclude each other.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        mode: Mode = "file",
        framing: Framing = "per_second",
        mute: bool = False,
        noise_dbfs: float | None = None,
        noise_dbw: float | None = None,
        noise_snr: float | None = None,
        sound_from: str | Path | None = None,
        fps: float | None = None,
        hardware: Hardware | None = None,
        video_track: int | None = None,
        audio_track: int | None = None,
    ) -> None:
        if mute + sum(one is not None for one in (noise_dbfs, noise_dbw, noise_snr, sound_from)) > 1:
            raise ValueError("mute, noise_dbfs, noise_dbw, noise_snr and sound_from exclude each other")
        if mode == "paper" and fps is not None:
            raise ValueError("mode 'paper' looks at one frame a second: omit fps")
        self.path, self.mode = Path(path), mode
        self.reader = VideoReader(self.path, fps=fps, hardware=hardware, video_track=video_track)
        try:
            self.info = self.reader.info
            self.sound: SoundName = "own"
            self.sound_note: str | None = None
            self.sound_counts = SoundCounts()
            # Both levels are an RMS against amplitude 1: they differ only in their range.
            noise_db = noise_dbfs if noise_dbw is None else noise_dbw
            self.track = self._open_sound(mute, noise_db, sound_from, video_track=video_track, audio_track=audio_track)
            if noise_snr is not None:
                self.track = self._add_noise(noise_snr)
        except BaseException:
            self.reader.close()
            raise
        own_fps = self.info.fps or 25.0
        self.shown_fps = 1.0 if mode == "paper" else min(fps, own_fps) if fps else own_fps
        self._hop_seconds = get_hop_seconds(framing)
        self.window_kind: Literal["centred", "second", "contiguous"] = "centred"
        if mode == "paper":
            self.window_kind = "contiguous" if framing == "contiguous" else "second"

    def _open_sound(
        self,
        mute: bool,
        noise_db: float | None,
        sound_from: str | Path | None,
        *,
        video_track: int | None,
        audio_track: int | None,
    ) -> SoundTrack:
        duration = self.info.duration_seconds
        is_long = duration > HELD_SECONDS
        if noise_db is not None:
            if not duration:
                raise MediaError(f"{self.path} does not say how long it is, so how much noise to make: copy it to MP4")
            self.sound = "noise"
            made = StreamedTrack.white_noise if is_long else AudioTrack.white_noise
            return made(duration, noise_db, NOISE_SEED)
        if not mute:
            self.sound = "own" if sound_from is None else "other file"
            if sound_from is None:
                found = find_sound(self.path, audio_track, video_track=video_track)
            else:
                found = find_sound(sound_from, audio_track)
            self.sound_note, self.sound_counts = found.note, found.counts
            if found.track is not None:
                return found.track
            if sound_from is not None:
                raise make_no_sound_error(Path(sound_from), found)
        self.sound = "mute" if mute else "none"
        return (StreamedTrack if is_long else AudioTrack).silence(duration)

    def _add_noise(self, snr_db: float) -> SoundTrack:
        if not isinstance(self.track, AudioTrack):
            raise MediaError(
                f"{self.path} is too long to measure its sound before the run: cut it to {HELD_SECONDS / 60:g} "
                "minutes, or replace its sound by noise of a level"
            )
        if self.sound == "own":
            self.sound = "own and noise"
        return self.track.add_noise(snr_db, NOISE_SEED)

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()

    def __iter__(self) -> Iterator[Moment]:
        return self._take_one_a_second() if self.mode == "paper" else self._take_every_frame()

    def _take_every_frame(self) -> Iterator[Moment]:
        for frame in self.reader:
            yield Moment(frame, self.track.window(frame.pts_seconds, "centred"), frame.pts_seconds)

    def _take_one_a_second(self) -> Iterator[Moment]:
        for second, frame in choose_one_a_second(self.reader, 1 / (self.info.fps or 25.0)):
            yield Moment(frame, self.track.window_from(second * self._hop_seconds), float(second))

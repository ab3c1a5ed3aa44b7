"""Which parts of a video are read: frames and tracks, and what replaces the sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from teso_deploy.options.fields import OptionError, Options, option
from teso_deploy.types import Framing

DecoderName = Literal["auto", "software", "nvdec"]
#: Noise of the lowest level is below the last bit of a 24-bit file. At the highest one all samples are clipped.
LOWEST_NOISE_DB, HIGHEST_NOISE_DB = -200.0, 200.0


@dataclass(frozen=True, kw_only=True)
class SoundOptions(Options):
    """Which tracks are read, and what replaces the sound. At most one of the first five may be given.

    Attributes:
        mute: silence replaces the sound. Default: no.
        noise_dbfs: white noise of this level (RMS, dBFS, at most 0) replaces the sound.
        noise_dbw: the same as power in dBW, where amplitude 1 is 1 V at 1 Ω; above 0 it is clipped.
        noise_snr: white noise is added to the sound of the file, this many dB below it.
        sound_from: the sound of this file replaces the sound.
        video_track: number of the video track, from 0. Default: the one that players choose.
        audio_track: number of the audio track, from 0, in the file that the sound comes from. Default: the one that
            players choose and that can be decoded.
    """

    mute: bool = option(False, "Replace the sound by silence.")
    noise_dbfs: float | None = option(
        None,
        "Replace the sound by white noise of this level (RMS, dBFS).",
        minimum=LOWEST_NOISE_DB,
        maximum=0,
        unit="dBFS",
    )
    noise_dbw: float | None = option(
        None,
        "Replace the sound by white noise of this power (dBW; amplitude 1 is 0 dBW). Above 0 it is clipped.",
        minimum=LOWEST_NOISE_DB,
        maximum=HIGHEST_NOISE_DB,
        unit="dBW",
    )
    noise_snr: float | None = option(
        None,
        "Add white noise to the sound, this many dB below it.",
        minimum=LOWEST_NOISE_DB,
        maximum=HIGHEST_NOISE_DB,
        unit="dB",
    )
    sound_from: Path | None = option(None, "Replace the sound by that of this file.")
    video_track: int | None = option(
        None,
        "Number of the video's picture track, from 0 (FFmpeg's v:0). Default: the one that players choose.",
        minimum=0,
    )
    audio_track: int | None = option(
        None,
        "Number of the sound track, from 0 (FFmpeg's a:0), in the file that gives the sound. Default: the first that "
        "players choose and that can be decoded.",
        minimum=0,
    )

    def check(self) -> None:
        """Refuse several replacements of the sound, and an audio track whose sound is replaced."""
        noises = (self.noise_dbfs, self.noise_dbw)
        given = self.mute + sum(one is not None for one in (*noises, self.noise_snr, self.sound_from))
        if given > 1:
            raise OptionError(
                "{mute}, {noise_dbfs}, {noise_dbw}, {noise_snr} and {sound_from} exclude each other: give one"
            )
        if self.audio_track is not None and (self.mute or noises != (None, None)):
            raise OptionError("{mute}, {noise_dbfs} and {noise_dbw} replace the sound: omit {audio_track}")


@dataclass(frozen=True, kw_only=True)
class FrameOptions(Options):
    """Which frames are looked at, with which sound, and what decodes them.

    Attributes:
        fps: frames a second to look at. Default: all.
        framing: for mode ``paper``: the window of second k begins at k seconds (``per_second``) or at k · 0.96 s
            (``contiguous``). Default: as the bundle says.
        decoder: what decodes the video of a file: ``software``, ``nvdec`` (an NVIDIA GPU), or ``auto``: the GPU if the
            backend runs there, otherwise software. Default: ``auto``.
    """

    fps: float | None = option(None, "Segment only this many frames per second.", minimum=0.001)
    framing: Framing | None = option(
        None,
        "For --mode paper: the window of second k begins at k s (per_second) or at k x 0.96 s (contiguous). "
        "Default: as the bundle says.",
    )
    decoder: DecoderName = option(
        "auto",
        "Decoder of a file's video. nvdec: on an NVIDIA GPU; auto: nvdec if the backend runs on the GPU, otherwise "
        "software.",
    )

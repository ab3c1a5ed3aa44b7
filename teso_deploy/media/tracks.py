"""Choosing the tracks of a container: those that players choose, or those that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from teso_deploy.errors import MediaError

#: A video stream that is not the film: a cover picture, or previews for a seek bar.
_NOT_THE_FILM = Disposition.attached_pic | Disposition.timed_thumbnails
#: Sound for special audiences, such as commentaries.
_FOR_FEW = (
    Disposition.comment
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.descriptions
    | Disposition.clean_effects
)


def choose_video_track(container: InputContainer, shown: str, wanted: int | None = None) -> VideoStream:
    """Choose the video track: default tracks first, among these the largest picture, among these the first.

    The command ``ffmpeg`` chooses in the same way. Cover pictures are never chosen.

    Args:
        container: An open file or stream.
        shown: The name of the input for messages.
        wanted: Number of a track among all video tracks, from 0, as in FFmpeg's ``v:0``. None: choose as above.

    Raises:
        MediaError: The container has no picture, lacks the requested track, or has no decoder for it.
    """
    videos = container.streams.video
    films = [stream for stream in videos if not stream.disposition & _NOT_THE_FILM]
    if wanted is None and not films:
        kind = "only sound" if container.streams.audio else "neither picture nor sound"
        raise MediaError(f"{shown} holds {kind}: give a file or stream with a video track")
    chosen = min(films, key=_rank_video) if wanted is None else _take(videos, wanted, kind="video", shown=shown)
    if chosen.codec_context is None:
        raise MediaError(
            f"{shown} has pictures with a codec that FFmpeg can't decode here: convert it, for example to H.264"
        )
    return chosen


def list_audio_candidates(
    container: InputContainer, shown: str, *, wanted: int | None = None, video: VideoStream | None = None
) -> list[AudioStream]:
    """List the audio tracks, best first. Use the first that can be decoded.

    Of several programmes, only that of the picture counts. Default tracks come first, then tracks that are not
    commentaries or for the impaired, then the order of the container.

    Args:
        container: An open file or stream.
        shown: The name of the input for messages.
        wanted: Number of a track among all audio tracks, from 0, as in FFmpeg's ``a:0``: list only this track.
        video: The picture that the sound belongs to. Default: the track :func:`choose_video_track` chooses, if any.

    Returns:
        The tracks, empty if the container has no sound.

    Raises:
        MediaError: The requested track does not exist.
    """
    audios = container.streams.audio
    if wanted is not None:
        return [_take(audios, wanted, kind="audio", shown=shown)]
    if len(audios) < 2:
        return list(audios)
    if video is None:
        films = [stream for stream in container.streams.video if not stream.disposition & _NOT_THE_FILM]
        video = min(films, key=_rank_video, default=None)
    # PyAV does not expose programmes. But two tracks of one programme have the same best audio track.
    ours = container.streams.best("audio", video) if video is not None else None
    if ours is not None:
        audios = tuple(a for a in audios if a is ours or container.streams.best("audio", a) is ours)
    return sorted(audios, key=_rank_audio)


def describe_tracks(streams: Sequence[Any]) -> str:
    """List tracks for a message: number, codec, size of the picture, language."""
    return ", ".join(f"{number} ({_describe(stream)})" for number, stream in enumerate(streams))


def _rank_video(stream: VideoStream) -> tuple[bool, bool, int]:
    context: Any = stream.codec_context  # None if FFmpeg has no decoder for it
    pixels = context.width * context.height if context is not None else 0
    return context is None, not stream.disposition & Disposition.default, -pixels


def _rank_audio(stream: AudioStream) -> tuple[bool, bool]:
    return not stream.disposition & Disposition.default, bool(stream.disposition & _FOR_FEW)


def _describe(stream: Any) -> str:
    context = stream.codec_context
    facts = ["unknown codec" if context is None else context.name]
    if context is not None and stream.type == "video":
        facts.append(f"{context.width}x{context.height}")
    language = stream.metadata.get("language")
    return " ".join([*facts, *([language] if language and language != "und" else [])])


def _take(streams: Sequence[Any], wanted: int, *, kind: str, shown: str) -> Any:
    if 0 <= wanted < len(streams):
        return streams[wanted]
    there = f"it has {describe_tracks(streams)}" if streams else f"it has no {kind} tracks"
    raise MediaError(f"{shown} has no {kind} track {wanted}, {there}: give --{kind}-track another number or omit it")

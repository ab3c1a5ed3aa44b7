"""Small valid inputs, made in code. The targets damage them."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np

#: Name of a file → video codec, audio codec (either may be None) and the layout of its sound.
MEDIA: dict[str, tuple[str | None, str | None, str]] = {
    "h264.mp4": ("libx264", "aac", "mono"),
    "fragments.mp4": ("libx264", "aac", "stereo"),
    "pcm.mov": ("mjpeg", "pcm_s16le", "stereo"),
    "silent.mp4": ("mpeg4", None, ""),
    "vorbis.mkv": ("libx264", "flac", "stereo"),
    "seven.mkv": ("mpeg4", "flac", "7.1"),
    "opus.webm": ("libvpx", "libopus", "stereo"),
    "mp3.avi": ("mpeg4", "libmp3lame", "stereo"),
    "raw.avi": ("rawvideo", "pcm_s16le", "mono"),
    "h264.ts": ("libx264", "aac", "mono"),
    "mpeg2.ts": ("mpeg2video", "mp2", "stereo"),
    "sorenson.flv": ("flv1", "libmp3lame", "mono"),
    "wmv2.wmv": ("wmv2", "wmav2", "stereo"),
    "mpeg1.mpg": ("mpeg1video", "mp2", "stereo"),
    "picture.gif": ("gif", None, ""),
    "tone.wav": (None, "pcm_s16le", "stereo"),
    "tone.mp3": (None, "libmp3lame", "mono"),
    "tone.flac": (None, "flac", "stereo"),
    "tone.ogg": (None, "libopus", "mono"),
}
FPS, SECONDS, SIZE = 10, 0.5, (48, 64)
_RATES_HZ = {"libopus": 48_000}
_PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8", "rawvideo": "rgb24"}
_FORMATS = {"ts": "mpegts", "mpg": "mpeg", "wmv": "asf", "mkv": "matroska"}
#: Written into the seeds' tags: names that players show.
_TITLE = "a clip"


def write_media(name: str, seconds: float = SECONDS) -> bytes:
    """Write a few moving pictures and a tone. The bytes are the same each time."""
    video_codec, audio_codec, layout = MEDIA[name]
    ending = name.rpartition(".")[2]
    stream = io.BytesIO()
    options = {"fflags": "+bitexact"}
    if name.startswith("fragments"):
        options["movflags"] = "+frag_keyframe+empty_moov"
    with av.open(stream, "w", format=_FORMATS.get(ending, ending), options=options) as container:
        container.metadata["title"] = _TITLE
        packets: list[Any] = []
        video: Any = None
        audio: Any = None
        if video_codec is not None:
            video = container.add_stream(video_codec, rate=25 if "mpeg" in name else FPS)
            video.height, video.width = SIZE
            video.pix_fmt = _PIXELS.get(video_codec, "yuv420p")
            video.codec_context.options = {"threads": "1", "flags": "+bitexact"}
        if audio_codec is not None:
            audio = container.add_stream(audio_codec, rate=_RATES_HZ.get(audio_codec, 44_100), layout=layout)
            audio.codec_context.options = {"flags": "+bitexact"}
            audio.codec_context.bit_rate = 128_000
        if video is not None:
            packets += _pictures(video, seconds)
        if audio is not None:
            packets += _tone(audio, seconds)
        for packet in sorted(packets, key=lambda one: float((one.dts or 0) * one.time_base)):
            container.mux(packet)
    return stream.getvalue()


def _pictures(video: Any, seconds: float) -> list[Any]:
    rate = int(video.codec_context.framerate)
    packets = []
    for number in range(round(seconds * rate)):
        image = np.full((*SIZE, 3), 90, np.uint8)
        image[12:36, 4 + 3 * number : 28 + 3 * number] = (220, 40, 40)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, rate)
        packets += video.encode(frame)
    return packets + list(video.encode(None))


def _tone(audio: Any, seconds: float) -> list[Any]:
    context = audio.codec_context
    rate, channels = context.sample_rate, context.layout.nb_channels
    resampler = av.AudioResampler(format=context.format, layout=context.layout, rate=rate)
    times = np.arange(int(seconds * rate)) / rate
    tone = np.repeat((0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)[:, None], channels, axis=1)
    block = context.frame_size or 1024
    packets = []
    for start in range(0, len(tone), block):
        piece = tone[start : start + block].reshape(1, -1)
        # Packed, because PyAV has no room for the planes of eight channels.
        sound = av.AudioFrame.from_ndarray(piece, format="flt", layout=context.layout.name)
        sound.sample_rate, sound.pts, sound.time_base = rate, start, Fraction(1, rate)
        for ready in resampler.resample(sound):
            packets += audio.encode(ready)
    return packets + list(audio.encode(None))


class Seeds:
    """Valid inputs. ``bundle``: a folder with an exported model; a smaller one is faster."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle

    @cached_property
    def bundle_files(self) -> dict[str, bytes]:
        """The content of every file of the bundle."""
        return {path.name: path.read_bytes() for path in sorted(self.bundle.iterdir())}

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The content of its manifest."""
        return dict(json.loads(self.bundle_files["bundle.json"]))

    @cached_property
    def media(self) -> dict[str, bytes]:
        """The content of each of :data:`MEDIA` that this build of FFmpeg can write."""
        codecs = av.codec.codecs_available
        return {
            name: write_media(name)
            for name, (video, audio, _) in MEDIA.items()
            if (video is None or video in codecs) and (audio is None or audio in codecs)
        }

    @property
    def clip(self) -> bytes:
        """A video that every command can read."""
        return self.media["h264.mp4"]

    @cached_property
    def checkpoints(self) -> dict[str, bytes]:
        """The bundle's model with random weights, as our training and as others save it."""
        import torch
        from safetensors.torch import save

        from teso_deploy.models.assembly import assemble
        from teso_deploy.recipe import Recipe

        recipe = Recipe.model_validate(self.manifest["recipe"])
        state = {
            key: value.detach().clone().contiguous()
            for key, value in assemble(recipe, (), random_weights_seed=0).model.state_dict().items()
        }
        zipped, legacy, lightning = io.BytesIO(), io.BytesIO(), io.BytesIO()
        torch.save(state, zipped)
        torch.save(state, legacy, _use_new_zipfile_serialization=False)
        wrapped = {f"model._orig_mod.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": wrapped, "loss": torch.tensor(0.5)}, lightning)
        return {
            "model.safetensors": save(state, {"recipe": recipe.model_dump_json()}),
            "model.pth": zipped.getvalue(),
            "legacy.pt": legacy.getvalue(),
            "last.ckpt": lightning.getvalue(),
        }

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the bundle's model, without what is null."""
        return dict(_without_null(self.manifest["recipe"]))

    @cached_property
    def cue_file(self) -> dict[str, Any]:
        """The content of ``teso-deploy cues``'s file for :attr:`clip`."""
        span = {
            "start_seconds": 0.0, "end_seconds": 0.3, "names": ["dog", "cow"], "source": "llm", "of_seconds": 0.0,
            "confidences": [0.9, 0.4], "objects": ["dog", "cow", "tree"], "ungrounded": ["cat"],
            "caption": "a dog and a cow by a tree", "reasoning": "dogs bark",
        }  # fmt: skip
        video = {"sha256": hashlib.sha256(self.clip).hexdigest(), "duration_seconds": 0.5}
        spans = [span, {"start_seconds": 0.3, "names": ["cow"], "source": "llm"}]
        videos = {"clip.mp4": {**video, "spans": spans}}
        return {"schema_version": 1, "source": "llm", "identity": "models#1", "videos": videos}


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value] if isinstance(value, list) else value


def insert_null_packets(content: bytes) -> bytes:
    """Return a transport stream with padding between its packets, as broadcasters send it."""
    padding = b"\x47\x1f\xff\x10" + b"\xff" * 184
    packets = [content[at : at + 188] for at in range(0, len(content), 188)]
    return b"".join(packet + padding * (number % 3 == 0) for number, packet in enumerate(packets))


def append_free_box(content: bytes) -> bytes:
    """Return an MP4 with a box at its end that readers skip."""
    return content + struct.pack(">I4s", 72, b"free") + b"x" * 64

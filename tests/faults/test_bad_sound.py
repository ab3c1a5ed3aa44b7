"""Sound that is empty, unknown, damaged or NaN never stops the picture, in files and in streams."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from teso_deploy.errors import MediaError
from teso_deploy.media.address import Address
from teso_deploy.media.audio import AudioTrack, check_sound, find_sound, read_audio
from teso_deploy.media.container import SteadyClock
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.media.mono import LOUDEST, Mono16k
from teso_deploy.media.source_health import SourceHealth
from teso_deploy.media.writer import VideoWriter
from teso_deploy.pipeline.video_source import VideoSource
from tests.support.clips import make_clip

RATE_HZ = 48_000
SECONDS = 1.0


def tone(hertz: float, seconds: float = SECONDS) -> NDArray[np.float32]:
    """Return a tone (N,) float32 at half of full scale."""
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def film(path: Path, *tracks: NDArray[np.float32] | None, codec: str = "pcm_f32le", fps: int = 10) -> Path:
    """Write a picture and audio tracks (channels, N). None: a track without samples."""
    # A fragmented file begins with its header, which also lists the tracks without samples.
    options = {"movflags": "empty_moov+frag_keyframe"} if path.suffix == ".mov" else {}
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream("libx264", rate=fps)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.options = {"bf": "0"}
        streams = []
        for sound in tracks:
            layout = "stereo" if sound is not None and len(sound) == 2 else "mono"
            stream = container.add_stream(codec, rate=RATE_HZ, layout=layout)
            assert isinstance(stream, AudioStream)
            stream.codec_context.open(strict=False)
            streams.append((stream, sound, layout))
        container.start_encoding()
        longest = max((sound.shape[1] for sound in tracks if sound is not None), default=3 * RATE_HZ)
        block = RATE_HZ // fps
        for number in range(longest // block):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(video.encode(picture))
            for stream, sound, layout in streams:
                if sound is None:
                    continue
                part = np.ascontiguousarray(sound[:, number * block : (number + 1) * block].T).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, number * block, Fraction(1, RATE_HZ)
                container.mux(stream.encode(frame))
        container.mux(video.encode(None))
        for stream, sound, _ in streams:
            if sound is not None:
                container.mux(stream.encode(None))
    return path


def rename_codecs(path: Path, count: int) -> Path:
    """Rename the codec of an MP4's first ``count`` AAC tracks to one that FFmpeg does not know."""
    content = bytearray(path.read_bytes())
    for _ in range(count):
        for name, other in ((b"mp4a", b"apac"), (b"esds", b"dapa")):
            place = content.index(name)
            content[place : place + 4] = other
    path.write_bytes(content)
    return path


def damage_track(path: Path, out: Path, number: int) -> Path:
    """Copy a film, with noise in place of the packets of one audio track."""
    rng = np.random.default_rng(0)
    with av.open(str(path)) as given, av.open(str(out), "w") as container:
        copies = {stream.index: container.add_stream_from_template(stream) for stream in given.streams}
        bad = given.streams.audio[number].index
        for packet in given.demux():
            if packet.dts is None:
                continue
            content = rng.bytes(len(bytes(packet))) if packet.stream.index == bad else bytes(packet)
            copy = av.Packet(content)
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, copies[packet.stream.index]
            container.mux(copy)
    return out


def watch_stream(path: Path, realtime: bool = False) -> tuple[int, NDArray[np.float32], SourceHealth]:
    """Read a file as a stream to its end. Return the number of frames, the sound and the health."""
    frames, deadline = 0, time.monotonic() + 120
    with LiveReader(Address.parse(path), lossless=not realtime, realtime=realtime) as reader:
        reader.start()
        while not reader.ended:
            assert time.monotonic() < deadline, "it does not end"
            frames += reader.take(0.1) is not None
        return frames, reader.ring.read(0.0, reader.ring.end_seconds or 0.0), reader.health()


def pitch(samples: NDArray[np.float32]) -> int:
    """Return the loudest frequency of 16 kHz sound (N,) in hertz, to about 20."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    return int(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * 16_000 / len(middle))


@pytest.mark.parametrize("name", ["a.mkv", "a.mov"])
def test_a_track_without_samples_is_silence(name: str, tmp_path: Path) -> None:
    path = film(tmp_path / name, None)
    found = find_sound(path)
    assert found.track is None and found.note is not None and "holds no samples" in found.note
    with VideoSource(path) as source:
        moments = list(source)
        assert len(moments) == 30 and all(moment.sound.is_silent for moment in moments)
        assert source.sound == "none" and source.sound_note == found.note
    frames, sound, health = watch_stream(path)
    assert frames == 30 and not sound.any() and health.state == "ended" and health.error is None


def test_the_first_track_with_samples_is_taken(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", None, tone(700)[None])
    with VideoSource(path) as source:
        assert source.sound == "own" and source.sound_note is not None and "holds no samples" in source.sound_note
        assert abs(pitch(source.track.read(0, 1)) - 700) < 30


def test_an_unknown_codec_makes_way_for_the_next_track(tmp_path: Path) -> None:
    """Apple's phones write a first track of APAC and a second one of AAC."""
    path = rename_codecs(film(tmp_path / "a.mp4", tone(400)[None], tone(900)[None], codec="aac"), 1)
    found = find_sound(path)
    assert found.track is not None and abs(pitch(found.track.read(0, 1)) - 900) < 30
    assert found.note is not None and "a codec that FFmpeg can't decode" in found.note
    frames, sound, health = watch_stream(path)
    assert frames == 10 and abs(pitch(sound) - 900) < 30 and health.error is None


def test_an_unknown_codec_alone_is_silence(tmp_path: Path) -> None:
    path = rename_codecs(film(tmp_path / "a.mp4", tone(400)[None], codec="aac"), 1)
    with VideoSource(path) as source:
        assert len(list(source)) == 10 and source.sound == "none"
    frames, sound, health = watch_stream(path)
    assert frames == 10 and not sound.any() and not health.has_audio
    assert health.state == "ended" and health.reconnects == 0 and health.error is None
    assert health.audio_note is not None and "can't decode" in health.audio_note


def test_damaged_packets_alone_are_silence(tmp_path: Path) -> None:
    good = film(tmp_path / "good.mkv", tone(400)[None], codec="flac")
    path = damage_track(good, tmp_path / "bad.mkv", 0)
    with VideoSource(path) as source:
        assert len(list(source)) == 10 and source.sound == "none" and source.sound_counts.damaged > 5
        assert source.sound_note is not None and "can't be decoded" in source.sound_note
    frames, sound, health = watch_stream(path)
    assert frames == 10 and not sound.any() and health.state == "ended" and health.error is None
    assert health.audio_note is not None and "can't be decoded" in health.audio_note


def test_a_damaged_track_makes_way_for_the_next(tmp_path: Path) -> None:
    good = film(tmp_path / "good.mkv", tone(400, 6)[None], tone(900, 6)[None], codec="flac")
    path = damage_track(good, tmp_path / "bad.mkv", 0)
    found = find_sound(path)
    assert found.track is not None and abs(pitch(found.track.read(0, 6)) - 900) < 30
    frames, sound, _ = watch_stream(path)
    assert frames == 60 and abs(pitch(sound[-32_000:]) - 900) < 30


def test_sound_from_elsewhere_never_ends_the_picture(tmp_path: Path) -> None:
    picture = make_clip(tmp_path / "clip.mp4", has_audio=False)
    damaged = damage_track(film(tmp_path / "good.mkv", tone(400)[None], codec="flac"), tmp_path / "bad.mkv", 0)
    with LiveReader(Address.parse(picture), audio=Address.parse(damaged), lossless=True) as reader:
        reader.start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and reader.health().audio_note is None:  # the picture waits for its reader
            time.sleep(0.02)
        frames = 0
        while not reader.ended:
            frames += reader.take(0.1) is not None
        health = reader.health()
    assert frames == 12 and health.state == "ended" and health.error is None and not health.has_audio
    assert health.audio_note is not None and "can't be decoded" in health.audio_note
    unknown = rename_codecs(make_clip(tmp_path / "unknown.mp4"), 1)
    with LiveReader(Address.parse(picture), audio=Address.parse(unknown), lossless=True) as reader:
        deadline = time.monotonic() + 120
        try:  # it is refused if the defect is known before the first picture
            reader.start()
            while time.monotonic() < deadline and reader.health().audio_error is None:
                reader.take(0.1)
            sentence = reader.health().audio_error
        except MediaError as error:
            sentence = str(error)
    assert sentence is not None and "no sound that FFmpeg can decode" in sentence


def refused_sound(path: Path) -> Sequence[str]:
    sentences = []
    for action in (check_sound, read_audio):
        with pytest.raises(MediaError) as raised:
            action(path)
        sentences.append(str(raised.value))
    return sentences


def test_sound_that_was_asked_for_is_needed(tmp_path: Path) -> None:
    """With --sound-from, silence does not replace missing sound."""
    clip = make_clip(tmp_path / "clip.mp4")
    empty, unknown = film(tmp_path / "e.mkv", None), rename_codecs(make_clip(tmp_path / "u.mp4"), 1)
    for path, words in ((empty, "no samples"), (unknown, "a codec"), (make_clip(tmp_path / "m.mp4", has_audio=False),
                                                                     "no audio track")):  # fmt: skip
        assert all(words in sentence and str(path) in sentence for sentence in refused_sound(path))
        with pytest.raises(MediaError, match=words):
            VideoSource(clip, sound_from=path)
    check_sound(clip)


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
def test_what_is_no_number_is_silence_and_counted(codec: str, tmp_path: Path) -> None:
    clean = tone(500)
    broken = clean.copy()
    broken[1000:9000:100] = np.nan
    broken[9000:9010] = np.inf
    without = np.where(np.isfinite(broken), broken, np.float32(0))
    path = film(tmp_path / "nan.mkv", broken[None], codec=codec)
    expected = read_audio(film(tmp_path / "zero.mkv", without[None], codec=codec)).samples
    with VideoSource(path) as source:
        np.testing.assert_allclose(source.track.read(0, 1), expected, atol=1e-6)
        assert source.sound_counts.invalid_samples == 90
        assert source.sound_note is not None and "90 samples are not a number" in source.sound_note
    _, sound, health = watch_stream(path)
    np.testing.assert_allclose(sound, expected, atol=1e-6)
    assert health.invalid_samples == 90 and health.audio_note == source.sound_note


def test_one_channel_that_is_no_number_leaves_the_others(tmp_path: Path) -> None:
    left = tone(500)
    path = film(tmp_path / "nan.mkv", np.stack([left, np.full_like(left, np.nan)]))
    found = find_sound(path)
    assert found.track is not None and found.counts.invalid_samples == len(left)
    middle = found.track.read(0.2, 0.8)
    assert 0.23 < np.abs(middle).max() < 0.26


def test_a_video_is_written_from_sound_that_is_no_number(tmp_path: Path) -> None:
    samples = np.full(16_000, 0.25, np.float32)
    samples[::7], samples[3::7] = np.nan, np.inf
    with VideoWriter(tmp_path / "o.mp4", 64, 48, fps=10, sound=AudioTrack(samples)) as writer:
        for number in range(10):
            writer.write(np.zeros((48, 64, 3), np.uint8), number / 10)
    assert 0.05 < np.abs(read_audio(tmp_path / "o.mp4").samples).max() < 1


def test_integers_stored_as_floats_are_clipped_and_named(tmp_path: Path) -> None:
    path = film(tmp_path / "loud.mkv", tone(500)[None] * 32_768)
    found = find_sound(path)
    assert found.track is not None and np.abs(found.track.read(0, 1)).max() <= LOUDEST
    assert found.note is not None and "clipped" in found.note and found.counts.clipped_samples > 40_000
    _, sound, health = watch_stream(path)
    assert 1 < np.abs(sound).max() <= LOUDEST and health.audio_note is not None and "clipped" in health.audio_note


def test_a_little_beyond_full_scale_is_left_as_it_is(tmp_path: Path) -> None:
    found = find_sound(film(tmp_path / "loud.mkv", tone(500)[None] * 2.6))
    assert found.track is not None and found.note is None and found.counts.clipped_samples == 0
    assert 1.29 < np.abs(found.track.read(0.2, 0.8)).max() < 1.31


def test_channels_that_cancel_are_named(tmp_path: Path) -> None:
    left = tone(500)
    path = film(tmp_path / "anti.mkv", np.stack([left, -left]))
    with VideoSource(path) as source:
        assert all(moment.sound.is_silent for moment in source)
        assert source.sound_note is not None and "cancel each other" in source.sound_note
    _, _, health = watch_stream(path)
    assert health.audio_note is not None and "cancel each other" in health.audio_note
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, len(left)).astype(np.float32)
    for name, other in (("one", np.zeros_like(left)), ("wide", noise), ("low", -0.6 * left), ("none", None)):
        channels = np.stack([left, other]) if other is not None else np.zeros((2, len(left)), np.float32)
        assert find_sound(film(tmp_path / f"{name}.mkv", channels)).note is None, name


def frame_of(samples: NDArray[np.float32], rate: int, layout: str = "mono") -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.reshape(1, -1)), format="flt", layout=layout)
    frame.sample_rate, frame.time_base = rate, Fraction(1, RATE_HZ)
    return frame


def test_a_frame_that_can_t_be_converted_is_left_out() -> None:
    """Frames without a sample rate or with too many channels are skipped. Later frames are at the right time."""
    mono, block = Mono16k(SteadyClock()), tone(500, 0.1)
    for number in range(12):
        frame = frame_of(block, RATE_HZ)
        if number == 4:
            frame = frame_of(block, 0)
        if number == 7:
            frame = frame_of(np.repeat(block, 65), RATE_HZ, "65 channels")
        if number == 10:
            frame = frame_of(np.repeat(block, 16), 768_000)
        mono.add(frame, number * 0.1)
    mono.flush()
    pieces = mono.drain()
    assert mono.counts.damaged == 2 and mono.counts.error is not None
    ends = [(piece.begin_seconds, piece.begin_seconds + len(piece.samples) / 16_000) for piece in pieces]
    np.testing.assert_allclose(ends, [(0, 0.4), (0.5, 0.7), (0.8, 1.2)], atol=0.002)

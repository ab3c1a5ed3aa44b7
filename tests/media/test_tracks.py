"""The choice of tracks: players' choice, both of one programme, or the user's choice."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import MediaError
from teso_deploy.media.address import Address
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.media.tracks import choose_video_track, list_audio_candidates
from teso_deploy.pipeline.video_source import VideoSource
from tests.support.clips import make_clip
from tests.support.commands import refused, teso
from tests.support.transport import merge_programmes

NONE = Disposition(0)


def mux_tracks(path: Path, tracks: Sequence[tuple[Path, Disposition, str]], **options: str) -> Path:
    """Copy the one track of each file into a container, with a disposition and a language."""
    with av.open(str(path), "w", options=options) as out:
        given: list[tuple[Any, list[Packet[Any]]]] = []
        for source, disposition, language in tracks:
            with av.open(str(source)) as container:
                (stream,) = container.streams
                track: Any = out.add_stream_from_template(stream)
                packets = [packet for packet in container.demux(stream) if packet.dts is not None]
                track.disposition = disposition
                track.metadata["language"] = language
                given.append((track, packets))
        for track, packets in given:
            for packet in packets:
                packet.stream = track
        for packet in sorted((p for _, packets in given for p in packets), key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make files of one track each."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "small": make_clip(folder / "small.mp4", has_audio=False, size=(72, 96)),
        "large": make_clip(folder / "large.mp4", has_audio=False, size=(144, 192)),
        "sound": make_clip(folder / "sound.mp4", has_video=False),
    }


def numbers(path: Path, wanted: int | None = None) -> tuple[int, list[int]]:
    """Return the chosen picture and the candidates of sound, as indices among all tracks."""
    with av.open(str(path)) as container:
        video = choose_video_track(container, "a.mkv")
        return video.index, [
            stream.index for stream in list_audio_candidates(container, "a.mkv", wanted=wanted, video=video)
        ]


def test_default_tracks_come_first_then_the_largest_picture_and_the_order(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    small, large, sound = parts["small"], parts["large"], parts["sound"]
    plain = [(small, NONE, "und"), (large, NONE, "und"), (sound, NONE, "eng"), (sound, NONE, "ger")]
    assert numbers(mux_tracks(tmp_path / "plain.mkv", plain)) == (1, [2, 3])
    default = Disposition.default
    flagged = [
        (small, default, "und"), (large, NONE, "und"), (sound, Disposition.comment, "eng"),
        (sound, NONE, "eng"), (sound, default, "ger"),
    ]  # fmt: skip
    assert numbers(mux_tracks(tmp_path / "flagged.mkv", flagged)) == (0, [4, 3, 2])
    assert numbers(tmp_path / "flagged.mkv", wanted=1) == (0, [3]), "the number counts tracks of sound alone"


def test_a_cover_picture_is_chosen_only_by_its_number(parts: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out, av.open(str(parts["sound"])) as sound:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        track = out.add_stream_from_template(sound.streams.audio[0])
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24").reformat(format="yuvj420p")
        frame.pts, frame.time_base = 0, Fraction(1)
        out.mux(cover.encode(frame))
        out.mux(cover.encode(None))
        for packet in sound.demux():
            if packet.dts is not None:
                packet.stream = track
                out.mux(packet)
    with av.open(str(path)) as container:
        with pytest.raises(MediaError, match="only sound"):
            choose_video_track(container, "song.mp4")
        assert choose_video_track(container, "song.mp4", 0).disposition & Disposition.attached_pic
        assert len(list_audio_candidates(container, "song.mp4")) == 1


def test_a_track_that_does_not_exist_is_refused_with_the_list_of_those_that_do(
    parts: dict[str, Path], tmp_path: Path
) -> None:
    tracks = [(parts["small"], NONE, "und"), (parts["sound"], NONE, "eng"), (parts["sound"], NONE, "ger")]
    path = mux_tracks(tmp_path / "a.mkv", tracks)
    with av.open(str(path)) as container:
        with pytest.raises(MediaError, match=r"no audio track 2, it has 0 \(aac eng\), 1 \(aac ger\): give --audio"):
            list_audio_candidates(container, "a.mkv", wanted=2)
        with pytest.raises(MediaError, match=r"no video track -1, it has 0 \(h264 96x72\): give --video-track"):
            choose_video_track(container, "a.mkv", -1)
    with av.open(str(parts["small"])) as container:
        with pytest.raises(MediaError, match="has no audio track 0, it has no audio tracks"):
            list_audio_candidates(container, "small.mp4", wanted=0)
        assert list_audio_candidates(container, "small.mp4") == []


def test_picture_and_sound_are_of_one_programme(parts: dict[str, Path], tmp_path: Path) -> None:
    """In this multiplex a radio programme comes first, and its sound has the lower number."""
    radio = mux_tracks(tmp_path / "radio.ts", [(parts["sound"], NONE, "und")], mpegts_service_id="1")
    tv = mux_tracks(
        tmp_path / "tv.ts",
        [(parts["small"], NONE, "und"), (parts["sound"], NONE, "eng"), (parts["sound"], NONE, "ger")],
        mpegts_service_id="2", mpegts_start_pid="512", mpegts_pmt_start_pid="4200",
    )  # fmt: skip
    both = tmp_path / "both.ts"
    both.write_bytes(merge_programmes(radio.read_bytes(), tv.read_bytes()))
    with av.open(str(both)) as container:
        video = choose_video_track(container, "both.ts")
        ids = [stream.id for stream in list_audio_candidates(container, "both.ts", wanted=None, video=video)]
        assert {stream.id for stream in container.streams.audio} == {256, 513, 514}
        assert (video.id, ids) == (512, [513, 514])


# ---------------------------------------------------------------------------------------- tracks that are named


@pytest.fixture(scope="module")
def many(parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a file with a small and a large picture, and a low and a high tone."""
    folder = tmp_path_factory.mktemp("many")
    high = make_clip(folder / "high.mp4", has_video=False, hertz=2000)
    tracks = [(parts["small"], NONE, "und"), (parts["large"], NONE, "und"), (parts["sound"], NONE, "eng")]
    return mux_tracks(folder / "many.mkv", [*tracks, (high, NONE, "ger")])


def pitch(samples: NDArray[np.float32]) -> float:
    """Return the strongest frequency of 16 kHz sound in hertz."""
    spectrum = np.abs(np.fft.rfft(samples[2000:14_000]))
    return float(np.fft.rfftfreq(12_000, 1 / 16_000)[spectrum.argmax()])


@pytest.mark.parametrize(
    ("video", "audio", "width", "hertz"), [(None, None, 192, 440), (0, 1, 96, 2000), (1, 0, 192, 440)]
)
def test_named_tracks_are_read(many: Path, video: int | None, audio: int | None, width: int, hertz: float) -> None:
    with VideoSource(many, video_track=video, audio_track=audio) as source:
        moment = next(iter(source))
        assert source.info.width == moment.frame.image.shape[1] == width
        assert pitch(source.track.read(0, 1)) == pytest.approx(hertz, abs=5)
    with LiveReader(Address.parse(many), lossless=True, video_track=video, audio_track=audio) as reader:
        reader.start()
        while reader.take(1.0) is not None:
            pass
        assert reader.info.width == width
        assert pitch(reader.ring.read(0, 1)) == pytest.approx(hertz, abs=5)


def test_the_sound_of_the_picture_that_is_named(parts: dict[str, Path], tmp_path: Path) -> None:
    """Each of two programmes has a picture and a tone."""
    high = make_clip(tmp_path / "high.mp4", has_video=False, hertz=2000)
    first = mux_tracks(tmp_path / "1.ts", [(parts["small"], NONE, "und"), (parts["sound"], NONE, "und")])
    second = mux_tracks(
        tmp_path / "2.ts", [(parts["large"], NONE, "und"), (high, NONE, "und")],
        mpegts_service_id="2", mpegts_start_pid="512", mpegts_pmt_start_pid="4200",
    )  # fmt: skip
    both = tmp_path / "both.ts"
    both.write_bytes(merge_programmes(first.read_bytes(), second.read_bytes()))
    for track, width, hertz in ((None, 192, 2000), (0, 96, 440), (1, 192, 2000)):
        with VideoSource(both, video_track=track) as source:
            assert source.info.width == width and pitch(source.track.read(0, 1)) == pytest.approx(hertz, abs=5)


def test_tracks_on_the_command_line(many: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    masks, report = tmp_path / "masks", tmp_path / "report.json"
    for mode in ("file", "live"):
        done = teso(
            "run", many, "--bundle", tiny_bundle, "--threads", 1, "--mode", mode, "--video-track", 0,
            "--audio-track", 1, "--masks", masks, "--json", report,
        )  # fmt: skip
        assert done.code == 0, done.err
        with Image.open(next(iter(sorted(masks.glob("*.png"))))) as mask:
            assert mask.size == (96, 72)
    for mode in ("file", "live"):
        options: tuple[object, ...] = ("--bundle", tiny_bundle, "--json", report, "--mode", mode)
        words = "no video track 2, it has 0 (h264 96x72), 1 (h264 192x144): give --video-track another number"
        refused("run", many, "--video-track", 2, *options, names=words)
        words = "no audio track 5, it has 0 (aac eng), 1 (aac ger): give --audio-track another number"
        refused("run", many, "--audio-track", 5, *options, names=words)
    refused(
        "cues",
        many,
        "--bundle",
        tiny_bundle,
        "--video-track",
        3,
        "--out",
        tmp_path / "c.json",
        names="no video track 3",
    )
    assert teso("run", many, "--audio-track", 1, "--mute", "--json", report).code == 2
    options = ("--bundle", tiny_bundle, "--threads", 1, "--sound-from", many, "--audio-track", 1)
    done = teso("run", many, *options, "--json", report)
    assert done.code == 0, done.err

"""Faults of streams at the reader: no crash, no hang, right counters, and correct picture and sound afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from teso_deploy.errors import InputNotFoundError, MediaError
from tests.support.leaks import nothing_left
from tests.support.recordings import click_track, record, shifted
from tests.support.streams import Damage, Sender, corrupted, free_port, http, lost, rtsp, send_udp, serving, silent, tcp
from tests.support.watching import Seen, assert_aligned, failure_of, has_beats, watched

SECONDS = 4.0
#: A flash and a click every half second.
BEATS = [0.5 * n for n in range(1, 8)]
#: Longer than any of these streams takes on a busy machine; each test ends as soon as it has seen enough.
LONG_SECONDS = 60.0
#: The share of the clip that is damaged in the tests of damage, and when all must be right again, in seconds.
DAMAGED_SHARE, RIGHT_AGAIN_SECONDS = 0.4, 0.4 * SECONDS + 1.0


def times(fps: float, seconds: float = SECONDS) -> list[float]:
    return [n / fps for n in range(round(seconds * fps))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "clip.ts"
    return record(path, times(40), flashes=BEATS, sound=click_track(SECONDS, BEATS))


def test_every_kind_of_server(clip: Path) -> None:
    for serve, url in (
        (tcp(Sender(clip, SECONDS)), "tcp://127.0.0.1:{port}"),
        (http(Sender(clip, SECONDS), credentials="me:secret"), "http://me:secret@127.0.0.1:{port}/live.ts"),
        (rtsp(Sender(clip, SECONDS), credentials="me:secret"), "rtsp://me:secret@127.0.0.1:{port}/live"),
    ):
        with serving(serve) as server:
            seen = watched(url.format(port=server.port), LONG_SECONDS, until=has_beats(2))
        assert_aligned(seen)
        assert seen.health is not None and seen.health.state == "running" and seen.health.gap_seconds < 0.05
        assert seen.pts == sorted(seen.pts) and seen.health.reconnects == 0


def test_datagrams(clip: Path) -> None:
    port, sender = free_port(), Sender(clip, SECONDS, packets=7, loop=True, goes_on=True)
    send_udp(sender, port)
    try:
        assert_aligned(watched(f"udp://127.0.0.1:{port}", LONG_SECONDS, until=has_beats(2)))
    finally:
        sender.stopped.set()


def test_a_server_that_dies_and_comes_back(clip: Path) -> None:
    port = free_port()
    servers = [serving(tcp(Sender(clip, SECONDS)), port)]
    servers[0].__enter__()
    state: dict[str, float] = {}

    def act(passed: float) -> None:
        if passed > 0.8 and "killed" not in state:
            state["killed"] = passed
            servers[0].__exit__(None, None, None)
        if passed > 1.3 and "back" not in state:
            state["back"] = passed
            servers.append(serving(tcp(Sender(clip, SECONDS)), port))
            servers[1].__enter__()

    def is_enough(seen: Seen) -> bool:
        return has_beats(4)(seen) and seen.segments[-1] > seen.segments[0] and has_beats(1)(after_break(seen))

    def after_break(seen: Seen) -> Seen:
        """The flashes of the second server."""
        began = next(at for at, segment in zip(seen.pts, seen.segments, strict=True) if segment > seen.segments[0])
        return Seen(flashes=[flash for flash in seen.flashes if flash > began], sound_end=seen.sound_end)

    try:
        seen = watched(f"tcp://127.0.0.1:{port}", LONG_SECONDS, act, until=is_enough)
    finally:
        servers[-1].__exit__(None, None, None)
    assert seen.health is not None and seen.health.reconnects >= 1 and seen.health.state == "running"
    assert seen.segments[-1] > seen.segments[0] and seen.pts == sorted(seen.pts)
    assert seen.health.gap_seconds > 0.2, "the time without sound counts as a gap"
    assert_aligned(seen, 4)


def test_a_pause_is_no_end_and_a_long_one_is_a_fault(clip: Path) -> None:
    sender = Sender(clip, SECONDS)

    def pause(passed: float) -> None:
        (sender.paused.set if 0.5 < passed < 1.3 else sender.paused.clear)()

    with serving(tcp(sender)) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, pause, until=has_beats(3))
    assert seen.health is not None and seen.health.reconnects == 0
    assert_aligned(seen, 3)
    sender = Sender(clip, SECONDS)
    with serving(tcp(sender)) as server:
        seen = watched(
            f"tcp://127.0.0.1:{server.port}",
            LONG_SECONDS,
            lambda at: sender.paused.set() if at > 0.4 else None,
            timeout_seconds=3.0,
            until=lambda seen: server.clients >= 2,
        )
        assert seen.health is not None and server.clients >= 2, "asked again"


@pytest.mark.parametrize(
    "damage", [lost(0.01), lost(0.05), lost(0.2), corrupted(0.05)], ids=["1%", "5%", "20%", "bits"]
)
def test_packets_that_are_lost_or_spoilt(clip: Path, damage: Damage) -> None:
    last, sent = round(DAMAGED_SHARE * clip.stat().st_size), [0]

    def damage_beginning(block: bytes) -> bytes:
        sent[0] += len(block)
        return damage(block) if sent[0] < last else block

    def clean(seen: Seen) -> Seen:
        """What was seen a second after the last damage, when everything must be right again."""
        flashes = [flash for flash in seen.flashes if flash > RIGHT_AGAIN_SECONDS]
        return Seen(flashes=flashes, earliest=seen.earliest, clicks=seen.clicks, sound_end=seen.sound_end)

    with serving(tcp(Sender(clip, SECONDS, damage_beginning))) as server:
        seen = watched(
            f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, until=lambda seen: has_beats(1)(clean(seen))
        )  # fmt: skip
    assert seen.health is not None and seen.health.reconnects == 0
    assert seen.health.corrupt_packets + seen.health.corrupt_frames > 0
    assert_aligned(clean(seen), 1)


def test_a_stream_that_begins_anew(clip: Path) -> None:
    """Stamps jump back at each round. Stream time continues, and picture and sound leap together."""
    short = clip.with_name("short.ts")
    record(short, times(40, 1.5), flashes=[0.5, 1.0], sound=click_track(1.5, [0.5, 1.0]))
    with serving(tcp(Sender(short, 1.5, loop=True))) as server:
        seen = watched(
            f"tcp://127.0.0.1:{server.port}", LONG_SECONDS,
            until=lambda seen: has_beats(5)(seen) and seen.segments[-1] >= 2,
        )  # fmt: skip
    assert seen.health is not None and seen.health.discontinuities >= 2 and seen.health.reconnects == 0
    assert seen.segments[-1] >= 2 and seen.pts == sorted(seen.pts)
    assert_aligned(seen, 5)


def test_stamps_that_run_over(clip: Path) -> None:
    """33 bits of 90 kHz overflow after 26.5 hours."""
    late = shifted(clip, clip.with_name("late.ts"), 2**33 / 90_000 - 3.0)
    with serving(tcp(Sender(late, SECONDS))) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, until=has_beats(4))
    assert seen.health is not None and seen.pts == sorted(seen.pts) and seen.pts[-1] < 10
    assert_aligned(seen, 4)


def test_other_sizes_and_sample_rates_on_the_way(clip: Path) -> None:
    parts = []
    for number, (rate_hz, size) in enumerate([(48_000, (64, 96)), (22_050, (80, 128)), (44_100, (64, 96))]):
        part = clip.with_name(f"part{number}.ts")
        beats = click_track(1.0, [0.3, 0.7], rate_hz)
        record(part, times(40, 1.0), flashes=[0.3, 0.7], sound=beats, rate_hz=rate_hz, size=size)
        parts.append(part.read_bytes())
    path = clip.with_name("parts.ts")
    path.write_bytes(b"".join(parts))
    with serving(tcp(Sender(path, 3.0))) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, until=has_beats(5))
    assert seen.health is not None and seen.health.format_changes >= 3
    assert {size[:2] for size in seen.sizes} == {(64, 96), (80, 128)}
    assert_aligned(seen, 3)


def test_no_sound_and_late_sound(clip: Path) -> None:
    path = record(clip.with_name("mute.ts"), times(40), flashes=BEATS)
    with serving(tcp(Sender(path, SECONDS))) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, until=lambda seen: len(seen.pts) > 10)
    assert seen.health is not None and not seen.health.has_audio and len(seen.pts) > 10 and not seen.clicks
    beats = click_track(1.0, [0.5])
    path = record(clip.with_name("late_sound.ts"), times(40), flashes=[3.5], sound=beats, sound_start=3.0)
    with serving(tcp(Sender(path, SECONDS))) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, until=has_beats(1))
    assert len([at for at in seen.pts if at < 2.5]) > 10, "frames do not wait for the sound"
    assert_aligned(seen, 1)


@pytest.mark.parametrize("fps", [1, 120])
def test_slow_and_fast_pictures(clip: Path, fps: int) -> None:
    path = clip.with_name(f"fps{fps}.ts")
    record(path, times(fps), flashes=[1.0, 2.0], sound=click_track(SECONDS, [1.0, 2.0]))
    with serving(tcp(Sender(path, SECONDS))) as server:
        seen = watched(f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, until=has_beats(1))
    assert seen.health is not None and seen.health.frames_decoded >= fps and seen.health.audio_seconds > 1.0
    assert_aligned(seen, 1, 1 / 40)


def test_four_tracks_of_sound(clip: Path) -> None:
    path = shifted(clip, clip.with_name("tracks.ts"), 0.0, audio_tracks=4)
    with serving(tcp(Sender(path, SECONDS))) as server:
        assert_aligned(watched(f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, until=has_beats(2)))


def test_sound_from_elsewhere(clip: Path) -> None:
    picture = record(clip.with_name("picture.ts"), times(40), flashes=BEATS)
    with serving(tcp(Sender(picture, SECONDS))) as server, serving(tcp(Sender(clip, SECONDS))) as other:
        seen = watched(
            f"tcp://127.0.0.1:{server.port}", LONG_SECONDS, audio=f"tcp://127.0.0.1:{other.port}",
            until=lambda seen: seen.sound_end > 1.0 and len(seen.pts) > 30,
        )  # fmt: skip
    assert seen.health is not None and seen.health.has_audio and seen.health.audio_seconds > 0.8 and len(seen.pts) > 30


def test_who_is_not_let_in_does_not_ask_again(clip: Path) -> None:
    sender = Sender(clip, SECONDS)
    for serve, scheme in ((http(sender, credentials="me:secret"), "http"), (rtsp(sender, "me:secret"), "rtsp")):
        with serving(serve) as server:
            error, seconds = failure_of(f"{scheme}://me:wrong-word@127.0.0.1:{server.port}/live")
            assert isinstance(error, MediaError) and "credentials" in str(error) and seconds < 30
            assert "wrong-word" not in str(error) and server.clients <= 2
    for status, kind in ((403, MediaError), (404, InputNotFoundError)):
        with serving(http(None, status)) as server:
            error, _ = failure_of(f"http://127.0.0.1:{server.port}/live.ts")
            assert isinstance(error, kind) and server.clients == 1


@pytest.mark.parametrize("scheme", ["tcp", "http", "rtsp", "rtmp"])
def test_a_host_that_never_answers(scheme: str) -> None:
    with serving(silent) as server:
        error, seconds = failure_of(f"{scheme}://127.0.0.1:{server.port}/live", 1.0)
    assert isinstance(error, MediaError) and seconds < 30 and str(error).count("\n") == 0


def test_files_that_are_none(tmp_path: Path, clip: Path) -> None:
    empty, cut = tmp_path / "empty.mp4", tmp_path / "cut.mp4"
    empty.write_bytes(b"")
    whole = record(tmp_path / "whole.mp4", times(25, 2.0), sound=click_track(2.0, [1.0]))
    cut.write_bytes(whole.read_bytes()[:-3000])
    for path, reason in ((empty, "empty"), (cut, "cut off"), (tmp_path / "none.mp4", "no file")):
        error, _ = failure_of(str(path))
        assert reason in str(error) and str(path) in str(error)


def test_nothing_is_left_behind(clip: Path) -> None:
    with nothing_left("teso-"):
        for _ in range(5):
            with serving(tcp(Sender(clip, SECONDS))) as server:
                watched(f"tcp://127.0.0.1:{server.port}", 0.1)

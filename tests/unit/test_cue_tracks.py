"""Cues by time, and the files that hold them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from teso_deploy.cues.contracts import CueAnswer
from teso_deploy.cues.tracks import CueTrack, Span, VideoCues, make_cue_file_content, read_cue_file
from teso_deploy.errors import CueError, InputNotFoundError
from teso_deploy.sealed import hash_file

ANSWER = CueAnswer(("dog",), "llm", 1.5, (0.5,), ("dog", "man"), ("cat",), "a dög", "because")


def names_at(track: CueTrack, seconds: float) -> tuple[str, ...] | None:
    answer = track.at(seconds)
    return None if answer is None else answer.names


def test_a_track_tells_what_holds_when() -> None:
    track = CueTrack(
        [
            Span(start_seconds=4, names=("bus",)),
            Span(start_seconds=1, end_seconds=2, names=("dog",)),
            Span(start_seconds=2, end_seconds=3, names=()),
        ]
    )
    assert [names_at(track, at) for at in (0.9, 1, 1.99, 2, 3, 3.99, 4, 1e6)] == [
        None, ("dog",), ("dog",), (), None, None, ("bus",), ("bus",),
    ]  # fmt: skip
    assert track.names == ("dog", "bus")
    at = track.at(5)
    assert at is not None and at.of_seconds == 4  # typed by a person: they have the time at which their span begins


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_ours_comes_back_as_it_was_written(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", "bytes of a video")
    entry = VideoCues(sha256=hash_file(video), duration_seconds=9.0, spans=(Span.of(ANSWER, 1.0, 4.0),))
    file = read_cue_file(write(tmp_path / "cues.json", make_cue_file_content({"a": entry}, "llm", "identity")))
    assert file.of(video).at(2.0) == ANSWER
    renamed = write(tmp_path / "b.mp4", "bytes of a video")
    assert file.of(renamed).at(2.0) == ANSWER


def test_cues_of_another_video_are_refused(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", "bytes of a video")
    entry = VideoCues(sha256=hash_file(video), spans=(Span.of(ANSWER, 0.0),))
    file = read_cue_file(write(tmp_path / "cues.json", make_cue_file_content({"a": entry}, "llm", "identity")))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CueError, match="another video that is also named a"):
        file.of(write(other / "a.mp4", "other bytes"))
    with pytest.raises(CueError, match="not of 'c'"):
        file.of(write(tmp_path / "c.mp4", "more bytes"))
    with pytest.raises(CueError, match="cues of a, but not of 'x'"):
        file.get_track("x")


def test_the_released_form_has_a_frame_a_second(tmp_path: Path) -> None:
    released = {"vid": {"f0": "guitar,", "f1": "guitar,man,", "f2": "None,", "f3": ""}}
    track = read_cue_file(write(tmp_path / "text.json", released)).of(write(tmp_path / "vid.mp4", ""))
    assert [names_at(track, at) for at in (0.9375, 1.9375, 2.9375, 3.5, 4.5)] == [
        ("guitar",), ("guitar", "man"), (), (), None,
    ]  # fmt: skip
    first = track.at(0.5)
    assert first is not None and first.source == "released"


def test_words_hold_for_any_video(tmp_path: Path) -> None:
    file = read_cue_file(write(tmp_path / "cues.txt", "# what is to be seen\ndog, bus\n\nman\n"))
    assert file.is_of_any_video
    assert names_at(file.of(tmp_path / "any.mp4"), 0) == ("dog", "bus", "man")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "neither"),
        ({}, "neither"),
        ({"vid": "guitar"}, "neither"),
        ({"vid": {"second 0": "guitar"}}, "neither"),
        ({"vid": {"f0": ["guitar"]}}, "neither"),
        ({"videos": {}, "schema_version": 9}, "schema version 9"),
        ({"videos": [], "schema_version": 1}, "by its name"),
        ({"videos": {"a": {"spans": [{"start_seconds": -1, "names": []}]}}, "schema_version": 1}, "start_seconds"),
        ({"videos": {"a": {"spans": [{"start_seconds": 0}]}}, "schema_version": 1}, "names"),
        ({"videos": {"a": {"spans": [], "more": 1}}, "schema_version": 1}, "more"),
        (
            {"videos": {"a": {"spans": [{"start_seconds": 0, "names": ["a"], "confidences": [1, 2]}]}},
             "schema_version": 1},
            "one confidence for each name",
        ),
    ],
)  # fmt: skip
def test_another_form_is_refused_in_one_sentence(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(CueError, match=said) as caught:
        read_cue_file(write(tmp_path / "cues.json", content))
    assert "\n" not in str(caught.value).strip()


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cues.txt").write_bytes(b"\xff\xfe\x00\x80")
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "cues.txt", tmp_path / "absent.json", tmp_path, tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(InputNotFoundError, match="can't be read"):
            read_cue_file(path)


def test_the_span_that_began_last_holds_and_then_the_one_around_it(tmp_path: Path) -> None:
    around = Span(start_seconds=0, end_seconds=10, names=("car",))
    track = CueTrack([around, Span(start_seconds=3, end_seconds=4, names=("cow",))])
    named = {seconds: answer.names if (answer := track.at(seconds)) else () for seconds in (1.0, 3.5, 6.0, 11.0)}
    assert named == {1.0: ("car",), 3.5: ("cow",), 6.0: ("car",), 11.0: ()}
    assert track.times == (0, 3, 4, 10)
    path = tmp_path / "spans.json"
    wrong = {"spans": [{"start_seconds": 3, "end_seconds": 1, "names": ["cow"]}]}
    path.write_text(json.dumps({"schema_version": 1, "videos": {"a": wrong}}))
    with pytest.raises(CueError, match="after start_seconds"):
        read_cue_file(path)


@pytest.mark.parametrize("text", ["car\ncow\n", '{"a": {"f0": "car, cow"}}'])
def test_files_of_windows_editors(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cues.json" if text.startswith("{") else tmp_path / "cues.txt"
    path.write_text(text, encoding="utf-8-sig")
    found = read_cue_file(path).get_track("a").at(0.5)
    assert found is not None and found.names == ("car", "cow")

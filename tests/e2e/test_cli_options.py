"""``run`` and ``live`` as two commands, and options that would have no effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from teso_deploy.cli.live import LiveRequest
from teso_deploy.sinks.contracts import RunFacts
from teso_deploy.sinks.delivery import InputFacts
from teso_deploy.sinks.report import ReportSink
from tests.support.clips import make_clip
from tests.support.commands import teso


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=1.0)


def request_of(*arguments: object) -> tuple[LiveRequest, dict[str, Any]]:
    """Return a command line's request for a live run, without running it."""
    with (
        # The second module imports the function from the first, so it is patched, and thereby imported, first.
        mock.patch("teso_deploy.cli.run.run_streams") as from_run,
        mock.patch("teso_deploy.cli.live.run_streams") as from_live,
    ):
        done = teso(*arguments)
        assert done.code == 0, done.err
        (call,) = from_live.call_args_list + from_run.call_args_list
        return call.args[0], dict(call.kwargs)


STREAM = (
    "rtsp://h/x", "--audio", "rtsp://h/a", "--timeout", 3, "--staleness", 1, "--corrupt", "drop", "--no-reconnect",
    "--seconds", 5, "--metrics", ":0", "--mute", "--video-track", 1, "--fps", 4, "--cue-source", "tagger",
    "--cue-every", 2, "--cue-budget", 3, "--cue-ttl", 4, "--threads", 1, "--size", "auto", "--events", "e.jsonl",
    "--masks", "m.jsonl", "--out", "o.mp4", "--json", "-", "--bundle", "b",
)  # fmt: skip


@pytest.mark.parametrize(
    ("of_run", "of_live"),
    [
        (("rtsp://h/x",), ("rtsp://h/x",)),
        (("-",), ("-",)),
        (("-", "--mode", "file"), ("-", "--mode", "file")),
        (("clip.mp4", "--mode", "live"), ("clip.mp4",)),
        (("clip.mp4", "tcp://h:1", "--mode", "live"), ("clip.mp4", "tcp://h:1", "--mode", "live")),
        (STREAM, STREAM),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
def test_run_hands_streams_to_live(of_run: tuple[object, ...], of_live: tuple[object, ...]) -> None:
    assert request_of("run", *of_run) == request_of("live", *of_live)


def test_a_file_is_run_at_its_own_pace(clip: Path, tiny_bundle: Path) -> None:
    done = teso("live", clip, "--bundle", tiny_bundle, "--threads", 1, "--json", "-")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["mode"] == "live" and report["streams"][0]["state"] == "ended"


def test_files_and_streams_are_reported_with_the_same_fields(clip: Path, tiny_bundle: Path) -> None:
    common = ("--bundle", tiny_bundle, "--threads", 1, "--json", "-", "--cues", "dog")
    done, live = teso("run", clip, *common), teso("live", clip, *common, "--mode", "file")
    assert done.code == live.code == 0, done.err + live.err
    of_file, (of_stream,) = json.loads(done.out), json.loads(live.out)["streams"]
    assert of_file.keys() - of_stream.keys() == {"decoder"}
    assert of_file["audio"].keys() - of_stream["audio"].keys() == {"window", "clipped_samples", "damaged_packets"}
    assert of_file["cues"].keys() <= of_stream["cues"].keys()
    for field in ("frames", "bundle", "backend", "schema_version"):
        assert of_file[field] == of_stream[field], field
    assert of_stream["mode"] == "file" and of_stream["cues"]["names"] == ["dog"]
    assert of_stream["audio"]["source"] == of_file["audio"]["source"] == "own"
    assert of_file["seconds"] > 0 and of_stream["seconds"] > 0


def test_a_stream_without_a_result_has_all_fields() -> None:
    results = ReportSink(None, RunFacts(kind="streams", classes=("a",), inputs=("x",)))
    found = results.describe_input(0, InputFacts(name="x", describe=lambda: {"backend": "cpu"}))
    assert (found["input"], found["frames"], found["seconds"], found["backend"]) == ("x", 0, 0.0, "cpu")
    assert found["cues"] == {"names": [], "source": "none", "offered_rate": {}, "accepted_rate": {}}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--timeout", "10"), "--timeout is for streams: use `teso-deploy live`, or omit it"),
        (("--staleness", "1"), "--staleness is for streams"),
        (("--corrupt", "drop"), "--corrupt is for streams"),
        (("--no-reconnect",), "--no-reconnect is for streams"),
        (("--audio", "x", "--metrics", ":1", "--seconds", "2"), "--audio, --seconds and --metrics are for streams"),
        (("--cue-source", "tagger", "--cue-budget", "3"), "--cue-budget is for streams"),
        (("--cue-every", "3"), "without a source of cues this has no effect: --cue-every; add --cue-source"),
        (("--cue-budget", "3"), "no effect: --cue-budget"),
        (("--mode", "live", "--decoder", "software"), "--decoder is for files: omit it"),
        (("--mode", "live", "--noise-dbfs", "-30"), "--noise-dbfs is for files: omit it"),
        (("--mode", "live", "--sound-from", "x.wav"), "--sound-from is for files: omit it"),
        (("--scenes", "3"), "run has no option --scenes: it is an option of `cues`, `eval`, `calibrate`"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_options_of_streams_on_files_and_the_other_way_round(
    clip: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = teso("run", clip, "--events", tmp_path / "e.jsonl", *arguments)
    assert done.code == 2 and sentence in " ".join(done.err.split()), done.err
    assert not (tmp_path / "e.jsonl").exists() and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--decoder", "nvdec"), "live has no option --decoder: it is an option of `run`"),
        (("--noise-dbfs", "-30"), "it is an option of `run`"),
        (("--sound-from", "x.wav"), "it is an option of `run`"),
        (("--scenes", "3"), "it is an option of `cues`, `eval`, `calibrate`"),
        (("--mode", "paper"), "'paper' is not one of 'live', 'file'"),
        (("--no-such-option",), "No such option"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_options_that_live_lacks(arguments: tuple[str, ...], sentence: str) -> None:
    done = teso("live", "rtsp://h/x", *arguments)
    assert done.code == 2 and sentence in " ".join(done.err.split()), done.err


def test_options_of_a_folder_of_scenes_on_videos(clip: Path, tmp_path: Path) -> None:
    for command, arguments, sentence in (
        ("cues", (clip, "--seeds", 2), "--seeds is for a folder of test scenes: omit it"),
        ("cues", (tmp_path, "--video-track", 0), "--video-track is for videos, not for a folder of test scenes"),
    ):
        done = teso(command, *arguments, "--out", tmp_path / "c.json")
        assert done.code == 2 and sentence in " ".join(done.err.split()), done.err


@pytest.mark.parametrize(
    ("option", "value"), [("--layout", "s4"), ("--checkpoint", "x"), ("--random-weights", "1"), ("--cues-file", "x")]
)
def test_options_of_training_on_videos_where_scenes_are_trained_on(tmp_path: Path, option: str, value: str) -> None:
    done = teso("train", "teso-nano", "--data", tmp_path, "--out", tmp_path / "run", option, value)
    said = " ".join(done.err.split())
    assert done.code == 2 and f"{option} is for training on videos, but teso-nano trains on scenes: omit it" in said


@pytest.mark.parametrize(("option", "value"), [("--start", "x"), ("--workers", "2")])
def test_options_of_training_on_scenes_where_videos_are_trained_on(tmp_path: Path, option: str, value: str) -> None:
    done = teso("train", "teso-m2f-swin-b", "--data", tmp_path, "--out", tmp_path / "run", option, value)
    said = " ".join(done.err.split())
    assert done.code == 2 and f"{option} is for training on scenes, but teso-m2f-swin-b trains on videos" in said


def test_the_licence_of_a_bundle_is_its_own(tiny_bundle: Path, tmp_path: Path) -> None:
    done = teso("export", tiny_bundle, "--out", tmp_path / "b", "--licence", "MIT")
    assert done.code == 2 and "--licence is for recipes, since a bundle already has its licence: omit it" in " ".join(
        done.err.split()
    )

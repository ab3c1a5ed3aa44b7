"""The registry of sinks, and a sink of this test that takes results of a file and of a stream."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import pytest

from teso_deploy.cli import live as cli_live
from teso_deploy.cli.run import run_files
from teso_deploy.errors import InputNotFoundError, MissingExtraError, OutputError
from teso_deploy.live.runner import LiveRunner, describe_live_run
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.options.cues import CueOptions
from teso_deploy.options.engine import EngineOptions
from teso_deploy.options.fields import option, spell_flag
from teso_deploy.options.media import FrameOptions, SoundOptions
from teso_deploy.options.output import OutputOptions
from teso_deploy.pipeline.file_runner import describe_file_run, run_file
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.contracts import InputKind, RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery
from teso_deploy.sinks.registry import SINKS, SinkEntry, check_target, choose_sink, find_sink, load_sink, open_sink
from tests.support.clips import make_clip
from tests.support.deliveries import describe_run, make_delivery
from tests.unit.test_live_runner import Camera


class ListSink(Sink):
    """Writes the index of each frame to a file. A new sink needs nothing more."""

    def __init__(self, path: Path, run: RunFacts) -> None:
        self.name, self._path, self._run = path.name, path, run
        self.taken: list[Delivery] = []

    def append(self, delivery: Delivery) -> None:
        self.taken.append(delivery)

    def close(self) -> None:
        lines = [f"{self._run.kind} {one.input.name} {one.cause} {one.frame.index}\n" for one in self.taken]
        self._path.write_text("".join(lines))


MADE_UP = SinkEntry(
    name="list",
    subject=f"{__name__}:ListSink",
    summary="indices of frames",
    option="--list",
    writes="file",
    suffixes=(".txt",),
)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Pipeline:
    return Pipeline.load(tiny_bundle, threads=1)


def test_a_new_sink_is_a_module_and_an_entry(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SINKS, "list", MADE_UP)
    targets = tmp_path / "file.txt", tmp_path / "stream.txt"
    for target in targets:
        check_target(choose_sink("--list", target), target)
    clip = make_clip(tmp_path / "clip.mp4", seconds=1.0)
    with (
        VideoSource(clip) as source,
        open_sink(find_sink("list"), targets[0], describe_file_run(pipeline, ["clip"])) as sink,
    ):
        count = run_file(pipeline, source, ["dog"], sinks=[sink])
    lines = targets[0].read_text().splitlines()
    assert count == 12 and lines == [f"files {clip} frame {index}" for index in range(12)]
    readers = cast(list[LiveReader], [Camera(2.0)])
    sink = open_sink(find_sink("list"), targets[1], describe_live_run(pipeline, readers))
    LiveRunner(pipeline, readers, [sink]).run()
    assert targets[1].read_text().startswith("streams rtsp://camera/live frame ")


def test_deliveries_of_files_and_streams_say_the_same_things(pipeline: Pipeline, tmp_path: Path) -> None:
    taken: dict[str, list[Delivery]] = {"files": [], "streams": []}
    with VideoSource(make_clip(tmp_path / "clip.mp4", seconds=1.0)) as source:
        sink = open_sink(find_sink("callback"), taken["files"].append, describe_file_run(pipeline, ["clip"]))
        run_file(pipeline, source, ["dog"], sinks=[sink])
        (of_file, *_), report = taken["files"], taken["files"][0].input.describe()
    readers = cast(list[LiveReader], [Camera(60.0)])

    def take(delivery: Delivery) -> None:
        taken["streams"].append(delivery)
        if delivery.audio_end_seconds is not None:
            runner.stop()

    runner = LiveRunner(pipeline, readers, [open_sink(find_sink("callback"), take, describe_run())])
    runner.run()
    of_stream = next(one for one in taken["streams"] if one.audio_end_seconds is not None)
    for one in (of_file, of_stream):
        assert one.input.fps > 0 and one.input.sound is not None and one.stream == 0
        assert one.audio_end_seconds == pytest.approx(one.segmentation.audio_start_seconds + 0.975, abs=1e-6)
        assert list(one.stamps.values()) == sorted(one.stamps.values())
    for said in (report, of_stream.input.describe()):
        assert {"mode", "graph_runs", "encoder_skips", "drops", "audio", "backend", "bundle"} <= said.keys()
    assert of_file.input.find_end() == pytest.approx(1.0, abs=0.1) and of_stream.input.find_end() == 0


@dataclass(frozen=True, kw_only=True)
class MoreOutputs(OutputOptions):
    """The options of a run with one more."""

    list: Path | None = option(None, "Indices of frames.")


@pytest.mark.parametrize("takes_many", [True, False])
def test_a_new_option_is_a_field_and_an_entry(
    takes_many: bool, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = dataclasses.replace(MADE_UP, takes_many=takes_many)
    monkeypatch.setitem(SINKS, "list", entry)
    clips = [make_clip(tmp_path / f"{name}.mp4", seconds=0.5) for name in ("a", "b")]
    out = tmp_path / ("list.txt" if takes_many else "lists")

    def run(**outputs: Path) -> None:
        run_files(
            clips, mode="file", outputs=MoreOutputs(**outputs), bundle=tiny_bundle, cues=CueOptions(),
            sound=SoundOptions(), frames=FrameOptions(), engine=EngineOptions(threads=1),
        )  # fmt: skip

    run(list=out)
    written = [out] if takes_many else [out / "a.txt", out / "b.txt"]
    lines = [line.split()[1] for path in written for line in path.read_text().splitlines()]
    assert lines == [str(clip) for clip in clips for _ in range(6)]
    with pytest.raises(OutputError, match="are the same output"):
        run(list=out, events=written[0])


def test_every_option_of_the_registry_is_a_field() -> None:
    assert {entry.option for entry in SINKS.values()} - {None} < {spell_flag(one) for one in fields(OutputOptions)}


TARGETS: dict[str, Any] = {"mask-folder": "masks", "heat-map-folder": "heat", "callback": print}


def name_target(name: str) -> Any:
    """Return a target that a sink accepts."""
    return TARGETS.get(name, name + (find_sink(name).suffixes or (".txt",))[0])


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, entry in SINKS.items() for kind in entry.kinds])
def test_every_entry_opens_and_takes_results(name: str, kind: InputKind, tmp_path: Path) -> None:
    entry = find_sink(name)
    assert entry.extra is None or entry.modules, "an extra is known to be installed by its modules"
    if any(module for module in entry.modules if not pytest.importorskip(module)):
        return
    target = name_target(name)
    target = tmp_path / target if isinstance(target, str) else target
    if entry.writes != "nothing":
        check_target(entry, target)
    with open_sink(entry, target, describe_run(kind)) as sink:
        for number in range(3):
            sink.append(make_delivery(number))
    assert isinstance(sink.name, str) and entry.summary
    if entry.writes != "nothing":
        assert [path.name for path in tmp_path.iterdir()] == [target.name]
        assert target.is_dir() == (entry.writes == "folder")


@pytest.mark.parametrize("name", [name for name, entry in SINKS.items() if entry.writes != "nothing"])
def test_a_file_s_output_is_whole_or_absent(name: str, tmp_path: Path) -> None:
    target = tmp_path / name_target(name)
    with pytest.raises(RuntimeError), open_sink(find_sink(name), target, describe_run("files")) as sink:
        sink.append(make_delivery(0))
        sink.append(make_delivery(1))
        assert not target.exists(), "it appears at the end"
        raise RuntimeError("the file is damaged")
    assert not list(tmp_path.iterdir())


def test_an_extra_that_is_missing_is_named() -> None:
    absent = dataclasses.replace(MADE_UP, extra="export", modules=("no_such_module",))
    for use in (load_sink, lambda entry: check_target(entry, Path("x.txt"))):
        with pytest.raises(MissingExtraError) as caught:
            use(absent)
        assert str(caught.value).startswith("the sink list needs no_such_module: pip install ")
        assert "teso-deploy[export]" in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="unknown sink 'x': name one of video, mask-folder"):
        find_sink("x")
    for_streams = dataclasses.replace(MADE_UP, kinds=("streams",))
    with pytest.raises(OutputError, match="only results of streams"):
        open_sink(for_streams, tmp_path / "l.txt", describe_run("files"))
    with pytest.raises(OutputError, match="one input"):
        open_sink(find_sink("video"), tmp_path / "o.mp4", describe_run("files", ("a", "b")))
    for name, target, reason in (
        ("video", tmp_path / "o.avi", r"must end in \.mp4"),
        ("video", Path("/dev/null"), r"must end in \.mp4"),
        ("mask-lines", tmp_path / "o.csv", r"must end in \.jsonl"),
        ("events", tmp_path, "is a folder"),
        ("mask-folder", Path(__file__), "is a file"),
    ):
        with pytest.raises(OutputError, match=reason):
            check_target(find_sink(name), target)


@pytest.mark.parametrize(
    ("option", "target", "name"),
    [
        ("--out", "o.mp4", "video"),
        ("--out", "o.avi", "video"),
        ("--masks", "masks", "mask-folder"),
        ("--masks", "masks.png", "mask-folder"),
        ("--masks", "m.JSONL", "mask-lines"),
        ("--events", "e.txt", "events"),
    ],
)
def test_the_sink_of_an_option(option: str, target: str, name: str) -> None:
    assert choose_sink(option, Path(target)).name == name


def test_a_sink_that_can_not_be_opened_closes_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Opened(CallbackSink):
        def close(self) -> None:
            closed.append(self.name)

    def open_one(entry: SinkEntry, target: Path, run: RunFacts) -> Sink:
        if entry.name == "events":
            raise OutputError(f"{target} can't be written: name another place")
        return Opened(lambda delivery: None, entry.name)

    monkeypatch.setattr(cli_live, "open_sink", open_one)
    outputs = OutputOptions(masks=tmp_path / "masks.jsonl", events=tmp_path / "events.jsonl")
    with pytest.raises(OutputError):
        cli_live.open_sinks(outputs, describe_run())
    assert closed == ["mask-lines"]
    assert [sink.name for sink in cli_live.open_sinks(OutputOptions(masks=tmp_path / "m.jsonl"), describe_run())] == [
        "mask-lines"
    ]
    assert closed == ["mask-lines"], "the runner closes those that are used"

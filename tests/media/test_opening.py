"""Files are opened whatever their names and tags are, and nothing else is opened."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

import teso_deploy
from teso_deploy.errors import InputNotFoundError, MediaError
from teso_deploy.media.address import Address
from teso_deploy.media.audio import read_audio
from teso_deploy.media.connecting import explain_failure, open_stream
from teso_deploy.media.container import open_container
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.media.reader import VideoReader
from tests.support.clips import make_clip
from tests.support.commands import teso

TITLE = b"XYZW title"
LATIN = "Größe".encode("latin-1")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the current one, for relative names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["2024-01-01T12:30:00.mp4", "C:foo.mp4", "http:clip.mp4", "subfile,,start,0,end,0,,:a.mp4", "a%03d.mp4",
     "*?[a].mp4", "-i.mp4", " a\n b.mp4", "größe 犬.mp4", os.fsdecode(b"caf\xe9.mp4")],
)  # fmt: skip
def test_any_name_of_a_file_works(clip: Path, inside: Path, name: str) -> None:
    Path(name).write_bytes(clip.read_bytes())
    with VideoReader(name) as reader:
        assert sum(1 for _ in reader) == 12
    assert read_audio(name).duration_seconds == pytest.approx(1, abs=0.05)
    with LiveReader(Address.parse(name), lossless=True) as stream:
        stream.start()
        assert stream.info.width == 96


def test_a_percent_sign_names_one_picture_and_no_series(inside: Path) -> None:
    from PIL import Image

    for name, colour in (("a%01d.png", "blue"), ("a1.png", "red"), ("a2.png", "red")):
        Image.new("RGB", (64, 48), colour).save(name)
    with VideoReader("a%01d.png") as reader:
        pictures = [frame.image for frame in reader]
    assert [picture[20, 20].tolist() for picture in pictures] == [[0, 0, 255]]


def test_a_name_that_is_not_text_goes_through_the_whole_run(tiny_bundle: Path, clip: Path, inside: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    Path(name).write_bytes(clip.read_bytes())
    for mode in ("file", "live"):
        options = ("--bundle", tiny_bundle, "--threads", 1, "--mode", mode, "--cues", "dog")
        done = teso(
            "run", name, *options, "--events", f"{mode}.jsonl", "--json", f"{mode}.json", "--masks", f"{mode}.d"
        )
        assert done.code == 0, done.err
        report = json.loads(Path(f"{mode}.json").read_text(encoding="utf-8"))
        assert "caf�.mp4" in json.dumps(report, ensure_ascii=False)
        for line in Path(f"{mode}.jsonl").read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["input"] == "caf�.mp4"


@pytest.mark.parametrize("kind", ["mov", "mkv"])
def test_tags_that_are_not_utf8_are_ignored(
    clip: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{kind}"
    with av.open(str(clip)) as given, av.open(str(path), "w") as out:
        out.metadata["title"] = TITLE.decode()
        tracks = {stream.index: out.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = tracks[packet.stream.index]
                out.mux(packet)
    content = path.read_bytes()
    assert TITLE in content
    path.write_bytes(content.replace(TITLE, LATIN + TITLE[len(LATIN) :]))
    with VideoReader(path) as reader:
        assert sum(1 for _ in reader) == 12
    assert read_audio(path).duration_seconds == pytest.approx(1, abs=0.1)
    for address in (Address.parse(path), Address.parse("-")):
        with path.open(encoding="utf-8") as file, monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", file)
            open_stream(address, 60.0, lambda: False).close()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (os.mkfifo, MediaError, "is a pipe or a device, not a file: feed it to standard input"),
        (lambda path: path.symlink_to(path), InputNotFoundError, "can't be reached"),
        (lambda path: path.symlink_to("/dev/null"), MediaError, "a pipe or a device"),
        (lambda path: path.symlink_to("nowhere"), InputNotFoundError, "no file"),
    ],
)
def test_what_is_no_file_is_refused(
    make: Callable[[Path], object], error: type[Exception], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "a.mp4")
    with pytest.raises(error, match=words):
        open_container(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a\0b.mp4", "a" * 5000, "a.mp4/b.mp4"])
def test_a_name_that_no_file_can_have(clip: Path, inside: Path, name: str) -> None:
    (inside / "a.mp4").write_bytes(clip.read_bytes())
    with pytest.raises(InputNotFoundError):
        open_container(Path(name))


def test_what_comes_by_a_pipe_can_not_name_local_files(
    clip: Path, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrusted playlist would be read with the user's rights."""
    Path("secret.mp4").write_bytes(clip.read_bytes())
    Path("list").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open("list", format="concat") as container:
        assert container.streams.video, "a local list may name local files"
    with Path("list").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        address = Address.parse("-")
        with pytest.raises(av.error.FFmpegError) as raised:
            open_stream(address, 5.0, lambda: False)
    assert "can't be read" in str(explain_failure(address, raised.value, timeout_seconds=5.0))


def test_one_function_opens_local_media() -> None:
    """Another call of av.open would lack the handling of names and tags that this function has."""
    calls: dict[str, list[str]] = {}
    package = Path(teso_deploy.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "av.open":
                calls.setdefault(path.relative_to(package).as_posix(), []).append(ast.unparse(node))
    assert sorted(calls) == ["media/connecting.py", "media/container.py", "media/writer.py"]
    reading: list[Any] = [*calls["media/connecting.py"], *calls["media/container.py"]]
    assert all("metadata_errors=METADATA_ERRORS" in call for call in reading)

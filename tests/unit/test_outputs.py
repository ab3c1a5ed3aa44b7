"""Outputs are compared with all inputs, written completely or not at all, and follow links."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from teso_deploy.errors import OutputError
from teso_deploy.outputs import (
    STDOUT,
    check_apart,
    check_file,
    check_folder,
    find_target,
    open_growing,
    open_staged_file,
    show_path,
    write_text,
    write_whole,
)
from tests.support.commands import names_in


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Make ``movie.mp4``, links to it, ``folder/in.mp4`` and a link to the folder."""
    (tmp_path / "movie.mp4").write_text("a film")
    (tmp_path / "link.mp4").symlink_to("movie.mp4")
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "movie.mp4")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "in.mp4").write_text("another film")
    (tmp_path / "other").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("folder/new.mp4")
    return tmp_path


@pytest.mark.parametrize("name", ["movie.mp4", "link.mp4", "hard.mp4", "folder/../movie.mp4", "other/../movie.mp4"])
def test_an_output_that_is_an_input(here: Path, name: str) -> None:
    with pytest.raises(OutputError, match="an input"):
        check_apart([here / "movie.mp4"], [here / name])
    with pytest.raises(OutputError, match="an input"):
        check_apart([here / name], [here / "movie.mp4"])


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("movie.mp4", "link.mp4"), ("movie.mp4", "hard.mp4"), ("new", "new"), ("new", "folder/../new"),
        ("folder/new.mp4", "dangling"), ("other/new.mp4", "dangling"), ("no/new", "no/new"),
    ],
)  # fmt: skip
def test_two_outputs_that_are_one(here: Path, one: str, two: str) -> None:
    for files, folders in (([one, two], []), ([one], [two])):
        with pytest.raises(OutputError, match="same output"):
            check_apart([], [here / name for name in files], [here / name for name in folders])


def test_outputs_within_folders(here: Path) -> None:
    movie, folder = here / "folder" / "in.mp4", here / "folder"
    for name in ("folder/report.json", "other/report.json", "dangling"):
        check_apart([folder], [here / name])  # a new file replaces nothing
        with pytest.raises(OutputError, match="which is an output too"):
            check_apart([], [here / name], [folder])
    for name in ("folder", "other", "."):
        with pytest.raises(OutputError, match="name another folder"):
            check_apart([movie], [], [here / name])
    with pytest.raises(OutputError, match="which is an output too"):
        check_apart([], [], [here / "masks" / "more", here / "masks"])
    with pytest.raises(OutputError, match="which is an output too"):
        check_apart([], [here / "masks" / "report.json"], [here / "masks"])


@pytest.mark.parametrize("name", ["folder/report.json", "other/report.json", "dangling"])
def test_files_of_a_folder_that_is_read(here: Path, name: str) -> None:
    report = here / name
    (here / "folder" / "bundle.json").touch()
    with pytest.raises(OutputError, match="folder, which is an input"):
        check_apart([here / "folder"], [report])  # a bundle must not get new files
    (here / "folder" / "bundle.json").unlink()
    report.touch()
    with pytest.raises(OutputError, match="folder, which is an input"):
        check_apart([here / "folder"], [report])


def test_outputs_that_are_apart(here: Path) -> None:
    check_apart(
        [here / "movie.mp4", here / "folder", None, here / "not there"],
        [here / "out.mp4", None, Path("/dev/null"), Path("/dev/null"), here / "folder2", STDOUT],
        [here / "masks", None],
    )
    check_apart([here / "folder" / "in.mp4"], [here / "folder" / "out.mp4"])


def test_standard_output_is_compared_as_well(here: Path) -> None:
    descriptor = os.open(here / "movie.mp4", os.O_WRONLY)
    with pytest.raises(OutputError, match="an input"):
        check_apart([here / "movie.mp4"], [Path(f"/dev/fd/{descriptor}")])
    os.close(descriptor)


def test_a_link_to_a_file_stays_and_what_it_leads_to_is_written(here: Path) -> None:
    write_text(here / "link.mp4", "new")
    assert (here / "link.mp4").is_symlink() and (here / "movie.mp4").read_text() == "new"
    assert (here / "hard.mp4").read_text() == "a film", "the other name keeps the old content"
    write_text(here / "dangling", "made")
    assert (here / "dangling").is_symlink() and (here / "folder" / "new.mp4").read_text() == "made"


def test_names_that_can_t_be_written(here: Path) -> None:
    (here / "loop").symlink_to("loop")
    (here / "lost").symlink_to("nowhere/file")
    cases = {
        "loop": "circle", "lost": "no folder", "a" * 300: "too long", "x\0y": "name of a file",
        "\ud800": "name of a file", "folder": "is a folder", "movie.mp4/x": "no folder",
    }  # fmt: skip
    before = names_in(here)
    for name, message in cases.items():
        with pytest.raises(OutputError, match=message):
            check_file(here / name)
        with pytest.raises(OutputError, match=message):
            check_apart([], [here / name]) if "name" in message else write_text(here / name, "x")
    with pytest.raises(OutputError, match="it is a file"):
        check_folder(here / "movie.mp4")
    assert names_in(here) == before


def test_the_longest_name_is_written(here: Path) -> None:
    write_text(here / ("a" * 255), "x")
    assert (here / ("a" * 255)).read_text() == "x"


def test_a_pipe_is_written_to_and_stays(here: Path) -> None:
    os.mkfifo(here / "pipe")
    found: list[str] = []
    for write in (lambda: write_text(here / "pipe", "the report"), lambda: write_growing(here / "pipe")):
        reader = threading.Thread(target=lambda: found.append((here / "pipe").read_text()))
        reader.start()
        write()
        reader.join(120)
    assert found == ["the report", "a line"] and (here / "pipe").is_fifo()
    (here / "pipe").rename(here / "pipe.mp4")
    with pytest.raises(OutputError, match="name a file"):
        check_file(here / "pipe.mp4", ".mp4")


def write_growing(path: Path) -> None:
    with open_growing(path) as file:
        file.write(b"a line")


def test_a_device_is_written_to_and_errors_are_found() -> None:
    assert find_target(Path("/dev/full")).kind == "stream", "the tests need the device /dev/full"
    with pytest.raises(OutputError, match="No space left"):
        write_text(Path("/dev/full"), "x")
    write_text(Path("/dev/null"), "x")
    assert Path("/dev/full").is_char_device() and Path("/dev/null").is_char_device()


def test_a_descriptor_is_written_to_where_it_stands(here: Path) -> None:
    with (here / "log").open("a") as log:
        log.write("before\n")
        log.flush()
        for name in (f"/dev/fd/{log.fileno()}", f"/proc/self/fd/{log.fileno()}"):
            write_text(Path(name), "report\n")
    assert (here / "log").read_text() == "before\nreport\nreport\n"
    with pytest.raises(OutputError, match="not open for writing"):
        check_file(Path("/dev/fd/978"))
    with (here / "log").open() as log, pytest.raises(OutputError, match="not open for writing"):
        check_file(Path(f"/dev/fd/{log.fileno()}"))


def test_an_error_leaves_what_was_there(here: Path) -> None:
    for failure in (ValueError("bad"), OSError(28, "No space left on device"), SystemExit(143), KeyboardInterrupt()):
        kind = OutputError if isinstance(failure, OSError) else type(failure)
        with pytest.raises(kind), open_staged_file(here / "movie.mp4") as file:
            file.write(b"half")
            raise failure
    assert (here / "movie.mp4").read_text() == "a film"
    assert names_in(here) == ["dangling", "folder", "folder/in.mp4", "hard.mp4", "link.mp4", "movie.mp4", "other"]


def test_the_mode_of_what_is_replaced_stays(here: Path) -> None:
    (here / "movie.mp4").chmod(0o600)
    write_text(here / "movie.mp4", "secret")
    assert (here / "movie.mp4").stat().st_mode & 0o777 == 0o600


def test_a_small_file_is_whole_or_not_there(here: Path) -> None:
    write_whole(here / "small", b"x")
    with pytest.raises(OutputError):
        write_whole(here / "folder", b"x")
    assert (here / "small").read_bytes() == b"x" and not [name for name in names_in(here) if "teso" in name]


def test_names_that_are_not_text_can_be_shown_and_written(here: Path) -> None:
    path = here / os.fsdecode(b"caf\xe9.json")
    write_text(path, show_path(path))
    assert path.read_text().endswith("caf�.json")


def test_an_input_that_can_t_be_reached_is_left_to_its_reader(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    check_apart([loop], [tmp_path / "report.json"])
    with pytest.raises(OutputError, match="links form a circle"):
        check_apart([], [loop])

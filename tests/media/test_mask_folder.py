"""Folders of masks: only those with our marker are replaced, all at once, wherever they are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from teso_deploy.errors import OutputError
from teso_deploy.media import numbered_folder
from teso_deploy.media.mask_folder import (
    MARKER,
    check_mask_folder,
    describe_masks,
    open_mask_folder,
    open_staged_mask_folder,
)
from teso_deploy.media.overlay import make_palette
from tests.support.commands import names_in

MASKS = describe_masks(("dog", "cat"), "rtsp://***@camera/1", "teso-nano")


def write_masks(folder: Path, *numbers: int) -> None:
    with open_staged_mask_folder(folder, MASKS) as new:
        for number in numbers:
            (new / f"{number:06d}.png").write_text(f"mask {number} of {len(numbers)}")


def test_the_marker_says_what_the_masks_are() -> None:
    red, green, blue = make_palette()[2].tolist()
    assert MASKS["schema_version"] == 1 and MASKS["input"] == "rtsp://***@camera/1" and MASKS["bundle"] == "teso-nano"
    assert MASKS["classes"][1] == {"id": 2, "name": "cat", "color": f"#{red:02x}{green:02x}{blue:02x}"}


@pytest.mark.parametrize("kind", ["new", "empty", "link", "dangling link", "current"])
def test_masks_are_written_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = tmp_path / "masks"
    if kind != "new" and kind != "dangling link":
        folder.mkdir()
    if "link" in kind:
        (tmp_path / "link").symlink_to("masks")
    if kind == "current":
        monkeypatch.chdir(folder)
    name = {"current": Path(), "link": tmp_path / "link", "dangling link": tmp_path / "link"}.get(kind, folder)
    write_masks(name, 0, 1, 2)
    assert names_in(folder) == ["000000.png", "000001.png", "000002.png", MARKER]
    assert json.loads((folder / MARKER).read_text()) == MASKS
    write_masks(name, 1)
    assert names_in(folder) == ["000001.png", MARKER]
    assert (folder / "000001.png").read_text() == "mask 1 of 1"
    assert sorted(os.listdir(tmp_path)) == (["link", "masks"] if "link" in kind else ["masks"])
    if kind == "current":
        assert os.path.samefile(".", folder), "the folder itself is the same one"


@pytest.mark.parametrize("open_folder", ["staged", "live"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["000001.png"], "older version"),
        (["000001.png", "notes.txt"], "notes.txt"),
        (["000001.png/notes.txt"], "000001.png"),
        ([MARKER + "/x"], MARKER),
        ([".hidden"], ".hidden"),
    ],
)
def test_a_folder_of_the_user_is_refused_and_kept(
    tmp_path: Path, names: list[str], message: str, open_folder: str
) -> None:
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    before = names_in(tmp_path)
    with pytest.raises(OutputError, match=message):
        check_mask_folder(tmp_path / "mine")
    with pytest.raises(OutputError, match=message):
        write_masks(tmp_path / "mine", 0) if open_folder == "staged" else open_mask_folder(tmp_path / "mine", MASKS)
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"schema_version": 1}', "[" * 100_000])
def test_another_masks_json_is_not_a_marker(tmp_path: Path, content: str) -> None:
    (tmp_path / MARKER).write_text(content)
    with pytest.raises(OutputError, match=MARKER):
        check_mask_folder(tmp_path)


def test_beside_the_marker_only_masks_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    write_masks(folder, 0)
    (folder / "000007.png").symlink_to(tmp_path / "elsewhere.png")
    for write in (lambda: write_masks(folder, 0), lambda: open_mask_folder(folder, MASKS)):
        with pytest.raises(OutputError, match="000007"):
            write()
    assert (folder / "000007.png").is_symlink()


def test_a_file_of_the_user_that_comes_while_it_is_written_stays(tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    write_masks(folder, 0, 1)
    with pytest.raises(OutputError, match="notes"), open_staged_mask_folder(folder, MASKS) as new:
        (new / "000000.png").write_text("new")
        (folder / "notes").write_text("mine")
    assert names_in(tmp_path) == ["masks", "masks/000000.png", "masks/000001.png", f"masks/{MARKER}", "masks/notes"]


def test_an_error_leaves_the_masks_that_were_there(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", 0, 1)
    with pytest.raises(SystemExit), open_staged_mask_folder(tmp_path / "masks", MASKS) as new:
        (new / "000000.png").write_text("new")
        raise SystemExit(129)
    assert names_in(tmp_path) == ["masks", "masks/000000.png", "masks/000001.png", f"masks/{MARKER}"]
    assert (tmp_path / "masks" / "000000.png").read_text() == "mask 0 of 2"


@pytest.mark.parametrize("is_known", [True, False])
def test_a_mount_point_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool) -> None:
    """A mount point can't be renamed. Folders of the same disk that are mounted do not look like mounts."""
    folder = tmp_path / "masks"
    write_masks(folder, 0, 1, 2)
    identity = os.stat(folder).st_ino

    def busy(*paths: object) -> None:
        raise OSError(16, "Device or resource busy")

    if is_known:
        monkeypatch.setattr(os.path, "ismount", lambda path: path == folder)
    monkeypatch.setattr(numbered_folder, "put_in_place", busy)
    write_masks(folder, 1, 3)
    assert names_in(tmp_path) == ["masks", "masks/000001.png", "masks/000003.png", f"masks/{MARKER}"]
    assert (folder / "000001.png").read_text() == "mask 1 of 2" and os.stat(folder).st_ino == identity


def test_the_place_is_never_empty_where_folders_can_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_masks(tmp_path / "masks", 0)
    monkeypatch.setattr(os, "rename", lambda *paths: pytest.fail("two steps"))
    write_masks(tmp_path / "masks", 5)
    assert names_in(tmp_path / "masks") == ["000005.png", MARKER]


def test_live_masks_empty_a_folder_of_ours(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", 0, 1)
    (tmp_path / "link").symlink_to("masks")
    place = open_mask_folder(tmp_path / "link", MASKS | {"input": "-"})
    assert names_in(place) == [MARKER] and json.loads((place / MARKER).read_text())["input"] == "-"
    assert (tmp_path / "link").is_symlink() and place == tmp_path / "masks"

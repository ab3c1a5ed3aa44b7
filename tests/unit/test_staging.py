"""Staged files and folders: exclusive, locked while in use, cleared when their process has died, exchanged."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teso_deploy import staging
from tests.support.commands import names_in


def run_in_a_child(work: Callable[[], None]) -> int:
    """Run a function in a child process that then dies without cleaning up. Return how it ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "content").write_text(name)
    return folder / name


def test_what_is_in_use_stays_and_what_a_dead_process_left_goes(tmp_path: Path) -> None:
    def leave() -> None:
        staging.create_file(tmp_path).write(b"half")
        with staging.create_folder(tmp_path) as folder:
            (folder / "000000.png").write_bytes(b"half")
            die()

    assert run_in_a_child(leave) == signal.SIGKILL
    assert len(names_in(tmp_path)) == 3
    with staging.create_file(tmp_path) as file, staging.create_folder(tmp_path) as folder:
        staging.clear_leftovers(tmp_path)
        run_in_a_child(lambda: staging.clear_leftovers(tmp_path))
        assert names_in(tmp_path) == sorted([Path(file.name).name, folder.name])
        os.unlink(file.name)
    assert names_in(tmp_path) == []


def test_only_what_has_such_a_name_is_cleared_and_no_link_is_followed(tmp_path: Path) -> None:
    precious = make(tmp_path, "precious")
    (tmp_path / ".teso-notes.part").write_text("mine")
    (tmp_path / ".teso-0123456789abcdef.part").symlink_to(precious)
    (tmp_path / ".teso-fedcba9876543210.part").symlink_to(precious / "content")
    before = names_in(tmp_path)
    staging.clear_leftovers(tmp_path)
    staging.clear_leftovers(tmp_path / "nowhere")
    assert names_in(tmp_path) == before


def test_names_differ_and_are_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".teso-0000000000000000.part").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "00" * count)
    with pytest.raises(FileExistsError):
        staging.create_file(tmp_path)
    with pytest.raises(FileExistsError), staging.create_folder(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def refuse_exchange(one: Path, other: Path) -> None:
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(staging, "exchange", refuse_exchange)
    new, place = make(tmp_path, "new"), make(tmp_path, "place")
    staging.put_in_place(new, place)
    assert (place / "content").read_text() == "new" and (new / "content").read_text() == "place"
    staging.put_in_place(place, tmp_path / "third")
    assert names_in(tmp_path) == ["new", "new/content", "third", "third/content"]


def test_an_exchange_is_one_step(tmp_path: Path) -> None:
    """The path exists between any two steps of this process."""
    new, place = make(tmp_path, "new"), make(tmp_path, "place")
    staging.exchange(new, place)
    assert (place / "content").read_text() == "new" and (new / "content").read_text() == "place"
    with pytest.raises(FileNotFoundError):
        staging.exchange(new, tmp_path / "nowhere")


@pytest.mark.parametrize(("step", "left"), [(1, "place"), (2, "new"), (3, "new")])
def test_a_kill_between_the_steps_without_exchange_can_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, left: str
) -> None:
    new, place = make(tmp_path, ".teso-0123456789abcdef.part"), make(tmp_path, "place")
    (new / "content").write_text("new")
    rename, steps = os.rename, [0]

    def rename_and_die(one: Any, other: Any, **more: Any) -> None:
        rename(one, other, **more)
        steps[0] += 1
        if steps[0] == step:
            die()

    def swap() -> None:
        monkeypatch.setattr(staging, "exchange", refuse_exchange)
        monkeypatch.setattr(os, "rename", rename_and_die)
        staging.put_in_place(new, place)

    assert run_in_a_child(swap) == signal.SIGKILL
    staging.clear_leftovers(tmp_path)
    assert names_in(tmp_path) == ["place", "place/content"]
    assert (place / "content").read_text() == left


def test_an_error_between_the_steps_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make(tmp_path, "place")
    monkeypatch.setattr(staging, "exchange", refuse_exchange)
    with pytest.raises(FileNotFoundError):
        staging.put_in_place(tmp_path / "nothing", place)
    assert names_in(tmp_path) == ["place", "place/content"]

"""The tests' shared cache of exports."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.content import digest_sources, find_sources
from tests.support.disk_cache import VARIABLE, DiskCache, cache_folder
from tests.support.imports import ROOT

KEY = "k" * 8


def write_folder(out: Path) -> None:
    out.mkdir()
    (out / "a.txt").write_text("A")
    (out / "b.txt").symlink_to("a.txt")


def refuse(out: Path) -> None:
    raise AssertionError("this is in the cache")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    cache.make(KEY, write_folder, tmp_path / "first")
    (tmp_path / "first/a.txt").write_text("changed by a test")
    cache.make(KEY, refuse, tmp_path / "second")
    assert (tmp_path / "second/b.txt").read_text() == "A" and (tmp_path / "second/b.txt").is_symlink()


def test_a_failure_leaves_no_entry(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache")
    with pytest.raises(AssertionError):
        cache.make(KEY, refuse, tmp_path / "first")
    cache.make(KEY, write_folder, tmp_path / "second")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    cache = DiskCache(tmp_path / "cache")
    cache.make(KEY, write_folder, tmp_path / "first")
    (entry,) = cache.folder.glob("*.tar")
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes({"cut": bytes(data[:700]), "flipped": bytes(data), "empty": b""}[damage])
    cache.make(KEY, write_folder, tmp_path / "second")
    assert (tmp_path / "second/a.txt").read_text() == "A"
    cache.make(KEY, refuse, tmp_path / "third")


def _make_slowly(folder: Path, number: int) -> None:
    def make(out: Path) -> None:
        with (folder / "made").open("a") as file:
            file.write(f"{number}\n")
        write_folder(out)

    DiskCache(folder / "cache").make(KEY, make, folder / f"out{number}")


def test_of_several_processes_one_makes_the_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make_slowly, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "made").read_text().split()) == 1
    assert all((tmp_path / f"out{number}/a.txt").read_text() == "A" for number in range(3))


def test_old_entries_and_too_many_are_removed(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", max_bytes=25_000, max_age_seconds=100)
    for number in range(4):
        cache.make(f"key{number}", write_folder, tmp_path / f"out{number}")
        os.utime(cache.folder / f"key{number}.tar", (1000 + number, 1000 + number))
        os.utime(cache.folder / f"key{number}.lock", (1000 + number, 1000 + number))
    os.utime(cache.folder / "key0.tar", (800, 800))
    cache.prune(now=1010)
    assert sorted(path.name for path in cache.folder.glob("*.tar")) == ["key2.tar", "key3.tar"]
    assert len(list(cache.folder.glob("*.lock"))) == 4
    cache.prune(now=5000)
    assert list(cache.folder.iterdir()) == []
    DiskCache(tmp_path / "none").prune()


def test_another_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv(VARIABLE, "")
    assert cache_folder() == Path.home() / ".cache/teso-deploy/tests"


def test_sources_of_an_export_are_followed() -> None:
    names = {str(file.relative_to(ROOT)) for file in find_sources("teso_deploy.conversion.bundle_export")}
    assert {"teso_deploy/models/teso.py", "teso_deploy/recipe.py", "teso_deploy/bundle.py"} <= names
    assert not any(name.startswith(("teso_deploy/cli/", "tests/")) for name in names)


def test_comments_and_docstrings_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.content.ROOT", tmp_path)
    digests = []
    for number, text in enumerate(('"""Old."""\nA = 1\n', '"""New\n\nwords."""\nA = 1  # one\n', "A = 2\n")):
        file = tmp_path / f"{number}/module.py"
        file.parent.mkdir()
        file.write_text(text)
        monkeypatch.setattr("tests.support.content.ROOT", file.parent)
        digests.append(digest_sources([file]))
    assert digests[0] == digests[1] != digests[2]


def test_equal_modules_of_two_processes_have_one_digest() -> None:
    pytest.importorskip("torch")
    program = (
        "import torch; from torch import nn; from tests.support.content import digest_content\n"
        "torch.manual_seed(0)\n"
        "model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GELU())\n"
        "model.names = {'one', 'two', 'three', 'four'}\n"
        "for name in ('a', 'b', 'c'): model.register_buffer(name, torch.zeros(2), persistent=False)\n"
        "print(digest_content([model, torch.zeros(0, dtype=torch.bfloat16)]))\n"
        "model[0].bias.data[0] += 1\n"
        "print(digest_content([model, torch.zeros(0, dtype=torch.bfloat16)]))\n"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, cwd=ROOT,
            capture_output=True, text=True, check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert answers[0] == answers[1] and answers[0][0] != answers[0][1]

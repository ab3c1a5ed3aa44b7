"""No command overwrites its inputs, or one output with another: exit code 2, before work starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from teso_deploy.bundle import find_bundle_folder
from teso_deploy.errors import OutputError
from tests.support.clips import make_clip
from tests.support.commands import names_in, refused


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture
def mine(clip: Path, tmp_path: Path) -> Path:
    """Make ``mine.mp4``, a hard link and a symbolic link to it, a file of words, and an empty folder."""
    shutil.copy(clip, tmp_path / "mine.mp4")
    (tmp_path / "hard.mp4").hardlink_to(tmp_path / "mine.mp4")
    (tmp_path / "link.mp4").symlink_to("mine.mp4")
    (tmp_path / "words.txt").write_text("dog\ncow\n")
    (tmp_path / "masks").mkdir()
    return tmp_path / "mine.mp4"


@pytest.mark.parametrize("mode", ["file", "live"])
@pytest.mark.parametrize(
    "options",
    [
        ["--out", "mine.mp4"],
        ["--out", "hard.mp4"],
        ["--out", "link.mp4"],
        ["--events", "mine.mp4"],
        ["--json", "hard.mp4"],
        ["--cues-file", "words.txt", "--events", "words.txt"],
        ["--cues-file", "words.txt", "--json", "words.txt"],
        ["--out", "x.mp4", "--events", "x.mp4"],
        ["--events", "x", "--json", "x"],
        ["--masks", "masks", "--json", "masks/report.json"],
        ["--masks", "masks", "--out", "masks/x.mp4"],
        ["--json", "BUNDLE/report.json"],
        ["--masks", "BUNDLE/masks"],
    ],
    ids=" ".join,
)
def test_run(
    mine: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], mode: str
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [option.replace("BUNDLE", str(tiny_bundle)) for option in options]
    before, content = names_in(tmp_path), mine.read_bytes()
    refused("run", mine, "--bundle", tiny_bundle, "--mode", mode, *options, names="output")
    assert names_in(tmp_path) == before and mine.read_bytes() == content
    assert (tmp_path / "words.txt").read_text() == "dog\ncow\n"


def test_run_with_the_sound_of_another_file(mine: Path, clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    refused(
        "run", clip, "--bundle", tiny_bundle, "--sound-from", mine, "--out", tmp_path / "hard.mp4", names="an input"
    )
    audio = ("--mode", "live", "--audio", mine, "--out", tmp_path / "link.mp4")
    refused("run", clip, "--bundle", tiny_bundle, *audio, names="an input")
    lines = ("--mode", "live", "--masks", tmp_path / "x.jsonl", "--events", tmp_path / "x.jsonl")
    refused("run", clip, "--bundle", tiny_bundle, *lines, names="same output")


def test_run_of_several_into_their_own_folder(mine: Path, clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    refused("run", mine, clip, "--bundle", tiny_bundle, "--out", tmp_path, names="mine.mp4 is also an input")
    refused("run", mine, clip, "--bundle", tiny_bundle, "--masks", tmp_path / "mine.mp4", names="it is a file")


def test_cues(mine: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    words = ("--source", "manual", "--cues-file", tmp_path / "words.txt")
    for out, more in (
        (tmp_path / "hard.mp4", ()),
        (tmp_path / "words.txt", ()),
        (tmp_path / "c.json", ("--json", tmp_path / "c.json")),
        (tiny_bundle / "c.json", ()),
    ):
        refused("cues", mine, "--bundle", tiny_bundle, *words, "--out", out, *more, names="output")
    assert (tmp_path / "words.txt").read_text() == "dog\ncow\n" and not (tmp_path / "c.json").exists()


def test_eval(media_folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    asked = ("eval", media_folder, "--bundle", tiny_bundle)
    refused(*asked, "--json", media_folder / "split.csv", names="is inside")
    refused(*asked, "--json", tmp_path / "x", "--markdown", tmp_path / "x", names="same output")
    (tmp_path / "words.txt").write_text("dog")
    refused(*asked, "--cues-file", tmp_path / "words.txt", "--markdown", tmp_path / "words.txt", names="an input")


def test_verify_and_bench(tiny_bundle: Path, clip: Path, tmp_path: Path) -> None:
    refused("verify", tiny_bundle, "--json", tiny_bundle / "bundle.json", names="is inside")
    refused("verify", tiny_bundle, "--contact-sheet", tiny_bundle / "sheet.png", names="is inside")
    both = tmp_path / "x.png"
    refused("verify", tiny_bundle, "--contact-sheet", both, "--json", both, names="same output")
    refused("bench", tiny_bundle, "--report", tiny_bundle, names="is inside")
    refused("bench", tiny_bundle, "--report", tmp_path, "--json", tmp_path / "bench.json", names="same output")
    (tmp_path / "bench.png").hardlink_to(shutil.copy(clip, tmp_path / "c.mp4"))
    refused("bench", tiny_bundle, "--clip", tmp_path / "c.mp4", "--report", tmp_path, names="an input")
    shipped = find_bundle_folder(None)
    refused("verify", "--json", shipped / "report.json", names="is inside")


def test_demo(tmp_path: Path) -> None:
    (tmp_path / "demo.mp4").symlink_to("contact-sheet.png")
    refused("demo", "--out", tmp_path, names="same output")
    refused("demo", "--out", tmp_path, "--json", tmp_path / "contact-sheet.png", names="same output")


def test_export(tiny_bundle: Path, tmp_path: Path) -> None:
    recipe, weights = tmp_path / "r.toml", tmp_path / "hub"
    shutil.copy(find_bundle_folder(None).parents[2] / "export/recipes/teso-nano.toml", recipe)
    weights.mkdir()
    (tmp_path / "b").mkdir()
    (weights / "model.safetensors").write_bytes(b"not read before the outputs are compared")
    asked = ("export", recipe, "--checkpoint", f"visual={weights}")
    refused(*asked, "--out", tmp_path / "b", "--json", recipe, names="an input")
    refused(*asked, "--out", tmp_path / "b", "--json", tmp_path / "b" / "r.json", names="an output too")
    refused(*asked, "--out", tmp_path / "b", "--json", weights / "model.safetensors", names="is inside")
    refused(*asked, "--dry-run", "--json", recipe, names="an input")
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    refused("export", tmp_path / "bundle", "--out", tmp_path / "bundle" / "inner", names="is inside")
    taken = weights / "model.safetensors"
    refused("export-cues", "--captioner", weights, "--out", tmp_path / "o", "--json", taken, names="is inside")
    one = tmp_path / "o"
    refused("export-cues", "--captioner", weights, "--out", one, "--json", one, names="same output")
    assert names_in(weights) == ["model.safetensors"] and recipe.read_text()


def test_train_and_calibrate(media_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs the extra train")
    start = tmp_path / "model.safetensors"
    start.write_bytes(b"weights")
    refused("train", "teso-nano", "--data", media_folder, "--start", start, "--out", tmp_path, names="an input")
    refused("calibrate", start, "--data", media_folder, "--json", start, names="an input")
    assert start.read_bytes() == b"weights"


def test_a_run_in_the_folder_of_its_data_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs the extra train")
    from teso_deploy.cli.train import _check_apart

    run = tmp_path / "data" / "run"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(b"of someone else")
    with pytest.raises(OutputError, match="an input"):
        _check_apart([], tmp_path / "data", run)
    (run / "state.pt").write_bytes(b"of an earlier run")
    _check_apart([], tmp_path / "data", run)
    with pytest.raises(OutputError, match="an input"):
        _check_apart([run / "model.safetensors"], tmp_path / "data", run)

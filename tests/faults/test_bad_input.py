"""Bad input ends with exit code 2, one sentence on stderr that names it, and no half-written file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer

from teso_deploy.bundle import Bundle, write_manifest
from tests.support.clips import make_clip
from tests.support.commands import names_in, refused, teso


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture
def outputs(tmp_path: Path) -> list[object]:
    """Return options for every kind of output below ``tmp_path / "out"``."""
    folder = tmp_path / "out"
    folder.mkdir()
    return [
        "--out", folder / "out.mp4", "--masks", folder / "masks", "--events", folder / "events.jsonl",
        "--json", folder / "report.json",
    ]  # fmt: skip


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    match kind:
        case "not a video":
            path.write_text("a text\n" * 100)
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "audio only":
            make_clip(path, has_video=False)
        case "truncated":
            whole = make_clip(folder / "whole.mp4", seconds=2)
            path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
            whole.unlink()
        case "cut off while streaming":
            whole = make_clip(folder / "whole.mkv", seconds=8)
            path = folder / f"{kind}.mkv"
            path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
            whole.unlink()
        case _:
            assert kind == "missing"
    return path


KINDS = ("missing", "not a video", "empty", "folder", "audio only", "truncated", "cut off while streaming")


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_is_no_video(kind: str, tmp_path: Path, tiny_bundle: Path, outputs: list[object]) -> None:
    bad = bad_file(kind, tmp_path)
    refused("run", bad, "--bundle", tiny_bundle, *outputs, names=str(bad))
    assert names_in(tmp_path / "out") == []


def test_one_bad_input_of_several_stops_all_before_work_starts(tmp_path: Path, clip: Path, tiny_bundle: Path) -> None:
    folder = tmp_path / "out"
    refused("run", clip, tmp_path / "no.mp4", "--bundle", tiny_bundle, "--out", folder, names="no.mp4")
    assert not folder.exists()


def test_sound_from_a_file_without_sound(tmp_path: Path, clip: Path, tiny_bundle: Path, outputs: list[object]) -> None:
    silent = make_clip(tmp_path / "silent.mp4", has_audio=False)
    refused("run", clip, "--bundle", tiny_bundle, "--sound-from", silent, *outputs, names=str(silent))
    assert names_in(tmp_path / "out") == []


def test_an_unknown_cue_names_the_closest_words(
    clip: Path, tiny_bundle: Path, tmp_path: Path, outputs: list[object]
) -> None:
    sentence = refused("run", clip, "--bundle", tiny_bundle, "--cues", "dgo,cow", *outputs, names="'dgo'")
    assert "'dog'" in sentence
    assert names_in(tmp_path / "out") == []


def test_automatic_cues_need_a_tagger(clip: Path, tiny_bundle: Path, tmp_path: Path, outputs: list[object]) -> None:
    without = tmp_path / "without"
    shutil.copytree(tiny_bundle, without)
    write_manifest(without, Bundle.open(without).manifest.model_copy(update={"tagger": None}))
    refused("run", clip, "--bundle", without, "--cues", "auto", *outputs, names="tagger")


def test_a_cue_file_that_is_missing(clip: Path, tiny_bundle: Path, outputs: list[object]) -> None:
    refused("run", clip, "--bundle", tiny_bundle, "--cues-file", "no.txt", *outputs, names="no.txt")


def test_a_missing_and_a_tampered_bundle(clip: Path, tiny_bundle: Path, tmp_path: Path, outputs: list[object]) -> None:
    refused("run", clip, "--bundle", tmp_path / "none", *outputs, names="none")
    tampered = tmp_path / "tampered"
    shutil.copytree(tiny_bundle, tampered)
    graph = tampered / "decoder.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    for arguments in (("run", clip, "--bundle", tampered, *outputs), ("verify", tampered)):
        refused(*arguments, names="decoder.onnx")
    assert names_in(tmp_path / "out") == []


def test_an_unknown_recipe(tmp_path: Path) -> None:
    sentence = refused("export", "teso-nanno", "--out", tmp_path / "bundle", "--random-weights", 0, names="teso-nanno")
    assert "teso-nano" in sentence, "the known ones are named"
    assert names_in(tmp_path) == []


def test_a_recipe_that_can_t_be_built(tmp_path: Path) -> None:
    recipe = tmp_path / "odd.toml"
    recipe.write_text('name = "odd"\n[image]\nsizes = [[100, 100]]\n')
    refused("export", recipe, "--out", tmp_path / "bundle", "--random-weights", 0, names="multiples of 32")
    assert names_in(tmp_path) == ["odd.toml"]


def test_outputs_that_can_t_be_written(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("kept")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("kept")
    before = names_in(tmp_path)
    cases = [
        ("--out", tmp_path / "nowhere" / "out.mp4", "no folder"),
        ("--out", tmp_path, "is a folder"),
        ("--out", tmp_path / "out.avi", ".mp4"),
        ("--out", tmp_path / "a file" / "out.mp4", "no folder"),
        ("--masks", tmp_path / "photos", "mine.jpg"),
        ("--masks", tmp_path / "a file", "it is a file"),
        ("--masks", tmp_path / "nowhere" / "masks", "no folder"),
        ("--events", tmp_path / "nowhere" / "events.jsonl", "no folder"),
        ("--json", tmp_path / "nowhere" / "report.json", "no folder"),
        ("--json", tmp_path / "photos", "is a folder"),
    ]
    for option, target, names in cases:
        refused("run", clip, "--bundle", tiny_bundle, option, target, names=names)
    assert names_in(tmp_path) == before
    assert (tmp_path / "a file").read_text() == "kept"


def test_an_input_is_never_overwritten(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.mp4"
    shutil.copy(clip, mine)
    before = mine.read_bytes()
    refused("run", mine, "--bundle", tiny_bundle, "--out", mine, names="an input")
    sound = ("--sound-from", mine, "--out", mine)
    refused("run", clip, "--bundle", tiny_bundle, *sound, names="an input")
    both = ("--events", tmp_path / "x", "--json", tmp_path / "x")
    refused("run", clip, "--bundle", tiny_bundle, *both, names="the same output")
    assert mine.read_bytes() == before


def test_inputs_of_one_name(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copy(clip, tmp_path / "clip.mkv")
    two = (clip, tmp_path / "clip.mkv")
    refused("run", *two, "--bundle", tiny_bundle, "--out", tmp_path / "out", names="same name")
    events = tmp_path / "events.jsonl"
    assert teso("run", *two, "--bundle", tiny_bundle, "--events", events, "--fps", 1).code == 0, "one file for both"
    assert {json.loads(line)["input"] for line in events.read_text().splitlines()} <= {str(path) for path in two}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mode", "file", "--staleness", "0.1"], "--mode file runs every frame, however old: omit --staleness"),
        (["--mute", "--audio", "CLIP"], "--mute replaces the sound: omit --audio"),
    ],
)
def test_options_of_streams_that_would_be_ignored(options: list[str], says: str, clip: Path, tiny_bundle: Path) -> None:
    for command in ("live", "run"):
        chosen = [*options, *(["--mode", "live"] if command == "run" and "--mode" not in options else [])]
        given = [str(clip) if one == "CLIP" else one for one in chosen]
        inputs = [clip] if command == "live" or "live" in given else ["tcp://127.0.0.1:1"]
        done = teso(command, *inputs, "--bundle", tiny_bundle, *given)
        assert done.code == 2 and says in " ".join(done.err.split())


def test_masks_of_several_streams(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    refused("live", clip, clip, "--bundle", tiny_bundle, "--masks", tmp_path / "masks", names="is for one stream")
    lines = tmp_path / "masks.jsonl"
    done = teso("live", clip, clip, "--bundle", tiny_bundle, "--masks", lines, "--mode", "file", "--fps", 2)
    assert done.code == 0 and {json.loads(line)["stream"] for line in lines.read_text().splitlines()} == {0, 1}


@pytest.mark.parametrize(
    "options",
    [
        ["--mute", "--noise-dbfs", "-20"],
        ["--mute", "--sound-from", "x.wav"],
        ["--cues", "dog", "--cues-file", "x"],
        ["--mode", "paper", "--fps", "2"],
        ["--mode", "slow"],
        ["--noise-dbfs", "3"],
        ["--fps", "0"],
        ["--threads", "0"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(options: list[str], clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = teso("run", clip, "--bundle", tiny_bundle, "--out", tmp_path / "out.mp4", *options)
    assert done.code == 2 and "Error: " in done.err.splitlines()[-1] and "Traceback" not in done.err
    assert names_in(tmp_path) == []


def test_an_output_has_to_be_named(clip: Path, tiny_bundle: Path) -> None:
    done = teso("run", clip, "--bundle", tiny_bundle)
    assert done.code == 2 and "--out" in done.err


def test_an_interrupted_run_leaves_nothing(
    clip: Path, tiny_bundle: Path, tmp_path: Path, outputs: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from teso_deploy.media.overlay import Overlay

    calls = iter(range(5))
    draw = Overlay.draw

    def failing(self: Overlay, *arguments: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return draw(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Overlay, "draw", failing)
    done = teso("run", clip, "--bundle", tiny_bundle, *outputs)
    assert done.code != 0
    assert names_in(tmp_path / "out") == []


def test_calibrating_what_training_did_not_write(tmp_path: Path, calibration_folder: Path, media_folder: Path) -> None:
    pytest.importorskip("torch", reason="calibrating needs the extra train")
    refused("calibrate", tmp_path / "no.safetensors", "--data", calibration_folder, names="no.safetensors")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"not safetensors")
    refused("calibrate", other, "--data", calibration_folder, names="is text, not weights")
    assert other.read_bytes() == b"not safetensors"


def test_sizes_of_thousands_of_digits() -> None:
    from teso_deploy.cli.values import parse_size
    from teso_deploy.options.engine import parse_size_choice
    from teso_deploy.options.fields import OptionError

    assert parse_size_choice("288x512") == (288, 512) == parse_size("288X512")
    assert parse_size_choice("384") == (384, 384)
    for text in ("9" * 5000, "1x" + "9" * 5000, "x", "-1"):
        with pytest.raises(OptionError):
            parse_size_choice(text)
        with pytest.raises(typer.BadParameter):
            parse_size(text)

"""``teso-deploy cues``, and the use of its file by ``run`` and ``eval``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from teso_deploy.bundle import Bundle, write_manifest
from teso_deploy.conversion.cue_decoders import export_decoder
from teso_deploy.cues.model_bundle import KIND, CueModelsManifest
from teso_deploy.cues.tracks import read_cue_file
from tests.support.chat_server import Answer, chat_server, failing, saying
from tests.support.clips import make_clip
from tests.support.commands import names_in, refused, teso
from tests.support.language_models import save_reasoner, save_vision_encoder_decoder

ANSWER = 'It barks.\n{"objects": ["dog", "car"], "sounding": ["dog"]}'


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", seconds=2.0)


@pytest.fixture(scope="module")
def bold(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a bundle whose untrained tagger names every word."""
    folder = tmp_path_factory.mktemp("bold") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    manifest = Bundle.open(folder).manifest
    assert manifest.tagger is not None
    tagger = manifest.tagger.model_copy(update={"threshold": 0.01})
    write_manifest(folder, manifest.model_copy(update={"tagger": tagger}))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TESO_CUES_API_KEY", raising=False)


def done(*arguments: object) -> dict[str, Any]:
    code, out, err = teso(*arguments, "--threads", 1, "--json", "-")
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_of_the_tagger_and_then_a_run(clip: Path, bold: Path, tmp_path: Path) -> None:
    out = tmp_path / "cues.json"
    report = done("cues", clip, "--bundle", bold, "--out", out, "--every", 0.5)
    assert report["videos"] == {"clip.mp4": 4} and report["source"] == "tagger"
    spans = content(out)["videos"]["clip.mp4"]["spans"]
    assert [span["start_seconds"] for span in spans] == pytest.approx([0, 0.5, 1.0, 1.5], abs=0.1)
    assert all(set(span["names"]) == {"car", "cow", "dog"} and len(span["confidences"]) == 3 for span in spans)
    run = done("run", clip, "--bundle", bold, "--cues-file", out, "--events", tmp_path / "e.jsonl")
    assert run["cues"]["source"] == "tagger" and set(run["cues"]["names"]) == {"car", "cow", "dog"}
    # The same cues, asked during the run.
    again = done("run", clip, "--bundle", bold, "--cue-source", "tagger", "--events", tmp_path / "e.jsonl")
    assert again["cues"]["offered_rate"] == run["cues"]["offered_rate"]


def test_of_a_server_with_caption_and_reasoning(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "cues.json"
    with chat_server(saying("A dog beside a car."), saying(ANSWER)) as server:
        arguments = ("cues", clip, "--bundle", tiny_bundle, "--source", "openai", "--server", server.url, "--out", out)
        report = done(*arguments, "--every", 0)
        asked = len(server.asked)
        assert report["asked"] == 1 and report["kept"] == 0 and asked == 2
        first = out.read_bytes()
        again = done(*arguments, "--every", 0)
        assert again["asked"] == 0 and again["kept"] == 1 and len(server.asked) == asked, "the second time is free"
        assert out.read_bytes() == first
        assert done(*arguments, "--every", 0, "--fresh")["asked"] == 1 and len(server.asked) == asked + 2
        # Another prompt changes the question, so the kept answers do not apply.
        assert done(*arguments, "--every", 0, "--prompt", "zero-shot-sounding")["asked"] == 1
    (span,) = json.loads(first)["videos"]["clip.mp4"]["spans"]
    assert span["caption"] == "A dog beside a car." and span["reasoning"] == ANSWER and span["names"] == ["dog"]
    run = done("run", clip, "--bundle", tiny_bundle, "--cues-file", out, "--events", tmp_path / "e.jsonl")
    assert run["cues"] == {
        "names": ["dog"], "source": "openai", "offered_rate": {"dog": 1.0},
        "accepted_rate": run["cues"]["accepted_rate"],
    }  # fmt: skip


def test_of_exported_models(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Go from checkpoints to cues with the two commands. The words of such a small model mean nothing."""
    save_vision_encoder_decoder(tmp_path / "captioner")
    save_reasoner(tmp_path / "reasoner", "llama")
    models, out = tmp_path / "models", tmp_path / "cues.json"
    code, said, err = teso(
        "export-cues", "--captioner", tmp_path / "captioner", "--reasoner", tmp_path / "reasoner", "--out", models,
        "--precision", "int4", "--json", "-",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(said)["models"]["reasoner"]["architecture"] == "llama"
    assert all(model["precision"] == "int4" for model in json.loads(said)["models"].values())
    arguments = ("cues", clip, "--bundle", tiny_bundle, "--models", models, "--out", out, "--prompt", "one-shot-direct")
    report = done(*arguments, "--source", "llm,nouns", "--every", 1)
    assert report["asked"] >= 2
    assert done(*arguments, "--source", "llm,nouns", "--every", 1)["asked"] == 0
    run = done(
        "run", clip, "--bundle", tiny_bundle, "--models", models, "--cue-source", "nouns", "--events", tmp_path / "e"
    )
    assert run["frames"] == 24


def test_words_spans_and_the_released_file(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    released = tmp_path / "released.json"
    released.write_text(json.dumps({"clip": {"f0": "dog,", "f1": "nothing that is known, cow"}, "b": {"f0": "car"}}))
    run = done("run", clip, "--bundle", tiny_bundle, "--cues-file", released, "--events", tmp_path / "e")
    assert run["cues"]["offered_rate"] == {"dog": 0.5, "cow": 0.5} and run["cues"]["source"] == "released"
    spans = tmp_path / "spans.json"
    mine = {"spans": [{"start_seconds": 0.5, "end_seconds": 1.0, "names": ["dogs", "cow"]}]}
    spans.write_text(json.dumps({"schema_version": 1, "videos": {"clip": mine}}))
    run = done("run", clip, "--bundle", tiny_bundle, "--cues-file", spans, "--events", tmp_path / "e")
    assert run["cues"]["offered_rate"] == {"dog": 0.25, "cow": 0.25} and run["cues"]["source"] == "fallback"
    out = tmp_path / "cues.json"
    done(
        "cues",
        clip,
        "--bundle",
        tiny_bundle,
        "--source",
        "released",
        "--cues-file",
        released,
        "--out",
        out,
        "--every",
        0,
    )
    names = [span["names"] for span in content(out)["videos"]["clip.mp4"]["spans"]]
    assert names == [["dog"], ["nothing that is known", "cow"]]
    done("cues", clip, "--bundle", tiny_bundle, "--source", "manual", "--cues-file", spans, "--out", out, "--every", 0)
    (span,) = content(out)["videos"]["clip.mp4"]["spans"]
    assert (span["start_seconds"], span["end_seconds"]) == (0.5, 1.0), "no answer ends the one before"


def test_cues_grow_old(clip: Path, bold: Path, tmp_path: Path) -> None:
    arguments = ("run", clip, "--bundle", bold, "--cue-source", "tagger", "--cue-every", 0, "--events", tmp_path / "e")
    assert done(*arguments)["cues"]["offered_rate"]["dog"] == 1.0
    assert done(*arguments, "--cue-ttl", 0.5)["cues"]["offered_rate"]["dog"] == pytest.approx(7 / 24, abs=0.05)


def test_a_source_beside_a_live_run(clip: Path, bold: Path, tmp_path: Path) -> None:
    """Run a file at its own pace. The tagger is asked at the start and at intervals, after a dead server."""
    events = tmp_path / "e.jsonl"
    arguments = ("run", clip, "--bundle", bold, "--mode", "live", "--fps", 8, "--events", events, "--cue-every", 0.5)
    code, out, err = teso(
        *arguments, "--cue-source", "openai,tagger", "--server", "http://127.0.0.1:9", "--threads", 1, "--json", "-"
    )
    assert code == 0, err
    report = json.loads(out)
    counts = report["cue_source"]
    assert counts["source"] == "openai,tagger" and counts["asked"]["start"] == 1 and counts["answered"] >= 2
    assert report["streams"][0]["cues"]["source"] == "tagger" and report["streams"][0]["redecodes"]["cues"] >= 1
    with chat_server(saying("A dog beside a car."), saying(ANSWER)) as server:
        code, out, err = teso(
            *arguments, "--cue-source", "openai", "--server", server.url, "--cue-budget", 1, "--json", "-",
            "--masks", tmp_path / "m.jsonl",
        )  # fmt: skip
        assert code == 0, err
        assert len(server.asked) == 2, "one question, of a captioner and a reasoner"
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert lines[-1]["cues"]["source"] == "openai" and lines[-1]["cues"]["age_seconds"] > 0.5
    words = tmp_path / "words.txt"
    words.write_text("dog\n")
    code, out, err = teso(*arguments[:-2], "--cues-file", words, "--json", "-")
    assert code == 0 and json.loads(out)["streams"][0]["cues"]["source"] == "manual", err


def test_cues_of_the_scenes_that_eval_makes(media_folder: Path, bold: Path, tmp_path: Path) -> None:
    out = tmp_path / "cues.json"
    common = (media_folder, "--bundle", bold, "--scenes", 2, "--seeds", 2)
    report = done("cues", *common, "--source", "tagger", "--out", out)
    assert len(report["videos"]) == 7 * 2 * 2 and "swapped/1/0" in report["videos"]
    by_file = done("eval", *common, "--cues-file", out)
    by_tagger = done("eval", *common, "--cues", "auto")
    assert by_file["rows"] == by_tagger["rows"] and by_file["cues"] == str(out)
    done("cues", *common, "--source", "filter:tagger", "--out", out)
    assert refused("eval", *common[:3], "--scenes", 9, "--cues-file", out, names="not of 'one source/0/8'")
    moved = content(out)
    for entry in moved["videos"].values():
        entry["sha256"] = "0" * 64
    out.write_text(json.dumps(moved))
    refused("eval", *common[:3], "--scenes", 2, "--cues-file", out, names="another folder's scenes")
    words = tmp_path / "words.txt"
    words.write_text("dgo\n")
    refused("eval", *common[:3], "--scenes", 2, "--cues-file", words, names="'dgo'")
    words.write_text("dog\n")
    assert done("eval", *common, "--cues-file", words)["cues"] == str(words)


def test_several_videos(clip: Path, bold: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    shutil.copyfile(make_clip(tmp_path / "made.mp4", seconds=1.0), other)
    out = tmp_path / "cues.json"
    report = done("cues", clip, other, "--bundle", bold, "--out", out)
    assert list(report["videos"]) == ["clip.mp4", "other.mp4"]
    renamed = tmp_path / "renamed.mp4"
    shutil.copyfile(clip, renamed)
    assert read_cue_file(out).of(renamed).spans == read_cue_file(out).get_track("clip.mp4").spans, (
        "known by its content"
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--source", "oracle"), "no source of cues 'oracle'"),
        (("--source", ","), "no source of cues"),
        (("--source", "filter:oracle"), "filter:oracle"),
        (("--source", "llm"), "--models"),
        (("--source", "nouns"), "needs a captioner"),
        (("--source", "openai"), "--server"),
        (("--source", "openai", "--server", "localhost"), "no server's address"),
        (("--source", "openai", "--server", "http://u:pass-word@host"), "password"),
        (("--source", "openai", "--server", "http://127.0.0.1:9", "--prompt", "no-such"), "no prompt 'no-such'"),
        (("--source", "openai", "--server", "http://127.0.0.1:9"), "can't be reached"),
        (("--source", "manual"), "--cues-file"),
        (("--source", "tagger", "--server", "http://127.0.0.1:9"), "--server is not used"),
        (("--source", "llm", "--models", "nowhere"), "no cue models nowhere"),
        (("--source", "tagger", "--bundle", "nowhere"), "no bundle nowhere"),
    ],
)
def test_bad_input_is_one_sentence(clip: Path, tmp_path: Path, arguments: tuple[str, ...], names: str) -> None:
    out = tmp_path / "cues.json"
    out.write_text("what was there before")
    sentence = refused("cues", clip, "--out", out, *arguments, names=names)
    assert "pass-word" not in sentence
    assert out.read_text() == "what was there before"
    assert [name for name in names_in(tmp_path) if not name.startswith("cache")] == ["cues.json"]


def test_a_timeout_has_an_end(clip: Path, tmp_path: Path) -> None:
    done = teso("cues", clip, "--out", tmp_path / "cues.json", "--source", "tagger", "--timeout", "inf")
    assert done.code == 2 and "less than or equal to 86400" in done.err and names_in(tmp_path) == []


def test_what_can_not_be_read(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    refused("cues", tmp_path / "none.mp4", "--out", tmp_path / "c.json", names="none.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    refused("cues", text, "--out", tmp_path / "c.json", names="text.mp4")
    refused("cues", clip, "--out", tmp_path / "no" / "c.json", names="no folder")
    refused("cues", clip, "--out", clip, names="an input")
    words = tmp_path / "words.txt"
    words.write_text("dog")
    refused("cues", clip, "--source", "manual", "--cues-file", words, "--out", words, names="an input")
    assert words.read_text() == "dog"
    refused("cues", clip, "--source", "tagger", "--cues-file", words, "--out", tmp_path / "c.json", names="is not used")
    strange = tmp_path / "bad\udcff.mp4"
    shutil.copyfile(clip, strange)
    assert teso("cues", strange, "--out", tmp_path / "c.json").code == 0
    without = tmp_path / "without"
    shutil.copytree(tiny_bundle, without)
    write_manifest(without, Bundle.open(without).manifest.model_copy(update={"tagger": None}))
    refused("cues", clip, "--bundle", without, "--out", tmp_path / "c.json", names="has no tagger")


def test_a_wrong_key_is_said_and_not_shown(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESO_CUES_API_KEY", "sk-wrong-key")
    with chat_server(key="sk-right") as server:
        sentence = refused(
            "cues", clip, "--source", "openai", "--server", server.url, "--out", tmp_path / "c.json",
            names="TESO_CUES_API_KEY",
        )  # fmt: skip
    assert "sk-wrong-key" not in sentence and not (tmp_path / "c.json").exists()


def test_a_server_that_hangs(clip: Path, tmp_path: Path) -> None:
    with chat_server(lambda request: request.wait(30)) as server:
        refused(
            "cues", clip, "--source", "openai", "--server", server.url, "--server-model", "m", "--timeout", 0.4,
            "--out", tmp_path / "c.json", names="gave no complete answer in 0.4 s",
        )  # fmt: skip


def test_a_server_that_asks_for_patience(clip: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    busy = failing(429, headers={"Retry-After": "0.1"})
    with chat_server(busy, saying("A dog."), busy, saying(ANSWER)) as server:
        report = done(
            "cues", clip, "--bundle", tiny_bundle, "--source", "openai", "--server", server.url, "--every", 0,
            "--out", tmp_path / "c.json",
        )  # fmt: skip
    assert report["videos"] == {"clip.mp4": 1}


def test_a_server_that_answers_nothing(clip: Path, bold: Path, tmp_path: Path) -> None:
    """It is an error with its reason, also for `run`. Among several pictures or sources, it is only reported."""
    refusing: Answer = lambda r: r.send(200, {"choices": [{"message": {"content": None, "refusal": "I can't help."}}]})  # noqa: E731
    out = tmp_path / "c.json"
    with chat_server(refusing) as server:
        asked = ("--bundle", bold, "--server", server.url, "--server-model", "m")
        names = "clip.mp4 has no cues after 4 questions"
        said = refused("cues", clip, *asked, "--source", "openai", "--every", 0.5, "--out", out, names=names)
        assert "the model refused: I can't help." in said and not out.exists()
        run = ("run", clip, *asked, "--events", tmp_path / "e", "--cue-every", 0)
        refused(*run, "--cue-source", "nouns", names="the model refused")
        assert done(*run, "--cue-source", "nouns,tagger")["cues"]["source"] == "tagger"
        report = done("cues", clip, *asked, "--source", "openai,tagger", "--out", out, "--every", 1)
        assert report["passed_over"] == 2 and report["unanswered"] == 0 and "refused" in report["troubles"][0]
    with chat_server(saying("A dog."), saying(ANSWER), refusing) as server:
        asked = ("--bundle", bold, "--server", server.url, "--server-model", "m")
        report = done("cues", clip, *asked, "--source", "openai", "--every", 0.5, "--out", out)
    assert report["videos"] == {"clip.mp4": 1} and report["unanswered"] == 3
    (span,) = content(out)["videos"]["clip.mp4"]["spans"]
    assert span["end_seconds"] == pytest.approx(0.5, abs=0.1), "what was not answered is not what was said before"


def test_a_chain_goes_on_where_a_server_is_gone(clip: Path, bold: Path, tmp_path: Path) -> None:
    report = done(
        "cues", clip, "--bundle", bold, "--source", "openai,tagger", "--server", "http://127.0.0.1:9", "--every", 1,
        "--out", tmp_path / "c.json",
    )  # fmt: skip
    assert report["videos"] == {"clip.mp4": 2}
    assert report["passed_over"] == 2 and "can't be reached" in report["troubles"][0]
    spans = content(tmp_path / "c.json")["videos"]["clip.mp4"]["spans"]
    assert {span["source"] for span in spans} == {"tagger"}


def test_cues_of_another_video_are_refused(clip: Path, bold: Path, tmp_path: Path) -> None:
    out, events = tmp_path / "cues.json", tmp_path / "e"
    done("cues", clip, "--bundle", bold, "--out", out)
    other = make_clip(tmp_path / "other.mp4", seconds=1.0)
    refused("run", other, "--bundle", bold, "--cues-file", out, "--events", events, names="not of 'other'")
    same_name = tmp_path / "folder" / "clip.mp4"
    same_name.parent.mkdir()
    shutil.copyfile(other, same_name)
    refused("run", same_name, "--bundle", bold, "--cues-file", out, "--events", events, names="another video")
    refused("run", "tcp://127.0.0.1:9", "--cues-file", out, "--events", events, names="a stream has no such time")
    out.write_text(out.read_text()[:-20])
    refused("run", clip, "--bundle", bold, "--cues-file", out, "--events", events, names="is not JSON")
    unknown = tmp_path / "words.txt"
    unknown.write_text("dgo\n")
    refused("run", clip, "--bundle", bold, "--cues-file", unknown, "--events", events, names="'dgo'")


def test_options_that_exclude_each_other(clip: Path, tmp_path: Path) -> None:
    for more in (
        ("--cues", "dog", "--cue-source", "tagger"),
        ("--server", "http://x"),
        ("--cue-ttl", 3),
        ("--cue-prompt", "x"),
    ):
        code, _, err = teso("run", clip, "--events", tmp_path / "e", *more)
        assert code == 2 and "cue-source" in err


def test_models_that_were_tampered_with(clip: Path, tmp_path: Path) -> None:
    save_reasoner(tmp_path / "reasoner", "llama")
    with KIND.staging(tmp_path / "models") as folder:
        (folder / "reasoner").mkdir()
        entry = export_decoder(tmp_path / "reasoner", folder / "reasoner", "fp32")
        KIND.write(folder, CueModelsManifest(reasoner=entry, files=KIND.hash_files(folder)))
    tokenizer = tmp_path / "models" / "reasoner" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    refused(
        "cues", clip, "--source", "llm", "--models", tmp_path / "models", "--out", tmp_path / "c.json",
        names="tokenizer.json is not the file that was exported",
    )  # fmt: skip

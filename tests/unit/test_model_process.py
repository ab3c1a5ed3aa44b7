"""The models' process: questions and answers, crashes, hangs, and that nothing remains of it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from teso_deploy.conversion.captioners import export_captioner
from teso_deploy.conversion.cue_decoders import export_decoder
from teso_deploy.cues import process as module
from teso_deploy.cues.contracts import CueMoment, Message
from teso_deploy.cues.model_bundle import KIND, CueModels, CueModelsManifest
from teso_deploy.cues.process import ModelProcess
from teso_deploy.cues.prompts import Prompt
from teso_deploy.cues.sources.reasoned import ReasonedSource
from teso_deploy.errors import CueSourceError
from teso_deploy.types import Frame
from tests.support.chat_server import timed
from tests.support.language_models import photograph, save_reasoner, save_vision_encoder_decoder
from tests.support.leaks import nothing_left

#: A process that speaks the protocol. The request decides what it does.
CHILD = textwrap.dedent("""
    import json, os, struct, sys, time
    head = struct.Struct(">II")
    def say(answer):
        text = json.dumps(answer).encode()
        sys.stdout.buffer.write(head.pack(len(text), 0) + text)
        sys.stdout.buffer.flush()
    print("loading", file=sys.stderr, flush=True)
    while True:
        got = sys.stdin.buffer.read(head.size)
        if not got:
            sys.exit(0)
        length, extra = head.unpack(got)
        question, content = json.loads(sys.stdin.buffer.read(length)), sys.stdin.buffer.read(extra)
        if question["do"] == "load":
            say({"text": ""})
            continue
        request = question["messages"][-1][1] if question["do"] == "answer" else question["prompt"]
        if request == "crash":
            print("Traceback: the weights are gone", file=sys.stderr, flush=True)
            os._exit(7)
        elif request == "hang":
            time.sleep(60)
        elif request == "garbage":
            sys.stdout.buffer.write(b"Loading checkpoint shards: 100%")
            sys.stdout.buffer.flush()
            time.sleep(60)
        elif request == "no json":
            sys.stdout.buffer.write(head.pack(3, 0) + b"xyz")
            sys.stdout.buffer.flush()
        elif request == "half":
            sys.stdout.buffer.write(head.pack(100, 0) + b"{")
            sys.stdout.buffer.flush()
            os._exit(0)
        elif request == "error":
            say({"error": "the prompt is too long: shorten it"})
        elif request == "noise":
            sys.stderr.write("x" * 300_000 + "\\n")
            sys.stderr.flush()
            say({"text": "quiet again"})
        elif request == "environment":
            say({"text": " ".join(os.environ)})
        elif request == "who":
            say({"text": str(os.getpid())})
        else:
            say({"text": f"{request} {len(content)} {question.get('shape')}"})
""")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> CueModels:
    """Make a captioner and a reasoner of the smallest size."""
    base = tmp_path_factory.mktemp("models")
    save_vision_encoder_decoder(base / "captioner")
    save_reasoner(base / "reasoner", "llama")
    with KIND.staging(base / "out") as folder:
        for name in ("captioner", "reasoner"):
            (folder / name).mkdir()
        manifest = CueModelsManifest(
            captioner=export_captioner(base / "captioner", folder / "captioner", "fp32"),
            reasoner=export_decoder(base / "reasoner", folder / "reasoner", "fp32"),
            files=KIND.hash_files(folder),
        )
        KIND.write(folder, manifest)
    return CueModels.open(base / "out")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    return [sys.executable, str(path)]


def moment(size: tuple[int, int] = (40, 60)) -> CueMoment:
    return CueMoment(Frame(photograph(*size), pts_seconds=2.0))


def ask(process: ModelProcess, text: str) -> str:
    return process.reasoner(reasons=True).answer([Message("system", "x"), Message("user", text)])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pid: int) -> None:
    """Wait until a process that was killed has ended, for which it may need long on a busy machine."""
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.05)


def test_no_key_is_in_its_environment(models: CueModels, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TESO_CUES_API_KEY", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "sk-secret")
    process = ModelProcess(models, command=command)
    try:
        names = ask(process, "environment").split()
    finally:
        process.close()
    assert "PATH" in names and "ORT_DISABLE_TELEMETRY" in names
    assert not {"TESO_CUES_API_KEY", "OPENAI_API_KEY", "HF_TOKEN"} & set(names)


def test_the_real_one_captions_and_reasons(models: CueModels) -> None:
    process = ModelProcess(models)
    prompt = Prompt.load("one-shot-direct")
    try:
        captioner, reasoner = process.captioner("What?"), process.reasoner(reasons=prompt.reasons)
        caption = captioner.caption(moment())
        assert caption and caption == captioner.caption(moment()) != captioner.caption(moment((61, 33)))
        answer = reasoner.answer(prompt.messages("a dog barks at a man"))
        assert answer.startswith('{"objects": [') and answer == reasoner.answer(prompt.messages("a dog barks at a man"))
        assert models.identity(models.manifest.captioner) in captioner.identity  # type: ignore[arg-type]
        assert captioner.identity != reasoner.identity
        source = ReasonedSource("llm", captioner=captioner, reasoner=reasoner, prompt=prompt)
        found = source.ask(moment())
        assert found is not None and found.caption == caption
        assert process._process is not None and os.getpriority(os.PRIO_PROCESS, process._process.pid) == 19
        assert os.sched_getscheduler(process._process.pid) == os.SCHED_IDLE
        with pytest.raises(CueSourceError, match="fewer shots"):
            reasoner.answer([Message("user", "dog " * 5000)])
        assert reasoner.answer(prompt.messages("a dog barks at a man")) == answer  # in the same process
    finally:
        process.close()


def test_what_is_not_there_is_said(models: CueModels) -> None:
    alone = CueModels(models.folder, models.manifest.model_copy(update={"captioner": None}))
    with pytest.raises(CueSourceError, match="has no captioner"):
        ModelProcess(alone).captioner("x")


def test_questions_and_answers(models: CueModels, command: list[str]) -> None:
    process = ModelProcess(models, command=command)
    big = CueMoment(Frame(np.zeros((700, 900, 3), np.uint8), pts_seconds=0.0))
    assert process.captioner("What?").caption(big) == f"What? {700 * 900 * 3} [700, 900, 3]"
    assert ask(process, "ein Hündchen 🐕").startswith("ein Hündchen 🐕 0")
    assert ask(process, "who") == ask(process, "who"), "one process"
    with pytest.raises(CueSourceError, match="too long"):
        ask(process, "error")
    assert ask(process, "noise") == "quiet again"
    process.close()


def test_it_is_started_when_it_is_asked(models: CueModels, command: list[str]) -> None:
    process = ModelProcess(models, command=command)
    assert process._process is None
    process.close()
    with pytest.raises(CueSourceError, match="was ended"):
        ask(process, "who")


@pytest.mark.parametrize("fault", ["crash", "half", "no json", "hang", "garbage"])
def test_a_fault_ends_it_and_the_next_question_starts_it_again(
    models: CueModels, command: list[str], fault: str
) -> None:
    process = ModelProcess(models, command=command, timeout_seconds=60)
    with nothing_left():
        first = ask(process, "who")  # a process in the background may start slowly: it is not timed
        process._timeout_seconds = 0.6 if fault == "hang" else 60
        error, seconds = timed(lambda: ask(process, fault))
        assert isinstance(error, CueSourceError) and seconds < 30, error
        if fault == "crash":
            assert "code 7" in str(error) and "the weights are gone" in str(error)
        if fault == "hang":
            assert "no answer in 0.6 s" in str(error)
        process._timeout_seconds = 60
        second = ask(process, "who")
        assert second != first
        wait_for_end(int(first))
        process.close()
        wait_for_end(int(second))


def test_it_is_not_started_again_and_again(
    models: CueModels, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 60.0)
    process = ModelProcess(models, command=command)
    for _ in range(2):
        assert "code 7" in str(timed(lambda: ask(process, "crash"))[0])
    error, _ = timed(lambda: ask(process, "crash"))
    assert isinstance(error, CueSourceError) and "started again" in str(error)
    assert error.retry_after_seconds is not None and 0 < error.retry_after_seconds <= 60
    process._not_before = time.monotonic()  # the pause is over
    assert ask(process, "fine").startswith("fine")
    assert "code 7" in str(timed(lambda: ask(process, "crash"))[0]), "it has recovered: no pause after the first"
    process.close()


def test_closing_ends_a_question_under_way(models: CueModels, command: list[str]) -> None:
    process = ModelProcess(models, command=command, timeout_seconds=120)
    with nothing_left():
        assert ask(process, "fine").startswith("fine")  # its start, which may be slow, is not timed
        threading.Timer(0.3, process.close).start()
        error, seconds = timed(lambda: ask(process, "hang"))
        assert isinstance(error, CueSourceError) and "was ended" in str(error) and seconds < 20
        process.close()


def test_a_command_that_is_not_there(models: CueModels) -> None:
    error, _ = timed(lambda: ask(ModelProcess(models, command=["/no/such/python"]), "x"))
    assert isinstance(error, CueSourceError) and "can't be started" in str(error)


def test_it_ends_with_its_parent(models: CueModels, tmp_path: Path) -> None:
    """A parent that is killed can't close its child."""
    code = (
        "import sys, time; from teso_deploy.cues.process import ModelProcess;"
        "from teso_deploy.cues.model_bundle import CueModels; from teso_deploy.cues.contracts import Message;"
        f"p = ModelProcess(CueModels.open({str(models.folder)!r}));"
        "p.reasoner(reasons=False).answer([Message('user', 'a dog')]);"
        "print(p._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for_end(child)


def test_many_files_may_be_open_and_the_folder_is_not_searched(
    models: CueModels, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``select`` takes no file numbers above 1,023, and ``python -m`` imports from the current folder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "numpy.py").write_text("raise SystemExit('this is no library')")
    monkeypatch.chdir(tmp_path / "here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1500, hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    process, real = ModelProcess(models, command=command), ModelProcess(models)
    try:
        assert ask(process, "fine").startswith("fine")
        assert process._process is not None and process._process.stdout is not None
        assert process._process.stdout.fileno() > 1024
        assert isinstance(real.captioner("x").caption(moment()), str)
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        process.close()
        real.close()


def test_loading_has_a_limit_of_its_own(models: CueModels, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(command[-1])
    path.write_text(
        path.read_text().replace('if question["do"] == "load":', 'if question["do"] == "load":\n        time.sleep(6)')
    )
    process = ModelProcess(models, command=command, timeout_seconds=5)
    assert ask(process, "fine").startswith("fine"), "that it is loaded does not count"
    process.close()
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.3)
    process = ModelProcess(models, command=command)
    for _ in range(2):
        assert "not loaded in 0.3 s" in str(timed(lambda: ask(process, "fine"))[0])
    process.close()

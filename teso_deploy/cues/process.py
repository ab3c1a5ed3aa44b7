"""Runs captioner and reasoner in a separate process, so that a crash there does not end this one."""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from teso_deploy.cues.asking import pause_seconds
from teso_deploy.cues.contracts import LONGER, Captioner, CueMoment, Message, Reasoner
from teso_deploy.cues.model_bundle import CueModels, ModelEntry
from teso_deploy.errors import CueSourceError
from teso_deploy.redaction import make_child_environment
from teso_deploy.text import to_one_line, to_printable

WORKER = "teso_deploy.cues.language.serve"
#: The lengths of the JSON and of the bytes that follow it, in both directions.
HEAD = struct.Struct(">II")
#: A longer answer counts as a fault.
MAX_ANSWER_BYTES = 10_000_000
#: A process that ended twice in a row is started again after the first pause; the pause doubles up to the longest.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
#: How long :meth:`ModelProcess.close` waits for the end of the process, and how long an error waits for its exit code.
#: A process in the background ends late on a busy machine, even after it was killed.
CLOSE_SECONDS, EXIT_CODE_SECONDS = 2.0, 10.0
#: How long an error waits for the last lines of a process that has ended.
LAST_LINES_SECONDS = 1.0
#: The time limit for loading a model, which is not part of a question's time.
LOAD_SECONDS = 900.0


class ModelProcess:
    """The process of a folder of models. It starts with the first question and answers one question at a time.

    Args:
        models: The folder.
        threads: How many threads the models use; None: all cores.
        in_background: If True, the process runs only when no other process wants the CPU, so that frames come first.
        timeout_seconds: The limit for a question; a process that takes longer is ended.
        command: The command that starts the process; None: the command of our worker.
    """

    def __init__(
        self,
        models: CueModels,
        *,
        threads: int | None = 1,
        in_background: bool = True,
        timeout_seconds: float = 120.0,
        command: Sequence[str] | None = None,
    ) -> None:
        self._models, self._in_background, self._timeout_seconds = models, in_background, timeout_seconds
        # -P: nothing is imported from the folder that the user happens to be in.
        worker = [sys.executable, "-P", "-m", WORKER, str(models.folder), str(threads or 0)]
        self._command = worker if command is None else list(command)
        self._asking, self._lock = threading.Lock(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: threading.Thread | None = None
        self._said: deque[str] = deque(maxlen=5)
        self._loaded = set[str]()
        self._failures, self._not_before = 0, 0.0
        self._is_closed = False

    def captioner(self, prompt: str) -> Captioner:
        """The folder's captioner. Raises :class:`CueSourceError` if it has none."""
        return _ProcessCaptioner(self, self._identity(self._models.manifest.captioner, "captioner"), prompt)

    def reasoner(self, *, reasons: bool) -> Reasoner:
        """The folder's reasoner; ``reasons``: it thinks aloud. Raises :class:`CueSourceError` if there is none."""
        return _ProcessReasoner(self, self._identity(self._models.manifest.reasoner, "reasoner"), reasons)

    def _identity(self, entry: ModelEntry | None, role: str) -> str:
        if entry is None:
            raise CueSourceError(f"{self._models.folder} has no {role}: export one with `export-cues --{role}`")
        return self._models.identity(entry)

    def ask(self, question: Mapping[str, Any], content: bytes = b"") -> str:
        """Ask a question and return the answer's text. Raises :class:`CueSourceError`."""
        with self._asking:
            process = self._get_running()
            if question["do"] not in self._loaded:  # loading is slow while frames use the CPU
                self._exchange(process, {"do": "load", "model": question["do"]}, b"", limit_seconds=LOAD_SECONDS)
                self._loaded.add(question["do"])
            return self._exchange(process, question, content, limit_seconds=self._timeout_seconds)

    def close(self) -> None:
        """End the process and a running question. Any thread may call this, more than once."""
        with self._lock:
            self._is_closed = True
            process = self._process
        if process is not None:
            _kill(process, CLOSE_SECONDS)

    def _exchange(
        self, process: subprocess.Popen[bytes], question: Mapping[str, Any], content: bytes, *, limit_seconds: float
    ) -> str:
        deadline = time.monotonic() + limit_seconds
        try:
            text = json.dumps(question).encode()
            _write(process, HEAD.pack(len(text), len(content)) + text + content, deadline)
            answer = self._read(process, deadline)
        except TimeoutError:
            if question["do"] == "load":
                said = f"the model was not loaded in {limit_seconds:g} s: take a smaller one"
            else:
                said = (
                    f"the model gave no answer in {limit_seconds:g} s: give it more time ({LONGER}), or take a "
                    "smaller one"
                )
            raise self._end(process, said) from None
        except (OSError, ValueError):
            raise self._end(process) from None
        if question["do"] != "load":
            self._failures = 0
        if "error" in answer:
            raise CueSourceError(to_printable(str(answer["error"])))
        return str(answer.get("text", ""))

    def _get_running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise CueSourceError("the models' process was ended")
            if self._process is not None and _can_answer(self._process):
                return self._process
            wait = self._not_before - time.monotonic()
            if wait > 0:
                raise CueSourceError(
                    f"the models' process has ended {self._failures} times: it will be started again in {wait:.0f} s",
                    wait,
                )
            self._said.clear()
            self._loaded.clear()
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env=make_child_environment(),
                )
            except OSError as error:
                raise CueSourceError(f"the models' process can't be started ({error.strerror})") from error
            if self._in_background:
                step_back(self._process.pid)
            self._listener = threading.Thread(
                target=self._listen, args=(self._process,), name="teso-cue-models", daemon=True
            )
            self._listener.start()
            return self._process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Keep the last lines that the process writes to stderr, and wait for its end."""
        assert process.stderr is not None
        with suppress(ValueError, OSError), process.stderr as file:
            for line in file:
                if text := to_one_line(line.decode("utf-8", "replace")):
                    self._said.append(text)
        process.wait()

    def _read(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        assert process.stdout is not None
        length, extra = HEAD.unpack(_take(process.stdout.fileno(), HEAD.size, deadline))
        if extra or length > MAX_ANSWER_BYTES:
            raise ValueError("no answer")
        answer = json.loads(_take(process.stdout.fileno(), length, deadline))
        if not isinstance(answer, dict):
            raise ValueError("no answer")
        return answer

    def _end(self, process: subprocess.Popen[bytes], too_slow: str = "") -> CueSourceError:
        """End a process that is of no use any more, and make the error that says why."""
        _kill(process, EXIT_CODE_SECONDS)
        if self._is_closed:
            return CueSourceError("the models' process was ended")
        self._failures += 1
        if self._failures > 1:
            pause = pause_seconds(self._failures - 2, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            self._not_before = time.monotonic() + pause
        if too_slow:
            return CueSourceError(too_slow)
        if self._listener is not None:
            self._listener.join(LAST_LINES_SECONDS)
        said = f" ({self._said[-1]})" if self._said else ""
        return CueSourceError(
            f"the models' process ended with code {process.returncode}{said}: it will be started again"
        )


def step_back(pid: int) -> None:
    """Let a process run only when no other needs the CPU. An idle process, unlike a nice one, yields at once."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, 19)
        if hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))


def _can_answer(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process runs and was not killed. One that was killed may not have ended yet; its pipes are closed."""
    return process.stdin is not None and not process.stdin.closed and process.poll() is None


def _kill(process: subprocess.Popen[bytes], limit_seconds: float) -> None:
    """Kill a process and close its pipes."""
    with suppress(OSError):
        process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit_seconds)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _wait_for(file: int, event: int, deadline: float) -> None:
    """Wait by poll, since select can't take files with numbers above 1,023. Raises :class:`TimeoutError`."""
    poll = select.poll()
    poll.register(file, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
        raise TimeoutError


def _take(file: int, count: int, deadline: float) -> bytes:
    """Read ``count`` bytes. Raises :class:`TimeoutError`, :class:`OSError` (the process ended)."""
    taken = b""
    while len(taken) < count:
        _wait_for(file, select.POLLIN, deadline)
        piece = os.read(file, min(65536, count - len(taken)))
        if not piece:
            raise OSError("the process has ended")
        taken += piece
    return taken


def _write(process: subprocess.Popen[bytes], content: bytes, deadline: float) -> None:
    """Write everything. Raises :class:`TimeoutError`, :class:`OSError`."""
    assert process.stdin is not None
    file, view = process.stdin.fileno(), memoryview(content)
    while view:
        _wait_for(file, select.POLLOUT, deadline)
        view = view[os.write(file, view[: select.PIPE_BUF]) :]


class _ProcessCaptioner:
    def __init__(self, process: ModelProcess, identity: str, prompt: str) -> None:
        self._process, self._prompt = process, prompt
        self.identity = f"{identity}:{prompt}"

    def caption(self, moment: CueMoment) -> str:
        image = moment.frame.image
        question = {"do": "caption", "prompt": self._prompt, "shape": image.shape}
        return self._process.ask(question, image.tobytes()).strip()

    def close(self) -> None:
        self._process.close()


class _ProcessReasoner:
    def __init__(self, process: ModelProcess, identity: str, reasons: bool) -> None:
        self._process, self._reasons = process, reasons
        self.identity = f"{identity}:{reasons}"

    def answer(self, messages: Sequence[Message]) -> str:
        return self._process.ask({"do": "answer", "messages": list(messages), "reasons": self._reasons})

    def close(self) -> None:
        self._process.close()

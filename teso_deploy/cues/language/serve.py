"""The models' process: ``python -m teso_deploy.cues.language.serve FOLDER THREADS``; see :mod:`..process`.

It reads questions from standard input and writes answers to the original standard output. It ends with its parent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from teso_deploy.backends.onnxruntime import count_cores
from teso_deploy.cues.contracts import Message
from teso_deploy.cues.language.captioner import LocalCaptioner
from teso_deploy.cues.language.reasoner import LocalReasoner
from teso_deploy.cues.model_bundle import KIND, CueModels, CueModelsManifest
from teso_deploy.cues.process import HEAD
from teso_deploy.errors import TesoError

#: How often the process checks whether its parent still runs.
LOOK_SECONDS = 1.0


class Models:
    """The models of a folder. A model is loaded when it gets its first question."""

    def __init__(self, folder: Path, threads: int) -> None:
        # The parent has checked the files. Hashing their gigabytes again is not needed.
        self._models, self._threads = CueModels(folder, KIND.read(folder, CueModelsManifest)), threads

    @cached_property
    def _captioner(self) -> LocalCaptioner:
        entry = self._models.manifest.captioner
        assert entry is not None, "the parent has checked that"
        return LocalCaptioner(self._models.folder, entry, identity=self._models.identity(entry), threads=self._threads)

    @cached_property
    def _reasoner(self) -> LocalReasoner:
        entry = self._models.manifest.reasoner
        assert entry is not None, "the parent has checked that"
        return LocalReasoner(self._models.folder, entry, identity=self._models.identity(entry), threads=self._threads)

    def answer(self, question: dict[str, Any], content: bytes) -> str:
        """Return the answer to a question."""
        if question["do"] == "load":
            _ = self._captioner if question["model"] == "caption" else self._reasoner
            return ""
        if question["do"] == "caption":
            image = np.frombuffer(content, np.uint8).reshape(question["shape"])
            return self._captioner.caption(image, question["prompt"])
        messages = [Message(role, text) for role, text in question["messages"]]
        return self._reasoner.answer(messages, reasons=question["reasons"])


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def serve(folder: Path, threads: int, *, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more questions. An error of the user is an answer; any other ends the process.

    Args:
        folder: The models' folder.
        threads: How many threads the models use.
        questions: The pipe that questions come from.
        answers: The pipe that answers go to.
    """
    models: Models | None = None
    while head := questions.read(HEAD.size):
        length, extra = HEAD.unpack(head)
        question, content = json.loads(questions.read(length)), questions.read(extra)
        try:
            models = models or Models(folder, threads)
            answer = {"text": models.answer(question, content)}
        except TesoError as error:
            answer = {"error": str(error)}
        text = json.dumps(answer).encode()
        answers.write(HEAD.pack(len(text), 0) + text)
        answers.flush()


def main() -> None:
    """Run the process that the module's docstring describes."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text that a library prints must not be read as an answer
    serve(folder, threads or count_cores(), questions=sys.stdin.buffer, answers=answers)


if __name__ == "__main__":
    main()

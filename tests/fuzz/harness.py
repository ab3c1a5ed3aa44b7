"""Runs cases: makes one from its numbers, forks, judges and cleans up."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fuzz.answers import AnswerServer
from tests.fuzz.cases import CANARY_KEY, HOME, TEMPORARY, WORK, Case, Workshop
from tests.fuzz.forking import PRELOADED, Ended, ForkServer, Limits, Request
from tests.fuzz.judging import Finding, judge, take_snapshot
from tests.fuzz.seeds import Seeds
from tests.fuzz.targets import TARGETS

#: The environment of the fork server, and so of every case.
ENVIRONMENT: Mapping[str, str] = {
    "TESO_CUES_API_KEY": CANARY_KEY, "OMP_NUM_THREADS": "1", "TERM": "dumb", "COLUMNS": "200",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONIOENCODING": "utf-8:surrogateescape",
    # ONNX Runtime's telemetry is a thread, which a fork would not have.
    "ORT_DISABLE_TELEMETRY": "1",
}  # fmt: skip
#: One case in this many ends like a normal Python process, which takes a third of a second.
_ENDS_FULLY_EVERY = 10
_STDOUT, _STDERR = "stdout", "stderr"


def _name(target: str, seed: int, number: int) -> str:
    return f"{target}-{seed}-{number}"


@dataclass(frozen=True, slots=True)
class Tried:
    """A case that was run. ``folder``: the folder of the run, which exists only while it is kept."""

    target: str
    seed: int
    number: int
    case: Case
    ended: Ended
    findings: list[Finding]
    stderr: bytes
    folder: Path

    @property
    def command(self) -> str:
        """The command that runs this case again."""
        return f"python -m tests.fuzz {self.target} {self.seed} {self.number}"


class Fuzzer:
    """Runs cases one after another; a context manager.

    Args:
        seeds: valid inputs.
        folder: the folder in which cases run.
        limits: the limits of each case.
        keeps: whether the folder of a case with findings stays.
        preloaded: modules that are imported before every case.
    """

    def __init__(
        self,
        seeds: Seeds,
        folder: Path,
        limits: Limits | None = None,
        keeps: bool = False,
        preloaded: Sequence[str] = PRELOADED,
    ) -> None:
        self.seeds, self._folder, self._keeps = seeds, folder, keeps
        self._limits = limits or Limits()
        self._answers = AnswerServer()
        self._server = ForkServer(dict(ENVIRONMENT), preloaded)

    def make_workshop(self, name: str) -> Workshop:
        """Make a workshop in a separate folder for a case without a target."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return Workshop(random.Random(name), self.seeds, self._answers, folder)

    def try_case(self, target: str, seed: int, number: int) -> Tried:
        """Make, run and judge a case, which is determined by target, seed and number."""
        case = self.make_case(target, seed, number)
        folder = self._folder / _name(target, seed, number)
        return replace(self.run(case, folder, number), target=target, seed=seed, number=number)

    def make_case(self, target: str, seed: int, number: int) -> Case:
        """Write the inputs of a case."""
        return TARGETS[target](self.make_workshop(_name(target, seed, number)))

    def run(self, case: Case, folder: Path, number: int = 0, command: str = "teso_deploy.cli:main") -> Tried:
        """Run and judge a case whose folder has been made. ``command``: the function that is called."""
        before = take_snapshot(folder)
        streams = folder.with_name(folder.name + ".streams")
        streams.mkdir(exist_ok=True)
        request = Request(
            case.arguments,
            str(folder / WORK),
            str(streams / _STDOUT),
            str(streams / _STDERR),
            str(case.stdin or "/dev/null"),
            {"HOME": str(folder / HOME), "XDG_CACHE_HOME": str(folder / HOME / ".cache"),
             "TMPDIR": str(folder / TEMPORARY), **case.environment},
            self._limits,
            command,
            number % _ENDS_FULLY_EVERY == 0,
        )  # fmt: skip
        ended = self._server.run(request)
        stdout, stderr = ((streams / name).read_bytes() for name in (_STDOUT, _STDERR))
        findings = judge(case, ended, folder, before, stdout, stderr)
        if not (findings and self._keeps):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(streams, ignore_errors=True)
        return Tried("", 0, number, case, ended, findings, stderr, folder)

    def __enter__(self) -> Fuzzer:
        self._answers.__enter__()
        self._server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.__exit__(*error)
        self._answers.__exit__(*error)

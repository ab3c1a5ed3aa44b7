"""Judges whether a command ended as every command must, whatever its input was."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.cases import CANARY_KEY, CANARY_URL, HOME, INPUTS, OUTPUTS, TEMPORARY, WORK, Case
from tests.fuzz.forking import Ended

MAX_SENTENCE_CHARACTERS = 1100
_PREFIX = "teso-deploy: "
#: Lines that libraries print themselves: the logs of ONNX Runtime and FFmpeg, and Python's warnings.
_NOISE = re.compile(
    r"\d{4}-\d\d-\d\d \S+ \[\w:onnxruntime|\[[^]]+ @ 0x[0-9a-f]+\]|\S+\.py:\d+: \w*Warning|Exception ignored"
)
#: A cache folder that PyTorch creates among temporary files.
_OF_TORCH = re.compile(rf"{TEMPORARY}/torchinductor_\w+")
_Snapshot = dict[str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule. ``detail``: a description."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def take_snapshot(folder: Path) -> _Snapshot:
    """Return every file and folder below a folder, with its kind and a hash of its content."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                content = f"link {os.readlink(path)}"
            elif stat.S_ISREG(mode):
                content = f"file {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
            else:
                content = f"kind {stat.S_IFMT(mode):o}"
            found[os.path.relpath(path, folder)] = content
    return found


def judge(case: Case, ended: Ended, folder: Path, before: _Snapshot, stdout: bytes, stderr: bytes) -> list[Finding]:
    """List what is wrong with the end of a case. ``before``: the snapshot of its folder."""
    found = _judge_end(case, ended)
    text = stderr.decode("utf-8", "surrogateescape")
    if "Traceback (most recent call last)" in text:
        where = [
            line.strip() for line in text.splitlines() if line.strip().startswith("File ") and "teso_deploy" in line
        ]
        last = [line for line in text.splitlines() if line.strip()][-1]
        found.append(Finding("traceback", f"{last[:200]} ({where[-1] if where else '?'})"))
    elif ended.code:
        found += _judge_sentence(text)
    found += _judge_lines(text)
    after = take_snapshot(folder)
    found += _judge_files(case, ended, before, after)
    found += _judge_secrets(folder, stdout, stderr, after)
    if ended.code == 0:
        found += _judge_reports(folder)
    return found


def _judge_end(case: Case, ended: Ended) -> list[Finding]:
    if ended.stopped is not None:
        detail = f"{ended.seconds:.1f} s of processor time, {ended.memory_bytes >> 20} MiB"
        return [Finding(ended.stopped, detail)]
    found = []
    if ended.signal is not None:
        found.append(Finding("signal", f"ended by signal {ended.signal}"))
    elif ended.code not in case.codes:
        found.append(Finding("exit code", f"{ended.code}, not one of {sorted(case.codes)}"))
    if ended.processes_left:
        found.append(Finding("process left", f"{ended.processes_left} still ran"))
    return found


def _judge_sentence(text: str) -> list[Finding]:
    """Check for one final sentence that begins with our name, or a usage error of the parser."""
    lines = [line for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith(_PREFIX)]
    if lines and lines[-1].startswith(("Error: ", "Error while")) and any(line.startswith("Usage: ") for line in lines):
        return (
            [] if len(lines[-1]) <= MAX_SENTENCE_CHARACTERS else [Finding("sentence", f"{len(lines[-1])} characters")]
        )
    if len(ours) != 1 or lines[-1] != ours[0]:
        return [Finding("sentence", f"{len(ours)} lines begin with {_PREFIX!r}; the last: {lines[-1:]!r:.300}")]
    if len(ours[0]) > MAX_SENTENCE_CHARACTERS:
        return [Finding("sentence", f"{len(ours[0])} characters: {ours[0][:200]}")]
    if "--traceback" in ours[0]:
        return [Finding("last resort", ours[0][:300])]
    return []


def _judge_lines(text: str) -> list[Finding]:
    found = []
    for line in text.split("\n"):
        if not all(letter.isprintable() for letter in line):
            found.append(Finding("not printable", ascii(line[:300])))
        if _NOISE.search(line):
            found.append(Finding("noise", line[:300]))
    return found[:1]


def _is_within(name: str, outputs: Collection[str]) -> bool:
    return any(name == output or name.startswith(f"{output}/") for output in outputs)


def _judge_files(case: Case, ended: Ended, before: _Snapshot, after: _Snapshot) -> list[Finding]:
    found = []
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    changed = {name for name in changed if not _OF_TORCH.fullmatch(name)}
    allowed = case.outputs if ended.code == 0 else case.may_remain
    for name in sorted(changed):
        top, _, rest = name.partition("/")
        detail = "gone" if name not in after else "new" if name not in before else "other"
        if top == INPUTS:
            found.append(Finding("input changed", f"{rest}: {detail}"))
        elif top in (WORK, TEMPORARY) or (top == OUTPUTS and not _is_within(rest, allowed)):
            found.append(Finding("left behind", f"{name!a}: {detail}"))
        elif top == HOME and detail == "new" and re.search(r"(^|/)\.(?!cache$)[^/]*$", rest):
            found.append(Finding("left behind", f"{name!a}: hidden in the cache"))
    if ended.code == 0:
        # A live run may end before its first picture arrives.
        missing = [name for name in sorted(case.outputs - case.may_remain) if f"{OUTPUTS}/{name}" not in after]
        found += [Finding("output missing", f"exit 0 without {name!a}") for name in missing]
    return found[:3]


def _judge_secrets(folder: Path, stdout: bytes, stderr: bytes, after: _Snapshot) -> list[Finding]:
    places = {"stdout": stdout, "stderr": stderr}
    for name in after:
        if not name.startswith(f"{INPUTS}/") and (folder / name).is_file() and not (folder / name).is_symlink():
            places[name] = (folder / name).read_bytes()
    return [
        Finding("secret", f"{canary} in {place}")
        for place, content in places.items()
        for canary in (CANARY_KEY, CANARY_URL)
        if canary.encode() in content
    ]


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _judge_reports(folder: Path) -> list[Finding]:
    """Check that reports are JSON that every parser accepts."""
    found = []
    for path in (folder / OUTPUTS).iterdir():
        if path.suffix in (".json", ".jsonl") and path.is_file():
            texts = path.read_bytes().decode("utf-8", "surrogateescape")
            for text in texts.splitlines() if path.suffix == ".jsonl" else [texts]:
                try:
                    text.encode()
                    json.loads(text, parse_constant=_refuse_constant)
                except ValueError as error:
                    found.append(Finding("report", f"{path.name!a}: {str(error)[:200]!a}"))
    return found[:1]

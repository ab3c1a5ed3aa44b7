"""Telemetry of the libraries that we use is off in every process."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import teso_deploy
from teso_deploy.telemetry import VARIABLES, switch_off_telemetry

BENCHMARKS = Path(teso_deploy.__file__).parent.parent / "benchmarks"
#: A session, and one of our processes that imports ONNX Runtime itself.
PROGRAM = """
import json, os, subprocess, sys
import teso_deploy.cues.language.decoder
from teso_deploy.backends.shared_libraries import IDENTITY, LIBRARIES, PREAMBLE
from teso_deploy.redaction import make_child_environment
import onnxruntime
onnxruntime.InferenceSession(IDENTITY, providers=["CPUExecutionProvider"])
child = "import json, os, onnxruntime; print(json.dumps(dict(os.environ)))"
subprocess.run([sys.executable, "-c", child], env=make_child_environment(), check=True)
"""


def run(home: Path, **variables: str) -> dict[str, str]:
    """Return the environment of the nested process. ``home`` is its home folder."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", PROGRAM]
    if strace := shutil.which("strace"):
        command = [strace, "-f", "-qq", "-e", "trace=socket", "-o", str(home.with_suffix(".trace")), *command]
    home.mkdir()
    done = subprocess.run(
        command, env={**environment, "HOME": str(home), **variables}, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_onnxruntime_leaves_nothing_and_sends_nothing(tmp_path: Path) -> None:
    """With telemetry on, it creates an identifier of the machine and a database in the home folder."""
    home = tmp_path / "home"
    environment = run(home)
    assert environment["ORT_DISABLE_TELEMETRY"] == environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert not [path for path in home.rglob("*") if path.is_file()]
    if (trace := home.with_suffix(".trace")).exists():
        assert "AF_INET" not in trace.read_text()


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "")
    switch_off_telemetry()
    assert {name: os.environ[name] for name in VARIABLES} == {
        "ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_import_the_package_first(path: Path) -> None:
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(str(node.module).split(".")[0])
    libraries = {"onnxruntime", "transformers", "optimum", "huggingface_hub"} & set(names)
    assert all(names.index("teso_deploy") < names.index(library) for library in libraries)

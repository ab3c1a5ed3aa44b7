"""The packages with their lowest versions, and the commands that install them."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from importlib import metadata
from pathlib import Path

import onnxruntime
import pytest

from teso_deploy import requirements
from teso_deploy.backends import shared_libraries as libraries
from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.cli.doctor import BASE, examine
from teso_deploy.errors import BundleError
from teso_deploy.requirements import TORCH, TORCH_EXTRAS, find_lower_bounds, is_older, write_install_command
from tests.conftest import ALWAYS_INSTALLED
from tests.support.commands import teso
from tests.support.imports import ROOT, find_absent_packages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_constraints(name: str) -> dict[str, str]:
    """Return package → version of a file of constraints."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normalise(version: str) -> str:
    """Return ``2`` for ``2.0.0``."""
    return re.sub(r"(\.0)+$", "", version)


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    bounds = find_lower_bounds(PROJECT["dependencies"])
    lowest = read_constraints("constraints-lowest.txt")
    assert {name: normalise(version) for name, version in lowest.items()} == {
        name: normalise(bound) for name, bound in bounds.items()
    }
    assert set(bounds) == set(BASE) and len(bounds) == len(PROJECT["dependencies"])


def test_what_resolves_together_is_within_the_bounds() -> None:
    frozen = read_constraints("constraints.txt")
    bounds = find_lower_bounds(requirements.read_requirements())
    assert frozen.keys() & bounds.keys() >= {*BASE, "torch", "onnx", "transformers"}
    assert [name for name in frozen.keys() & bounds.keys() if is_older(frozen[name], bounds[name])] == []
    assert f"torch=={frozen['torch']}" == TORCH and TORCH in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_extra_that_names_torch_is_known_to_need_it() -> None:
    extras = PROJECT["optional-dependencies"]
    with_torch = {name for name, needs in extras.items() if any(re.match(r"torch\b", one) for one in needs)}
    with_torch |= {
        name for name, needs in extras.items() if any(f"teso-deploy[{other}]" in needs for other in with_torch)
    }
    assert with_torch and with_torch <= set(TORCH_EXTRAS) <= set(extras)
    assert "cues" in TORCH_EXTRAS, "optimum needs torch"


@pytest.mark.parametrize("has_torch", [True, False])
def test_torch_comes_first_and_exactly(has_torch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    torch = importlib.util.spec_from_loader("torch", None) if has_torch else None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: torch if name == "torch" else find(name, package)
    )
    before = "" if has_torch else f"pip install {TORCH} && "
    for extra in TORCH_EXTRAS:
        assert write_install_command(extra) == f"{before}pip install 'teso-deploy[{extra}]'"
    assert write_install_command("cuda", "--upgrade") == "pip install --upgrade 'teso-deploy[cuda]'"


def test_no_message_has_a_command_of_its_own() -> None:
    for folder in ("teso_deploy", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "requirements.py":
                assert not re.search(r"pip install[^\n]*teso-deploy\[", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("version", "bound", "expected"),
    [
        ("1.24.4", "1.25", True), ("1.25.0", "1.25", False), ("1.9", "1.25", True), ("2.13.0+cpu", "2.13", False),
        ("16", "16.0.0", False), ("0.19.0rc1", "0.19", False), ("13.9.4", "13.10", True),
        ("1.25.0.post1", "1.25", False),
    ],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version: str, bound: str, expected: bool) -> None:
    assert is_older(version, bound) is expected


def test_bounds_of_an_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "__file__", str(tmp_path / "teso_deploy" / "requirements.py"))
    lines = ["numpy>=2.0", "torch>=2.13; extra == 'export'", 'pytest>=8.4; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert find_lower_bounds(requirements.read_requirements()) == {"numpy": "2.0", "torch": "2.13"}

    def refuse(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", refuse)
    assert requirements.read_requirements() == []


@pytest.mark.parametrize("package", ["onnxruntime", "torch"])
def test_doctor_tells_of_versions_that_are_too_old(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = libraries.version_of
    monkeypatch.setattr(libraries, "version_of", lambda name: "1.22.0" if name == package else find(name))
    bound = find_lower_bounds(requirements.read_requirements())[package]
    report = examine()
    assert report["outdated"] == {package: {"version": "1.22.0", "needed": bound}}
    commands = {"onnxruntime": f"pip install --upgrade 'onnxruntime>={bound}'", "torch": f"pip install {TORCH}"}
    assert commands[package] in report["advice"]
    assert report["can_run"] is (package == "torch"), "the base install alone is needed to run"
    done = teso("doctor")
    assert f"{package} 1.22.0, but {bound} is needed" in " ".join(done.err.split() + done.out.split())


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("1.22.0", r"version 1\.22\.0 is too old: pip install --upgrade 'onnxruntime>=1\.25'"),
        ("1.25.0", "export .* again"),
    ],
)
def test_a_graph_that_an_old_library_does_not_know(
    version: str, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = tmp_path / "decoder.onnx"
    graph.write_bytes(b"of the future")
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with pytest.raises(BundleError, match=advice):
        OnnxRuntimeEngine(graph, threads=1)


def test_which_test_files_need_more_than_the_base_install() -> None:
    tests = {path.name: find_absent_packages(path) for path in (ROOT / "tests").rglob("test_*.py")}
    assert not any(absent & ALWAYS_INSTALLED for absent in tests.values())
    assert tests["test_pipeline.py"] == tests["test_metrics_clients.py"] == set()
    if importlib.util.find_spec("torch") is None:
        assert "torch" in tests["test_models.py"] and "torch" in tests["test_training.py"]

"""The files that a wheel must hold besides the modules, and the wheel itself if its build tool is installed."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import teso_deploy

PACKAGE = Path(teso_deploy.__file__).parent
ROOT = PACKAGE.parent
#: A file of each kind that the installed package reads.
NEEDED = (
    "teso_deploy/py.typed",
    "teso_deploy/cues/prompts/shots.toml",
    "teso_deploy/_shipped/export/recipes/teso-nano.toml",
    "teso_deploy/_shipped/export/tables/4.toml",
    "teso_deploy/_shipped/export/vocabulary/nouns.txt",
    "teso_deploy/_shipped/export/demo/clip.mp4",
    "teso_deploy/_shipped/engines/bundles/teso-nano/bundle.json",
    "teso_deploy/_shipped/engines/profiles/live.toml",
    "teso_deploy/_shipped/engines/kernels/preprocess.cu",
)


def find_shipped() -> set[str]:
    """Return the names in the wheel of all files that pyproject.toml adds to the package."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = set()
    for source, target in content["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        assert target == f"teso_deploy/_shipped/{source}", "find_shipped_path finds a file by its path in a checkout"
        path = ROOT / source
        assert path.exists(), f"pyproject.toml ships {source}, which does not exist"
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        names |= {f"teso_deploy/_shipped/{file.relative_to(ROOT).as_posix()}" for file in files}
    return names


def find_package_files() -> set[str]:
    """Return the names of the package's own files that git has."""
    listed = subprocess.run(["git", "ls-files", "teso_deploy"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a checkout of git")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def find_paths() -> Iterator[tuple[str, str]]:
    """Yield the module and the path of each call of ``find_shipped_path`` with a literal."""
    for module in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "find_shipped_path":
                (argument,) = node.args
                if isinstance(argument, ast.Constant):
                    yield module.name, str(argument.value)


def test_every_needed_file_is_shipped() -> None:
    assert set(NEEDED) <= find_shipped() | find_package_files()


def test_every_path_that_a_module_reads_is_shipped() -> None:
    shipped, found = find_shipped(), list(find_paths())
    assert len(found) >= 8
    for module, path in found:
        if path.endswith(".fatbin"):  # CMake makes it, and its absence is allowed
            continue
        name = f"teso_deploy/_shipped/{path}"
        assert any(one == name or one.startswith(f"{name}/") for one in shipped), f"{module} reads {path}"


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
def test_the_wheel_holds_them(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not (find_shipped() | find_package_files()) - names
    assert not [name for name in names if "/export/demo/make_clip" in name], "what only a checkout needs stays there"

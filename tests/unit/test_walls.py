"""Which part may import which, and that the runtime works without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

import teso_deploy
from teso_deploy.backends.registry import BACKENDS
from tests.support.import_graph import build_graph, find_cycles, merge_by_part, write_table
from tests.support.imports import find_imports

PACKAGE = Path(teso_deploy.__file__).parent
#: A part may import its own level and those below it.
LEVELS = {
    "errors": 0, "checks": 0, "requirements": 0, "types": 0,
    "resources": 0, "outputs": 0, "recipe": 0, "recipe_tables": 0, "sealed": 0,
    "array_files": 0, "external_data": 0, "hub": 0, "named_objects": 0, "labels": 0, "latency": 0, "architectures": 0,
    "text": 0, "small_files": 0, "redaction": 0, "staging": 0, "telemetry": 0,
    "program": 1, "bundle": 1, "bundle_tables": 1,
    "backends": 2, "media": 2, "cues": 2,
    "options": 3, "pipeline": 3, "sinks": 3, "verification": 3, "evaluation": 3,
    "live": 4,
    "serving": 5, "comparison": 5,
    "cli": 6,
}  # fmt: skip
#: The parts with torch, and what each may import from the package.
TORCH_SIDE = {
    "models": {"models", "recipe", "program", "types", "errors", "resources"},
    "conversion": {
        "conversion",
        "models",
        "bundle",
        "backends",
        "media",
        "cues",
        "pipeline",
        "verification",
        "evaluation",
        "program",
        "recipe",
    },
    "training": {"training", "models", "conversion", "bundle", "evaluation", "pipeline", "verification", "recipe"},
}
HEAVY = {
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "tokenizers",
    "scipy",
    "matplotlib",
    "accelerate",
    "instant_clip_tokenizer",
}
#: These run in separate processes; no module imports them.
WORKERS = {"comparison.hugging_face", "cues.language.serve"}
#: It imports `tokenizers` in a function. All conversion of words to ids at run time uses it.
TOKENIZING = {"cues.tokens"}
#: A backend's module is imported when the backend is chosen. It may import what its registry entry needs.
OF_BACKENDS = {
    entry.factory.partition(":")[0].removeprefix("teso_deploy."): {*entry.modules} - {"torch", "transformers"}
    for entry in BACKENDS.values()
}
SMALL = {
    "types", "errors", "checks", "requirements", "resources", "outputs", "recipe_tables", "sealed", "small_files",
    "text", "hub", "redaction", "telemetry", "staging", "named_objects", "labels", "latency", "architectures",
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def parts(names: Set[str]) -> set[str]:
    """Return our parts among imported names."""
    split = (name.split(".") for name in names)
    return {name[1] for name in split if name[0] == "teso_deploy" and len(name) > 1 and not name[1].startswith("_")}


ALL = list(modules())


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name or "teso_deploy" for name, _ in ALL])
def test_arrows_run_down_only(name: str, path: Path) -> None:
    part = name.split(".")[0]
    used = parts(find_imports(path))
    if part in TORCH_SIDE:
        assert used <= TORCH_SIDE[part] | SMALL
    elif part in LEVELS and part != "cli":
        assert not used & TORCH_SIDE.keys()
        assert all(LEVELS[other] <= LEVELS[part] for other in used)
    elif part == "cli":
        assert not parts(find_imports(path, at_load=True)) & TORCH_SIDE.keys(), "import it in the function"


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name or "teso_deploy" for name, _ in ALL])
def test_only_the_training_side_knows_heavy_libraries(name: str, path: Path) -> None:
    if name.split(".")[0] not in TORCH_SIDE and name not in WORKERS:
        heavy = HEAVY - OF_BACKENDS.get(name, set())
        allowed = {"tokenizers"} if name in TOKENIZING else set()
        assert not {module.split(".")[0] for module in find_imports(path)} & heavy - allowed
        assert not {module.split(".")[0] for module in find_imports(path, at_load=True)} & heavy


def test_no_module_imports_what_runs_in_its_own_process() -> None:
    workers = {f"teso_deploy.{name}" for name in WORKERS}
    assert not any(find_imports(path) & workers for _, path in ALL)


def test_no_import_cycles() -> None:
    """Imports inside functions count. Those that only type checkers read do not."""
    cycles = find_cycles(build_graph(PACKAGE))
    assert not cycles, "\n".join(" ↔ ".join(cycle) for cycle in cycles)


def test_no_cycles_between_parts() -> None:
    cycles = find_cycles(merge_by_part(build_graph(PACKAGE)))
    assert not cycles, "\n".join(" ↔ ".join(cycle) for cycle in cycles)


def test_cycles_are_found(tmp_path: Path) -> None:
    """A cycle through an import inside a function, one for types only, and one through a package."""
    package = tmp_path / "house"
    (package / "attic").mkdir(parents=True)
    (package / "__init__.py").write_text("VERSION = 1\ndef load():\n    from house.attic import box\n")
    (package / "attic/__init__.py").write_text("")
    (package / "attic/box.py").write_text("def open():\n    from house import VERSION\n")
    (package / "cellar.py").write_text(
        "from typing import TYPE_CHECKING\nimport house.attic.box\nif TYPE_CHECKING:\n    import house.stairs\n"
    )
    (package / "stairs.py").write_text("from house.cellar import wine\n")
    graph = build_graph(package)
    assert graph["house.stairs"] == {"house.cellar"} and graph["house.cellar"] == {"house.attic.box"}
    assert find_cycles(graph) == [("house", "house.attic.box")]
    assert find_cycles(merge_by_part(graph)) == [("house", "house.attic")]
    assert "cycles: 1\n  house ↔ attic.box" in write_table(package)


BLOCKED = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " is behind the wall")
sys.meta_path.insert(0, Wall())
import numpy as np
import teso_deploy
from tests.support.imports import find_imports
import teso_deploy.cli, teso_deploy.cli.run, teso_deploy.cli.demo, teso_deploy.cli.doctor, teso_deploy.cli.verify
import teso_deploy.cli.export, teso_deploy.cli.eval, teso_deploy.cli.train
import teso_deploy.cli.cues, teso_deploy.cli.export_cues, teso_deploy.cues.choosing
pipeline = teso_deploy.load({bundle!r}, threads=1)
image = np.zeros((60, 80, 3), np.uint8)
found = pipeline.segment(image, np.zeros(15600, np.float32), pipeline.cue_table.names[:1])
assert found.labels.shape == (60, 80)
print("ran without", sorted({blocked}))
"""


def test_the_runtime_runs_without_torch(tiny_bundle: Path) -> None:
    program = BLOCKED.format(blocked=sorted(HEAVY), bundle=str(tiny_bundle))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "ran without" in done.stdout


def test_importing_the_package_is_light() -> None:
    program = "import sys, teso_deploy; print([m for m in ('numpy', 'av', 'onnxruntime', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"

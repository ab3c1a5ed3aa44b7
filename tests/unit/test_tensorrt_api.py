"""Every attribute of TensorRT that ``teso_deploy/backends/tensorrt`` names is in 10.13, in 11.4 and in RTX 1.7.

TensorRT can't be installed where the tests run, so the code is read, and what it names is looked up in lists that
were taken from the bindings (``tensorrt_api/*.json``, made by ``tensorrt_api/collect.py``). The code is read by
these conventions:

- ``trt`` is the module, also as an attribute: ``trt.BuilderFlag.REFIT``, ``library.trt.Logger``.
- A variable, argument or attribute with one of the names in :data:`OBJECTS` (``builder``, ``self._builder``) is an
  object of that class, so that nothing of ours may have such a name there.
- What a class of ours that is made from one of TensorRT's defines without an underscore, TensorRT calls.
- A name that only some versions have is asked for by its name in quotes, ``getattr(x, "NAME", None)`` or
  ``hasattr(x, "NAME")``. It need be in one list only, and may be used plainly in the same module.
- Names that only TensorRT-RTX has, and that the code uses only after ``Library.is_portable``, are in :data:`RTX_ONLY`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import teso_deploy
from teso_deploy.backends.tensorrt.validity import REASONS

CODE = Path(teso_deploy.__file__).parent / "backends" / "tensorrt"
LISTS = Path(__file__).parent / "tensorrt_api"
#: Version → class → its names; "" is the module.
OFFERED: dict[str, dict[str, list[str]]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(LISTS.glob("*.json"))
}
#: The name of a variable → its class.
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "serialized": "IHostMemory",
    "cache": "ITimingCache",
    "registry": "IPluginRegistry",
    "plugin": "IPluginV3",
    "creator": "IPluginCreatorV3One",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
    "layer": "ILayer",
}
#: Class → names that are used only if the library is known to be TensorRT-RTX.
RTX_ONLY = {
    "": {
        "ComputeCapability",
        "DynamicShapesKernelSpecializationStrategy",
        "EngineInvalidityDiagnostics",
        "EngineValidity",
    },
    "DynamicShapesKernelSpecializationStrategy": {*OFFERED["rtx-1.7"]["DynamicShapesKernelSpecializationStrategy"]},
    "EngineValidity": {*OFFERED["rtx-1.7"]["EngineValidity"]},
    "ComputeCapability": {*OFFERED["rtx-1.7"]["ComputeCapability"]},
    "IBuilderConfig": {"num_compute_capabilities", "set_compute_capability"},
    "IRuntimeConfig": {
        "create_runtime_cache",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_runtime_cache",
    },
    "IRuntimeCache": {"serialize", "deserialize"},
}


class Named(NamedTuple):
    """An attribute of TensorRT that the code names."""

    owner: str
    name: str
    is_optional: bool
    where: str

    def missing_in(self) -> list[str]:
        """List the versions that lack it although they must have it."""
        of_rtx = self.name in RTX_ONLY.get(self.owner, ())
        needed = [version for version in OFFERED if version.startswith("rtx") or not of_rtx]
        lacking = [version for version in needed if self.name not in OFFERED[version].get(self.owner, [])]
        enough = self.is_optional and len(lacking) < len(needed)
        return [] if enough else lacking


def last_name(node: ast.AST) -> str:
    """Return ``b`` for ``a.b`` and for ``b``, without leading underscores."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_")


def owner_of(node: ast.AST) -> str | None:
    """Return the class whose attributes follow ``node``: "" for the module, None for other libraries."""
    name = last_name(node)
    if name == "trt":
        return ""
    if isinstance(node, ast.Attribute) and (outer := owner_of(node.value)) is not None:
        # A class is named Like.This. Other attributes of an object, such as results of methods, are not followed.
        inner = f"{outer}.{name}" if outer else name
        if any(inner in classes for classes in OFFERED.values()):
            return inner
    return OBJECTS.get(name)


def named(source: str, where: str) -> Iterator[Named]:
    """Yield every attribute that a module names."""
    tree = ast.parse(source)
    asked: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                asked[node] = name.value
    for node in ast.walk(tree):
        place = f"{where}:{getattr(node, 'lineno', 0)}"
        if node in asked and isinstance(node, ast.Call) and (owner := owner_of(node.args[0])) is not None:
            yield Named(owner, asked[node], True, place)
        elif isinstance(node, ast.Attribute) and (owner := owner_of(node.value)) is not None:
            if not node.attr.startswith("__") or node.attr == "__version__":
                yield Named(owner, node.attr, node.attr in asked.values(), place)
        elif isinstance(node, ast.ClassDef):
            for base in filter(None, map(owner_of, node.bases)):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield Named(base, method.name, False, f"{where}:{method.lineno}")


def complaints(found: list[Named]) -> list[str]:
    """Return a line for each name that a version lacks."""
    return [
        f"{one.where}: {one.owner or 'trt'}.{one.name} is not in {', '.join(missing)}"
        for one in found
        if (missing := one.missing_in())
    ]


def test_what_the_code_names_is_in_every_version() -> None:
    found = [one for path in sorted(CODE.glob("*.py")) for one in named(path.read_text(encoding="utf-8"), path.name)]
    assert found, f"{CODE} names nothing of TensorRT: has the module another name than trt?"
    assert not complaints(found)


def test_reasons_against_an_engine_are_those_of_the_library() -> None:
    offered = OFFERED["rtx-1.7"]["EngineInvalidityDiagnostics"]
    assert set(REASONS) == {*offered} - {"name", "value"}


def test_the_lists_are_those_of_the_versions() -> None:
    assert set(OFFERED) == {"10.13", "11.4", "rtx-1.7"}
    for version, classes in OFFERED.items():
        assert "STRONGLY_TYPED" in classes["NetworkDefinitionCreationFlag"], version
        assert set(OBJECTS.values()) - {"IRuntimeCache"} <= classes.keys(), version
    assert "FP16" in OFFERED["10.13"]["BuilderFlag"] and "FP16" not in OFFERED["11.4"]["BuilderFlag"]
    assert "set_compute_capability" in OFFERED["rtx-1.7"]["IBuilderConfig"]


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("trt.BuilderFlag.REFIT", []),
        ("self.library.trt.BuilderFlag.FP16", ["BuilderFlag.FP16"]),
        ("flag = getattr(trt.BuilderFlag, 'FP16', None)", []),
        ("flag = getattr(trt.BuilderFlag, 'FP61', None)", ["BuilderFlag.FP61"]),
        ("trt.Bilder(trt.Logger(trt.ILogger.Severity.WARNING))", ["trt.Bilder"]),
        ("config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1)", []),
        ("self._config.max_workspace_size = 1", ["IBuilderConfig.max_workspace_size"]),
        ("runtime.engine_header_size", ["Runtime.engine_header_size"]),
        ("if hasattr(runtime, 'engine_header_size'):\n    runtime.engine_header_size", []),
        ("config.set_compute_capability(trt.ComputeCapability.SM89, 0)", []),
        ("config.set_compute_capability(trt.ComputeCapability.SM12, 0)", ["ComputeCapability.SM12"]),
        ("class Logger(trt.ILogger):\n    def log(self): ...\n    def _own(self): ...", []),
        ("class Logger(trt.ILogger):\n    def write(self): ...", ["ILogger.write"]),
        ("engine.device_memory_size", ["ICudaEngine.device_memory_size"]),
        ("context.engine.num_io_tensors + context.engine.num_bindings", ["ICudaEngine.num_bindings"]),
        ("logger.info; path.name; trt.ILogger.Severity.LOUD", ["ILogger.Severity.LOUD"]),
    ],
)
def test_the_reader_finds_what_is_wrong(source: str, wrong: list[str]) -> None:
    found = complaints(list(named(source, "code.py")))
    assert len(found) == len(wrong) and all(name in line for name, line in zip(wrong, found, strict=True)), found

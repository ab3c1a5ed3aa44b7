"""Reads the imports of Python files from their text, and finds test files that the base install can't run."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]


@cache
def find_imports(path: Path, *, at_load: bool = False, for_types: bool = True) -> frozenset[str]:
    """Find what a module imports.

    Args:
        path: The module's file.
        at_load: Whether to leave out imports inside functions and under ``if TYPE_CHECKING``. Default: all count.
        for_types: Whether imports under ``if TYPE_CHECKING`` count. Default: they do.

    Returns:
        Absolute names of modules and of names in them.
    """
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (is_for_types and (at_load or not for_types)) or (is_function and at_load):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        waiting.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def find_file(module: str) -> Path | None:
    """Return the file of a module of this repository; None for a name within a module, and for other packages."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def find_absent_packages(path: Path) -> set[str]:
    """Find the packages that a file of this repository needs for its import and that are not installed."""
    absent: set[str] = set()
    waiting, seen = [path], {path}
    while waiting:
        for name in find_imports(waiting.pop(), at_load=True):
            top = name.split(".")[0]
            if top not in ("tests", "teso_deploy", "benchmarks"):
                absent |= set() if find_spec(top) else {top}
            elif (file := find_file(name)) is not None and file not in seen:
                seen.add(file)
                waiting.append(file)
    return absent

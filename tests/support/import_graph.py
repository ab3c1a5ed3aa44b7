"""The imports inside the package as a graph: its edges, its cycles, and a table of both.

``python -m tests.support.import_graph [FOLDER]`` prints the table of this checkout, or of another ``teso_deploy``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from tests.support.imports import ROOT, find_imports

#: Module → the modules of the same package that it imports.
Graph = Mapping[str, frozenset[str]]


def find_modules(package: Path) -> dict[str, Path]:
    """Find the modules of a package by their dotted names. A package itself stands for its ``__init__``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def build_graph(package: Path) -> dict[str, frozenset[str]]:
    """Build the graph of imports: at load and inside functions, but not those that only type checkers read.

    ``from a import b`` leads to the module ``a.b`` if it exists, otherwise to ``a``.
    """
    modules = find_modules(package)
    graph = {}
    for name, path in modules.items():
        imported = find_imports(path, for_types=False)
        # If a name that is not a module is imported from a package, the package itself is imported.
        from_packages = {other.rpartition(".")[0] for other in imported - modules.keys()}
        ways = {other.rpartition(".")[0] for other in imported & modules.keys()} - from_packages
        graph[name] = frozenset((imported & modules.keys()) - ways - {name})
    return graph


def merge_by_part(graph: Graph) -> dict[str, frozenset[str]]:
    """Merge the graph by parts: the packages and single modules directly below the top."""

    def part_of(module: str) -> str:
        return ".".join(module.split(".")[:2])

    merged: dict[str, set[str]] = {}
    for module, imported in graph.items():
        part = part_of(module)
        merged.setdefault(part, set()).update(part_of(other) for other in imported)
    return {part: frozenset(others - {part}) for part, others in sorted(merged.items())}


def find_cycles(graph: Graph) -> list[tuple[str, ...]]:
    """Find the groups of two or more modules that all reach each other, each in order of name."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in graph[waiting.pop()]:
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        reach[start] = seen
    groups = {
        tuple(sorted({start} | {other for other in reach[start] if start in reach[other]}))
        for start in graph
        if start in reach[start]
    }
    return sorted(groups)


def count_edges(graph: Graph) -> int:
    """Count the imports."""
    return sum(map(len, graph.values()))


def write_table(package: Path) -> str:
    """Make a table of the imports of each part, with the numbers of modules, edges and cycles."""
    graph = build_graph(package)
    parts = merge_by_part(graph)
    top = f"{package.name}."
    lines = []
    for part, others in parts.items():
        inside = sum(1 for module in graph if ".".join(module.split(".")[:2]) == part)
        names = ", ".join(sorted(other.removeprefix(top) for other in others)) or "nothing"
        lines.append(f"{part.removeprefix(top):<16}{inside:>3} modules → {names}")
    for kind, of in (("modules", graph), ("parts", parts)):
        cycles = find_cycles(of)
        lines.append(f"\n{kind}: {len(of)}, imports between them: {count_edges(of)}, cycles: {len(cycles)}")
        lines += ["  " + " ↔ ".join(name.removeprefix(top) for name in cycle) for cycle in cycles]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the import graph of the package by its parts.")
    parser.add_argument("package", nargs="?", type=Path, default=ROOT / "teso_deploy", help="its folder")
    print(write_table(parser.parse_args().package))

"""Count phrases of a private dialect in comments, docstrings, messages and documents.

``python -m tests.support.prose`` prints a table and fails above the limits of :mod:`tests.support.dialect`.
``--list`` prints every marker with its file and line. Code, and words inside backticks, are not counted.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from teso_deploy.cli import COMMANDS
from tests.support.dialect import LIMITS, MARKERS

_ROOT = Path(__file__).resolve().parents[2]
_CODE_FOLDERS = ("teso_deploy", "tests", "benchmarks")
_DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs")
_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_IN_BACKTICKS = re.compile(r"``.*?``|`[^`]*`", re.DOTALL)
_FENCED = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
_LINK_TARGET = re.compile(r"\]\([^)]*\)")
_PARTICIPLE = re.compile(
    "(?!(?:feed|need|seed|embed|speed|read)(?:_|$))"
    "(?:[a-z]+ed|made|found|held|built|kept|known|given|taken|told|sent|seen|shown|drawn|written|chosen|bound|left)(?:_|$)"
)

#: A string of this many words is a sentence for users, not a key or a format.
_WORDS_OF_A_MESSAGE = 4

#: The docstring of a command is its help text, which lists the options itself.
_COMMANDS = {(f"{module}.py", function) for module, function in COMMANDS.values()}


class Text(NamedTuple):
    path: Path
    line: int
    text: str
    kind: str = "comments and docstrings"


class Found(NamedTuple):
    path: Path
    line: int
    marker: str
    excerpt: str


def blank(text: str, pattern: re.Pattern[str]) -> str:
    """Replace what `pattern` matches by spaces and keep the line breaks, so that line numbers stay right."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def read_comments(path: Path, source: str) -> Iterator[Text]:
    """Yield the comments; comments on consecutive lines are one text, since sentences run across them."""
    lines: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        comment = token.string.lstrip("#:! ")
        if lines and token.start[0] == first + len(lines):
            lines.append(comment)
            continue
        if lines:
            yield Text(path, first, "\n".join(lines))
        lines, first = [comment], token.start[0]
    if lines:
        yield Text(path, first, "\n".join(lines))


def read_strings(path: Path, source: str, *, messages: bool) -> Iterator[Text]:
    """Yield docstrings and, if `messages` is true, the strings of code that read like sentences."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "`x`" for part in node.values]
            text = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if isinstance(parents.get(node), ast.JoinedStr):
                continue
            text = node.value
        else:
            continue
        if isinstance(parents.get(node), ast.Expr):
            yield Text(path, node.lineno, text)
        elif messages and count_words(text) >= _WORDS_OF_A_MESSAGE:
            yield Text(path, node.lineno, text, "messages")


def read_document(path: Path, source: str) -> Iterator[Text]:
    yield Text(path, 1, blank(blank(source, _FENCED), _LINK_TARGET), "documents")


def read_texts(path: Path) -> Iterator[Text]:
    """Yield the prose of one Python or Markdown file, without what is in backticks."""
    source = path.read_text()
    if path.suffix == ".py":
        is_package = "teso_deploy" in path.parts
        texts = [*read_comments(path, source), *read_strings(path, source, messages=is_package)]
    else:
        texts = list(read_document(path, source))
    for text in texts:
        unindented = re.sub(r"^[ \t]+", "", text.text, flags=re.MULTILINE)
        yield text._replace(text=blank(unindented, _IN_BACKTICKS))


def count_words(text: str) -> int:
    return len(_WORD.findall(text))


def find_markers(text: Text) -> Iterator[Found]:
    for marker in MARKERS:
        for match in marker.pattern.finditer(text.text):
            line = text.line + text.text.count("\n", 0, match.start())
            begin, end = max(0, match.start() - 45), match.end() + 45
            yield Found(text.path, line, marker.name, " ".join(text.text[begin:end].split()))


def list_files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = (file for file in path.rglob("*") if file.suffix in (".py", ".md"))
            yield from sorted(file for file in found if "results" not in file.parts)  # written by programs
        elif path.exists():
            yield path


def find_default_paths(root: Path) -> list[Path]:
    return [root / name for name in (*_CODE_FOLDERS, *_DOCUMENTS)]


def group_of(path: Path, root: Path) -> str:
    """The part of the repository that `path` belongs to; a package of ``teso_deploy`` is a part."""
    parts = path.relative_to(root).parts
    if parts[0] == "teso_deploy":
        return "/".join(parts[:2]) if len(parts) > 2 else "teso_deploy"
    return parts[0] if parts[0] in _CODE_FOLDERS else "documents"


class _Function(NamedTuple):
    path: Path
    line: int
    name: str
    parameters: int
    docstring: str | None


def read_functions(path: Path) -> Iterator[_Function]:
    """Yield the public functions and methods of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            if any(ast.unparse(each).endswith("property") for each in node.decorator_list):
                continue
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            yield _Function(path, node.lineno, node.name, count, ast.get_docstring(node))


def find_missing_args(paths: Iterable[Path]) -> list[_Function]:
    """Public functions with three or more parameters and a docstring without ``Args:``; commands are left out."""
    return [
        function
        for path in paths
        if path.suffix == ".py" and "teso_deploy" in path.parts
        for function in read_functions(path)
        if function.parameters >= 3
        and function.docstring
        and "Args:" not in function.docstring
        and (path.name, function.name) not in _COMMANDS
    ]


def find_participle_names(paths: Iterable[Path]) -> list[_Function]:
    """Public functions of the package that are named by what they return, "matched", not by what they do."""
    return [
        function
        for path in paths
        if path.suffix == ".py" and "teso_deploy" in path.parts
        for function in read_functions(path)
        if _PARTICIPLE.match(function.name)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.prose", description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders; the whole repository by default")
    parser.add_argument("--root", type=Path, default=_ROOT, help="the checkout; this one by default")
    parser.add_argument("--list", action="store_true", help="print every marker, and every docstring without Args:")
    parser.add_argument("--names", action="store_true", help="print the functions whose name is a participle")
    parser.add_argument("--reasons", action="store_true", help="print the markers with their reasons")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    files = [file.resolve() for file in list_files(options.paths or find_default_paths(root))]

    if options.reasons:
        for marker in MARKERS:
            print(f"{marker.name}: {marker.reason}")
    if options.names:
        for function in find_participle_names(files):
            print(f"{function.path.relative_to(root)}:{function.line}: {function.name}")

    tallies = Tallies()
    for file in files:
        for text in read_texts(file):
            markers = list(find_markers(text))
            tallies.add(text, markers, group_of(file, root))
            if options.list:
                for each in markers:
                    print(f"{each.path.relative_to(root)}:{each.line}: {each.marker}: {each.excerpt}")
    missing = find_missing_args(files)
    if options.list:
        for function in missing:
            print(f"{function.path.relative_to(root)}:{function.line}: no Args: {function.name}")
    tallies.report(len(missing))
    faults = tallies.find_faults(len(missing))
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print("`python -m tests.support.prose --list` shows where, --reasons shows what to write", file=sys.stderr)
    return 1 if faults else 0


class Tallies:
    """Words and markers, by kind of text and by part of the repository."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.markers: dict[str, Counter[str]] = {}
        self.kinds: set[str] = set()

    def add(self, text: Text, markers: list[Found], group: str) -> None:
        self.kinds.add(text.kind)
        for part in (text.kind, group):
            self.words[part] += count_words(text.text)
            counts = self.markers.setdefault(part, Counter())
            for each in markers:
                counts.update(["all", each.marker])

    def rates(self, part: str) -> dict[str, float]:
        """Markers per 10,000 words, the most frequent first."""
        counts = self.markers[part].most_common()
        return {name: 1e4 * count / max(self.words[part], 1) for name, count in counts}

    def report(self, missing: int) -> None:
        print(f"{'part':26}{'words':>8}{'markers':>9}{'per 10,000':>12}")
        for part in (*sorted(self.markers.keys() - self.kinds), *sorted(self.kinds)):
            print(f"{part:26}{self.words[part]:8}{self.markers[part]['all']:9}{self.rates(part).get('all', 0):12.1f}")
        for kind in sorted(self.kinds):
            print(f"{kind}:", ", ".join(f"{name} {rate:.1f}" for name, rate in self.rates(kind).items()))
        print(f"docstrings of three or more parameters without Args: {missing}")

    def find_faults(self, missing: int) -> list[str]:
        faults = [
            f"{kind}: {name}: {self.rates(kind)[name]:.1f} markers per 10,000 words, at most {limit:g} are allowed"
            for kind in sorted(self.kinds)
            for name, limit in LIMITS[kind].items()
            if self.rates(kind).get(name, 0) > limit
        ]
        if missing:
            faults.append(f"{missing} docstrings of three or more parameters lack Args:")
        return faults


if __name__ == "__main__":
    sys.exit(main())

"""Odd JSON and TOML: valid documents with a value replaced, dropped or repeated."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

from tests.fuzz.mutations import mutate

#: Values of the right type without a meaning, and values of every wrong type.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 256, 65536, 2**31, 2**53, 2**63, 2**64, 10**13, -(2**63), 0.5, -0.0, 1e-320,
    1e308, "", " ", "x", "none", "0", "-1", "a" * 300, "a" * 70_000, "../../etc/passwd", "/etc/passwd", "/dev/zero",
    "..", ".", "~", "$HOME", "\0", "a\0b", "line\nbreak", "\x1b[31mred", "\u202egnp", "\ufeffbom", "{caption}",
    "{0.__class__}", "%(x)s", "%s%n", "日本語", "🐶" * 40, "\u0301" * 100, [], {}, [[]], [None], [0] * 1000, [1, 2],
    [[1, 2], [3]], {"": ""}, {"x": 1}, {"\x1b[31mx\n\nteso-deploy: all is well": 1}, [[0, 0]], [[10**9, 10**9]],
    [[32, 32]], ["a", "a"], ["dog", 3], "http://127.0.0.1:1/", "file:///etc/passwd", "[bold]x[/bold]", "[/x]",
)  # fmt: skip
#: Texts that no writer of JSON produces. Some parsers accept them.
ODD_JSON = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "-" + "9" * 5000, "0." + "1" * 5000, '"\\ud800"',
    '"\\udfff\\ud800"', "[" * 100_000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "", "undefined",
    "01", "'x'", "/* */ 1", '"\t"', "1,", "tru", '"unfinished', "\ufeff1", "0x10",
)  # fmt: skip
ODD_TOML = (
    "nan", "inf", "-inf", "9" * 6000, "1e999", "[" * 50_000, "[" * 2000 + "]" * 2000, "2020-01-01", "00:00:00",
    "2020-01-01T00:00:00Z", '"\\ud800"', '"""x', "'''\n'''", "0x" + "f" * 400, "0b2", "{ a = 1, a = 2 }", "{}", "",
    "1__0", "{ a.b.c = 1 }", "[ {} , [] ]",
)  # fmt: skip
_MARK = re.compile(r'"@raw(\d+)@"')


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the places of values in a document. Of a long list, only both ends count."""
    found = [path]
    if isinstance(value, dict):
        for key in value:
            found += _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for place in dict.fromkeys((*range(min(len(value), 3)), len(value) - 1)) if value else ():
            found += _paths(value[place], (*path, place))
    return found


def mutate_document(draw: random.Random, document: Any, raw_texts: tuple[str, ...]) -> Any:
    """Return a copy of a document with one change. ``@rawN@`` stands for the N-th of ``raw_texts``."""
    document = copy.deepcopy(document)
    # Few keys are at the top and hundreds at the bottom: choose the depth first.
    paths = [path for path in _paths(document) if path]
    depth = draw.choice(sorted({len(path) for path in paths}))
    *head, last = draw.choice([path for path in paths if len(path) == depth])
    holder: Any = document
    for key in head:
        holder = holder[key]
    old = holder[last]
    kind = draw.randrange(10)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(("", "x" * 300, "\x1b[31mx\n\nteso-deploy: ok", "__class__", "\0", "a.b", "@"))] = old
    elif kind == 2 and isinstance(old, list):
        holder[last] = old * draw.choice((0, 2, 100))
    elif kind == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        holder[last] = draw.choice((old + 1, old - 1, -old, old * 1000, old / 3, float(old), str(old), [old]))
    elif kind == 4 and isinstance(old, str):
        holder[last] = draw.choice((old.upper(), old + " ", old[:-1], old * 50, [old], {old: old}, old[::-1]))
    elif kind in (5, 6):
        holder[last] = f"@raw{draw.randrange(len(raw_texts))}@"
    else:
        holder[last] = copy.deepcopy(draw.choice(ODD_VALUES))
    return document


def _with_raw(text: str, raw_texts: tuple[str, ...]) -> str:
    return _MARK.sub(lambda match: raw_texts[int(match[1])], text)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def mutate_json(draw: random.Random, document: Any) -> bytes:
    """JSON with one odd value, or with damaged text."""
    if draw.random() < 0.15:
        return mutate(draw, json.dumps(document).encode())
    if draw.random() < 0.06:
        return _encoded(draw.choice((*ODD_JSON, "[]", "{}", "null", "3", '"x"')))
    document = mutate_document(draw, document, ODD_JSON)
    if draw.random() < 0.2 and "@raw" not in json.dumps(document):
        document = mutate_document(draw, document, ODD_JSON)
    text = json.dumps(document, ensure_ascii=draw.random() < 0.5)
    if draw.random() < 0.05:
        text = text.replace("{", '{"schema_version": 99, ', 1)
    return _encoded(_with_raw(text, ODD_JSON))


def as_toml(document: dict[str, Any], name: str = "") -> str:
    """Write tables as TOML.

    JSON's texts, numbers and lists are also TOML's; null has no form in TOML and is omitted.
    """
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    lists = {
        key: value
        for key, value in document.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    lines = [
        f"{json.dumps(key)} = {json.dumps(value)}"
        for key, value in document.items()
        if key not in tables and key not in lists and value is not None
    ]
    for key, value in tables.items():
        inner = f"{name}.{json.dumps(key)}" if name else json.dumps(key)
        lines += [f"[{inner}]", as_toml(value, inner)]
    for key, items in lists.items():
        inner = f"{name}.{json.dumps(key)}" if name else json.dumps(key)
        for item in items:
            lines += [f"[[{inner}]]", as_toml(item, inner)]
    return "\n".join(lines)


def mutate_toml(draw: random.Random, document: dict[str, Any]) -> bytes:
    """TOML with one odd value, or with damaged text."""
    if draw.random() < 0.15:
        return mutate(draw, as_toml(document).encode())
    changed: dict[str, Any] = mutate_document(draw, document, ODD_TOML)
    return _encoded(_with_raw(as_toml(changed), ODD_TOML))

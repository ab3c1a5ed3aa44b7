"""Helpers of the targets: a ``run`` with outputs, an answer of a server."""

from __future__ import annotations

from typing import Any

from tests.fuzz.cases import Case, Workshop

ONE_THREAD = ["--threads", "1"]
#: Options of ``run`` that select other paths through the program.
WAYS: tuple[list[str], ...] = (
    [], [], ["--mute"], ["--mode", "paper"], ["--fps", "3"], ["--noise-dbfs", "-20"], ["--cues", "auto"],
    ["--cues", "dog,cow"], ["--mode", "live", "--seconds", "3"],
)  # fmt: skip


def _outputs(shop: Workshop, *names: str) -> tuple[list[str], frozenset[str]]:
    """Options for outputs, all of them or some, and their names."""
    kinds = {"out.mp4": "--out", "masks": "--masks", "events.jsonl": "--events", "report.json": "--json"}
    chosen = names or tuple(name for name in kinds if shop.draw.random() < 0.6) or ("report.json",)
    return [text for name in chosen for text in (kinds[name], str(shop.out(name)))], frozenset(chosen)


def make_run(
    shop: Workshop, inputs: list[str], what: str, *more: str, names: tuple[str, ...] = (), **fields: Any
) -> Case:
    options, outputs = _outputs(shop, *names)
    arguments = ["run", *inputs, *options, *more, *ONE_THREAD]
    if "--bundle" not in more:
        arguments += ["--bundle", str(shop.seeds.bundle)]
    if fields.get("may_remain"):
        fields.setdefault("codes", frozenset({0, 1, 2}))
    return Case(arguments, what, outputs, **fields)


def growing_outputs(options: list[str]) -> frozenset[str]:
    """Return the outputs that a live run keeps if it breaks off. The report has the reason."""
    return (
        frozenset({"out.mp4", "events.jsonl", "masks", "masks.jsonl", "report.json"})
        if "live" in options
        else frozenset()
    )


def write_answer(status: str, body: bytes, headers: tuple[str, ...] = ()) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

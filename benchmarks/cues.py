"""A reasoner on captions with known answers: the quality of its names for each prompt, and its speed.

    python -m benchmarks run cues MODELS [--int8 MODELS] [--int4 MODELS] [--captions FILE] [--timed 8] [--threads 2]

``MODELS`` are folders of ``teso-deploy export-cues`` with a reasoner, the first in fp32. ``captions.toml`` holds
captions of visible objects and, for each, what sounds. Names are compared as usual in the field: plurals, synonyms and
a more exact name ("acoustic guitar" for "guitar") count as the same.

``precision`` and ``recall`` are over all names together. ``silent`` is the share of captions without a sounding object
that were answered so. ``valid`` counts answers that could be read. An answer that could not be read names nothing.
"grounded" are the names that the caption contains, as sources offer them. ``nouns`` is the parser of TeSOn, which names
every noun.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_files import add_out, record
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.report import environment_of
from teso_deploy.cues.answers import read_answer
from teso_deploy.cues.caption_words import find_nouns, is_mentioned
from teso_deploy.cues.language.reasoner import LocalReasoner
from teso_deploy.cues.model_bundle import CueModels
from teso_deploy.cues.prompts import DEFAULT_PROMPT, Prompt, list_prompts
from teso_deploy.cues.table import CueTable, list_variants
from teso_deploy.errors import CueSourceError, TesoError

HERE = Path(__file__).parent
#: The prompts that are timed, and the one that is also answered in every precision and without a constraint.
TIMED, IN_EVERY_WAY = (DEFAULT_PROMPT, "few-shot-direct"), "few-shot-direct"


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and its known answer."""

    text: str
    objects: tuple[str, ...]
    sounding: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """The names of an answer; None if it could not be read."""

    sounding: tuple[str, ...] | None


def read_captions(path: Path) -> list[Caption]:
    """Read the captions of a TOML file."""
    found = tomllib.loads(path.read_text(encoding="utf-8"))["caption"]
    return [Caption(entry["text"], tuple(entry["objects"]), tuple(entry["sounding"])) for entry in found]


def is_same(one: str, other: str) -> bool:
    """Return whether two names mean the same object."""
    ones, others = list_variants(one), list_variants(other)
    return any(a == b or a.endswith(f" {b}") or b.endswith(f" {a}") for a in ones for b in others)


def score(captions: Sequence[Caption], answers: Sequence[Named]) -> dict[str, Any]:
    """Compute precision, recall and F1 over all names, and the shares of silent and valid answers."""
    hits = named = heard = silent = silent_right = 0
    for caption, answer in zip(captions, answers, strict=True):
        names = answer.sounding or ()
        hits += sum(any(is_same(name, true) for true in caption.sounding) for name in names)
        named += len(names)
        heard += sum(any(is_same(name, true) for name in names) for true in caption.sounding)
        if not caption.sounding:
            silent += 1
            silent_right += answer.sounding == ()
    wanted = sum(len(caption.sounding) for caption in captions)
    precision, recall = hits / named if named else 0.0, heard / wanted
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {
        "precision": round(precision, 3),
        "recall": round(recall, 3),
        "f1": round(f1, 3),
        "silent": round(silent_right / silent, 3),
        "valid": round(sum(answer.sounding is not None for answer in answers) / len(answers), 3),
        "names_per_caption": round(named / len(captions), 2),
    }


def grounded(captions: Iterable[Caption], answers: Iterable[Named]) -> list[Named]:
    """Remove the names that do not occur in their caption."""
    return [
        answer if answer.sounding is None else Named(tuple(n for n in answer.sounding if is_mentioned(caption.text, n)))
        for caption, answer in zip(captions, answers, strict=True)
    ]


def answered(
    reasoner: LocalReasoner,
    prompt: Prompt,
    captions: Sequence[Caption],
    *,
    constrained: bool,
    progress: Callable[[str], None],
) -> list[Named]:
    """Ask about every caption."""
    answers = []
    for number, caption in enumerate(captions, 1):
        text = reasoner.answer(prompt.messages(caption.text), reasons=prompt.reasons, constrained=constrained)
        answers.append(Named(read_answer(text).sounding))
        progress(f"{prompt.name} {number}/{len(captions)}")
    return answers


def timings(models: CueModels, captions: Sequence[Caption], *, threads: int, style: str) -> list[dict[str, Any]]:
    """Time one prompt with the prefix kept and without, in turns."""
    prompt = Prompt.load(style)
    reasoners = {name: opened(models, threads, keep_prefix=name == "kept") for name in ("kept", "not kept")}
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in reasoners}
    prompts = {}
    for reasoner in reasoners.values():  # load, warm up, and compute the prefix if it is kept
        reasoner.answer(prompt.messages("a quiet room"), reasons=prompt.reasons)
    for caption in captions:
        for name, reasoner in reasoners.items():
            began = time.perf_counter()
            reasoner.answer(prompt.messages(caption.text), reasons=prompt.reasons)
            whole, stats = time.perf_counter() - began, reasoner.last_stats
            speed = (stats.new_tokens - 1) / stats.decode_seconds if stats.new_tokens > 1 else float("nan")
            seconds[name].append((stats.first_token_seconds, whole, speed))
            prompts[name] = stats.prompt_tokens, stats.kept_tokens
    rows = []
    for name, found in seconds.items():
        first, whole, speed = np.nanmedian(np.array(found), axis=0)
        rows.append(
            {
                "name": f"{style}, prefix {name}",
                "prompt_tokens": prompts[name][0],
                "kept_tokens": prompts[name][1],
                "first_token_s": round(float(first), 3),
                "to_first_cue_s": round(float(whole), 3),
                "tokens_per_second": round(float(speed), 1),
            }
        )
    for reasoner in reasoners.values():
        reasoner.close()
    return rows


def opened(models: CueModels, threads: int, *, keep_prefix: bool = True) -> LocalReasoner:
    """Open the reasoner of a folder."""
    entry = models.manifest.reasoner
    if entry is None:
        raise CueSourceError(f"{models.folder} has no reasoner: export one with --reasoner")
    return LocalReasoner(
        models.folder, entry, identity=models.identity(entry), threads=threads, keep_prefix=keep_prefix
    )


def measure(
    folders: dict[str, Path], captions: Sequence[Caption], *, timed: int, threads: int, prompts: Sequence[str]
) -> dict[str, Any]:
    """Measure everything, and return the report."""
    models = {precision: CueModels.open(folder) for precision, folder in folders.items()}
    entry = models["fp32"].manifest.reasoner
    assert entry is not None, "opened() says so"
    environment = environment_of(threads, model=entry.name, architecture=entry.architecture, captions=len(captions))
    speeds = []
    if timed:
        for precision, of in models.items():
            for style in TIMED:
                found = timings(of, captions[:timed], threads=threads, style=style)
                speeds += [{"precision": precision, **row} for row in found]
                print(*found, sep="\n", file=sys.stderr)
    known = CueTable.open(bundle := Bundle.open(None)).names
    nouns = [Named(tuple(find_nouns(caption.text, known, bundle.classes))) for caption in captions]
    rows = [{"name": "nouns", "precision_of_weights": None, **score(captions, nouns)}]

    def progress(text: str) -> None:
        print(f"\r{text}   ", end="", file=sys.stderr, flush=True)

    for precision, of in models.items() if prompts else ():
        reasoner = opened(of, threads)
        for style in prompts if precision == "fp32" else {IN_EVERY_WAY} & set(prompts):
            prompt = Prompt.load(style)
            for constrained in (True, False) if style == IN_EVERY_WAY and precision == "fp32" else (True,):
                answers = answered(reasoner, prompt, captions, constrained=constrained, progress=progress)
                name = style if constrained else f"{style}, free"
                for suffix, these in (("", answers), (", grounded", grounded(captions, answers))):
                    row = {"name": name + suffix, "precision_of_weights": precision, **score(captions, these)}
                    rows.append(row)
                    print(f"\r{row}", file=sys.stderr)
        reasoner.close()
    return {"environment": environment, "answers": rows if prompts else [], "speed": speeds}


def published(report: dict[str, Any], folder: Path) -> None:
    """Write quality and speed as two results."""
    environment = report["environment"]
    of = environment["model"].lower().replace(" ", "-")
    pages = {
        f"cues-{of}": (
            f"What {environment['model']} names in {environment['captions']} captions",
            "answers",
            "Constrained to JSON unless free; grounded: without names that the caption has not.",
        ),
        f"cue-speed-{of}": (
            f"How fast {environment['model']} answers",
            "speed",
            "Medians over captions, taking turns. first_token: from the question to the first word of the answer; "
            "to_first_cue: to the end of it.",
        ),
    }
    for name, (title, rows, note) in pages.items():
        if report[rows]:
            page = {"schema_version": 1, "rows": report[rows], "bound_by": note, "environment": environment}
            out = folder if folder.suffix != ".json" else folder.with_name(f"{folder.stem}-{rows}.json")
            record(name, title, page, out=out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--int8", type=Path)
    parser.add_argument("--int4", type=Path)
    parser.add_argument("--captions", type=Path, default=HERE / "captions.toml")
    parser.add_argument("--first", type=int, help="so many captions alone")
    parser.add_argument("--timed", type=int, default=8, help="captions that are timed; 0: none")
    parser.add_argument("--prompt", action="append", choices=list_prompts(), help="default: all")
    parser.add_argument("--speed-alone", action="store_true", help="nothing but the times")
    parser.add_argument("--threads", type=int, default=2)
    add_out(parser)
    given = parser.parse_args(arguments)
    folders = {"fp32": given.models, "int8": given.int8, "int4": given.int4}
    try:
        report = measure(
            {name: folder for name, folder in folders.items() if folder is not None},
            read_captions(given.captions)[: given.first],
            timed=given.timed,
            threads=given.threads,
            prompts=() if given.speed_alone else given.prompt or list_prompts(),
        )
    except TesoError as error:
        print(f"cues: {error}", file=sys.stderr)
        return error.exit_code
    published(report, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sources of cues compared on unseen scenes: the names, what the sound lets through, and the masks.

    python -m benchmarks run cue-sources DATA [--models FOLDER] [--scenes 50] [--bundle B] [--out FOLDER]

The rows are those of ``teso-deploy eval`` in which something sounds. No captioner is small enough to be tested here, so
two stand-ins replace it. "written" is a sentence about everything in the scene, as a perfect captioner would write it,
with a background that is not one of the words. "tagged" is a sentence about what the bundle's own tagger finds. A
deployed model of this size knows no more. ``nouns`` and ``llm`` read these sentences.

Precision and recall compare the cues with what sounds. As in table 3 of the paper, REC#1 counts the offered cues, and
REC#2 those that the dynamic mask accepts (gate > 0). ``filter`` is the paper's baseline: no cue is offered, and masks
of classes that the source does not name are removed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.results_files import add_out, record
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.report import environment_of
from teso_deploy.cues.contracts import CueAnswer, CueMoment, CueSource
from teso_deploy.cues.model_bundle import CueModels
from teso_deploy.cues.process import ModelProcess
from teso_deploy.cues.prompts import Prompt
from teso_deploy.cues.sources.filter import FilterSource
from teso_deploy.cues.sources.nouns import NounSource
from teso_deploy.cues.sources.reasoned import ReasonedSource
from teso_deploy.cues.sources.tagger import TaggerSource
from teso_deploy.errors import TesoError
from teso_deploy.evaluation.datasets.media_folder import MediaLibrary, read_library
from teso_deploy.evaluation.metrics import compute_iou
from teso_deploy.evaluation.protocols.composed_scenes import (
    SCENE_ROWS,
    SceneTrial,
    find_testable_words,
    make_scene,
)
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_cues import Seen
from teso_deploy.types import AudioWindow, Cues, Frame

SOUNDING_ROWS = ("one source", "two sources", "silent distractor")
BACKGROUNDS = ("a brick wall", "a green field", "a wooden floor", "a cloudy sky", "a garden fence", "an empty street")
SENTENCES = {
    1: ("a {0} in front of {back}", "The image shows a {0}, with {back} behind it.", "a close up of a {0} and {back}"),
    2: ("a {0} next to a {1} in front of {back}", "The image shows a {0} and a {1}, with {back} behind them."),
}


def written_caption(words: tuple[str, ...], seed: tuple[int, ...]) -> str:
    """Write a sentence that names the words."""
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(words))
    sentence = str(rng.choice(SENTENCES[len(names)]))
    return sentence.format(*rng.permutation(names), back=rng.choice(BACKGROUNDS))


class Sentence:
    """A captioner whose caption of the current scene is known."""

    def __init__(self, kind: str) -> None:
        self.identity, self.text = f"sentence:{kind}", ""

    def caption(self, moment: CueMoment) -> str:
        """Return the sentence."""
        return self.text

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class Visible:
    """Names that a person would type for a picture: all visible objects."""

    name = identity = "manual"

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()

    def ask(self, moment: CueMoment) -> CueAnswer:
        """Return the names of all visible objects."""
        return CueAnswer(self.names, "manual", objects=self.names)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


@dataclass
class Score:
    """The score of one source: the IoU of each sounding word, and counts of correct and wrong cues."""

    ious: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    no_answer: int = 0
    trials: int = 0

    def add_cues(self, when: str, named: set[str], heard: set[str]) -> None:
        """Add cues to the counts. ``when`` is "offered" or "accepted"."""
        self.counts[f"{when} hit"] += len(named & heard)
        self.counts[f"{when} named"] += len(named)
        self.counts["heard"] += len(heard) if when == "offered" else 0

    def row(self, name: str) -> dict[str, Any]:
        """Return the row of the report."""

        def share(hits: int, of: int) -> float | None:
            return round(hits / of, 3) if of else None

        counts, row = self.counts, {"name": name, "miou": round(float(np.mean(self.ious)), 3)}
        for when, column in (("offered", "rec1"), ("accepted", "rec2")):
            row[f"{column}_precision"] = share(counts[f"{when} hit"], counts[f"{when} named"])  # type: ignore[assignment]
            row[f"{column}_recall"] = share(counts[f"{when} hit"], counts["heard"])  # type: ignore[assignment]
        row["no_answer_rate"] = round(self.no_answer / self.trials, 3)
        return row


def trials_of(
    library: MediaLibrary, words: list[str], *, scenes: int, seed: int
) -> Iterator[tuple[SceneTrial, tuple[int, ...]]]:
    """Yield all trials, each with the seed of its sentence."""
    for row in SOUNDING_ROWS:
        for number in range(scenes):
            for trial in make_scene(library, words, row, seed=seed, number=number):
                yield trial, (seed, list(SCENE_ROWS).index(row), number, 1)


def kept_classes(labels: NDArray[np.uint8], classes: tuple[str, ...], names: tuple[str, ...]) -> NDArray[np.uint8]:
    """Keep the labels of named classes, and make the others background."""
    named = [k + 1 for k, name in enumerate(classes) if name in names]
    return np.where(np.isin(labels, named), labels, 0).astype(np.uint8)


def measure(
    pipeline: Pipeline, library: MediaLibrary, *, models: Path | None, styles: Sequence[str], scenes: int, seed: int
) -> list[dict[str, Any]]:
    """Measure each source, and return one row per source."""
    written, tagged, visible = Sentence("written"), Sentence("tagged"), Visible()
    tagger, classes, known = pipeline.check_tagger(), pipeline.classes, pipeline.cue_table.names
    sources: dict[str, CueSource] = {"manual: all that is visible": visible, "tagger": TaggerSource(tagger)}
    for kind, sentence in (("written", written), ("tagged", tagged)):
        sources[f"nouns of the {kind} caption"] = NounSource(sentence, known, classes)
    process: ModelProcess | None = None
    if models is not None:
        process = ModelProcess(CueModels.open(models), threads=2, in_background=False, timeout_seconds=600)
        for kind, sentence in (("written", written), ("tagged", tagged)):
            for style in styles:
                prompt = Prompt.load(style)
                source = ReasonedSource(
                    "llm", captioner=sentence, reasoner=process.reasoner(reasons=prompt.reasons), prompt=prompt
                )
                sources[f"llm ({style}) of the {kind} caption"] = source
    sources["filter: manual"] = FilterSource(visible)
    scores = {name: Score() for name in ("no cue", *sources)}
    words = find_testable_words(library, classes)
    for trial, caption_seed in trials_of(library, words, scenes=scenes, seed=seed):
        heard = set(trial.heard)
        frame = Frame(trial.picture.image, 0.0)
        seen = Seen.by(pipeline.open_stream(), frame, AudioWindow(trial.samples), tags=True, masks=True)
        visible.names = trial.visible
        written.text = written_caption(trial.picture.words, caption_seed)
        sure = [
            word
            for word, tag in sorted((seen.tags or {}).items(), key=lambda item: -item[1])
            if tag >= tagger.threshold
        ]
        tagged.text = "The image shows " + (", ".join(f"a {word}" for word in sure[:4]) or "nothing") + "."
        moment = CueMoment(frame, tags=seen.tags, predicted=seen.predicted)
        for name, score in scores.items():
            answer = None if name == "no cue" else sources[name].ask(moment)
            score.trials += 1
            score.no_answer += answer is None and name != "no cue"
            if name.startswith("filter"):
                assert seen.labels is not None
                labels = kept_classes(seen.labels, classes, () if answer is None else answer.names)
                offered: set[str] = set(() if answer is None else answer.names)
                accepted = offered
            else:
                cues: Cues = pipeline.cue_names.look_up_answer(answer) if answer else pipeline.cue_table.none()
                found = pipeline.segment(frame, trial.samples, cues)
                labels, offered = found.labels, set(cues.names)
                assert found.cue_gate is not None
                accepted = {cue for cue, gate in zip(cues.names, found.cue_gate, strict=False) if gate > 0}
            score.add_cues("offered", offered, heard)
            score.add_cues("accepted", accepted, heard)
            for word in trial.heard:
                truth = trial.picture.mask_of([word]) > 127
                score.ious.append(compute_iou(labels == 1 + classes.index(word), truth))
    if process is not None:
        process.close()
    return [score.row(name) for name, score in scores.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", type=Path, help="of `teso-deploy export-cues`, with a reasoner")
    parser.add_argument("--prompt", action="append", help="of the reasoner; default: few-shot-direct")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--scenes", type=int, default=50, help="per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    add_out(parser)
    given = parser.parse_args(arguments)
    try:
        bundle = Bundle.open(given.bundle)
        pipeline = Pipeline.load(bundle.folder, threads=given.threads)
        library = read_library(given.data, "test")
        styles = given.prompt or ["few-shot-direct"]
        rows = measure(pipeline, library, models=given.models, styles=styles, scenes=given.scenes, seed=given.seed)
    except TesoError as error:
        print(f"cue-sources: {error}", file=sys.stderr)
        return error.exit_code
    more: dict[str, Any] = {"data": library.fingerprint, "scenes_per_row": given.scenes, "seed": given.seed}
    if given.models is not None and (entry := CueModels.open(given.models).manifest.reasoner) is not None:
        more |= {"reasoner": entry.name, "reasoner_precision": entry.precision}
    report = {
        "schema_version": 1,
        "rows": rows,
        "bound_by": f"Scenes of the rows {', '.join(SOUNDING_ROWS)}. REC#1: cues as offered against what sounds; "
        "REC#2: those that the dynamic mask lets through.",
        "environment": environment_of(given.threads, bundle, **more),
    }
    record(
        f"cue-sources-{bundle.manifest.name}", f"{bundle.manifest.name} by its source of cues", report, out=given.out
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every evaluation protocol, as data. To add one, write a module in this package and an entry here.

The command line, its help texts and the messages all read this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from teso_deploy.errors import InputNotFoundError
from teso_deploy.evaluation.contracts import Answered, EvaluationProtocol, Prediction, Sample, Score
from teso_deploy.named_objects import check_installed, load_object
from teso_deploy.options.clips import ClipOptions
from teso_deploy.pipeline.pipeline import AUTO, Pipeline
from teso_deploy.types import Framing


@dataclass(frozen=True, slots=True)
class ProtocolEntry:
    """How a protocol is made, and what it needs.

    Attributes:
        factory: "module:object". The object is called with the data set's folder and a :class:`ProtocolOptions`, and
            returns an :class:`OpenProtocol`.
        summary: One line that says what is measured.
        data: The data set that it needs, in a user's words.
        cue_ways: The ways to choose cues that ``--cues`` may name; the first is the default.
        modules: Modules of other packages that it imports.
        extra: The extra of this package that installs those modules.
        makes_samples: Whether it makes its samples itself, so that ``--scenes``, ``--seed`` and ``--seeds`` apply.
    """

    factory: str
    summary: str
    data: str
    cue_ways: tuple[str, ...]
    modules: tuple[str, ...] = ()
    extra: str = ""
    makes_samples: bool = False


@dataclass(frozen=True, slots=True)
class ProtocolOptions:
    """The options that a user gives a protocol.

    Attributes:
        classes: The bundle's classes: label k is the k-th.
        samples: How many samples each group has. Only for a protocol that makes its samples itself.
        seed: The first seed of such a protocol.
        seeds: How many seeds, from ``seed`` on.
        clips: Which clips are scored, and with which sounds. Only for a protocol on a data set of clips.
        framing: Where the windows of a clip's sound begin, if ``clips`` does not say it.
        filters_by_cues: Whether cues are not offered, but keep the masks whose class is among them. Only for a
            protocol on a data set of clips.
        skip_bad: Whether samples that can't be read are skipped.
    """

    classes: tuple[str, ...]
    samples: int = 300
    seed: int = 0
    seeds: int = 1
    clips: ClipOptions = field(default_factory=ClipOptions)
    framing: Framing = "per_second"
    filters_by_cues: bool = False
    skip_bad: bool = False


class OpenProtocol(EvaluationProtocol[Any], Protocol):
    """A protocol on a data set that was opened, as the command line uses it. A class of its kind may derive from it.

    Attributes:
        figures: Number → its heading in tables, in order.
        notes: What differs from what was requested, in sentences.
        problems: Why samples were skipped when the data set was opened, in sentences.
    """

    figures: dict[str, str]
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()

    @property
    def data(self) -> str:
        """A description of the opened data, in one line."""

    @property
    def details(self) -> dict[str, Any]:
        """What is scored, for the report. Equal details mean the same trials."""
        return {}

    def make_predictor(self, pipeline: Pipeline, cues: Any) -> Callable[[Any], Prediction]:
        """Make a model under test with cues of one way, or of a :class:`~teso_deploy.cues.tracks.CueFile`.

        A file of cues is checked at once, not after an hour of scoring. Raises :class:`CueError`.
        """

    def describe_sample(self, sample: Sample, answers: Mapping[str, Answered[Any]]) -> Sequence[Mapping[str, Any]]:
        """Return the scores of a sample alone, one line for each condition, ready for JSON."""
        lines = []
        for condition, answered in answers.items():
            metrics = self.metrics(sample.group, condition)
            for metric in metrics:
                metric.add([answered])
            values = {name: value for metric in metrics for name, value in metric.values().items()}
            line = {"clip": sample.name, "group": sample.group, "seed": sample.seed, "condition": condition}
            lines.append({**line, "frames": len(answered), "values": values})
        return lines

    def complete(self, scores: Sequence[Score]) -> list[Score]:
        """Add the numbers that compare scores with each other."""
        return list(scores)

    def describe_row(self, score: Score) -> str:
        """Return the heading of a score's row."""
        return f"{score.group} {score.condition}".strip()

    def report_score(self, score: Score) -> dict[str, Any]:
        """Return a score, ready for JSON."""
        return {
            "row": f"{score.group} {score.condition}".strip(),
            "group": score.group,
            "condition": score.condition,
            "samples": score.samples,
            "frames": score.frames,
            "values": dict(score.values),
            "class_values": {name: dict(by_class) for name, by_class in score.class_values.items()},
            "seeds": list(score.seeds),
            "spread": dict(score.spread),
        }


_HERE = "teso_deploy.evaluation.protocols"
DEFAULT_PROTOCOL = "composed-scenes"
_CLIPS = "a data set of clips"
PROTOCOLS: dict[str, ProtocolEntry] = {
    DEFAULT_PROTOCOL: ProtocolEntry(
        f"{_HERE}.composed_scenes:open_composed_scenes",
        "scenes composed of held-out media: sources, distractors, silence, noise, swapped sounds",
        "a folder of pictures and sounds with a split.csv",
        ("visible", AUTO, "none", "wrong"),
        makes_samples=True,
    ),
    **{
        name: ProtocolEntry(f"{_HERE}.clips:open_{name.replace('-', '_')}", summary, _CLIPS, ("auto", "labels", "none"))
        for name, summary in {
            "avsbench": "binary masks as AVSBench scores them, at 224 × 224",
            "gewu": "binary masks as GAVS, Ref-AVS and TeSO score them, at 256 × 256 and in batches of 4 clips",
            "combo": "binary masks as COMBO scores them",
            "dataset-micro": "binary masks, with the pixels of all clips added up",
            "avss": "masks of the 71 classes of AVSBench-semantic, at 224 × 224",
        }.items()
    },
}


def find_protocol(name: str) -> ProtocolEntry:
    """Return the entry of a protocol. Nothing is imported.

    Raises :class:`InputNotFoundError` for an unknown name, :class:`MissingExtraError` for a package that is not
    installed.
    """
    if name not in PROTOCOLS:
        raise InputNotFoundError(f"unknown protocol {name!r}: name one of {', '.join(PROTOCOLS)}")
    entry = PROTOCOLS[name]
    check_installed(f"the protocol {name}", entry.modules, entry.extra)
    return entry


def open_protocol(name: str, folder: Path, options: ProtocolOptions) -> OpenProtocol:
    """Open a protocol on a data set.

    Args:
        name: Its name in the registry.
        folder: The data set.
        options: The user's options.

    Raises:
        InputNotFoundError: An unknown name, or no such folder.
        MissingExtraError: The protocol needs a package that is not installed.
        DataError: The folder is not such a data set, or is damaged.
    """
    opened: OpenProtocol = load_object(find_protocol(name).factory)(folder, options)
    return opened

"""The published protocols on data sets of clips: ``avsbench``, ``gewu``, ``combo``, ``dataset-micro`` and ``avss``.

Each clip is scored with its own sound and with any other conditions, all from one look at each frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from teso_deploy.cues.tracks import CueFile
from teso_deploy.errors import CueError, DataError
from teso_deploy.evaluation.clip_metrics import (
    BinaryMasks,
    CueNames,
    FalseMasks,
    FrameAccuracy,
    NumbersOfClips,
    SemanticMasks,
    TrueMasks,
    WordIous,
)
from teso_deploy.evaluation.clip_predictor import (
    ClipPredictor,
    check_clip_cues,
    check_cue_way,
    look_up_labels,
    match_classes,
)
from teso_deploy.evaluation.clip_trials import ClipReader, ClipTrial
from teso_deploy.evaluation.conditions import NORMAL, Condition, Partners, list_conditions
from teso_deploy.evaluation.contracts import Answered, Metric, Sample, Score
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.datasets.contracts import SUBSETS, VideoSample
from teso_deploy.evaluation.datasets.reading import detect_layout, load_mask, read_dataset, spread_evenly
from teso_deploy.evaluation.datasets.registry import Layout, find_layout, load_layout
from teso_deploy.evaluation.datasets.words import find_broad_class, list_class_words
from teso_deploy.evaluation.filtering_predictor import FilteringPredictor
from teso_deploy.evaluation.metrics import BINARY_DEFINITIONS, BinaryDefinition, combine_auc
from teso_deploy.evaluation.protocols.registry import OpenProtocol, ProtocolOptions
from teso_deploy.options.clips import ClipOptions
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.types import Framing, get_hop_seconds

#: Word → the class of AVSS for the same thing.
SYNONYMS = {"chicken": "hen", "drum kit": "drum", "electric guitar": "guitar", "motorbike": "motorcycle"}
#: Number → its heading in tables.
FIGURES = {
    "miou": "mIoU",
    "f_score": "F",
    "miou_drop": "Δ mIoU",
    "f_score_drop": "Δ F",
    "blank_rate": "blank",
    "fpr": "FPR",
    "s": "S",
    "auc_n": "AUC_N",
}
_SEMANTIC_FIGURES = {"fsla_n": "FSLA-n", "fsla_s": "FSLA-s", "fsla_m": "FSLA-m"}
_UNBIASED_FIGURES = {"unbiased_miou": "mIoU, unbiased", "unbiased_f_score": "F, unbiased"}
_MISTAKEN_FIGURES = {"miou_no_bg": "mIoU [:-1]", "f_score_no_bg": "F [:-1]"}
_DROPPING = ("miou", "f_score")
#: Between a condition and a number: the number with the clips' own sounds, of the clips that have the condition.
_PART_OF = ": "


class ClipProtocol(OpenProtocol):
    """A published protocol on a data set.

    Args:
        definition: How binary masks are scored; None: the masks have the classes of AVSS.
        clips: The clips, in the order of the data set's table.
        layout: Their layout.
        options: The user's options.

    Attributes:
        conditions: The sounds that clips are scored with.
        notes: What differs from what was requested, in sentences.
    """

    def __init__(
        self,
        definition: BinaryDefinition | None,
        clips: Sequence[VideoSample],
        *,
        layout: Layout,
        options: ProtocolOptions,
    ) -> None:
        self._definition, self._clips, self._layout = definition, clips, layout
        self._options = options
        self.name = "avss" if definition is None else definition.name
        self.samples_per_batch = 1 if definition is None else definition.videos_per_batch
        self.notes: list[str] = []
        self._words = {clip.uid: tuple(list_class_words(clip, layout)) for clip in clips}
        self._partners = Partners(self._words, find_broad_class)
        #: Condition → the clips that have it, if not all of them do.
        self._clips_with: dict[str, frozenset[str]] = {}
        chosen = options.clips
        self._scored = spread_evenly(clips, chosen.clips)
        self.conditions = self._keep_possible(
            list_conditions(
                chosen.condition,
                noise_dbfs=chosen.noise_dbfs,
                noise_dbw=chosen.noise_dbw,
                noise_snr=chosen.noise_snr,
            )
        )
        self._reader = ClipReader(
            clips,
            layout=layout,
            kind="semantic" if definition is None else "binary",
            conditions=self.conditions,
            partners=self._partners,
            words=self._words,
            hop_seconds=get_hop_seconds(self.framing),
        )
        self.figures = dict(FIGURES)
        if definition is None:
            self.figures |= _SEMANTIC_FIGURES
        if chosen.unbiased:
            self.figures |= _UNBIASED_FIGURES
        if chosen.mistakes:
            self.figures |= _MISTAKEN_FIGURES

    def _keep_possible(self, conditions: Sequence[Condition]) -> tuple[Condition, ...]:
        """Remove conditions that no clip has a partner for. Raises :class:`DataError` if the user named one.

        A condition that only some clips have a partner for is kept, and a note says so.
        """
        kept = []
        for condition in conditions:
            clips = self._scored if condition.needs_partner else ()
            found = [clip.uid for clip in clips if self._partners.choose(condition, clip.uid) is not None]
            if found or not clips:
                kept.append(condition)
                if len(found) < len(clips):
                    self._clips_with[condition.name] = frozenset(found)
                    self.notes.append(
                        f"only {len(found)} of {len(clips)} clips have a partner for the condition {condition.name!r}: "
                        "its drops compare these clips alone"
                    )
                continue
            has_words = any(self._words.values())
            why = "no clip has a partner" if has_words else f"{self._layout} does not say what sounds in a clip"
            if condition.kind in self._options.clips.condition:
                raise DataError(f"the condition {condition.name!r} can't be made, because {why}: omit it")
            self.notes.append(f"without the condition {condition.name!r}, because {why}")
        return tuple(kept)

    @property
    def framing(self) -> Framing:
        """Where the windows of a clip's sound begin."""
        return self._options.clips.framing or self._options.framing

    @property
    def group(self) -> str:
        """The name of the clips that are scored together: the subset, or the layout if it has several."""
        subsets = {clip.subset for clip in self._clips}
        return subsets.pop() if len(subsets) == 1 else self._layout

    @property
    def data(self) -> str:
        """The layout, the split and how many clips it has."""
        return f"{self.group} {self._options.clips.split}, {len(self._scored)} clips"

    @property
    def details(self) -> dict[str, Any]:
        """What was scored, for the report."""
        return {
            "layout": self._layout,
            "split": self._options.clips.split,
            "clips": len(self._scored),
            "framing": self.framing,
            **({"filters_by_cues": True} if self._options.filters_by_cues else {}),
            "conditions": {condition.name: condition.summary for condition in self.conditions},
            "fingerprint": self.fingerprint,
            "notes": list(self.notes),
        }

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the clips' names and categories, and of the sizes of their files."""
        digest = hashlib.sha256()
        for clip in self._clips:  # also those that are not scored: their sounds may replace those of others
            files = [*clip.frames, *(mask for mask in clip.masks if mask is not None), clip.audio]
            digest.update(f"{clip.uid} {clip.category} {[path.stat().st_size for path in files]}\n".encode())
        return digest.hexdigest()

    def count_samples(self) -> int:
        """The clips."""
        return len(self._scored)

    def samples(self) -> Iterator[Sample]:
        """All clips, in the order of the data set's table."""
        group = self.group
        for clip in self._scored:
            yield Sample(clip.uid, group, content=clip)

    def trials(self, sample: Sample) -> Iterator[ClipTrial]:
        """Each labelled frame of a clip with each sound. Raises what :meth:`ClipReader.read` raises."""
        return self._reader.read(sample.content)

    def metrics(self, group: str, condition: str) -> list[Metric[ClipTrial]]:
        """Return the published numbers, and those that belong to the condition."""
        threshold = None if self._definition is None else self._definition.threshold
        is_negative = load_layout(self._layout).is_negative or next(
            one.is_negative for one in self.conditions if one.name == condition
        )
        masks: list[Metric[ClipTrial]] = [FalseMasks(threshold) if is_negative else TrueMasks(threshold)]
        if condition == NORMAL.name and any(self._words.values()):
            masks.append(CueNames())
        if condition == NORMAL.name:
            for name, clips in self._clips_with.items():
                masks.append(NumbersOfClips(self._make_masks(), clips, f"{name}{_PART_OF}"))
        if self._definition is not None:
            words = sorted({word for words in self._words.values() for word in words})
            return [self._make_masks(), WordIous(self._definition, words), *masks]
        return [self._make_masks(), *masks, FrameAccuracy()]

    def _make_masks(self) -> BinaryMasks | SemanticMasks:
        if self._definition is not None:
            return BinaryMasks(self._definition)
        return SemanticMasks(("background", *list_avss_classes()), mistakes=self._options.clips.mistakes)

    def make_predictor(self, pipeline: Pipeline, cues: str | CueFile) -> ClipPredictor:
        """Make a model under test, with cues chosen in one of the registry's ``cue_ways`` or read from a file.

        Raises :class:`CueError` for words without an embedding, for clips that the file lacks, and for labels as cues
        if the data set has none. Raises :class:`DataError` if the bundle has other classes than the data set.
        """
        if isinstance(cues, CueFile):
            check_clip_cues(cues, self._scored, pipeline)
        else:
            cues = check_cue_way(cues)
            if cues == "labels" and pipeline.program.takes("cues"):
                self._check_labels(pipeline)
        make = FilteringPredictor if self._options.filters_by_cues else ClipPredictor
        if self._definition is not None:
            return make(pipeline, cues, size=self._definition.size)
        name = pipeline.bundle.manifest.name
        numbers, lost = match_classes(
            pipeline.classes,
            list_avss_classes(),
            bundle=name,
            synonyms=SYNONYMS,
            skip_bad=self._options.skip_bad,
        )
        if lost:
            self.notes.append(f"{name}'s classes {', '.join(lost)} are scored as background")
        return make(pipeline, cues, classes=numbers)

    def _check_labels(self, pipeline: Pipeline) -> None:
        """Note labels that can't be cues. Raises :class:`CueError` if the data set has no labels."""
        words = sorted({word for clip in self._scored for word in self._words[clip.uid]})
        if not words:
            raise CueError(f"{self._layout} does not say what sounds in a clip: give --cues auto or --cues-file")
        if lost := [word for word in words if not look_up_labels(pipeline, [word]).names]:
            name = pipeline.bundle.manifest.name
            self.notes.append(
                f"{name} has no embedding for the labels {', '.join(lost)}, which are not offered as cues"
            )

    def describe_sample(self, sample: Sample, answers: Mapping[str, Answered[ClipTrial]]) -> list[dict[str, Any]]:
        """Return the scores of a clip alone, with its words and the sums over its frames by class."""
        lines = []
        for line in super().describe_sample(sample, answers):
            sums: dict[str, Any] = {}
            masks = self._make_masks()
            if isinstance(masks, SemanticMasks):
                masks.add([answers[line["condition"]]])
                sums = masks.class_sums()
            values = {
                name: value
                for name, value in line["values"].items()
                if name not in _MISTAKEN_FIGURES and _PART_OF not in name
            }
            lines.append({**line, "values": values, "words": self._words[sample.name], **sums})
        return lines

    def complete(self, scores: Sequence[Score]) -> list[Score]:
        """Add the numbers that compare conditions: relative drops, and ``f_auc`` of normal and negative sounds."""
        normal = next((score for score in scores if score.condition == NORMAL.name), None)
        if normal is None:
            return list(scores)
        completed = []
        for score in scores:
            values = {name: value for name, value in score.values.items() if _PART_OF not in name}
            prefix = f"{score.condition}{_PART_OF}" if score.condition in self._clips_with else ""
            for name in _DROPPING:
                values[f"{name}_drop"] = compute_drop(normal.values.get(prefix + name), values.get(name))
            if score is normal:
                values["miou_drop"] = values["f_score_drop"] = None
                values["f_auc"] = self._combine_auc(scores, normal)
            completed.append(replace(score, values=values))
        return completed

    def _combine_auc(self, scores: Sequence[Score], normal: Score) -> float | None:
        """Combine the AUC of the clips' own sounds with AUC_N of silence, noise and off-screen sounds, if all are."""
        by_kind: dict[str, list[float]] = {"muted": [], "noise": [], "off-screen": []}
        kinds = {condition.name: condition.kind for condition in self.conditions}
        for score in scores:
            value = score.values.get("auc_n")
            if value is not None and kinds[score.condition] in by_kind:
                by_kind[kinds[score.condition]].append(value)
        auc = normal.values.get("auc")
        if auc is None or not all(by_kind.values()):
            return None
        return combine_auc(auc, [float(np.mean(values)) for values in by_kind.values()])

    def describe_row(self, score: Score) -> str:
        """Name the condition."""
        return score.condition


def compute_drop(normal: float | None, value: float | None) -> float | None:
    """Return by which share of its normal value a number fell.

    >>> compute_drop(0.5, 0.25)
    0.5
    """
    return None if normal is None or value is None or normal == 0 else (normal - value) / normal


def _open_clips(definition: BinaryDefinition | None, root: Path, options: ProtocolOptions) -> ClipProtocol:
    chosen = options.clips
    layout = detect_layout(root) if chosen.layout is None else find_layout(chosen.layout)
    _refuse_ignored_options(definition, layout, chosen)
    problems: list[str] = []
    clips = read_dataset(
        root,
        layout,
        chosen.split,  # type: ignore[arg-type]
        subsets=chosen.subset or SUBSETS,
        on_problem=problems.append if options.skip_bad else None,
    )
    if definition is None and not options.skip_bad:  # refuse binary masks now, not at the first clip
        load_mask(next(mask for mask in clips[0].masks if mask is not None), layout, "semantic")
    protocol = ClipProtocol(definition, clips, layout=layout, options=options)
    protocol.problems = problems
    return protocol


def _refuse_ignored_options(definition: BinaryDefinition | None, layout: Layout, chosen: ClipOptions) -> None:
    """Raise :class:`DataError` for options that this protocol or layout would ignore."""
    if definition is not None and chosen.mistakes:
        raise DataError("--mistakes is for the protocol avss: omit it")
    subsets = load_layout(layout).subsets
    if lost := [subset for subset in chosen.subset if subset in SUBSETS and subset not in subsets]:
        raise DataError(f"the layout {layout} has no subset {lost[0]}: it has {', '.join(subsets)}, omit --subset")


def _make_opener(definition: BinaryDefinition | None) -> Callable[[Path, ProtocolOptions], ClipProtocol]:
    return lambda root, options: _open_clips(definition, root, options)


open_avsbench, open_gewu, open_combo, open_dataset_micro = map(_make_opener, BINARY_DEFINITIONS.values())
open_avss = _make_opener(None)

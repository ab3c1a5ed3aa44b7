"""Make the rows of a figure: choose clips and frames, run bundles on them, and draw what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from teso_deploy.cues.tracks import CueFile
from teso_deploy.errors import DataError
from teso_deploy.evaluation.clip_predictor import ClipCueWay, ClipPredictor, check_clip_cues, match_classes
from teso_deploy.evaluation.clip_trials import ClipReader, ClipTrial
from teso_deploy.evaluation.conditions import Partners
from teso_deploy.evaluation.contact_sheet import Picture, SheetRow, draw_labels, draw_mask, fit_picture
from teso_deploy.evaluation.datasets.avss import list_avss_classes
from teso_deploy.evaluation.datasets.contracts import VideoSample
from teso_deploy.evaluation.datasets.reading import load_mask, spread_evenly
from teso_deploy.evaluation.datasets.registry import Layout
from teso_deploy.evaluation.datasets.words import find_broad_class, list_class_words
from teso_deploy.evaluation.figures import FigureColumn, FigureEntry
from teso_deploy.evaluation.protocols.clips import SYNONYMS
from teso_deploy.media.heat_map import draw_heat_map
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.types import Framing, get_hop_seconds


def choose_clips(clips: Sequence[VideoSample], count: int) -> list[VideoSample]:
    """Choose clips that are spread over subsets and categories, in the order of the data set's table.

    The choice depends only on the table. Each subset gives as many as the others if it has them. Each category gives
    its first clip before any gives its second.

    Args:
        clips: All clips.
        count: How many to choose.

    Returns:
        At most ``count`` clips.
    """
    subsets: dict[str, dict[str, list[int]]] = {}
    for number, clip in enumerate(clips):
        subsets.setdefault(clip.subset, {}).setdefault(clip.category, []).append(number)
    chosen: list[int] = []
    # The smallest subset first: what it lacks is taken from the others.
    ordered = sorted(subsets.values(), key=lambda categories: sum(map(len, categories.values())))
    for rank, categories in enumerate(ordered):
        chosen += _choose_of_subset(list(categories.values()), (count - len(chosen)) // (len(ordered) - rank))
    return [clips[number] for number in sorted(chosen)]


def _choose_of_subset(categories: list[list[int]], count: int) -> list[int]:
    if len(categories) == 1:
        return spread_evenly(categories[0], count)
    chosen: list[int] = []
    while categories and len(chosen) < count:
        chosen += [numbers.pop(0) for numbers in spread_evenly(categories, count - len(chosen))]
        categories = [numbers for numbers in categories if numbers]
    return chosen


def find_clips(clips: Sequence[VideoSample], uids: Sequence[str]) -> list[VideoSample]:
    """Return the clips of these names, in this order. Raises :class:`DataError` for an unknown name."""
    by_uid = {clip.uid: clip for clip in clips}
    for uid in uids:
        if uid not in by_uid:
            known = ", ".join(list(by_uid)[:3])
            raise DataError(f"unknown clip {uid!r} among {len(by_uid)}: name one such as {known}")
    return [by_uid[uid] for uid in dict.fromkeys(uids)]


def choose_frame(clip: VideoSample, layout: Layout) -> int:
    """Return the number of the frame whose mask is the largest. Raises :class:`DataError` for a damaged mask."""
    areas = [-1 if mask is None else int(np.count_nonzero(load_mask(mask, layout, "binary"))) for mask in clip.masks]
    return areas.index(max(areas))


@dataclass
class _Row:
    """A row that is being made. ``cues``: those that the first bundle was offered; None if it takes none."""

    clip: VideoSample
    frame: int
    pictures: list[tuple[str, Picture]] = field(default_factory=list)
    cues: tuple[str, ...] | None = None


class FigureMaker:
    """Makes the rows of a figure, one bundle after the other, so that only one is in memory.

    Args:
        figure: The figure.
        clips: The clips that are shown.
        layout: Their layout.
        framing: How the sound is cut into windows. Default: as each bundle says.

    Attributes:
        notes: What is missing in the figure, in sentences.
    """

    def __init__(
        self, figure: FigureEntry, clips: Sequence[VideoSample], *, layout: Layout, framing: Framing | None = None
    ) -> None:
        self.figure, self.notes = figure, list[str]()
        self._clips, self._layout, self._framing = clips, layout, framing
        self._words = {clip.uid: list_class_words(clip, layout) for clip in clips}
        self._rows = [_Row(clip, choose_frame(clip, layout)) for clip in clips]
        self._labels: set[int] = set()

    def _make_reader(self, framing: Framing) -> ClipReader:
        return ClipReader(
            self._clips,
            layout=self._layout,
            kind=self.figure.kind,
            conditions=tuple(dict.fromkeys(column.condition for column in self.figure.columns)),
            partners=Partners({}, find_broad_class),
            words=self._words,
            hop_seconds=get_hop_seconds(framing),
        )

    def add_truth(self) -> None:
        """Add the columns with the pictures and their true masks. Raises what :meth:`ClipReader.read` raises."""
        reader = self._make_reader("per_second")
        for row in self._rows:
            trial = next(trial for trial in reader.read(row.clip) if trial.frame == row.frame)
            row.pictures.append(("picture", fit_picture(trial.image)))
            row.pictures.append(("truth", self._draw_masks(trial.image, trial.truth)))

    def add_bundle(
        self, name: str, pipeline: Pipeline, cues: ClipCueWay | CueFile, *, on_clip: Callable[[], None] = lambda: None
    ) -> None:
        """Add the columns of a bundle.

        Args:
            name: The name that is shown.
            pipeline: The bundle.
            cues: How cues are chosen, see :class:`ClipPredictor`.
            on_clip: Called after each clip. Default: nothing is called.

        Raises:
            CueError: A clip has no cues in the file, or the bundle does not know a word.
            DataError: A picture or a mask is damaged, or the bundle has none of the data set's classes.
            InputNotFoundError: A file is missing.
            MediaError: A sound can't be decoded.
        """
        takes_cues = pipeline.program.takes("cues")
        if isinstance(cues, CueFile) and takes_cues:
            check_clip_cues(cues, self._clips, pipeline)
        columns = [column for column in self.figure.columns if column.has_cues or takes_cues]
        numbers = self._match_classes(name, pipeline) if self.figure.kind == "semantic" else None
        predictors = {True: ClipPredictor(pipeline, cues, classes=numbers)}
        if not all(column.has_cues for column in columns):
            predictors[False] = ClipPredictor(pipeline, "none", classes=numbers)
        reader = self._make_reader(self._framing or pipeline.bundle.manifest.audio.framing)
        looks_back = bool(pipeline.program.past_frames or pipeline.program.past_windows)
        for row in self._rows:
            for column, trial in _list_trials(reader, row, columns, looks_back=looks_back):
                predict = predictors[column.has_cues]
                if trial.frame != row.frame:  # a past that the model looks back at
                    predict(trial)
                    continue
                heading = f"{name}: {column.heading}" if column.heading else name
                row.pictures.append((heading, self._draw(column, trial, predict)))
                if column.has_cues and row.cues is None and takes_cues:
                    offered = predict(trial).cues
                    row.cues = None if offered is None else offered.names
            on_clip()

    def _match_classes(self, name: str, pipeline: Pipeline) -> list[int]:
        wanted = list_avss_classes()
        try:
            numbers, lost = match_classes(pipeline.classes, wanted, bundle=name, synonyms=SYNONYMS, skip_bad=True)
        except DataError as error:
            raise DataError(
                f"no class of {name} is a class of the data set: choose a figure without classes"
            ) from error
        if lost:
            self.notes.append(f"{name}'s classes {', '.join(lost)} are not in the data set and are not drawn")
        return numbers

    def _draw(self, column: FigureColumn, trial: ClipTrial, predict: ClipPredictor) -> Picture:
        if not column.is_heat_map:
            return self._draw_masks(trial.image, predict(trial).labels)
        found = predict.segment(trial)
        return fit_picture(draw_heat_map(trial.image, found.sounding_probability, found.labels))

    def _draw_masks(self, image: Picture, labels: Picture) -> Picture:
        if self.figure.kind == "binary":
            return fit_picture(draw_mask(image, labels))
        self._labels |= set(np.unique(labels).tolist()) - {0}
        return fit_picture(draw_labels(image, labels))

    def make_rows(self) -> list[SheetRow]:
        """Return the rows, each with the clip, its words and its cues as title."""
        return [SheetRow(self._describe(row), row.pictures) for row in self._rows]

    def _describe(self, row: _Row) -> str:
        parts = [f"{row.clip.uid}, frame {row.frame + 1}"]
        if words := self._words[row.clip.uid]:
            parts.append(f"labelled {', '.join(words)}")
        if row.cues is not None:
            parts.append(f"cues {', '.join(row.cues)}" if row.cues else "no cues")
        return "  ·  ".join(parts)

    def make_legend(self) -> dict[int, str]:
        """Return the classes that are drawn anywhere, by their numbers; empty if masks have one colour."""
        names = list_avss_classes()
        return {label: names[label - 1] for label in sorted(self._labels)}

    def report(self) -> list[dict[str, object]]:
        """Return what is shown of each clip, ready for JSON."""
        return [
            {
                "clip": row.clip.uid,
                "subset": row.clip.subset,
                "frame": row.frame,
                "words": list(self._words[row.clip.uid]),
                "cues": list(row.cues or ()),
                "columns": [heading for heading, _ in row.pictures],
            }
            for row in self._rows
        ]


def _list_trials(
    reader: ClipReader, row: _Row, columns: Sequence[FigureColumn], *, looks_back: bool
) -> Iterator[tuple[FigureColumn, ClipTrial]]:
    """Yield each column with the trial of the row's frame; before it with those of earlier frames, if needed."""
    trials: dict[tuple[int, str], ClipTrial] = {}
    for trial in reader.read(row.clip):
        if trial.frame > row.frame:
            break
        if trial.frame == row.frame or looks_back:
            trials[trial.frame, trial.condition] = trial
    for number in sorted({frame for frame, _ in trials}):
        for column in columns:
            yield column, trials[number, column.condition.name]

"""Masks as COCO run lengths, a JSON line for each result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery
from teso_deploy.sinks.json_lines import JsonLines


def encode_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's run lengths of a mask (H, W): column by column, zeros first, uncompressed.

    >>> encode_runs(np.array([[False, True], [True, True]]))
    [1, 3]
    """
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size])))
    found: list[int] = counts.tolist()
    return [0, *found] if flat.size and flat[0] else found


def make_mask_line(delivery: Delivery, classes: Sequence[str]) -> dict[str, Any]:
    """Return the content of a JSON line: the frame, and each sounding class with its mask."""
    found = delivery.segmentation
    present = (np.flatnonzero(np.bincount(found.labels.ravel(), minlength=len(classes) + 1)[1:]) + 1).tolist()
    return {
        "stream": delivery.stream,
        "index": delivery.frame.index,
        "segment": delivery.frame.segment,
        "pts_seconds": round(found.pts_seconds, 6),
        "shown_at_seconds": round(delivery.shown_at_seconds, 6),
        "cause": delivery.cause,
        "audio_end_seconds": None if delivery.audio_end_seconds is None else round(delivery.audio_end_seconds, 6),
        "audio_is_silent": found.audio_is_silent,
        "cues": None
        if (cues := found.cues) is None
        else {"names": list(cues.names), "source": cues.source, "age_seconds": cues.age_seconds},
        "objects": [
            {
                "name": classes[label - 1],
                "score": round(min(1.0, float(found.class_scores[label - 1])), 4),
                "segmentation": {"size": list(found.labels.shape), "counts": encode_runs(found.labels == label)},
            }
            for label in present
        ],
    }


class MaskLinesSink(Sink):
    """Writes :func:`make_mask_line` of each result to a file of JSON lines. Raises :class:`OutputError`."""

    def __init__(self, path: Path, run: RunFacts) -> None:
        self.name, self._classes = path.name, run.classes
        self._lines = JsonLines(path, run.kind)

    def append(self, delivery: Delivery) -> None:
        self._lines.write(make_mask_line(delivery, self._classes))

    def close(self) -> None:
        self._lines.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)

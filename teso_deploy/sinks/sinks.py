"""Where results of a live run go. Each sink has a thread and a queue of its own: a slow one holds nobody up."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from teso_deploy.errors import OutputError, TesoError
from teso_deploy.media.audio import Sound
from teso_deploy.media.mask_folder import open_mask_folder
from teso_deploy.media.overlay import RollingOverlay, save_mask
from teso_deploy.media.writer import VideoWriter
from teso_deploy.outputs import explained, open_growing
from teso_deploy.sinks.delivery import Delivery
from teso_deploy.sinks.events import Event, EventLog
from teso_deploy.text import escape_hidden, replace_undecodable

#: Results that wait for a sink; of a live run the oldest gives way.
MOST_WAITING = 16
#: How long the end of a run waits for a sink to finish.
CLOSE_SECONDS = 20.0


class Sink(Protocol):
    """Takes results, in one thread; ``name`` for people, without credentials."""

    name: str

    def take(self, delivery: Delivery) -> None:
        """One result, in order. Raises :class:`TesoError` where it can take no more."""

    def close(self) -> None:
        """Finish what was begun."""


class Outbox:
    """Hands results to a sink in a thread of its own.

    Of a live run the oldest that wait give way, and are counted; ``lossless``: :meth:`put` waits. A sink that raises
    is closed and named in :attr:`error`; the run goes on without it.
    """

    def __init__(self, sink: Sink, lossless: bool = False, most_waiting: int = MOST_WAITING) -> None:
        self.sink, self.name, self._lossless, self._most = sink, sink.name, lossless, most_waiting
        self.error: TesoError | None = None
        self.delivered = self.dropped = 0
        self._waiting: deque[Delivery] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"teso-sink-{self.name}", daemon=True)

    def start(self) -> None:
        """Begin to hand over."""
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Leave a result."""
        with self._changed:
            if self._lossless:
                self._changed.wait_for(lambda: self.error or self._closing or len(self._waiting) < self._most)
            if self.error is not None or self._closing:
                self.dropped += 1
                return
            if len(self._waiting) >= self._most:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(delivery)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closing)
                    if not self._waiting:
                        break
                    delivery = self._waiting.popleft()
                    self._changed.notify_all()
                self.sink.take(delivery)
                self.delivered += 1
        except Exception as error:  # a callback of the user's may raise anything
            self._fail(error)
        try:
            self.sink.close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            if self.error is None:
                told = f"{self.name} failed ({type(error).__name__}: {error}): nothing more goes there"
                self.error = error if isinstance(error, TesoError) else OutputError(told)
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Hand over what waits and finish, in time or without it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._fail(OutputError(f"{self.name} did not finish within {timeout_seconds:g} s: what waited is lost"))

    def health(self) -> dict[str, Any]:
        """For reports."""
        error = None if self.error is None else str(self.error)
        return {"delivered": self.delivered, "dropped": self.dropped, "error": error}


class OverlaySink:
    """An annotated video of one stream with its sound, H.264 and AAC, that can be played while it grows.

    A new window of sound, or new cues, show in the last picture again. ``fps``: expected, 0 where unknown.
    """

    def __init__(self, path: Path, classes: Sequence[str], sound: Sound | None = None, fps: float = 0.0) -> None:
        self.name, self._path, self._sound, self._fps = path.name, path, sound, fps or 25.0
        self._overlay = RollingOverlay(classes, sound)
        self._writer: VideoWriter | None = None
        self._size = (0, 0)

    def take(self, delivery: Delivery) -> None:
        """See :class:`Sink`."""
        image = self._overlay.draw(delivery.frame, delivery.segmentation)
        size = (image.shape[1], image.shape[0])
        if self._writer is None:
            self._size = size
            self._writer = VideoWriter(self._path, *size, self._fps, self._sound, is_growing=True)
            self._writer.__enter__()
        if size != self._size:  # the source changed its size on the way, which is no error
            image = np.asarray(Image.fromarray(image).resize(self._size, Image.Resampling.BILINEAR))
        self._writer.write(image, delivery.shown_at_seconds)

    def close(self) -> None:
        """See :class:`Sink`."""
        if self._writer is not None:
            self._writer.__exit__(None, None, None)


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's run lengths of a mask (H, W): column by column, zeros first, uncompressed."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size])))
    found: list[int] = counts.tolist()
    return [0, *found] if flat.size and flat[0] else found


def mask_line(delivery: Delivery, classes: Sequence[str]) -> dict[str, Any]:
    """A result as a JSON line: what it is of, and each class that sounds with its mask as COCO RLE."""
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
        "cues": {"names": list(found.cues.names), "source": found.cues.source, "age_seconds": found.cues.age_seconds},
        "objects": [
            {
                "name": classes[label - 1],
                "score": round(min(1.0, float(found.class_scores[label - 1])), 4),
                "segmentation": {"size": list(found.labels.shape), "counts": run_lengths(found.labels == label)},
            }
            for label in present
        ],
    }


class _LineFile:
    """A text file of JSON lines, each there as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, open_growing(path)

    def write(self, line: object) -> None:
        with explained(self._path):
            self._file.write(escape_hidden(replace_undecodable(json.dumps(line, ensure_ascii=False))).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        with explained(self._path):
            self._file.close()


class MaskLinesSink:
    """Masks as COCO RLE in JSON lines, see :func:`mask_line`. Raises :class:`OutputError`."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self.name, self._classes, self._lines = path.name, tuple(classes), _LineFile(path)

    def take(self, delivery: Delivery) -> None:
        """See :class:`Sink`."""
        self._lines.write(mask_line(delivery, self._classes))

    def close(self) -> None:
        """See :class:`Sink`."""
        self._lines.close()


class MaskFolderSink:
    """Masks as ``{index:06d}.png`` in a folder, the latest of each picture; earlier runs' masks are replaced.

    ``marker``: what its ``masks.json`` says, see :func:`describe_masks`. Raises :class:`OutputError`, also for a
    folder that holds anything else.
    """

    def __init__(self, folder: Path, marker: dict[str, Any]) -> None:
        self.name, self._folder = folder.name, open_mask_folder(folder, marker)

    def take(self, delivery: Delivery) -> None:
        """See :class:`Sink`."""
        save_mask(self._folder / f"{delivery.frame.index:06d}.png", delivery.segmentation.labels)

    def close(self) -> None:
        """See :class:`Sink`."""


class EventSink:
    """JSON lines as it happens: ``{"event": "onset", …}`` when a class begins to sound, ``"end"`` when it has ceased.

    ``inputs``: the streams' names. Raises :class:`OutputError`.
    """

    def __init__(self, path: Path, classes: Sequence[str], inputs: Sequence[str]) -> None:
        self.name, self._inputs, self._lines = path.name, tuple(inputs), _LineFile(path)
        self._logs = [EventLog(classes) for _ in inputs]

    def take(self, delivery: Delivery) -> None:
        """See :class:`Sink`."""
        log, before = self._logs[delivery.stream], set(self._logs[delivery.stream].open_names)
        for event in log.add(delivery.segmentation, at_seconds=delivery.shown_at_seconds):
            before.discard(event.name)
            self._end(delivery.stream, event)
        for name, onset in log.open_names.items():
            if name not in before:
                line = {"event": "onset", "input": self._inputs[delivery.stream], "name": name}
                self._lines.write({**line, "onset_seconds": round(onset, 6)})

    def _end(self, stream: int, event: Event) -> None:
        self._lines.write({"event": "end", "input": self._inputs[stream], **event.as_dict()})

    def close(self) -> None:
        """See :class:`Sink`."""
        for stream, log in enumerate(self._logs):
            for event in log.finish():
                self._end(stream, event)
        self._lines.close()


class CallbackSink:
    """Calls a function with every result."""

    def __init__(self, callback: Callable[[Delivery], None], name: str = "callback") -> None:
        self.name, self._callback = name, callback

    def take(self, delivery: Delivery) -> None:
        """See :class:`Sink`."""
        self._callback(delivery)

    def close(self) -> None:
        """See :class:`Sink`."""

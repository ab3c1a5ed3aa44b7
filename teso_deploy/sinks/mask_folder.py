"""Masks as numbered PNGs in a folder."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from teso_deploy.media.mask_folder import describe_masks, open_mask_folder, open_staged_mask_folder
from teso_deploy.media.overlay import save_mask
from teso_deploy.sinks.contracts import RunFacts, Sink
from teso_deploy.sinks.delivery import Delivery


class MaskFolderSink(Sink):
    """Writes the masks of one input as ``{index:06d}.png``. Masks of an earlier run are replaced.

    For a file, the folder is replaced when all masks are written. For a stream, the folder is emptied at the start, and
    a later result for a frame replaces the earlier one. Raises :class:`OutputError`, also if the folder contains
    anything other than masks.
    """

    def __init__(self, folder: Path, run: RunFacts) -> None:
        self.name, self._path, self._stack = folder.name, folder, ExitStack()
        marker = describe_masks(run.classes, run.inputs[0], run.bundle)
        if run.kind == "files":
            self._folder = self._stack.enter_context(open_staged_mask_folder(folder, marker))
        else:
            self._folder = open_mask_folder(folder, marker)

    def append(self, delivery: Delivery) -> None:
        name = f"{delivery.frame.index:06d}.png"
        save_mask(self._folder / name, delivery.segmentation.labels, shown=self._path)

    def close(self) -> None:
        self._stack.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

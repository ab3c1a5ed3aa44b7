"""Distributes test files to several processes."""

from __future__ import annotations

from collections.abc import Collection

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests.support.tiers import UNKNOWN_SECONDS, load_tiers


def choose_file(files: Collection[str], prefers_waiting: bool) -> str:
    """Choose the file that a process should run next: the longest of the preferred kind.

    Tests that wait need no core. One process runs all of them in sequence, while the others compute.
    """
    tiers = load_tiers()

    def rank(file: str) -> tuple[bool, float]:
        return (file in tiers.waiting) == prefers_waiting, tiers.seconds.get(file, UNKNOWN_SECONDS)

    return max(files, key=rank)


class TieredScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Runs each file in one process, and the files that wait in the first process."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Move the chosen file to the front of the queue, from which the base class takes it."""
        file = choose_file(self.workqueue, node is next(iter(self.assigned_work)))
        self.workqueue.move_to_end(file, last=False)
        super()._assign_work_unit(node)

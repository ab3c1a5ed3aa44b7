"""A process for one subject of a benchmark: built once, run when the parent asks, silent otherwise.

    python -m teso_deploy.comparison.worker MODULE:FUNCTION SETTINGS

``FUNCTION(settings)`` builds the :class:`Subject`. Requests on stdin and replies on stdout are one line of JSON each:
``{"turn": STAGE}`` → ``{"seconds": […]}``, ``{"finish": true}`` → ``{"peak_rss_mb": …, "mask_iou": …}``. All other
output goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from teso_deploy.comparison.turns import one_turn


class Subject(Protocol):
    """The object that is timed."""

    @property
    def stages(self) -> tuple[str, ...]:
        """What can be timed separately; ``frame`` is the whole."""

    def run(self, stage: str, i: int) -> object:
        """Run a stage on its i-th input."""

    def mask_iou(self) -> float | None:
        """Compute how well its masks agree with those of fp32 PyTorch."""


def peak_rss_mb() -> float:
    """Return the peak memory of this process in MB (10⁶ bytes)."""
    try:
        # Not ru_maxrss: after fork and exec it starts with the memory of the parent.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def build_subject(path: str, settings: dict[str, Any]) -> Subject:
    """Build the subject of ``MODULE:FUNCTION`` and run every stage once."""
    module, function = path.split(":")
    subject: Subject = getattr(import_module(module), function)(settings)
    for stage in subject.stages:
        subject.run(stage, 0)
    return subject


def main() -> None:
    """Entry point."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(**content: Any) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        subject = build_subject(sys.argv[1], json.loads(sys.argv[2]))
        reply(stages=subject.stages)
        runs: Counter[str] = Counter()
        for line in sys.stdin:
            request = json.loads(line)
            if "finish" in request:
                peak = peak_rss_mb()  # before comparing the masks, which takes more memory
                reply(peak_rss_mb=peak, mask_iou=subject.mask_iou())
                return
            stage = request["turn"]

            def run(stage: str = stage) -> None:
                runs[stage] += 1
                subject.run(stage, runs[stage])

            reply(seconds=one_turn(run))
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        reply(error=f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__)
        raise


if __name__ == "__main__":
    main()

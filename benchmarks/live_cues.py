"""Latency of frames while a source of cues takes 20 s: with it and without, in turns.

    python -m benchmarks run live-cues [--seconds 30] [--turns 3] [--fps 6] [--threads 2] [--out FOLDER]

The camera is that of ``live.py``. Only ``--fps`` of its pictures per second are segmented, so that the cores have
capacity left. The source "waiting" sleeps, like one on a server. The source "working" reads 200 MB again and again in a
background process, like a language model there. Each answer is followed by the next question at once. A frame is timed
from its arrival to its masks.

"used after" is how many results are delivered without the new cues, although they were begun after the cues arrived.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live import OPENING_SECONDS, loudest, record_camera
from benchmarks.results_files import add_out, record
from teso_deploy.cli.live import start_cue_worker
from teso_deploy.comparison.report import environment_of
from teso_deploy.cues.asking import AskingOptions
from teso_deploy.cues.choosing import Chosen
from teso_deploy.cues.contracts import CueAnswer, CueMoment
from teso_deploy.cues.process import step_back
from teso_deploy.errors import TesoError
from teso_deploy.live.runner import LiveRunner
from teso_deploy.live.scheduler import LiveOptions
from teso_deploy.media.address import Address
from teso_deploy.media.live_reader import LiveReader, start_all
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.delivery import Delivery

HERE = Path(__file__).parent
SOURCE_SECONDS = 20.0
WORK = (
    "import sys, time, numpy as np; m = np.ones((7000, 7000), np.float32);"
    "v = np.ones(7000, np.float32); end = time.monotonic() + float(sys.argv[1])\n"
    "while time.monotonic() < end: m @ v"
)
CONDITIONS = ("none", "waiting", "working")


class Slow:
    """A slow source that alternates between two names."""

    identity = "slow"

    def __init__(self, name: str, seconds: float, words: tuple[str, ...]) -> None:
        self.name, self._seconds, self._words = name, seconds, words
        self.arrived: list[tuple[float, str]] = []
        self._is_over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, moment: CueMoment) -> CueAnswer | None:
        """Return a word after the set time."""
        if self.name == "working":
            environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen([sys.executable, "-c", WORK, str(self._seconds)], env=environment)
            step_back(self._process.pid)
            self._process.wait()
        else:
            self._is_over.wait(self._seconds)
        word = self._words[len(self.arrived) % len(self._words)]
        self.arrived.append((time.monotonic(), word))
        return CueAnswer((word,), "llm")

    def close(self) -> None:
        """End a running question."""
        self._is_over.set()
        if self._process is not None:
            self._process.kill()


def late_results(found: list[Delivery], arrived: list[tuple[float, str]]) -> list[int]:
    """Count, for each answer, the results that were begun after its arrival and delivered without it."""
    late = []
    for at, word in arrived:
        behind = [one for one in found if one.stamps.get("began", one.stamps.get("encoded", 0.0)) >= at]
        with_it = [
            k for k, one in enumerate(behind) if one.segmentation.cues and one.segmentation.cues.names == (word,)
        ]
        if behind:
            late.append(with_it[0] if with_it else len(behind))
    return late


def measure(
    pipeline: Pipeline, path: Path, *, seconds: float, fps: float, condition: str
) -> tuple[list[float], list[int]]:
    """Return the seconds of each frame, and by how many results each answer was late."""
    command = [sys.executable, str(HERE / "live.py"), "--serve", str(path), "--seconds", str(seconds)]
    found: list[Delivery] = []
    words = pipeline.cue_table.names[:2]
    with ExitStack() as opened:
        camera = opened.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        opened.callback(camera.kill)
        assert camera.stdout is not None
        reader = LiveReader(Address.parse(f"tcp://127.0.0.1:{int(camera.stdout.readline())}"), reconnect=False)
        opened.enter_context(reader)
        start_all([reader])
        runner = LiveRunner(pipeline, [reader], [CallbackSink(found.append)], options=LiveOptions(fps=fps))
        source = Slow(condition, SOURCE_SECONDS, words)
        if condition != "none":
            asking = AskingOptions(every_seconds=0.01, budget_per_minute=1000)
            opened.callback(
                start_cue_worker(runner, pipeline, chosen=Chosen(source, False, False), asking=asking).close
            )
        threading.Timer(seconds - 1.0, runner.stop).start()
        runner.run()
    frames = [one for one in found if one.cause == "frame"][round(2 * fps) :]  # the first two seconds are the warm-up
    return [list(one.stamps.values())[-1] - one.stamps["captured"] for one in frames], late_results(
        found, source.arrived
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--fps", type=float, default=6.0)
    parser.add_argument("--threads", type=int, default=2)
    add_out(parser)
    given = parser.parse_args(arguments)
    try:
        pipeline = Pipeline.load(threads=given.threads)
        environment = environment_of(given.threads, pipeline.bundle, source_seconds=SOURCE_SECONDS)
        picture, sound = loudest(pipeline)
        seconds: dict[str, list[float]] = {name: [] for name in CONDITIONS}
        late: dict[str, list[int]] = {name: [] for name in CONDITIONS}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "camera.ts"
            record_camera(path, picture, sound, seconds=given.seconds + OPENING_SECONDS)
            for turn in range(given.turns):
                for name in CONDITIONS if turn % 2 == 0 else CONDITIONS[::-1]:
                    took, missed = measure(pipeline, path, seconds=given.seconds, fps=given.fps, condition=name)
                    seconds[name] += took
                    late[name] += missed
    except TesoError as error:
        print(f"live-cues: {error}", file=sys.stderr)
        return error.exit_code
    rows: list[dict[str, Any]] = []
    base = np.percentile(seconds["none"], (50, 95, 99))
    ratios = {}
    for name in CONDITIONS:
        found = np.percentile(seconds[name], (50, 95, 99))
        row = {"name": f"source: {name}", "frames": len(seconds[name])}
        row |= {f"p{p}_ms": round(float(value) * 1e3, 1) for p, value in zip((50, 95, 99), found, strict=True)}
        row |= {"answers": len(late[name]), "used_after_results": max(late[name], default=None)}
        rows.append(row)
        if name != "none":
            for p, value, before in zip((50, 95, 99), found, base, strict=True):
                ratios[f"{name}, p{p}"] = round(float(value / before), 3)
    report = {
        "schema_version": 1,
        "rows": rows,
        "ratios": ratios,
        "bound_by": f"{given.fps:g} pictures a second of a camera with 30, {given.turns} turns of {given.seconds:g} s "
        "each, taking turns; the camera and the source run on the same cores. Ratios: to no source.",
        "environment": environment,
    }
    record(
        f"live-cues-{pipeline.bundle.manifest.name}-cpu",
        "Frames beside a source of cues that takes 20 s",
        report,
        out=given.out,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

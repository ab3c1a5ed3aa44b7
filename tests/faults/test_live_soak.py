"""A live run of minutes with a fault every few seconds: memory stays constant, nothing leaks, nothing stalls.

``TESO_SOAK_SECONDS=1800 TESO_SOAK_FAULT_SECONDS=20 pytest -s tests/faults/test_live_soak.py`` is the long form.
"""

from __future__ import annotations

import gc
import os
import resource
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from teso_deploy.live.accounting import Accounting
from teso_deploy.live.runner import LiveRunner, describe_live_run
from teso_deploy.media.address import Address
from teso_deploy.media.backoff import Backoff
from teso_deploy.media.live_reader import LiveReader
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.contracts import Sink
from teso_deploy.sinks.delivery import Delivery
from teso_deploy.sinks.mask_lines import MaskLinesSink
from teso_deploy.sinks.video import AnnotatedVideoSink
from tests.support.leaks import nothing_left
from tests.support.recordings import click_track, record
from tests.support.streams import Sender, corrupted, free_port, lost, serving, tcp, untouched

SECONDS = float(os.environ.get("TESO_SOAK_SECONDS", "80"))
FAULT_SECONDS = float(os.environ.get("TESO_SOAK_FAULT_SECONDS", "10"))
CLIP_SECONDS = 5.0
#: Memory is compared only after this time: allocators first reserve what they need.
WARM_SECONDS = 0.35 * SECONDS
FAULTS = ("kill", "silence", "corrupted", "lost")


class Camera:
    """A server whose clip restarts every five seconds, and that causes a fault on request."""

    def __init__(self, path: Path) -> None:
        self._path, self.port, self._stack = path, free_port(), ExitStack()
        self._start()

    def _start(self) -> None:
        self.sender = Sender(self._path, CLIP_SECONDS, loop=True)
        self._stack.enter_context(serving(tcp(self.sender), self.port))

    def fail(self, fault: str) -> None:
        """Cause a fault for one or two seconds."""
        if fault == "kill":
            self.close()
            time.sleep(0.5)
            self._start()
        elif fault == "silence":
            self.sender.paused.set()
            time.sleep(1.5)
            self.sender.paused.clear()
        else:
            self.sender.damage = corrupted(0.2) if fault == "corrupted" else lost(0.2)
            time.sleep(2.0)
            self.sender.damage = untouched

    def close(self) -> None:
        """End at once."""
        self.sender.stopped.set()
        self._stack.close()


def resident_mb() -> float:
    """Return the resident memory of the process in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def test_minutes_of_faults(tiny_bundle: Path, tmp_path: Path) -> None:
    path = record(tmp_path / "clip.ts", [n / 15 for n in range(75)], sound=click_track(CLIP_SECONDS, [1, 2, 3, 4]))
    pipeline = Pipeline.load(tiny_bundle, threads=1)
    with nothing_left():
        watch_for_minutes(pipeline, path, tmp_path)


def watch_for_minutes(pipeline: Pipeline, path: Path, out: Path) -> None:
    """Run a camera with its faults, and check the stream's limits all the time."""
    camera = Camera(path)
    latest, memory = [0.0], list[float]()

    def note(delivery: Delivery) -> None:
        latest[0] = time.monotonic()

    address = Address.parse(f"tcp://127.0.0.1:{camera.port}")
    with LiveReader(address, timeout_seconds=1.0, backoff=lambda: Backoff(0.1, 0.5)) as reader:
        reader.start()
        facts = describe_live_run(pipeline, [reader])
        sinks: list[Sink] = [
            CallbackSink(note),
            AnnotatedVideoSink(out / "out.mp4", facts),
            MaskLinesSink(out / "m.jsonl", facts),
        ]
        accounting = Accounting([address.shown])
        runner = LiveRunner(pipeline, [reader], sinks, accounting=accounting)
        thread = threading.Thread(target=runner.run)
        thread.start()
        began, number, recoveries = time.monotonic(), 0, list[float]()
        while (passed := time.monotonic() - began) < SECONDS:
            camera.fail(FAULTS[number % len(FAULTS)])
            number += 1
            mended = time.monotonic()
            while latest[0] < mended:
                assert thread.is_alive() and time.monotonic() < mended + 60, "frames come again after each fault"
                time.sleep(0.01)
            recoveries.append(latest[0] - mended)
            rest = min(FAULT_SECONDS * number, SECONDS) - (time.monotonic() - began)
            time.sleep(max(rest, 2.5))
            assert thread.is_alive() and time.monotonic() - latest[0] < 15, "and go on coming"
            if passed > WARM_SECONDS:
                gc.collect()
                memory.append(resident_mb())
        runner.stop()
        thread.join(120)
        assert not thread.is_alive() and not runner.errors()
    camera.close()
    (stream,) = accounting.snapshot()["streams"]
    print(f"{SECONDS:g} s, {number} faults, frames again within {max(recoveries):.2f} s, ", end="")
    print(f"memory {memory[0]:.0f} to {memory[-1]:.0f} MB, {stream}")
    assert stream["reconnects"] >= number // 2 and stream["discontinuities"] >= SECONDS / CLIP_SECONDS / 3
    assert stream["frames"] > 2 * SECONDS and stream["corrupt_packets"] + stream["corrupt_frames"] > 0
    assert memory[-1] <= 1.05 * memory[0] + 5, memory

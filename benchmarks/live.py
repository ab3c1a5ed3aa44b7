"""A live camera of 640 x 360 at 30 frames per second: how many frames, how old, and how soon a sound shows.

    python -m benchmarks run live [--bundle B] [--seconds 60] [--threads 2] [--name teso-nano-cpu] [--out FOLDER]
    python -m benchmarks run live --backend cuda [--precision fp16] --streams 1 --streams 8 --out FILE.json

The camera is another process that sends MPEG-TS over TCP in real time; several streams have one camera each. It sends
the picture of the shipped clip with the most labelled pixels, with a little noise so that no two pictures are equal.
Two seconds of that moment's sound alternate with two seconds of silence. "onset" is the time from the first sample of a
sound to the first delivered mask. "end" is the time from its last sample to the first blank mask. Both include the
window's 0.975 s.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.gpu_contenders import visible_cues
from benchmarks.results_files import add_out, record
from teso_deploy.backends.registry import list_backends
from teso_deploy.bundle import Bundle
from teso_deploy.comparison.report import environment_of
from teso_deploy.errors import TesoError
from teso_deploy.live.accounting import Accounting
from teso_deploy.live.runner import LiveRunner, describe_live_run
from teso_deploy.live.scheduler import LiveOptions
from teso_deploy.media.address import Address
from teso_deploy.media.live_reader import LiveReader, start_all
from teso_deploy.pipeline.backend_choice import load_backend
from teso_deploy.pipeline.pipeline import AUTO, Offered, Pipeline
from teso_deploy.pipeline.video_source import VideoSource
from teso_deploy.resources import find_shipped_path
from teso_deploy.sinks.callback import CallbackSink
from teso_deploy.sinks.contracts import Sink
from teso_deploy.sinks.delivery import Delivery
from teso_deploy.sinks.video import AnnotatedVideoSink
from teso_deploy.types import SAMPLE_RATE_HZ, WINDOW_SAMPLES

WIDTH, HEIGHT, FPS = 640, 360, 30
ON_SECONDS, OFF_SECONDS = 2.0, 2.0
PERIOD_SECONDS = ON_SECONDS + OFF_SECONDS
#: Cameras send for this much longer than the measurement.
OPENING_SECONDS = 5.0


def loudest(pipeline: Pipeline) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Find the picture (H, W, 3) of the shipped clip with the most labelled pixels, and its audio window (15600,)."""
    best, found = -1.0, None
    with VideoSource(find_shipped_path("export/demo/clip.mp4"), fps=5) as source:
        for moment in source:
            rate = pipeline.segment(moment.frame, moment.sound, AUTO).positive_pixel_rate
            if rate > best:
                best, found = rate, (moment.frame.image, moment.sound.samples)
    assert found is not None
    return found


def record_camera(path: Path, picture: NDArray[np.uint8], sound: NDArray[np.float32], *, seconds: float) -> None:
    """Write the camera's stream to a file. Each period begins with silence."""
    rng = np.random.default_rng(0)
    still = np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT)), np.int16)
    heard = np.tile(sound, round(ON_SECONDS * SAMPLE_RATE_HZ) // WINDOW_SAMPLES + 1)[
        : round(ON_SECONDS * SAMPLE_RATE_HZ)
    ]
    period = np.concatenate((np.zeros(round(OFF_SECONDS * SAMPLE_RATE_HZ), np.float32), heard))
    samples = np.tile(period, round(seconds / PERIOD_SECONDS) + 1)[: round(seconds * SAMPLE_RATE_HZ)]
    with av.open(str(path), "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "24", "g": str(FPS)}
        audio = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
        sent = 0
        for number in range(round(seconds * FPS)):
            noisy = (still + rng.integers(-3, 4, still.shape)).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
            while sent < len(samples) and sent / SAMPLE_RATE_HZ <= number / FPS:
                part = av.AudioFrame.from_ndarray(samples[None, sent : sent + 1024], format="fltp", layout="mono")
                part.sample_rate, part.pts, part.time_base = SAMPLE_RATE_HZ, sent, Fraction(1, SAMPLE_RATE_HZ)
                container.mux(audio.encode(part))
                sent += 1024
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def serve(path: Path, seconds: float) -> None:
    """Send the file to one client at the pace of its time stamps."""
    content = path.read_bytes()
    with av.open(str(path)) as container:
        places = [(p.pos, float(p.dts * p.time_base)) for p in container.demux() if p.dts is not None and p.pos]
    places.sort()
    begin = min(at for _, at in places)
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection, contextlib.suppress(ConnectionError):  # the measurement may end before the file
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            began = time.monotonic()
            for (start, at), (end, _) in zip([(0, begin), *places], [*places, (len(content), 0.0)], strict=True):
                time.sleep(max(0.0, began + at - begin - time.monotonic()))
                connection.sendall(content[start:end])


def reactions(deliveries: list[tuple[float, bool]], seconds: float) -> tuple[list[float], list[float]]:
    """Compute the reaction times from (stream time of the delivery, blank).

    They are the seconds from each onset to a mask, and from each end to a blank mask.
    """
    onsets, ends = [], []
    for number in range(1, int(seconds / PERIOD_SECONDS)):  # the first period is the warm-up
        on = number * PERIOD_SECONDS + OFF_SECONDS
        off = on + ON_SECONDS
        shown = [at for at, blank in deliveries if on <= at < off and not blank]
        gone = [at for at, blank in deliveries if off <= at < off + OFF_SECONDS and blank]
        if shown:
            onsets.append(shown[0] - on)
        if gone:
            ends.append(gone[0] - off)
    return onsets, ends


def percentiles(values: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    return {f"p{p}": round(float(np.percentile(values, p)) * 1e3, 1) for p in (50, 90, 95, 99)} if values else {}


def worst(found: list[dict[str, float]]) -> dict[str, float]:
    """Return the largest value of each percentile over all streams."""
    return {percent: max(one[percent] for one in found if percent in one) for percent in found[0]}


def prefixed(name: str, found: dict[str, float]) -> dict[str, float]:
    """Rename ``p50`` to ``{name}_p50_ms``."""
    return {f"{name}_{percent}_ms": value for percent, value in found.items()}


def measure(pipeline: Pipeline, path: Path, *, seconds: float, video: Path | None, streams: int = 1) -> dict[str, Any]:
    """Measure a row of the report: the frame rate of the slowest stream, and the worst percentiles of all."""
    command = [sys.executable, __file__, "--serve", str(path), "--seconds", str(seconds)]
    found: list[list[tuple[float, bool]]] = [[] for _ in range(streams)]

    def note(delivery: Delivery) -> None:
        shown = delivery.frame.pts_seconds + delivery.staleness_seconds
        found[delivery.stream].append((shown, delivery.segmentation.is_blank))

    with ExitStack() as opened:
        cameras = [opened.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for _ in range(streams)]
        for camera in cameras:
            opened.callback(camera.kill)
        addresses = [Address.parse(f"tcp://127.0.0.1:{int(c.stdout.readline())}") for c in cameras if c.stdout]
        readers = [opened.enter_context(LiveReader(address, reconnect=False)) for address in addresses]
        start_all(readers)
        sinks: list[Sink] = [CallbackSink(note)]
        if video is not None:
            sinks.append(AnnotatedVideoSink(video, describe_live_run(pipeline, readers)))
        accounting = Accounting([address.shown for address in addresses])
        cues: Offered = AUTO if pipeline.bundle.manifest.tagger is not None else visible_cues(pipeline.bundle)
        runner = LiveRunner(pipeline, readers, sinks, options=LiveOptions(), cues=cues, accounting=accounting)
        threading.Timer(seconds - 1.0, runner.stop).start()
        began = time.monotonic()
        runner.run()
        lasted = time.monotonic() - began
    reported = accounting.snapshot()["streams"]
    reacted = [reactions(one, seconds) for one in found]
    onsets, ends = ([value for one in reacted for value in one[kind]] for kind in (0, 1))
    drops: Counter[str] = Counter()
    for stream in reported:
        drops.update(stream["drops"])
    # Masks of random weights do not start and end with the sound.
    reacted_ms = prefixed("onset", percentiles(onsets)) | prefixed("end", percentiles(ends)) | {"onsets": len(onsets)}
    many = "" if streams == 1 else f", {streams} streams"
    return {
        "name": f"live{many}" if video is None else f"live{many}, with the annotated video",
        "fps": round(min(stream["frames"] for stream in reported) / lasted, 2),
        **prefixed("staleness", worst([stream["staleness_ms"] for stream in reported])),
        **prefixed("frame", worst([stream["latency_ms"]["frame"] for stream in reported])),
        "redecodes_per_second": round(min(stream["redecodes"]["sound"] for stream in reported) / lasted, 2),
        **(reacted_ms if pipeline.bundle.manifest.trained else {}),
        "drops": dict(drops),
        "audio_gap_seconds": max(stream["audio"]["gap_seconds"] for stream in reported),
        "seconds": round(lasted, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: the shipped bundle")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="teso-nano-cpu")
    parser.add_argument("--backend", choices=list_backends(), default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--streams", type=int, action="append", help="a row for each; alone: with the video, too")
    add_out(parser)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        serve(options.serve, options.seconds)
        return 0
    try:
        nano = Pipeline.load(threads=options.threads)
        picture, sound = loudest(nano)
        bundle = Bundle.open(options.bundle)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "camera.ts"
            if options.backend != "cpu":
                from benchmarks.gpu_engines import with_half

                bundle = with_half(bundle, (options.precision,), Path(folder))
            threads = options.threads if options.backend == "cpu" else None
            backend = load_backend(options.backend, bundle, options.precision, threads=threads)
            pipeline = Pipeline(bundle, backend.engines, operators=backend.operators)
            record_camera(path, picture, sound, seconds=options.seconds + OPENING_SECONDS)
            videos = (None,) if options.streams else (None, Path(folder) / "out.mp4")
            rows = [
                measure(pipeline, path, seconds=options.seconds, video=video, streams=streams)
                for streams in options.streams or (1,)
                for video in videos
            ]
    except TesoError as error:
        print(f"live: {error}", file=sys.stderr)
        return error.exit_code
    report = {
        "schema_version": 1,
        "rows": rows,
        "bound_by": f"{WIDTH}x{HEIGHT} at {FPS} frames/s by MPEG-TS over TCP, {options.seconds:g} s a row; the camera "
        "runs on the same cores. Onset and end include the window's 975 ms.",
        "environment": environment_of(options.threads, bundle),
    }
    record(f"live-{options.name}", f"{bundle.manifest.name}, live", report, out=options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

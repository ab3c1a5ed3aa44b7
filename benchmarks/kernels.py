"""Speed of the CUDA operators on one GPU, compared with the memory bandwidth and with torch.

    python -m benchmarks run kernels [--library cuda-core] [--repetitions 20] [--out FILE.json]

A case is a graph of launches over more buffers than the GPU's cache holds. The graph is replayed, and CUDA events time
it. The bytes are the least that must be moved, so the share of the copy bandwidth shows how close a kernel is to the
optimum. torch does the same with its own operators in a separate graph, on equal buffers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.gpu_report import slug
from benchmarks.results_files import add_out, record
from teso_deploy.backends.cuda.device import CudaLibrary, Device, Memory, Stream
from teso_deploy.backends.cuda.kernels import Postprocess, Preprocess, load_kernels
from teso_deploy.backends.cuda.opening import open_device
from teso_deploy.backends.cuda.plans import Labels, Nv12Pictures, RgbPictures, Scores
from teso_deploy.backends.cuda.references import count_postprocess_bytes, count_preprocess_bytes
from teso_deploy.comparison.report import environment_of
from teso_deploy.errors import TesoError
from teso_deploy.outputs import check_file
from teso_deploy.types import ImageSize

WARM_UPS = 3
#: Larger than the cache of any GPU.
WORKING_SET_BYTES = 512 << 20
MAX_BUFFERS = 256
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
THRESHOLD = 0.5

Queue = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class PreprocessCase:
    """Pictures of ``size`` → ``bucket``."""

    size: ImageSize
    bucket: ImageSize
    batch: int = 1
    dtype: str = "float32"
    is_nv12: bool = False

    @property
    def name(self) -> str:
        kind = "nv12" if self.is_nv12 else "rgb"
        sizes = f"{self.size[0]}x{self.size[1]} → {self.bucket[0]}x{self.bucket[1]}"
        return f"preprocess {kind} {self.dtype} {self.batch} × {sizes}"

    @property
    def nbytes(self) -> int:
        return count_preprocess_bytes(self.size, self.bucket, batch=self.batch, dtype=self.dtype, is_nv12=self.is_nv12)


@dataclass(frozen=True, slots=True)
class PostprocessCase:
    """Scores of ``shape`` → ``size``. ``sounding``: the share of classes that reach the threshold somewhere."""

    shape: tuple[int, int, int, int]
    size: ImageSize
    sounding: float
    dtype: str = "float32"

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"postprocess {self.dtype} {shape} → {self.size[0]}x{self.size[1]}, {self.sounding:.0%} sounding"

    @property
    def nbytes(self) -> int:
        return count_postprocess_bytes(self.shape, self.size, dtype=self.dtype)


CASES: tuple[PreprocessCase | PostprocessCase, ...] = (
    PreprocessCase((1080, 1920), (288, 512)),
    PreprocessCase((1080, 1920), (288, 512), dtype="float16"),
    PreprocessCase((1080, 1920), (288, 512), is_nv12=True),
    PreprocessCase((1080, 1920), (384, 384), batch=8),
    PreprocessCase((1080, 1920), (384, 384), batch=8, is_nv12=True),
    PreprocessCase((2160, 3840), (576, 1024)),
    PreprocessCase((384, 384), (384, 384), batch=8),
    PostprocessCase((1, 71, 72, 128), (1080, 1920), 0.05),
    PostprocessCase((1, 71, 72, 128), (1080, 1920), 0.0),
    PostprocessCase((1, 71, 72, 128), (1080, 1920), 1.0),
    PostprocessCase((1, 71, 72, 128), (1080, 1920), 0.05, dtype="float16"),
    PostprocessCase((8, 71, 96, 96), (1080, 1920), 0.05),
)


def made_scores(case: PostprocessCase) -> np.ndarray[Any, Any]:
    """Make scores below the threshold, except for a disc in each sounding class."""
    batch, classes, height, width = case.shape
    rng = np.random.default_rng(0)
    scores = rng.random(case.shape, np.float32) * np.float32(0.4)
    down, along = np.mgrid[:height, :width]
    for label in range(round(classes * case.sounding)):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        scores[:, label, (down - y) ** 2 + (along - x) ** 2 < (min(height, width) / 6) ** 2] += np.float32(0.5)
    assert len(scores) == batch
    return scores.astype(case.dtype)


def milliseconds(stream: Stream, queue: Queue, *, buffers: int, repetitions: int) -> float:
    """Return the median time of one launch over replays of a graph with one launch per buffer."""
    for index in range(buffers):  # work that only the first call has to do
        queue(index)
    stream.synchronize()
    with stream.capture() as graph:
        for index in range(buffers):
            queue(index)
    times = []
    for _ in range(WARM_UPS + repetitions):
        start = stream.record(is_timed=True)
        graph.launch(stream)
        end = stream.record(is_timed=True)
        end.synchronize()
        times.append(end.milliseconds_since(start) / buffers)
    return statistics.median(times[WARM_UPS:])


def copy_gb_per_second(device: Device, stream: Stream, repetitions: int) -> float:
    """Return how much a copy inside the GPU's memory reads and writes per second."""
    source, target = (device.allocate(WORKING_SET_BYTES) for _ in range(2))

    def queue(index: int) -> None:
        device.copy_on(target.pointer, source.pointer, nbytes=WORKING_SET_BYTES, stream=stream)

    took = milliseconds(stream, queue, buffers=4, repetitions=repetitions)
    source.close()
    target.close()
    return 2 * WORKING_SET_BYTES / took / 1e6


def filled(device: Device, stream: Stream, array: np.ndarray[Any, Any]) -> Memory:
    memory = device.allocate(array.nbytes)
    device.copy_in(memory.pointer, array, stream)
    stream.synchronize()
    return memory


class Ours:
    """Our kernels on the buffers of a case."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._module = load_kernels(device)

    def measure(self, case: PreprocessCase | PostprocessCase, buffers: int, repetitions: int) -> float:
        source = source_of(case)
        sources = [filled(self._device, self._stream, source) for _ in range(buffers)]
        targets = [self._device.allocate(target_bytes(case)) for _ in range(buffers)]
        operator: Preprocess | Postprocess
        if isinstance(case, PreprocessCase):
            operator = preprocess = Preprocess(self._device, self._module, mean=MEAN, std=STD, dtype=case.dtype)

            def queue(index: int) -> None:
                given = pictures_of(case, sources[index].pointer)
                preprocess(given, targets[index].pointer, bucket=case.bucket, stream=self._stream)
        else:
            operator = postprocess = Postprocess(self._device, self._module, THRESHOLD)

            def queue(index: int) -> None:
                scores = Scores(sources[index].pointer, case.shape, case.dtype)
                postprocess(scores, Labels(targets[index].pointer, case.size), self._stream)

        took = milliseconds(self._stream, queue, buffers=buffers, repetitions=repetitions)
        operator.close()
        for memory in (*sources, *targets):
            memory.close()
        return took


def source_of(case: PreprocessCase | PostprocessCase) -> np.ndarray[Any, Any]:
    if isinstance(case, PostprocessCase):
        return made_scores(case)
    height, width = case.size
    rows = height + height // 2 if case.is_nv12 else 3 * height
    return np.random.default_rng(0).integers(0, 256, (case.batch, rows * width), np.uint8)


def target_bytes(case: PreprocessCase | PostprocessCase) -> int:
    if isinstance(case, PostprocessCase):
        return case.shape[0] * case.size[0] * case.size[1]
    return case.batch * 3 * case.bucket[0] * case.bucket[1] * np.dtype(case.dtype).itemsize


def pictures_of(case: PreprocessCase, pointer: int) -> RgbPictures | Nv12Pictures:
    height, width = case.size
    if not case.is_nv12:
        return RgbPictures(pointer, case.size, batch=case.batch)
    # A picture's chroma follows its luma.
    stride = (height + height // 2) * width
    return Nv12Pictures(
        pointer, pointer + height * width, case.size, batch=case.batch, luma_stride_bytes=stride,
        chroma_stride_bytes=stride, matrix="bt709",
    )  # fmt: skip


def torch_milliseconds(case: PreprocessCase | PostprocessCase, buffers: int, repetitions: int) -> float | None:
    """Time the same work with torch's operators; None for NV12, which torch does not support."""
    import torch
    from torch.nn import functional as F

    source = source_of(case)
    run: Callable[[Any], Any]
    if isinstance(case, PreprocessCase):
        if case.is_nv12:
            return None
        mean, std = (torch.tensor(values, device="cuda")[:, None, None] for values in (MEAN, STD))
        dtype = getattr(torch, case.dtype)
        source = source.reshape(case.batch, *case.size, 3)

        def run(pictures: Any) -> Any:
            image = pictures.permute(0, 3, 1, 2).float()
            image = F.interpolate(image, case.bucket, mode="bilinear", antialias=True, align_corners=False)
            return ((image - mean) / std).to(dtype)
    else:

        def run(scores: Any) -> Any:
            best, label = F.interpolate(scores, case.size, mode="bilinear", align_corners=False).max(dim=1)
            return torch.where(best >= THRESHOLD, label + 1, 0).to(torch.uint8)

    tensors = [torch.from_numpy(source).cuda() for _ in range(buffers)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for tensor in tensors[:WARM_UPS]:
            run(tensor)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for tensor in tensors:
            run(tensor)
    times = []
    for _ in range(WARM_UPS + repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / buffers)
    return statistics.median(times[WARM_UPS:])


def has_torch_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def measure(library: CudaLibrary, repetitions: int, cases: Sequence[PreprocessCase | PostprocessCase]) -> Any:
    """Measure the cases, and return the report."""
    device = open_device(library=library, index=0)
    stream = device.stream()
    ours, with_torch = Ours(device, stream), has_torch_gpu()
    bandwidth = copy_gb_per_second(device, stream, repetitions)
    rows = []
    for case in cases:
        buffers = min(MAX_BUFFERS, max(4, -(-WORKING_SET_BYTES // case.nbytes)))
        took = ours.measure(case, buffers, repetitions)
        theirs = torch_milliseconds(case, buffers, repetitions) if with_torch else None
        rate = case.nbytes / took / 1e6
        rows.append(
            {
                "name": case.name,
                "bytes": case.nbytes,
                "buffers": buffers,
                "milliseconds": round(took, 5),
                "gb_per_second": round(rate, 1),
                "share_of_copy_bandwidth": round(rate / bandwidth, 3),
                "torch_milliseconds": None if theirs is None else round(theirs, 5),
            }
        )
        print(f"{case.name}: {took:.4f} ms, {rate / bandwidth:.0%} of copy", file=sys.stderr)
    libraries = (library, *(("torch",) if with_torch else ()))
    more: dict[str, Any] = {
        "device": device.name,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "driver": ".".join(map(str, device.driver_version)),
        "repetitions": repetitions,
    }
    return {
        "schema_version": 1,
        "copy_gb_per_second": round(bandwidth, 1),
        "rows": rows,
        "bound_by": "Graphs of launches, timed by CUDA events; the bytes are the least that have to move.",
        "environment": environment_of(1, libraries=libraries, **more),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("cuda-core", "pycuda"), default="cuda-core")
    parser.add_argument("--repetitions", type=int, default=20)
    add_out(parser)
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix == ".json":
            check_file(options.out)
        report = measure(options.library, options.repetitions, CASES)
        record(f"kernels-{slug(report['environment']['device'])}", "CUDA operators", report, out=options.out)
    except TesoError as error:
        parser.exit(error.exit_code, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The shipped bundle on a real GPU, on every backend and in half precision: the CPU's masks, and silence.

Engines and kernels are kept in a separate folder, so that nothing from an earlier run is used.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from teso_deploy.backends.cuda.device import Device
from teso_deploy.backends.cuda.tensors import DeviceTensor
from teso_deploy.backends.onnxruntime import make_onnxruntime_factory
from teso_deploy.backends.registry import list_gpu_backends
from teso_deploy.backends.tensorrt.bindings import load_library
from teso_deploy.backends.tensorrt.cache import EngineCache
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.factory import make_cache_path, make_engine_factory
from teso_deploy.backends.tensorrt.making import find_source, make_engine
from teso_deploy.backends.tensorrt.profiles import load_profile
from teso_deploy.backends.tensorrt.sidecar import get_sidecar_path, name_architecture, read_engine
from teso_deploy.backends.tensorrt.slot import TensorRTSlot
from teso_deploy.bundle import Bundle
from teso_deploy.errors import DeviceError, DeviceMemoryError, EngineError, MissingExtraError, TesoError
from teso_deploy.pipeline.pipeline import Pipeline
from teso_deploy.pipeline.video_source import Moment
from teso_deploy.program import TESO
from teso_deploy.types import Precision
from teso_deploy.verification import probes
from teso_deploy.verification.engine_check import check_against_onnxruntime
from teso_deploy.verification.parity import LIMITS, compare, compare_tensors
from teso_deploy.verification.verify import CANONICAL, verify_bundle
from tests.gpu.conftest import (
    PRECISIONS,
    Absent,
    Labels,
    Running,
    assert_labels_agree,
    assert_muted_clip_is_blank,
    full_memory,
    is_listed,
    load_running,
)

pytestmark = pytest.mark.gpu

#: GPU generations on which a portable engine of TensorRT-RTX runs, by NVIDIA's documentation.
PORTABLE_ON = ("sm80", "sm86", "sm89", "sm120")


@pytest.fixture(scope="module", params=list(product(list_gpu_backends(), PRECISIONS)), ids="-".join)
def running(request: pytest.FixtureRequest, bundle: Bundle, gpu: Device, absent: Absent) -> Running:
    name, precision = request.param
    return load_running(name, precision, bundle, gpu, absent)


@pytest.fixture(scope="module")
def tensorrt(running: Running) -> Running:
    if running.name == "cuda":
        pytest.skip("ONNX Runtime has no engine files, records no CUDA graphs and takes no arrays of others")
    return running


def feeds_of(bundle: Bundle, graph: str, row: int = 0) -> dict[str, NDArray[Any]]:
    """Return a graph's inputs in the reference, batch 1. Another row has another sound with the same picture."""
    reference = probes.read_reference(bundle, bundle.sizes[0])
    names = [spec.name for spec in bundle.manifest.graphs[graph].inputs]
    return {name: reference[name][row % len(reference[name]), None].copy() for name in names}


def assert_near(found: Any, wanted: Any, precision: Precision) -> None:
    """Compare the outputs of one graph for equal inputs."""
    for name, value in wanted.items():
        cosine, error = compare(found[name], value)
        limits, scale = LIMITS[precision].canonical, max(1.0, float(np.abs(value).max()))
        assert cosine >= limits.cosine and error / scale <= limits.max_abs_error, (name, cosine, error)


# ------------------------------------------------------------------------------------------- masks and sound


def test_every_graph_all_in_a_row_batches_and_the_audio_control(running: Running) -> None:
    name = f"{running.name}-{running.precision}"
    report = verify_bundle(
        running.bundle,
        lambda form: make_onnxruntime_factory(None, form),
        forms=[CANONICAL],
        backends={name: (running.precision, running.backend.engines)},
    )
    assert report.passed, report.failures
    ours = [check for check in report.checks if check.form == name]
    assert {check.against for check in ours} == {"pytorch", "canonical", "batch 2", "batch 3"}
    assert sum(heard.must_be_blank for heard in report.heard if heard.form == name) >= 2


def test_labels_are_those_of_the_cpu_and_silence_is_blank(
    running: Running, moments: list[Moment], cues: list[str], expected: list[Labels]
) -> None:
    pipeline = running.pipeline()
    assert pipeline.backend == running.name and pipeline.precision == running.precision
    for moment, wanted in zip(moments, expected, strict=True):
        assert_labels_agree(pipeline.segment(moment.frame, moment.sound, cues).labels, wanted, running.precision)
    assert_muted_clip_is_blank(pipeline, cues)


def test_a_new_sound_runs_what_hears_on_the_buffers_of_the_picture(
    running: Running, moments: list[Moment], cues: list[str]
) -> None:
    def address(tensor: Any) -> int:
        return tensor.pointer if isinstance(tensor, DeviceTensor) else tensor.data_ptr()

    stream, alone = running.pipeline().open_stream(), running.pipeline()
    frame, pointers = moments[7].frame, set()
    for i, moment in enumerate(moments[4:9]):
        found = stream.segment(frame, moment.sound, cues)
        anew = alone.open_stream().segment(frame, moment.sound, cues)
        assert_labels_agree(found.labels, anew.labels, running.precision)
        kept = stream._kept.graphs
        pointers.add(
            tuple(address(kept[graph, 0].outputs[name]) for graph in TESO.names for name in kept[graph, 0].outputs)
        )
        assert stream.runs == Counter({name: 1 if name == "visual_encoder" else i + 1 for name in TESO.names})
    assert len(pointers) == 1, "the outputs never move"
    stream.segment(frame, moments[8].sound, cues[:1])
    assert (stream.runs["audio_encoder"], stream.runs["fusion"], stream.runs["decoder"]) == (5, 6, 6)


def test_batches_of_any_size(running: Running) -> None:
    """A batch that is larger than the engine's limit is run in several parts."""
    threshold, limits = running.bundle.manifest.postprocessing.threshold, LIMITS[running.precision]
    for graph in TESO.names:
        engine = running.engine(graph)
        rows = [feeds_of(running.bundle, graph, row) for row in range(load_profile().batch_of(graph).max + 3)]
        for i, row in enumerate(rows):
            for name in row.keys() & {"image", "waveform"}:  # the reference has only one picture
                row[name] *= np.float32(1 - i / 10)
        alone = [engine.run(row) for row in rows]
        for count in (1, 2, 3, len(rows)):
            found = engine.run({name: np.concatenate([row[name] for row in rows[:count]]) for name in rows[0]})
            wanted = {name: np.concatenate([row[name] for row in alone[:count]]) for name in alone[0]}
            # a cell at the threshold may flip: compare within the limits of masks, not by the largest error
            if graph == "decoder":
                failure = compare_tensors(found, wanted, threshold).failure(limits.chain)
                assert failure is None, failure
            else:
                assert_near(found, wanted, running.precision)


def test_two_videos_in_two_threads(
    running: Running, moments: list[Moment], cues: list[str], expected: list[Labels]
) -> None:
    pipelines = running.pipeline(), running.pipeline()
    orders = range(len(moments)), range(len(moments) - 1, -1, -1)

    def play(pipeline: Pipeline, order: range) -> None:
        for _ in range(3):
            for i in order:
                found = pipeline.segment(moments[i].frame, moments[i].sound, cues).labels
                assert_labels_agree(found, expected[i], running.precision)

    with ThreadPoolExecutor(2) as threads:
        for played in [threads.submit(play, *both) for both in zip(pipelines, orders, strict=True)]:
            played.result()


# ------------------------------------------------------------------------------------------------ slots


def test_each_shape_is_a_cuda_graph_and_its_replays_give_the_same(tensorrt: Running) -> None:
    for graph in TESO.names:
        slot, feeds = cast(TensorRTSlot, tensorrt.engine(graph).slot()), feeds_of(tensorrt.bundle, graph)
        first, *again = [{name: tensor.numpy().copy() for name, tensor in slot.run(feeds).items()} for _ in range(4)]
        assert slot.note is None
        assert [recorded is not None for recorded in slot._graphs.values()] == [True]
        for found in again:
            assert_near(found, first, tensorrt.precision)  # the first may have run on kernels for every shape
            for name, value in found.items():
                np.testing.assert_array_equal(value, again[0][name])


def test_a_stream_of_frames_runs_on_cuda_graphs(tensorrt: Running, moments: list[Moment], cues: list[str]) -> None:
    """Each graph of the model is recorded once, at its second run, and never again."""
    stream = tensorrt.pipeline().open_stream()
    for moment in moments[:5]:
        stream.segment(moment.frame, moment.sound, cues)
    for i, moment in enumerate(moments[5:]):
        stream.segment(moments[5].frame, moment.sound, cues[: 1 + i % 2])
    for name in TESO.names:
        slot = cast(
            TensorRTSlot, stream._kept.graphs[tensorrt.bundle.graph_at(name, tensorrt.bundle.sizes[0]), 0]._slot
        )
        assert slot.note is None
        assert [recorded is not None for recorded in slot._graphs.values()] == [True], name


@pytest.mark.usefixtures("cuda_torch")
def test_arrays_of_torch_come_in_and_go_out_where_they_are(tensorrt: Running) -> None:
    import torch
    from torch.utils.dlpack import from_dlpack

    slot, feeds = tensorrt.engine("visual_encoder").slot(), feeds_of(tensorrt.bundle, "visual_encoder")
    image = torch.from_numpy(feeds["image"]).cuda()
    for scale in (1.0, 0.5, 0.25):
        given = image * scale  # queued, and read after the copy
        found = cast(DeviceTensor, slot.run({"image": given})["mask_features"])
        theirs = from_dlpack(found.array())
        assert theirs.is_cuda and theirs.data_ptr() == found.pointer
        np.testing.assert_array_equal(theirs.cpu().numpy(), found.numpy())
        wanted = tensorrt.engine("visual_encoder").run({"image": feeds["image"] * np.float32(scale)})
        assert_near({"mask_features": found.numpy()}, {"mask_features": wanted["mask_features"]}, tensorrt.precision)


# ------------------------------------------------------------------------------------------- what is refused


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def change(path: Path, **fields: Any) -> None:
    beside = get_sidecar_path(path)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **fields}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (flip, "differs from the engine that was built"),
        (lambda path: change(path, library_version="1.0.0.1"), r"was built by [\w-]+ 1.0.0.1, but .* is installed"),
        (lambda path: change(path, architecture="sm10"), "is for sm10, "),
    ],
    ids=["a byte", "a version", "a GPU"],
)
def test_what_does_not_fit_never_reaches_the_library(
    tensorrt: Running,
    gpu: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], Any],
    says: str,
) -> None:
    library = load_library(tensorrt.name)
    cache, source = EngineCache(tmp_path), find_source(tensorrt.bundle, "fusion", tensorrt.precision)
    factory = make_engine_factory(library, gpu, tensorrt.precision, cache=cache)
    factory(tensorrt.bundle, "fusion")
    spoil(make_cache_path(cache, library, source, settings=load_profile(), device=gpu))

    def never(*arguments: Any) -> None:
        raise AssertionError("the library was asked")

    monkeypatch.setattr(library.trt, "Runtime", never)
    with pytest.raises(EngineError, match=says) as raised:
        factory(tensorrt.bundle, "fusion")
    assert_is_a_sentence(raised.value)


def assert_is_a_sentence(error: TesoError) -> None:
    text = str(error)
    assert "\n" not in text and 20 < len(text) < 600 and not re.search(r"0x[0-9a-f]{6}|Traceback", text), text


@pytest.mark.parametrize("architecture", [None, "sm80"], ids=["portable", "sm80"])
def test_tensorrt_rtx_answers_in_a_sentence(
    architecture: str | None,
    bundle: Bundle,
    gpu: Device,
    absent: Absent,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """The library may accept or refuse a GPU that it does not list. If it accepts it, the result must be right."""
    try:
        library = load_library("tensorrt-rtx")
    except (MissingExtraError, EngineError) as error:
        absent(error)
    path = tmp_path / "fusion.engine"
    make_engine(library, find_source(bundle, "fusion", "fp32"), load_profile(), path=path, architecture=architecture)
    try:
        content, sidecar = read_engine(path)
        engine = TensorRTEngine(library, gpu, content, sidecar=sidecar)
        figures = check_against_onnxruntime(bundle, "fusion")(engine)
    except (EngineError, DeviceError) as refusal:
        assert not isinstance(refusal, DeviceMemoryError), refusal
        assert_is_a_sentence(refusal)
        here = name_architecture(gpu.compute_capability)
        assert here != architecture and (architecture is not None or here not in PORTABLE_ON), refusal
        answer = f"refused: {refusal}"
    else:
        answer = f"runs: {figures}"
    record_property(f"{architecture or 'portable'} on {gpu.name}", answer)
    print(f"TensorRT-RTX {library.version}, {architecture or 'portable'}, on {gpu.name}: {answer}")


def test_what_was_compiled_for_this_gpu_is_kept_for_the_next_start(bundle: Bundle, gpu: Device, absent: Absent) -> None:
    try:
        library = load_library("tensorrt-rtx")
    except (MissingExtraError, EngineError) as error:
        absent(error)
    if not is_listed("tensorrt-rtx", gpu):
        pytest.skip(f"TensorRT-RTX does not list {gpu.name}")
    cache = EngineCache(bundle.folder.parent / "jit")
    feeds, written = feeds_of(bundle, "fusion"), set()
    for _ in range(2):
        make_engine_factory(library, gpu, cache=cache)(bundle, "fusion").slot().run(feeds)["queries"].numpy()
        (file,) = cache.folder.glob("*.jit")
        assert file.stat().st_size > 0
        written.add(file.stat().st_mtime_ns)
    assert len(written) == 1, "the second start had nothing to compile, and nothing to add"


# ------------------------------------------------------------------------------------------- memory


def test_a_gpu_without_memory_is_told_in_a_sentence(running: Running, gpu: Device) -> None:
    free_before, _ = gpu.memory_info()
    feeds, engine = feeds_of(running.bundle, "visual_encoder"), running.engine("visual_encoder")
    with full_memory(gpu):
        with pytest.raises(DeviceMemoryError, match=r"memory|MB") as raised:
            engine.slot().run(feeds)
        if running.name != "cuda":  # the backend's libraries may fail with other messages if there is no memory at all
            with pytest.raises(DeviceMemoryError, match=r"memory|MB"):
                running.engine("visual_encoder").slot().run(feeds)
    assert_is_a_sentence(raised.value)
    assert gpu.memory_info()[0] >= free_before - (256 << 20), "the memory is back"
    found = engine.run(feeds)
    assert all(np.isfinite(value).all() for value in found.values()), "and it goes on"

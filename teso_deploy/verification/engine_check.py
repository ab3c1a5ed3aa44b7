"""Compare a built engine with ONNX Runtime on the CPU, on the reference's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.backends.tensorrt.engine import TensorRTEngine
from teso_deploy.backends.tensorrt.making import Check
from teso_deploy.bundle import Bundle
from teso_deploy.errors import CheckFailedError
from teso_deploy.verification import probes
from teso_deploy.verification.parity import LIMITS, MEASURED_ONLY, compare_tensors


def _find_size(bundle: Bundle, graph: str) -> tuple[int, int]:
    """Return the first bucket that a graph of the manifest belongs to."""
    name = graph.partition("@")[0]
    return next(size for size in bundle.sizes if bundle.graph_at(name, size) == graph)


def check_against_onnxruntime(bundle: Bundle, graph: str) -> Check:
    """Make the check that :func:`make_engine` runs on an engine of a graph, by its name in the manifest.

    The check returns the figures of :class:`GraphParity`. It raises :class:`CheckFailedError` if they miss the limits
    of the engine's precision.
    """

    def check(engine: TensorRTEngine) -> dict[str, Any]:
        reference = probes.read_reference(bundle, _find_size(bundle, graph))
        given = probes.take_inputs(reference, engine.inputs)
        feeds = {name: np.asarray(given[name]) for name in engine.inputs}
        expected = OnnxRuntimeEngine(bundle.graph_path(graph)).run(feeds)
        threshold = bundle.manifest.postprocessing.threshold
        parity = compare_tensors(engine.run(feeds), expected, threshold)
        is_rounded = engine.precision != "fp32" or engine.sidecar.settings.tf32
        limits = LIMITS["fp16" if engine.precision == "fp32" and is_rounded else engine.precision].canonical
        # Masks of untrained weights flip at the smallest difference.
        limits = MEASURED_ONLY if is_rounded and not bundle.manifest.trained else limits
        if failure := parity.failure(limits):
            raise CheckFailedError(
                f"the engine of {graph} ({engine.backend}, {engine.precision}) differs from ONNX Runtime on "
                f"{engine.device.name} ({failure}), and is not used: take another precision or version, and please "
                "report this"
            )
        return parity.as_dict()

    return check

"""Hugging Face's Mask2Former after a plain export, on ONNX Runtime and on OpenVINO. No torch.

The export runs in a separate process, once for each size, and is kept in a cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teso_deploy.comparison.turns import TurnFailedError
from teso_deploy.redaction import make_child_environment
from teso_deploy.resources import cache_folder
from teso_deploy.verification.parity import compare_masks

PICTURES = 8
Arrays = NDArray[np.float32]


def pictures(size: tuple[int, int]) -> Arrays:
    """Return normalised pictures of noise (N, 3, height, width), the same ones each time."""
    return np.random.default_rng(0).standard_normal((PICTURES, 3, *size), np.float32)


def masks_agree(found: Arrays, reference: Arrays) -> float:
    """Compute the mean IoU of the positive mask logits (1, N_Q, h, w) of each query."""
    # Compare each query separately: with random weights a pixel has many, and their argmax means nothing.
    return compare_masks(found.swapaxes(0, 1), reference.swapaxes(0, 1), 0.0)[0]


def export_once(settings: dict[str, Any]) -> Path:
    """Return the folder with ``model.onnx`` and ``masks.npy`` for the settings' sizes. Export them if needed.

    Raises :class:`TurnFailedError` if the exporter fails.
    """
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxscript", "numpy")}
    content = {"sizes": settings["sizes"], "size": settings["size"], "versions": versions}
    folder = cache_folder("bench") / hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        command = [sys.executable, "-m", "teso_deploy.comparison.hugging_face", json.dumps(settings), str(staged)]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=make_child_environment(),
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise TurnFailedError(f"the export failed: {lines[-1] if lines else f'code {done.returncode}'}")
        try:
            os.replace(staged, folder)
        except OSError:
            if not folder.is_dir():  # if it exists, another run has just created it
                raise
        return folder
    finally:
        shutil.rmtree(staged, ignore_errors=True)


class StockSubject:
    """An export on a runtime. ``infer`` returns the mask logits (1, N_Q, h, w) of a picture (1, 3, H, W)."""

    stages = ("frame",)

    def __init__(self, infer: Callable[[Arrays], Arrays], folder: Path, size: tuple[int, int]) -> None:
        self._infer, self._reference = infer, folder / "masks.npy"
        self._images = [image[None] for image in pictures(size)]

    def run(self, stage: str, i: int) -> Arrays:
        """See :class:`Subject`."""
        return self._infer(self._images[i % len(self._images)])

    def mask_iou(self) -> float:
        """See :class:`Subject`."""
        return masks_agree(self._infer(self._images[0]), np.load(self._reference))


def on_onnxruntime(settings: dict[str, Any]) -> StockSubject:
    """Run on ONNX Runtime's CPU provider with its defaults except for the threads."""
    import onnxruntime

    folder = export_once(settings)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    wanted = [output.name for output in session.get_outputs()[:2]]  # class logits, mask logits
    return StockSubject(lambda image: session.run(wanted, {name: image})[1], folder, tuple(settings["size"]))


def on_openvino(settings: dict[str, Any]) -> StockSubject:
    """Run on OpenVINO's CPU plugin, tuned for latency, in ``settings["precision"]``.

    Raises :class:`TurnFailedError` if the machine can't compute in this precision.
    """
    import openvino

    folder = export_once(settings)
    precision = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[settings["precision"]]
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": settings["threads"],
    }
    compiled = openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", options)
    if compiled.get_property("INFERENCE_PRECISION_HINT") != precision:
        raise TurnFailedError(f"this CPU has no {settings['precision']}, OpenVINO would compute in another precision")
    request = compiled.create_infer_request()

    def infer(image: Arrays) -> Arrays:
        request.infer({0: image}, share_inputs=True)
        masks: Arrays = request.get_output_tensor(1).data
        return masks

    return StockSubject(infer, folder, tuple(settings["size"]))

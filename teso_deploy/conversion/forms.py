"""Forms of the canonical graphs: rewritten for a runtime, in a precision.

The precisions in an entry are read back from the form's file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from teso_deploy.backends.onnxruntime import TARGET as ONNXRUNTIME
from teso_deploy.backends.onnxruntime import OnnxRuntimeEngine
from teso_deploy.bundle import STANDARD, FormEntry, GraphEntry
from teso_deploy.conversion.functions import convert_to_plugin_nodes
from teso_deploy.conversion.onnxruntime_form import derive_form
from teso_deploy.conversion.precision import cast_to_half, check_precision, compute_shares
from teso_deploy.conversion.quantization import (
    carry_over,
    find_least_left_out,
    measure_sensitivities,
    observe,
    quantize,
)
from teso_deploy.conversion.weights import WeightsFile, save_with_weights
from teso_deploy.errors import OutputError
from teso_deploy.program import MASKS, Program, group_inputs, merge_tensors, run_program
from teso_deploy.sealed import hash_file
from teso_deploy.types import Precision
from teso_deploy.verification.parity import compare_masks

#: The size that a form's own weights add to a bundle, as a share of the canonical weights.
BYTES_SHARE: Mapping[Precision, float] = {"fp32": 0.05, "fp16": 0.55, "bf16": 0.55, "int8": 0.35}
#: The size that a bucket adds to a bundle, without weights: its tables, and the encoder's outputs in the reference.
BUCKET_BYTES = 100_000_000
#: Desired and least agreement of a trained model's int8 masks with fp32 on the calibration frames.
INT8_IOU, LEAST_INT8_IOU = 0.995, 0.98
Arrays = Mapping[str, NDArray[Any]]


def check_space(weights_bytes: int, out: Path, *, sizes: int, precisions: Sequence[Precision]) -> None:
    """Refuse a disk that has no room for the bundle, before anything is written.

    Args:
        weights_bytes: Size of the canonical weights in bytes.
        out: The bundle's folder.
        sizes: Number of buckets.
        precisions: Precisions of the forms.

    Raises:
        OutputError: The disk has less free space than the estimate.
    """
    share = 1.0 + sum(BYTES_SHARE[precision] for precision in precisions)
    needed = int(weights_bytes * share) + sizes * BUCKET_BYTES
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"{out} needs about {needed / 1e6:,.0f} MB more, but {parent} has {free / 1e6:,.0f} MB free: "
            "make room, or give another --out"
        )


@dataclass
class Forms:
    """Writes the forms of a staged bundle's graphs.

    ``frames`` returns the external tensors, batch 1, of the first bucket. ``is_trained``: if False, the masks mean
    nothing, so the agreement of masks does not decide which layers stay out of int8.
    """

    folder: Path
    program: Program
    graphs: Mapping[str, GraphEntry]
    weights: Mapping[str, WeightsFile]
    frames: Callable[[], Sequence[Arrays]]
    threshold: float
    is_trained: bool
    on_progress: Callable[[str], None]
    notes: dict[str, Any] = field(default_factory=dict)

    def write(self, precision: Precision) -> dict[str, dict[str, FormEntry]]:
        """Write the forms of one precision and return name of the form → graph → entry.

        Each graph is read back from its file. Raises :class:`PrecisionError` if a graph can't be computed in this
        precision.
        """
        if precision == "fp32":
            return {f"{ONNXRUNTIME}-fp32": {key: self._write_for_onnxruntime(key, "fp32") for key in self.graphs}}
        if precision == "int8":
            return self._write_int8()
        return self.standard(precision)

    def standard(self, precision: Literal["fp32", "fp16", "bf16"]) -> dict[str, dict[str, FormEntry]]:
        """Write the form of standard operators.

        In this form, deformable attention is the node that TensorRT has a plugin for.
        """
        name = f"{STANDARD}-{precision}"
        entries = {}
        for key in self.graphs:
            self.on_progress(f"{key}: {name}")
            model = convert_to_plugin_nodes(self._get_canonical(key))
            model = model if precision == "fp32" else cast_to_half(model, precision)
            entries[key] = self._save(model, key, target=STANDARD, precision=precision)
        return {name: entries}

    def _get_canonical(self, key: str) -> ir.Model:
        return ir.load(self.folder / self.graphs[key].file)

    def _save(self, model: ir.Model, key: str, *, target: str, precision: Precision) -> FormEntry:
        path = self.folder / f"{key}.{target}-{precision}.onnx"
        weights = self.weights[key.partition("@")[0]]
        save_with_weights(model, path, weights)
        written = ir.load(path)
        return FormEntry(
            file=path.name,
            weights=weights.name,
            target=target,
            precision=precision,
            shares=check_precision(written, precision, path.name),
            nodes=len(list(written.graph)),
            source_sha256=hash_file(self.folder / self.graphs[key].file),
        )

    def _write_for_onnxruntime(self, key: str, precision: Precision) -> FormEntry:
        self.on_progress(f"{key}: {ONNXRUNTIME}-{precision}")
        return self._save(derive_form(self._get_canonical(key)), key, target=ONNXRUNTIME, precision=precision)

    def _write_int8(self) -> dict[str, dict[str, FormEntry]]:
        self.on_progress("int8: calibration frames")
        files = {key: self.folder / graph.file for key, graph in self.graphs.items()}
        exact = {name: OnnxRuntimeEngine(files[name]) for name in self.program.names}
        frames = [self._run_all(exact, frame) for frame in self.frames()]
        stages = [stage.name for stage in self.program.stages if stage.quantizable]
        ranges, ranked = {}, dict[tuple[str, str], float]()
        for name in stages:
            self.on_progress(f"{name}: ranges and sensitivities of int8")
            ranges[name] = observe(files[name], frames)
            ranked |= {(name, p): e for p, e in measure_sensitivities(files[name], frames, ranges[name]).items()}
        order = sorted(ranked, key=lambda product: -ranked[product])

        def make_quantized(key: str, leave_out: Collection[tuple[str, str]], symmetric: bool) -> ir.Model:
            model, name = self._get_canonical(key), key.partition("@")[0]
            of = ranges[name], {product for graph, product in leave_out if graph == name}
            of = of if key == name else carry_over(*of, measured=self._get_canonical(name), other=model)
            quantize(model, *of, symmetric=symmetric)
            return model

        def agreement(leave_out: Collection[tuple[str, str]], symmetric: bool) -> float:
            engines = dict(exact)
            for name in stages:
                trial = self.folder / f"{name}.trial.onnx"
                try:
                    ir.save(make_quantized(name, leave_out, symmetric), trial)
                    engines[name] = OnnxRuntimeEngine(trial)
                finally:
                    trial.unlink(missing_ok=True)
            ours = [self._run_all(engines, frame)[MASKS] for frame in frames]
            pairs = zip(ours, frames, strict=True)
            return float(np.mean([compare_masks(masks, frame[MASKS], self.threshold)[0] for masks, frame in pairs]))

        forms: dict[str, dict[str, FormEntry]] = {}
        # TensorRT supports a zero point of 0 only. ONNX Runtime's products support any, which saves a bit.
        for target, symmetric in ((STANDARD, True), (ONNXRUNTIME, False)):
            left_out: list[tuple[str, str]] = []
            reached: float | None = None
            if self.is_trained:
                self.on_progress(f"{target}-int8: which layers to leave out")
                asked = partial(agreement, symmetric=symmetric)
                left_out, reached = find_least_left_out(order, asked, aim=INT8_IOU, least=LEAST_INT8_IOU)
            self.notes.setdefault("int8", {"calibration_frames": len(frames), "products": len(order)})[target] = {
                "left_out": [f"{graph}: {product}" for graph, product in left_out],
                "mask_iou": reached,
            }
            entries = forms[f"{target}-int8"] = {}
            for key in self.graphs:
                self.on_progress(f"{key}: {target}-int8")
                if key.partition("@")[0] not in stages:
                    is_standard = target == STANDARD
                    entries[key] = (
                        self._copy_unchanged(key) if is_standard else self._write_for_onnxruntime(key, "fp32")
                    )
                    continue
                model = make_quantized(key, left_out, symmetric)
                entries[key] = self._save(
                    convert_to_plugin_nodes(model) if symmetric else derive_form(model),
                    key,
                    target=target,
                    precision="int8",
                )
        return forms

    def _run_all(self, engines: Mapping[str, OnnxRuntimeEngine], frame: Arrays) -> dict[str, NDArray[Any]]:
        """Return every input and output of the graphs for one frame."""
        return merge_tensors(run_program(self.program, engines, group_inputs(frame)))

    def _copy_unchanged(self, key: str) -> FormEntry:
        graph, path = self.graphs[key], self.folder / self.graphs[key].file
        return FormEntry(
            file=graph.file,
            weights=graph.weights,
            target=STANDARD,
            precision="fp32",
            shares=compute_shares(ir.load(path)),
            nodes=graph.nodes,
            source_sha256=hash_file(path),
        )

"""Check that engines still compute the outputs of PyTorch, and that their masks still follow the sound.

Every form of a bundle is checked at every picture size, on the inputs of ``reference.npz``:

- each graph alone, against PyTorch and against the canonical graph with equal inputs;
- the whole program, also in batches of 2 and 3;
- the audio control.

:mod:`teso_deploy.verification.parity` has the limits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from teso_deploy.backends.engine import EngineFactory
from teso_deploy.bundle import REFERENCE, Bundle, make_sized_name
from teso_deploy.errors import BundleError
from teso_deploy.program import MASKS
from teso_deploy.types import ImageSize, Precision
from teso_deploy.verification import probes
from teso_deploy.verification.audio_control import SOUNDS, STORED, Heard, control, make_control_inputs
from teso_deploy.verification.parity import (
    LIMITS,
    MEASURED_ONLY,
    GraphParity,
    Thresholds,
    compare_rows,
    compare_tensors,
)
from teso_deploy.verification.probes import Engines, Observed

#: The form that every bundle has. All other forms are derived from it.
CANONICAL = "canonical"
#: In place of a graph's name, this stands for the whole program, from picture and sound to masks.
WHOLE = "frame"
#: Precisions that can't be checked on the CPU → the reason.
CANNOT_RUN: Mapping[str, str] = {
    "bf16": "ONNX Runtime has no bfloat16 operators on the CPU; check it on a GPU with --backend and --precision bf16"
}
Against = Literal["pytorch", "canonical", "batch 2", "batch 3"]


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. ``graph``: its key in the manifest, or ``frame`` (``frame@288x512``).

    If ``against`` is "batch N", the form runs N pictures with their sounds in one batch. Its results are compared with
    those of the canonical graphs, which run the pictures one by one.
    """

    form: str
    graph: str
    against: Against
    parity: GraphParity
    limits: Thresholds

    @property
    def failure(self) -> tuple[int, str] | None:
        """Return its severity (0: masks) and a description; None if it passed."""
        if found := self.parity.worst(self.limits):
            return found[0], f"{self.graph} ({self.form}, {self.against}): {found[1]}"
        return None


@dataclass(frozen=True, slots=True)
class Compared:
    """A row of the reference with the model's and a form's masks (C, h, w), and its picture (3, H, W)."""

    form: str
    size: ImageSize
    row: str
    mask_iou: float
    image: NDArray[np.float32]
    expected: NDArray[np.float32]
    found: NDArray[np.float32]


@dataclass
class VerifyReport:
    """All comparisons of a bundle.

    ``not_run``: forms that can't run here, and why. ``required``: forms that the caller named. A required form that was
    not run is a failure.
    """

    checks: list[Check] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    first_difference: dict[str, str] = field(default_factory=dict)

    @property
    def forms(self) -> list[str]:
        """Names of the forms that ran, the canonical one first."""
        return list(dict.fromkeys(check.form for check in self.checks))

    @property
    def failures(self) -> list[str]:
        """List everything that failed, the most severe first.

        The order is: masks, audio control, cosines, errors, forms that were not run.
        """
        found = [failure for check in self.checks if (failure := check.failure)]
        found += [(1, reason) for heard in self.heard if (reason := heard.failure)]
        found += [
            (4, f"{form} was asked for and not run: {reason}")
            for form, reason in self.not_run.items()
            if form in self.required
        ]
        return [reason for _, reason in sorted(found, key=lambda failure: failure[0])]

    @property
    def passed(self) -> bool:
        """True if nothing failed and all required forms were run."""
        return not self.failures

    def parity(self, graph: str, form: str = CANONICAL, against: Against = "pytorch") -> GraphParity | None:
        """Return one comparison; None if it was not made.

        Args:
            graph: The graph's key in the manifest, or ``frame``.
            form: Name of the form. Default: the canonical one.
            against: The other side of the comparison. Default: PyTorch.
        """
        for check in self.checks:
            if (check.graph, check.form, check.against) == (graph, form, against):
                return check.parity
        return None

    def worst(self, count: int) -> list[Compared]:
        """Return the rows whose masks agree least with the model's."""
        return sorted(self.compared, key=lambda row: row.mask_iou)[:count]

    def graphs_as_dict(self) -> dict[str, Any]:
        """Return for JSON: graph → form → figures against PyTorch, ``passed``, and the other comparisons by name."""
        graphs: dict[str, Any] = {}
        for check in self.checks:
            entry = graphs.setdefault(check.graph, {}).setdefault(check.form, {"passed": True})
            figures = check.parity.as_dict()
            entry |= figures if check.against == "pytorch" else {check.against.replace(" ", "_"): figures}
            entry["passed"] &= check.failure is None
        return graphs

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        control: dict[str, Any] = {}
        for heard in self.heard:
            key = heard.form if heard.is_first_size else make_sized_name(heard.form, heard.size)
            control.setdefault(key, {})[heard.sound] = heard.as_dict()
        return {
            "schema_version": 2,
            "graphs": self.graphs_as_dict(),
            "audio_control": control,
            "not_run": self.not_run,
            "first_difference": self.first_difference,
            "passed": self.passed,
            "failures": self.failures,
        }


#: Form (None: canonical) → the factory of its engines.
Factories = Callable[[str | None], EngineFactory]


def choose_forms(bundle: Bundle, names: Sequence[str] = ()) -> list[str]:
    """List forms by name, the canonical one always first. No names: all forms.

    Raises :class:`BundleError` for an unknown name.
    """
    there = [CANONICAL, *bundle.manifest.forms]
    if unknown := [name for name in names if name not in there]:
        raise BundleError(f"{bundle.folder} has no form {unknown[0]!r}, only {', '.join(there)}")
    return [name for name in there if name == CANONICAL or not names or name in names]


def _get_precision(bundle: Bundle, form: str) -> Precision:
    """Return the precision of the form as a whole.

    A graph of an int8 form that stays in fp32 still gets int8's outputs as inputs.
    """
    if form == CANONICAL:
        return "fp32"
    found = {entry.precision for entry in bundle.manifest.forms[form].values()}
    return cast(Precision, next(iter(found - {"fp32"}), "fp32"))


def _open_engines(bundle: Bundle, factory: EngineFactory, size: ImageSize) -> Engines:
    return {name: factory(bundle, bundle.graph_at(name, size)) for name in bundle.program.names}


def verify_bundle(
    bundle: Bundle,
    factories: Factories,
    *,
    forms: Sequence[str] = (),
    sizes: Sequence[ImageSize] = (),
    is_thorough: bool = True,
    pytorch: Engines | None = None,
    backends: Mapping[str, tuple[Precision, EngineFactory]] | None = None,
) -> VerifyReport:
    """Compare forms of a bundle with ``reference.npz``.

    Args:
        bundle: The bundle.
        factories: Returns the factory of a form's engines.
        forms: Names of the forms; one of them that can't run here is a failure of the report. Default: all forms.
        sizes: Picture sizes (height, width). Default: all sizes of the bundle.
        is_thorough: Whether batches of 2 and 3 and the audio control are run too. Default: yes.
        pytorch: Engines of the PyTorch model, which then replace the reference's stored outputs. The reference is
            compared with them as form ``reference.npz``. Default: none.
        backends: Other engines by a name, with their precision. The limits of forms of that precision apply to them.
            Default: none.

    Returns:
        The report.

    Raises:
        BundleError: A form or size is unknown, or the reference lacks a tensor.
    """
    report = VerifyReport(required=tuple(forms))
    candidates: dict[str, tuple[Precision, EngineFactory]] = {}
    for form in choose_forms(bundle, forms):
        precision = _get_precision(bundle, form)
        if reason := CANNOT_RUN.get(precision):
            report.not_run[form] = reason
        else:
            candidates[form] = precision, factories(None if form == CANONICAL else form)
    candidates |= backends or {}
    for size in sizes or bundle.sizes:
        _verify_size(bundle, candidates, size, is_thorough=is_thorough, pytorch=pytorch, report=report)
    return report


def _verify_size(
    bundle: Bundle,
    candidates: Mapping[str, tuple[Precision, EngineFactory]],
    size: ImageSize,
    *,
    is_thorough: bool,
    pytorch: Engines | None,
    report: VerifyReport,
) -> None:
    reference = probes.read_reference(bundle, size)
    threshold = bundle.manifest.postprocessing.threshold
    is_trained, is_first = bundle.manifest.trained, size == bundle.sizes[0]
    program = bundle.program
    keys = {name: bundle.graph_at(name, size) for name in program.names}
    keys[WHOLE] = WHOLE if is_first else make_sized_name(WHOLE, size)
    sounds = make_control_inputs(reference) if is_thorough else None
    model: Observed | None = None
    if pytorch is not None:
        model = probes.observe(program, pytorch, reference, heard=sounds)
        for graph in program.names:
            parity = compare_tensors({n: reference[n] for n in model.graphs[graph]}, model.graphs[graph], threshold)
            report.checks.append(Check(REFERENCE, keys[graph], "pytorch", parity, LIMITS["fp32"].pytorch))
        reference = reference | {name: value for graph in model.graphs.values() for name, value in graph.items()}
        reference[MASKS] = model.masks
    canonical: Observed | None = None
    alone: list[dict[str, NDArray[Any]]] = []
    for form, (precision, factory) in candidates.items():
        engines = _open_engines(bundle, factory, size)
        limits = LIMITS[precision]
        # Masks of untrained weights flip at the smallest difference, so in less than fp32 they are only measured.
        means_something = is_trained or precision == "fp32"
        to_pytorch, to_canonical, in_a_row = (
            kind if means_something else MEASURED_ONLY for kind in (limits.pytorch, limits.canonical, limits.chain)
        )
        observed = probes.observe(program, engines, reference, heard=sounds)

        def add(graph: str, against: Against, *, ours: Any, expected: Any, kind: Thresholds, form: str = form) -> None:
            report.checks.append(Check(form, keys[graph], against, compare_tensors(ours, expected, threshold), kind))

        for graph in program.names:
            add(graph, "pytorch", ours=observed.graphs[graph], expected=reference, kind=to_pytorch)
        masks = {MASKS: observed.masks}
        add(WHOLE, "pytorch", ours=masks, expected=reference, kind=to_pytorch)
        if canonical is None:
            canonical = observed
        else:
            for graph in program.names:
                add(
                    graph, "canonical", ours=observed.graphs[graph], expected=canonical.graphs[graph], kind=to_canonical
                )
            add(WHOLE, "canonical", ours=masks, expected={MASKS: canonical.masks}, kind=in_a_row)
        report.compared += [
            Compared(form, size, row, compare_rows(ours, expected, threshold)[0], reference["image"][0], expected, ours)
            for row, ours, expected in zip(probes.ROWS, observed.masks, reference[MASKS], strict=True)
        ]
        if not is_thorough:
            continue
        alone = alone or probes.run_one_by_one(program, engines, reference)
        for count, against in ((2, "batch 2"), (3, "batch 3")):
            stacked = {name: np.concatenate([row[name] for row in alone[:count]]) for name in alone[0]}
            add(
                WHOLE,
                cast(Against, against),
                ours=probes.run_at_once(program, engines, reference, count=count),
                expected=stacked,
                kind=in_a_row,
            )
        assert observed.heard is not None and canonical.heard is not None
        asked = model.heard if model is not None else None if form == CANONICAL else canonical.heard
        expected_masks = [
            asked[i] if asked is not None else reference[MASKS][STORED[name]] if name in STORED else None
            for i, name in enumerate(SOUNDS)
        ]
        report.heard += control(
            form,
            size=size,
            is_first_size=is_first,
            heard=observed.heard,
            model=expected_masks,
            threshold=threshold,
            is_trained=is_trained,
            limits=limits,
            least_mask_iou=to_pytorch.mask_iou,
        )

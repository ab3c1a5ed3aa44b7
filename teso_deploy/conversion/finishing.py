"""What every bundle goes through before it takes its place: forms, engines, hashes, parity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from teso_deploy.backends.onnxruntime import TARGET as ONNXRUNTIME
from teso_deploy.backends.onnxruntime import onnxruntime_factory
from teso_deploy.bundle import Bundle, BundleManifest, FormEntry, write_manifest
from teso_deploy.conversion.engines import EngineRequest, build_engines, verify_engines
from teso_deploy.conversion.forms import Forms
from teso_deploy.errors import CheckFailedError
from teso_deploy.types import Precision
from teso_deploy.verification.verify import CANONICAL, VerifyReport, verify_bundle


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside the canonical graphs: forms of these precisions, and engines of some of them."""

    precisions: Sequence[Precision] = ("fp32",)
    engines: Sequence[EngineRequest] = ()

    def write_forms(self, writer: Forms) -> dict[str, dict[str, FormEntry]]:
        """Every form: what runs here, and what engines are built from."""
        forms: dict[str, dict[str, FormEntry]] = {}
        for precision in dict.fromkeys(self.precisions):
            forms |= writer.write(precision)
        if any("fp32" in request.precisions for request in self.engines):
            forms |= writer.standard("fp32")
        return forms


def finish(
    folder: Path,
    manifest: BundleManifest,
    writer: Forms,
    wanted: Wanted,
    on_progress: Callable[[str], None],
) -> tuple[BundleManifest, VerifyReport]:
    """Hash a staged folder, hold its forms against PyTorch, build its engines, and write the manifest.

    Raises :class:`CheckFailedError` where a form is not the model, and what :func:`build_engines` does.
    """
    on_progress("parity with PyTorch")
    manifest = write_manifest(folder, manifest)
    staged = Bundle.open(folder)
    # Whether it obeys the sound is `verify`'s question; here: is it the model?
    ours = [form for form in manifest.forms if form.startswith(f"{ONNXRUNTIME}-")] or [CANONICAL]
    parity = verify_bundle(staged, lambda form: onnxruntime_factory(None, form), ours, is_thorough=False)
    if not parity.passed:
        raise CheckFailedError(
            f"the graphs differ from PyTorch, nothing was written ({parity.failures[0]}); please report this"
        )
    engines = build_engines(staged, wanted.engines, on_progress)
    manifest = manifest.model_copy(update={"engines": engines})
    manifest = write_manifest(folder, manifest, {"parity": parity.graphs_as_dict(), **writer.notes})
    if engines:
        verify_engines(Bundle(folder, manifest), wanted.engines, on_progress)
    return manifest, parity

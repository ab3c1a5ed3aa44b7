"""The last steps of every bundle before it is put in place: forms, engines, hashes, parity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from teso_deploy.backends.onnxruntime import TARGET as ONNXRUNTIME
from teso_deploy.backends.onnxruntime import make_onnxruntime_factory
from teso_deploy.bundle import Bundle, BundleManifest, FormEntry, write_manifest
from teso_deploy.conversion.engines import EngineRequest, build_engines, verify_engines
from teso_deploy.conversion.forms import Forms
from teso_deploy.errors import CheckFailedError
from teso_deploy.types import Precision
from teso_deploy.verification.verify import CANONICAL, VerifyReport, verify_bundle


@dataclass(frozen=True)
class Wanted:
    """Additions to the canonical graphs: forms in these precisions, and engines for some of them."""

    precisions: Sequence[Precision] = ("fp32",)
    engines: Sequence[EngineRequest] = ()

    def write_forms(self, writer: Forms) -> dict[str, dict[str, FormEntry]]:
        """Write every form: those that run here, and those from which engines are built."""
        forms: dict[str, dict[str, FormEntry]] = {}
        for precision in dict.fromkeys(self.precisions):
            forms |= writer.write(precision)
        if any("fp32" in request.precisions for request in self.engines):
            forms |= writer.standard("fp32")
        return forms


def finish(
    folder: Path,
    manifest: BundleManifest,
    *,
    writer: Forms,
    wanted: Wanted,
    on_progress: Callable[[str], None],
) -> tuple[BundleManifest, VerifyReport]:
    """Hash a staged folder, compare its forms with PyTorch, build its engines, and write the manifest.

    Args:
        folder: The staged folder.
        manifest: The manifest so far.
        writer: Writes the forms.
        wanted: The forms and engines to add.
        on_progress: Called with the current stage.

    Returns:
        The complete manifest, and the parity of the forms.

    Raises:
        CheckFailedError: A form differs from the model; and the errors of :func:`build_engines`.
    """
    on_progress("parity with PyTorch")
    manifest = write_manifest(folder, manifest)
    staged = Bundle.open(folder)
    # Check only that the masks equal the model's; `verify` checks that they depend on the sound.
    ours = [form for form in manifest.forms if form.startswith(f"{ONNXRUNTIME}-")] or [CANONICAL]
    parity = verify_bundle(staged, lambda form: make_onnxruntime_factory(None, form), forms=ours, is_thorough=False)
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
